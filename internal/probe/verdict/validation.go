package verdict

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"istio.io/api/label"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

const (
	// ValidationWebhook is the entry that sees the dry run of an invalid object beside the validator.
	ValidationWebhook = "validation." + Suffix
	// ValidationPath is where the control plane answers it.
	ValidationPath = "/probe/validate"
)

// Gateway is an invalid object of the revision: it has no servers, which the definition of its kind allows and validation refuses.
func Gateway(revision string) *networkingv1.Gateway {
	if revision == "" {
		revision = inject.DefaultRevision
	}
	return &networkingv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{GenerateName: diag.ProbePrefix, Namespace: Namespace, Labels: map[string]string{label.IoIstioRev.Name: revision}},
		Spec:       networking.Gateway{},
	}
}

// Validating is to validation what Mutating is to injection: it fails closed, so it tells the cause that a validator with
// failurePolicy Ignore hides. It refuses nothing.
func Validating(revision string, endpoint inject.Endpoint) *admissionv1.ValidatingWebhookConfiguration {
	fail, equivalent, none, timeout := admissionv1.Fail, admissionv1.Equivalent, admissionv1.SideEffectClassNone, webhookTimeout
	meta, namespaces, objects := configuration(revision)
	return &admissionv1.ValidatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingWebhookConfiguration"},
		ObjectMeta: meta,
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name:                    ValidationWebhook,
			ClientConfig:            endpoint.Client(ValidationPath),
			Rules:                   creations("networking.istio.io", "*", "gateways"),
			FailurePolicy:           &fail,
			MatchPolicy:             &equivalent,
			NamespaceSelector:       namespaces,
			ObjectSelector:          objects,
			SideEffects:             &none,
			TimeoutSeconds:          &timeout,
			AdmissionReviewVersions: []string{"v1"},
		}},
	}
}

// OfValidation reads the answer to a dry run of Gateway. Only a refusal that says it is this revision's is a proof. validator is the
// revision's configuration, nil when there is none.
func (n Names) OfValidation(err error, validator *admissionv1.ValidatingWebhookConfiguration) Finding {
	if err == nil {
		return n.letThrough(validator)
	}
	if by, answered := answeredBy(err); answered && by == n.revision() {
		return Finding{Verdict: OK}
	} else if answered {
		return Finding{Verdict: WrongResponse, Cause: oneLine(fmt.Sprintf("the control plane of revision %q answers for revision %q", by, n.revision()))}
	}
	f := Classify(err)
	switch {
	case f.Verdict == TemplateError && f.Webhook != "":
		f.Verdict = WrongResponse // refused, and not by a control plane of ours
	case f.Verdict == TemplateError:
		f.Verdict = CouldNotProbe // the definition of the kind refuses it already
	}
	return f
}

// answeredBy is the revision that a refusal says it is of.
func answeredBy(err error) (revision string, ok bool) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return "", false
	}
	causes := status.Status().Details.Causes
	i := slices.IndexFunc(causes, func(c metav1.StatusCause) bool { return string(c.Type) == diag.CauseRevision })
	if i < 0 {
		return "", false
	}
	return causes[i].Message, true
}

// letThrough finds out why an invalid object was admitted.
func (n Names) letThrough(validator *admissionv1.ValidatingWebhookConfiguration) Finding {
	name := n.Configuration(Validation).Name
	if validator == nil {
		return Finding{Verdict: WebhookMissing, Cause: "ValidatingWebhookConfiguration " + name + " does not exist"}
	}
	i := slices.IndexFunc(validator.Webhooks, func(w admissionv1.ValidatingWebhook) bool { return strings.HasPrefix(w.Name, "rev.") })
	if i < 0 {
		return Finding{Verdict: WebhookMissing, Cause: "ValidatingWebhookConfiguration " + name + " has no entry for objects of the revision"}
	}
	why := "its rules or selectors are not those of an installation, or the API server has not read it yet"
	if p := validator.Webhooks[i].FailurePolicy; p != nil && *p == admissionv1.Ignore {
		why = "its caBundle or Service is another than that of the probe's own webhook, whose failure would not be hidden, or " + why
	}
	return Finding{Verdict: WebhookMissing, Cause: fmt.Sprintf("entry %s of ValidatingWebhookConfiguration %s was not called: %s", validator.Webhooks[i].Name, name, why)}
}
