//go:build apiserver

package live_test

import (
	"bytes"
	stdcmp "cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"github.com/selvage-mesh/selvage/internal/cli"
	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/revision/live"
)

// These tests change the cluster of SELVAGE_TEST_KUBECONFIG, a real API server without a mesh; they need no node.

// cluster is the API server of the environment.
type cluster struct {
	*testing.T
	path    string
	config  *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
}

func connect(t *testing.T) *cluster {
	t.Helper()
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("SELVAGE_TEST_KUBECONFIG is not set: it names the kubeconfig of an API server for tests, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return &cluster{T: t, path: path, config: config, client: kubernetes.NewForConfigOrDie(config), dynamic: dynamic.NewForConfigOrDie(config)}
}

// selvage runs the command line against the cluster.
func (c *cluster) selvage(args ...string) (stdout string, code int) {
	c.Helper()
	var out, errs bytes.Buffer
	code = cli.Run(c.Context(), cli.Config{Program: "selvage", Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: os.Getenv},
		append(args, "--kubeconfig", c.path))
	c.Logf("$ selvage %s (exit %d)\n%s%s", strings.Join(args, " "), code, out.String(), errs.String())
	return out.String(), code
}

// eventually asks until the answer is "", for what the API server does in its own time and tells nobody.
func (c *cluster) eventually(what string, ask func() (pending string)) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
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
			c.Fatalf("%s: still not so after a minute: %s", what, pending)
		}
	}
}

// validator makes a validating configuration as an installation of Istio's has it, of a revision that has no control plane.
func (c *cluster) validator(rev string, labels map[string]string) *admissionv1.ValidatingWebhookConfiguration {
	c.Helper()
	fail, none, path := admissionv1.Fail, admissionv1.SideEffectClassNone, "/validate"
	v := &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "istio-validator-" + rev + "-istio-system", Labels: map[string]string{"app": "istiod", "istio.io/rev": rev}},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "rev.validation.istio.io", FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionv1.WebhookClientConfig{CABundle: c.bundle(),
				Service: &admissionv1.ServiceReference{Namespace: "istio-system", Name: "istiod-" + rev, Path: &path}},
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule: admissionv1.Rule{APIGroups: []string{"security.istio.io"}, APIVersions: []string{"*"}, Resources: []string{"*"}}}},
		}},
	}
	for key, value := range labels {
		v.Labels[key] = value
	}
	hooks := c.client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	made, err := hooks.Create(c.Context(), v, metav1.CreateOptions{FieldManager: "helm"})
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = hooks.Delete(context.Background(), v.Name, metav1.DeleteOptions{}) })
	return made
}

// bundle is a real certificate: the API server parses bundles.
func (c *cluster) bundle() []byte {
	if len(c.config.CAData) > 0 {
		return c.config.CAData
	}
	data, err := os.ReadFile(c.config.CAFile)
	if err != nil {
		c.Fatal(err)
	}
	return data
}

// meshNamespace makes istio-system, which goes with the test.
func (c *cluster) meshNamespace() {
	c.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: revision.MeshNamespace}}
	c.eventually("namespace istio-system", func() string { // one that is on its way out has to go first
		if _, err := c.client.CoreV1().Namespaces().Create(c.Context(), ns, metav1.CreateOptions{}); err != nil {
			return err.Error()
		}
		return ""
	})
	c.Cleanup(func() {
		_ = c.client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{})
	})
}

var policies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}

// definePolicies installs the definition of one of Istio's kinds.
func (c *cluster) definePolicies() {
	c.Helper()
	objects, err := install.Render(install.Default("1.0.0"))
	if err != nil {
		c.Fatal(err)
	}
	crds := c.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for _, u := range objects {
		if u.GetKind() != "CustomResourceDefinition" || u.GetName() != "peerauthentications.security.istio.io" {
			continue
		}
		if _, err := crds.Create(c.Context(), u, metav1.CreateOptions{}); err != nil {
			c.Fatal(err)
		}
		c.Cleanup(func() { _ = crds.Delete(context.Background(), u.GetName(), metav1.DeleteOptions{}) })
	}
	c.eventually("PeerAuthentication is served", func() string { return text(c.write()) })
}

// write tries to write a policy, as a dry run; the error is the API server's.
func (c *cluster) write() error {
	policy := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
		"metadata": map[string]any{"name": "default"}, "spec": map[string]any{"mtls": map[string]any{"mode": "STRICT"}}}}
	_, err := c.dynamic.Resource(policies).Namespace("default").Create(c.Context(), policy, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// blocked says what is missing of the message that people meet when a stale validator blocks their configuration.
func (c *cluster) blocked() string {
	err := c.write()
	for _, part := range []string{`failed calling webhook "rev.validation.istio.io"`, `service "istiod-asm-1200-1" not found`} {
		if err == nil || !strings.Contains(err.Error(), part) {
			return fmt.Sprintf("%v lacks %q", err, part)
		}
	}
	c.Logf("a write is refused: %v", err)
	return ""
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestAStaleValidatorBlocksEveryWriteAndPruneMendsIt: the fault that upgrades leave behind, its report, its removal, and the undo. The
// mesh and its namespace are gone, as after an uninstallation.
func TestAStaleValidatorBlocksEveryWriteAndPruneMendsIt(t *testing.T) {
	c := connect(t)
	c.definePolicies()
	before := c.validator("asm-1200-1", nil)
	c.eventually("the stale validator blocks writes", c.blocked)

	out, code := c.selvage("revision", "prune", "--yes")
	if code != 0 || !strings.Contains(out, "No webhook configuration is stale") {
		t.Errorf("what has just been made is stale already: exit %d\n%s", code, out)
	}
	out, code = c.selvage("revision", "list", "--grace", "0s")
	if code != 1 || !strings.Contains(out, "asm-1200-1  STALE") || !strings.Contains(out, "Service istio-system/istiod-asm-1200-1") {
		t.Errorf("list: exit %d, want 1 and the stale revision\n%s", code, out)
	}
	if _, code = c.selvage("revision", "prune", "--grace", "0s"); code != 2 {
		t.Errorf("without an answer and without --yes: exit %d, want 2", code)
	}
	c.eventually("it blocks as before", c.blocked)
	out, code = c.selvage("revision", "prune", "--grace", "0s", "--yes")
	if code != 0 || !strings.Contains(out, "ValidatingWebhookConfiguration "+before.Name+" removed") {
		t.Errorf("prune: exit %d\n%s", code, out)
	}
	c.eventually("writes pass again", func() string { return text(c.write()) })

	if out, code = c.selvage("revision", "prune", "--undo"); code != 0 || !strings.Contains(out, before.Name+" is back") {
		t.Errorf("undo: exit %d\n%s", code, out)
	}
	after, err := c.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), before.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before.Webhooks, after.Webhooks); diff != "" || !cmp.Equal(before.Labels, after.Labels) {
		t.Errorf("what came back is not what went (-before +after):\n%s", diff)
	}
	c.eventually("it blocks again", c.blocked)
	if out, code = c.selvage("revision", "prune", "--undo"); code != 0 || !strings.Contains(out, "Nothing was removed") {
		t.Errorf("a second undo: exit %d\n%s", code, out)
	}
	for _, namespace := range []string{revision.MeshNamespace, metav1.NamespaceSystem} {
		_, err := c.client.CoreV1().ConfigMaps(namespace).Get(t.Context(), live.UndoConfigMap, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			t.Errorf("the record of what was removed is left in %s (%v)", namespace, err)
		}
	}
}

// watched is a running watcher and what it tells.
type watched struct {
	looks    chan []diag.Problem
	events   chan string
	registry *prometheus.Registry
}

type eventLog chan string

func (e eventLog) Event(object runtime.Object, kind, reason, _ string) {
	e <- fmt.Sprintf("%s %s %s", kind, reason, object.(*corev1.ObjectReference).Name)
}

func (c *cluster) watch(config *rest.Config, grace time.Duration) *watched {
	c.Helper()
	w := &watched{looks: make(chan []diag.Problem), events: make(chan string, 100), registry: prometheus.NewRegistry()}
	ctx, cancel := context.WithCancel(c.Context())
	watcher, err := live.NewWatcher(live.WatcherConfig{
		Kubernetes: kubernetes.NewForConfigOrDie(config), Revision: "default", Replica: "test", Grace: grace, Registerer: w.registry,
		Events: eventLog(w.events), Log: slog.New(slog.NewTextHandler(c.Output(), nil)),
		Problems: func(p []diag.Problem) {
			select {
			case w.looks <- p:
			case <-ctx.Done():
			}
		},
	})
	if err != nil {
		c.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = watcher.Run(ctx) }()
	c.Cleanup(func() { cancel(); <-done })
	return w
}

// metrics are the values of all metrics, by name and the label that tells one from another.
func (w *watched) metrics(c *cluster) map[string]float64 {
	c.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		c.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			values[f.GetName()+" "+stdcmp.Or(labels["name"], labels["kind"])] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// until reads looks until one has a problem of that severity with the object.
func (w *watched) until(c *cluster, severity diag.Severity, name string) diag.Problem {
	c.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case problems := <-w.looks:
			if n := slices.IndexFunc(problems, func(p diag.Problem) bool { return p.Object.Name == name && p.Severity == severity }); n >= 0 {
				return problems[n]
			}
		case <-late:
			c.Fatalf("no %s about %s within a minute", severity, name)
		}
	}
}

func (c *cluster) exists(name string) bool {
	c.Helper()
	_, err := c.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(c.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		c.Fatal(err)
	}
	return err == nil
}

// TestTheControlPlaneRemovesItsOwnAndTellsOfOthers.
func TestTheControlPlaneRemovesItsOwnAndTellsOfOthers(t *testing.T) {
	c := connect(t)
	c.meshNamespace()
	foreign := c.validator("asm-1", nil).Name
	ours := c.validator("asm-2", map[string]string{revision.OwnerLabel: revision.Owner}).Name
	alive := c.validator("asm-3", map[string]string{revision.OwnerLabel: revision.Owner}).Name
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "istiod-asm-3"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}}}
	if _, err := c.client.CoreV1().Services(revision.MeshNamespace).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w := c.watch(c.config, time.Second)
	if p := w.until(c, diag.Error, foreign); !strings.Contains(p.Hint, "selvage revision prune") {
		t.Errorf("%s", p)
	}
	c.eventually("ours is removed", func() string {
		<-w.looks
		if c.exists(ours) {
			return ours + " is there"
		}
		return ""
	})
	<-w.looks
	if !c.exists(foreign) || !c.exists(alive) {
		t.Errorf("%s exists: %v; %s exists: %v", foreign, c.exists(foreign), alive, c.exists(alive))
	}
	got := map[string]bool{}
	for len(w.events) > 0 {
		event := <-w.events
		if got[event] {
			t.Errorf("told twice: %s", event)
		}
		got[event] = true
	}
	want := map[string]bool{"Warning StaleWebhook " + foreign: true, "Warning StaleWebhook " + ours: true, "Normal StaleWebhookRemoved " + ours: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Events (-want +got):\n%s", diff)
	}
	metrics := map[string]float64{
		"selvage_stale_webhooks istio-validator-asm-1-istio-system":           1,
		"selvage_stale_webhooks_removed_total ValidatingWebhookConfiguration": 1,
	}
	if diff := cmp.Diff(metrics, w.metrics(c)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}

	// Brought back, it stays: the undo of a person counts for more.
	if _, code := c.selvage("revision", "prune", "--undo", ours); code != 0 {
		t.Fatal("undo failed")
	}
	w.until(c, diag.Error, ours) // found stale again
	<-w.looks
	if !c.exists(ours) {
		t.Error("what a person brought back was removed again")
	}
}

// TestWhatCannotBeReadIsNeverRemoved: a watcher that may do everything but read Deployments.
func TestWhatCannotBeReadIsNeverRemoved(t *testing.T) {
	c := connect(t)
	c.meshNamespace()
	ours := c.validator("asm-2", map[string]string{revision.OwnerLabel: revision.Owner}).Name
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "selvage-test-blind"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"admissionregistration.k8s.io", "coordination.k8s.io", ""}, Resources: []string{"*"}, Verbs: []string{"*"}}}}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: role.ObjectMeta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "blind"}}}
	if _, err := c.client.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.client.RbacV1().ClusterRoles().Delete(context.Background(), role.Name, metav1.DeleteOptions{})
		_ = c.client.RbacV1().ClusterRoleBindings().Delete(context.Background(), role.Name, metav1.DeleteOptions{})
	})
	config := rest.CopyConfig(c.config)
	config.Impersonate.UserName = "blind"
	blind := kubernetes.NewForConfigOrDie(config)
	c.eventually("the role is in force", func() string {
		_, err := blind.CoordinationV1().Leases(revision.MeshNamespace).List(t.Context(), metav1.ListOptions{})
		return text(err)
	})
	w := c.watch(config, 100*time.Millisecond)
	p := w.until(c, diag.Info, ours)
	if !strings.Contains(p.Detail, "deployments in namespace istio-system could not be read") || !strings.Contains(p.Detail, "forbidden") {
		t.Errorf("%s", p)
	}
	for range 3 {
		<-w.looks
	}
	if !c.exists(ours) {
		t.Error("it was removed although nobody knows whether its control plane is there")
	}
}

// TestOnlyWhatWasJudgedIsRemoved: not an object that changed since, nor another of the same name; and no record is left of either.
func TestOnlyWhatWasJudgedIsRemoved(t *testing.T) {
	c := connect(t)
	c.meshNamespace()
	judged := c.validator("asm-2", nil)
	hook, _ := revision.OfValidating(judged)
	hooks := c.client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	changed := judged.DeepCopy()
	changed.Webhooks[0].TimeoutSeconds = ptr.To[int32](3)
	if _, err := hooks.Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	keeper := live.Keeper{Kubernetes: c.client, By: "test"}
	if err := keeper.Remove(t.Context(), hook); !errors.Is(err, live.ErrChanged) {
		t.Errorf("error %v, want %v", err, live.ErrChanged)
	}
	if !c.exists(judged.Name) {
		t.Error("it was removed")
	}
	if all, err := keeper.Removed(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("there is a record of a removal that was not: %v %v", all, err)
	}
}

// TestTheRecordStaysWithinAConfigMap: of many large removals the oldest are forgotten, never the last.
func TestTheRecordStaysWithinAConfigMap(t *testing.T) {
	c := connect(t)
	c.meshNamespace()
	keeper := live.Keeper{Kubernetes: c.client, By: "test"}
	var last string
	for n := range 6 {
		made := c.validator(fmt.Sprintf("big-%d", n), nil)
		made.Annotations = map[string]string{"note": strings.Repeat("x", 200<<10)}
		made, err := c.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), made, metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		hook, _ := revision.OfValidating(made)
		if err := keeper.Remove(t.Context(), hook); err != nil {
			t.Fatal(err)
		}
		last = made.Name
	}
	all, err := keeper.Removed(t.Context())
	if err != nil || len(all) < 2 || len(all) > 5 || !slices.ContainsFunc(all, func(r live.Removed) bool { return r.Name == last }) {
		var names []string
		for _, r := range all {
			names = append(names, r.Name)
		}
		t.Errorf("kept %v (error %v), want a few with %s", names, err, last)
	}
	var object admissionv1.ValidatingWebhookConfiguration
	if err := json.Unmarshal(all[0].Object, &object); err != nil || object.Name == "" {
		t.Errorf("a record cannot be read: %v", err)
	}
}
