package translate_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/translate"
)

// world makes objects of a shop with several namespaces, so that changes of every kind collide.
type world struct{ rand *rand.Rand }

func pick[T any](w world, from ...T) T { return from[w.rand.IntN(len(from))] }

func (w world) meta(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: metav1.Unix(int64(1000+w.rand.IntN(3)), 0)}
}

func (w world) namespaceName() string { return pick(w, "a", "b", "istio-system") }

func (w world) labels() map[string]string {
	return map[string]string{
		"app": pick(w, "web", "db"), "tier": pick(w, "front", "back"), "security.istio.io/tlsMode": pick(w, "istio", "disabled"),
	}
}

func (w world) selector() map[string]string {
	return pick(w, nil, map[string]string{"app": "web"}, map[string]string{"app": "db"}, map[string]string{"app": "web", "tier": "front"})
}

func (w world) mode() *securityapi.PeerAuthentication_MutualTLS {
	return &securityapi.PeerAuthentication_MutualTLS{Mode: securityapi.PeerAuthentication_MutualTLS_Mode(w.rand.IntN(4))}
}

// object is any object in any state; names repeat, so most are changes of one that exists.
func (w world) object() any {
	switch w.rand.IntN(23) {
	case 20, 21:
		return w.entry()
	case 22:
		return w.istio("WorkloadEntry", pick(w, "w1", "w2"), w.workload())
	case 12, 13, 14:
		return w.rule()
	case 15, 16, 17:
		return w.virtual()
	case 18, 19:
		return w.access()
	case 0, 1:
		return w.service()
	case 2, 3, 4:
		return w.slice()
	case 5, 6, 7:
		return w.pod()
	case 8:
		name := w.namespaceName()
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"mesh": pick(w, "on", "off")}}}
	case 9:
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: pick(w, "n1", "n2"), Labels: map[string]string{corev1.LabelTopologyZone: pick(w, "z1", "z2")},
		}}
	case 10:
		p := &securityv1.PeerAuthentication{ObjectMeta: w.meta(w.namespaceName(), pick(w, "p1", "p2", "p3"))}
		p.Spec.Mtls = w.mode()
		if s := w.selector(); s != nil {
			p.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: s}
			p.Spec.PortLevelMtls = map[uint32]*securityapi.PeerAuthentication_MutualTLS{pick[uint32](w, 8080, 9090): w.mode()}
		}
		return p
	default:
		return &corev1.ConfigMap{ObjectMeta: w.meta("istio-system", "istio"), Data: map[string]string{"mesh": pick(w,
			"", "enableAutoMtls: false", "accessLogFile: /dev/stdout", "trustDomain: example.org",
			`discoverySelectors: [{matchLabels: {mesh: "on"}}]`, "rootNamespace: a", "defaultServiceExportTo: [\".\"]", "trustDomainAliases: [old.example]")}}
	}
}

// istio is an object of Istio's API.
func (w world) istio(kind, name string, spec map[string]any) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": kind, "spec": spec}}
	meta := w.meta(w.namespaceName(), name)
	o.SetNamespace(meta.Namespace)
	o.SetName(name)
	o.SetCreationTimestamp(meta.CreationTimestamp)
	o.SetGeneration(int64(w.rand.IntN(3)))
	return o
}

// host is that of a service, in some form, or of none.
func (w world) host() string {
	return pick(w, "s1", "s2", "s1.a.svc.cluster.local", "s2.b.svc.cluster.local", "*.a.svc.cluster.local", "*.local", "example.com", "*.example.com")
}

func (w world) policy() map[string]any {
	return pick(w,
		map[string]any{},
		map[string]any{"loadBalancer": map[string]any{"simple": "ROUND_ROBIN"}},
		map[string]any{"loadBalancer": map[string]any{"consistentHash": map[string]any{"httpHeaderName": "x-user"}}},
		map[string]any{"outlierDetection": map[string]any{"consecutive5xxErrors": int64(3)}},
		map[string]any{"portLevelSettings": []any{map[string]any{"port": map[string]any{"number": int64(90)}, "tls": map[string]any{"mode": "DISABLE"}}}},
	)
}

func (w world) exportTo(spec map[string]any) map[string]any {
	if to := pick(w, "", "", "*", ".", "a", "b"); to != "" {
		spec["exportTo"] = []any{to}
	}
	return spec
}

func (w world) rule() *unstructured.Unstructured {
	spec := map[string]any{"host": w.host(), "trafficPolicy": w.policy()}
	if w.rand.IntN(2) == 0 {
		spec["subsets"] = []any{
			map[string]any{"name": pick(w, "v1", "v2"), "labels": map[string]any{"tier": pick(w, "front", "back")}, "trafficPolicy": w.policy()},
			map[string]any{"name": "all"},
		}
	}
	return w.istio("DestinationRule", pick(w, "r1", "r2", "r3"), w.exportTo(spec))
}

func (w world) workload() map[string]any {
	return map[string]any{"address": pick(w, "192.0.2.1", "192.0.2.2", "vm.example.com"), "labels": map[string]any{"app": pick(w, "web", "db"), "tier": "front"},
		"serviceAccount": pick(w, "", "vm"), "weight": int64(w.rand.IntN(3)), "ports": map[string]any{"http": int64(8000)}}
}

func (w world) entry() *unstructured.Unstructured {
	spec := map[string]any{
		"hosts": []any{pick(w, "example.com", "api.example.com", "*.example.com", "s1.a.svc.cluster.local")}, "resolution": pick(w, "NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN"),
		"ports": []any{map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}, map[string]any{"number": int64(443), "name": "tls", "protocol": pick(w, "TLS", "TCP")}},
	}
	switch w.rand.IntN(3) {
	case 0:
		spec["endpoints"] = []any{w.workload()}
	case 1:
		spec["workloadSelector"] = map[string]any{"labels": map[string]any{"app": pick(w, "web", "db")}}
	}
	return w.istio("ServiceEntry", pick(w, "e1", "e2"), w.exportTo(spec))
}

func (w world) virtual() *unstructured.Unstructured {
	to := func() any {
		d := map[string]any{"host": pick(w, "s1", "s2", "s1.a.svc.cluster.local", "nowhere")}
		if w.rand.IntN(2) == 0 {
			d["subset"] = pick(w, "v1", "all")
		}
		return map[string]any{"destination": d, "weight": int64(50)}
	}
	first := map[string]any{"match": []any{map[string]any{"uri": map[string]any{"prefix": "/" + pick(w, "a", "b")}}}, "route": []any{to()}}
	if w.rand.IntN(3) == 0 {
		first["match"] = []any{map[string]any{"sourceNamespace": pick(w, "a", "b")}}
	}
	if w.rand.IntN(4) == 0 {
		delete(first, "route")
		first["delegate"] = map[string]any{"name": "d", "namespace": pick(w, "a", "b")}
	}
	spec := map[string]any{"hosts": []any{w.host()}, "http": []any{first, map[string]any{"route": []any{to(), to()}}}}
	if w.rand.IntN(4) == 0 {
		delete(spec, "hosts")
		spec["http"] = []any{map[string]any{"route": []any{to()}}}
		return w.istio("VirtualService", "d", w.exportTo(spec))
	}
	return w.istio("VirtualService", pick(w, "v1", "v2", "v3"), w.exportTo(spec))
}

// access is a policy about who may call, good or not.
func (w world) access() *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1"}}
	o.SetNamespace(w.namespaceName())
	o.SetGeneration(int64(w.rand.IntN(3)))
	spec := map[string]any{}
	if labels := w.selector(); labels != nil {
		spec["selector"] = map[string]any{"matchLabels": map[string]any{"app": labels["app"]}}
	}
	if w.rand.IntN(3) == 0 {
		o.SetKind("RequestAuthentication")
		o.SetName(pick(w, "ra1", "ra2"))
		spec["jwtRules"] = []any{map[string]any{"issuer": pick(w, "a", "b"), "jwks": pick(w, "bad", `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`)}}
	} else {
		o.SetKind("AuthorizationPolicy")
		o.SetName(pick(w, "ap1", "ap2", "ap3"))
		spec["action"] = pick(w, "ALLOW", "DENY", "AUDIT", "CUSTOM")
		spec["rules"] = []any{map[string]any{"from": []any{map[string]any{"source": map[string]any{
			"principals": []any{pick(w, "cluster.local/ns/a/sa/web", "old.example/ns/a/sa/db")}, "ipBlocks": []any{pick(w, "10.0.0.0/8", "x")}}}}}}
	}
	o.Object["spec"] = spec
	return o
}

func (w world) service() *corev1.Service {
	s := &corev1.Service{ObjectMeta: w.meta(w.namespaceName(), pick(w, "s1", "s2", "s3"))}
	s.Spec.ClusterIP = pick(w, "10.96.0.1", "None")
	s.Spec.Selector = w.selector()
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: pick(w, intstr.FromInt32(8080), intstr.FromString("listen"))}}
	if w.rand.IntN(2) == 0 {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: pick(w, "grpc", "tcp"), Port: 90, TargetPort: intstr.FromInt32(8080)})
	}
	if w.rand.IntN(6) == 0 {
		s.Annotations = map[string]string{"networking.istio.io/exportTo": "."}
	}
	return s
}

func (w world) slice() *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: w.meta(w.namespaceName(), pick(w, "e1", "e2", "e3")), AddressType: discoveryv1.AddressTypeIPv4}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: pick(w, "s1", "s2", "s3")}
	for _, name := range []string{"http", "grpc"} {
		port := pick[int32](w, 8080, 9090)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port})
	}
	for i := range w.rand.IntN(4) {
		ready, node := w.rand.IntN(3) > 0, pick(w, "n1", "n2")
		e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.1.0.%d", i)}, NodeName: &node}
		e.Conditions.Ready = &ready
		if w.rand.IntN(5) > 0 {
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: pick(w, "p1", "p2", "p3", "p4"), UID: types.UID(pick(w, "", "u1", "u2"))}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func (w world) pod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: w.meta(w.namespaceName(), pick(w, "p1", "p2", "p3", "p4"))}
	p.Labels, p.UID = w.labels(), types.UID(pick(w, "u1", "u2"))
	p.Spec.ServiceAccountName = pick(w, "web", "db")
	p.Spec.NodeName = pick(w, "n1", "n2")
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "listen", ContainerPort: pick[int32](w, 8080, 9090)}}}}
	p.Status.Phase = pick(w, corev1.PodRunning, corev1.PodRunning, corev1.PodFailed)
	p.Status.PodIP = pick(w, "10.1.0.1", "10.1.0.2")
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: pick(w, corev1.ConditionTrue, corev1.ConditionFalse)}}
	return p
}

// TestIncrementalIsFromScratch changes a world at random and asks, after each few changes, that the model made from the one
// before says exactly what a model from nothing says, and that everything that says the same as before is the same pointer.
func TestIncrementalIsFromScratch(t *testing.T) {
	for seed := range uint64(40) {
		w := world{rand.New(rand.NewPCG(seed, 7))}
		b := newBuilder(t)
		objects := map[string]any{}
		var model *mesh.Model
		for step := range 60 {
			for range 1 + w.rand.IntN(3) {
				change(t, w, b, objects)
			}
			snap := b.Snapshot()
			next, problems := translate.Model(model, snap)
			fresh, freshProblems := translate.Model(nil, snap)
			if diff := cmp.Diff(dump(fresh, freshProblems), dump(next, problems)); diff != "" {
				t.Fatalf("seed %d step %d: incremental (+) differs from from-scratch (-):\n%s\n%s", seed, step, diff, dump(fresh, freshProblems))
			}
			if !reflect.DeepEqual(content(fresh), content(next)) {
				t.Fatalf("seed %d step %d: incremental and from-scratch models differ in what the dump does not show", seed, step)
			}
			if again, _ := translate.Model(next, snap); again != next {
				t.Fatalf("seed %d step %d: the same snapshot gives another model", seed, step)
			}
			checkInterned(t, next)
			if model != nil {
				checkReuse(t, model, next)
			}
			model = next
		}
		// What the builder has by increments is what it would have been told in one list.
		var all []any
		for _, o := range objects {
			all = append(all, o)
		}
		fresh := newBuilder(t, all...)
		if diff := cmp.Diff(dump(translate.Model(nil, fresh.Snapshot())), dump(translate.Model(model, b.Snapshot()))); diff != "" {
			t.Fatalf("seed %d: the world by increments (+) differs from the same in one list (-):\n%s", seed, diff)
		}
	}
}

func change(t *testing.T, w world, b *index.Builder, objects map[string]any) {
	t.Helper()
	o := w.object()
	meta := o.(metav1.Object)
	key := fmt.Sprintf("%T %s %s/%s", o, kindOf(o), meta.GetNamespace(), meta.GetName())
	_, isConfig := o.(*corev1.ConfigMap) // its deletion keeps the last one, so there the past counts
	if w.rand.IntN(4) == 0 && !isConfig {
		delete(objects, key)
		if err := b.Delete(o); err != nil {
			t.Fatal(err)
		}
		return
	}
	objects[key] = o
	set(t, b, o)
}

func kindOf(o any) string {
	if u, ok := o.(*unstructured.Unstructured); ok {
		return u.GetKind()
	}
	return ""
}

// content is a model without what differs between two that say the same.
func content(m *mesh.Model) mesh.Model {
	c := *m
	c.Memo = nil
	return c
}

func checkInterned(t *testing.T, m *mesh.Model) {
	t.Helper()
	var seen []*mesh.Inbound
	for _, w := range m.Workloads {
		for _, in := range seen {
			if in != w.Inbound && reflect.DeepEqual(in, w.Inbound) {
				t.Fatalf("two workloads of namespace %s have equal inbounds that are not one pointer", in.Namespace)
			}
		}
		seen = append(seen, w.Inbound)
	}
}

func checkReuse(t *testing.T, before, after *mesh.Model) {
	t.Helper()
	same := func(what any, a, b any) {
		if a != b && reflect.DeepEqual(a, b) {
			t.Fatalf("%v has not changed, but is another pointer", what)
		}
	}
	same("settings", before.Settings, after.Settings)
	same("outbound", before.Outbound, after.Outbound)
	for ns, o := range after.Outbounds {
		same("outbound of "+ns, before.Outbounds[ns], o)
	}
	for host, v := range after.Outbound.Routing {
		same(host, before.Outbound.Routing[host], v)
	}
	for k, v := range after.Endpoints {
		same(k, before.Endpoints[k], v)
	}
	for k, v := range after.Workloads {
		same(k, before.Workloads[k], v)
		if w := before.Workloads[k]; w != nil {
			same(k, w.Inbound, v.Inbound)
		}
	}
	services := map[mesh.Host]*mesh.Service{}
	for _, s := range before.Outbound.Services {
		services[s.Host] = s
	}
	for _, s := range after.Outbound.Services {
		same(s.Host, services[s.Host], s)
	}
	if before != after && reflect.DeepEqual(content(before), content(after)) {
		t.Fatal("nothing has changed, but the model is another pointer")
	}
}
