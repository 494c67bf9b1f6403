package inject

import (
	"fmt"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Reason says why a pod gets a sidecar or not. The strings are label values of a metric: they stay.
type Reason string

// The reasons, in the order in which Decide looks for them. The order is Istio's, except for the first three and the last of
// the skips, which Istio leaves to fail later.
const (
	MirrorPod        Reason = "mirror_pod"        // the API server's image of a static pod: the kubelet ignores changes
	OtherSystem      Reason = "other_system"      // not a Linux pod
	AlreadyInjected  Reason = "already_injected"  // has the sidecar and its status annotation
	HostNetwork      Reason = "host_network"      // interception would capture the node's traffic
	IgnoredNamespace Reason = "ignored_namespace" // Kubernetes' own namespaces, and the mesh's
	OptedIn          Reason = "opted_in"          // sidecar.istio.io/inject: "true"
	OptedOut         Reason = "opted_out"         // sidecar.istio.io/inject: "false"
	UnknownOptValue  Reason = "unknown_opt_value" // sidecar.istio.io/inject is neither: taken as "false", as Istio does
	NeverSelector    Reason = "never_selector"    // neverInjectSelector
	AlwaysSelector   Reason = "always_selector"   // alwaysInjectSelector
	PolicyEnabled    Reason = "policy_enabled"    // says nothing, policy: enabled
	PolicyDisabled   Reason = "policy_disabled"   // says nothing, policy: disabled
)

// Verdict is the decision about one pod. Detail is the reason as a sentence that names the label, annotation or field.
type Verdict struct {
	Inject bool
	Reason Reason
	Detail string
	// Surprising is set where the pod itself asks for a sidecar and gets none.
	Surprising bool
}

// SystemNamespaces never get sidecars: what runs there must work before and without the mesh.
var SystemNamespaces = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// Decide says whether the pod gets a sidecar. The labels of its namespace are no part of it: they, and the pod's revision,
// decide at the API server which revision's webhook is called at all (Webhooks). The pod's namespace must be set.
func Decide(pod *corev1.Pod, cfg *Config) Verdict {
	asked, where := optValue(pod)
	wants, known := parseOpt(asked)
	skip := func(r Reason, format string, args ...any) Verdict {
		return Verdict{Reason: r, Detail: fmt.Sprintf(format, args...), Surprising: wants && known && asked != ""}
	}
	switch {
	case pod.Annotations[corev1.MirrorPodAnnotationKey] != "":
		return skip(MirrorPod, "it is the mirror of a static pod, which the kubelet runs as the node's file says")
	case pod.Spec.OS != nil && pod.Spec.OS.Name != corev1.Linux && pod.Spec.OS.Name != "":
		return skip(OtherSystem, "spec.os.name is %s: the sidecar runs on Linux only", pod.Spec.OS.Name)
	case injected(pod):
		return Verdict{Reason: AlreadyInjected, Detail: "it has the sidecar already (annotation " + annotation.SidecarStatus.Name + ")"}
	case pod.Spec.HostNetwork:
		return skip(HostNetwork, "spec.hostNetwork is true: interception would capture the traffic of the whole node")
	case cfg.ignores(pod.Namespace):
		return skip(IgnoredNamespace, "pods of namespace %s never get a sidecar", pod.Namespace)
	}
	if asked != "" {
		switch {
		case !known:
			return Verdict{Reason: UnknownOptValue, Surprising: true,
				Detail: fmt.Sprintf("%s is %q, which is neither \"true\" nor \"false\" and counts as \"false\"", where, asked)}
		case wants:
			return Verdict{Inject: true, Reason: OptedIn, Detail: fmt.Sprintf("%s is %q", where, asked)}
		default:
			return Verdict{Reason: OptedOut, Detail: fmt.Sprintf("%s is %q", where, asked)}
		}
	}
	return cfg.decideUndecided(pod)
}

// decideUndecided is for the pod that says nothing itself.
func (c *Config) decideUndecided(pod *corev1.Pod) Verdict {
	set := labels.Set(pod.Labels)
	for i, s := range c.never {
		if s.Matches(set) {
			return Verdict{Reason: NeverSelector, Detail: fmt.Sprintf("neverInjectSelector[%d] (%s) matches its labels", i, s)}
		}
	}
	for i, s := range c.always {
		if s.Matches(set) {
			return Verdict{Inject: true, Reason: AlwaysSelector, Detail: fmt.Sprintf("alwaysInjectSelector[%d] (%s) matches its labels", i, s)}
		}
	}
	if c.enabled {
		return Verdict{Inject: true, Reason: PolicyEnabled, Detail: "the injection policy is enabled"}
	}
	return Verdict{Reason: PolicyDisabled, Detail: "the injection policy is disabled and the pod does not ask for a sidecar"}
}

// optValue is what the pod says about itself, and where: the label before the deprecated annotation of the same name.
func optValue(pod *corev1.Pod) (value, where string) {
	if v, ok := pod.Labels[label.SidecarInject.Name]; ok {
		return v, "label " + label.SidecarInject.Name
	}
	return pod.Annotations[annotation.SidecarInject.Name], "annotation " + annotation.SidecarInject.Name
}

// parseOpt reads the words that Istio takes for yes, and YAML's for no.
func parseOpt(s string) (yes, known bool) {
	switch strings.ToLower(s) {
	case "true", "y", "yes", "on":
		return true, true
	case "false", "n", "no", "off", "":
		return false, true
	}
	return false, false
}

// injected reports whether the pod has a sidecar that an injector put there. The annotation alone is not enough: it comes
// along when a manifest is copied from a running pod and its containers are cut out.
func injected(pod *corev1.Pod) bool {
	if pod.Annotations[annotation.SidecarStatus.Name] == "" {
		return false
	}
	return proxyIn(pod.Spec.Containers) >= 0 || proxyIn(pod.Spec.InitContainers) >= 0
}

// proxyIn is the index of the sidecar's container, or -1.
func proxyIn(list []corev1.Container) int {
	for i := range list {
		if list[i].Name == ProxyContainer {
			return i
		}
	}
	return -1
}
