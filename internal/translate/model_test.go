package translate_test

import (
	"fmt"
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/translate"
)

// town is services, each with its pods and one slice.
type town struct{ services, endpoints, namespaces int }

func (w town) namespace(service int) string { return fmt.Sprintf("ns-%d", service%w.namespaces) }

func (w town) slice(service int, ready bool) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	s.Namespace, s.Name = w.namespace(service), fmt.Sprintf("s-%d-x", service)
	s.Labels = map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("s-%d", service)}
	port, name := int32(8080), "http"
	s.Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &port}}
	for i := range w.endpoints {
		e := discoveryv1.Endpoint{Addresses: []string{address(service, i)}}
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: podName(service, i), UID: types.UID(podName(service, i))}
		ready := ready || i > 0
		e.Conditions.Ready = &ready
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func (w town) pod(service, i int) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.UID = w.namespace(service), podName(service, i), types.UID(podName(service, i))
	p.Labels = map[string]string{"app": fmt.Sprintf("s-%d", service), "security.istio.io/tlsMode": "istio"}
	p.Spec.ServiceAccountName = fmt.Sprintf("sa-%d", service)
	p.Status.PodIP = address(service, i)
	return p
}

func (w town) builder(t testing.TB) *index.Builder {
	b := newBuilder(t)
	for service := range w.services {
		s := &corev1.Service{}
		s.Namespace, s.Name = w.namespace(service), fmt.Sprintf("s-%d", service)
		s.Spec.ClusterIP = fmt.Sprintf("10.96.%d.%d", service/250, 1+service%250)
		s.Spec.Selector = map[string]string{"app": s.Name}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}
		set(t, b, s, w.slice(service, true))
		for i := range w.endpoints {
			set(t, b, w.pod(service, i))
		}
	}
	return b
}

func address(service, i int) string {
	return fmt.Sprintf("10.%d.%d.%d", 1+service/200, service%200, 1+i)
}
func podName(service, i int) string { return fmt.Sprintf("s-%d-%d", service, i) }

func TestEndpointChangeKeepsEverythingElse(t *testing.T) {
	w := town{services: 20, endpoints: 3, namespaces: 2}
	b := w.builder(t)
	before, _ := translate.Model(nil, b.Snapshot())
	set(t, b, w.slice(7, false))
	after, _ := translate.Model(before, b.Snapshot())

	changed := mesh.EndpointKey{Host: "s-7.ns-1.svc.cluster.local", Port: 80}
	if got := len(after.Endpoints[changed].Endpoints); got != 2 {
		t.Fatalf("the service has %d endpoints after one of 3 became not ready", got)
	}
	if len(before.Endpoints[changed].Endpoints) != 3 {
		t.Error("the model before has changed with it")
	}
	if after.Settings != before.Settings || after.Outbound != before.Outbound {
		t.Error("the settings or the outbound are other pointers")
	}
	for k, set := range after.Endpoints {
		if k != changed && set != before.Endpoints[k] {
			t.Errorf("the endpoints of %v are another pointer", k)
		}
	}
	if len(after.Workloads) != 60 {
		t.Fatalf("%d workloads, want 60", len(after.Workloads))
	}
	for k, wl := range after.Workloads {
		if wl != before.Workloads[k] {
			t.Errorf("workload %v is another pointer", k)
		}
	}
}

func TestReplicasShareOneInbound(t *testing.T) {
	w := town{services: 4, endpoints: 5, namespaces: 2}
	b := w.builder(t)
	m, _ := translate.Model(nil, b.Snapshot())
	distinct := map[*mesh.Inbound]int{}
	for _, wl := range m.Workloads {
		distinct[wl.Inbound]++
	}
	if len(distinct) != 4 {
		t.Fatalf("%d inbounds for 4 workloads of 5 replicas", len(distinct))
	}
	// A replica that comes later has it too.
	set(t, b, w.pod(2, 99))
	next, _ := translate.Model(m, b.Snapshot())
	of := func(m *mesh.Model, i int) *mesh.Inbound {
		return m.Workloads[mesh.WorkloadKey{Namespace: "ns-0", Name: podName(2, i)}].Inbound
	}
	if of(next, 99) != of(m, 0) {
		t.Error("a new replica has an inbound of its own")
	}
}

func TestWhatIsNoChangeGivesTheSameModel(t *testing.T) {
	w := town{services: 3, endpoints: 2, namespaces: 1}
	b := w.builder(t)
	snap := b.Snapshot()
	m, _ := translate.Model(nil, snap)

	noisy := w.pod(1, 1)
	noisy.Annotations = map[string]string{"example.com/seen": "now"}
	noisy.ResourceVersion = "123"
	noisy.Status.Conditions = []corev1.PodCondition{{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}}
	set(t, b, noisy)
	if b.Snapshot() != snap {
		t.Error("an annotation and a condition of a pod are a change")
	}
	// A change that the mesh does not show: a namespace's label, an endpoint that is not ready.
	set(t, b, &corev1.Namespace{ObjectMeta: noisy.ObjectMeta})
	slice := w.slice(1, true)
	unready := false
	slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
		Addresses: []string{"10.9.9.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &unready},
	})
	set(t, b, slice)
	next := b.Snapshot()
	if next == snap {
		t.Fatal("the snapshot does not see the change")
	}
	got, _ := translate.Model(m, next)
	if got != m {
		t.Error("a change that nobody is told of gives another model")
	}
	set(t, b, w.slice(1, true))
	if got, _ = translate.Model(got, b.Snapshot()); got != m {
		t.Error("changed back, the model is another one")
	}
}

// TestHeadlessInstances changes the pods of a headless TCP service: its clients' listeners follow what takes mutual TLS and
// nothing else.
func TestHeadlessInstances(t *testing.T) {
	w := town{services: 3, endpoints: 2, namespaces: 1}
	b := w.builder(t)
	db := &corev1.Service{}
	db.Namespace, db.Name = "ns-0", "s-1"
	db.Spec.ClusterIP, db.Spec.Selector = corev1.ClusterIPNone, map[string]string{"app": "s-1"}
	db.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 5432, AppProtocol: new("tcp")}}
	set(t, b, db)
	var model *mesh.Model
	instances := func() (*mesh.Service, string) {
		model, _ = translate.Model(model, b.Snapshot())
		for _, s := range model.Outbound.Services {
			if s.Name == "s-1" {
				return s, fmt.Sprint(s.Ports[0].Instances)
			}
		}
		t.Fatal("the service is not in the model")
		return nil, ""
	}
	first, at := instances()
	if want := fmt.Sprintf("[%s:8080 %s:8080]", address(1, 0), address(1, 1)); at != want {
		t.Fatalf("the instances are %s, want %s", at, want)
	}

	set(t, b, w.slice(1, false))
	endpoints := model.Endpoints
	if same, at := instances(); same != first {
		t.Errorf("an endpoint that is not ready makes another service: %s", at)
	}
	if maps.Equal(endpoints, model.Endpoints) {
		t.Error("the endpoints are the same although one is not ready: nothing was tried")
	}

	plain := w.pod(1, 0)
	delete(plain.Labels, "security.istio.io/tlsMode")
	set(t, b, plain)
	other, at := instances()
	if want := fmt.Sprintf("[%s:8080]", address(1, 1)); other == first || at != want {
		t.Errorf("the instances without the pod that lost its sidecar are %s, want %s in another service", at, want)
	}
	set(t, b, w.slice(1, false), w.pod(0, 1), w.slice(0, false))
	if same, at := instances(); same != other {
		t.Errorf("what happens to another service makes this one another: %s", at)
	}
}

// BenchmarkTranslateEndpointChange is one endpoint of 1,000 services × 10 that changes its readiness: from the object to the
// next model.
func BenchmarkTranslateEndpointChange(b *testing.B) {
	for _, namespaces := range []int{1, 50} {
		b.Run(fmt.Sprintf("services=1000/endpoints=10/namespaces=%d", namespaces), func(b *testing.B) {
			w := town{services: 1000, endpoints: 10, namespaces: namespaces}
			builder := w.builder(b)
			model, _ := translate.Model(nil, builder.Snapshot())
			states := [2]*discoveryv1.EndpointSlice{w.slice(500, true), w.slice(500, false)}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				set(b, builder, states[(i+1)%2])
				next, _ := translate.Model(model, builder.Snapshot())
				if next == model {
					b.Fatal("the change is not in the model")
				}
				model = next
			}
		})
	}
}

// BenchmarkTranslateFromScratch is the same world as a replica sees it when it starts.
func BenchmarkTranslateFromScratch(b *testing.B) {
	w := town{services: 1000, endpoints: 10, namespaces: 50}
	snap := w.builder(b).Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		translate.Model(nil, snap)
	}
}

// BenchmarkTranslatePodChange is one new pod in that world, all of it in one namespace.
func BenchmarkTranslatePodChange(b *testing.B) {
	w := town{services: 1000, endpoints: 10, namespaces: 1}
	builder := w.builder(b)
	model, _ := translate.Model(nil, builder.Snapshot())
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		set(b, builder, w.pod(i%1000, 10+i/1000))
		model, _ = translate.Model(model, builder.Snapshot())
	}
}
