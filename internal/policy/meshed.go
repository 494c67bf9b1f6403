package policy

import (
	"fmt"

	"istio.io/api/annotation"
	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// MeshedName is the name of a revision's guard of pods, of its binding and of its parameter.
func MeshedName(rev string) string { return inject.ObjectName(meshedName, rev) }

// selectorMatches is the CEL of a label selector: whether one of a list of selectors in the parameter matches the pod's labels.
func selectorMatches(field string) string {
	return "has(params.spec." + field + ") && params.spec." + field + ".exists(s, s.all.all(r, " +
		"r.operator == 'In' ? r.key in variables.labels && variables.labels[r.key] in r.values : " +
		"r.operator == 'NotIn' ? !(r.key in variables.labels && variables.labels[r.key] in r.values) : " +
		"r.operator == 'Exists' ? r.key in variables.labels : !(r.key in variables.labels)))"
}

// meshed flags a pod that a webhook of the revision should have injected and that has no sidecar, whatever the cause: the webhook failed
// open, was deleted, was bypassed. It decides as inject.Registration.Webhooks and inject.Decide do; a test compares them for every
// combination of labels. Which names lead to the revision and what the injector configuration says stands in the parameter.
func meshed(rev, own string, mode Mode) []runtime.Object {
	if rev == "" {
		rev = inject.DefaultRevision
	}
	scope := admissionv1.NamespacedScope
	pods := rule("", []admissionv1.OperationType{admissionv1.Create}, "pods")
	pods.Scope = &scope
	excluded := append([]string{verdict.Namespace}, inject.SystemNamespaces...)
	meta := revisionMeta(meshedName, rev)
	spec := admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{
			NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn, Values: excluded},
			}},
			ResourceRules: []admissionv1.NamedRuleWithOperations{pods},
		},
		MatchConditions: append(neverInjected(), admissionv1.MatchCondition{Name: "known", Expression: "has(params.spec) && has(params.spec.names)"}),
		Variables: variables(append(decision(own),
			// The annotation alone comes along when a manifest is copied from a running pod; templates of one's own may name no istio-proxy.
			"meshed", fmt.Sprintf("'%s' in variables.annotations && variables.annotations['%s'] != '' && (object.spec.containers.exists(c, c.name == '%s') || "+
				"has(object.spec.initContainers) && object.spec.initContainers.exists(c, c.name == '%s') || '%s' in variables.annotations)",
				annotation.SidecarStatus.Name, annotation.SidecarStatus.Name, inject.ProxyContainer, inject.ProxyContainer, annotation.InjectTemplates.Name),
		)...),
		Validations: []admissionv1.Validation{{
			Expression: "!variables.wanted || variables.meshed",
			MessageExpression: fmt.Sprintf("'SEL0070: this pod asks for a sidecar of revision %s (namespace ' + request.namespace + ', name ' + variables.value + ') and has none: "+
				"its webhook was not called, or failed open; selvage status says why'", rev),
		}},
	}
	return append([]runtime.Object{parameter(meta)}, guard(meta, meta.Name, mode, spec)...)
}

// decision are the variables that say whether a pod is to have a sidecar of the revision (wanted), as inject.Registration.Webhooks and
// inject.Decide say it, but for what never gets one (neverInjected) and for pods that have one. own is the mesh's namespace.
func decision(own string) []string {
	const injection, opt = inject.NamespaceInjection, "sidecar.istio.io/inject"
	revKey := label.IoIstioRev.Name
	return []string{
		"space", "has(namespaceObject.metadata.labels) ? namespaceObject.metadata.labels : {}",
		"labels", "has(object.metadata.labels) ? object.metadata.labels : {}",
		"annotations", "has(object.metadata.annotations) ? object.metadata.annotations : {}",
		"label", fmt.Sprintf("'%s' in variables.labels ? string(variables.labels['%s']) : ''", opt, opt),
		"asked", fmt.Sprintf("'%s' in variables.labels ? variables.label : '%s' in variables.annotations ? string(variables.annotations['%s']) : ''", opt, opt, opt),
		// The value of istio.io/rev that counts, "" for none, as the selectors of the webhooks have it.
		"value", fmt.Sprintf("variables.label == 'false' ? '' : "+
			"request.namespace == '%s' && (variables.label != 'true' || '%s' in variables.space || '%s' in variables.space) ? '' : "+
			"'%s' in variables.space ? (variables.space['%s'] == 'enabled' ? 'default' : '') : "+
			"'%s' in variables.space ? string(variables.space['%s']) : "+
			"'%s' in variables.labels ? string(variables.labels['%s']) : "+
			"variables.label == 'true' ? 'default' : "+
			"has(params.spec.everyNamespace) && params.spec.everyNamespace && !('%s' in variables.labels) ? 'default' : ''",
			own, injection, revKey, injection, injection, revKey, revKey, revKey, revKey, opt),
		"wanted", "variables.value in params.spec.names && (variables.asked == 'true' || variables.asked != 'false' && " +
			"!(" + selectorMatches("never") + ") && (" + selectorMatches("always") + " || has(params.spec.enabled) && params.spec.enabled))",
	}
}

// neverInjected are the conditions of every injecting webhook.
func neverInjected() []admissionv1.MatchCondition {
	return inject.Registration{Revision: "any"}.Webhooks()[0].MatchConditions
}
