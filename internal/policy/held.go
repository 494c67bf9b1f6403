package policy

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
	"github.com/selvage-mesh/selvage/internal/validate"
)

// heldWebhooks is the base of the names of the policy, its binding and its parameter.
const heldWebhooks = "selvage-held-webhooks"

// HeldName is the name of a revision's policy that holds its webhooks, of its binding and of its parameter object.
func HeldName(revision string) string { return inject.ObjectName(heldWebhooks, revision) }

// Entries are the names of the webhooks whose caBundle is the mesh's: all that an installation has.
func Entries() []string {
	return []string{
		inject.RevisionNamespaceWebhook, inject.RevisionObjectWebhook, inject.NamespaceWebhook, inject.ObjectWebhook, inject.AutoWebhook,
		verdict.InjectionWebhook, verdict.ValidationWebhook, validate.RevisionWebhook, validate.Webhook,
	}
}

// Held gives the parameter, the policy and the binding by which the API server puts the bundle of the parameter into every write of a
// revision's webhook configurations, whoever writes them. A configuration is the revision's by its label istio.io/rev, as for the
// reconciler, so a tag's is too; of its entries only those of Entries are touched, and of them only caBundle. To weaken or delete a
// configuration stays possible at every moment: deletions are no writes, and failurePolicy is not looked at.
//
// It fails open in every way: a parameter that is missing, empty or no bundle changes nothing, an expression that fails lets the
// write through as it is (failurePolicy Ignore), and the reconciler of the webhooks, which is always there, mends it afterwards.
func Held(revision string) []runtime.Object {
	if revision == "" {
		revision = inject.DefaultRevision
	}
	ignore, equivalent := admissionv1.Ignore, admissionv1.Equivalent
	meta := revisionMeta(heldWebhooks, revision)
	labels := "object.metadata.labels"
	rev := "'" + label.IoIstioRev.Name + "'"
	return []runtime.Object{
		parameter(meta),
		&admissionv1.MutatingAdmissionPolicy{
			TypeMeta: typeMeta(Mutating), ObjectMeta: meta,
			Spec: admissionv1.MutatingAdmissionPolicySpec{
				FailurePolicy: &ignore,
				// Again when another policy has changed the object after this one: what is right already is not touched.
				ReinvocationPolicy: admissionv1.IfNeededReinvocationPolicy,
				ParamKind:          paramKind(),
				MatchConstraints: &admissionv1.MatchResources{MatchPolicy: &equivalent, ResourceRules: []admissionv1.NamedRuleWithOperations{
					rule(admissionv1.GroupName, []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
						"mutatingwebhookconfigurations", "validatingwebhookconfigurations"),
				}},
				MatchConditions: []admissionv1.MatchCondition{
					{Name: "of-the-revision", Expression: "has(" + labels + ") && " + rev + " in " + labels + " && " + labels + "[" + rev + "] == '" + revision + "'"},
					{Name: "has-webhooks", Expression: "has(object.webhooks)"},
				},
				Variables: []admissionv1.Variable{
					// What is not base64 would make the API server refuse the write with an error that no failurePolicy softens.
					{Name: "bundle", Expression: "has(params.spec) && has(params.spec.caBundle) && size(params.spec.caBundle) % 4 == 0 && " +
						"params.spec.caBundle.matches('" + bundlePattern + "') ? string(params.spec.caBundle) : ''"},
				},
				Mutations: []admissionv1.Mutation{{
					PatchType: admissionv1.PatchTypeJSONPatch,
					JSONPatch: &admissionv1.JSONPatch{Expression: "variables.bundle == '' ? [] : object.webhooks.transformList(i, w, " +
						"w.name in " + quoted(Entries()...) + " && has(w.clientConfig) && " +
						"!(has(w.clientConfig.caBundle) && w.clientConfig.caBundle == variables.bundle), " +
						"JSONPatch{op: 'add', path: '/webhooks/' + string(i) + '/clientConfig/caBundle', value: variables.bundle})"},
				}},
			},
		},
		&admissionv1.MutatingAdmissionPolicyBinding{
			TypeMeta: typeMeta(MutatingBinding), ObjectMeta: meta,
			Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: meta.Name, ParamRef: byName(meta.Name)},
		},
	}
}
