package podwatch

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/time/rate"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	admissionlisters "k8s.io/client-go/listers/admissionregistration/v1"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// told are the Events as TYPE KIND/NAME: MESSAGE.
type told []string

func (e *told) Event(object runtime.Object, eventType, _, message string) {
	o := object.(*corev1.ObjectReference)
	*e = append(*e, fmt.Sprintf("%s %s/%s: %s", eventType, o.Kind, o.Name, message))
}

// newRound is a round whose informers have read a namespace shop, which asks for sidecars, and these webhooks.
func newRound(t testing.TB, revision string, webhooks ...*admissionv1.MutatingWebhookConfiguration) (*round, *told) {
	t.Helper()
	config, problems := inject.Default(revision).Compile()
	if config == nil {
		t.Fatal(problems)
	}
	events := &told{}
	w, err := New(Config{Kubernetes: fake.NewClientset(), Revision: revision, Injector: func() *inject.Config { return config }, Events: events, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	hooks, namespaces := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil), cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
	for _, c := range webhooks {
		_ = hooks.Add(c)
	}
	_ = namespaces.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"istio-injection": "enabled"}}})
	return &round{Watcher: w, limiter: rate.NewLimiter(0, eventBurst), told: map[tale]bool{}, fresh: make(chan struct{}, 1), pods: newPods(), stale: true,
		webhooks: admissionlisters.NewMutatingWebhookConfigurationLister(hooks), namespaces: listers.NewNamespaceLister(namespaces)}, events
}

func podOf(owner string, n int) *corev1.Pod {
	yes := true
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("%s-%d", owner, n), UID: types.UID(fmt.Sprintf("%s-%d", owner, n)),
		Labels:          map[string]string{"app": owner},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: owner, UID: types.UID(owner), Controller: &yes}}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
}

// TestManyAtOnce: however many workloads come without their sidecar, so many Events and no more; the rest is one.
func TestManyAtOnce(t *testing.T) {
	r, events := newRound(t, "")
	r.pods.listed = true
	for owner := range 300 {
		for n := range 3 {
			r.pods.set(podOf(fmt.Sprintf("web%03d", owner), n))
		}
	}
	r.tell(t.Context(), r.look(false))
	if len(*events) != eventBurst+1 {
		t.Fatalf("%d Events, want %d", len(*events), eventBurst+1)
	}
	last := (*events)[eventBurst]
	if !strings.Contains(last, "Namespace/shop") || !strings.Contains(last, "750 pods of 250 workloads") || !strings.Contains(last, "and 245 more") {
		t.Errorf("the last is %s", last)
	}
	for n := range 3 { // more pods of the same
		r.pods.set(podOf("web000", 3+n))
	}
	r.tell(t.Context(), r.look(true))
	if len(*events) != eventBurst+1 {
		t.Errorf("told again: %v", (*events)[eventBurst+1:])
	}
}

// TestMemoryOfWhatWasTold is bounded.
func TestMemoryOfWhatWasTold(t *testing.T) {
	r, _ := newRound(t, "")
	for n := range 3 * maxTold {
		r.remember(tale{object: types.UID(fmt.Sprint(n))})
		if len(r.told) > maxTold {
			t.Fatalf("%d are remembered", len(r.told))
		}
	}
	if !r.told[tale{object: types.UID(fmt.Sprint(3*maxTold - 1))}] {
		t.Error("the newest is forgotten")
	}
}

// TestOneRevisionSpeaks: of several revisions one tells of pods that none of them answers for, and each of its own.
func TestOneRevisionSpeaks(t *testing.T) {
	registered := func(revision string) *admissionv1.MutatingWebhookConfiguration {
		c := inject.Registration{Revision: revision, Endpoint: inject.Endpoint{Namespace: "istio-system", Service: "istiod"}}.Configuration()
		c.Labels["app.kubernetes.io/managed-by"] = "selvage"
		return c
	}
	istio := registered("default")
	delete(istio.Labels, "app.kubernetes.io/managed-by")
	for _, test := range []struct {
		revision string
		webhooks []*admissionv1.MutatingWebhookConfiguration
		want     string // reasons told for a pod of nobody and for one of revision canary
	}{
		{"default", nil, "no_injector no_injector"},
		{"canary", nil, "no_injector no_injector"},
		{"default", []*admissionv1.MutatingWebhookConfiguration{registered("default"), registered("canary")}, "unknown_revision"},
		{"canary", []*admissionv1.MutatingWebhookConfiguration{registered("default"), registered("canary")}, "missed"},
		{"canary", []*admissionv1.MutatingWebhookConfiguration{registered("canary"), registered("stable")}, "missed unknown_revision"},
		{"stable", []*admissionv1.MutatingWebhookConfiguration{registered("canary"), registered("stable")}, ""},
		{"canary", []*admissionv1.MutatingWebhookConfiguration{registered("canary"), istio}, "missed unknown_revision"},
	} {
		r, events := newRound(t, test.revision, test.webhooks...)
		namespaces := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
		_ = namespaces.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}) // it asks for nothing
		r.namespaces = listers.NewNamespaceLister(namespaces)
		r.pods.listed = true
		for name, rev := range map[string]string{"a": "v9", "b": "canary"} {
			pod := podOf(name, 0)
			pod.Labels["istio.io/rev"] = rev
			r.pods.set(pod)
		}
		found := r.look(false)
		r.tell(t.Context(), found)
		var reasons []string
		for _, f := range found {
			reasons = append(reasons, string(f.reason))
		}
		got := strings.Join(reasons, " ")
		if got != test.want || len(*events) != len(found) {
			t.Errorf("revision %s with %d configurations: told %q, want %q; Events %v", test.revision, len(test.webhooks), got, test.want, *events)
		}
	}
}

// TestPodsAreKeptByWorkload: replicas share what is kept, pods with a sidecar are not kept, and what is gone is gone.
func TestPodsAreKeptByWorkload(t *testing.T) {
	p := newPods()
	var all []*corev1.Pod
	for n := range 10 {
		all = append(all, podOf("web", n))
	}
	meshed := podOf("web", 10)
	meshed.Spec.InitContainers = []corev1.Container{{Name: inject.ProxyContainer}}
	p.replace(append(all, meshed))
	if len(p.groups) != 1 || len(p.of) != 10 {
		t.Fatalf("%d groups of %d pods", len(p.groups), len(p.of))
	}
	out := podOf("web", 3)
	out.Labels["sidecar.istio.io/inject"] = "false"
	if p.set(out); len(p.groups) != 2 || len(p.of) != 10 {
		t.Errorf("a pod that says no is among those that don't: %d groups of %d pods", len(p.groups), len(p.of))
	}
	p.replace(all[:2])
	if len(p.groups) != 1 || len(p.of) != 2 {
		t.Errorf("after a shorter list: %d groups of %d pods", len(p.groups), len(p.of))
	}
	p.remove(all[0].UID)
	p.remove(all[1].UID)
	p.remove(all[1].UID)
	if len(p.groups) != 0 || len(p.of) != 0 {
		t.Errorf("%d groups of %d pods stay", len(p.groups), len(p.of))
	}
}

// TestSlimPodDecidesAlike: what is kept of a pod is enough for the verdict.
func TestSlimPodDecidesAlike(t *testing.T) {
	r, _ := newRound(t, "", inject.Registration{Endpoint: inject.Endpoint{Namespace: "istio-system", Service: "istiod"}}.Configuration())
	admit := r.admission()
	ns, _ := r.namespaces.Get("shop")
	for name, change := range map[string]func(*corev1.Pod){
		"plain": func(*corev1.Pod) {},
		"label": func(p *corev1.Pod) { p.Labels["sidecar.istio.io/inject"] = "false" },
		"annotation": func(p *corev1.Pod) {
			p.Annotations = map[string]string{"sidecar.istio.io/inject": "false", "other": "x"}
		},
		"mirror":      func(p *corev1.Pod) { p.Annotations = map[string]string{"kubernetes.io/config.mirror": "x"} },
		"host":        func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"os":          func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} },
		"other label": func(p *corev1.Pod) { p.Labels["istio.io/rev"] = "canary" },
	} {
		pod := podOf("web", 0)
		change(pod)
		if got, want := admit.Expect(ns, slimPod(pod)), admit.Expect(ns, pod); got.Verdict != want.Verdict || got.Asks != want.Asks {
			t.Errorf("%s: %+v, want %+v", name, got.Verdict, want.Verdict)
		}
	}
}

// BenchmarkLook is a look at everything, of 2,000 workloads with 10 pods each.
func BenchmarkLook(b *testing.B) {
	r, _ := newRound(b, "", inject.Registration{Endpoint: inject.Endpoint{Namespace: "istio-system", Service: "istiod"}}.Configuration())
	b.ReportAllocs()
	for owner := range 2000 {
		for n := range 10 {
			r.pods.set(slimPod(podOf(fmt.Sprint(owner), n)))
		}
	}
	for b.Loop() {
		r.look(true)
	}
}
