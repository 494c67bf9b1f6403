package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"istio.io/api/annotation"
	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// TrialPods are pods of the probe's namespace by which a template is tried: one without wishes, and one with as many as there are. No
// webhook of the mesh selects them. What the API server would fill in stands in them, so that inject sees what the policy sees.
func TrialPods(rev string) []*corev1.Pod {
	no, yes, service := false, true, "health"
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: verdict.Namespace, Name: name, Labels: map[string]string{TrialLabel: "true", label.IoIstioRev.Name: TrialValue(rev)}}
	}
	plain := &corev1.Pod{ObjectMeta: meta("selvage-trial"), Spec: corev1.PodSpec{AutomountServiceAccountToken: &no, Containers: []corev1.Container{{Name: "a", Image: "selvage.invalid/a"}}}}
	get := func(port intstr.IntOrString, path string) *corev1.HTTPGetAction {
		return &corev1.HTTPGetAction{Path: path, Port: port, Scheme: corev1.URISchemeHTTP}
	}
	rich := plain.DeepCopy()
	rich.ObjectMeta = meta("selvage-trial-7c9-x")
	rich.Labels["pod-template-hash"], rich.Labels["version"], rich.Labels[label.TopologyNetwork.Name] = "7c9", "v1", "n2"
	rich.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "selvage-trial-7c9", Controller: &yes, UID: "1"}}
	rich.Annotations = map[string]string{
		annotation.SidecarProxyImage.Name: "selvage.invalid/proxy", annotation.SidecarProxyCPU.Name: "50m", annotation.SidecarProxyMemoryLimit.Name: "1Gi",
		annotation.SidecarLogLevel.Name: "debug", annotation.SidecarComponentLogLevel.Name: "http:trace, misc:error", annotation.SidecarAgentLogLevel.Name: "debug",
		annotation.SidecarTrafficIncludeInboundPorts.Name: "80, 443", annotation.SidecarTrafficExcludeInboundPorts.Name: "22", annotation.SidecarTrafficIncludeOutboundIPRanges.Name: "10.0.0.0/8",
		annotation.SidecarTrafficExcludeOutboundPorts.Name: "3306", annotation.SidecarTrafficExcludeInterfaces.Name: "eth1",
		annotation.SidecarStatusReadinessPeriodSeconds.Name: "3", prometheusScrape: "true", prometheusPort: "9090",
	}
	rich.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}
	rich.Spec.Containers[0].ReadinessProbe = &corev1.Probe{TimeoutSeconds: 2, ProbeHandler: corev1.ProbeHandler{HTTPGet: get(intstr.FromString("http"), "/ready?a=1&b=2")}}
	rich.Spec.Containers[0].LivenessProbe = &corev1.Probe{TimeoutSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}}
	rich.Spec.Containers[0].StartupProbe = &corev1.Probe{TimeoutSeconds: 1, ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9090, Service: &service}}}
	rich.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: get(intstr.FromInt32(8080), "/stop")}}
	rich.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}
	rich.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "selvage.invalid/i"}}
	return []*corev1.Pod{plain, rich}
}

// TrialFields are those of the parameter for the trial of a template: the pods of TrialPods ask for it, and nobody else.
func TrialFields(rev string, t *Template) map[string]any {
	out := map[string]any{"names": []string{TrialValue(rev)}, "everyNamespace": false, "enabled": true, "never": []any{}, "always": []any{}}
	out["injection"] = t.Parameter()["injection"]
	return out
}

// Differs compares two pods as the API server gave them, but for what it makes for each, and names the first field that is not the same;
// "" when they are.
func Differs(want, got *corev1.Pod) string {
	trees := make([]any, 2)
	for i, pod := range []*corev1.Pod{want, got} {
		p := pod.DeepCopy()
		p.UID, p.CreationTimestamp, p.ManagedFields, p.ResourceVersion, p.Generation = "", metav1.Time{}, nil, "", 0
		data, err := json.Marshal(p)
		if err != nil {
			return "it cannot be encoded: " + err.Error()
		}
		if err := json.Unmarshal(data, &trees[i]); err != nil {
			return "it cannot be decoded: " + err.Error()
		}
	}
	return differs("", trees[0], trees[1])
}

func differs(path string, want, got any) string {
	w, isMap := want.(map[string]any)
	g, both := got.(map[string]any)
	if isMap && both {
		keys := map[string]bool{}
		for key := range w {
			keys[key] = true
		}
		for key := range g {
			keys[key] = true
		}
		sorted := make([]string, 0, len(keys))
		for key := range keys {
			sorted = append(sorted, key)
		}
		slices.Sort(sorted)
		for _, key := range sorted {
			if d := differs(path+"."+key, w[key], g[key]); d != "" {
				return d
			}
		}
		return ""
	}
	wl, isList := want.([]any)
	gl, both := got.([]any)
	if isList && both && len(wl) == len(gl) {
		for i := range wl {
			if d := differs(fmt.Sprintf("%s[%d]", path, i), wl[i], gl[i]); d != "" {
				return d
			}
		}
		return ""
	}
	a, _ := json.Marshal(want) // both came from JSON
	b, _ := json.Marshal(got)
	if string(a) == string(b) {
		return ""
	}
	return fmt.Sprintf("%s is %s, where the injector makes it %s", strings.TrimPrefix(path, "."), cut(string(b)), cut(string(a)))
}

// cut shortens a value for a message.
func cut(s string) string {
	const most = 120
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// More reasons, of injection.
const (
	Unsupported Reason = "Unsupported" // the configuration asks for what a policy cannot do
	Different   Reason = "Different"   // the policy makes another pod than the injector
)

// InjectionState is whether the API server injects the pods of a revision by itself. The zero value is that nothing is known yet.
type InjectionState struct {
	ByPolicy bool   `json:"byPolicy"`
	Reason   Reason `json:"reason"`
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

const again = "`selvage install --injection policy` of the control plane's release makes policy and bindings anew"

// InjectsByPolicy is the state of a proof.
func InjectsByPolicy(rev string) InjectionState {
	return InjectionState{ByPolicy: true, Reason: ProvenHeld, Message: "pods that were created as dry runs came out of MutatingAdmissionPolicy " + InjectionName(rev) + " as the injector makes them"}
}

// NoInjectionPolicy is the state of an installation that leaves injection to the webhook.
func NoInjectionPolicy(rev string) InjectionState {
	return InjectionState{Reason: NotInstalled, Message: "there is no AdmissionParameter " + InjectionName(rev) + ": the webhook injects", Hint: "`selvage install --injection policy` makes it, with its policy, where the API server serves MutatingAdmissionPolicy v1"}
}

// InjectionUnsupported is the state of a configuration that a policy cannot carry out.
func InjectionUnsupported(problems []diag.Problem) InjectionState {
	p := problems[0]
	where := strings.TrimPrefix(p.Field, "data.")
	if where != "" {
		where = p.Object.String() + " " + where + ": "
	}
	return InjectionState{Reason: Unsupported, Message: where + p.Detail, Hint: p.Hint}
}

// InjectionDiffers is the state of a policy that makes another pod than the injector.
func InjectionDiffers(rev, pod, difference string) InjectionState {
	return InjectionState{Reason: Different, Message: fmt.Sprintf("MutatingAdmissionPolicy %s is behind its template: of pod %s, created as a dry run, %s; its template was taken out, and the webhook injects", InjectionName(rev), pod, difference), Hint: again}
}

// InjectionNotInForce is the state of a policy that did nothing to a pod.
func InjectionNotInForce(rev string) InjectionState {
	return InjectionState{Reason: Inactive, Message: fmt.Sprintf("a pod that was created as a dry run got no sidecar from MutatingAdmissionPolicy %s: it, or its binding %s, is not in force; the webhook injects what it does not", InjectionName(rev), TrialName(rev)), Hint: again}
}

// InjectionUnproven is the state when the dry run failed.
func InjectionUnproven(err error) InjectionState {
	return InjectionState{Reason: Unproven, Message: fmt.Sprintf("the dry run that would prove it failed: %v; what was proven last stays in force", err)}
}

// Wrong reports whether a person should know: the policy is installed and does not inject.
func (s InjectionState) Wrong() bool {
	return s.Reason == Unsupported || s.Reason == Different || s.Reason == Inactive
}

// Problem is what to tell about a state that is wrong.
func (s InjectionState) Problem(rev string) diag.Problem {
	return diag.Problem{Code: diag.InjectionNotByPolicy, Severity: diag.Warning, Object: ref.Ref{Group: "admissionregistration.k8s.io", Kind: Mutating, Name: InjectionName(rev)}, Detail: s.Message, Hint: s.Hint}
}

// HasSidecar reports whether a pod that came out of admission has one.
func HasSidecar(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == inject.ProxyContainer })
}
