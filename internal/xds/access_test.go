package xds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/translate"
)

// accessCase is policies for the server's pod, and what becomes of requests. Every request gets through
// before the policies are there. Those that are to be refused are asked first, until they are: connections that a proxy has already
// end only when it lets go of them. The others follow.
type accessCase struct {
	name    string
	objects string // of security.istio.io/v1; the namespace is shop
	mesh    string // the mesh configuration
	flawed  bool   // translation must find an error
	change  func(*mesh.Model)
	checks  []accessCheck
}

// accessCheck is one request. Plain ones come from the stranger, who has no sidecar, the others from the client's pod.
type accessCheck struct {
	ask    string // METHOD PATH
	header string // NAME: VALUE
	host   string
	plain  bool
	want   int
}

// security translates security objects for the server's pod.
func security(t *testing.T, c accessCase) *mesh.Access {
	t.Helper()
	b, err := index.New(index.Config{Namespace: "istio-system"})
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "server", Labels: map[string]string{"app": "server"}}}
	objects := []any{pod, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}, Data: map[string]string{"mesh": c.mesh}}}
	for i, doc := range strings.Split(c.objects, "\n---\n") {
		var o unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		o.SetAPIVersion("security.istio.io/v1")
		if o.GetName() == "" {
			o.SetName(fmt.Sprintf("p%d", i))
		}
		if o.GetNamespace() == "" {
			o.SetNamespace("shop")
		}
		objects = append(objects, &o)
	}
	for _, o := range objects {
		if err := b.Set(o); err != nil {
			t.Fatal(err)
		}
	}
	m, problems := translate.Model(nil, b.Snapshot())
	flawed := slices.ContainsFunc(problems, func(p diag.Problem) bool { return p.Severity == diag.Error })
	if flawed != c.flawed {
		t.Errorf("translation finds an error: %t; want %t; %v", flawed, c.flawed, problems)
	}
	return m.Workloads[mesh.WorkloadKey{Namespace: "shop", Name: "server"}].Inbound.Access
}

// TestAccess has real proxies refuse and allow as Istio's documentation of the security API says.
func TestAccess(t *testing.T) {
	w := newTown(t)
	check := w.authorizer()
	for _, c := range slices.Concat(authorizationCases(), tokenCases(t), customCases()) {
		t.Run(c.name, func(t *testing.T) { w.access(t, c) })
	}
	t.Run("what a token says reaches the workload", w.testTokenHeaders)
	t.Run("bytes", w.testAccessTCP)
	if saw := check(); !strings.Contains(saw, "GET /check/custom") || !strings.Contains(saw, "X-Custom=yes") || !strings.Contains(saw, "X-Added=by-mesh") {
		t.Errorf("the authorizer was asked %q", saw)
	}
	w.server.refused()
}

func (w *town) access(t *testing.T, c accessCase) {
	access := security(t, c)
	for _, free := range c.checks {
		free.want = http.StatusOK
		eventually(t, "before the policies are there: "+free.String(), func() error { return w.try(free) })
	}
	w.with(t, mesh.Permissive, func(m *mesh.Model) {
		m.Workloads[mesh.WorkloadKey{Namespace: "shop", Name: "server"}].Inbound.Access = access
		if c.change != nil {
			c.change(m)
		}
	})
	refusals, passes := c.checks[:0:0], c.checks[:0:0]
	for _, check := range c.checks {
		if check.want == http.StatusOK {
			passes = append(passes, check)
		} else {
			refusals = append(refusals, check)
		}
	}
	if len(refusals) == 0 {
		t.Fatal("nothing is refused: that cannot be told from no policy")
	}
	for _, check := range slices.Concat(refusals, passes) {
		eventually(t, check.String(), func() error { return w.try(check) })
	}
}

func (c accessCheck) String() string { return strings.TrimSpace(c.ask + " " + c.host + " " + c.header) }

func (w *town) try(c accessCheck) error {
	method, path, _ := strings.Cut(c.ask, " ")
	client, base := w.http, "http://10.96.0.10"
	if c.plain {
		client, base = w.httpClient(w.strangerNet, false), "http://10.77.0.3:8080"
	}
	r, err := http.NewRequest(method, base+path, nil)
	if err != nil {
		return err
	}
	r.Host = "web"
	if c.host != "" {
		r.Host = c.host
	}
	for line := range strings.SplitSeq(c.header, "\n") {
		if name, value, ok := strings.Cut(line, ": "); ok {
			r.Header.Add(name, value)
		}
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	if answer.StatusCode != c.want {
		return fmt.Errorf("status %d, want %d: %.200s", answer.StatusCode, c.want, body)
	}
	return nil
}

func policy(action, rules string) string {
	return "kind: AuthorizationPolicy\nspec: {selector: {matchLabels: {app: server}}, action: " + action + ", rules: [" + rules + "]}"
}

func authorizationCases() []accessCase {
	const no, ok = http.StatusForbidden, http.StatusOK
	allow := func(name, rules string, checks ...accessCheck) accessCase {
		return accessCase{name: name, objects: policy("ALLOW", rules), checks: checks}
	}
	deny := func(name, rules string, checks ...accessCheck) accessCase {
		return accessCase{name: name, objects: policy("DENY", rules), checks: checks}
	}
	return []accessCase{
		{name: "ALLOW without rules allows nothing", objects: "kind: AuthorizationPolicy\nspec: {}", checks: []accessCheck{{ask: "GET /", want: no}, {ask: "GET /", plain: true, want: no}}},
		deny("DENY with an empty rule refuses all", "{}", accessCheck{ask: "GET /", want: no}),
		allow("paths: exact, prefix, suffix, template", "{to: [{operation: {paths: [/exact, /prefix/*, '*.suffix', '/a/{*}/b', '/deep/{**}/end']}}]}",
			accessCheck{ask: "GET /other", want: no}, accessCheck{ask: "GET /exact", want: ok}, accessCheck{ask: "GET /exact?q=1", want: ok},
			accessCheck{ask: "GET /exact/more", want: no}, accessCheck{ask: "GET /prefix/x", want: ok}, accessCheck{ask: "GET /x.suffix", want: ok},
			accessCheck{ask: "GET /a/x/b", want: ok}, accessCheck{ask: "GET /a/x/y/b", want: no}, accessCheck{ask: "GET /deep/x/y/end", want: ok}),
		deny("a path is normalized before it is compared", "{to: [{operation: {paths: [/admin]}}]}",
			accessCheck{ask: "GET /admin", want: no}, accessCheck{ask: "GET /x/../admin", want: no}, accessCheck{ask: "GET /user", want: ok}),
		deny("notPaths", "{to: [{operation: {notPaths: [/public, '/open/*']}}]}",
			accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /public", want: ok}, accessCheck{ask: "GET /open/x", want: ok}),
		allow("methods", "{to: [{operation: {methods: [GET, HEAD]}}]}", accessCheck{ask: "POST /", want: no}, accessCheck{ask: "GET /", want: ok}),
		allow("notMethods", "{to: [{operation: {notMethods: [POST]}}]}", accessCheck{ask: "POST /", want: no}, accessCheck{ask: "PUT /", want: ok}),
		allow("hosts, in any case", "{to: [{operation: {hosts: [web, '*.example.com']}}]}",
			accessCheck{ask: "GET /", plain: true, host: "db", want: no}, accessCheck{ask: "GET /", plain: true, host: "WEB", want: ok}, accessCheck{ask: "GET /", plain: true, host: "a.example.com", want: ok}),
		allow("notHosts", "{to: [{operation: {notHosts: [web]}}]}", accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /", plain: true, host: "db", want: ok}),
		allow("ports of the workload", "{to: [{operation: {ports: ['9999']}}]}", accessCheck{ask: "GET /", want: no}),
		deny("notPorts", "{to: [{operation: {notPorts: ['8443']}}]}", accessCheck{ask: "GET /", want: no}),
		allow("operations are alternatives, their fields are not", "{to: [{operation: {methods: [GET], paths: [/a]}}, {operation: {methods: [POST]}}]}",
			accessCheck{ask: "GET /b", want: no}, accessCheck{ask: "GET /a", want: ok}, accessCheck{ask: "POST /b", want: ok}),
		allow("principals", "{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}", accessCheck{ask: "GET /", plain: true, want: no}, accessCheck{ask: "GET /", want: ok}),
		allow("another's principal", "{from: [{source: {principals: [cluster.local/ns/shop/sa/clien]}}]}", accessCheck{ask: "GET /", want: no}),
		allow("any principal", "{from: [{source: {principals: ['*']}}]}", accessCheck{ask: "GET /", plain: true, want: no}, accessCheck{ask: "GET /", want: ok}),
		allow("principals that begin and end so", "{from: [{source: {principals: ['cluster.local/ns/shop/*', '*/sa/other']}}]}", accessCheck{ask: "GET /", plain: true, want: no}, accessCheck{ask: "GET /", want: ok}),
		deny("notPrincipals: who has none is refused too", "{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/client]}}]}", accessCheck{ask: "GET /", plain: true, want: no}, accessCheck{ask: "GET /", want: ok}),
		allow("namespaces", "{from: [{source: {namespaces: [sho*]}}]}", accessCheck{ask: "GET /", plain: true, want: no}, accessCheck{ask: "GET /", want: ok}),
		allow("a point in a namespace is a point", "{from: [{source: {namespaces: [sh.p]}}]}", accessCheck{ask: "GET /", want: no}),
		deny("notNamespaces", "{from: [{source: {notNamespaces: [bank]}}]}", accessCheck{ask: "GET /", want: no}),
		allow("serviceAccounts", "{from: [{source: {serviceAccounts: [client, bank/teller]}}]}", accessCheck{ask: "GET /", plain: true, want: no}, accessCheck{ask: "GET /", want: ok}),
		deny("notServiceAccounts", "{from: [{source: {notServiceAccounts: [bank/client]}}]}", accessCheck{ask: "GET /", want: no}),
		allow("trustDomains", "{from: [{source: {trustDomains: [cluster.local]}}]}", accessCheck{ask: "GET /", plain: true, want: no}, accessCheck{ask: "GET /", want: ok}),
		deny("notTrustDomains", "{from: [{source: {notTrustDomains: [example.org]}}]}", accessCheck{ask: "GET /", want: no}),
		allow("ipBlocks", "{from: [{source: {ipBlocks: [10.78.0.0/24]}}]}", accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /", plain: true, want: ok}),
		deny("notIpBlocks", "{from: [{source: {notIpBlocks: [10.78.0.2]}}]}", accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /", plain: true, want: ok}),
		allow("remoteIpBlocks", "{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}", accessCheck{ask: "GET /", plain: true, want: no},
			accessCheck{ask: "GET /", plain: true, header: "X-Forwarded-For: 192.0.2.7", want: ok}),
		deny("notRemoteIpBlocks", "{from: [{source: {notRemoteIpBlocks: [192.0.2.7]}}]}", accessCheck{ask: "GET /", plain: true, want: no},
			accessCheck{ask: "GET /", plain: true, header: "X-Forwarded-For: 192.0.2.7", want: ok}),
		allow("sources are alternatives", "{from: [{source: {namespaces: [bank]}}, {source: {ipBlocks: [10.78.0.2]}}]}", accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /", plain: true, want: ok}),
		allow("the fields of a source are not", "{from: [{source: {namespaces: [shop], ipBlocks: [10.78.0.2]}}]}", accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /", plain: true, want: no}),
		allow("headers", "{when: [{key: 'request.headers[x-team]', values: [blue, 'gre*']}]}",
			accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /", header: "X-Team: blue", want: ok}, accessCheck{ask: "GET /", header: "X-Team: green", want: ok}, accessCheck{ask: "GET /", header: "X-Team: red", want: no}),
		deny("a header that must be there", "{when: [{key: 'request.headers[x-team]', notValues: ['*']}]}", accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /", header: "X-Team: any", want: ok}),
		allow("conditions all hold", "{when: [{key: source.namespace, values: [shop]}, {key: destination.port, values: ['8080']}, {key: destination.ip, values: [10.77.0.0/24]}, {key: 'request.headers[x-go]', values: ['1']}]}",
			accessCheck{ask: "GET /", want: no}, accessCheck{ask: "GET /", header: "X-Go: 1", want: ok}),
		{name: "DENY goes before ALLOW", objects: policy("ALLOW", "{}") + "\n---\n" + policy("DENY", "{to: [{operation: {paths: [/secret]}}]}"),
			checks: []accessCheck{{ask: "GET /secret", want: no}, {ask: "GET /", want: ok}}},
		{name: "one ALLOW of several is enough", objects: policy("ALLOW", "{to: [{operation: {paths: [/a]}}]}") + "\n---\n" + policy("ALLOW", "{to: [{operation: {paths: [/b]}}]}"),
			checks: []accessCheck{{ask: "GET /c", want: no}, {ask: "GET /a", want: ok}, {ask: "GET /b", want: ok}}},
		{name: "AUDIT refuses nothing", objects: policy("AUDIT", "{}") + "\n---\n" + policy("DENY", "{to: [{operation: {paths: [/x]}}]}"),
			checks: []accessCheck{{ask: "GET /x", want: no}, {ask: "GET /", want: ok}}},
		{name: "a dry run refuses nothing", objects: "kind: AuthorizationPolicy\nmetadata: {name: dry, annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, rules: [{}]}\n---\n" + policy("DENY", "{to: [{operation: {paths: [/x]}}]}"),
			checks: []accessCheck{{ask: "GET /x", want: no}, {ask: "GET /", want: ok}}},
		{name: "a policy of the root namespace holds everywhere", objects: "kind: AuthorizationPolicy\nmetadata: {namespace: istio-system}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}",
			checks: []accessCheck{{ask: "GET /x", want: no}, {ask: "GET /", want: ok}}},
		{name: "a policy of others does not", objects: "kind: AuthorizationPolicy\nspec: {selector: {matchLabels: {app: other}}, action: DENY, rules: [{}]}\n---\n" + policy("DENY", "{to: [{operation: {paths: [/x]}}]}"),
			checks: []accessCheck{{ask: "GET /x", want: no}, {ask: "GET /", want: ok}}},
		{name: "a policy that cannot be carried out refuses all", objects: policy("ALLOW", "{when: [{key: request.moon, values: [full]}]}, {}"), flawed: true, checks: []accessCheck{{ask: "GET /", want: no}}},
		{name: "targetRefs are not for sidecars", objects: "kind: AuthorizationPolicy\nspec: {targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}], action: DENY, rules: [{}]}\n---\n" + policy("DENY", "{to: [{operation: {paths: [/x]}}]}"), flawed: true,
			checks: []accessCheck{{ask: "GET /x", want: no}, {ask: "GET /", want: ok}}},
	}
}

// customCases ask the authorizer that the stranger runs.
func customCases() []accessCase {
	const provider = `
extensionProviders:
- name: asked
  envoyExtAuthzHttp:
    service: shop/authz.shop.svc.cluster.local
    port: 9000
    pathPrefix: /check
    timeout: 5s
    includeRequestHeadersInCheck: [x-custom, x-allow]
    includeAdditionalHeadersInCheck: {x-added: by-mesh}
    headersToUpstreamOnAllow: [x-decided]
`
	const no, ok = http.StatusForbidden, http.StatusOK
	custom := "kind: AuthorizationPolicy\nspec: {action: CUSTOM, provider: {name: asked}, rules: [{to: [{operation: {paths: ['/custom*']}}]}]}"
	missing := func(m *mesh.Model) { endpointsOf(m, "authz", 9000).Endpoints = nil }
	return []accessCase{
		{name: "CUSTOM asks about what its rules match", objects: custom, mesh: provider, change: withAuthorizer, checks: []accessCheck{
			{ask: "GET /custom", header: "X-Custom: yes", want: no}, {ask: "GET /custom", header: "X-Custom: yes\nX-Allow: true", want: ok}, {ask: "GET /other", want: ok}}},
		{name: "CUSTOM refuses when nobody answers", objects: custom, mesh: provider, change: func(m *mesh.Model) { withAuthorizer(m); missing(m) }, checks: []accessCheck{
			{ask: "GET /custom", header: "X-Allow: true", want: no}, {ask: "GET /other", want: ok}}},
		{name: "DENY is asked after CUSTOM", objects: custom + "\n---\n" + policy("DENY", "{to: [{operation: {paths: [/custom/secret]}}]}"), mesh: provider, change: withAuthorizer, checks: []accessCheck{
			{ask: "GET /custom/secret", header: "X-Allow: true", want: no}, {ask: "GET /custom", header: "X-Allow: true", want: ok}}},
		{name: "CUSTOM of a provider that is not there refuses what it would ask about", objects: custom, flawed: true, checks: []accessCheck{
			{ask: "GET /custom", header: "X-Allow: true", want: no}, {ask: "GET /other", want: ok}}},
		{name: "two providers are not asked about one workload", objects: custom + "\n---\n" + strings.NewReplacer("name: asked", "name: other", "/custom*", "/second").Replace(custom), mesh: provider,
			change: withAuthorizer, flawed: true, checks: []accessCheck{
				{ask: "GET /custom", header: "X-Allow: true", want: no}, {ask: "GET /second", header: "X-Allow: true", want: no}, {ask: "GET /other", want: ok}}},
	}
}

// authorizer runs an authorizer at the stranger's, which allows what has x-allow, and gives what it was asked.
func (w *town) authorizer() (asked func() string) {
	saw := make(chan string, 100)
	l := w.strangerNet.listen("10.78.0.2:9000")
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			select {
			case saw <- fmt.Sprintf("%s %s X-Custom=%s X-Added=%s", r.Method, r.URL.Path, r.Header.Get("X-Custom"), r.Header.Get("X-Added")):
			default:
			}
			if r.Header.Get("X-Allow") == "" {
				rw.WriteHeader(http.StatusForbidden)
			}
		}))
	}()
	return func() (all string) {
		for len(saw) > 0 {
			all += <-saw + "; "
		}
		return all
	}
}

func withAuthorizer(m *mesh.Model) {
	key := mesh.EndpointKey{Host: "authz.shop.svc.cluster.local", Port: 9000}
	m.Outbound.Services = append([]*mesh.Service{service("authz", "shop", "10.96.0.90", port(9000, mesh.HTTP))}, m.Outbound.Services...)
	slices.SortFunc(m.Outbound.Services, func(a, b *mesh.Service) int { return strings.Compare(string(a.Host), string(b.Host)) })
	m.Endpoints[key] = &mesh.EndpointSet{Key: key, Endpoints: []mesh.Endpoint{{Address: netip.MustParseAddr("10.78.0.2"), Port: 9000}}}
}

// said is long enough to be told from TLS at once.
const said = "ping pong"

// talk says something and gives what comes back. Who speaks first is not kept waiting by PERMISSIVE.
func talk(n *netns, address string) (string, error) {
	c, err := n.dial(context.Background(), "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, said); err != nil {
		return "", err
	}
	back := make([]byte, len(greeting)+len(said))
	read, err := io.ReadFull(c, back)
	return string(back[:read]), err
}

// testAccessTCP has policies decide about connections.
func (w *town) testAccessTCP(t *testing.T) {
	for _, c := range []struct {
		name, objects          string
		client, stranger, http bool // who gets through
	}{
		{"DENY of a port", policy("DENY", "{to: [{operation: {ports: ['3306']}}]}"), false, false, true},
		{"ALLOW of a principal", policy("ALLOW", "{from: [{source: {principals: ['*/sa/client']}}]}"), true, false, true},
		{"ALLOW by what only HTTP has allows no bytes", policy("ALLOW", "{to: [{operation: {methods: [GET]}}]}"), false, false, true},
		{"DENY by what only HTTP has refuses as without it", policy("DENY", "{to: [{operation: {methods: [POST], ports: ['3306']}}]}"), false, false, true},
		{"ALLOW of an address", policy("ALLOW", "{from: [{source: {ipBlocks: [10.78.0.2]}}]}"), false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			access := security(t, accessCase{objects: c.objects})
			eventually(t, "before the policies are there", func() error {
				for n, address := range map[*netns]string{w.clientNet: "10.96.0.11:3306", w.strangerNet: "10.77.0.3:3306"} {
					if words, err := talk(n, address); words != greeting+said {
						return fmt.Errorf("it hears %q (%w)", words, errors.Join(err, errors.New("want all")))
					}
				}
				return w.get("http://10.96.0.10/").err()
			})
			w.with(t, mesh.Permissive, func(m *mesh.Model) {
				m.Workloads[mesh.WorkloadKey{Namespace: "shop", Name: "server"}].Inbound.Access = access
			})
			heard := func(n *netns, address string, want bool) func() error {
				return func() error {
					if words, err := talk(n, address); (err == nil && words == greeting+said) != want {
						return fmt.Errorf("the client hears %q (%w)", words, errors.Join(err, errors.New("want other")))
					}
					return nil
				}
			}
			client, stranger := heard(w.clientNet, "10.96.0.11:3306", c.client), heard(w.strangerNet, "10.77.0.3:3306", c.stranger)
			if c.client { // the refusal first
				client, stranger = stranger, client
			}
			eventually(t, "refusal", client)
			eventually(t, "the other", stranger)
			eventually(t, "HTTP", func() error {
				if err := w.get("http://10.96.0.10/").err(); (err == nil) != c.http {
					return fmt.Errorf("it ends with: %w", errors.Join(err, errors.New("want other")))
				}
				return nil
			})
		})
	}
}
