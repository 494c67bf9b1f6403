package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestALabelThatComesTooLate: pods that were there before the label have no sidecar. `selvage inject --check` says so, and what to do;
// that is done, word for word, and it is content.
func TestALabelThatComesTooLate(t *testing.T) {
	l := atLevel(t, 1)
	ns := l.namespace(t, nil)
	l.kubectlIn(t, `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 2, "strategy": {"type": "Recreate"},
		"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "example.com/web"}]}}}}`,
		"apply", "-n", ns, "-f", "-")
	pods := func(ctx context.Context, want string) string {
		list, err := l.Client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		good := 0
		for i := range list.Items {
			if list.Items[i].DeletionTimestamp == nil && strings.Join(containers(&list.Items[i]), " ") == want {
				good++
			}
		}
		if good != 2 || len(list.Items) != 2 {
			return fmt.Sprintf("%d of %d pods have the containers %s", good, len(list.Items), want)
		}
		return ""
	}
	eventually(t, "pods without a sidecar", func(ctx context.Context) string { return pods(ctx, "app") })
	stdout, stderr, code := l.selvage(t, "inject", "--check", ns)
	if code != 0 || !strings.Contains(stdout, "not_selected") {
		t.Errorf("before the label: exit %d\n%s%s", code, stdout, stderr)
	}

	l.kubectl(t, "label", "namespace", ns, "istio-injection=enabled")
	stdout, stderr, code = l.selvage(t, "inject", "--check", ns)
	next := "kubectl rollout restart deployment/web -n " + ns
	for _, want := range []string{"Deployment/" + ns + "/web", "missed", "0 of 2 pods with a sidecar", "before label istio-injection", next} {
		if code != 1 || !strings.Contains(strings.Join(strings.Fields(stdout), " "), want) {
			t.Errorf("after the label: exit %d, want %q in\n%s%s", code, want, stdout, stderr)
		}
	}
	l.kubectl(t, strings.Fields(next)[1:]...)
	eventually(t, "pods with a sidecar", func(ctx context.Context) string { return pods(ctx, "istio-init istio-proxy app") })
	stdout, stderr, code = l.selvage(t, "inject", "--check", ns)
	if code != 0 || !strings.Contains(stdout, "2 of 2 pods with a sidecar") {
		t.Errorf("after the restart: exit %d\n%s%s", code, stdout, stderr)
	}
}
