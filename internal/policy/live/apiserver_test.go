//go:build apiserver

package live_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/policy/live"
	"github.com/selvage-mesh/selvage/internal/reconcile"
)

// These tests change the cluster of SELVAGE_TEST_KUBECONFIG, a real API server that serves MutatingAdmissionPolicy; they need no node.

// TestWithoutPolicies: an installation without any, as on an API server that has none, is no reason to tell anybody.
func TestWithoutPolicies(t *testing.T) {
	m := newMesh(t, func(o *install.Options) { o.HeldWebhooks, o.Guards = false, nil })
	source := &roots{}
	root := source.renew(t)
	c := m.start(source)
	if s := c.until(policy.NotInstalled); s.Wrong() {
		t.Errorf("it is told as wrong: %+v", s)
	}
	m.eventually("the reconciler works without it", func() string { return m.allHave(root) })
	select {
	case e := <-c.events:
		t.Errorf("an Event: %s", e)
	default:
	}
}

// mesh is an installation of one revision whose control plane does not run, and clients of a person who may do anything.
type mesh struct {
	*testing.T
	config  *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
	rev     string
	options install.Options
}

// newMesh installs a revision named after the test.
func newMesh(t *testing.T, change func(*install.Options)) *mesh {
	t.Helper()
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("SELVAGE_TEST_KUBECONFIG is not set: it names the kubeconfig of an API server for tests, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	m := &mesh{T: t, config: config, client: kubernetes.NewForConfigOrDie(config), dynamic: dynamic.NewForConfigOrDie(config), rev: "r" + fmt.Sprint(time.Now().UnixNano())}
	m.options = install.Default("1.0.0")
	m.options.Revision, m.options.SkipCRDs = m.rev, true
	m.options.WebhookURL = "https://192.0.2.7:15017" // nobody is there: the webhooks are about their bundles here
	if change != nil {
		change(&m.options)
	}
	installer := m.installer()
	m.Cleanup(func() {
		if _, err := installer.Uninstall(context.Background(), install.RemoveOptions{Revision: m.rev, Purge: true}); err != nil {
			m.Error(err)
		}
	})
	if err := installer.Apply(t.Context(), m.options); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *mesh) installer() *install.Installer {
	m.Helper()
	i, err := install.New(install.Config{Kubernetes: m.client, Dynamic: m.dynamic, Progress: m.Output(), Timeout: time.Minute, Poll: 100 * time.Millisecond})
	if err != nil {
		m.Fatal(err)
	}
	return i
}

// asControlPlane gives clients with the rights of the installed control plane and no others.
func (m *mesh) asControlPlane() *rest.Config {
	config := rest.CopyConfig(m.config)
	config.Impersonate.UserName = "system:serviceaccount:istio-system:istiod-" + m.rev
	return config
}

// roots is a source whose root a test changes.
type roots struct {
	mu      sync.Mutex
	pem     []byte
	changed chan struct{}
}

func (r *roots) Roots() ([]byte, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
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
	if r.changed != nil {
		close(r.changed)
	}
	r.pem, r.changed = issuer.RootPEM(), make(chan struct{})
	return r.pem
}

// controlPlane is what holds a mesh's webhooks, running, with the rights that its installation gave it.
type controlPlane struct {
	*mesh
	roots    *roots
	registry *prometheus.Registry
	states   chan policy.State
	events   chan string
	stop     func()
}

func (c *controlPlane) Event(_ runtime.Object, kind, reason, message string) {
	c.events <- kind + " " + reason + ": " + message
}

func (m *mesh) start(r *roots) *controlPlane {
	m.Helper()
	config := m.asControlPlane()
	c := &controlPlane{mesh: m, roots: r, registry: prometheus.NewRegistry(), states: make(chan policy.State, 100), events: make(chan string, 100)}
	log := slog.New(slog.NewTextHandler(m.Output(), nil))
	client := kubernetes.NewForConfigOrDie(config)
	held, err := live.NewHeld(live.HeldConfig{Kubernetes: client, Dynamic: dynamic.NewForConfigOrDie(config), Manager: reconcile.BundleManager,
		Revision: m.rev, Roots: r, Report: func(s policy.State) { c.states <- s }, Events: c, Registerer: c.registry, Log: log})
	if err != nil {
		m.Fatal(err)
	}
	hooks, err := reconcile.NewWebhooks(reconcile.WebhooksConfig{Kubernetes: client, Revision: m.rev, Roots: held, Registerer: c.registry, Log: log})
	if err != nil {
		m.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{held.Run, held.Lead, hooks.Run, hooks.Lead} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				m.Error(err)
			}
		})
	}
	c.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	m.Cleanup(c.stop)
	return c
}

// until waits for a state.
func (c *controlPlane) until(reason policy.Reason) policy.State {
	c.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case s := <-c.states:
			if s.Reason == reason {
				return s
			}
			c.Logf("%+v", s)
		case <-timeout:
			c.Fatalf("the webhooks did not come to be %s within a minute", reason)
		}
	}
}

func (m *mesh) mutating() string   { return "istio-sidecar-injector-" + m.rev }
func (m *mesh) validating() string { return "istio-validator-" + m.rev + "-istio-system" }

// bundles are those of all entries of the revision's configurations, by configuration and entry.
func (m *mesh) bundles() map[string][]byte {
	m.Helper()
	out := map[string][]byte{}
	for _, name := range []string{m.mutating(), "selvage-probe-" + m.rev} {
		c, err := m.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(m.Context(), name, metav1.GetOptions{})
		if err != nil {
			m.Fatal(err)
		}
		for _, w := range c.Webhooks {
			out[name+" "+w.Name] = w.ClientConfig.CABundle
		}
	}
	v, err := m.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(m.Context(), m.validating(), metav1.GetOptions{})
	if err != nil {
		m.Fatal(err)
	}
	for _, w := range v.Webhooks {
		out[m.validating()+" "+w.Name] = w.ClientConfig.CABundle
	}
	return out
}

// eventually asks until the answer is "", for what the API server does in its own time and tells nobody.
func (m *mesh) eventually(what string, ask func() (pending string)) {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		pending := ask()
		if pending == "" {
			tick.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			m.Fatalf("%s: still not so after a minute: %s", what, pending)
		}
	}
}

// allHave reports which entry has another bundle, "" for none.
func (m *mesh) allHave(root []byte) string {
	for name, bundle := range m.bundles() {
		if !bytes.Equal(bundle, root) {
			return name
		}
	}
	return ""
}

var (
	hooksOf = map[string]schema.GroupVersionResource{
		"mutating":   admissionv1.SchemeGroupVersion.WithResource("mutatingwebhookconfigurations"),
		"validating": admissionv1.SchemeGroupVersion.WithResource("validatingwebhookconfigurations"),
	}
	policies = admissionv1.SchemeGroupVersion.WithResource("mutatingadmissionpolicies")
)

// withBundle gives an object as stored with other bundles in all its entries; nil leaves them out.
func withBundle(u *unstructured.Unstructured, bundle any) *unstructured.Unstructured {
	u = u.DeepCopy()
	list, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
	for _, w := range list {
		client := w.(map[string]any)["clientConfig"].(map[string]any)
		if delete(client, "caBundle"); bundle != nil {
			client["caBundle"] = bundle
		}
	}
	_ = unstructured.SetNestedSlice(u.Object, list, "webhooks")
	return u
}

// rendered is a configuration as an installer applies it.
func (m *mesh) rendered(name string) *unstructured.Unstructured {
	m.Helper()
	objects, err := install.Render(m.options)
	if err != nil {
		m.Fatal(err)
	}
	for _, u := range objects {
		if u.GetName() == name && strings.HasSuffix(u.GetKind(), "WebhookConfiguration") {
			return u
		}
	}
	m.Fatalf("an installation has no %s", name)
	return nil
}

// TestHeldWebhooks has one installation for all its parts: making and removing one is most of their time.
func TestHeldWebhooks(t *testing.T) {
	installed := newMesh(t, nil)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *mesh)
	}{
		{"the control plane cannot change what policies do", theControlPlaneCannotChangeWhatPoliciesDo},
		{"whoever writes, what is stored is right", whoeverWritesWhatIsStoredIsRight},
		{"the parameter comes before the objects", theParameterComesBeforeTheObjects},
		{"what is not ours is left alone", whatIsNotOursIsLeftAlone},
		{"what is wrong is told", whatIsWrongIsTold},
		{"no parameter blocks a write", noParameterBlocksAWrite},
	} {
		t.Run(part.name, func(t *testing.T) {
			m := *installed
			m.T = t
			part.run(t, &m)
			if err := m.installer().Apply(t.Context(), m.options); err != nil { // for the next one
				t.Fatal(err)
			}
		})
	}
}

// whoeverWritesWhatIsStoredIsRight: two hundred wipes, by kubectl's patch, a replacement, Helm 3's patch and a server-side apply with
// force, while the control plane is dead; a watch sees no wrong bundle.
func whoeverWritesWhatIsStoredIsRight(t *testing.T, m *mesh) {
	source := &roots{}
	root := source.renew(t)
	c := m.start(source)
	c.until(policy.ProvenHeld)
	m.eventually("bundles", func() string { return m.allHave(root) })
	if n := metric(t, c.registry, "selvage_webhooks_held"); n != 1 {
		t.Errorf("selvage_webhooks_held is %v", n)
	}
	c.stop()
	for kind, name := range map[string]string{"mutating": m.mutating(), "validating": m.validating()} {
		hooks := m.dynamic.Resource(hooksOf[kind])
		before, err := hooks.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		garbage := base64.StdEncoding.EncodeToString([]byte("garbage"))
		writers := []func() error{
			func() error {
				_, err := hooks.Patch(t.Context(), name, types.JSONPatchType, []byte(`[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`), metav1.PatchOptions{FieldManager: "kubectl-patch"})
				return err
			},
			func() error {
				now, err := hooks.Get(t.Context(), name, metav1.GetOptions{})
				if err == nil {
					_, err = hooks.Update(t.Context(), withBundle(now, nil), metav1.UpdateOptions{FieldManager: "kubectl-replace"})
				}
				return err
			},
			func() error {
				now, err := hooks.Get(t.Context(), name, metav1.GetOptions{})
				if err == nil {
					_, err = hooks.Update(t.Context(), withBundle(now, garbage), metav1.UpdateOptions{FieldManager: "an-old-istiod"})
				}
				return err
			},
			func() error {
				_, err := hooks.Apply(t.Context(), name, withBundle(m.rendered(name), garbage), metav1.ApplyOptions{FieldManager: "helm", Force: true})
				return err
			},
			func() error { // and takes the field away again
				_, err := hooks.Apply(t.Context(), name, m.rendered(name), metav1.ApplyOptions{FieldManager: "helm", Force: true})
				return err
			},
		}
		wrong := m.watchBundles(hooks, before, root)
		for n := range 100 {
			if err := writers[n%len(writers)](); err != nil {
				t.Fatalf("write %d of %s: %v", n, name, err)
			}
		}
		if bad := wrong(); len(bad) > 0 {
			t.Errorf("%s was stored with a wrong bundle %d times, first: %s", name, len(bad), bad[0])
		}
	}
}

// watchBundles watches a configuration. What it gives ends the watch and tells what was wrong.
func (m *mesh) watchBundles(hooks dynamic.ResourceInterface, from *unstructured.Unstructured, root []byte) (stop func() []string) {
	m.Helper()
	w, err := hooks.Watch(m.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + from.GetName(), ResourceVersion: from.GetResourceVersion()})
	if err != nil {
		m.Fatal(err)
	}
	want := base64.StdEncoding.EncodeToString(root)
	done, bad, seen := make(chan struct{}), []string(nil), 0
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			u, ok := e.Object.(*unstructured.Unstructured)
			if !ok {
				bad = append(bad, fmt.Sprintf("the watch broke: %v", e.Object))
				return
			}
			seen++
			list, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
			for _, h := range list {
				if got, _, _ := unstructured.NestedString(h.(map[string]any), "clientConfig", "caBundle"); got != want {
					bad = append(bad, fmt.Sprintf("%s of version %s: %.40q", h.(map[string]any)["name"], u.GetResourceVersion(), got))
				}
			}
			if u.GetAnnotations()["selvage-test/end"] != "" {
				return
			}
		}
	}()
	return func() []string {
		m.Helper()
		if _, err := hooks.Patch(m.Context(), from.GetName(), types.MergePatchType, []byte(`{"metadata":{"annotations":{"selvage-test/end":"1"}}}`), metav1.PatchOptions{}); err != nil {
			m.Fatal(err)
		}
		<-done
		w.Stop()
		if seen < 2 {
			m.Errorf("the watch saw %d writes of %s", seen, from.GetName())
		}
		return bad
	}
}

// metric is the sum of a metric over its labels.
func metric(t *testing.T, r *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return sum
}

// whatIsNotOursIsLeftAlone: another revision's configuration, an entry of somebody else's in ours, failurePolicy and deletion.
func whatIsNotOursIsLeftAlone(t *testing.T, m *mesh) {
	source := &roots{}
	root := source.renew(t)
	c := m.start(source)
	c.until(policy.ProvenHeld)
	m.eventually("bundles", func() string { return m.allHave(root) })
	c.stop()

	hooks := m.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	other, err := hooks.Get(t.Context(), m.mutating(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	other = other.DeepCopy()
	other.ObjectMeta = metav1.ObjectMeta{Name: "selvage-test-" + m.rev, Labels: map[string]string{"istio.io/rev": "other-" + m.rev}}
	other.Webhooks[0].ClientConfig.CABundle = []byte("theirs")
	t.Cleanup(func() { _ = hooks.Delete(context.Background(), other.Name, metav1.DeleteOptions{}) })
	if made, err := hooks.Create(t.Context(), other, metav1.CreateOptions{}); err != nil || string(made.Webhooks[0].ClientConfig.CABundle) != "theirs" {
		t.Errorf("another revision's configuration was changed: %v", err)
	}

	ours, err := hooks.Get(t.Context(), m.mutating(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stranger := *ours.Webhooks[0].DeepCopy()
	stranger.Name, stranger.ClientConfig.CABundle = "sidecar-injector.example.com", []byte("theirs")
	ignore := admissionv1.Ignore
	ours.Webhooks = append([]admissionv1.MutatingWebhook{stranger}, ours.Webhooks...)
	ours.Webhooks[1].FailurePolicy, ours.Webhooks[1].ClientConfig.CABundle = &ignore, nil
	got, err := hooks.Update(t.Context(), ours, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Webhooks[0].ClientConfig.CABundle) != "theirs" {
		t.Error("an entry of somebody else's was changed")
	}
	if *got.Webhooks[1].FailurePolicy != admissionv1.Ignore {
		t.Error("failurePolicy was put back: nobody could get rid of a dead control plane")
	}
	if !bytes.Equal(got.Webhooks[1].ClientConfig.CABundle, root) {
		t.Error("our own entry beside it is not held")
	}
	if err := hooks.Delete(t.Context(), m.mutating(), metav1.DeleteOptions{}); err != nil {
		t.Errorf("a configuration cannot be deleted: %v", err)
	}
	again := m.rendered(m.mutating())
	made, err := m.dynamic.Resource(hooksOf["mutating"]).Create(t.Context(), again, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, _, _ := unstructured.NestedSlice(made.Object, "webhooks")
	if got, _, _ := unstructured.NestedString(list[0].(map[string]any), "clientConfig", "caBundle"); got != base64.StdEncoding.EncodeToString(root) {
		t.Error("a configuration that is made again has no bundle at once")
	}
}

// theParameterComesBeforeTheObjects: roots change while the control plane runs, and no write is put back by the policy.
func theParameterComesBeforeTheObjects(t *testing.T, m *mesh) {
	source := &roots{}
	c := m.start(source)
	// A write that was queued twice may be under way still, of a bundle that the next change makes old.
	rest := func(root []byte) {
		m.eventually("the new bundle", func() string { return m.allHave(root) })
		attempts, quiet := -1.0, 0
		m.eventually("the end of what the change writes", func() string {
			now := metric(t, c.registry, "webhook_patch_attempts_total")
			if quiet++; now != attempts {
				attempts, quiet = now, 0
			}
			if quiet < 5 {
				return "it writes"
			}
			return ""
		})
	}
	root := source.renew(t)
	c.until(policy.ProvenHeld)
	rest(root)
	before := metric(t, c.registry, "webhook_patch_failures_total") // a start finds the parameter as the last control plane left it
	for range 5 {
		rest(source.renew(t))
	}
	if n := metric(t, c.registry, "webhook_patch_failures_total") - before; n != 0 {
		t.Errorf("%v writes were refused or put back by the policy", n)
	}
}

// noParameterBlocksAWrite: missing, empty, or no bundle at all, which only somebody can write who has changed the definition too.
func noParameterBlocksAWrite(t *testing.T, m *mesh) {
	source := &roots{}
	root := source.renew(t)
	c := m.start(source)
	c.until(policy.ProvenHeld)
	m.eventually("bundles", func() string { return m.allHave(root) })
	c.stop()
	parameters := m.dynamic.Resource(policy.ParameterResource)
	name := policy.HeldName(m.rev)
	set := func(bundle any) error {
		body, _ := json.Marshal(map[string]any{"spec": map[string]any{"caBundle": bundle}})
		_, err := parameters.Patch(t.Context(), name, types.MergePatchType, body, metav1.PatchOptions{})
		return err
	}
	for _, garbage := range []string{"", "not base64!", base64.StdEncoding.EncodeToString([]byte("no certificate"))} {
		if err := set(garbage); !apierrors.IsInvalid(err) {
			t.Errorf("a parameter %q was not refused: %v", garbage, err)
		}
	}
	hooks := m.dynamic.Resource(hooksOf["mutating"])
	wiped := func() string {
		now, err := hooks.Get(t.Context(), m.mutating(), metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		after, err := hooks.Update(t.Context(), withBundle(now, base64.StdEncoding.EncodeToString([]byte("mine"))), metav1.UpdateOptions{})
		if err != nil {
			t.Fatalf("a write was blocked: %v", err)
		}
		list, _, _ := unstructured.NestedSlice(after.Object, "webhooks")
		if got, _, _ := unstructured.NestedString(list[0].(map[string]any), "clientConfig", "caBundle"); got != base64.StdEncoding.EncodeToString([]byte("mine")) {
			return fmt.Sprintf("the policy has put %.20q in", got)
		}
		return ""
	}
	if err := set(nil); err != nil {
		t.Fatal(err)
	}
	m.eventually("an empty parameter does nothing", wiped)

	crds := m.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	loose := []byte(`[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/caBundle","value":{"type":"string"}}]`)
	if _, err := crds.Patch(t.Context(), policy.Definition().GetName(), types.JSONPatchType, loose, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, garbage := range []string{"not base64!", "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tA"} {
		m.eventually("a loose definition", func() string {
			if err := set(garbage); err != nil {
				return err.Error()
			}
			return ""
		})
		m.eventually("garbage does nothing", wiped)
	}
	if err := parameters.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("no parameter does nothing", wiped)
	if err := crds.Delete(t.Context(), policy.Definition().GetName(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("no definition does nothing", func() string {
		if _, err := crds.Get(t.Context(), policy.Definition().GetName(), metav1.GetOptions{}); err == nil {
			return "the definition is still there"
		}
		return wiped()
	})
	// Installed again, everything is as it was.
	if err := m.installer().Apply(t.Context(), m.options); err != nil {
		t.Fatal(err)
	}
	again := m.start(source)
	again.until(policy.ProvenHeld)
	m.eventually("bundles", func() string { return m.allHave(root) })
	again.stop()
}

// whatIsWrongIsTold: a policy that somebody deletes, and a parameter that somebody changes or deletes.
func whatIsWrongIsTold(t *testing.T, m *mesh) {
	source := &roots{}
	root := source.renew(t)
	c := m.start(source)
	c.until(policy.ProvenHeld)
	parameters := m.dynamic.Resource(policy.ParameterResource)
	name := policy.HeldName(m.rev)

	stranger := base64.StdEncoding.EncodeToString((&roots{}).renew(t))
	if _, err := parameters.Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":{"caBundle":"`+stranger+`"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("the parameter is put back", func() string {
		u, err := parameters.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if got, _, _ := unstructured.NestedString(u.Object, "spec", "caBundle"); got != base64.StdEncoding.EncodeToString(root) {
			return "it has another bundle"
		}
		return ""
	})
	if err := m.dynamic.Resource(policies).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("it is told that the policy is not in force", func() string {
		root = source.renew(t) // which makes the control plane look
		select {
		case s := <-c.states:
			if s.Reason == policy.Inactive && s.Wrong() {
				return ""
			}
			return string(s.Reason)
		case <-time.After(time.Second):
			return "no other state"
		}
	})
	if e := <-c.events; !strings.HasPrefix(e, "Warning WebhooksNotHeld: SEL0046: ") || !strings.Contains(e, "selvage install") || !strings.Contains(e, m.mutating()) {
		t.Errorf("the Event is %q", e)
	}
	m.eventually("the reconciler goes on without it", func() string { return m.allHave(root) })
	if err := m.installer().Apply(t.Context(), m.options); err != nil {
		t.Fatal(err)
	}
	c.until(policy.ProvenHeld)
	if e := <-c.events; !strings.HasPrefix(e, "Normal WebhooksHeld: ") {
		t.Errorf("the Event is %q", e)
	}
	if err := parameters.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.until(policy.NotInstalled)
	if e := <-c.events; !strings.HasPrefix(e, "Warning WebhooksNotHeld: SEL0046: there is no AdmissionParameter") {
		t.Errorf("the Event is %q", e)
	}
}

// theControlPlaneCannotChangeWhatPoliciesDo: its rights end at the contents of its own parameters.
func theControlPlaneCannotChangeWhatPoliciesDo(t *testing.T, m *mesh) {
	own := dynamic.NewForConfigOrDie(m.asControlPlane())
	if _, err := own.Resource(policies).Patch(t.Context(), policy.HeldName(m.rev), types.MergePatchType, []byte(`{}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("it may change a policy: %v", err)
	}
	objects := policy.Held("another-" + m.rev)
	made, err := runtime.DefaultUnstructuredConverter.ToUnstructured(objects[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := own.Resource(policy.ParameterResource).Create(t.Context(), &unstructured.Unstructured{Object: made}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("it may make parameters: %v", err)
	}
	if _, err := own.Resource(policy.ParameterResource).Patch(t.Context(), policy.HeldName("another-"+m.rev), types.MergePatchType, []byte(`{}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("it may change another revision's parameter: %v", err)
	}
	roles, err := m.client.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{LabelSelector: "istio.io/rev=" + m.rev})
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range roles.Items {
		for _, rule := range role.Rules {
			if ok := rule.APIGroups[0] != policy.ParameterKind.Group || len(rule.ResourceNames) > 0; !ok {
				t.Errorf("ClusterRole %s: %v", role.Name, rbacv1.PolicyRule(rule))
			}
		}
	}
}
