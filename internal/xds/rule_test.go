package xds_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestTraffic applies objects as a person would and asks how requests behave then.
func TestTraffic(t *testing.T) {
	v := newVillage(t)
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"DestinationRule: load balancers", v.testBalancers},
		{"DestinationRule: consistent hash", v.testHash},
		{"DestinationRule: localities", v.testLocalities},
		{"DestinationRule: outlier detection", v.testOutliers},
		{"DestinationRule: connection pool", v.testConnectionPool},
		{"DestinationRule: TLS", v.testTLS},
		{"DestinationRule: subsets and ports", v.testSubsets},
		{"DestinationRule: every other setting is accepted", v.testAccepted},
		{"VirtualService: matches", v.testMatches},
		{"VirtualService: destinations", v.testDestinations},
		{"VirtualService: redirects and rewrites", v.testRewrites},
		{"VirtualService: retries and timeouts", v.testRetries},
		{"VirtualService: faults, mirrors, CORS, headers", v.testRest},
		{"VirtualService: hosts", v.testHosts},
		{"ServiceEntry: resolutions", v.testEntries},
		{"ServiceEntry: ports and protocols", v.testEntryPorts},
		{"ServiceEntry: REGISTRY_ONLY", v.testRegistry},
	} {
		t.Run(c.name, c.test)
	}
	v.client.refused()
	v.server.refused()
}

const rule = `
kind: DestinationRule
metadata: {name: web}
spec: {host: web, trafficPolicy: %s}
`

func (v *village) testBalancers(t *testing.T) {
	for _, c := range []struct {
		name, policy string
		even         bool
	}{
		{"ROUND_ROBIN", "{loadBalancer: {simple: ROUND_ROBIN}}", true},
		{"RANDOM", "{loadBalancer: {simple: RANDOM}}", false},
		{"LEAST_REQUEST", "{loadBalancer: {simple: LEAST_REQUEST}}", false},
		{"warmup", "{loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 1s, minimumPercent: 50, aggression: 1.5}}}", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.apply(t, fmt.Sprintf(rule, c.policy))
			eventually(t, "both pods have their share", func() error {
				seen := v.spread(40)
				least := 3
				if c.even {
					least = 20
				}
				if seen["v1"] < least || seen["v2"] < least || seen["v1"]+seen["v2"] != 40 {
					return fmt.Errorf("they answer %v", seen)
				}
				return nil
			})
		})
	}
	t.Run("PASSTHROUGH", func(t *testing.T) {
		v.apply(t, `
kind: DestinationRule
metadata: {name: pass}
spec: {host: pass.shop.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}
`)
		eventually(t, "the address that was called answers", func() error {
			r := v.get("http://10.77.0.5:8080/", "pass:8080")
			if r.err() == nil && r.Local != "10.77.0.5:8080" {
				return fmt.Errorf("%s answers", r.Local)
			}
			return r.err()
		})
	})
}

// sticks reports whether the same request always goes to one pod, while different ones go to both.
func (v *village) sticks(header func(i int) (path, line string)) error {
	pods := map[string]bool{}
	for i := range 24 {
		path, line := header(i)
		first := ""
		for range 4 {
			r := v.ask(path, line)
			if r.err() != nil {
				return r.err()
			}
			if first != "" && versionOf(r) != first {
				return fmt.Errorf("%s %s went to %s and to %s", path, line, first, versionOf(r))
			}
			first = versionOf(r)
		}
		pods[first] = true
	}
	if len(pods) != 2 {
		return fmt.Errorf("all went to %v", pods)
	}
	return nil
}

func (v *village) testHash(t *testing.T) {
	byHeader := func(i int) (string, string) { return "/", fmt.Sprintf("X-User: %d", i) }
	byQuery := func(i int) (string, string) { return fmt.Sprintf("/?user=%d", i), "X-Nothing: 1" }
	for _, c := range []struct {
		name, hash string
		of         func(int) (string, string)
	}{
		{"a header", "{httpHeaderName: X-User}", byHeader},
		{"a header, by a ring", "{httpHeaderName: X-User, ringHash: {minimumRingSize: 512}}", byHeader},
		{"a header, by Maglev", "{httpHeaderName: X-User, maglev: {tableSize: 1021}}", byHeader},
		{"a query parameter", "{httpQueryParameterName: user}", byQuery},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.apply(t, fmt.Sprintf(rule, "{loadBalancer: {consistentHash: "+c.hash+"}}"))
			eventually(t, "requests stick", func() error { return v.sticks(c.of) })
		})
	}
	t.Run("the source address", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{loadBalancer: {consistentHash: {useSourceIp: true}}}"))
		eventually(t, "one pod answers all", func() error {
			if seen := v.spread(20); len(seen) != 1 || seen["v1"]+seen["v2"] != 20 {
				return fmt.Errorf("they answer %v", seen)
			}
			return nil
		})
	})
	t.Run("a cookie, which is made where there is none", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{loadBalancer: {consistentHash: {httpCookie: {name: user, path: /, ttl: 10s, attributes: [{name: SameSite, value: Lax}]}}}}"))
		eventually(t, "requests stick", func() error {
			made := v.ask("/").header.Get("Set-Cookie")
			if !strings.HasPrefix(made, "user=") || !strings.Contains(made, "SameSite=Lax") || !strings.Contains(made, "Max-Age=10") {
				return fmt.Errorf("the cookie that is made is %q", made)
			}
			return v.sticks(func(i int) (string, string) { return "/", fmt.Sprintf("Cookie: user=%d", i) })
		})
	})
}

func (v *village) testLocalities(t *testing.T) {
	const outliers = "outlierDetection: {consecutive5xxErrors: 100}"
	t.Run("the client's own zone goes first", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{"+outliers+"}"))
		v.becomes(t, 20, map[string]int{"v1": 20})
		v.set(strings.Replace(nearUnready, "READY", "false", 1))
		v.show()
		v.becomes(t, 20, map[string]int{"v2": 20})
		v.set(strings.Replace(nearUnready, "READY", "true", 1))
		v.show()
		v.becomes(t, 20, map[string]int{"v1": 20})
	})
	t.Run("unless that is switched off", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{"+outliers+", loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}}"))
		v.becomes(t, 20, map[string]int{"v1": 10, "v2": 10})
	})
	t.Run("failover names the next region", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{"+outliers+", loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}}"))
		v.becomes(t, 20, map[string]int{"v1": 20})
	})
	t.Run("distribute gives all to one region", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, `{loadBalancer: {localityLbSetting: {distribute: [{from: "eu/*", to: {"us/*": 100}}]}}}`))
		v.becomes(t, 20, map[string]int{"v2": 20})
	})
	t.Run("distribute gives shares", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, `{loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {distribute: [{from: "eu/a", to: {"eu/a": 75, "us/*": 25}}]}}}`))
		eventually(t, "one in four leaves the region", func() error {
			if seen := v.spread(80); seen["v1"]+seen["v2"] != 80 || seen["v2"] < 12 || seen["v2"] > 28 {
				return fmt.Errorf("they answer %v", seen)
			}
			return nil
		})
	})
	t.Run("distribute for others changes nothing", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, `{loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {distribute: [{from: "asia/*", to: {"us/*": 100}}]}}}`))
		v.becomes(t, 20, map[string]int{"v1": 10, "v2": 10})
	})
}

const nearUnready = `
kind: EndpointSlice
addressType: IPv4
metadata: {namespace: shop, name: web, labels: {kubernetes.io/service-name: web}}
ports: [{name: http, port: 8080}, {name: http-alt, port: 7070}]
endpoints:
- {addresses: [10.77.0.3], nodeName: near, targetRef: {kind: Pod, name: server}, conditions: {ready: READY}}
- {addresses: [10.77.0.4], nodeName: far, targetRef: {kind: Pod, name: server-v2}}
`

func (v *village) testOutliers(t *testing.T) {
	for name, policy := range map[string]string{
		"consecutive 5xx": "consecutive5xxErrors: 3",
		"local origin":    "consecutive5xxErrors: 3, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 5",
	} {
		t.Run(name, func(t *testing.T) {
			v.apply(t, fmt.Sprintf(rule, "{outlierDetection: {"+policy+", interval: 1s, baseEjectionTime: 180s, maxEjectionPercent: 100}, loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}}"))
			v.becomes(t, 20, map[string]int{"v1": 20}, "X-Fail-At: 10.77.0.4")
			if seen := v.spread(20); seen["v1"] != 20 {
				t.Errorf("the pod that failed is asked again: %v", seen)
			}
		})
	}
	t.Run("when all are out, requests fail", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 180s, maxEjectionPercent: 100}}"))
		v.answers(t, "/", http.StatusServiceUnavailable, "X-Status: 500")
		if r := v.ask("/"); r.status != http.StatusServiceUnavailable {
			t.Errorf("with all pods out the answer is %d", r.status)
		}
	})
	t.Run("unless minHealthPercent keeps them", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 181s, maxEjectionPercent: 100, minHealthPercent: 60}, loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}}"))
		v.becomes(t, 20, map[string]int{"v1": 10, "status 500": 10}, "X-Fail-At: 10.77.0.4")
		if seen := v.spread(20); seen["v2"] == 0 {
			t.Errorf("with half of the pods out the others answer %v", seen)
		}
	})
}

// answer is a result that is no error.
type answer struct{ result result }

func (v *village) testConnectionPool(t *testing.T) {
	t.Run("requests beyond what may wait are refused", func(t *testing.T) {
		v.apply(t, `
kind: DestinationRule
metadata: {name: other}
spec: {host: other, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}}
---
kind: VirtualService
metadata: {name: other}
spec: {hosts: [other], http: [{retries: {attempts: 0}, route: [{destination: {host: other}}]}]}
`)
		eventually(t, "one of five is refused", func() error {
			release := v.app.block()
			defer release()
			done := make(chan answer, 5)
			for range 5 {
				c := v.httpClient(v.clientNet, false)
				go func() { done <- answer{get(c, "http://10.96.0.11/blocked", headers([]string{"X-Block: 1"}), "other")} }()
			}
			if r := (<-done).result; r.status != http.StatusServiceUnavailable || r.header.Get("X-Envoy-Overloaded") == "" {
				release()
				for range 4 {
					<-done
				}
				return fmt.Errorf("the first answer is %d, %w", r.status, r.error)
			}
			release()
			for range 4 {
				<-done
			}
			return nil
		})
	})
	t.Run("a connection is for as many requests as it says", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{connectionPool: {http: {maxRequestsPerConnection: 1}}}"))
		opened := regexp.MustCompile(`(?m)^envoy_cluster_upstream_cx_total\{cluster_name="outbound\|80\|\|web\.shop[^}]*\} (\d+)$`)
		connections := func() (n int) {
			if found := opened.FindStringSubmatch(prometheus(t, v.clientNet)); found != nil {
				n, _ = strconv.Atoi(found[1])
			}
			return n
		}
		eventually(t, "each request opens one", func() error {
			before := connections()
			if v.spread(6); connections()-before < 6 {
				return fmt.Errorf("6 requests have opened %d", connections()-before)
			}
			return nil
		})
	})
	for name, c := range map[string]struct{ policy, proto string }{
		"h2UpgradePolicy":   {"h2UpgradePolicy: UPGRADE", "HTTP/2.0"},
		"useClientProtocol": {"useClientProtocol: true", "HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			v.apply(t, fmt.Sprintf(rule, "{connectionPool: {http: {"+c.policy+"}}}"))
			eventually(t, "the application sees "+c.proto, func() error {
				if r := v.ask("/"); r.err() != nil || r.Proto != c.proto {
					return fmt.Errorf("it sees %s, %w", r.Proto, r.err())
				}
				return nil
			})
		})
	}
}

func (v *village) testTLS(t *testing.T) {
	identified := func(want bool) func() error {
		return func() error {
			r := v.ask("/")
			if got := r.Header.Get("X-Forwarded-Client-Cert") != ""; r.err() != nil || got != want {
				return fmt.Errorf("a peer is known: %t, want %t, %w", got, want, r.err())
			}
			return nil
		}
	}
	t.Run("DISABLE", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{tls: {mode: DISABLE}}"))
		eventually(t, "plain text", identified(false))
	})
	t.Run("ISTIO_MUTUAL", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{tls: {mode: ISTIO_MUTUAL}}"))
		eventually(t, "mutual TLS", identified(true))
	})
	t.Run("ISTIO_MUTUAL with names that the server does not have", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{tls: {mode: ISTIO_MUTUAL, subjectAltNames: [\"spiffe://cluster.local/ns/bank/sa/vault\"]}}"))
		v.answers(t, "/", http.StatusServiceUnavailable)
	})
	t.Run("of one port", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}"))
		eventually(t, "plain text on the port", identified(false))
		if r := v.get("http://10.96.0.10:81/", "web:81"); r.err() != nil || r.Header.Get("X-Forwarded-Client-Cert") == "" {
			t.Errorf("the other port: %v, peer %q", r.err(), r.Header.Get("X-Forwarded-Client-Cert"))
		}
	})
	v.testOrigination(t)
}

// testOrigination has the sidecar speak TLS to an application that has a certificate of its own.
func (v *village) testOrigination(t *testing.T) {
	roots := v.client.file("app-roots.pem", v.appCA.pem)
	stranger := v.client.file("other-roots.pem", newAuthority(t).pem)
	certificate, key := v.appCA.sign(t, "https://a.client")
	v.client.file("client.pem", certificate).Close()
	v.client.file("client.key", key).Close()
	roots.Close()
	stranger.Close()
	at := func(name string) string { return filepath.Join(v.client.dir, name) }
	origin := func(tls string) string {
		return "\nkind: DestinationRule\nmetadata: {name: secure}\nspec: {host: secure, trafficPolicy: {tls: " + tls + "}}\n"
	}
	for _, c := range []struct {
		name, tls string
		status    int
	}{
		{"SIMPLE", "{mode: SIMPLE, caCertificates: " + at("app-roots.pem") + ", sni: the.application, subjectAltNames: [\"https://the.application\"]}", 200},
		{"SIMPLE with roots that do not know the server", "{mode: SIMPLE, caCertificates: " + at("other-roots.pem") + ", sni: the.application}", 503},
		{"SIMPLE with a name that the server does not have", "{mode: SIMPLE, caCertificates: " + at("app-roots.pem") + ", sni: the.application, subjectAltNames: [another]}", 503},
		{"SIMPLE without a check", "{mode: SIMPLE, insecureSkipVerify: true, sni: the.application}", 200},
		{"MUTUAL", "{mode: MUTUAL, caCertificates: " + at("app-roots.pem") + ", clientCertificate: " + at("client.pem") + ", privateKey: " + at("client.key") + ", sni: the.application}", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.apply(t, origin(c.tls))
			var r result
			eventually(t, fmt.Sprintf("the answer is %d", c.status), func() error {
				if r = v.get("http://10.96.0.12/", "secure"); r.error != nil || r.status != c.status {
					return fmt.Errorf("it is %d, %w", r.status, r.error)
				}
				if want := c.name == "MUTUAL"; (r.ClientName != "") != want {
					return fmt.Errorf("the application sees the client certificate %q", r.ClientName)
				}
				return nil
			})
			if c.status == 200 && r.TLS != "the.application" {
				t.Errorf("the application sees TLS for %q", r.TLS)
			}
		})
	}
}

func (v *village) testSubsets(t *testing.T) {
	t.Run("a subset is the pods with its labels", func(t *testing.T) {
		v.apply(t, subsets+`---
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], http: [{route: [{destination: {host: web, subset: v2}}]}]}
`)
		v.becomes(t, 20, map[string]int{"v2": 20})
		// A pod that gets another label is of another subset.
		v.set(strings.Replace(villageObjects, "{app: web, version: v1,", "{app: web, version: v2,", 1))
		v.show()
		v.becomes(t, 20, map[string]int{"v1": 10, "v2": 10})
	})
	t.Run("a subset has a policy of its own", func(t *testing.T) {
		v.apply(t, strings.Replace(subsets, "labels: {version: v2}", "labels: {version: v2}, trafficPolicy: {tls: {mode: DISABLE}}", 1)+`---
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - {match: [{uri: {prefix: /v1}}], route: [{destination: {host: web, subset: v1}}]}
  - {route: [{destination: {host: web, subset: v2}}]}
`)
		eventually(t, "one subset is called in plain text", func() error {
			one, two := v.ask("/v1"), v.ask("/")
			if one.Header.Get("X-Forwarded-Client-Cert") == "" || two.err() != nil || two.Header.Get("X-Forwarded-Client-Cert") != "" {
				return fmt.Errorf("v1: %w %q, v2: %w %q", one.err(), one.Header.Get("X-Forwarded-Client-Cert"), two.err(), two.Header.Get("X-Forwarded-Client-Cert"))
			}
			return nil
		})
	})
	t.Run("a rule of the client's namespace goes before one of the root namespace", func(t *testing.T) {
		v.apply(t, fmt.Sprintf(rule, "{tls: {mode: DISABLE}}")+`---
kind: DestinationRule
metadata: {namespace: istio-system, name: all}
spec: {host: "*.local", trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: ["spiffe://nobody"]}}}
`)
		v.answers(t, "/", http.StatusOK)
		eventually(t, "what only the root's rule names is called as that says", func() error {
			if r := v.get("http://10.96.0.11/", "other"); r.status != http.StatusServiceUnavailable {
				return fmt.Errorf("it answers %d", r.status)
			}
			return nil
		})
	})
}

// subsets has the endpoints of web by version, in turn.
const subsets = `
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
`

// testAccepted has what takes minutes, or a network, to be seen: Envoy takes it, and requests go on.
func (v *village) testAccepted(t *testing.T) {
	v.apply(t, strings.Replace(rule, "spec: {host: web, trafficPolicy: %s}", `spec:
  host: web
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 100, connectTimeout: 3s, idleTimeout: 60s, maxConnectionDuration: 600s, tcpKeepalive: {probes: 3, time: 60s, interval: 5s}}
      http: {http2MaxRequests: 1000, maxRetries: 5, idleTimeout: 30s, maxConcurrentStreams: 50, http2KeepAlive: {interval: 10s, timeout: 3s}, h2UpgradePolicy: UPGRADE}
    outlierDetection: {consecutiveGatewayErrors: 3, consecutive5xxErrors: 0}
    retryBudget: {percent: 25, minRetryConcurrency: 5}
    loadBalancer: {warmupDurationSecs: 10s}`, 1))
	eventually(t, "HTTP/2 shows that the policy is in force", func() error {
		if r := v.ask("/"); r.err() != nil || r.Proto != "HTTP/2.0" {
			return fmt.Errorf("%s, %w", r.Proto, r.err())
		}
		return nil
	})
}
