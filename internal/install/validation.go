package install

import (
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/validate"
)

// validationTimeout is of one call, in seconds. Validation takes milliseconds, and whoever writes configuration waits for it.
const validationTimeout = 5

// validator is the configuration by which the control plane is asked about Istio configuration: about objects that name this
// revision, and about those that name none, because every revision uses these, whichever is the default one.
//
// failurePolicy is Ignore here, as nothing answers yet. The control plane sets it to Fail once it has proved that validation works,
// and owns it from then on: see keepPolicies.
func (o Options) validator() *admissionv1.ValidatingWebhookConfiguration {
	rev := label.IoIstioRev.Name
	c := &admissionv1.ValidatingWebhookConfiguration{
		TypeMeta:   typeMeta(admissionv1.SchemeGroupVersion.String(), validatingWebhooks.kind),
		ObjectMeta: o.clusterMeta(validate.ConfigurationName(o.revision(), Namespace)),
		Webhooks: []admissionv1.ValidatingWebhook{
			o.validation(validate.RevisionWebhook, metav1.LabelSelectorRequirement{Key: rev, Operator: metav1.LabelSelectorOpIn, Values: []string{o.revision()}}),
			o.validation(validate.Webhook, metav1.LabelSelectorRequirement{Key: rev, Operator: metav1.LabelSelectorOpDoesNotExist}),
		},
	}
	return c
}

// validation is one entry, every field that the API server would fill in set, so that comparing finds no difference.
func (o Options) validation(name string, object metav1.LabelSelectorRequirement) admissionv1.ValidatingWebhook {
	var (
		ignore     = admissionv1.Ignore
		equivalent = admissionv1.Equivalent
		none       = admissionv1.SideEffectClassNone
		scope      = admissionv1.NamespacedScope
		timeout    = int32(validationTimeout)
		path, port = "/validate", int32(443)
	)
	client := admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: Namespace, Name: o.Name(appName), Path: &path, Port: &port}}
	if o.WebhookURL != "" {
		url := strings.TrimSuffix(o.WebhookURL, "/") + path
		client = admissionv1.WebhookClientConfig{URL: &url}
	}
	return admissionv1.ValidatingWebhook{
		Name: name, ClientConfig: client,
		Rules: []admissionv1.RuleWithOperations{{
			Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
			Rule:       admissionv1.Rule{APIGroups: validate.Groups(), APIVersions: []string{"*"}, Resources: []string{"*"}, Scope: &scope},
		}},
		FailurePolicy: &ignore, MatchPolicy: &equivalent, SideEffects: &none, TimeoutSeconds: &timeout,
		NamespaceSelector:       &metav1.LabelSelector{},
		ObjectSelector:          &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{object}},
		AdmissionReviewVersions: []string{"v1"},
	}
}

// keepPolicies puts the failurePolicy that each entry of a validating configuration has in the cluster into what will be applied:
// once such a configuration exists, the control plane decides about it. To leave the field out would not do: an applier that had it
// before and has it no more takes it away, and the API server then fills in Fail.
func keepPolicies(objects []*unstructured.Unstructured, live map[string]*unstructured.Unstructured) {
	for _, u := range objects {
		old := live[describe(u)]
		if u.GetKind() != validatingWebhooks.kind || old == nil {
			continue
		}
		policies := map[any]any{}
		for _, e := range entries(old) {
			policies[e["name"]] = e["failurePolicy"]
		}
		for _, e := range entries(u) {
			if policy := policies[e["name"]]; policy != nil && e["failurePolicy"] == string(admissionv1.Ignore) { // the probe's own is always Fail
				e["failurePolicy"] = policy
			}
		}
	}
}

// entries are the webhooks of a configuration, to be read and changed.
func entries(u *unstructured.Unstructured) (out []map[string]any) {
	list, _ := u.Object["webhooks"].([]any)
	for _, item := range list {
		if e, ok := item.(map[string]any); ok {
			out = append(out, e)
		}
	}
	return out
}
