//go:build apiserver

package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"github.com/selvage-mesh/selvage/internal/admission"
	"github.com/selvage-mesh/selvage/internal/diag"
)

// These tests need a real API server: its admission of patches, its field management and its RBAC are what they are about.
//
//	SELVAGE_TEST_KUBECONFIG=.lab/kubeconfig go test -tags apiserver ./internal/reconcile ./internal/ca

// adminConfig is the cluster of the environment.
func adminConfig(t testing.TB) *rest.Config {
	t.Helper()
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("needs an API server: set SELVAGE_TEST_KUBECONFIG to the kubeconfig of a cluster that may be changed, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 500, 1000
	return config
}

func client(t testing.TB, config *rest.Config) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leastRights is a client that may do what the rules in the package's documentation grant and nothing else.
func leastRights(t testing.TB, config *rest.Config, rules []rbacv1.PolicyRule) kubernetes.Interface {
	t.Helper()
	admin, name := client(t, config), "selvage-test-"+strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: name}},
	}
	drop := func() {
		_ = admin.RbacV1().ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{})
		_ = admin.RbacV1().ClusterRoleBindings().Delete(context.Background(), name, metav1.DeleteOptions{})
	}
	drop()
	t.Cleanup(drop)
	if _, err := admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	as := rest.CopyConfig(config)
	as.Impersonate.UserName = name
	return client(t, as)
}

var webhookRules = []rbacv1.PolicyRule{{
	APIGroups: []string{"admissionregistration.k8s.io"},
	Resources: []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"},
	Verbs:     []string{"list", "watch", "patch"},
}}

// webhookTest is a configuration of an own revision and the reconciler of that revision, with least rights.
type webhookTest struct {
	*testing.T
	admin    kubernetes.Interface
	name     string
	roots    *roots
	registry *prometheus.Registry
}

func newWebhookTest(t *testing.T, prefixes ...string) *webhookTest {
	config := adminConfig(t)
	w := &webhookTest{T: t, admin: client(t, config), name: "selvage-test-" + strings.ToLower(t.Name()), roots: newRoots(t), registry: prometheus.NewRegistry()}
	drop := func() {
		_ = w.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), w.name, metav1.DeleteOptions{})
	}
	drop()
	t.Cleanup(drop)
	w.apply("helm", prefixes...)
	reconciler, err := NewWebhooks(WebhooksConfig{
		Kubernetes: leastRights(t, config, webhookRules), Revision: w.name, Roots: w.roots, Registerer: w.registry, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, leader{reconciler})
	run(t, reconciler)
	return w
}

// apply writes the configuration by server-side apply, as Helm 4 or Flux.
func (w *webhookTest) apply(manager string, prefixes ...string) {
	w.Helper()
	data, err := json.Marshal(mutatingConfig(w.name, w.name, prefixes...))
	if err != nil {
		w.Fatal(err)
	}
	_, err = w.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(w.Context(), w.name, types.ApplyPatchType, data,
		metav1.PatchOptions{FieldManager: manager, Force: ptr.To(true)})
	if err != nil {
		w.Fatalf("apply as %s: %v", manager, err)
	}
}

func (w *webhookTest) get() *admissionv1.MutatingWebhookConfiguration {
	w.Helper()
	c, err := w.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(w.Context(), w.name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// until watches the configuration until it is as wanted.
func (w *webhookTest) until(what string, wanted func(*admissionv1.MutatingWebhookConfiguration) bool) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	watcher, err := w.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + w.name})
	if err != nil {
		w.Fatal(err)
	}
	defer watcher.Stop()
	var last any
	for event := range watcher.ResultChan() {
		last = event.Object
		if c, ok := event.Object.(*admissionv1.MutatingWebhookConfiguration); ok && event.Type != watch.Deleted && wanted(c) {
			return
		}
	}
	w.Fatalf("%s: did not happen; last seen: %+v", what, last)
}

func (w *webhookTest) repaired() {
	w.Helper()
	root, _ := w.roots.Roots()
	w.until("every entry has the root", func(c *admissionv1.MutatingWebhookConfiguration) bool {
		for _, hook := range c.Webhooks {
			if !bytes.Equal(hook.ClientConfig.CABundle, root) {
				return false
			}
		}
		return len(c.Webhooks) > 0
	})
}

var all = []string{"rev.namespace.", "rev.object.", "namespace.", "object."}

func TestEveryDriftIsRepaired(t *testing.T) {
	w := newWebhookTest(t, all...)
	w.repaired()
	hooks := w.admin.AdmissionregistrationV1().MutatingWebhookConfigurations()
	drift := func(change func(*admissionv1.MutatingWebhookConfiguration)) {
		t.Helper()
		for {
			c := w.get()
			change(c)
			_, err := hooks.Update(t.Context(), c, metav1.UpdateOptions{FieldManager: "vandal"})
			if err == nil {
				break
			}
			if !apierrors.IsConflict(err) {
				t.Fatal(err)
			}
		}
		w.repaired()
	}
	other := newRoots(t).renew(t)
	drift(func(c *admissionv1.MutatingWebhookConfiguration) { c.Webhooks[2].ClientConfig.CABundle = nil })
	drift(func(c *admissionv1.MutatingWebhookConfiguration) {
		for i := range c.Webhooks {
			c.Webhooks[i].ClientConfig.CABundle = other
		}
	})
	drift(func(c *admissionv1.MutatingWebhookConfiguration) {
		c.Webhooks[0].ClientConfig.CABundle = []byte("garbage")
	})

	if err := hooks.Delete(t.Context(), w.name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := hooks.Create(t.Context(), mutatingConfig(w.name, w.name, all...), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.repaired()
	w.roots.renew(t)
	w.repaired()
}

func TestRepairOwnsCABundleOnlyAndFightsNoInstaller(t *testing.T) {
	w := newWebhookTest(t, all...)
	w.repaired()
	owned := ""
	for _, m := range w.get().ManagedFields {
		if m.Manager == BundleManager {
			owned = string(m.FieldsV1.GetRawBytes())
		}
	}
	var fields struct {
		Webhooks map[string]map[string]map[string]struct{} `json:"f:webhooks"`
	}
	if err := json.Unmarshal([]byte(owned), &fields); err != nil || len(fields.Webhooks) != len(all) {
		t.Fatalf("owns %s (%v)", owned, err)
	}
	if rest := strings.ReplaceAll(owned, `{"f:clientConfig":{"f:caBundle":{}}}`, ""); strings.Contains(rest, "f:name") || strings.Contains(rest, "f:clientConfig") || strings.Contains(rest, `"."`) {
		t.Errorf("owns more than caBundle: %s", owned)
	}
	// The installer applies the same again: nothing changes, and nobody writes.
	before := w.get().ResourceVersion
	w.apply("helm", all...)
	root, _ := w.roots.Roots()
	if c := w.get(); !bytes.Equal(c.Webhooks[0].ClientConfig.CABundle, root) || c.ResourceVersion != before {
		t.Errorf("an installer that changes nothing moved the object from version %s to %s", before, c.ResourceVersion)
	}
	// It takes entries away, and adds one.
	w.apply("helm", "rev.namespace.", "added.")
	if c := w.get(); len(c.Webhooks) != 2 {
		t.Errorf("%d entries are left, want 2", len(c.Webhooks))
	}
	w.repaired()
}

func TestRivalThatWritesInALoopMakesNoWriteStorm(t *testing.T) {
	w := newWebhookTest(t, all...)
	w.repaired()
	hooks := w.admin.AdmissionregistrationV1().MutatingWebhookConfigurations()
	wipe := []byte(`[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":""}]`)
	const drifts = 100
	start := time.Now()
	for range drifts {
		if _, err := hooks.Patch(t.Context(), w.name, types.JSONPatchType, wipe, metav1.PatchOptions{FieldManager: "rival"}); err != nil {
			t.Fatal(err)
		}
	}
	allowed := writeBurst + writesPerSecond*time.Since(start).Seconds() + 1
	if n := w.attempts(); n > allowed {
		t.Errorf("%g writes against a rival's %d, at most %g are allowed", n, drifts, allowed)
	}
	w.repaired() // once the rival rests
}

// attempts is webhook_patch_attempts_total of the configuration.
func (w *webhookTest) attempts() float64 {
	w.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "webhook_patch_attempts_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return 0
}

// A patch for an object or an entry that is gone changes nothing.
func TestStalePatchChangesNothing(t *testing.T) {
	w := newWebhookTest(t, "rev.namespace.")
	w.repaired()
	observed := mutatingConfiguration(w.get())
	reconciler, err := NewWebhooks(WebhooksConfig{Kubernetes: w.admin, Roots: w.roots, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	patch := patchOf(observed, []byte("garbage"))
	patch.UID = "another"
	if err := reconciler.write(t.Context(), patch); !apierrors.IsInvalid(err) {
		t.Errorf("another object of the same name: %v", err)
	}
	patch = patchOf(observed, []byte("garbage"))
	patch.Entries[0].Name = "gone.sidecar-injector.istio.io"
	if err := reconciler.write(t.Context(), patch); !apierrors.IsInvalid(err) {
		t.Errorf("an entry that is gone: %v", err)
	}
	patch.Name = "selvage-test-not-there"
	if err := reconciler.write(t.Context(), patch); !apierrors.IsNotFound(err) {
		t.Errorf("an object that is gone: %v", err)
	}
	if c := w.get(); len(c.Webhooks) != 1 || bytes.Equal(c.Webhooks[0].ClientConfig.CABundle, []byte("garbage")) {
		t.Errorf("%+v", c.Webhooks)
	}
}

var rootRules = []rbacv1.PolicyRule{
	{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list", "watch"}},
	{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{RootConfigMap}, Verbs: []string{"list", "watch", "create", "patch"}},
}

func TestRootIsInEveryNamespace(t *testing.T) {
	config := adminConfig(t)
	admin := client(t, config)
	source := newRoots(t)
	events := &recorder{}
	reconciler, err := NewRoots(RootsConfig{Kubernetes: leastRights(t, config, rootRules), Roots: source, Events: events, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	run(t, reconciler)
	ns, err := admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "selvage-test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}) })
	maps := admin.CoreV1().ConfigMaps(ns.Name)
	until := func(what string) *corev1.ConfigMap {
		t.Helper()
		root, _ := source.Roots()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		watcher, err := maps.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + RootConfigMap})
		if err != nil {
			t.Fatal(err)
		}
		defer watcher.Stop()
		for event := range watcher.ResultChan() {
			if cm, ok := event.Object.(*corev1.ConfigMap); ok && event.Type != watch.Deleted && right(cm, root) {
				return cm
			}
		}
		t.Fatalf("%s: did not happen", what)
		return nil
	}
	cm := until("made with the namespace")

	cm.Data[RootKey] = "garbage"
	cm.Data["other"] = "stays"
	if _, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if cm = until("an edit is repaired"); cm.Data["other"] != "stays" {
		t.Error("another's key was dropped")
	}
	delete(cm.Labels, "istio.io/config")
	if _, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("the labels are repaired")
	if err := maps.Delete(t.Context(), RootConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("a deletion is repaired")
	source.renew(t)
	until("a new root is distributed")

	// Nobody but a person can mend an immutable one. It is told, and no more once it is deleted.
	body := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"istio-ca-root-cert"},"immutable":true,"data":{"root-cert.pem":"garbage"}}`)
	if _, err := maps.Patch(t.Context(), RootConfigMap, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: "somebody", Force: ptr.To(true)}); err != nil {
		t.Fatal(err)
	}
	ofNamespace := func() (told []diag.Problem, changed <-chan struct{}) {
		list, changed := reconciler.Problems()
		return slices.DeleteFunc(list, func(p diag.Problem) bool { return p.Object.Namespace != ns.Name }), changed
	}
	wait := func(what string, want int) []diag.Problem {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			told, changed := ofNamespace()
			if len(told) == want {
				return told
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%s: %v", what, told)
			}
		}
	}
	p := wait("an immutable ConfigMap", 1)[0]
	if p.Code != diag.RootNotDistributed || !strings.Contains(p.Detail, "immutable") || !strings.Contains(p.Hint, "kubectl -n "+ns.Name+" delete configmap istio-ca-root-cert") {
		t.Errorf("%v", p)
	}
	events.await(t, "Warning RootNotDistributed") // told after it is known
	if err := maps.Delete(t.Context(), RootConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("one that was immutable is deleted")
	wait("after that", 0)

	for _, system := range systemNamespaces[:3] {
		if _, err := admin.CoreV1().ConfigMaps(system).Get(t.Context(), RootConfigMap, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("namespace %s: %v", system, err)
		}
	}
}

func patchOf(observed admission.Configuration, root []byte) admission.Patch {
	return admission.Plan([]admission.Configuration{observed}, admission.Want{Revision: observed.Labels["istio.io/rev"], Root: root}).Patches[0]
}

// await waits for an Event of that type and reason.
func (r *recorder) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		if slices.Contains(r.reasons, want) {
			r.mu.Unlock()
			return
		}
		if r.more == nil {
			r.more = make(chan struct{})
		}
		more := r.more
		r.mu.Unlock()
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("no Event %q", want)
		}
	}
}
