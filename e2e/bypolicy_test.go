package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// byPolicy is the revision whose pods the API server injects itself.
const byPolicy = "bypolicy"

// TestInjectionWithTheControlPlaneDown: every replica of every control plane is stopped and the webhooks' port is blocked. A Deployment of
// the revision that injects by policy gets its pods, with sidecars: they stay unready, send nothing, outlive their start-up probe, and turn
// Ready without a restart when the control plane is back. The same Deployment where a webhook injects gets no pod at all.
func TestInjectionWithTheControlPlaneDown(t *testing.T) {
	l := atLevel(t, 2)
	image := strings.TrimSpace(l.kubectl(t, "-n", "istio-system", "get", "deployment", "istiod", "-o", "jsonpath={.spec.template.spec.containers[0].image}"))
	_, tag, _ := strings.Cut(image, ":")
	replicas := strings.TrimSpace(l.kubectl(t, "-n", "istio-system", "get", "deployment", "istiod", "-o", "jsonpath={.spec.replicas}"))
	t.Cleanup(func() { _, _, _ = l.selvage(t, "uninstall", "--revision", byPolicy) })
	l.mustSelvage(t, "install", "--revision", byPolicy, "--injection", "policy", "--skip-crds", "--replicas", "1", "--tag", tag)
	policied, hooked := l.namespace(t, map[string]string{"istio.io/rev": byPolicy}), l.namespace(t, map[string]string{"istio-injection": "enabled"})
	eventually(t, "the template in force", func(ctx context.Context) string {
		cm, err := l.Client.CoreV1().ConfigMaps("istio-system").Get(ctx, "selvage-status-"+byPolicy, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		return map[bool]string{false: cm.Data["injectionByPolicy"]}[strings.Contains(cm.Data["injectionByPolicy"], "byPolicy: true")]
	})
	for _, ns := range []string{policied, hooked} {
		eventually(t, "the root in "+ns, func(ctx context.Context) string {
			_, err := l.Client.CoreV1().ConfigMaps(ns).Get(ctx, "istio-ca-root-cert", metav1.GetOptions{})
			return text(err)
		})
	}

	scale := func(name, replicas string) {
		l.kubectl(t, "-n", "istio-system", "scale", "deployment/"+name, "--replicas="+replicas)
	}
	t.Cleanup(func() { scale("istiod", replicas); l.rolledOut(t, "istio-system", "istiod") })
	scale("istiod", "0")
	scale("istiod-"+byPolicy, "0")
	l.kubectl(t, "-n", "istio-system", "delete", "pod", "-l", "app=istiod", "--grace-period=0", "--force", "--ignore-not-found")
	block := func(flag string) {
		for _, chain := range []string{"OUTPUT", "FORWARD"} {
			_, _, _ = l.inside(t, "iptables", flag, chain, "-p", "tcp", "--dport", "15017", "-j", "DROP")
		}
	}
	block("-I")
	t.Cleanup(func() { block("-D") })
	eventually(t, "no replica of a control plane", func(ctx context.Context) string {
		list, err := l.Client.CoreV1().Pods("istio-system").List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
		if err != nil {
			return err.Error()
		}
		return map[bool]string{false: fmt.Sprintf("%d are left", len(list.Items))}[len(list.Items) == 0]
	})

	for _, ns := range []string{policied, hooked} {
		l.copies(t, ns, "stock", func(d *appsv1.Deployment) { one := int32(1); d.Spec.Replicas = &one })
	}
	eventually(t, "the Deployment whose webhook cannot be called", func(ctx context.Context) string {
		said := l.events(ctx, hooked, "FailedCreate")
		if !strings.Contains(said, "failed calling webhook") {
			return "it is not told: " + said
		}
		t.Logf("by the webhook alone, kubectl -n %s get events:\n%s", hooked, said)
		return ""
	})
	if pods := l.kubectl(t, "-n", hooked, "get", "pods", "-o", "name"); pods != "" {
		t.Errorf("where the webhook cannot be called there are pods: %s", pods)
	}
	var pod *corev1.Pod
	within(t, 2*time.Minute, "failed start-up probes of the sidecar", func(ctx context.Context) string {
		list, err := l.Client.CoreV1().Pods(policied).List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 {
			return fmt.Sprintf("%d pods, %v", len(list.Items), err)
		}
		pod = &list.Items[0]
		failures, said := int32(0), ""
		events, err := l.Client.CoreV1().Events(policied).List(ctx, metav1.ListOptions{FieldSelector: "reason=Unhealthy"})
		if err != nil {
			return err.Error()
		}
		for _, e := range events.Items {
			if said = e.Message; strings.HasPrefix(said, "Startup probe failed") {
				failures += e.Count
			}
		}
		return map[bool]string{false: fmt.Sprintf("%d failures, the last: %s", failures, said)}[failures >= 10]
	})
	l.waits(t, pod)
	t.Logf("by the policy, kubectl -n %s get pods:\n%s", policied, l.kubectl(t, "-n", policied, "get", "pods"))

	scale("istiod-"+byPolicy, "1") // 15017 stays blocked: a sidecar needs 15012 alone
	within(t, 2*time.Minute, "the pod Ready", func(ctx context.Context) string {
		now, err := l.Client.CoreV1().Pods(policied).Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		for _, c := range append(now.Status.InitContainerStatuses, now.Status.ContainerStatuses...) {
			if c.RestartCount > 0 {
				t.Fatalf("container %s was restarted", c.Name)
			}
		}
		return map[bool]string{false: "it is " + string(now.Status.Phase)}[ready(now) && now.UID == pod.UID]
	})
	t.Logf("with the control plane back:\n%s", l.kubectl(t, "-n", policied, "get", "pods"))
	if n := l.envoyCounter(t, policied, pod.Name, `cluster_manager\.cds\.update_success`); n == 0 {
		t.Error("its Envoy has no configuration of the control plane's")
	}
}

// waits: the sidecar runs, the application was never started, so nothing of it can have been sent past the sidecar.
func (l *lab) waits(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if ready(pod) {
		t.Error("the pod is Ready without a control plane")
	}
	names := containers(pod)
	if got := strings.Join(names, " "); got != "istio-init istio-proxy stock" {
		t.Errorf("its containers are %s", got)
	}
	for _, c := range pod.Status.InitContainerStatuses {
		switch {
		case c.RestartCount > 0:
			t.Errorf("container %s was restarted", c.Name)
		case c.Name == "istio-init" && (c.State.Terminated == nil || c.State.Terminated.ExitCode != 0):
			t.Errorf("the interception is not set up: %+v", c.State)
		case c.Name == "istio-proxy" && (c.State.Running == nil || c.Started != nil && *c.Started):
			t.Errorf("the sidecar: %+v, started %v", c.State, c.Started)
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Waiting == nil || c.LastTerminationState.Terminated != nil {
			t.Errorf("the application runs, or has run: %+v", c.State)
		}
	}
}

// events are the messages of a namespace's Events with a reason.
func (l *lab) events(ctx context.Context, namespace, reason string) string {
	list, err := l.Client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason})
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, e := range list.Items {
		fmt.Fprintf(&out, "%s %s/%s: %s\n", e.Type, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Message)
	}
	return out.String()
}
