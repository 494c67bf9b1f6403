package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

const (
	pageRevision = "asm-1234-1" // that of the page this project began with
	injector     = "istio-sidecar-injector-" + pageRevision
	validator    = "istio-validator-" + pageRevision + "-istio-system"
)

// hooks are the webhook configurations of a lab, read and written as somebody else than the control plane does.
type hooks struct {
	testing.TB
	client dynamic.Interface
	root   string // of the mesh, in base64, as the API shows it
}

func newHooks(t testing.TB, l *lab) *hooks {
	t.Helper()
	client, err := dynamic.NewForConfig(l.Config)
	if err != nil {
		t.Fatal(err)
	}
	return &hooks{TB: t, client: client}
}

func (h *hooks) of(name string) dynamic.ResourceInterface {
	resource := "mutatingwebhookconfigurations"
	if strings.HasPrefix(name, "istio-validator") {
		resource = "validatingwebhookconfigurations"
	}
	return h.client.Resource(schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: resource})
}

func (h *hooks) get(name string) *unstructured.Unstructured {
	h.Helper()
	u, err := h.of(name).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		h.Fatal(err)
	}
	return u
}

func entriesOf(u *unstructured.Unstructured) (out []map[string]any) {
	list, _ := u.Object["webhooks"].([]any)
	for _, e := range list {
		out = append(out, e.(map[string]any))
	}
	return out
}

func bundleOf(e map[string]any) string {
	s, _, _ := unstructured.NestedString(e, "clientConfig", "caBundle")
	return s
}

// right reports whether every entry has the mesh's root, and a validator's refuses what it cannot check.
func (h *hooks) right(u *unstructured.Unstructured) bool {
	for _, e := range entriesOf(u) {
		if b := bundleOf(e); b == "" || h.root != "" && b != h.root || u.GetKind() == "ValidatingWebhookConfiguration" && e["failurePolicy"] != "Fail" {
			return false
		}
	}
	return len(entriesOf(u)) > 0
}

// settle waits until the configuration is right.
func (h *hooks) settle(name string) {
	h.Helper()
	eventually(h, name+" right", func(ctx context.Context) string {
		u, err := h.of(name).Get(ctx, name, metav1.GetOptions{})
		if err != nil || !h.right(u) {
			return fmt.Sprintf("%v, %v", err, u)
		}
		return ""
	})
}

// repaired makes a drift and gives how long it took, from the beginning of the bad write to the event of the repaired object.
func (h *hooks) repaired(name string, drift func()) time.Duration {
	h.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	events, err := h.of(name).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		h.Fatal(err)
	}
	defer events.Stop()
	begin, wrong := time.Now(), false
	go drift()
	for e := range events.ResultChan() {
		u, ok := e.Object.(*unstructured.Unstructured)
		switch {
		case !ok:
		case e.Type == watch.Deleted || !h.right(u):
			wrong = true
		case wrong:
			return time.Since(begin)
		}
	}
	h.Errorf("%s was not repaired within a minute (it was wrong: %v)", name, wrong)
	return time.Since(begin)
}

// update changes a configuration as a script does that reads, changes and writes.
func (h *hooks) update(name, manager string, change func(u *unstructured.Unstructured)) {
	for {
		u, err := h.of(name).Get(context.Background(), name, metav1.GetOptions{})
		if err == nil {
			change(u)
			_, err = h.of(name).Update(context.Background(), u, metav1.UpdateOptions{FieldManager: manager})
		}
		if !apierrors.IsConflict(err) {
			if err != nil {
				h.Error(err)
			}
			return
		}
	}
}

// each changes entries; only has their numbers, none for all.
func each(u *unstructured.Unstructured, change func(e map[string]any), only ...int) {
	list := entriesOf(u)
	all := make([]any, len(list))
	for i, e := range list {
		if len(only) == 0 || slices.Contains(only, i) {
			change(e)
		}
		all[i] = e
	}
	u.Object["webhooks"] = all
}

func setBundle(value any) func(map[string]any) {
	return func(e map[string]any) {
		client := e["clientConfig"].(map[string]any)
		if client["caBundle"] = value; value == nil {
			delete(client, "caBundle")
		}
	}
}

func setPolicy(value string) func(map[string]any) {
	return func(e map[string]any) { e["failurePolicy"] = value }
}

// fresh is a configuration as its manifest has it, without what the API server and the control plane added.
func fresh(u *unstructured.Unstructured, bundle any) *unstructured.Unstructured {
	out := u.DeepCopy()
	unstructured.RemoveNestedField(out.Object, "metadata", "managedFields")
	for _, field := range []string{"uid", "resourceVersion", "generation", "creationTimestamp"} {
		unstructured.RemoveNestedField(out.Object, "metadata", field)
	}
	each(out, setBundle(bundle))
	if out.GetKind() == "ValidatingWebhookConfiguration" {
		each(out, setPolicy("Ignore"))
	}
	return out
}

func (h *hooks) apply(u *unstructured.Unstructured, manager string) {
	if _, err := h.of(u.GetName()).Apply(context.Background(), u.GetName(), u, metav1.ApplyOptions{FieldManager: manager, Force: true}); err != nil {
		h.Error(err)
	}
}

func (h *hooks) recreate(u *unstructured.Unstructured) {
	if err := h.of(u.GetName()).Delete(context.Background(), u.GetName(), metav1.DeleteOptions{}); err != nil {
		h.Error(err)
	}
	if _, err := h.of(u.GetName()).Create(context.Background(), u, metav1.CreateOptions{}); err != nil {
		h.Error(err)
	}
}

func (h *hooks) patch(name string, kind types.PatchType, body string) {
	if _, err := h.of(name).Patch(context.Background(), name, kind, []byte(body), metav1.PatchOptions{FieldManager: "script"}); err != nil {
		h.Error(err)
	}
}

// kubectl runs a command on a manifest.
func (h *hooks) kubectl(l *lab, u *unstructured.Unstructured, args ...string) {
	data, err := json.Marshal(u.Object)
	if err != nil {
		h.Error(err)
		return
	}
	if _, stderr, code := command(h, bytes.NewReader(data), bin("kubectl"), append([]string{"--kubeconfig", l.kubeconfig()}, args...)...); code != 0 {
		h.Error(stderr)
	}
}

// drift is one way in which a configuration goes wrong.
type drift struct {
	name, object string
	do           func()
}

// drifts are the ways; other is another root, in base64.
func (h *hooks) drifts(l *lab, other string) []drift {
	manifest, checker := fresh(h.get(injector), nil), fresh(h.get(validator), nil)
	garbage := "Z2FyYmFnZQ=="
	update := func(name string, change func(map[string]any), only ...int) func() {
		return func() {
			h.update(name, "script", func(u *unstructured.Unstructured) { each(u, change, only...) })
		}
	}
	both := func(e map[string]any) { setBundle(nil)(e); setPolicy("Ignore")(e) }
	return []drift{
		{"one entry is emptied", injector, update(injector, setBundle(nil), 1)},
		{"all entries are emptied", injector, update(injector, setBundle(nil))},
		{"garbage", injector, update(injector, setBundle(garbage))},
		{"another root", injector, update(injector, setBundle(other))},
		{"another root in one entry", injector, update(injector, setBundle(other), 0)},
		{"emptied by a JSON patch", injector, func() {
			h.patch(injector, types.JSONPatchType, `[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`)
		}},
		{"another root by a strategic-merge patch", injector, func() {
			h.patch(injector, types.MergePatchType, string(must(json.Marshal(map[string]any{"webhooks": fresh(h.get(injector), other).Object["webhooks"]}))))
		}},
		{"kubectl replace", injector, func() { h.kubectl(l, manifest, "replace", "-f", "-") }},
		{"kubectl apply of a manifest with another root", injector, func() { h.kubectl(l, fresh(manifest, other), "apply", "-f", "-") }},
		{"kubectl apply of a manifest with an empty bundle", injector, func() { h.kubectl(l, fresh(manifest, ""), "apply", "-f", "-") }},
		{"server-side apply with force", injector, func() { h.apply(fresh(manifest, other), "flux") }},
		{"server-side apply with force, without the bundle that it had", injector, func() { h.apply(fresh(manifest, other), "argocd-controller"); h.apply(manifest, "argocd-controller") }},
		{"deleted and created", injector, func() { h.recreate(manifest) }},
		{"deleted and created with another root", injector, func() { h.recreate(fresh(manifest, other)) }},
		{"the label is taken off, the bundle emptied, the label put back", injector, func() {
			h.update(injector, "script", func(u *unstructured.Unstructured) { u.SetLabels(nil); each(u, setBundle(nil)) })
			h.update(injector, "script", func(u *unstructured.Unstructured) { u.SetLabels(manifest.GetLabels()) })
		}},
		{"validator: emptied", validator, update(validator, setBundle(nil))},
		{"validator: another root in one entry", validator, update(validator, setBundle(other), 1)},
		{"validator: failurePolicy Ignore", validator, update(validator, setPolicy("Ignore"))},
		{"validator: emptied and Ignore", validator, update(validator, both)},
		{"validator: deleted and created", validator, func() { h.recreate(checker) }},
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// hostile re-applies a configuration with another root as a GitOps tool does, until the test ends; it gives how often so far.
func (h *hooks) hostile(name, other string, every time.Duration) (count func() int) {
	ctx, stop := context.WithCancel(context.Background())
	done, n := make(chan struct{}), make(chan int, 1)
	n <- 0
	old := fresh(h.get(name), other)
	go func() {
		defer close(done)
		for tick := time.NewTicker(every); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				h.apply(old, "helm-controller")
				n <- <-n + 1
			}
		}
	}()
	h.Cleanup(func() { stop(); <-done })
	return func() int { i := <-n; n <- i; return i }
}

// repairing lets the API server not hold the webhooks (internal/policy/live has the tests of that): what is repaired must go wrong first.
const repairing = "--held-webhooks=false"

// two control planes of different revisions, both right, installed with held.
func twoPlanes(t testing.TB, held string) (l *lab, h *hooks, first, second *plane) {
	l = bare(t)
	first = l.startPlane(t, pageRevision, held)
	second = l.startPlane(t, "asm-2", "--skip-crds", held)
	first.ready(t)
	second.ready(t)
	h = newHooks(t, l)
	for _, name := range []string{injector, validator, "istio-sidecar-injector-asm-2"} {
		h.settle(name)
	}
	h.root = bundleOf(entriesOf(h.get(injector))[0])
	return l, h, first, second
}

// TestWebhooksStayRight runs two control planes of different revisions against one API server.
func TestWebhooksStayRight(t *testing.T) {
	l, h, first, second := twoPlanes(t, repairing)
	t.Run("an unchanged cluster is not written", func(t *testing.T) { untouched(t, first, second) })
	t.Run("the root changes, and every pod gets its sidecar", func(t *testing.T) { rootChanges(t, l, h.in(t)) })
	h.root = bundleOf(entriesOf(h.get(injector))[0])
	t.Run("two writers of a validator", func(t *testing.T) { twoWriters(t, l, h.in(t)) })
	t.Run("every fault is repaired or told", func(t *testing.T) { everyFault(t, l, h.in(t), first, second) })
}

// in is h for a part of a test.
func (h *hooks) in(t testing.TB) *hooks { return &hooks{TB: t, client: h.client, root: h.root} }

// everyFault injects each fault once while, all along, a writer puts an old root into the other control plane's webhook.
func everyFault(t *testing.T, l *lab, h *hooks, first, second *plane) {
	before := map[*plane]map[string]int{first: first.written(), second: second.written()}
	other := strings.TrimSpace(l.kubectl(t, "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	h.pagesCommand(l)

	hostile, begin := h.hostile("istio-sidecar-injector-asm-2", other, time.Second), time.Now()
	all := h.drifts(l, other)
	for _, d := range all {
		t.Logf("%-65s repaired after %s", d.name, h.repaired(d.object, d.do).Round(100*time.Microsecond))
		h.settle(d.object)
	}
	// Deleted for good: told, and not made again; the installation restores it.
	if err := h.of(injector).Delete(t.Context(), injector, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	event := l.event(t, injector, "WebhookDeleted")
	if _, err := h.of(injector).Get(t.Context(), injector, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the deleted configuration was made again: %v", err)
	}
	t.Logf("deleted: %s", event)
	t.Logf("rival:   %s", l.event(t, "istio-sidecar-injector-asm-2", "RivalWriter"))

	ours, theirs, fights, seconds := first.since(before[first]), second.since(before[second]), hostile(), int(time.Since(begin).Seconds())
	t.Logf("%d drifts in %d s: writes of %s %v; of asm-2 %v against %d of its rival", len(all), seconds, pageRevision, ours, theirs, fights)
	if n := ours["PATCH mutatingwebhookconfigurations"] + ours["PATCH validatingwebhookconfigurations"]; n > 3*len(all)+10 {
		t.Errorf("%d writes for %d drifts", n, len(all))
	}
	if n := theirs["PATCH mutatingwebhookconfigurations"]; n > 20+seconds+5 {
		t.Errorf("%d writes in %d s against a rival", n, seconds)
	}
}

// pagesCommand runs the command of the page that this project began with, before and after the bundle is wiped.
func (h *hooks) pagesCommand(l *lab) {
	h.Helper()
	read := func() string {
		return run(h, nil, bin("kubectl"), "--kubeconfig", l.kubeconfig(), "get", "mutatingwebhookconfigurations.admissionregistration.k8s.io",
			"istio-sidecar-injector-asm-1234-1", `-o=jsonpath={.webhooks[0].clientConfig.caBundle}`)
	}
	before := read()
	took := h.repaired(injector, func() {
		h.patch(injector, types.JSONPatchType, `[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":""}]`)
	})
	after := read()
	if before == "" || after != before {
		h.Errorf("the page's command prints %q before and %q after", before, after)
	}
	h.Logf("the page's command prints %d characters (%.24s…) before the bundle is wiped and the same after it, repaired after %s", len(before), before, took.Round(100*time.Microsecond))
}

// event waits for an Event on a webhook configuration and gives its message.
func (l *lab) event(t *testing.T, name, reason string) (message string) {
	t.Helper()
	eventually(t, reason+" on "+name, func(ctx context.Context) string {
		list, err := l.Client.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason + ",involvedObject.name=" + name})
		if err != nil || len(list.Items) == 0 {
			return fmt.Sprintf("%d Events, %v", len(list.Items), err)
		}
		message = list.Items[0].Message
		return ""
	})
	return message
}

// twoWriters reproduces the page's fifth message: a control plane that reads its validating configuration and writes
// it back, as istiod does, and something else that writes it too. Ours, the other writer here, meets no conflict.
func twoWriters(t *testing.T, l *lab, h *hooks) {
	configurations := l.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	var said, version string
	for range 20 { // the old one reads, the bundle is changed, ours repairs it, the old one writes what it has read
		c, err := configurations.Get(t.Context(), validator, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		h.repaired(validator, func() { h.update(validator, "script", func(u *unstructured.Unstructured) { each(u, setBundle(nil)) }) })
		fail := admissionv1.Fail
		c.Webhooks[0].FailurePolicy = &fail
		if _, err = configurations.Update(t.Context(), c, metav1.UpdateOptions{FieldManager: "pilot-discovery"}); apierrors.IsConflict(err) {
			said, version = err.Error(), c.ResourceVersion
			break
		}
	}
	got := fmt.Sprintf("Failed to update validatingwebhookconfiguration %s (failurePolicy=Fail, resourceVersion=%s): %s", validator, version, said)
	want := fmt.Sprintf(`Failed to update validatingwebhookconfiguration istio-validator-asm-1234-1-istio-system (failurePolicy=Fail, resourceVersion=%s): Operation cannot be fulfilled on validatingwebhookconfigurations.admissionregistration.k8s.io "istio-validator-asm-1234-1-istio-system": the object has been modified; please apply your changes to the latest version and try again`, version)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	t.Log(got)
	h.settle(validator)
	log, err := os.ReadFile(l.Dir + "/selvaged-" + pageRevision + ".log")
	if err != nil || bytes.Contains(log, []byte("the object has been modified")) {
		t.Errorf("our own log has a conflict (%v)", err)
	}
}

// untouched counts what control planes write while nothing happens: nothing but their leases.
func untouched(t *testing.T, planes ...*plane) {
	rest := 20 * time.Second
	if os.Getenv("SELVAGE_E2E_LONG") != "" {
		rest = 10 * time.Minute
	}
	eventually(t, "the end of what a start writes", func(ctx context.Context) string {
		before := [2]map[string]int{planes[0].written(), planes[1].written()}
		select {
		case <-time.After(3 * time.Second):
		case <-ctx.Done():
		}
		for i, p := range planes {
			if after := p.since(before[i]); len(after) > 0 {
				return fmt.Sprint(p.revision, " ", after)
			}
		}
		return ""
	})
	before := [2]map[string]int{planes[0].written(), planes[1].written()}
	<-time.After(rest)
	for i, p := range planes {
		if after := p.since(before[i]); len(after) > 0 {
			t.Errorf("%s wrote %v in %s: see its Events among these\n%s", p.revision, after, rest, p.lab.kubectl(t, "get", "events", "-A"))
		}
		t.Logf("%s: writes up to rest %v, in %s of rest %v and leases", p.revision, before[i], rest, p.since(before[i]))
	}
}
