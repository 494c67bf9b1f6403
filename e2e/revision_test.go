package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// canary is the second revision of these tests.
const canary = "canary"

// secondControlPlane runs a control plane of revision canary beside the lab's own, as a process in the lab's network, and gives the
// address of its status port there. It ends with the test, and nothing of it is left.
func (l *lab) secondControlPlane(t *testing.T) (status string) {
	t.Helper()
	found, err := l.Client.DiscoveryV1().EndpointSlices("istio-system").List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=istiod"})
	if err != nil || len(found.Items) == 0 || len(found.Items[0].Endpoints) == 0 {
		t.Skipf("skipped: this lab's control plane is not reached by a Service, as where you are not root (%v)", err)
	}
	host := found.Items[0].Endpoints[0].Addresses[0]
	install := []string{"install", "--revision", canary, "--skip-crds", "--endpoint", host + ":xds=25012,webhook=25017,http=25014", "--timeout", "2m"}
	l.mustSelvage(t, append(install, "--wait=false")...)
	t.Cleanup(func() { l.mustSelvage(t, "uninstall", "--revision", canary) })

	cmd := exec.Command(bin("selvage-lab"), "enter", "--dir", l.Dir, "--", bin("selvaged"), "--kubeconfig", l.actingAs(t, "istiod-"+canary),
		"--revision", canary, "--xds-addr", net.JoinHostPort(host, "25012"), "--webhook-addr", net.JoinHostPort(host, "25017"), "--http-addr", net.JoinHostPort(host, "25014"))
	log, err := os.Create(filepath.Join(l.Dir, "logs", "selvaged-"+canary+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		log.Close()
	})
	l.mustSelvage(t, install...) // waits until pods get its sidecar
	return net.JoinHostPort(host, "25014")
}

// actingAs writes a kubeconfig for programs in the lab's network by which an administrator acts as a service account of the mesh, with
// that one's rights.
func (l *lab) actingAs(t *testing.T, account string) (path string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(l.Dir, "pki", "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	user := config["users"].([]any)[0].(map[string]any)["user"].(map[string]any)
	user["as"] = "system:serviceaccount:istio-system:" + account
	user["as-groups"] = []string{"system:serviceaccounts", "system:serviceaccounts:istio-system", "system:authenticated"}
	out, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// mustSelvage runs the CLI and fails the test unless all is fine.
func (l *lab) mustSelvage(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := l.selvage(t, args...)
	if code != 0 {
		t.Fatalf("selvage %s: exit %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// doubleCalls is how often a control plane was asked about a pod that had its sidecar already.
func (l *lab) doubleCalls(t *testing.T, status string) string {
	t.Helper()
	stdout, stderr, code := l.inside(t, "curl", "-sSf", "http://"+status+"/metrics")
	if code != 0 {
		t.Fatalf("read metrics of %s: %s", status, stderr)
	}
	return strings.Join(regexp.MustCompile(`(?m)^sidecar_injection_skip_total\{.*already_injected.*$`).FindAllString(stdout, -1), "\n")
}

// creates asks the API server again and again, as dry runs, for pods of a namespace, and counts which revision answered.
type creates struct {
	sync.Mutex
	by    map[string]int
	wrong []string
}

func (c *creates) run(ctx context.Context, l *lab, namespace string) {
	for ctx.Err() == nil {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "web-"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "docker.io/selvage/sample:dev"}}}}
		got, err := l.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if ctx.Err() != nil {
			return
		}
		c.Lock()
		if err != nil {
			c.wrong = append(c.wrong, err.Error())
		} else {
			sidecars := 0
			for _, name := range containers(got) {
				if name == "istio-proxy" {
					sidecars++
				}
			}
			by := got.Annotations["istio.io/rev"]
			if c.by[by]++; sidecars != 1 {
				c.wrong = append(c.wrong, fmt.Sprintf("%d sidecars, by %q", sidecars, by))
			}
		}
		c.Unlock()
	}
}

// TestATagMovesAtOneInstant moves two tags to and fro between two control planes while pods are created all the time: each pod gets
// exactly one sidecar, and no control plane is asked about a pod that the other one has answered for. One of the tags is the default,
// which takes over the default revision's own webhooks.
func TestATagMovesAtOneInstant(t *testing.T) {
	l := atLevel(t, 1)
	other := l.secondControlPlane(t)
	host, _, _ := net.SplitHostPort(other)
	own := net.JoinHostPort(host, "15014")
	l.mustSelvage(t, "revision", "tag", "set", "prod", "--revision", "default")
	t.Cleanup(func() { _, _, _ = l.selvage(t, "revision", "tag", "remove", "prod", "--force") })
	t.Cleanup(func() { _, _, _ = l.selvage(t, "revision", "tag", "remove", "default", "--force") })
	tagged := l.namespace(t, map[string]string{"istio.io/rev": "prod"})
	enabled := l.namespace(t, map[string]string{"istio-injection": "enabled"})
	before := map[string]string{"default": l.doubleCalls(t, own), canary: l.doubleCalls(t, other)}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	counts := map[string]*creates{}
	var workers sync.WaitGroup
	for _, namespace := range []string{tagged, enabled} {
		c := &creates{by: map[string]int{}}
		counts[namespace] = c
		for range 3 {
			workers.Go(func() { c.run(ctx, l, namespace) })
		}
	}
	const moves = 6
	for n := range moves {
		to := []string{canary, "default"}[n%2]
		l.mustSelvage(t, "revision", "tag", "set", "prod", "--revision", to, "--force")
		if to == canary {
			l.mustSelvage(t, "revision", "tag", "set", "default", "--revision", canary, "--force")
		} else {
			l.mustSelvage(t, "revision", "tag", "remove", "default", "--force")
		}
	}
	stop()
	workers.Wait()
	for namespace, c := range counts {
		t.Logf("%s: %v", namespace, c.by)
		if len(c.wrong) > 0 {
			t.Errorf("%d of the pods did not get exactly one sidecar, such as: %s", len(c.wrong), c.wrong[0])
		}
		if c.by["default"] == 0 || c.by[canary] == 0 || len(c.by) != 2 {
			t.Errorf("revisions that answered: %v, want default and %s", c.by, canary)
		}
	}
	for name, status := range map[string]string{"default": own, canary: other} {
		if got := l.doubleCalls(t, status); got != before[name] {
			t.Errorf("revision %s was asked about pods that had a sidecar already: %s", name, got)
		}
	}
	l.validatorFollows(t, enabled)
}

// validatorFollows: an Istio's validator of objects that name no revision, whose control plane is gone, refuses all that is written,
// until the default tag moves; then the new default answers for it, and after the tag the revision that stays.
func (l *lab) validatorFollows(t *testing.T, namespace string) {
	t.Helper()
	const name = "istiod-default-validator"
	fail, none, path := admissionv1.Fail, admissionv1.SideEffectClassNone, "/validate"
	hooks := l.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	_, err := hooks.Create(t.Context(), &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "istiod", "istio.io/rev": "1-20", "app.kubernetes.io/managed-by": "Helm"}},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "validation.istio.io", FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig:   admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "istio-system", Name: "istiod-1-20", Path: &path}},
			ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "istio.io/rev", Operator: metav1.LabelSelectorOpDoesNotExist}}},
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule: admissionv1.Rule{APIGroups: []string{"networking.istio.io"}, APIVersions: []string{"*"}, Resources: []string{"*"}}}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hooks.Delete(context.Background(), name, metav1.DeleteOptions{}) })
	const right, wrong = `{servers: [{hosts: ["*"], port: {number: 80, name: http, protocol: HTTP}}]}`, `{}`
	write := func(spec string) string {
		object := "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: follows}\nspec: " + spec + "\n"
		stdout, stderr, _ := command(t, strings.NewReader(object), bin("kubectl"), "--kubeconfig", l.kubeconfig(), "-n", namespace, "create", "--dry-run=server", "-f", "-")
		return stdout + stderr
	}
	expect := func(what, spec, says string) {
		t.Helper()
		eventually(t, what, func(context.Context) string {
			if got := write(spec); !strings.Contains(got, says) {
				return got
			}
			return ""
		})
	}
	expect("the stale validator refuses what is right", right, `service "istiod-1-20" not found`)
	for _, step := range []struct {
		leads   string
		command []string
	}{
		{canary, []string{"revision", "tag", "set", "default", "--revision", canary}},
		{"default", []string{"revision", "tag", "remove", "default"}},
	} {
		out := l.mustSelvage(t, step.command...)
		if want := "ValidatingWebhookConfiguration " + name + ", for objects that name no revision, calls revision " + step.leads + " now."; !strings.Contains(out, want) {
			t.Errorf("selvage %s printed\n%swant %s", strings.Join(step.command, " "), out, want)
		}
		expect("what is right passes with revision "+step.leads, right, "created")
		expect("what is wrong does not", wrong, "denied the request")
		c, err := hooks.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || c.Labels["istio.io/rev"] != step.leads || len(c.Webhooks[0].ClientConfig.CABundle) == 0 {
			t.Errorf("with the tag at %s: error %v, %+v", step.leads, err, c)
		}
	}
}
