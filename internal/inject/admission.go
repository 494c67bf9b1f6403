package inject

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"istio.io/api/annotation"
	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// The reasons of Expect when the API server calls no webhook for a pod, beside those of Decide.
const (
	NoInjector        Reason = "no_injector"        // the cluster has no injecting webhook at all
	NamespaceDisabled Reason = "namespace_disabled" // istio-injection is not "enabled"
	NoDefaultRevision Reason = "no_default"         // the labels name no revision, and there is no default one
	UnknownRevision   Reason = "unknown_revision"   // istio.io/rev names no revision or tag that is installed
	UnknownOptValue   Reason = "unknown_opt_value"  // sidecar.istio.io/inject is neither "true" nor "false", and nothing else asks
	AnnotationOnly    Reason = "annotation_only"    // only the deprecated annotation asks, which no webhook's selector can see
	NotSelected       Reason = "not_selected"       // neither the namespace nor the pod asks for a sidecar
	NotMatched        Reason = "not_matched"        // a selector or condition that is not this package's keeps the pod out
)

// Missed is the reason of a pod without a sidecar that would get one if it were created now. Expect never gives it.
const Missed Reason = "missed"

// Reasons are all reasons that there are, in the order of the documentation.
var Reasons = []Reason{
	OptedIn, AlwaysSelector, PolicyEnabled, AlreadyInjected,
	OptedOut, NotSelected, NamespaceDisabled, NeverSelector, PolicyDisabled, HostNetwork, IgnoredNamespace, MirrorPod, OtherSystem,
	UnknownRevision, NoDefaultRevision, NoInjector, UnknownOptValue, AnnotationOnly, NotMatched, Missed,
}

// Advice is the next step for a pod without a sidecar, as a sentence with its full stop; "" where there is none to take.
func (r Reason) Advice() string {
	switch r {
	case Missed:
		return "Create its pods anew, such as by kubectl rollout restart."
	case UnknownRevision:
		return "Name a revision or tag that is installed, or install that one, and create the pods anew."
	case NoDefaultRevision:
		return "Name a revision by the label istio.io/rev, or install one with --set-default, and create the pods anew."
	case NoInjector:
		return "Run selvage install, and create the pods anew."
	case UnknownOptValue:
		return "Write \"true\" or \"false\"."
	case AnnotationOnly:
		return "Write the label sidecar.istio.io/inject: \"true\" into the pod template."
	case HostNetwork:
		return "Run it without hostNetwork, or say sidecar.istio.io/inject: \"false\" by a label of the pod template."
	case IgnoredNamespace, OtherSystem:
		return "Say sidecar.istio.io/inject: \"false\" by a label of the pod template, or run it elsewhere."
	case NamespaceDisabled:
		return "Take the label istio-injection off the namespace, or set it to enabled, and create the pods anew."
	case NeverSelector, PolicyDisabled:
		return "Write the label sidecar.istio.io/inject: \"true\" into the pod template if it should have one."
	case NotMatched:
		return "Look at the selectors of the MutatingWebhookConfiguration: selvage install sets them back."
	case NotSelected:
		return "Label the namespace istio-injection=enabled, or the pod sidecar.istio.io/inject: \"true\", if it should have one."
	default: // it has one, or somebody wanted none
		return ""
	}
}

// Admission knows what a cluster does to a pod at its creation: which webhooks the API server would call, and what the
// revisions behind them would decide. It is immutable and may be shared.
type Admission struct {
	entries  []hook
	configs  map[string]*Config
	answers  map[string][]string // values of istio.io/rev that an entry selects → the configurations
	excluded map[string]bool     // namespaces that an entry leaves out by name
}

// hook is one injecting entry, its selectors compiled.
type hook struct {
	Called
	revision, tag     string
	namespace, object labels.Selector
	conditions        []func(*corev1.Pod) bool // those that this package knows
	foreign           []string                 // names of those it does not
}

// Called names a webhook entry.
type Called struct {
	Configuration string // the MutatingWebhookConfiguration
	Entry         string // one of its webhooks, such as namespace.sidecar-injector.istio.io
}

func (c Called) String() string { return c.Configuration + "/" + c.Entry }

// Expectation is what would happen to a pod if it were created now.
type Expectation struct {
	// Verdict is whether the pod gets a sidecar and why. Detail names the label, annotation or field that made it so. Surprising
	// is wider than Decide's: also where the namespace asks for a sidecar and the pod gets none.
	Verdict
	// Webhook is the entry that the API server calls for the pod, zero when it calls none. Decided by its selectors and, as far
	// as they are ours, its matchConditions.
	Webhook Called
	// Selected is the entry whose labels select the pod; it differs from Webhook only where a condition keeps the pod out.
	Selected Called
	// Revision is whose configuration decides, and Tag the tag that led there; both "" when no labels select the pod.
	Revision, Tag string
	// Asks says which label or annotation asks for a sidecar, as a phrase; "" when none does, or the pod itself says no.
	Asks string
	// AsksItself is set where the pod says so and not only its namespace.
	AsksItself bool
	// Warnings are what is wrong with the labels, whether or not it mattered here.
	Warnings []diag.Problem
}

// NewAdmission compiles what a cluster has: all its MutatingWebhookConfigurations (those that inject no sidecars are left out
// here) and the configuration of each revision, as far as it is known. A revision without one decides as a fresh installation
// does, and a warning says so. A selector that cannot be parsed selects nothing, as for the API server, which would have
// refused it.
func NewAdmission(webhooks []admissionv1.MutatingWebhookConfiguration, configs map[string]*Config) *Admission {
	a := &Admission{configs: configs, answers: map[string][]string{}, excluded: map[string]bool{}}
	sorted := slices.Clone(webhooks) // the API server calls by name of the configuration, then in the order of entries
	slices.SortStableFunc(sorted, func(x, y admissionv1.MutatingWebhookConfiguration) int { return cmp.Compare(x.Name, y.Name) })
	for i := range sorted {
		for j := range sorted[i].Webhooks {
			if w := &sorted[i].Webhooks[j]; strings.HasSuffix(w.Name, WebhookSuffix) {
				a.add(&sorted[i], w)
			}
		}
	}
	return a
}

func (a *Admission) add(c *admissionv1.MutatingWebhookConfiguration, w *admissionv1.MutatingWebhook) {
	h := hook{Called: Called{c.Name, w.Name}, revision: c.Labels[label.IoIstioRev.Name], tag: c.Labels[label.IoIstioTag.Name]}
	if h.revision == "" {
		h.revision = DefaultRevision
	}
	var err error
	if h.namespace, err = metav1.LabelSelectorAsSelector(w.NamespaceSelector); err != nil {
		h.namespace = labels.Nothing()
	}
	if h.object, err = metav1.LabelSelectorAsSelector(w.ObjectSelector); err != nil {
		h.object = labels.Nothing()
	}
	if w.NamespaceSelector == nil {
		h.namespace = labels.Everything() // a nil selector would match nothing; the API server fills in an empty one
	}
	if w.ObjectSelector == nil {
		h.object = labels.Everything()
	}
	for _, m := range w.MatchConditions {
		if holds := conditionOf(m); holds != nil {
			h.conditions = append(h.conditions, holds)
		} else {
			h.foreign = append(h.foreign, m.Name)
		}
	}
	a.entries = append(a.entries, h)
	for _, s := range []*metav1.LabelSelector{w.NamespaceSelector, w.ObjectSelector} {
		for _, v := range valuesOf(s, label.IoIstioRev.Name, metav1.LabelSelectorOpIn) {
			if !slices.Contains(a.answers[v], c.Name) {
				a.answers[v] = append(a.answers[v], c.Name)
			}
		}
		for _, v := range valuesOf(s, corev1.LabelMetadataName, metav1.LabelSelectorOpNotIn) {
			a.excluded[v] = true
		}
	}
}

// valuesOf are the values of a label that a selector asks for, or leaves out.
func valuesOf(s *metav1.LabelSelector, key string, op metav1.LabelSelectorOperator) (values []string) {
	if s == nil {
		return nil
	}
	if v, ok := s.MatchLabels[key]; ok && op == metav1.LabelSelectorOpIn {
		values = append(values, v)
	}
	for _, r := range s.MatchExpressions {
		if r.Key == key && r.Operator == op {
			values = append(values, r.Values...)
		}
	}
	return values
}

// Expect says what would happen to the pod in the namespace: the one function behind `selvage inject --check`, the watcher of
// pods and the tests of the whole. Neither object is changed; of the namespace the name, the labels and the annotations count.
// The pod may be a live one, which has its sidecar already.
func (a *Admission) Expect(ns *corev1.Namespace, pod *corev1.Pod) Expectation {
	if pod.Namespace != ns.Name {
		moved := *pod
		moved.Namespace = ns.Name
		pod = &moved
	}
	e := Expectation{Asks: asks(ns, pod), AsksItself: asks(&corev1.Namespace{}, pod) != ""}
	e.Warnings = a.labelProblems(ns, pod)
	selected := a.selected(ns, pod)
	if len(selected) == 0 {
		e.Verdict = a.unselected(ns, pod)
		e.Surprising = e.Reason != AlreadyInjected && (e.Asks != "" || e.Reason == UnknownOptValue)
		return e
	}
	var called []*hook
	for _, h := range selected {
		if !slices.ContainsFunc(h.conditions, func(holds func(*corev1.Pod) bool) bool { return !holds(pod) }) {
			called = append(called, h)
		}
	}
	first := selected[0]
	if len(called) > 0 {
		first = called[0]
		e.Webhook = first.Called
	}
	e.Selected, e.Revision, e.Tag = first.Called, first.revision, first.tag
	config, assumed := a.config(first.revision)
	e.Verdict = Decide(pod, config)
	if e.Inject && len(called) == 0 {
		e.Verdict = Verdict{Reason: NotMatched, Detail: "a matchCondition of webhook " + first.String() + " keeps it out"}
	}
	e.Surprising = e.Surprising || !e.Inject && e.Reason != AlreadyInjected && e.Asks != ""
	if e.Reason == MirrorPod { // nobody can change it, and nobody is there to be told
		e.Surprising = false
	}
	if assumed {
		e.Warnings = append(e.Warnings, problemOf(diag.InvalidInjectConfig, diag.Info, subjectOf(pod), "",
			fmt.Sprintf("the configuration of revision %s is not known here: it is taken to decide as a fresh installation", first.revision), ""))
	}
	e.Warnings = append(e.Warnings, callProblems(called, pod)...)
	return e
}

// selected are the entries whose selectors match, in the order in which the API server calls them.
func (a *Admission) selected(ns *corev1.Namespace, pod *corev1.Pod) (out []*hook) {
	namespace := labels.Set(ns.Labels)
	if namespace[corev1.LabelMetadataName] != ns.Name { // every namespace has it; one from a file may not yet
		namespace = labels.Merge(namespace, labels.Set{corev1.LabelMetadataName: ns.Name})
	}
	for i := range a.entries {
		if h := &a.entries[i]; h.namespace.Matches(namespace) && h.object.Matches(labels.Set(pod.Labels)) {
			out = append(out, h)
		}
	}
	return out
}

// config is the revision's, or a fresh installation's when it is not known.
func (a *Admission) config(revision string) (c *Config, assumed bool) {
	if c := a.configs[revision]; c != nil {
		return c, false
	}
	return defaultConfig(), true
}

// unselected finds why no labels select the pod, in the order in which the selectors ask.
func (a *Admission) unselected(ns *corev1.Namespace, pod *corev1.Pod) Verdict {
	no := func(r Reason, format string, args ...any) Verdict {
		return Verdict{Reason: r, Detail: fmt.Sprintf(format, args...)}
	}
	injection, hasInjection := ns.Labels[NamespaceInjection]
	namespaceRev, hasNamespaceRev := ns.Labels[label.IoIstioRev.Name]
	podRev, hasPodRev := pod.Labels[label.IoIstioRev.Name]
	asked := askedBy(pod)
	switch {
	case injected(pod):
		return no(AlreadyInjected, "it has the sidecar already (annotation %s)", annotation.SidecarStatus.Name)
	case asked.value == "false":
		return no(OptedOut, "%s", asked)
	case slices.Contains(SystemNamespaces, ns.Name):
		return no(IgnoredNamespace, "pods of namespace %s never get a sidecar", ns.Name)
	case hasInjection && injection == "disabled":
		return no(NamespaceDisabled, "label %s of namespace %s is %q", NamespaceInjection, ns.Name, injection)
	case hasInjection && injection != "enabled":
		return no(NamespaceDisabled, "label %s of namespace %s is %q, which is not \"enabled\" and counts as \"disabled\"", NamespaceInjection, ns.Name, injection)
	case len(a.entries) == 0 && asks(ns, pod) != "":
		return no(NoInjector, "%s, and this cluster has no webhook that injects sidecars", asks(ns, pod))
	case hasInjection && a.own(ns.Name), hasNamespaceRev && a.own(ns.Name):
		return no(IgnoredNamespace, "labels of namespace %s, the mesh's own, bring no sidecars to its pods", ns.Name)
	case hasInjection && len(a.answers[DefaultRevision]) == 0:
		return no(NoDefaultRevision, "label %s of namespace %s is \"enabled\", and there is neither a revision %q nor a tag of that name",
			NamespaceInjection, ns.Name, DefaultRevision)
	case hasNamespaceRev && len(a.answers[namespaceRev]) == 0:
		return no(UnknownRevision, "label %s of namespace %s is %q, and no revision or tag of that name is installed (there is %s)",
			label.IoIstioRev.Name, ns.Name, namespaceRev, a.installed())
	case hasPodRev && !hasInjection && !hasNamespaceRev && len(a.answers[podRev]) == 0:
		return no(UnknownRevision, "label %s of the pod is %q, and no revision or tag of that name is installed (there is %s)",
			label.IoIstioRev.Name, podRev, a.installed())
	case hasInjection, hasNamespaceRev, hasPodRev:
		return no(NotMatched, "the selectors of the webhooks that answer its labels keep it out")
	case asksByLabel(pod) && len(a.answers[DefaultRevision]) == 0:
		return no(NoDefaultRevision, "%s, and there is neither a revision %q nor a tag of that name: add the label %s", asked, DefaultRevision, label.IoIstioRev.Name)
	case asksByLabel(pod):
		return no(NotMatched, "the selectors of the webhooks that answer its labels keep it out")
	case asked.value == "true":
		return no(AnnotationOnly, "%s, which no webhook can be selected by: make it a label", asked)
	case asked.value != "":
		return no(UnknownOptValue, "%s, which is neither \"true\" nor \"false\" and counts as not said", asked)
	}
	return no(NotSelected, "neither the pod nor namespace %s has a label that asks for a sidecar", ns.Name)
}

// own reports whether the namespace is a mesh's own: the registrations leave it out of what namespaces' labels can ask for.
func (a *Admission) own(namespace string) bool {
	return a.excluded[namespace] && !slices.Contains(SystemNamespaces, namespace)
}

// installed lists the revisions and tags for a sentence.
func (a *Admission) installed() string {
	var names []string
	for v := range a.answers {
		names = append(names, v)
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// defaultConfig is what a revision decides by whose own configuration is not known.
var defaultConfig = sync.OnceValue(func() *Config {
	c, problems := Default("").Compile()
	if c == nil {
		panic(fmt.Sprintf("the built-in settings are wrong: %v", problems))
	}
	return c
})

// asks finds the label or annotation that asks for a sidecar for the pod, in the order in which they count.
func asks(ns *corev1.Namespace, pod *corev1.Pod) string {
	asked := askedBy(pod)
	rev, hasRev := ns.Labels[label.IoIstioRev.Name]
	injection, hasInjection := ns.Labels[NamespaceInjection]
	podRev, hasPodRev := pod.Labels[label.IoIstioRev.Name]
	switch {
	case asked.value == "false":
		return ""
	case asked.value == "true":
		return asked.String()
	case injection == "enabled":
		return fmt.Sprintf("label %s of namespace %s is \"enabled\"", NamespaceInjection, ns.Name)
	case hasInjection:
		return ""
	case hasRev:
		return fmt.Sprintf("label %s of namespace %s is %q", label.IoIstioRev.Name, ns.Name, rev)
	case hasPodRev:
		return fmt.Sprintf("label %s is %q", label.IoIstioRev.Name, podRev)
	}
	return ""
}
