package webhook

import (
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// review is AdmissionReview of admission.k8s.io/v1, which v1beta1 equals in every field used here. It is not the API's type:
// decoding all of a request (the user, the options, the old object) costs as much as injecting.
type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID       string                      `json:"uid"`
	Resource  metav1.GroupVersionResource `json:"resource"`
	Namespace string                      `json:"namespace"`
	Operation string                      `json:"operation"`
	Object    json.RawMessage             `json:"object"`
}

type response struct {
	UID              string            `json:"uid"`
	Allowed          bool              `json:"allowed"`
	Result           *metav1.Status    `json:"status,omitempty"`
	Patch            []byte            `json:"patch,omitempty"` // encoding/json writes base64, which the API wants
	PatchType        string            `json:"patchType,omitempty"`
	Warnings         []string          `json:"warnings,omitempty"`
	AuditAnnotations map[string]string `json:"auditAnnotations,omitempty"`
}

// parseReview reads a request for a pod. The error is for a caller who is not an API server, or not one configured by us.
func parseReview(body []byte) (*review, *corev1.Pod, error) {
	if len(body) == 0 {
		return nil, nil, errors.New("the body is empty")
	}
	var r review
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, nil, fmt.Errorf("the body is no AdmissionReview: %w", err)
	}
	switch {
	case r.Kind != "AdmissionReview" || r.APIVersion != "admission.k8s.io/v1" && r.APIVersion != "admission.k8s.io/v1beta1":
		return nil, nil, fmt.Errorf("the body is no AdmissionReview of admission.k8s.io/v1 but kind %q, apiVersion %q", short(r.Kind), short(r.APIVersion))
	case r.Request == nil || r.Request.UID == "":
		return nil, nil, errors.New("the AdmissionReview has no request with a uid")
	case r.Request.Resource != metav1.GroupVersionResource{Version: "v1", Resource: "pods"}:
		return &r, nil, fmt.Errorf("the request is for %s, and only pods can be injected", short(r.Request.Resource.String()))
	}
	if len(r.Request.Object) == 0 || string(r.Request.Object) == "null" {
		return &r, nil, errors.New("the request has no object")
	}
	pod, err := inject.Decode(r.Request.Object)
	if err != nil {
		return &r, nil, fmt.Errorf("the object is no pod: %w", err)
	}
	if pod.Namespace == "" { // a pod's creator may leave it to the request
		pod.Namespace = r.Request.Namespace
	}
	return &r, pod, nil
}

// short keeps a hostile value from filling logs and answers.
func short(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
