package xds_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// outside asks for a host that no Service has, at an address that nobody has.
func (v *village) outside(host string) result { return v.get("http://10.99.0.1/", host) }

func (v *village) testEntries(t *testing.T) {
	t.Run("STATIC, with weights", func(t *testing.T) {
		v.apply(t, `
kind: ServiceEntry
metadata: {name: static}
spec:
  hosts: [static.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: 10.77.0.3, weight: 1}, {address: 10.77.0.4, weight: 3}]
---
kind: DestinationRule
metadata: {name: static}
spec: {host: static.example, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
`)
		eventually(t, "v2 has three times as much", func() error {
			seen := map[string]int{}
			for range 40 {
				r := v.outside("static.example")
				if r.err() != nil {
					return r.err()
				}
				seen[versionOf(r)]++
			}
			if seen["v1"] < 5 || seen["v1"] > 15 {
				return fmt.Errorf("they answer %v", seen)
			}
			return nil
		})
	})
	t.Run("WorkloadEntries that it selects, by mutual TLS", func(t *testing.T) {
		v.apply(t, `
kind: WorkloadEntry
metadata: {name: vm, labels: {app: vm}}
spec: {address: 10.77.0.4, serviceAccount: server, labels: {security.istio.io/tlsMode: istio}, ports: {http: 8080}}
---
kind: WorkloadEntry
metadata: {name: other, labels: {app: other}}
spec: {address: 10.77.0.3, ports: {http: 8080}}
---
kind: ServiceEntry
metadata: {name: vms}
spec:
  hosts: [vms.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: vm}}
`)
		eventually(t, "the workload answers", func() error {
			r := v.outside("vms.example")
			if r.err() != nil || versionOf(r) != "v2" || r.Header.Get("X-Forwarded-Client-Cert") == "" {
				return fmt.Errorf("%s answers, peer %q, %w", r.Local, r.Header.Get("X-Forwarded-Client-Cert"), r.err())
			}
			return nil
		})
	})
	t.Run("ready pods that it selects", func(t *testing.T) {
		v.apply(t, strings.ReplaceAll(villageObjects, "status: {podIP: 10.77.0.4}", "status: {podIP: 10.77.0.4, conditions: [{type: Ready, status: \"True\"}]}")+`---
kind: ServiceEntry
metadata: {name: pods}
spec:
  hosts: [pods.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  workloadSelector: {labels: {app: web}}
`)
		eventually(t, "the ready pod answers", func() error {
			for range 6 {
				if r := v.outside("pods.example"); r.err() != nil || versionOf(r) != "v2" {
					return fmt.Errorf("%s answers, %w", r.Local, r.err())
				}
			}
			return nil
		})
	})
	t.Run("NONE leads to the address that was called", func(t *testing.T) {
		v.apply(t, `
kind: ServiceEntry
metadata: {name: none}
spec: {hosts: ["*.any.example"], resolution: NONE, ports: [{number: 8080, name: http, protocol: HTTP}]}
---
kind: VirtualService
metadata: {name: none}
spec: {hosts: ["*.any.example"], http: [{headers: {request: {set: {x-routed: "1"}}}, route: [{destination: {host: "*.any.example"}}]}]}
`)
		eventually(t, "the address answers", func() error {
			r := v.get("http://10.77.0.5:8080/", "one.any.example:8080")
			if r.err() != nil || r.Local != "10.77.0.5:8080" || r.Header.Get("X-Routed") == "" {
				return fmt.Errorf("%s answers, %v, %w", r.Local, r.Header, r.err())
			}
			return nil
		})
	})
	l := v.clientNet.listen("127.0.0.1:8099")
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusAccepted) }))
	}()
	for _, resolution := range []string{"DNS", "DNS_ROUND_ROBIN"} {
		t.Run(resolution, func(t *testing.T) {
			v.apply(t, `
kind: ServiceEntry
metadata: {name: dns}
spec:
  hosts: [dns.example]
  resolution: `+resolution+`
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: localhost, ports: {http: 8099}}]
`)
			eventually(t, "what the name stands for answers", func() error {
				if r := v.outside("dns.example"); r.status != http.StatusAccepted {
					return fmt.Errorf("the answer is %d, %w", r.status, r.error)
				}
				return nil
			})
		})
	}
}

func (v *village) testEntryPorts(t *testing.T) {
	t.Run("TCP at an address", func(t *testing.T) {
		v.apply(t, `
kind: ServiceEntry
metadata: {name: tcp}
spec:
  hosts: [tcp.example]
  addresses: [10.77.0.4]
  resolution: STATIC
  ports: [{number: 3399, name: tcp, protocol: TCP, targetPort: 3306}]
  endpoints: [{address: 10.77.0.3}]
`)
		eventually(t, "the server is heard", func() error {
			if got, err := hear(v.clientNet, "10.77.0.4:3399"); got != greeting+"ping" {
				return fmt.Errorf("%q, %w", got, err)
			}
			return nil
		})
	})
	t.Run("TCP at any address", func(t *testing.T) {
		v.apply(t, `
kind: ServiceEntry
metadata: {name: tcp}
spec:
  hosts: [tcp.example]
  resolution: STATIC
  ports: [{number: 3309, name: tcp, protocol: TCP, targetPort: 3306}]
  endpoints: [{address: 10.77.0.3}]
`)
		eventually(t, "the server is heard", func() error {
			if got, err := hear(v.clientNet, "10.77.0.4:3309"); got != greeting+"ping" {
				return fmt.Errorf("%q, %w", got, err)
			}
			return nil
		})
	})
	t.Run("TLS by the name that the client shows", func(t *testing.T) {
		v.apply(t, `
kind: ServiceEntry
metadata: {name: tls}
spec:
  hosts: [tls.example, "*.wild.example"]
  resolution: STATIC
  ports: [{number: 8443, name: tls, protocol: TLS}]
  endpoints: [{address: 10.77.0.3}]
`)
		for _, name := range []string{"tls.example", "some.wild.example"} {
			eventually(t, name+" answers", func() error {
				r := v.secure(name)
				if r.err() != nil || r.TLS != name {
					return fmt.Errorf("it sees %q, %w", r.TLS, r.err())
				}
				return nil
			})
		}
		if r := v.secure("other.example"); r.error == nil {
			t.Errorf("a name that nobody has declared is answered with %d", r.status)
		}
	})
}

// secure asks an address that nobody has over TLS of the client's own.
func (v *village) secure(name string) result {
	c := &http.Client{Transport: &http.Transport{
		DialContext: v.clientNet.dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: name},
	}}
	return get(c, "https://10.99.0.4:8443/", nil)
}

func (v *village) testRegistry(t *testing.T) {
	set := func(mode string) {
		v.set("kind: ConfigMap\nmetadata: {namespace: istio-system, name: istio}\ndata: {mesh: \"outboundTrafficPolicy: {mode: " + mode + "}\"}\n")
		v.show()
	}
	set("REGISTRY_ONLY")
	defer set("ALLOW_ANY")
	entry := `
kind: ServiceEntry
metadata: {name: known}
spec:
  hosts: [known.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: 10.77.0.3}]
`
	eventually(t, "an unknown host is refused", func() error {
		if r := v.outside("known.example"); r.status != http.StatusBadGateway {
			return fmt.Errorf("the answer is %d, %w", r.status, r.error)
		}
		return nil
	})
	v.apply(t, entry)
	eventually(t, "one that an entry declares is reached", func() error { return v.outside("known.example").err() })
	if r := v.outside("unknown.example"); r.status != http.StatusBadGateway {
		t.Errorf("another one is answered with %d", r.status)
	}
}
