package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestWhatCannotBeUsedIsRefusedByName creates pods whose annotations are wrong, or meant to do harm, at a real API server: each is
// refused, and who creates it reads which annotation it is and what it says.
func TestWhatCannotBeUsedIsRefusedByName(t *testing.T) {
	l := atLevel(t, 1)
	const traffic = "traffic.sidecar.istio.io/"
	ns := l.namespace(t, map[string]string{"istio-injection": "enabled"})
	for _, c := range []struct{ annotation, value, says string }{
		{traffic + "excludeInboundPorts", "22,--dport", `"--dport" is no port`},
		{traffic + "excludeInboundPorts", "80; rm -rf /", "is no port"},
		{traffic + "excludeInboundPorts", "$(reboot)", "is no port"},
		{traffic + "excludeInboundPorts", "`id`", "is no port"},
		{traffic + "excludeInboundPorts", "80 -j ACCEPT", "is no port"},
		{traffic + "excludeInboundPorts", "80\n-A OUTPUT -j DROP", "is no port"},
		{traffic + "excludeInboundPorts", "65536", "is no port"},
		{traffic + "excludeInboundPorts", "-1", "is no port"},
		{traffic + "includeInboundPorts", "all", "is no port"},
		{traffic + "excludeOutboundPorts", "--", "is no port"},
		{traffic + "includeOutboundPorts", "80:90", "is no port"},
		{traffic + "includeOutboundIPRanges", "10.0.0.0/8; iptables -F", "iptables -F"},
		{traffic + "includeOutboundIPRanges", "10.0.0.0/33", "10.0.0.0/33"},
		{traffic + "excludeOutboundIPRanges", "--to-ports", "--to-ports"},
		{traffic + "excludeOutboundIPRanges", "example.com", "example.com"},
		{traffic + "excludeInterfaces", "eth0 -j RETURN", "eth0 -j RETURN"},
		{traffic + "kubevirtInterfaces", "$(id)", "$(id)"},
		{"istio.io/reroute-virtual-interfaces", "../net0", "../net0"},
		{"inject.istio.io/templates", "sidecar,nosuch", "nosuch"},
		{"inject.istio.io/templates", "gateway", "gateway"},
		{"proxy.istio.io/config", "{", "ProxyConfig"},
		{"proxy.istio.io/config", "concurrency: many", "concurrency"},
		{"proxy.istio.io/config", "concurency: 2", "concurency"},
		{"proxy.istio.io/config", "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}", "ISTIO_META_DNS_CAPTURE"},
		{"proxy.istio.io/overrides", "{", "proxy.istio.io/overrides"},
		{"sidecar.istio.io/proxyCPU", "lots", "lots"},
		{"sidecar.istio.io/proxyCPU", "1e-30000000", "1e-30000000"},
		{"sidecar.istio.io/proxyMemoryLimit", "-1Gi", "-1Gi"},
		{"sidecar.istio.io/proxyImage", "not an image", "not an image"},
		{"sidecar.istio.io/logLevel", "debug --config-path /etc", "debug --config-path /etc"},
		{"sidecar.istio.io/componentLogLevel", "http:loud", "http:loud"},
		{"sidecar.istio.io/agentLogLevel", "--x", "--x"},
		{"sidecar.istio.io/interceptionMode", "TPROXY", "REDIRECT"},
		{"sidecar.istio.io/interceptionMode", "SOMETIMES", "SOMETIMES"},
		{"sidecar.istio.io/nativeSidecar", "maybe", "maybe"},
		{"sidecar.istio.io/rewriteAppHTTPProbers", "no", `"true" or "false"`},
		{"sidecar.istio.io/userVolume", "[", "userVolume"},
		{"sidecar.istio.io/userVolumeMount", `{"x": {"mountPath": 7}}`, "userVolumeMount"},
		{"sidecar.istio.io/bootstrapOverride", "../../etc/shadow", "../../etc/shadow"},
		{"prometheus.istio.io/merge-metrics", "perhaps", "perhaps"},
		{"status.sidecar.istio.io/port", "http", "http"},
		{"readiness.status.sidecar.istio.io/periodSeconds", "0", "at least 1"},
	} {
		t.Run(strings.TrimPrefix(c.annotation, traffic)+" "+c.value, func(t *testing.T) {
			pod := podOf(&outcome{pod: "-"}, ns)
			pod.Name, pod.Annotations[c.annotation] = "web", c.value
			_, err := l.Client.CoreV1().Pods(ns).Create(t.Context(), &pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if err == nil {
				t.Fatal("the pod was admitted")
			}
			value := strings.Trim(fmt.Sprintf("%q", c.value), `"`)
			for _, want := range []string{`admission webhook "namespace.sidecar-injector.istio.io" denied the request`, "web", c.annotation, value, c.says} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %s: %v", want, err)
				}
			}
			if len(err.Error()) > 1000 {
				t.Errorf("the error has %d letters: %s", len(err.Error()), err)
			}
			if !apierrors.IsInvalid(err) {
				t.Errorf("the error's reason is %s, want Invalid", apierrors.ReasonForError(err))
			}
		})
	}
}

// TestLargePods: what etcd can hold is injected too.
func TestLargePods(t *testing.T) {
	l := atLevel(t, 1)
	ns := l.namespace(t, map[string]string{"istio-injection": "enabled"})
	pod := podOf(&outcome{pod: "-"}, ns)
	for n := range 1200 {
		pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprintf("V%d", n), Value: strings.Repeat("x", 1000)})
	}
	stored, err := l.Client.CoreV1().Pods(ns).Create(t.Context(), &pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(containers(stored), " "); got != "istio-init istio-proxy app" || len(stored.Spec.Containers[0].Env) != 1200 {
		t.Errorf("containers are %s, with %d variables", got, len(stored.Spec.Containers[0].Env))
	}
}

// TestATemplateThatFails: a template of the operator's that fails on one pod refuses that pod, with the template's words, and no other;
// one that cannot be parsed never comes into force, and its ConfigMap is told.
func TestATemplateThatFails(t *testing.T) {
	l := atLevel(t, 1)
	maps := l.Client.CoreV1().ConfigMaps("istio-system")
	cm, err := maps.Get(t.Context(), "istio-sidecar-injector", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := cm.Data["config"]
	write := func(ctx context.Context, config string) {
		t.Helper()
		cm, err := maps.Get(ctx, cm.Name, metav1.GetOptions{})
		if err == nil {
			cm.Data["config"] = config
			_, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { write(context.Background(), before) })
	const good = "policy: enabled\ntemplates:\n  picky: |\n    {{- if not (index .ObjectMeta.Labels \"team\") }}{{ fail \"the label team is missing\" }}{{ end }}\n" +
		"    metadata: {labels: {picked: \"yes\"}}\n"
	ns := l.namespace(t, map[string]string{"istio-injection": "enabled"})
	try := func(ctx context.Context, labels string) (*corev1.Pod, error) {
		pod := podOf(&outcome{pod: labels}, ns)
		pod.Annotations["inject.istio.io/templates"] = "sidecar,picky"
		return l.Client.CoreV1().Pods(ns).Create(ctx, &pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	}
	write(t.Context(), good)
	eventually(t, "the template in force", func(ctx context.Context) string {
		pod, err := try(ctx, "team=a")
		if err == nil && pod.Labels["picked"] != "yes" {
			return "it was not used"
		}
		return text(err)
	})
	_, err = try(t.Context(), "-")
	for _, want := range []string{"picky", "the label team is missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a pod without the label: the error does not say %q: %v", want, err)
		}
	}

	write(t.Context(), strings.Replace(good, "{{ end }}", "", 1))
	eventually(t, "an Event on the ConfigMap", func(ctx context.Context) string {
		list, err := l.Client.CoreV1().Events("istio-system").List(ctx, metav1.ListOptions{FieldSelector: "reason=InvalidConfiguration,involvedObject.name=" + cm.Name})
		if err != nil {
			return err.Error()
		}
		for _, e := range list.Items {
			if strings.Contains(e.Message, "picky") && strings.Contains(e.Message, "line ") {
				return ""
			}
		}
		return fmt.Sprintf("%d Events, none that names the template and its line", len(list.Items))
	})
	if pod, err := try(t.Context(), "team=a"); err != nil || pod.Labels["picked"] != "yes" {
		t.Errorf("the last good template is not in force: %v", err)
	}
}
