package webhook_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

const (
	goodPolicy = `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default}, spec: {mtls: {mode: STRICT}}}`
	badPolicy  = `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default}, spec: {portLevelMtls: {8080: {mode: STRICT}}}}`
)

// validate asks about an object, as the API server does.
func (p *peer) validate(t *testing.T, operation admissionv1.Operation, object, old string) *admissionv1.AdmissionResponse {
	t.Helper()
	request := &admissionv1.AdmissionRequest{UID: "u-1", Namespace: "shop", Operation: operation,
		Resource: metav1.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}}
	for document, into := range map[string]*runtime.RawExtension{object: &request.Object, old: &request.OldObject} {
		raw, err := yaml.YAMLToJSON([]byte(document))
		if err != nil {
			t.Fatal(err)
		}
		into.Raw = raw
	}
	body, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: request})
	if err != nil {
		t.Fatal(err)
	}
	status, answer := p.post(t, "/validate?timeout=5s", "application/json", body)
	var r admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &r); status != http.StatusOK || err != nil || r.Response == nil || r.Response.UID != "u-1" {
		t.Fatalf("status %d, %v: %s", status, err, answer)
	}
	return r.Response
}

func TestValidation(t *testing.T) {
	p := serve(t, defaults(t))
	unknown := strings.Replace(goodPolicy, "mtls:", "mtsl: {}, mtls:", 1)
	going := strings.Replace(badPolicy, "name: default", `name: default, deletionTimestamp: "2026-01-01T00:00:00Z"`, 1)
	renamed := strings.Replace(badPolicy, "name: default", "name: default, labels: {a: b}", 1)
	for name, c := range map[string]struct {
		operation   admissionv1.Operation
		object, old string
		allowed     bool
		warns       string
	}{
		"a right object is admitted":                       {admissionv1.Create, goodPolicy, "null", true, ""},
		"a wrong one is refused":                           {admissionv1.Create, badPolicy, "null", false, ""},
		"an update that makes it wrong is refused":         {admissionv1.Update, badPolicy, goodPolicy, false, ""},
		"an update that leaves it wrong is not, and warns": {admissionv1.Update, renamed, badPolicy, true, "need a selector"},
		"what is going away is not refused":                {admissionv1.Update, going, goodPolicy, true, "need a selector"},
		"a deletion is not looked at":                      {admissionv1.Delete, "null", badPolicy, true, ""},
		"an unknown field is a warning":                    {admissionv1.Create, unknown, "null", true, "PeerAuthentication shop/default: spec.mtsl: there is no such field"},
		"a kind that is not known is admitted":             {admissionv1.Create, `{apiVersion: security.istio.io/v2, kind: New, metadata: {name: x}, spec: 7}`, "null", true, ""},
	} {
		got := p.validate(t, c.operation, c.object, c.old)
		if got.Allowed != c.allowed {
			t.Errorf("%s: allowed is %v: %v", name, got.Allowed, got.Result)
		}
		if !strings.Contains(strings.Join(got.Warnings, "\n"), c.warns) || c.warns == "" && len(got.Warnings) > 0 {
			t.Errorf("%s: warnings %q", name, got.Warnings)
		}
	}
	got := p.validate(t, admissionv1.Create, badPolicy, "null")
	if want := "configuration is invalid: PeerAuthentication shop/default: spec.portLevelMtls: modes of single ports need a selector"; !strings.HasPrefix(got.Result.Message, want) || !strings.Contains(got.Result.Message, "(SEL0315; name the workloads in spec.selector.matchLabels)") {
		t.Errorf("the refusal says %q", got.Result.Message)
	}
	last := got.Result.Details.Causes[len(got.Result.Details.Causes)-1]
	if first := got.Result.Details.Causes[0]; first.Field != "spec.portLevelMtls" || last.Type != "SelvageRevision" || last.Message != "test" {
		t.Errorf("causes %+v", got.Result.Details.Causes)
	}
	p.wantMetrics(t, map[string]float64{"galley_validation_passed{security.istio.io}{peerauthentications}{v1}": 5, "galley_validation_failed{security.istio.io}{invalid_resource}{peerauthentications}{v1}": 3})
}

func TestValidationOfNonsense(t *testing.T) {
	p := serve(t, defaults(t))
	for body, want := range map[string]int{
		``: http.StatusBadRequest, `7`: http.StatusBadRequest, `{`: http.StatusBadRequest, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`: http.StatusBadRequest,
		`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","object":7}}`: http.StatusOK, // refused
	} {
		if status, answer := p.post(t, "/validate", "application/json", []byte(body)); status != want {
			t.Errorf("%q: %d %s", body, status, answer)
		}
	}
	if status, _ := p.post(t, "/validate", "text/plain", []byte(`{}`)); status != http.StatusUnsupportedMediaType {
		t.Errorf("text is answered with %d", status)
	}
}
