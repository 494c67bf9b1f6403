package policy

import (
	"fmt"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// controllers delete because something else was deleted, or a namespace: to refuse them leaves things in Terminating for ever.
var controllers = []string{
	"system:serviceaccount:kube-system:generic-garbage-collector", "system:serviceaccount:kube-system:namespace-controller",
	"system:kube-controller-manager", "system:apiserver",
}

// inUse flags the deletion of a webhook configuration, a tag or a control plane's Service while somebody uses the revision. A deletion
// that names the object's UID passes: whoever sends one has looked first, as Selvage's own commands do, and Kubernetes' controllers.
//
// A policy has no clock, so it cannot see how old the parameter is: the control plane takes the users out when it ends.
func inUse(own string, mode Mode) []runtime.Object {
	rev, tag := label.IoIstioRev.Name, label.IoIstioTag.Name
	remove := []admissionv1.OperationType{admissionv1.Delete}
	spec := admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{
			rule(admissionv1.GroupName, remove, "mutatingwebhookconfigurations", "validatingwebhookconfigurations"),
			rule("", remove, "services"),
		}},
		MatchConditions: []admissionv1.MatchCondition{
			{Name: "a-mesh", Expression: fmt.Sprintf("oldObject.metadata.name.startsWith('istio') && has(oldObject.metadata.labels) && '%s' in oldObject.metadata.labels && "+
				"(request.resource.resource != 'services' || request.namespace == '%s')", rev, own)},
			{Name: "a-person", Expression: "!(request.userInfo.username in " + quoted(controllers...) + ")"},
			{Name: "did-not-look", Expression: "!has(request.options) || request.options == null || !has(request.options.preconditions) || !has(request.options.preconditions.uid)"},
			{Name: "known", Expression: "has(params.spec) && has(params.spec.users)"},
		},
		Variables: variables(
			"revision", fmt.Sprintf("string(oldObject.metadata.labels['%s'])", rev),
			"tag", fmt.Sprintf("'%s' in oldObject.metadata.labels ? string(oldObject.metadata.labels['%s']) : ''", tag, tag),
			"users", "params.spec.users.filter(u, variables.tag != '' ? u.name == variables.tag : u.revision == variables.revision)",
			"namespaces", "variables.users.map(u, has(u.namespaces) ? int(u.namespaces) : 0).sum()",
			"pods", "variables.users.map(u, has(u.pods) ? int(u.pods) : 0).sum()",
			"next", "variables.tag != '' ? 'selvage revision tag remove ' + variables.tag : 'move them (selvage revision migrate), then selvage revision retire ' + variables.revision",
		),
		Validations: []admissionv1.Validation{{
			Expression: "variables.namespaces + variables.pods == 0",
			MessageExpression: "'SEL0071: ' + request.kind.kind + ' ' + oldObject.metadata.name + ' is in use: ' + string(variables.namespaces) + ' namespaces ask for sidecars by it, and ' + " +
				"string(variables.pods) + ' pods run one of its revision (as of ' + (has(params.spec.asOf) ? string(params.spec.asOf) : 'some time') + '). Safely: ' + variables.next",
		}},
	}
	return guard(sharedMeta(inUseName), RevisionsName, mode, spec)
}
