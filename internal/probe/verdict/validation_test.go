package verdict_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// refusal is what a validating webhook's refusal looks like to who asked.
func refusal(revision string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest,
		Message: `admission webhook "rev.validation.istio.io" denied the request: configuration is invalid`,
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "SelvageRevision", Message: revision}}}}}
}

func TestOnlyOurOwnRefusalIsAProof(t *testing.T) {
	gateways := schema.GroupResource{Group: "networking.istio.io", Resource: "gateways"}
	ignore := admissionv1.Ignore
	validator := &admissionv1.ValidatingWebhookConfiguration{Webhooks: []admissionv1.ValidatingWebhook{{Name: "rev.validation.istio.io", FailurePolicy: &ignore}}}
	for name, c := range map[string]struct {
		answer error
		have   *admissionv1.ValidatingWebhookConfiguration
		want   verdict.Verdict
		says   string
	}{
		"refused by this revision": {answer: refusal("asm-1"), want: verdict.OK},
		"refused by another":       {answer: refusal("asm-2"), want: verdict.WrongResponse, says: `"asm-2" answers`},
		"refused by another mesh":  {answer: apierrors.NewBadRequest(`admission webhook "rev.validation.istio.io" denied the request: no`), want: verdict.WrongResponse},
		"refused by a policy of somebody's": {answer: apierrors.NewForbidden(gateways, "x", errors.New(`admission webhook "validation.gatekeeper.sh" denied the request: no`)),
			want: verdict.CouldNotProbe},
		"let through, no validator":  {want: verdict.WebhookMissing, says: "istio-validator-asm-1-istio-system does not exist"},
		"let through, failing open":  {have: validator, want: verdict.WebhookMissing, says: "another than that of the probe's own"},
		"let through, without entry": {have: &admissionv1.ValidatingWebhookConfiguration{}, want: verdict.WebhookMissing, says: "no entry"},
		"the webhook cannot be called": {answer: apierrors.NewInternalError(errors.New(`failed calling webhook "rev.validation.istio.io": failed to call webhook: Post "https://istiod-asm-1.istio-system.svc:443/validate?timeout=5s": dial tcp 10.0.0.1:15017: connect: connection refused`)),
			want: verdict.ConnectionRefused},
		"the probe's own cannot be called": {answer: apierrors.NewInternalError(errors.New(`failed calling webhook "validation.probe.selvage": failed to call webhook: Post "https://istiod-asm-1.istio-system.svc:443/probe/validate?timeout=5s": context deadline exceeded`)),
			want: verdict.Timeout},
		"may not ask": {answer: apierrors.NewForbidden(gateways, "", errors.New(`User "system:serviceaccount:istio-system:istiod-asm-1" cannot create resource "gateways" in API group "networking.istio.io" in the namespace "selvage-probe"`)),
			want: verdict.RBAC},
		"no such kind":           {answer: apierrors.NewNotFound(gateways, ""), want: verdict.CouldNotProbe},
		"no API server":          {answer: errors.New("connection refused"), want: verdict.CouldNotProbe},
		"the API server is busy": {answer: apierrors.NewTooManyRequestsError("wait"), want: verdict.CouldNotProbe},
		"refused by the definition": {answer: apierrors.NewInvalid(schema.GroupKind{Group: "networking.istio.io", Kind: "Gateway"}, "x", nil),
			want: verdict.CouldNotProbe},
	} {
		names := verdict.Names{Revision: "asm-1", Namespace: "istio-system"}
		f := names.OfValidation(c.answer, c.have)
		p, wrong := names.Problem(verdict.Validation, f)
		if f.Verdict != c.want || !strings.Contains(f.Cause, c.says) {
			t.Errorf("%s: %s, %q; want %s with %q", name, f.Verdict, f.Cause, c.want, c.says)
		}
		if wrong != (c.want != verdict.OK) || strings.Contains(p.Detail, "sidecar") || wrong && (p.Hint == "" || p.Code == "") {
			t.Errorf("%s: the problem is %+v", name, p)
		}
	}
}
