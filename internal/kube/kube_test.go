package kube_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/kube"
)

// fixture is a cluster that watches two fake API servers, inside a synctest bubble: time passes only while all wait. What a
// real API server does is for the tests against one.
type fixture struct {
	t         *testing.T
	kube      *fake.Clientset
	istio     *dynamicfake.FakeDynamicClient
	events    []string
	metrics   *prometheus.Registry
	cluster   *kube.Cluster
	snapshots []*index.Snapshot
	logs      bytes.Buffer
	// refused has what is refused, by resource and verb, such as "pods list".
	refused sync.Map
}

// newDynamic is an API server that has all kinds of Istio's API.
func newDynamic() *dynamicfake.FakeDynamicClient {
	lists := map[schema.GroupVersionResource]string{}
	for _, k := range index.IstioKinds() {
		for _, v := range k.Versions {
			lists[schema.GroupVersionResource{Group: k.Group, Version: v, Resource: string(k.Kind)}] = k.Name + "List"
		}
	}
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)
}

// Event notes what is told of an object.
func (f *fixture) Event(o runtime.Object, kind, reason, message string) {
	r, _ := o.(*corev1.ObjectReference)
	f.events = append(f.events, fmt.Sprintf("%s/%s %s %s: %s", r.Kind, r.Name, kind, reason, message))
}

// write puts an object of Istio's API, in YAML, into the API server.
func (f *fixture) write(version, resource, text string) {
	f.t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), o); err != nil {
		f.t.Fatal(err)
	}
	gvr := schema.GroupVersionResource{Group: o.GroupVersionKind().Group, Version: version, Resource: resource}
	if _, err := f.istio.Resource(gvr).Namespace(o.GetNamespace()).Create(f.t.Context(), o, metav1.CreateOptions{}); err != nil {
		f.t.Fatal(err)
	}
}

func inBubble(t *testing.T, test func(t *testing.T, f *fixture)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{t: t, kube: fake.NewClientset(), istio: newDynamic(), metrics: prometheus.NewRegistry()}
		f.add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		f.add(service("web"))
		refuse := func(action clienttesting.Action) (bool, runtime.Object, error) {
			refusal, ok := f.refused.Load(action.GetResource().Resource + " " + action.GetVerb())
			err, _ := refusal.(error)
			return ok, nil, err
		}
		f.kube.PrependReactor("list", "*", refuse)
		f.istio.PrependReactor("list", "*", refuse)
		cluster, err := kube.New(kube.Config{
			Kubernetes: f.kube, Dynamic: f.istio, Namespace: "istio-system", Events: f, Registerer: f.metrics,
			OnSnapshot: func(s *index.Snapshot) { f.snapshots = append(f.snapshots, s) },
			Log:        slog.New(slog.NewTextHandler(&f.logs, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		f.cluster = cluster
		test(t, f)
	})
}

func (f *fixture) run() {
	ctx, cancel := context.WithCancel(f.t.Context())
	ended := make(chan error)
	go func() { ended <- f.cluster.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Errorf("run ended with %v", err)
		}
	})
	f.pass(time.Second)
}

func (f *fixture) pass(d time.Duration) {
	time.Sleep(d) // in the bubble: until everything waits
	synctest.Wait()
}

func (f *fixture) add(o runtime.Object) {
	f.t.Helper()
	if err := f.kube.Tracker().Add(o); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) latest() *index.Snapshot {
	f.t.Helper()
	if len(f.snapshots) == 0 {
		f.t.Fatal("there was no snapshot")
	}
	return f.snapshots[len(f.snapshots)-1]
}

func service(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}}
}

// strict is a policy of namespace shop.
const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: shop, name: default}
spec: {mtls: {mode: STRICT}}
`

func forbidden(resource, verb string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "",
		fmt.Errorf("User %q cannot %s resource %q at the cluster scope", "system:serviceaccount:istio-system:istiod", verb, resource))
}

func missing() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Reason: metav1.StatusReasonNotFound, Code: 404, Message: "the server could not find the requested resource",
	}}
}

func TestMain(m *testing.M) {
	// client-go spaces errors out by a clock that all tests share, which a bubble's time does not fit.
	utilruntime.ErrorHandlers = nil
	m.Run()
}

func TestFirstSnapshotHasEverything(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.write("v1", "peerauthentications", strict)
		f.add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z"}}})
		f.add(&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}, Data: map[string]string{"mesh": "trustDomain: example.org"},
		})
		f.run()
		if len(f.snapshots) != 1 {
			t.Fatalf("%d snapshots of a world that does not change; ready: %v\n%s", len(f.snapshots), f.cluster.Ready(), f.logs.String())
		}
		s := f.latest()
		shop := s.Namespaces.Get("shop")
		if shop == nil || shop.Services.Get("web") == nil || shop.PeerAuthentications.Get("default") == nil ||
			s.Nodes.Get("n") == nil || s.Mesh.Values.GetTrustDomain() != "example.org" {
			t.Fatalf("the first snapshot lacks something: %+v", shop)
		}
		if err := f.cluster.Ready(); err != nil {
			t.Errorf("not ready after the first snapshot: %v", err)
		}
	})
}

func TestBurstIsOneSnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.run()
		for i := range 50 {
			f.add(service(fmt.Sprintf("s-%d", i)))
		}
		f.pass(time.Second)
		if len(f.snapshots) != 2 {
			t.Errorf("50 changes at once gave %d snapshots", len(f.snapshots)-1)
		}
		if n := f.latest().Namespaces.Get("shop").Services.Len(); n != 51 {
			t.Errorf("the last snapshot has %d services, want 51", n)
		}
		// Changes without end are shown all the same.
		before := len(f.snapshots)
		for i := range 200 {
			f.add(service(fmt.Sprintf("more-%d", i)))
			f.pass(5 * time.Millisecond)
		}
		if n := len(f.snapshots) - before; n < 4 || n > 6 {
			t.Errorf("a second of changes gave %d snapshots, want one in 200 ms", n)
		}
	})
}

func TestStatusWriteIsNoSnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.run()
		noisy := service("web")
		noisy.Annotations = map[string]string{"example.com/touched": "now"}
		noisy.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		if _, err := f.kube.CoreV1().Services("shop").Update(t.Context(), noisy, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		f.pass(time.Second)
		if len(f.snapshots) != 1 {
			t.Errorf("an annotation and a status gave %d more snapshots", len(f.snapshots)-1)
		}
	})
}

func TestNothingIsShownBeforeEverythingIsRead(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.refused.Store("pods list", forbidden("pods", "list"))
		f.run()
		f.pass(time.Minute)
		if len(f.snapshots) != 0 {
			t.Fatal("a world without pods was shown while pods are forbidden")
		}
		err := f.cluster.Ready()
		for _, want := range []string{"list pods in the whole cluster", "does not grant the verb list", "ClusterRole/istiod-clusterrole-istio-system"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Ready says %v, which does not name %q", err, want)
			}
		}
		if n := strings.Count(f.logs.String(), "cannot read"); n != 1 {
			t.Errorf("a minute of refusals was logged %d times", n)
		}
		f.refused.Delete("pods list")
		f.pass(10 * time.Second)
		if len(f.snapshots) != 1 || f.cluster.Ready() != nil {
			t.Errorf("10 s after the role was mended: %d snapshots, ready: %v", len(f.snapshots), f.cluster.Ready())
		}
		if !strings.Contains(f.logs.String(), "reading from the API server again") {
			t.Error("the recovery was not logged")
		}
	})
}

func TestUnreachableServerIsNotARefusal(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.refused.Store("peerauthentications list", fmt.Errorf("dial tcp 10.96.0.1:443: connection refused"))
		f.run()
		f.pass(time.Minute)
		if len(f.snapshots) != 0 {
			t.Fatal("a world without policies was shown because the server did not answer")
		}
		if err := f.cluster.Ready(); err == nil || !strings.Contains(err.Error(), "list peerauthentications.security.istio.io: dial tcp") {
			t.Errorf("Ready says %v", err)
		}
	})
}

func TestMissingPolicyKindDoesNotHoldUpTheRest(t *testing.T) {
	for name, refusal := range map[string]error{"no CRD": missing()} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fixture) {
				f.refused.Store("peerauthentications list", refusal)
				f.run()
				s := f.latest()
				if s.Namespaces.Get("shop") == nil || f.cluster.Ready() != nil {
					t.Fatalf("the rest waits for the policies: %v", f.cluster.Ready())
				}
				if len(s.Problems) != 1 || s.Problems[0].Code != diag.SourceUnavailable || !strings.Contains(s.Problems[0].Detail, "no PeerAuthentication is in force") {
					t.Fatalf("the problems are %v", s.Problems)
				}
				f.write("v1", "peerauthentications", strict)
				f.refused.Delete("peerauthentications list")
				f.pass(10 * time.Second)
				s = f.latest()
				if s.Namespaces.Get("shop").PeerAuthentications.Len() != 1 || len(s.Problems) != 0 {
					t.Errorf("10 s after the kind is there: %d policies, problems %v", s.Namespaces.Get("shop").PeerAuthentications.Len(), s.Problems)
				}
			})
		})
	}
}

func TestForbiddenPoliciesDoNotOpenTheMesh(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.refused.Store("peerauthentications list", forbidden("peerauthentications", "list"))
		f.run()
		f.pass(time.Minute)
		if len(f.snapshots) != 0 {
			t.Fatal("a world without policies was shown because they may not be read: where they say STRICT it takes plain text")
		}
		if err := f.cluster.Ready(); err == nil || !strings.Contains(err.Error(), "does not grant the verb list") {
			t.Errorf("Ready says %v", err)
		}
		f.refused.Delete("peerauthentications list")
		f.pass(10 * time.Second)
		if len(f.snapshots) == 0 || f.cluster.Ready() != nil {
			t.Errorf("10 s after the role was mended: %d snapshots, ready: %v", len(f.snapshots), f.cluster.Ready())
		}
	})
}

func TestRevisionReadsItsOwnMeshConfig(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		for name, domain := range map[string]string{"istio": "default.example", "istio-canary": "canary.example"} {
			f.add(&corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: name}, Data: map[string]string{"mesh": "trustDomain: " + domain},
			})
		}
		var err error
		f.cluster, err = kube.New(kube.Config{
			Kubernetes: f.kube, Dynamic: f.istio, Namespace: "istio-system", Revision: "canary",
			OnSnapshot: func(s *index.Snapshot) { f.snapshots = append(f.snapshots, s) },
		})
		if err != nil {
			t.Fatal(err)
		}
		f.run()
		if got := f.latest().Mesh.Values.GetTrustDomain(); got != "canary.example" {
			t.Errorf("revision canary has trust domain %q", got)
		}
	})
}
