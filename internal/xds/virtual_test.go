package xds_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// body asks and gives the status and the text of the answer, which a direct response has in place of an application's.
func (v *village) body(method, url, host string, header ...string) string {
	request, err := http.NewRequest(method, url, nil)
	if err != nil {
		return err.Error()
	}
	request.Host, request.Header = host, headers(header)
	response, err := v.noRedirects().Do(request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	text := make([]byte, 256)
	n, _ := response.Body.Read(text)
	return strings.TrimSpace(fmt.Sprintf("%d %s", response.StatusCode, strings.SplitN(string(text[:n]), "{", 2)[0]))
}

func (v *village) noRedirects() *http.Client {
	c := *v.http
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

func (v *village) testMatches(t *testing.T) {
	v.apply(t, `
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - {match: [{uri: {exact: /exact}}], directResponse: {status: 200, body: {string: exact}}}
  - {match: [{uri: {prefix: /pre/}}], directResponse: {status: 200, body: {string: prefix}}}
  - {match: [{uri: {regex: "/r[0-9]+"}}], directResponse: {status: 200, body: {string: regex}}}
  - {match: [{uri: {exact: /lower}, ignoreUriCase: true}], directResponse: {status: 200, body: {string: any case}}}
  - {match: [{method: {exact: PUT}}], directResponse: {status: 200, body: {string: method}}}
  - {match: [{scheme: {exact: https}}], directResponse: {status: 200, body: {string: scheme}}}
  - {match: [{authority: {prefix: "web.shop.svc"}}], directResponse: {status: 200, body: {string: authority}}}
  - {match: [{headers: {x-exact: {exact: a}}}], directResponse: {status: 200, body: {string: header}}}
  - {match: [{headers: {x-prefix: {prefix: ab}}}], directResponse: {status: 200, body: {string: header prefix}}}
  - {match: [{headers: {x-regex: {regex: "a+"}}}], directResponse: {status: 200, body: {string: header regex}}}
  - {match: [{headers: {x-there: {}}}], directResponse: {status: 200, body: {string: header there}}}
  - {match: [{uri: {prefix: /without}, withoutHeaders: {x-not: {exact: "1"}}}], directResponse: {status: 200, body: {string: without}}}
  - {match: [{queryParams: {q: {exact: "1"}}}], directResponse: {status: 200, body: {string: query}}}
  - {match: [{queryParams: {p: {regex: "[0-9]+"}}}], directResponse: {status: 200, body: {string: query regex}}}
  - {match: [{uri: {prefix: /both}, method: {exact: DELETE}, headers: {x-b: {exact: b}}}], directResponse: {status: 200, body: {string: all of them}}}
  - {match: [{uri: {exact: /one}}, {uri: {exact: /two}}], directResponse: {status: 200, body: {string: one of them}}}
  - {match: [{port: 81}], directResponse: {status: 200, body: {string: port}}}
  - {match: [{uri: {prefix: /ns}, sourceNamespace: shop}], directResponse: {status: 200, body: {string: namespace}}}
  - {match: [{uri: {prefix: /ns2}, sourceNamespace: bank}], directResponse: {status: 200, body: {string: another's}}}
  - {match: [{uri: {prefix: /gateway}, gateways: [mesh]}], directResponse: {status: 200, body: {string: mesh}}}
  - {match: [{uri: {prefix: /none}, gateways: [shop/public]}], directResponse: {status: 200, body: {string: gateway}}}
  - {directResponse: {status: 404, body: {bytes: cmVzdA==}}}
`)
	const web = "http://10.96.0.10"
	eventually(t, "the routes are in force", func() error {
		if got := v.body("GET", web+"/", "web"); got != "404 rest" {
			return fmt.Errorf("the answer is %q", got)
		}
		return nil
	})
	for _, c := range []struct{ method, url, host, header, want string }{
		{"GET", "/exact", "web", "", "200 exact"},
		{"GET", "/exact/more", "web", "", "404 rest"},
		{"GET", "/pre/fix", "web", "", "200 prefix"},
		{"GET", "/r42", "web", "", "200 regex"},
		{"GET", "/r42/", "web", "", "404 rest"},
		{"GET", "/LOWER", "web", "", "200 any case"},
		{"GET", "/EXACT", "web", "", "404 rest"},
		{"PUT", "/", "web", "", "200 method"},
		{"GET", "/", "web.shop.svc.cluster.local", "", "200 authority"},
		{"GET", "/", "web", "X-Exact: a", "200 header"},
		{"GET", "/", "web", "X-Exact: ab", "404 rest"},
		{"GET", "/", "web", "X-Prefix: abc", "200 header prefix"},
		{"GET", "/", "web", "X-Regex: aaa", "200 header regex"},
		{"GET", "/", "web", "X-Regex: aab", "404 rest"},
		{"GET", "/", "web", "X-There: whatever", "200 header there"},
		{"GET", "/without", "web", "X-Other: 1", "200 without"},
		{"GET", "/without", "web", "X-Not: 1", "404 rest"},
		{"GET", "/without", "web", "X-Not: 2", "200 without"},
		{"GET", "/?q=1", "web", "", "200 query"},
		{"GET", "/?q=2", "web", "", "404 rest"},
		{"GET", "/?p=12", "web", "", "200 query regex"},
		{"DELETE", "/both", "web", "X-B: b", "200 all of them"},
		{"DELETE", "/both", "web", "", "404 rest"},
		{"GET", "/one", "web", "", "200 one of them"},
		{"GET", "/two", "web", "", "200 one of them"},
		{"GET", ":81/", "web", "", "200 port"},
		{"GET", "/ns", "web", "", "200 namespace"},
		{"GET", "/ns2", "web", "", "200 namespace"},
		{"GET", "/gateway", "web", "", "200 mesh"},
		{"GET", "/none", "web", "", "404 rest"},
	} {
		if got := v.body(c.method, web+c.url, c.host, c.header); got != c.want {
			t.Errorf("%s %s of %s, %s: %q, want %q", c.method, c.url, c.host, c.header, got, c.want)
		}
	}
}

func virtual(http string) string {
	return "\nkind: VirtualService\nmetadata: {name: web}\nspec: {hosts: [web], http: [" + http + "]}\n"
}

func (v *village) testDestinations(t *testing.T) {
	t.Run("weights", func(t *testing.T) {
		v.apply(t, subsets+"---"+virtual("{route: [{destination: {host: web, subset: v1}, weight: 75}, {destination: {host: web, subset: v2}, weight: 25}]}"))
		eventually(t, "a quarter goes to v2", func() error {
			if seen := v.spread(100); seen["v1"]+seen["v2"] != 100 || seen["v2"] < 8 || seen["v2"] > 45 {
				return fmt.Errorf("they answer %v", seen)
			}
			return nil
		})
	})
	t.Run("a weight of 0 gets nothing", func(t *testing.T) {
		v.apply(t, subsets+"---"+virtual("{route: [{destination: {host: web, subset: v1}, weight: 0}, {destination: {host: web, subset: v2}, weight: 100}]}"))
		v.becomes(t, 20, map[string]int{"v2": 20})
	})
	t.Run("another service, at its own port", func(t *testing.T) {
		v.apply(t, virtual("{route: [{destination: {host: other}}]}"))
		r := v.get("http://10.96.0.10:81/", "web")
		eventually(t, "port 81 of web leads to the only port of other", func() error {
			if r = v.get("http://10.96.0.10:81/", "web"); r.err() != nil || r.Local != "10.77.0.3:8080" {
				return fmt.Errorf("it is answered by %s, %w", r.Local, r.err())
			}
			return nil
		})
	})
	t.Run("the port that it names", func(t *testing.T) {
		v.apply(t, virtual("{route: [{destination: {host: web, port: {number: 81}}}]}"))
		eventually(t, "port 80 leads to that of port 81", func() error {
			if r := v.ask("/"); r.err() != nil || !strings.HasSuffix(r.Local, ":7070") {
				return fmt.Errorf("it is answered by %s, %w", r.Local, r.err())
			}
			return nil
		})
	})
	for name, c := range map[string]struct{ to, says string }{
		"a host that no service has": {"{host: nowhere}", "there is no service nowhere.shop.svc.cluster.local"},
		"a subset that no rule has":  {"{host: web, subset: v9}", "no DestinationRule has a subset v9"},
	} {
		t.Run(name, func(t *testing.T) {
			v.applyWithProblems(t, virtual("{match: [{uri: {prefix: /bad}}], route: [{destination: "+c.to+"}]}, {route: [{destination: {host: web}}]}"))
			v.answers(t, "/bad", http.StatusServiceUnavailable)
			if r := v.ask("/good"); r.err() != nil {
				t.Errorf("the other route: %v", r.err())
			}
			found := false
			for _, p := range v.problems {
				found = found || strings.Contains(p.String(), "IST0101 VirtualService/shop/web spec.http[0].route[0].destination: "+c.says)
			}
			if !found {
				t.Errorf("the problems are %v", v.problems)
			}
		})
	}
	t.Run("a delegate's routes", func(t *testing.T) {
		v.apply(t, virtual("{match: [{uri: {prefix: /d}}], delegate: {name: routes, namespace: bank}}, {directResponse: {status: 404}}")+`---
kind: VirtualService
metadata: {namespace: bank, name: routes}
spec:
  http:
  - {match: [{uri: {prefix: /d/one}}], directResponse: {status: 200, body: {string: one}}}
  - {match: [{uri: {prefix: /elsewhere}}], directResponse: {status: 200, body: {string: elsewhere}}}
  - {directResponse: {status: 200, body: {string: rest of d}}}
`)
		eventually(t, "the delegate answers", func() error {
			for path, want := range map[string]string{"/d/one": "200 one", "/d/two": "200 rest of d", "/elsewhere": "404"} {
				if got := v.body("GET", "http://10.96.0.10"+path, "web"); got != want {
					return fmt.Errorf("%s is answered with %q, want %q", path, got, want)
				}
			}
			return nil
		})
	})
}

func (v *village) testRewrites(t *testing.T) {
	v.apply(t, virtual(`
{match: [{uri: {prefix: /old}}], rewrite: {uri: /new}, route: [{destination: {host: web}}]},
{match: [{uri: {exact: /exact}}], rewrite: {uri: /other, authority: somebody.example}, route: [{destination: {host: web}}]},
{match: [{uri: {prefix: /re/}}], rewrite: {uriRegexRewrite: {match: "^/re/([^/]+)/(.*)$", rewrite: "/\\2/\\1"}}, route: [{destination: {host: web}}]},
{match: [{uri: {exact: /to-path}}], redirect: {uri: /there, authority: other.example, redirectCode: 308}},
{match: [{uri: {prefix: /to-prefix}}], redirect: {prefixRewrite: /fix, redirectCode: 302}},
{match: [{uri: {exact: /to-https}}], redirect: {scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}},
{match: [{uri: {exact: /to-port}}], redirect: {port: 8443, redirectCode: 307}},
{directResponse: {status: 404}}`))
	eventually(t, "the routes are in force", func() error {
		if r := v.ask("/"); r.status != http.StatusNotFound {
			return fmt.Errorf("the answer is %d", r.status)
		}
		return nil
	})
	for path, want := range map[string][2]string{
		"/old/a": {"/new/a", "web"}, "/exact": {"/other", "somebody.example"}, "/re/a/b": {"/b/a", "web"},
	} {
		if r := v.ask(path); r.err() != nil || r.Path != want[0] || r.Host != want[1] {
			t.Errorf("%s arrives as %s of %s, %v", path, r.Path, r.Host, r.err())
		}
	}
	for path, want := range map[string]string{
		"/to-path": "308 http://other.example/there", "/to-prefix/a": "302 http://web/fix/a", "/to-https": "301 https://web:443/to-https", "/to-port": "307 http://web:8443/to-port",
	} {
		request, err := http.NewRequest(http.MethodGet, "http://10.96.0.10"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = "web"
		response, err := v.noRedirects().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		got := fmt.Sprintf("%d %s", response.StatusCode, response.Header.Get("Location"))
		if got != want && got != strings.Replace(want, ":443", "", 1) {
			t.Errorf("%s leads to %q, want %q", path, got, want)
		}
	}
}

func (v *village) testRetries(t *testing.T) {
	for _, c := range []struct {
		name, retries, status string
		attempts              int
	}{
		{"2 by default", "", "503", 3},
		{"none for what the default does not name", "", "500", 1},
		{"as many as said", "retries: {attempts: 4, retryOn: 5xx}, ", "500", 5},
		{"none with attempts 0", "retries: {attempts: 0}, ", "503", 1},
		{"by status", "retries: {attempts: 1, retryOn: \"gateway-error,418\"}, ", "418", 2},
		{"not by another status", "retries: {attempts: 1, retryOn: \"gateway-error,418\"}, ", "419", 1},
		{"with a pause, anywhere", "retries: {attempts: 3, retryOn: 5xx, backoff: 5ms, retryIgnorePreviousHosts: false, retryRemoteLocalities: true}, ", "500", 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.apply(t, virtual("{match: [{uri: {prefix: /retry}}], "+c.retries+"route: [{destination: {host: web}}]}, {directResponse: {status: 404}}"))
			v.answers(t, "/", http.StatusNotFound)
			path := "/retry/" + strings.ReplaceAll(c.name, " ", "-")
			eventually(t, fmt.Sprintf("it is tried %d times", c.attempts), func() error {
				before := len(v.app.requests(path))
				_ = v.ask(path, "X-Status: "+c.status)
				if got := len(v.app.requests(path)) - before; got != c.attempts {
					return fmt.Errorf("it is tried %d times", got)
				}
				return nil
			})
		})
	}
	release := v.app.block()
	defer release()
	t.Run("timeout", func(t *testing.T) {
		v.apply(t, virtual("{match: [{uri: {prefix: /slow}}], timeout: 0.2s, route: [{destination: {host: web}}]}, {directResponse: {status: 404}}"))
		v.answers(t, "/", http.StatusNotFound)
		v.answers(t, "/slow", http.StatusGatewayTimeout, "X-Block: 1")
	})
	t.Run("perTryTimeout", func(t *testing.T) {
		v.apply(t, virtual("{match: [{uri: {prefix: /try}}], retries: {attempts: 2, perTryTimeout: 0.1s, retryOn: 5xx}, route: [{destination: {host: web}}]}, {directResponse: {status: 405}}"))
		v.answers(t, "/", http.StatusMethodNotAllowed)
		eventually(t, "each try has its time", func() error {
			before := len(v.app.requests("/try"))
			r := v.ask("/try", "X-Block: 1")
			if got := len(v.app.requests("/try")) - before; r.status != http.StatusGatewayTimeout || got != 3 {
				return fmt.Errorf("status %d after %d tries", r.status, got)
			}
			return nil
		})
	})
}

func (v *village) testRest(t *testing.T) {
	t.Run("an aborted request", func(t *testing.T) {
		v.apply(t, virtual("{match: [{headers: {x-grpc: {}}}], fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}, route: [{destination: {host: web}}]}, {fault: {abort: {httpStatus: 555, percentage: {value: 100}}}, route: [{destination: {host: web}}]}"))
		v.answers(t, "/", 555)
		if r := v.ask("/", "X-Grpc: 1", "Content-Type: application/grpc"); r.header.Get("Grpc-Status") != "14" {
			t.Errorf("gRPC's status is %v", r.header)
		}
	})
	t.Run("a share that is aborted", func(t *testing.T) {
		v.apply(t, virtual("{fault: {abort: {httpStatus: 555, percentage: {value: 50}}}, route: [{destination: {host: web}}]}"))
		eventually(t, "half of the requests fail", func() error {
			if seen := v.spread(60); seen["status 555"] < 12 || seen["status 555"] > 48 {
				return fmt.Errorf("they answer %v", seen)
			}
			return nil
		})
	})
	t.Run("a delay", func(t *testing.T) {
		v.apply(t, virtual("{fault: {delay: {fixedDelay: 0.4s, percentage: {value: 100}}}, route: [{destination: {host: web}}]}"))
		eventually(t, "the answer comes late", func() error {
			began := time.Now()
			if r := v.ask("/"); r.err() != nil || time.Since(began) < 400*time.Millisecond {
				return fmt.Errorf("after %s, %w", time.Since(began), r.err())
			}
			return nil
		})
	})
	t.Run("a mirror", func(t *testing.T) {
		v.apply(t, virtual("{mirrors: [{destination: {host: other}, percentage: {value: 100}}], route: [{destination: {host: web}}]}"))
		eventually(t, "the request is seen twice", func() error {
			_ = v.ask("/mirrored")
			for _, r := range v.app.requests("/mirrored") {
				if strings.Contains(r.Host, "-shadow") {
					return nil
				}
			}
			return errors.New("no request is a shadow")
		})
	})
	t.Run("a mirror of nothing", func(t *testing.T) {
		v.apply(t, virtual("{mirror: {host: other}, mirrorPercentage: {value: 0}, match: [{uri: {prefix: /unmirrored}}], route: [{destination: {host: web}}]}, {directResponse: {status: 404}}"))
		v.answers(t, "/", http.StatusNotFound)
		for range 5 {
			_ = v.ask("/unmirrored")
		}
		if n := len(v.app.requests("/unmirrored")); n != 5 {
			t.Errorf("%d requests are seen of 5", n)
		}
	})
	t.Run("CORS", func(t *testing.T) { v.testCORS(t) })
	t.Run("headers", func(t *testing.T) {
		v.apply(t, virtual(`{headers: {request: {set: {x-set: route}, add: {x-add: more}, remove: [x-gone]}, response: {set: {x-answer: "yes"}, remove: [content-type]}},
route: [{destination: {host: web}, headers: {request: {set: {x-destination: "1", Host: named.example}}}}]}`))
		eventually(t, "headers are changed", func() error {
			r := v.ask("/", "X-Set: mine", "X-Add: one", "X-Gone: here")
			got := fmt.Sprint(r.Header.Get("X-Set"), r.Header.Values("X-Add"), r.Header.Values("X-Gone"), r.Header.Get("X-Destination"), r.Host,
				r.header.Get("X-Answer"), r.header.Values("Content-Type"))
			if want := "route[one more][] 1 named.example yes []"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") && strings.ReplaceAll(got, ",", "") != want {
				return fmt.Errorf("they are %s, %w", got, r.err())
			}
			return nil
		})
	})
}

func (v *village) testCORS(t *testing.T) {
	v.apply(t, virtual(`{corsPolicy: {allowOrigins: [{exact: "https://good.example"}], allowMethods: [GET, POST], allowHeaders: [x-a], exposeHeaders: [x-b], maxAge: 60s, allowCredentials: true, unmatchedPreflights: IGNORE},
route: [{destination: {host: web}}]}`))
	preflight := func(origin string) http.Header {
		request, _ := http.NewRequest(http.MethodOptions, "http://10.96.0.10/", nil)
		request.Host = "web"
		request.Header = headers([]string{"Origin: " + origin, "Access-Control-Request-Method: POST"})
		response, err := v.http.Do(request)
		if err != nil {
			return nil
		}
		response.Body.Close()
		return response.Header
	}
	eventually(t, "the sidecar answers a preflight", func() error {
		h := preflight("https://good.example")
		got := []string{h.Get("Access-Control-Allow-Origin"), h.Get("Access-Control-Allow-Methods"), h.Get("Access-Control-Allow-Headers"), h.Get("Access-Control-Max-Age"), h.Get("Access-Control-Allow-Credentials")}
		if want := []string{"https://good.example", "GET,POST", "x-a", "60", "true"}; fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("it says %v", got)
		}
		return nil
	})
	if h := preflight("https://evil.example"); h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another origin is let in: %v", h)
	}
	if r := v.ask("/", "Origin: https://good.example"); r.header.Get("Access-Control-Allow-Origin") != "https://good.example" || r.header.Get("Access-Control-Expose-Headers") != "x-b" {
		t.Errorf("the answer to the request says %v", r.header)
	}
}

func (v *village) testHosts(t *testing.T) {
	says := func(host, url, want string) func() error {
		return func() error {
			if got := v.body("GET", url, host); got != want {
				return fmt.Errorf("%s is answered with %q, want %q", host, got, want)
			}
			return nil
		}
	}
	t.Run("a wildcard takes services, an exact host goes before it", func(t *testing.T) {
		v.apply(t, `
kind: VirtualService
metadata: {name: all}
spec: {hosts: ["*.shop.svc.cluster.local"], http: [{directResponse: {status: 200, body: {string: wildcard}}}]}
---
kind: VirtualService
metadata: {name: one}
spec: {hosts: [web.shop.svc.cluster.local], http: [{directResponse: {status: 200, body: {string: exact}}}]}
`)
		eventually(t, "the exact host", says("web", "http://10.96.0.10/", "200 exact"))
		eventually(t, "the wildcard", says("other.shop", "http://10.96.0.11/", "200 wildcard"))
	})
	t.Run("the older of two goes before", func(t *testing.T) {
		v.applyWithProblems(t, `
kind: VirtualService
metadata: {name: a-younger, creationTimestamp: "2026-02-01T00:00:00Z"}
spec: {hosts: [web], http: [{directResponse: {status: 200, body: {string: younger}}}]}
---
kind: VirtualService
metadata: {name: b-older, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {hosts: [web], http: [{directResponse: {status: 200, body: {string: older}}}]}
`)
		eventually(t, "the older", says("web", "http://10.96.0.10/", "200 older"))
		found := false
		for _, p := range v.problems {
			found = found || strings.Contains(p.String(), "SEL0003 VirtualService/shop/a-younger spec.hosts")
		}
		if !found {
			t.Errorf("the problems are %v", v.problems)
		}
	})
	t.Run("a host that no service has", func(t *testing.T) {
		v.apply(t, `
kind: VirtualService
metadata: {name: outside}
spec: {hosts: [outside.example], http: [{route: [{destination: {host: web}}]}]}
`)
		eventually(t, "it leads into the mesh", func() error { return v.get("http://10.96.0.10/", "outside.example").err() })
	})
	t.Run("exportTo", func(t *testing.T) {
		v.apply(t, `
kind: VirtualService
metadata: {namespace: bank, name: private}
spec: {hosts: [web.shop.svc.cluster.local], exportTo: ["."], http: [{directResponse: {status: 200, body: {string: private}}}]}
---
kind: VirtualService
metadata: {namespace: bank, name: for-shop}
spec: {hosts: [other.shop.svc.cluster.local], exportTo: [shop], http: [{directResponse: {status: 200, body: {string: for shop}}}]}
`)
		eventually(t, "what is exported to the client's namespace holds", says("other", "http://10.96.0.11/", "200 for shop"))
		if err := v.ask("/").err(); err != nil {
			t.Errorf("what is private to another namespace is in force: %v", err)
		}
	})
}
