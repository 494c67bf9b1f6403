package xds_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/scope"
	"github.com/selvage-mesh/selvage/internal/xds"
)

func generate(t testing.TB, g func(scope.View) (*xds.Config, error), v scope.View) *xds.Config {
	t.Helper()
	c, err := g(v)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// same fails the test unless two configurations are equal byte for byte.
func same(t testing.TB, what string, a, b *xds.Config) {
	t.Helper()
	for _, pair := range [][2][]xds.Resource{{a.Clusters, b.Clusters}, {a.Listeners, b.Listeners}, {a.Routes, b.Routes}} {
		if !slices.EqualFunc(pair[0], pair[1], func(x, y xds.Resource) bool {
			return x.Name == y.Name && x.Version == y.Version && string(x.Body.GetValue()) == string(y.Body.GetValue()) && slices.Equal(x.Refs, y.Refs)
		}) {
			t.Errorf("%s: not the same", what)
		}
	}
}

func TestEqualViewsGiveEqualBytes(t *testing.T) {
	// Two models with nothing in common but what they say.
	a, b := generate(t, xds.Generate, large(50).view(t)), generate(t, xds.Generate, large(50).view(t))
	same(t, "equal views", a, b)
	for _, list := range [][]xds.Resource{a.Clusters, a.Listeners, a.Routes} {
		for _, r := range list {
			checkResource(t, r)
		}
		if !slices.IsSortedFunc(list, func(x, y xds.Resource) int { return strings.Compare(x.Name, y.Name) }) {
			t.Error("resources are not sorted by name")
		}
	}
}

// TestGeneratorForgetsNothingThatMatters takes one Generator through the changes of a day, and compares it with one that
// knows nothing.
func TestGeneratorForgetsNothingThatMatters(t *testing.T) {
	g, w := new(xds.Generator), large(45)
	strict := settings()
	strict.TrustDomain = "other"
	for step, change := range []func(){
		func() {},
		func() { w.inbound = &mesh.Inbound{Namespace: "ns-1"} },
		func() { w.inbound = &mesh.Inbound{Namespace: "ns-without-services"} },
		func() { // a service changes, another goes
			w.services = slices.Clone(w.services[1:])
			w.services[3] = service("s-4", "ns-0", "10.96.9.9", port(80, mesh.HTTP2))
		},
		func() { w.inbound = &mesh.Inbound{Namespace: "ns-0"} },
		func() { w.settings = strict },
		func() {
			w.services = append(slices.Clone(w.services), externalName("t", "ns-0", "s-4.ns-0.svc.cluster.local"))
		},
		func() { w.services = w.services[:len(w.services)-1] },
	} {
		change()
		v := w.view(t)
		got := generate(t, g.Generate, v)
		same(t, fmt.Sprintf("step %d", step), generate(t, xds.Generate, v), got)
		same(t, fmt.Sprintf("step %d, asked again", step), got, generate(t, g.Generate, v))
	}
}

func TestGeneratorServesManyAtOnce(t *testing.T) {
	g, w := new(xds.Generator), large(60)
	w.settings = settings()
	m := w.model()
	want := map[string]*xds.Config{}
	views := map[string]scope.View{}
	for i := range 3 {
		namespace := fmt.Sprintf("ns-%d", i)
		views[namespace] = viewOf(t, m, namespace)
		want[namespace] = generate(t, xds.Generate, views[namespace])
	}
	var all sync.WaitGroup
	for range 4 {
		for namespace, v := range views {
			all.Go(func() { same(t, namespace, want[namespace], generate(t, g.Generate, v)) })
		}
	}
	all.Wait()
}

// viewOf sees m from a pod of its own in the namespace.
func viewOf(t testing.TB, m *mesh.Model, namespace string) scope.View {
	t.Helper()
	key := mesh.WorkloadKey{Namespace: namespace, Name: "pod"}
	m.Workloads[key] = &mesh.Workload{Key: key, ServiceAccount: "sa", Inbound: &mesh.Inbound{Namespace: namespace}}
	v, err := scope.For(m, scope.Proxy{Namespace: namespace, Name: "pod", ServiceAccount: "sa"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestNamespacesWithoutAServiceOnAPortShareItsRoutes(t *testing.T) {
	g := new(xds.Generator)
	w := large(40)
	w.services = append(w.services, service("metrics", "ns-1", "10.97.0.1", port(9100, mesh.HTTP)))
	m := w.model()
	body := func(namespace, name string) *[]byte {
		for _, r := range generate(t, g.Generate, viewOf(t, m, namespace)).Routes {
			if r.Name == name {
				return &r.Body.Value
			}
		}
		t.Fatalf("no route %s", name)
		return nil
	}
	if body("ns-0", "9100") != body("elsewhere", "9100") {
		t.Error("port 9100 is not shared by namespaces without a service on it")
	}
	if string(*body("ns-0", "80")) == string(*body("ns-1", "80")) {
		t.Error("port 80 is the same in two namespaces that have services on it")
	}
}

func TestAServiceThatChangesAloneIsMadeAnew(t *testing.T) {
	g, w := new(xds.Generator), large(30)
	w.settings = settings()
	before := named(generate(t, g.Generate, w.view(t)).Clusters)
	w.services = slices.Clone(w.services)
	w.services[7] = service("s-7", "ns-0", "10.96.0.7", port(80, mesh.HTTP2))
	for name, r := range named(generate(t, g.Generate, w.view(t)).Clusters) {
		ofChanged := strings.Contains(name, "|s-7.")
		ofNobody := !strings.Contains(name, "outbound|")
		if !ofChanged && !ofNobody && r.Body != before[name].Body {
			t.Errorf("%s is made anew", name)
		}
	}
}

func TestEveryResourceSaysWhatItCameFrom(t *testing.T) {
	w := world{settings: settings(), services: []*mesh.Service{
		service("db", "shop", "10.96.0.2", port(3306, mesh.TCP)),
		externalName("alias", "shop", "web.shop.svc.cluster.local"),
		service("web", "shop", "10.96.0.1", port(80, mesh.HTTP)),
	}}
	policy := ref.Ref{Group: "security.istio.io", Kind: "PeerAuthentication", Namespace: "shop", Name: "default"}
	w.inbound = &mesh.Inbound{Namespace: "shop", Refs: []ref.Ref{policy}, Ports: []mesh.InboundPort{
		{Number: 8080, Refs: []ref.Ref{{Group: "security.istio.io", Kind: "PeerAuthentication", Namespace: "shop", Name: "port"}}},
	}}
	c := generate(t, xds.Generate, w.view(t))
	got := map[string]string{}
	for _, list := range [][]xds.Resource{c.Clusters, c.Listeners, c.Routes} {
		for _, r := range list {
			var refs []string
			for _, one := range r.Refs {
				if one != w.settings.Refs[0] {
					refs = append(refs, one.String())
				}
			}
			if !slices.Contains(r.Refs, w.settings.Refs[0]) || !slices.IsSortedFunc(r.Refs, ref.Compare) {
				t.Errorf("%s: refs %v lack the mesh configuration, or are not sorted", r.Name, r.Refs)
			}
			got[r.Name] = strings.Join(refs, " ")
		}
	}
	want := map[string]string{
		"BlackHoleCluster": "", "InboundPassthroughCluster": "", "PassthroughCluster": "", "virtualOutbound": "",
		"inbound|8080||": "PeerAuthentication/shop/port",
		"virtualInbound": "PeerAuthentication/shop/default PeerAuthentication/shop/port",
		"outbound|3306||db.shop.svc.cluster.local": "Service/shop/db",
		"10.96.0.2_3306": "Service/shop/db",
		"outbound|80||web.shop.svc.cluster.local": "Service/shop/web",
		"0.0.0.0_80": "Service/shop/alias Service/shop/web",
		"80":         "Service/shop/alias Service/shop/web",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestTwoServicesWithOneAddressDoNotBreakTheProxy(t *testing.T) {
	w := world{inbound: &mesh.Inbound{Namespace: "shop"}, services: []*mesh.Service{
		service("a", "shop", "10.96.0.1", port(3306, mesh.TCP), port(80, mesh.HTTP)),
		service("b", "shop", "10.96.0.1", port(3306, mesh.TCP), port(80, mesh.HTTP)),
	}}
	c := generate(t, xds.Generate, w.view(t))
	envoyValidates(t, static(t, c))
	domains := map[string]string{}
	for _, host := range unpack(t, c.Routes[0].Body, &routev3.RouteConfiguration{}).GetVirtualHosts() {
		for _, d := range host.GetDomains() {
			if domains[d] != "" {
				t.Errorf("domain %s stands in %s and in %s", d, domains[d], host.GetName())
			}
			domains[d] = host.GetName()
		}
	}
	if domains["10.96.0.1"] != "a.shop.svc.cluster.local:80" {
		t.Errorf("the address belongs to %q, want the first", domains["10.96.0.1"])
	}
}

func TestClusterNames(t *testing.T) {
	for name, want := range map[string]mesh.EndpointKey{
		"outbound|80||web.shop.svc.cluster.local": {Host: "web.shop.svc.cluster.local", Port: 80},
		"outbound|65535||x":                       {Host: "x", Port: 65535},
		"outbound|80|v1|web":                      mesh.EndpointKey{Host: "web", Port: 80}.OfSubset("v1", ""),
	} {
		if got, ok := xds.ParseClusterName(name); !ok || got != want {
			t.Errorf("%s: %v, %v", name, got, ok)
		}
		if got := xds.ClusterName(want); got != name {
			t.Errorf("%v: %s, want %s", want, got, name)
		}
	}
	for _, name := range []string{
		"", "PassthroughCluster", "inbound|80||", "outbound|80|v1", "outbound|80||", "outbound|080||web", "outbound|+80||web",
		"outbound|65536||web", "outbound|80|v1|", "outbound|80|v1|web|x", "outbound|-1||web", "outbound|80||web|x", "outbound|||web",
	} {
		if got, ok := xds.ParseClusterName(name); ok {
			t.Errorf("%q is taken for %v", name, got)
		}
	}
}

// FuzzParseClusterName: whatever a proxy asks for, a name that is understood is the name of what it is understood as.
func FuzzParseClusterName(f *testing.F) {
	f.Add("outbound|80||web.shop.svc.cluster.local")
	f.Add("outbound|0080||web")
	f.Fuzz(func(t *testing.T, name string) {
		if key, ok := xds.ParseClusterName(name); ok && xds.ClusterName(key) != name {
			t.Errorf("%q is understood as %v, whose name is %q", name, key, xds.ClusterName(key))
		}
	})
}

func TestAnIncompleteViewIsRefused(t *testing.T) {
	if _, err := xds.Generate(scope.View{}); err == nil || !strings.Contains(err.Error(), "no settings") {
		t.Errorf("an empty view gives %v", err)
	}
}

// TestAViewDependsOnNothingButItsKey compares what pods with one key are sent: nothing of the pod itself may be in it.
func TestAViewDependsOnNothingButItsKey(t *testing.T) {
	w := large(5)
	m := w.model()
	one := m.Workloads[mesh.WorkloadKey{Namespace: "ns-0", Name: "client"}]
	other := *one
	other.Key.Name, other.ServiceAccount, other.Locality.Zone = "another", "another", "b"
	m.Workloads[other.Key] = &other
	a, errA := scope.For(m, scope.Proxy{ID: "sidecar~10.0.0.1~client.ns-0~x", Namespace: "ns-0", Name: "client", ServiceAccount: "client"})
	b, errB := scope.For(m, scope.Proxy{ID: "sidecar~10.0.0.2~another.ns-0~x", Namespace: "ns-0", Name: "another", ServiceAccount: "another"})
	if errA != nil || errB != nil || a.Key() != b.Key() {
		t.Fatalf("replicas have different keys: %v, %v", errA, errB)
	}
	same(t, "replicas", generate(t, xds.Generate, a), generate(t, xds.Generate, b))
}

func TestConnectTimeoutHasADefault(t *testing.T) {
	w := world{settings: settings(), inbound: &mesh.Inbound{Namespace: "shop"}}
	w.settings.ConnectTimeoutMillis = 0
	c := unpack(t, named(generate(t, xds.Generate, w.view(t)).Clusters)["PassthroughCluster"].Body, &clusterv3.Cluster{})
	if got := c.GetConnectTimeout().AsDuration().String(); got != "10s" {
		t.Errorf("it is %s, want 10s", got)
	}
}
