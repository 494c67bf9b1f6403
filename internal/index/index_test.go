package index_test

import (
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/ref"
)

func builder(t *testing.T, objects ...any) *index.Builder {
	t.Helper()
	b, err := index.New(index.Config{Namespace: "istio-system"})
	if err != nil {
		t.Fatal(err)
	}
	set(t, b, objects...)
	return b
}

func set(t *testing.T, b *index.Builder, objects ...any) {
	t.Helper()
	for _, o := range objects {
		if err := b.Set(o); err != nil {
			t.Fatal(err)
		}
	}
}

func named(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func service(namespace, name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: named(namespace, name),
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80, Name: "http"}}},
	}
}

func slice(namespace, name, service string, addresses ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: named(namespace, name), AddressType: discoveryv1.AddressTypeIPv4}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func pod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: named(namespace, name), Status: corev1.PodStatus{PodIP: "10.1.0.1"}}
}

func meshConfig(text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: named("istio-system", "istio"), Data: map[string]string{"mesh": text}}
}

func TestWritesThatTheMeshDoesNotSeeAreNoChange(t *testing.T) {
	node := func() *corev1.Node { return &corev1.Node{ObjectMeta: named("", "n")} }
	policy := func() *securityv1.PeerAuthentication {
		return &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", Generation: 1}}
	}
	b := builder(t, service("shop", "web"), slice("shop", "web-x", "web", "10.1.0.1", "10.1.0.2"), pod("shop", "web-1"), node(), policy(),
		meshConfig("trustDomain: example.org"), &corev1.Namespace{ObjectMeta: named("", "shop")})
	before := b.Snapshot()

	noisy := metav1.ObjectMeta{}
	touch := func(m *metav1.ObjectMeta) {
		m.ResourceVersion, m.Annotations = "77", map[string]string{"example.com/touched": "now"}
		m.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
		noisy = *m
	}
	s, e, p, n, a, c := service("shop", "web"), slice("shop", "web-x", "web", "10.1.0.2", "10.1.0.1"), pod("shop", "web-1"), node(), policy(),
		meshConfig("trustDomain: example.org")
	for _, m := range []*metav1.ObjectMeta{&s.ObjectMeta, &e.ObjectMeta, &p.ObjectMeta, &n.ObjectMeta, &a.ObjectMeta, &c.ObjectMeta} {
		touch(m)
	}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, LastHeartbeatTime: metav1.Now()}}
	set(t, b, s, e, p, n, a, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: noisy.Annotations}})
	if after := b.Snapshot(); after != before {
		t.Errorf("a status, a heartbeat or an annotation is a change of %v", after.ChangedSince(before))
	}
}

func TestAChangeSharesEverythingElse(t *testing.T) {
	b := builder(t, service("shop", "web"), service("shop", "db"), slice("shop", "web-x", "web"), pod("shop", "web-1"), service("bank", "vault"))
	before := b.Snapshot()
	changed := service("shop", "web")
	changed.Spec.Ports[0].Port = 81
	set(t, b, changed)
	after := b.Snapshot()

	if after == before {
		t.Fatal("the change is not seen")
	}
	was, is := before.Namespaces.Get("shop"), after.Namespaces.Get("shop")
	if was.Services.Get("web").Ports[0].Number != 80 || is.Services.Get("web").Ports[0].Number != 81 {
		t.Error("the snapshot before has changed, or the one after has not")
	}
	if was.Services.Get("db") != is.Services.Get("db") || was.Pods != is.Pods || was.Slices != is.Slices ||
		before.Namespaces.Get("bank") != after.Namespaces.Get("bank") || before.Mesh != after.Mesh || before.Nodes != after.Nodes {
		t.Error("something that did not change is another pointer")
	}
	if got := after.ChangedSince(before); !slices.Equal(got, []ref.Ref{{Kind: "Service", Namespace: "shop", Name: "web"}}) {
		t.Errorf("changed: %v", got)
	}
	set(t, b, changed, service("shop", "web"), changed)
	if b.Snapshot() != after {
		t.Error("changed and changed back between two snapshots is a change")
	}
}

func TestSliceMovesWithItsServiceLabel(t *testing.T) {
	b := builder(t, slice("shop", "x", "web", "10.1.0.1"), slice("shop", "y", "web"), slice("shop", "z", "web-two"))
	count := func(service string) int { return len(b.Snapshot().Namespaces.Get("shop").SlicesOf(service)) }
	if count("web") != 2 || count("web-two") != 1 || count("we") != 0 {
		t.Fatalf("web has %d slices, web-two %d, we %d", count("web"), count("web-two"), count("we"))
	}
	set(t, b, slice("shop", "x", "web-two", "10.1.0.1"))
	if count("web") != 1 || count("web-two") != 2 {
		t.Errorf("after the label changed web has %d slices, web-two %d", count("web"), count("web-two"))
	}
	set(t, b, slice("shop", "x", ""))
	if count("web-two") != 1 {
		t.Errorf("without a label the slice is still one of %d of web-two", count("web-two"))
	}
}

func TestAnEndedPodIsGone(t *testing.T) {
	b := builder(t, pod("shop", "job"))
	ended := pod("shop", "job")
	ended.Status.Phase = corev1.PodSucceeded
	set(t, b, ended)
	if n := b.Snapshot().Namespaces.Len(); n != 0 {
		t.Errorf("%d namespaces with nothing in them but a pod that has ended", n)
	}
}

// TestReplaceIsTheSameAsOneByOne gives complete lists after random changes: what is not in a list is gone.
func TestReplaceIsTheSameAsOneByOne(t *testing.T) {
	kinds := map[index.Kind]func(ns, name string) any{
		index.Services:       func(ns, name string) any { return service(ns, name) },
		index.Pods:           func(ns, name string) any { return pod(ns, name) },
		index.EndpointSlices: func(ns, name string) any { return slice(ns, name, "web") },
		index.PeerAuthentications: func(ns, name string) any {
			return &securityv1.PeerAuthentication{ObjectMeta: named(ns, name)}
		},
		index.Nodes:      func(_, name string) any { return &corev1.Node{ObjectMeta: named("", name)} },
		index.Namespaces: func(_, name string) any { return &corev1.Namespace{ObjectMeta: named("", name)} },
	}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		b, fresh := builder(t), builder(t)
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			var list []any
			for _, ns := range []string{"a", "b"} {
				for _, name := range []string{"x", "y", "z"} {
					if r.IntN(2) == 0 {
						set(t, b, kinds[kind](ns, name))
					}
					if r.IntN(3) == 0 {
						b.Snapshot()
					}
					if r.IntN(2) == 0 {
						list = append(list, kinds[kind](ns, name))
					}
				}
			}
			set(t, fresh, list...)
			if err := b.Replace(kind, list); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := b.Snapshot(), fresh.Snapshot(); !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: after the lists there is %v too much or too little", seed, got.ChangedSince(want))
		}
	}
}

func TestBadMeshConfigKeepsTheLastGoodOne(t *testing.T) {
	b := builder(t, meshConfig("trustDomain: example.org"))
	good := b.Snapshot()
	if len(good.Problems) != 0 {
		t.Fatalf("a good configuration has problems: %v", good.Problems)
	}
	for name, bad := range map[string]*corev1.ConfigMap{
		"no YAML":      meshConfig("trustDomain: [\n"),
		"no mapping":   meshConfig("- trustDomain"),
		"wrong type":   meshConfig("connectTimeout: soon"),
		"key missing":  {ObjectMeta: named("istio-system", "istio")},
		"unknown enum": meshConfig("accessLogEncoding: XML"),
	} {
		t.Run(name, func(t *testing.T) {
			set(t, b, bad)
			s := b.Snapshot()
			if s.Mesh != good.Mesh {
				t.Error("the last good configuration is not in force")
			}
			if len(s.Problems) != 1 || s.Problems[0].Code != diag.InvalidMeshConfig || s.Problems[0].Severity != diag.Error ||
				!strings.Contains(s.Problems[0].Detail, "last good mesh configuration stays in force") {
				t.Errorf("problems: %v", s.Problems)
			}
		})
	}
	if err := b.Delete(meshConfig("")); err != nil {
		t.Fatal(err)
	}
	if s := b.Snapshot(); s.Mesh != good.Mesh || len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Detail, "is gone") {
		t.Errorf("after the ConfigMap is gone: %v", s.Problems)
	}
	set(t, b, meshConfig("trustDomain: example.net"))
	if s := b.Snapshot(); len(s.Problems) != 0 || s.Mesh.Values.GetTrustDomain() != "example.net" {
		t.Errorf("a mended configuration is not in force: %v", s.Problems)
	}
}

func TestMeshConfigOfAnotherRevisionIsNotOurs(t *testing.T) {
	b := builder(t)
	before := b.Snapshot()
	other := meshConfig("trustDomain: example.org")
	other.Name = "istio-canary"
	elsewhere := meshConfig("trustDomain: example.org")
	elsewhere.Namespace = "shop"
	set(t, b, other, elsewhere)
	if b.Snapshot() != before {
		t.Error("a ConfigMap of another revision or namespace is a change")
	}
}

func TestUnknownKindsAreErrors(t *testing.T) {
	b := builder(t)
	if err := b.Set(&corev1.Secret{}); err == nil {
		t.Error("a Secret was taken in")
	}
	if err := b.Replace("secrets", nil); err == nil {
		t.Error("a list of Secrets was taken in")
	}
}

func TestConditionsOfEndpoints(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		conditions discoveryv1.EndpointConditions
		want       index.State
	}{
		"nothing said is ready":                {discoveryv1.EndpointConditions{}, index.Ready},
		"ready":                                {discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}, index.Ready},
		"not ready":                            {discoveryv1.EndpointConditions{Ready: &no}, index.NotReady},
		"terminating and serving drains":       {discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}, index.Draining},
		"terminating without serving":          {discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}, index.NotReady},
		"terminating but published when ready": {discoveryv1.EndpointConditions{Ready: &yes, Terminating: &yes}, index.Draining},
	} {
		t.Run(name, func(t *testing.T) {
			s := slice("shop", "x", "web", "10.1.0.1")
			s.Endpoints[0].Conditions = c.conditions
			got := builder(t, s).Snapshot().Namespaces.Get("shop").SlicesOf("web")[0].Endpoints[0].State
			if got != c.want {
				t.Errorf("state %d, want %d", got, c.want)
			}
		})
	}
}

func FuzzParseMeshConfig(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", "trustDomain: example.org\nenableAutoMtls: false", "connectTimeout: 10s", "outboundTrafficPolicy: {}",
		"outbound_traffic_policy: {mode: REGISTRY_ONLY}", "defaultConfig: {discoveryAddress: a, proxyMetadata: {A: b}}",
		"discoverySelectors: [{matchExpressions: [{key: a, operator: In, values: [b]}]}]", "unknown: field", "a: &a [*a]", "- 1",
		"accessLogFormat: \"\\u0000\"", "extensionProviders: [{name: x, zipkin: {}}]",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, ignored, err := index.ParseMeshConfig(text)
		if (values == nil) != (err != nil) {
			t.Fatalf("values %v with error %v", values, err)
		}
		again, ignoredAgain, errAgain := index.ParseMeshConfig(text)
		if said(err) != said(errAgain) || said(ignored) != said(ignoredAgain) || values.String() != again.String() {
			t.Fatal("the same text is read in two ways")
		}
		// Whatever a user writes, the control plane takes it in without a panic and has a configuration in force.
		b, err := index.New(index.Config{Namespace: "istio-system"})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Set(meshConfig(text)); err != nil {
			t.Fatal(err)
		}
		if s := b.Snapshot(); s.Mesh == nil || s.Mesh.Values == nil {
			t.Fatal("no configuration is in force")
		}
	})
}

func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
