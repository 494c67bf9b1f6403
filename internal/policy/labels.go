package policy

import (
	"fmt"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/inject"
)

var writes = []admissionv1.OperationType{admissionv1.Create, admissionv1.Update}

// labelsOf is CEL of an object's labels, or annotations, at an expression that gives its metadata.
func labelsOf(metadata, field string) string {
	return fmt.Sprintf("has(%s.%s) ? %s.%s : {}", metadata, field, metadata, field)
}

// odd gives a validation that flags keys that only look like those of injection.
func odd(variable, what, subject, instead string) admissionv1.Validation {
	return admissionv1.Validation{
		Expression:        "size(variables." + variable + ") == 0",
		MessageExpression: fmt.Sprintf("'SEL0022: %s ' + variables.%s.join(', ') + ' of %s has no effect on injection; write %s'", what, variable, subject, instead),
	}
}

// namespaceLabels flags labels of namespaces, when they are written: what was there before is not a reason to refuse another change.
func namespaceLabels(mode Mode) []runtime.Object {
	const injection = inject.NamespaceInjection
	rev := label.IoIstioRev.Name
	labels, annotations := inject.NamespaceLookalikes()
	spec := admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{rule("", writes, "namespaces")}},
		MatchConditions: []admissionv1.MatchCondition{
			{Name: "stays", Expression: "!has(object.metadata.deletionTimestamp)"},
			{Name: "changes", Expression: "request.operation == 'CREATE' || " +
				"(" + labelsOf("object.metadata", "labels") + ") != (" + labelsOf("oldObject.metadata", "labels") + ") || " +
				"(" + labelsOf("object.metadata", "annotations") + ") != (" + labelsOf("oldObject.metadata", "annotations") + ")"},
		},
		Variables: variables(
			"labels", labelsOf("object.metadata", "labels"),
			"annotations", labelsOf("object.metadata", "annotations"),
			"oddLabels", quoted(labels...)+".filter(k, k in variables.labels)",
			"oddAnnotations", quoted(annotations...)+".filter(k, k in variables.annotations)",
			"revisions", "has(params.spec) && has(params.spec.revisions) ? params.spec.revisions : []",
			"value", fmt.Sprintf("'%s' in variables.labels ? (variables.labels['%s'] == 'enabled' ? 'default' : '') : '%s' in variables.labels ? string(variables.labels['%s']) : ''",
				injection, injection, rev, rev),
		),
		Validations: []admissionv1.Validation{
			odd("oddLabels", "label", "this namespace", "the label "+injection+"=enabled, or "+rev+"=REVISION"),
			odd("oddAnnotations", "annotation", "this namespace", "a label, "+injection+"=enabled or "+rev+"=REVISION"),
			{
				Expression: fmt.Sprintf("!('%s' in variables.labels && '%s' in variables.labels)", injection, rev),
				Message:    fmt.Sprintf("IST0123: %s decides and %s has no effect beside it; take one of the two labels away", injection, rev),
			},
			{
				Expression:        fmt.Sprintf("!('%s' in variables.labels) || variables.labels['%s'] in ['enabled', 'disabled']", injection, injection),
				MessageExpression: fmt.Sprintf("'SEL0022: label %s is \"' + string(variables.labels['%s']) + '\", which counts as disabled; write enabled or disabled'", injection, injection),
			},
			unknown("this namespace"),
		},
	}
	return guard(sharedMeta(labelsName), RevisionsName, mode, spec)
}

// unknown flags a name that no webhook answers. While the parameter is empty nothing is known of names.
func unknown(subject string) admissionv1.Validation {
	return admissionv1.Validation{
		Expression: "variables.value == '' || size(variables.revisions) == 0 || variables.value in variables.revisions",
		MessageExpression: "'SEL0022: " + subject + " asks for a sidecar of ' + variables.value + ', and there is no revision or tag of that name (there are: ' + " +
			"variables.revisions.map(r, string(r)).join(', ') + '); its pods would get none'",
	}
}

// workloadLabels flags labels and annotations of pods and of pod templates, where a person writes them: pods and jobs that a controller
// makes are not looked at.
func workloadLabels(mode Mode) []runtime.Object {
	const opt = "sidecar.istio.io/inject"
	rev := label.IoIstioRev.Name
	labels, annotations := inject.PodLookalikes()
	template := func(object string) string {
		return fmt.Sprintf("has(%s.spec.jobTemplate) ? %s.spec.jobTemplate.spec.template : has(%s.spec.template) ? %s.spec.template : %s", object, object, object, object, object)
	}
	spec := admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{
			rule("", []admissionv1.OperationType{admissionv1.Create}, "pods"),
			rule("apps", writes, "deployments", "statefulsets", "daemonsets"),
			rule("batch", writes, "jobs", "cronjobs"),
		}},
		MatchConditions: []admissionv1.MatchCondition{
			{Name: "by-a-person", Expression: "!has(object.metadata.ownerReferences)"},
			{Name: "stays", Expression: "!has(object.metadata.deletionTimestamp)"},
			{Name: "changes", Expression: "request.operation == 'CREATE' || object.spec != oldObject.spec"},
		},
		Variables: variables(
			"template", template("object"),
			"labels", "has(variables.template.metadata) && has(variables.template.metadata.labels) ? variables.template.metadata.labels : {}",
			"annotations", "has(variables.template.metadata) && has(variables.template.metadata.annotations) ? variables.template.metadata.annotations : {}",
			"oddLabels", quoted(labels...)+".filter(k, k in variables.labels)",
			"oddAnnotations", quoted(annotations...)+".filter(k, k in variables.annotations)",
			"revisions", "has(params.spec) && has(params.spec.revisions) ? params.spec.revisions : []",
			"value", fmt.Sprintf("'%s' in variables.labels ? string(variables.labels['%s']) : ''", rev, rev),
		),
		Validations: []admissionv1.Validation{
			odd("oddLabels", "label", "the pod template", "the label "+opt+": true or false"),
			odd("oddAnnotations", "annotation", "the pod template", "the label "+opt+": true or false"),
			{
				Expression:        fmt.Sprintf("!('%s' in variables.labels) || variables.labels['%s'] in ['true', 'false']", opt, opt),
				MessageExpression: fmt.Sprintf("'SEL0022: label %s is \"' + string(variables.labels['%s']) + '\", which counts as not said; write true or false'", opt, opt),
			},
			unknown("the pod template"),
		},
	}
	return guard(sharedMeta(workloadsName), RevisionsName, mode, spec)
}
