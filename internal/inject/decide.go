package inject

import (
	"fmt"
	"slices"

	"istio.io/api/annotation"
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Reason says why a pod gets a sidecar or not. The strings are label values of a metric: they stay.
type Reason string

// The reasons of Decide, in the order in which it looks for them. The order is Istio's, except for the first three, which Istio
// leaves to fail later.
const (
	MirrorPod        Reason = "mirror_pod"        // the API server's image of a static pod: the kubelet ignores changes
	OtherSystem      Reason = "other_system"      // not a Linux pod
	AlreadyInjected  Reason = "already_injected"  // has the sidecar and its status annotation
	HostNetwork      Reason = "host_network"      // interception would capture the node's traffic
	IgnoredNamespace Reason = "ignored_namespace" // Kubernetes' own namespaces, and the mesh's
	OptedIn          Reason = "opted_in"          // sidecar.istio.io/inject: "true"
	OptedOut         Reason = "opted_out"         // sidecar.istio.io/inject: "false"
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
	// Surprising is set where the pod itself says something about its sidecar and gets none although it did not say no.
	Surprising bool
	// Warning is a sentence for the person who creates the pod, whatever was decided: its word about the sidecar could not be
	// used. "" is the rule.
	Warning string
}

// SystemNamespaces never get sidecars: what runs there must work before and without the mesh.
var SystemNamespaces = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// Decide says whether the pod gets a sidecar. The labels of its namespace are no part of it: they, and the pod's revision,
// decide at the API server which revision's webhook is called at all (Admission). The pod's namespace must be set.
func Decide(pod *corev1.Pod, cfg *Config) Verdict {
	asked := askedBy(pod)
	skip := func(r Reason, format string, args ...any) Verdict {
		return Verdict{Reason: r, Detail: fmt.Sprintf(format, args...), Surprising: asked.value == "true"}
	}
	switch {
	case isMirror(pod):
		return skip(MirrorPod, "it is the mirror of a static pod, which the kubelet runs as the node's file says")
	case pod.Spec.OS != nil && pod.Spec.OS.Name != corev1.Linux && pod.Spec.OS.Name != "":
		return skip(OtherSystem, "spec.os.name is %s: the sidecar runs on Linux only", pod.Spec.OS.Name)
	case injected(pod):
		return Verdict{Reason: AlreadyInjected, Detail: "it has the sidecar already (annotation " + annotation.SidecarStatus.Name + ")"}
	case pod.Spec.HostNetwork:
		return skip(HostNetwork, "spec.hostNetwork is true: interception would capture the traffic of the whole node")
	case slices.Contains(SystemNamespaces, pod.Namespace):
		return skip(IgnoredNamespace, "pods of namespace %s never get a sidecar", pod.Namespace)
	case pod.Namespace == cfg.Namespace() && !asksByLabel(pod):
		return skip(IgnoredNamespace, "pods of namespace %s, the mesh's own, get a sidecar only by their own label %s: \"true\"",
			pod.Namespace, label.SidecarInject.Name)
	case asked.value == "true":
		return Verdict{Inject: true, Reason: OptedIn, Detail: asked.String()}
	case asked.value == "false":
		return Verdict{Reason: OptedOut, Detail: asked.String()}
	}
	v := cfg.decideUndecided(pod)
	if asked.value != "" {
		v.Warning = asked.String() + `, which is neither "true" nor "false" and counts as not said`
		v.Surprising = !v.Inject
	}
	return v
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

// Undecided is how pods are decided about that say nothing themselves: never before always before enabled.
func (c *Config) Undecided() (enabled bool, never, always []labels.Selector) {
	return c.enabled, slices.Clone(c.never), slices.Clone(c.always)
}

// wish is what a pod says about its sidecar, and where. Only "true" and "false" are words, in lower case, as in Istio
// 1.31 and in the selectors of the webhooks; anything else is as if nothing was said.
type wish struct{ value, where string }

func (w wish) String() string { return fmt.Sprintf("%s is %q", w.where, w.value) }

// askedBy reads the label before the deprecated annotation of the same name.
func askedBy(pod *corev1.Pod) wish {
	if v, ok := pod.Labels[label.SidecarInject.Name]; ok {
		return wish{v, "label " + label.SidecarInject.Name}
	}
	return wish{pod.Annotations[annotation.SidecarInject.Name], "annotation " + annotation.SidecarInject.Name}
}

func asksByLabel(pod *corev1.Pod) bool { return pod.Labels[label.SidecarInject.Name] == "true" }

// isMirror reports whether the pod is the API server's image of one that a node runs from a file.
func isMirror(pod *corev1.Pod) bool {
	_, is := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return is
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
