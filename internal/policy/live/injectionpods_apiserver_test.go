//go:build apiserver

package live_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/policy"
)

// addLate answers as a webhook that adds a container with a probe.
func addLate(w http.ResponseWriter, body []byte) {
	var review struct {
		Request struct{ UID string }
	}
	_ = json.Unmarshal(body, &review)
	patch := []byte(`[{"op":"add","path":"/spec/containers/-","value":{"name":"late","image":"late","livenessProbe":{"httpGet":{"path":"/late","port":1234}}}}]`)
	_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
		"response": map[string]any{"uid": review.Request.UID, "allowed": true, "patchType": "JSONPatch", "patch": patch}})
}

// TestLateContainers: another webhook adds a container with a probe when the sidecar is there already; the kubelet's question goes to the
// agent all the same, and the agent knows both.
func TestLateContainers(t *testing.T) {
	j := newInjectors(t, func(rev string) *inject.Config { return configOf(t, rev, "", "", "{}") })
	j.inForce()
	hooks := j.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	ours, err := hooks.Get(t.Context(), j.mutating(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	late := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "late-" + j.rev}, Webhooks: []admissionv1.MutatingWebhook{*ours.Webhooks[0].DeepCopy()}}
	w := &late.Webhooks[0]
	w.Name, w.MatchConditions = "late.example.com", nil
	url := strings.Replace(*w.ClientConfig.URL, "/inject", "/late", 1)
	w.ClientConfig.URL = &url
	if _, err := hooks.Create(t.Context(), late, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hooks.Delete(context.Background(), late.Name, metav1.DeleteOptions{}) })
	for _, early := range []bool{false, true} {
		pod := simplePod()
		if early {
			pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}}
		}
		j.eventually(fmt.Sprintf("a late container, with another probe: %v", early), func() string {
			got, err := j.alone(j.namespace, pod)
			if err != nil {
				return err.Error()
			}
			if len(got.Spec.Containers) != 2 {
				return "it is not added yet"
			}
			var probers map[string]any
			for _, e := range got.Spec.InitContainers[1].Env {
				if e.Name == "ISTIO_KUBE_APP_PROBERS" {
					_ = json.Unmarshal([]byte(e.Value), &probers)
				}
			}
			if probe := got.Spec.Containers[1].LivenessProbe; probe.HTTPGet.Path != "/app-health/late/livez" || probers["/app-health/late/livez"] == nil || early != (probers["/app-health/a/readyz"] != nil) {
				return fmt.Sprintf("the kubelet asks %s, the agent knows %v", probe.HTTPGet.Path, probers)
			}
			return ""
		})
	}
}

// TestManyContainers: the budget of an expression is a million units; pods of 20 containers with three probes, hooks and ports each are
// far from it.
func TestManyContainers(t *testing.T) {
	j := newInjectors(t, func(rev string) *inject.Config { return configOf(t, rev, "", "", "{}") })
	j.inForce()
	for _, n := range []int{20, 100} {
		pod := simplePod()
		pod.Spec.Containers = nil
		for i := range n {
			port := int32(20000 + i)
			get := func(path string) corev1.ProbeHandler {
				return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("http"), HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "a"}}}}
			}
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: fmt.Sprintf("c%d", i), Image: "a", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: get("/ready")}, LivenessProbe: &corev1.Probe{ProbeHandler: get("/live")}, StartupProbe: &corev1.Probe{ProbeHandler: get("/start")},
				Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: get("/stop").HTTPGet}}})
		}
		got, err := j.alone(j.namespace, pod)
		if err != nil {
			t.Fatalf("%d containers: %v", n, err)
		}
		for _, c := range got.Spec.Containers {
			if c.StartupProbe.HTTPGet.Path != "/app-health/"+c.Name+"/startupz" {
				t.Fatalf("%d containers: the kubelet asks %s", n, c.StartupProbe.HTTPGet.Path)
			}
		}
	}
}

// TestThePolicyDecidesAsTheWebhook: for every combination of labels the policy injects exactly what the webhook would have.
func TestThePolicyDecidesAsTheWebhook(t *testing.T) {
	j := newInjectors(t, func(rev string) *inject.Config {
		return configOf(t, rev, "", "neverInjectSelector: [{matchExpressions: [{key: "+never+", operator: Exists}]}]", "{}")
	})
	j.inForce()
	hooks := j.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	list, err := hooks.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	admission := inject.NewAdmission(list.Items, map[string]*inject.Config{j.rev: j.inject})
	if err := hooks.Delete(t.Context(), j.mutating(), metav1.DeleteOptions{}); err != nil { // so that the policy is alone
		t.Fatal(err)
	}
	j.options.Tags = []string{"none"}
	injected, passed := 0, 0
	for _, ns := range j.spaces(j.rev) {
		for _, o := range zip(j.pods(), j.all(j.pods(), ns.Name)) {
			want := admission.Expect(ns, o.asked)
			if o.err != nil {
				t.Fatal(o.err)
			}
			if got := policy.HasSidecar(o.pod); got != want.Inject {
				t.Errorf("namespace %v, pod %v %v, hostNetwork %v: injected %v, while the webhook says %s (%s)", ns.Labels, o.asked.Labels, o.asked.Annotations, o.asked.Spec.HostNetwork, got, want.Reason, want.Detail)
			}
			if want.Inject {
				injected++
			} else {
				passed++
			}
		}
	}
	t.Logf("%d pods were injected and %d passed", injected, passed)
	if injected < 50 || passed < 500 {
		t.Error("the test does not test")
	}
}

type pair struct {
	outcome
	asked *corev1.Pod
}

func zip(pods []*corev1.Pod, outcomes []outcome) (out []pair) {
	for i := range pods {
		out = append(out, pair{outcomes[i], pods[i]})
	}
	return out
}
