package reconcile

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/selvage-mesh/selvage/internal/admission"
)

const injectorName = "istio-sidecar-injector"

// change writes the injector's configuration as somebody else, and leaves what managedFields would say of it.
func change(t *testing.T, client *fake.Clientset, manager string, bundle []byte) {
	t.Helper()
	hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	c, err := hooks.Get(t.Context(), injectorName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Webhooks[0].ClientConfig.CABundle = bundle
	c.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: manager, Operation: metav1.ManagedFieldsOperationApply,
		FieldsV1: metav1.NewFieldsV1(`{"f:webhooks":{"k:{\"name\":\"rev.namespace.sidecar-injector.istio.io\"}":{"f:clientConfig":{"f:caBundle":{}}}}}`)}}
	if _, err := hooks.Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func bundle(t *testing.T, client *fake.Clientset) string {
	t.Helper()
	c, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), injectorName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return string(c.Webhooks[0].ClientConfig.CABundle)
}

func patches(client *fake.Clientset) (n int) {
	for _, action := range client.Actions() {
		if action.GetVerb() == "patch" {
			n++
		}
	}
	return n
}

func TestARivalIsNamedThenAnsweredRarelyThenForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The newer fake manages fields, and takes a minute for this.
		client := fake.NewSimpleClientset(mutatingConfig(injectorName, "default", "rev.namespace."))
		source, registry := newRoots(t), prometheus.NewRegistry()
		events := runWebhooksOf(t, WebhooksConfig{Kubernetes: client, Roots: source, Registerer: registry})
		root, _ := source.Roots()
		events.take()

		fight := func() { change(t, client, "flux", []byte("old")); time.Sleep(time.Second); synctest.Wait() }
		for range 10 {
			fight()
			if bundle(t, client) != string(root) {
				t.Fatal("not repaired within a second")
			}
		}
		reasons, messages := events.take()
		if want := []string{"Warning CABundleRepaired", "Warning CABundleRepaired", "Warning CABundleRepaired", "Warning CABundleRepaired", "Warning RivalWriter"}; !slices.Equal(reasons, want) {
			t.Errorf("Events %v, want %v", reasons, want)
		}
		if last := messages[len(messages)-1]; !strings.Contains(last, "SEL0042: field manager flux (Apply) has overwritten the control plane's repair 5 times") || !strings.Contains(last, "docs/webhooks.md") {
			t.Errorf("the Event says %q", last)
		}
		if n := metric(t, registry, "selvage_webhook_overwritten_total"); n != 10 {
			t.Errorf("selvage_webhook_overwritten_total is %v, want 10", n)
		}

		for range 300 {
			fight()
		}
		if reasons, _ := events.take(); !slices.Contains(reasons, "Warning RivalWriterPersists") {
			t.Errorf("Events %v", reasons)
		}
		if metric(t, registry, "selvage_webhook_rival_pause_seconds") < 2 {
			t.Error("the metric does not say that repairs wait")
		}
		before := patches(client)
		for range 600 {
			fight()
		}
		if n := patches(client) - before; n < 5 || n > 30 {
			t.Errorf("%d writes in ten minutes of a rival that does not stop", n)
		}

		time.Sleep(5 * time.Minute) // the rival rests
		synctest.Wait()
		if bundle(t, client) != string(root) || metric(t, registry, "selvage_webhook_rival_pause_seconds") != 0 {
			t.Error("not repaired, or repairs wait, after the rival stopped")
		}
		if reasons, _ := events.take(); !slices.Equal(reasons, []string{"Normal RivalStopped"}) {
			t.Errorf("Events %v", reasons)
		}
		change(t, client, "flux", []byte("old"))
		if bundle(t, client) != string(root) {
			t.Error("a repair after the feud is not immediate")
		}
	})
}

func metric(t *testing.T, registry *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func TestARootChangeIsNobodysFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, source, registry := fake.NewClientset(mutatingConfig(injectorName, "default", "rev.namespace.")), newRoots(t), prometheus.NewRegistry()
		runWebhooksOf(t, WebhooksConfig{Kubernetes: client, Roots: source, Registerer: registry})
		for range 10 {
			source.renew(t)
			synctest.Wait()
			time.Sleep(time.Second)
		}
		if n := metric(t, registry, "selvage_webhook_overwritten_total"); n != 0 {
			t.Errorf("%v fights", n)
		}
	})
}

// Only the replica that leads writes; the others know what is wrong, and take over at once.
func TestOnlyTheLeaderWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, source, registry := fake.NewClientset(mutatingConfig(injectorName, "default", "rev.namespace.")), newRoots(t), prometheus.NewRegistry()
		reconciler, err := NewWebhooks(WebhooksConfig{Kubernetes: client, Roots: source, Registerer: registry, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		run(t, reconciler)
		synctest.Wait()
		if patches(client) != 0 || metric(t, registry, "selvage_webhook_wrong_entries") != 1 {
			t.Errorf("%d writes; wrong entries %v", patches(client), metric(t, registry, "selvage_webhook_wrong_entries"))
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = reconciler.Lead(ctx) }()
		synctest.Wait()
		if patches(client) != 1 || metric(t, registry, "selvage_webhook_wrong_entries") != 0 {
			t.Errorf("as the leader: %d writes", patches(client))
		}
		stop()
		<-done
		change(t, client, "vandal", nil)
		if patches(client) != 1 {
			t.Error("it writes after it has lost the lease")
		}
	})
}

// An admission policy may put another bundle into the very write, and then no event follows from which to learn it.
func TestAWriteThatWasOverruledIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, source, registry := fake.NewClientset(mutatingConfig(injectorName, "default", "rev.namespace.")), newRoots(t), prometheus.NewRegistry()
		overruling := true
		client.PrependReactor("patch", "mutatingwebhookconfigurations", func(action kubetesting.Action) (bool, runtime.Object, error) {
			if !overruling {
				return false, nil, nil
			}
			c, err := client.Tracker().Get(action.GetResource(), "", injectorName)
			return true, c, err
		})
		runWebhooksOf(t, WebhooksConfig{Kubernetes: client, Roots: source, Registerer: registry})
		time.Sleep(time.Minute)
		if bundle(t, client) != "" || metric(t, registry, "webhook_patch_failures_total") == 0 {
			t.Fatal("the test's policy does not overrule")
		}
		overruling = false
		time.Sleep(time.Minute)
		synctest.Wait()
		if root, _ := source.Roots(); bundle(t, client) != string(root) {
			t.Error("the write was not repeated")
		}
	})
}

// TestAConfigurationThatATagHasTakenIsNotMissing: `selvage revision tag set default --revision two` writes another revision into the
// default one's own configuration. A person has done that, and nothing is to be put back. When the tag's object then goes, it is missing.
func TestAConfigurationThatATagHasTakenIsNotMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, registry := fake.NewClientset(mutatingConfig(injectorName, "default", "rev.namespace.")), prometheus.NewRegistry()
		events := runWebhooksOf(t, WebhooksConfig{Kubernetes: client, Roots: newRoots(t), Registerer: registry,
			Expected: []admission.Key{{Kind: admission.Mutating, Name: injectorName}}})
		events.take()
		hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
		if err := hooks.Delete(t.Context(), injectorName, metav1.DeleteOptions{}); err != nil { // what the watch of one revision sees of it
			t.Fatal(err)
		}
		synctest.Wait()
		taken := mutatingConfig(injectorName, "two", "rev.namespace.")
		taken.Labels["istio.io/tag"] = "default"
		if err := client.Tracker().Add(taken); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if reasons, _ := events.take(); len(reasons) > 0 || metric(t, registry, "selvage_webhook_missing") != 0 {
			t.Errorf("told as missing: %v", reasons)
		}
		if err := client.Tracker().Delete(admissionv1.SchemeGroupVersion.WithResource("mutatingwebhookconfigurations"), "", injectorName); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if metric(t, registry, "selvage_webhook_missing") != 1 {
			t.Error("it has gone, and the metric does not say so")
		}
	})
}

func TestADeletedConfigurationIsToldAndNotMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, registry := fake.NewClientset(mutatingConfig(injectorName, "default", "rev.namespace.")), prometheus.NewRegistry()
		events := runWebhooksOf(t, WebhooksConfig{Kubernetes: client, Roots: newRoots(t), Registerer: registry,
			Expected: []admission.Key{{Kind: admission.Mutating, Name: injectorName}}})
		events.take()
		hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
		gone := func() {
			if err := hooks.Delete(t.Context(), injectorName, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		back := func() {
			if _, err := hooks.Create(t.Context(), mutatingConfig(injectorName, "default", "rev.namespace."), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		gone()
		time.Sleep(time.Second)
		back() // replaced
		time.Sleep(time.Minute)
		if reasons, _ := events.take(); slices.Contains(reasons, "Warning WebhookDeleted") || metric(t, registry, "selvage_webhook_missing") != 0 {
			t.Errorf("a replaced configuration is told as deleted: %v", reasons)
		}
		gone()
		time.Sleep(time.Hour)
		reasons, messages := events.take()
		if !slices.Equal(reasons, []string{"Warning WebhookDeleted"}) || !strings.Contains(messages[0], "SEL0043") || !strings.Contains(messages[0], "selvage install") {
			t.Errorf("Events %v: %v", reasons, messages)
		}
		if metric(t, registry, "selvage_webhook_missing") != 1 {
			t.Error("the metric does not say it")
		}
		if _, err := hooks.Get(t.Context(), injectorName, metav1.GetOptions{}); err == nil {
			t.Error("it was made again")
		}
		back()
		root := bundle(t, client)
		if metric(t, registry, "selvage_webhook_missing") != 0 || root == "" {
			t.Error("it is there again, and told as missing or not filled in")
		}
	})
}

// The label that says whose a configuration is was removed: it is there, so nobody may say that it does not exist.
func TestAConfigurationThatLostItsLabelIsToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, registry := fake.NewClientset(mutatingConfig(injectorName, "default", "rev.namespace.")), prometheus.NewRegistry()
		events := runWebhooksOf(t, WebhooksConfig{Kubernetes: client, Roots: newRoots(t), Registerer: registry,
			Expected: []admission.Key{{Kind: admission.Mutating, Name: injectorName}}})
		events.take()
		hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
		// A fake API server's watch has no selector: it shows what a real one hides.
		client.PrependReactor("get", "mutatingwebhookconfigurations", func(kubetesting.Action) (bool, runtime.Object, error) {
			c := mutatingConfig(injectorName, "default", "rev.namespace.")
			delete(c.Labels, "istio.io/rev")
			c.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl-label", Operation: metav1.ManagedFieldsOperationUpdate, Time: ptr.To(metav1.Now())}}
			return true, c, nil
		})
		if err := hooks.Delete(t.Context(), injectorName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		reasons, messages := events.take()
		if !slices.Equal(reasons, []string{"Warning WebhookLabelLost"}) {
			t.Fatalf("Events %v: %v", reasons, messages)
		}
		for _, want := range []string{"lost its label istio.io/rev=default", "kubectl-label", "kubectl label mutatingwebhookconfiguration " + injectorName + " istio.io/rev=default --overwrite"} {
			if !strings.Contains(messages[0], want) {
				t.Errorf("%q does not say %q", messages[0], want)
			}
		}
		if metric(t, registry, "selvage_webhook_missing") != 1 {
			t.Error("the metric does not say it")
		}
	})
}

// validation is a ValidationSource that a test sets.
type validation struct {
	mu      sync.Mutex
	working bool
	since   time.Time
	changed chan struct{}
}

func (v *validation) Validation() (bool, time.Time, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.working, v.since, v.changed
}

func (v *validation) set(working bool) {
	v.mu.Lock()
	v.working, v.since = working, time.Now()
	close(v.changed)
	v.changed = make(chan struct{})
	v.mu.Unlock()
	synctest.Wait()
}

func TestFailurePolicyIsFailOnlyWhileValidationWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const name = "istio-validator-istio-system"
		client := fake.NewClientset(&admissionv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"istio.io/rev": "default"}},
			Webhooks:   []admissionv1.ValidatingWebhook{{Name: "rev.validation.istio.io", FailurePolicy: ptr.To(admissionv1.Ignore)}, {Name: "validation.istio.io", FailurePolicy: ptr.To(admissionv1.Ignore)}},
		})
		proof := &validation{changed: make(chan struct{})}
		events := runWebhooksOf(t, WebhooksConfig{Kubernetes: client, Roots: newRoots(t), Validation: proof})
		policy := func() admissionv1.FailurePolicyType {
			t.Helper()
			c, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if *c.Webhooks[0].FailurePolicy != *c.Webhooks[1].FailurePolicy {
				t.Error("the entries differ")
			}
			return *c.Webhooks[0].FailurePolicy
		}
		if policy() != admissionv1.Ignore {
			t.Error("Fail without a proof")
		}
		proof.set(true)
		if policy() != admissionv1.Fail {
			t.Error("validation works, and the policy is Ignore")
		}
		proof.set(false)
		time.Sleep(20 * time.Second)
		if policy() != admissionv1.Fail {
			t.Error("a short failure made it Ignore")
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if policy() != admissionv1.Ignore {
			t.Error("validation does not work, and the policy stays Fail")
		}
		proof.set(true)
		if policy() != admissionv1.Fail {
			t.Error("it works again, and the policy stays Ignore")
		}
		if reasons, _ := events.take(); !slices.Equal(reasons, []string{"Normal CABundleSet", "Normal FailurePolicySet", "Normal FailurePolicySet", "Normal FailurePolicySet"}) {
			t.Errorf("Events %v", reasons)
		}
	})
}
