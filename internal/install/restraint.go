package install

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/revision"
)

// restraint holds this revision's control plane to what it needs of the rights that RBAC cannot narrow: RBAC cannot say of what name an
// object may be created, nor of what label it may be deleted, nor which fields may change. The policies speak of the control plane's
// account alone, and stand before its rights do.
func (o Options) restraint() []runtime.Object {
	return append(o.policy("istiod-creates", o.creations()), o.policy("istiod-webhooks", o.webhookWrites())...)
}

// policy is an admission policy for the control plane's account, and its binding.
func (o Options) policy(base string, spec admissionv1.ValidatingAdmissionPolicySpec) []runtime.Object {
	fail, equivalent := admissionv1.Fail, admissionv1.Equivalent
	spec.FailurePolicy, spec.MatchConstraints.MatchPolicy = &fail, &equivalent
	spec.MatchConditions = []admissionv1.MatchCondition{{
		Name: "control-plane", Expression: fmt.Sprintf("request.userInfo.username == 'system:serviceaccount:%s:%s'", Namespace, o.Name(appName)),
	}}
	v1, meta := admissionv1.SchemeGroupVersion.String(), o.clusterMeta(o.Name(base))
	return []runtime.Object{
		&admissionv1.ValidatingAdmissionPolicy{TypeMeta: typeMeta(v1, policies.kind), ObjectMeta: meta, Spec: spec},
		&admissionv1.ValidatingAdmissionPolicyBinding{TypeMeta: typeMeta(v1, policyBindings.kind), ObjectMeta: meta, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: meta.Name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		}},
	}
}

// matches are the rules for one API group.
func matches(group, resources string, scope admissionv1.ScopeType, operations ...admissionv1.OperationType) admissionv1.NamedRuleWithOperations {
	return admissionv1.NamedRuleWithOperations{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: operations,
		Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"*"}, Resources: strings.Fields(resources), Scope: &scope},
	}}
}

// creations: what may be created has a name that the control plane keeps something under. A Secret has one of the two types that hold a
// signing key: one of a service account's would be given that account's token.
func (o Options) creations() admissionv1.ValidatingAdmissionPolicySpec {
	only := func(resource, what, expression string) admissionv1.Validation {
		return admissionv1.Validation{
			Expression: fmt.Sprintf("request.resource.resource != '%s' || %s", resource, expression),
			Message:    fmt.Sprintf("the control plane of revision %s may create no other %s than %s", o.revision(), resource, what),
		}
	}
	in := func(names ...string) string { return "object.metadata.name in ['" + strings.Join(names, "', '") + "']" }
	own := o.Name(StatusConfigMap)
	return admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{
			matches("", "configmaps secrets", admissionv1.NamespacedScope, admissionv1.Create),
			matches("coordination.k8s.io", "leases", admissionv1.NamespacedScope, admissionv1.Create),
			matches("networking.istio.io", "gateways", admissionv1.NamespacedScope, admissionv1.Create),
		}},
		Validations: []admissionv1.Validation{
			only("configmaps", rootConfig+", and in namespace "+Namespace+" "+and([]string{own, rotationName, removedWebhooks}),
				fmt.Sprintf("object.metadata.name == '%s' || request.namespace == '%s' && %s", rootConfig, Namespace, in(own, rotationName, removedWebhooks))),
			only("secrets", rootSecret+" and "+rotationName, in(rootSecret, rotationName)+" && dyn(object).type in ['istio.io/ca-root', 'Opaque']"),
			only("leases", o.Name(webhooksLease)+" and "+rootsLease, in(o.Name(webhooksLease), rootsLease)),
			only("gateways", "as a dry run", "has(request.dryRun) && request.dryRun"),
		},
	}
}

// webhookWrites: of webhook configurations the control plane repairs its own revision's, in two fields, and removes Selvage's.
func (o Options) webhookWrites() admissionv1.ValidatingAdmissionPolicySpec {
	account := "the control plane of revision " + o.revision()
	labelled := func(key, value string) string {
		return fmt.Sprintf("'%s' in oldObject.metadata.labels && oldObject.metadata.labels['%s'] == '%s'", key, key, value)
	}
	return admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{
			matches(mutatingWebhooks.Group, mutatingWebhooks.Resource+" "+validatingWebhooks.Resource, admissionv1.ClusterScope, admissionv1.Update, admissionv1.Delete),
		}},
		Validations: []admissionv1.Validation{{
			Expression: fmt.Sprintf("request.operation != 'DELETE' || has(oldObject.metadata.labels) && (%s || %s)",
				labelled(revision.OwnerLabel, Owner), labelled(revision.ManagedByLabel, Owner)),
			Message: account + " may delete no webhook configuration but Selvage's, which the label " + revision.OwnerLabel + "=" + Owner + " marks",
		}, {
			Expression: fmt.Sprintf("request.operation != 'UPDATE' || has(oldObject.metadata.labels) && %s && has(object.metadata.labels) && object.metadata.labels == oldObject.metadata.labels",
				labelled(label.IoIstioRev.Name, o.revision())),
			Message: account + " may change no webhook configuration but its own revision's, and no label of it",
		}, {
			Expression: "request.operation != 'UPDATE' || has(object.webhooks) && has(oldObject.webhooks) && size(object.webhooks) == size(oldObject.webhooks) && " +
				"object.webhooks.all(after, oldObject.webhooks.exists(before, " + strings.Join(unchanged(), " && ") + "))",
			Message: account + " may change nothing of a webhook configuration but caBundle, and failurePolicy of a validating one",
		}},
	}
}

// unchanged are what must hold of an entry before and after a write of the control plane's.
func unchanged() []string {
	all := []string{"after.name == before.name", "(request.resource.resource == '" + validatingWebhooks.Resource + "' || after.failurePolicy == before.failurePolicy)"}
	for _, field := range []string{"clientConfig.?service", "clientConfig.?url", "?rules", "?namespaceSelector", "?objectSelector", "?matchConditions", "?matchPolicy",
		"?sideEffects", "?timeoutSeconds", "?admissionReviewVersions"} {
		all = append(all, "after."+field+" == before."+field)
	}
	return all
}
