package webhook

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
)

// FuzzAdmission sends any body to the handler, which serves our own sidecar or a template. Nothing panics; an answer is an
// AdmissionReview for the request's uid; a patch can be applied to the object, and the pod that it gives is not injected again.
func FuzzAdmission(f *testing.F) {
	body, err := os.ReadFile("testdata/review.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body, false)
	f.Add(body, true)
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","resource":{"version":"v1","resource":"pods"},"object":{"spec":{"containers":[{"name":"istio-proxy"}]},"metadata":{"annotations":{"sidecar.istio.io/status":"{}"}}}}}`), false)
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","resource":{"version":"v1","resource":"pods"},"object":{"spec":{"containers":[{"name":"a"},{"name":"a","livenessProbe":{}}],"initContainers":[null]}}}}`), false)
	handlers := map[bool]*Handler{false: benchHandler(f), true: templateHandler(f)}
	f.Fuzz(func(t *testing.T, body []byte, template bool) {
		h := handlers[template]
		r := ask(t, h, body)
		if r == nil || len(r.Patch) == 0 {
			return
		}
		var asked admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &asked); err != nil {
			t.Fatalf("it was answered and is none: %v", err)
		}
		if r.UID != asked.Request.UID {
			t.Errorf("the answer is for %q, the request was %q", r.UID, asked.Request.UID)
		}
		var parts struct{ Metadata, Spec map[string]any }
		if err := json.Unmarshal(asked.Request.Object.Raw, &parts); err != nil || parts.Metadata == nil || parts.Spec == nil {
			return // an API server sends both, and the patch takes them for granted
		}
		patch, err := jsonpatch.DecodePatch(r.Patch)
		if err != nil {
			t.Fatalf("the patch is none: %v: %s", err, r.Patch)
		}
		out, err := patch.Apply(asked.Request.Object.Raw)
		if err != nil {
			t.Fatalf("the patch does not fit: %v\n%s\n%s", err, r.Patch, asked.Request.Object.Raw)
		}
		asked.Request.Object.Raw = out
		again, err := json.Marshal(asked)
		if err != nil {
			return // a part that is no JSON and that nobody reads
		}
		if r := ask(t, h, again); r == nil || !r.Allowed || len(r.Patch) > 0 {
			t.Errorf("the injected pod gets %+v", r)
		}
	})
}

// ask gives the response, nil for a request that no API server sends.
func ask(t *testing.T, h *Handler, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/inject", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code == http.StatusInternalServerError {
		t.Fatalf("it panicked: %s", w.Body)
	}
	if w.Code != http.StatusOK {
		return nil
	}
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Response == nil {
		t.Fatalf("the answer is no AdmissionReview: %v: %s", err, w.Body)
	}
	return answer.Response
}
