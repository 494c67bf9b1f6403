package inject

import (
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NamespaceInjection is the label by which people switch injection on for a namespace. Istio's label package does not have it.
const NamespaceInjection = "istio-injection"

// DefaultTag is the tag that stands for the default revision where no revision of that name is installed.
const DefaultTag = DefaultRevision

// The names of the webhook entries. Istio's patchers, and ours, find them by their common suffix.
const (
	RevisionNamespaceWebhook = "rev.namespace.sidecar-injector.istio.io"
	RevisionObjectWebhook    = "rev.object.sidecar-injector.istio.io"
	NamespaceWebhook         = "namespace.sidecar-injector.istio.io"
	ObjectWebhook            = "object.sidecar-injector.istio.io"
	AutoWebhook              = "auto.sidecar-injector.istio.io" // only with enableNamespacesByDefault
)

// WebhookSuffix is the end of every injecting entry's name, Istio's too.
const WebhookSuffix = "sidecar-injector.istio.io"

// Endpoint is where the API server finds the webhook: URL when it is set, otherwise the Service.
type Endpoint struct {
	Namespace string // of the Service, and the mesh's own
	Service   string
	Port      int32  // of the Service; 0 is 443
	URL       string // https://HOST:PORT, without a path; "" uses the Service
}

// Registration is a MutatingWebhookConfiguration that injection needs: a revision's own, or a tag's, by which labels name a
// revision under another name.
type Registration struct {
	Revision string // "" is the default one
	Tag      string // "" for the revision's own configuration
	Endpoint Endpoint
	// EnableNamespacesByDefault asks for pods of namespaces without any label too: the value of that name of Istio's charts.
	// It concerns the default revision and the default tag.
	EnableNamespacesByDefault bool
	// AfterPolicy says that an admission policy injects first, within the API server: the webhook is called for pods that have no sidecar
	// by then, and so is not needed for the others.
	AfterPolicy bool
}

// Name is the configuration's, as Istio's tools know it.
func (r Registration) Name() string {
	if r.Tag != "" {
		return "istio-revision-tag-" + r.Tag
	}
	return ObjectName(InjectorConfigMap, r.Revision)
}

// value is what istio.io/rev must be for this registration.
func (r Registration) value() string {
	if r.Tag != "" {
		return r.Tag
	}
	return r.revision()
}

func (r Registration) revision() string {
	if r.Revision == "" {
		return DefaultRevision
	}
	return r.Revision
}

// Configuration is the object. Patchers of caBundle know it by the label istio.io/rev, which is the revision that answers, also
// for a tag.
func (r Registration) Configuration() *admissionv1.MutatingWebhookConfiguration {
	c := &admissionv1.MutatingWebhookConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: r.Name(), Labels: map[string]string{
			"app": "sidecar-injector", label.IoIstioRev.Name: r.revision(),
		}},
		Webhooks: r.Webhooks(),
	}
	if r.Tag != "" {
		c.Labels[label.IoIstioTag.Name] = r.Tag
	}
	return c
}

// Webhooks are the entries. The default revision and the default tag have more than the others, for the labels that name no
// revision; they exclude each other. Of all other registrations together at most one entry matches a pod, whatever its labels
// and its namespace's: istio-injection decides before istio.io/rev, and the namespace before the pod.
//
// Namespace labels never count in Kubernetes' own namespaces and in the mesh's own, where a pod without its sidecar is better
// than none; in the latter a pod may ask for one itself, as gateways do that people run there.
//
// The entries have no caBundle: whoever owns that field sets it, and an apply without it leaves it alone.
func (r Registration) Webhooks() []admissionv1.MutatingWebhook {
	rev, optOut := label.IoIstioRev.Name, label.SidecarInject.Name
	in, notIn := metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn
	entries := []admissionv1.MutatingWebhook{
		r.entry(RevisionNamespaceWebhook, r.systemAndOwn(),
			requirements{require(rev, in, r.value()), absent(NamespaceInjection)},
			requirements{require(optOut, notIn, "false")}),
		r.entry(RevisionObjectWebhook, SystemNamespaces,
			requirements{absent(rev), absent(NamespaceInjection)},
			requirements{require(optOut, notIn, "false"), require(rev, in, r.value())}),
	}
	entries[1].MatchConditions = append(entries[1].MatchConditions, askInOwn.of(r.Endpoint.Namespace))
	if r.value() != DefaultRevision {
		return entries
	}
	entries = append(entries,
		r.entry(NamespaceWebhook, r.systemAndOwn(),
			requirements{require(NamespaceInjection, in, "enabled")},
			requirements{require(optOut, notIn, "false")}),
		r.entry(ObjectWebhook, SystemNamespaces,
			requirements{absent(NamespaceInjection), absent(rev)},
			requirements{require(optOut, in, "true"), absent(rev)}))
	if r.EnableNamespacesByDefault {
		entries = append(entries, r.entry(AutoWebhook, r.systemAndOwn(),
			requirements{absent(NamespaceInjection), absent(rev)},
			requirements{absent(optOut), absent(rev)}))
	}
	return entries
}

// systemAndOwn are the namespaces that no label of theirs brings sidecars to.
func (r Registration) systemAndOwn() []string {
	return append(slices.Clone(SystemNamespaces), r.Endpoint.Namespace)
}

type requirements = []metav1.LabelSelectorRequirement

func require(key string, op metav1.LabelSelectorOperator, values ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: values}
}

func absent(key string) metav1.LabelSelectorRequirement {
	return require(key, metav1.LabelSelectorOpDoesNotExist)
}

// entry is one webhook, every field that the API server would fill in set, so that comparing finds no difference.
func (r Registration) entry(name string, excluded []string, namespace, object requirements) admissionv1.MutatingWebhook {
	excluded = slices.Clone(excluded)
	slices.Sort(excluded)
	namespace = append(namespace, require(corev1.LabelMetadataName, metav1.LabelSelectorOpNotIn, slices.Compact(excluded)...))
	var (
		fail       = admissionv1.Fail
		equivalent = admissionv1.Equivalent
		none       = admissionv1.SideEffectClassNone
		never      = admissionv1.NeverReinvocationPolicy
		scope      = admissionv1.NamespacedScope
		timeout    = int32(10)
	)
	w := admissionv1.MutatingWebhook{
		Name:         name,
		ClientConfig: r.Endpoint.Client("/inject"),
		Rules: []admissionv1.RuleWithOperations{{
			Operations: []admissionv1.OperationType{admissionv1.Create},
			Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: &scope},
		}},
		FailurePolicy:           &fail,
		MatchPolicy:             &equivalent,
		NamespaceSelector:       &metav1.LabelSelector{MatchExpressions: namespace},
		ObjectSelector:          &metav1.LabelSelector{MatchExpressions: object},
		SideEffects:             &none,
		TimeoutSeconds:          &timeout,
		AdmissionReviewVersions: []string{"v1"},
		ReinvocationPolicy:      &never,
	}
	for _, c := range neverInjected {
		w.MatchConditions = append(w.MatchConditions, c.of(""))
	}
	if r.AfterPolicy {
		w.MatchConditions = append(w.MatchConditions, notInjected.of(""))
	}
	return w
}

// IsAfterPolicy reports whether an entry is called only where a policy has not injected.
func IsAfterPolicy(w *admissionv1.MutatingWebhook) bool {
	return slices.ContainsFunc(w.MatchConditions, func(m admissionv1.MatchCondition) bool { return m.Name == notInjected.name })
}

// SetAfterPolicy makes an entry one that is called only where a policy has not injected, or one that is always called.
func SetAfterPolicy(w *admissionv1.MutatingWebhook, after bool) {
	w.MatchConditions = slices.DeleteFunc(slices.Clone(w.MatchConditions), func(m admissionv1.MatchCondition) bool { return m.Name == notInjected.name })
	if after {
		w.MatchConditions = append(w.MatchConditions, notInjected.of(""))
	}
}

// Client leads to a path of the webhook.
func (e Endpoint) Client(path string) (c admissionv1.WebhookClientConfig) {
	port := e.Port
	if e.URL != "" {
		url := e.URL + path
		c.URL = &url
		return c
	}
	if port == 0 {
		port = 443
	}
	c.Service = &admissionv1.ServiceReference{Namespace: e.Namespace, Name: e.Service, Path: &path, Port: &port}
	return c
}

// condition is a CEL expression that a pod must satisfy for the API server to call an entry, and the same in Go. The expression
// may hold one name of a namespace, in place of NAMESPACE.
type condition struct {
	name, expression string
	holds            func(pod *corev1.Pod, namespace string) bool
}

// neverInjected are the conditions of every entry. They keep pods that Decide always refuses from costing a call, and from
// depending on the control plane being up.
var neverInjected = []condition{
	{"not-host-network", "!has(object.spec.hostNetwork) || !object.spec.hostNetwork",
		func(pod *corev1.Pod, _ string) bool { return !pod.Spec.HostNetwork }},
	{"not-mirror", "!has(object.metadata.annotations) || !('" + corev1.MirrorPodAnnotationKey + "' in object.metadata.annotations)",
		func(pod *corev1.Pod, _ string) bool { return !isMirror(pod) }},
	{"linux", "!has(object.spec.os) || object.spec.os.name == 'linux'",
		func(pod *corev1.Pod, _ string) bool { return pod.Spec.OS == nil || pod.Spec.OS.Name == corev1.Linux }},
	{"not-opted-out", "has(object.metadata.labels) && '" + label.SidecarInject.Name + "' in object.metadata.labels || " +
		"!has(object.metadata.annotations) || !('" + label.SidecarInject.Name + "' in object.metadata.annotations) || " +
		"object.metadata.annotations['" + label.SidecarInject.Name + "'] != 'false'",
		func(pod *corev1.Pod, _ string) bool { return askedBy(pod).value != "false" || asksLabel(pod) }},
}

// askInOwn keeps the control plane's own pods, which carry the label of their revision, from waiting for themselves.
var askInOwn = condition{"own-namespace-asks", "request.namespace != 'NAMESPACE' || " +
	"has(object.metadata.labels) && '" + label.SidecarInject.Name + "' in object.metadata.labels && " +
	"object.metadata.labels['" + label.SidecarInject.Name + "'] == 'true'",
	func(pod *corev1.Pod, namespace string) bool { return pod.Namespace != namespace || asksByLabel(pod) }}

// notInjected keeps pods that have their sidecar from costing a call: they got it from a policy of the API server's.
var notInjected = condition{"not-injected", "!(has(object.metadata.annotations) && '" + annotation.SidecarStatus.Name + "' in object.metadata.annotations && " +
	"object.metadata.annotations['" + annotation.SidecarStatus.Name + "'] != '' && (object.spec.containers.exists(c, c.name == '" + ProxyContainer + "') || " +
	"has(object.spec.initContainers) && object.spec.initContainers.exists(c, c.name == '" + ProxyContainer + "')))",
	func(pod *corev1.Pod, _ string) bool { return !injected(pod) }}

// asksLabel reports whether the pod has the label at all; the annotation counts for nothing then.
func asksLabel(pod *corev1.Pod) bool { _, has := pod.Labels[label.SidecarInject.Name]; return has }

// of is the condition as Kubernetes wants it.
func (c condition) of(namespace string) admissionv1.MatchCondition {
	return admissionv1.MatchCondition{Name: c.name, Expression: strings.ReplaceAll(c.expression, "NAMESPACE", namespace)}
}

// conditionOf finds the Go form of an expression of ours; nil for any other.
func conditionOf(m admissionv1.MatchCondition) func(*corev1.Pod) bool {
	for _, c := range append(slices.Clone(neverInjected), askInOwn, notInjected) {
		before, after, placed := strings.Cut(c.expression, "NAMESPACE")
		rest, found := strings.CutPrefix(m.Expression, before)
		namespace, ends := strings.CutSuffix(rest, after)
		if found && ends && (placed || rest == after) {
			return func(pod *corev1.Pod) bool { return c.holds(pod, namespace) }
		}
	}
	return nil
}
