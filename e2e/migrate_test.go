package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestMigrate moves the shop to a second control plane and back, while it is called from a namespace that stays: no request is lost, also
// not while the move stands still at a workload that cannot start anew.
func TestMigrate(t *testing.T) {
	l := atLevel(t, 2)
	image := strings.TrimSpace(l.kubectl(t, "-n", "istio-system", "get", "deployment", "istiod", "-o", "jsonpath={.spec.template.spec.containers[0].image}"))
	_, tag, _ := strings.Cut(image, ":")
	mend := l.notes(t)
	namespace := l.caller(t)
	l.mustSelvage(t, "install", "--revision", canary, "--skip-crds", "--replicas", "1", "--tag", tag)
	t.Cleanup(func() {
		if ns, err := l.Client.CoreV1().Namespaces().Get(context.Background(), "shop", metav1.GetOptions{}); err == nil && ns.Labels["istio.io/rev"] != "" {
			_, _, _ = l.selvage(t, "revision", "migrate", "shop", "--undo")
		}
		_, _, _ = l.selvage(t, "uninstall", "--revision", canary)
	})
	for name, replicas := range map[string]string{"load": "1", "web": "1", "cart": "1", "stock": "2"} { // as in a fresh sample: other tests scale them
		l.kubectl(t, "-n", "shop", "scale", "deployment/"+name, "--replicas="+replicas)
		l.rolledOut(t, "shop", name)
	}
	if states := l.revisions(t); states["default"] != "IN USE" || states[canary] != "UNUSED" {
		t.Errorf("before: %v", states)
	}
	load := l.startLoadsIn(t, namespace)

	stdout, stderr, code := l.selvage(t, "revision", "migrate", "shop", "--to", canary)
	t.Logf("$ selvage revision migrate shop --to %s (exit %d)\n%s%s", canary, code, stdout, stderr)
	for _, part := range []string{"stopped at Deployment notes: ", ": cannot be scheduled: 0/1 nodes are available",
		"2 of its workloads were moved before (Deployment cart, Deployment load); what comes after it was not touched", "revision migrate shop --undo"} {
		if code != 1 || !strings.Contains(stderr, part) {
			t.Errorf("exit %d, want 1 and %q", code, part)
		}
	}
	if got, want := l.readyPods(t, "shop"), "cart=canary load=canary notes=default stock=default stock=default web=default"; got != want {
		t.Errorf("pods that are ready: %s, want %s", got, want)
	}
	stdout, stderr, code = l.selvage(t, "revision", "retire", canary)
	if code != 1 || !strings.Contains(stderr, "namespace shop: istio.io/rev="+canary+", 3 pods") {
		t.Errorf("retiring a revision that is used: exit %d, want 1 and its user\n%s%s", code, stdout, stderr)
	}
	mend()
	out := l.mustSelvage(t, "revision", "migrate", "shop", "--to", canary)
	if !strings.Contains(out, "3 workloads restarted, 2 had the sidecar of revision canary already") {
		t.Errorf("the same command again printed\n%s", out)
	}
	l.allOf(t, "shop", canary)
	t.Logf("$ selvage revision migrate shop --to %s\n%s", canary, out)
	t.Logf("$ selvage revision migrate shop --undo\n%s", l.mustSelvage(t, "revision", "migrate", "shop", "--undo"))
	l.allOf(t, "shop", "default")
	load.finish()
	if out := l.mustSelvage(t, "revision", "retire", canary); !strings.Contains(out, "Revision canary") {
		t.Errorf("retire printed %s", out)
	}
}

// notes adds a workload to the shop that serves, and whose new pods find no node until mend.
func (l *lab) notes(t *testing.T) (mend func()) {
	t.Helper()
	label := func(value string) { l.kubectl(t, "label", "nodes", "--all", "--overwrite", "e2e/notes"+value) }
	label("=")
	t.Cleanup(func() {
		label("-")
		_ = l.Client.AppsV1().Deployments("shop").Delete(context.Background(), "notes", metav1.DeleteOptions{})
	})
	l.copies(t, "shop", "stock", func(d *appsv1.Deployment) {
		labels := map[string]string{"app": "notes"}
		d.Name, d.Spec.Selector, d.Spec.Template.Labels, d.Spec.Replicas = "notes", &metav1.LabelSelector{MatchLabels: labels}, labels, nil
		d.Spec.Template.Spec.NodeSelector = map[string]string{"e2e/notes": ""}
	})
	l.rolledOut(t, "shop", "notes")
	label("-")
	deadline := func(seconds int) {
		l.kubectl(t, "-n", "shop", "patch", "deployment", "notes", "--type=merge", "-p", fmt.Sprintf(`{"spec":{"progressDeadlineSeconds":%d}}`, seconds))
	}
	deadline(3)
	return func() { deadline(600); label("=") }
}

// caller makes a namespace with the sample's load pod, which stays with the default revision.
func (l *lab) caller(t *testing.T) (namespace string) {
	t.Helper()
	namespace = l.namespace(t, map[string]string{"istio-injection": "enabled"})
	l.copies(t, namespace, "load", func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].Args = []string{"load", "--url", "http://web.shop/api", "--rate", "1", "--addr", ":8080"}
	})
	l.rolledOut(t, namespace, "load")
	return namespace
}

// copies makes a Deployment like one of the sample's in another namespace.
func (l *lab) copies(t *testing.T, namespace, of string, change func(*appsv1.Deployment)) {
	t.Helper()
	d, err := l.Client.AppsV1().Deployments("shop").Get(t.Context(), of, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.ObjectMeta = metav1.ObjectMeta{Name: of}
	d.Spec.Template.Annotations = nil
	d.Spec.Template.Spec.ServiceAccountName, d.Spec.Template.Spec.DeprecatedServiceAccount = "", ""
	change(d)
	if _, err := l.Client.AppsV1().Deployments(namespace).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// readyPods lists the pods that are ready and stay, as APP=REVISION.
func (l *lab) readyPods(t *testing.T, namespace string) string {
	t.Helper()
	return strings.Join(strings.Fields(l.kubectl(t, "-n", namespace, "get", "pods", "--sort-by=.metadata.labels.app", "-o",
		`go-template={{range .items}}{{$pod := .}}{{if not .metadata.deletionTimestamp}}{{range .status.conditions}}{{if and (eq .type "Ready") (eq .status "True")}}{{$pod.metadata.labels.app}}={{index $pod.metadata.annotations "istio.io/rev"}} {{end}}{{end}}{{end}}{{end}}`)), " ")
}

// revisions reads which state `selvage revision list` gives each.
func (l *lab) revisions(t *testing.T) map[string]string {
	t.Helper()
	stdout, stderr, _ := l.selvage(t, "revision", "list", "-o", "json")
	var list struct {
		Revisions []struct{ Revision, State string }
	}
	if err := json.Unmarshal([]byte(stdout), &list); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout, stderr)
	}
	states := map[string]string{}
	for _, r := range list.Revisions {
		states[r.Revision] = r.State
	}
	return states
}

// allOf waits until every pod of the namespace that stays has the sidecar of the revision, and the others are gone.
func (l *lab) allOf(t *testing.T, namespace, revision string) {
	t.Helper()
	eventually(t, "pods of other revisions are gone", func(ctx context.Context) string {
		list, err := l.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		for _, pod := range list.Items {
			if got := pod.Annotations["istio.io/rev"]; got != revision {
				return fmt.Sprintf("pod %s has %q", pod.Name, got)
			}
		}
		return ""
	})
}
