package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/selvage-mesh/selvage/internal/pki"
)

// roots is a RootSource whose root a test changes.
type roots struct {
	mu      sync.Mutex
	pem     []byte
	changed chan struct{}
}

func newRoots(t testing.TB) *roots {
	r := &roots{changed: make(chan struct{})}
	r.renew(t)
	return r
}

func (r *roots) Roots() ([]byte, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pem, r.changed
}

func (r *roots) renew(t testing.TB) []byte {
	t.Helper()
	issuer, err := pki.NewRoot("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pem = issuer.RootPEM()
	close(r.changed)
	r.changed = make(chan struct{})
	return r.pem
}

// run runs a reconciler until the test ends.
func run(t testing.TB, reconciler interface{ Run(context.Context) error }) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- reconciler.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// mutatingConfig is an injector's configuration as an installer writes it, of a revision of its own for each test.
func mutatingConfig(name, revision string, prefixes ...string) *admissionv1.MutatingWebhookConfiguration {
	c := &admissionv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"istio.io/rev": revision}},
	}
	for _, p := range prefixes {
		c.Webhooks = append(c.Webhooks, admissionv1.MutatingWebhook{
			Name:                    p + "sidecar-injector.istio.io",
			AdmissionReviewVersions: []string{"v1"},
			SideEffects:             ptr.To(admissionv1.SideEffectClassNone),
			FailurePolicy:           ptr.To(admissionv1.Ignore),
			ClientConfig:            admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "istio-system", Name: "istiod"}},
			NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"selvage-test": "never"}},
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{"CREATE"},
				Rule: admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}}}},
		})
	}
	return c
}

// writes counts what changed something at a fake clientset.
func writes(client *fake.Clientset) (n int) {
	for _, action := range client.Actions() {
		switch action.GetVerb() {
		case "create", "update", "patch", "delete":
			n++
		}
	}
	return n
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}}
}

func runRoots(t *testing.T, client *fake.Clientset, source RootSource) {
	t.Helper()
	reconciler, err := NewRoots(RootsConfig{Kubernetes: client, Roots: source, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	run(t, reconciler)
	synctest.Wait()
}

func TestRootsAreWrittenOnlyWhereTheyAreMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newRoots(t)
		root, _ := source.Roots()
		good := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "good", Name: RootConfigMap, Labels: rootLabels}, Data: map[string]string{RootKey: string(root)}}
		bad := good.DeepCopy()
		bad.Namespace, bad.Data[RootKey] = "bad", "another"
		going := namespace("going")
		going.Status.Phase = corev1.NamespaceTerminating
		client := fake.NewClientset(namespace("good"), namespace("bad"), namespace("new"), going, namespace("kube-system"), good, bad)
		runRoots(t, client, source)
		for name, want := range map[string]bool{"good": true, "bad": true, "new": true, "going": false, "kube-system": false} {
			cm, err := client.CoreV1().ConfigMaps(name).Get(t.Context(), RootConfigMap, metav1.GetOptions{})
			if has := err == nil && right(cm, root); has != want {
				t.Errorf("%s: %v, want %v (%v)", name, has, want, err)
			}
		}
		if n := writes(client); n != 2 {
			t.Errorf("%d writes, want 2", n)
		}
		time.Sleep(24 * time.Hour)
		if n := writes(client); n != 2 {
			t.Errorf("%d writes in a day of rest, want none more", n-2)
		}
	})
}

func TestNoRootYetWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(namespace("a"), mutatingConfig("istio-sidecar-injector", "default", "rev.namespace."))
		source := &roots{changed: make(chan struct{})}
		runRoots(t, client, source)
		runWebhooks(t, client, source)
		if n := writes(client); n != 0 {
			t.Errorf("%d writes", n)
		}
		source.renew(t)
		synctest.Wait()
		if n := writes(client); n != 2 {
			t.Errorf("%d writes once there is a root, want 2", n)
		}
	})
}

// A writer that puts its own root back at once, as another mesh's control plane does, is answered at a bounded rate.
func TestRivalForTheRootMakesNoWriteStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(namespace("a"))
		source := newRoots(t)
		runRoots(t, client, source)
		maps := client.CoreV1().ConfigMaps("a")
		rival := func() {
			cm, err := maps.Get(t.Context(), RootConfigMap, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			cm = cm.DeepCopy()
			cm.Data[RootKey] = "the rival's"
			if _, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		client.ClearActions()
		for range 200 { // 20 seconds long
			rival()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		ours := writes(client) - 200
		if ours > writeBurst+20+1 || ours < 20 {
			t.Errorf("%d writes against 200", ours)
		}
		time.Sleep(2 * time.Second) // the rival rests
		synctest.Wait()
		root, _ := source.Roots()
		if cm, err := maps.Get(t.Context(), RootConfigMap, metav1.GetOptions{}); err != nil || !right(cm, root) {
			t.Errorf("not repaired after the rival stopped: %v", err)
		}
	})
}

// recorder keeps the reasons and messages of Events.
type recorder struct {
	mu       sync.Mutex
	reasons  []string
	messages []string
	more     chan struct{} // not nil while somebody waits for the next
}

func (r *recorder) Event(_ runtime.Object, eventtype, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reasons = append(r.reasons, eventtype+" "+reason)
	r.messages = append(r.messages, message)
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
}

func (r *recorder) take() (reasons, messages []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.reasons, r.messages = nil, nil }()
	return r.reasons, r.messages
}

func runWebhooks(t *testing.T, client *fake.Clientset, source RootSource) *recorder {
	t.Helper()
	return runWebhooksOf(t, WebhooksConfig{Kubernetes: client, Roots: source})
}

// runWebhooksOf runs a reconciler that leads, until the test ends.
func runWebhooksOf(t *testing.T, config WebhooksConfig) *recorder {
	t.Helper()
	events := &recorder{}
	config.Events, config.Log = events, testLog(t)
	reconciler, err := NewWebhooks(config)
	if err != nil {
		t.Fatal(err)
	}
	run(t, leader{reconciler})
	run(t, reconciler)
	synctest.Wait()
	return events
}

// leader runs as a reconciler's lease.
type leader struct{ *Webhooks }

func (l leader) Run(ctx context.Context) error { return l.Lead(ctx) }

func TestRepairIsToldAsAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(mutatingConfig("istio-sidecar-injector", "default", "rev.namespace.", "rev.object."))
		events := runWebhooks(t, client, newRoots(t))
		hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
		c, err := hooks.Get(t.Context(), "istio-sidecar-injector", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c = c.DeepCopy()
		c.Webhooks[1].ClientConfig.CABundle = []byte("garbage")
		if _, err := hooks.Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := events.reasons; len(got) != 2 || got[0] != "Normal CABundleSet" || got[1] != "Warning CABundleRepaired" {
			t.Errorf("events %v", got)
		}
	})
}

func TestFailedRepairIsTriedAgain(t *testing.T) {
	resource := admissionv1.Resource("mutatingwebhookconfigurations")
	for name, cause := range map[string]error{
		"conflict":    apierrors.NewConflict(resource, "istio-sidecar-injector", errors.New("the object has been modified")),
		"forbidden":   apierrors.NewForbidden(resource, "istio-sidecar-injector", errors.New("no")),
		"unreachable": errors.New("connection refused"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewClientset(mutatingConfig("istio-sidecar-injector", "default", "rev.namespace."))
				failures := 3
				client.PrependReactor("patch", "mutatingwebhookconfigurations", func(kubetesting.Action) (bool, runtime.Object, error) {
					failures--
					return failures >= 0, nil, cause
				})
				source := newRoots(t)
				runWebhooks(t, client, source)
				time.Sleep(time.Second)
				synctest.Wait()
				c, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "istio-sidecar-injector", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				root, _ := source.Roots()
				if string(c.Webhooks[0].ClientConfig.CABundle) != string(root) {
					t.Error("not repaired")
				}
			})
		})
	}
}
