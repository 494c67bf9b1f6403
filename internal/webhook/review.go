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
type review[Object any] struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"`
	Request    *request[Object] `json:"request,omitempty"`
}

// answer is an AdmissionReview that goes back.
type answer struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Response   *response `json:"response"`
}

type request[Object any] struct {
	UID       string                      `json:"uid"`
	Resource  metav1.GroupVersionResource `json:"resource"`
	Namespace string                      `json:"namespace"`
	Operation string                      `json:"operation"`
	Object    *Object                     `json:"object"`
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

// asked is a request as the handler needs it.
type asked struct {
	apiVersion, kind, uid string
}

// parseReview reads a request for a pod. Without asked, the error is for a caller who is not an API server; with it, for an API
// server that was configured to send something else.
func parseReview(body []byte, cfg *inject.Config) (*asked, *corev1.Pod, error) {
	if len(body) == 0 {
		return nil, nil, errors.New("the body is empty")
	}
	// In one pass, for nearly every request there is.
	var r review[inject.View]
	if err := json.Unmarshal(body, &r); err == nil && r.Request != nil && r.Request.Object != nil {
		if pod, ok := r.Request.Object.Pod(); ok && (cfg == nil || !cfg.NeedsWhole(pod)) {
			a, err := r.check()
			return a, in(pod, r.Request.Namespace), err
		}
	}
	var raw review[json.RawMessage]
	if err := json.Unmarshal(body, &raw); err != nil {
		return nil, nil, fmt.Errorf("the body is no AdmissionReview: %w", err)
	}
	a, err := raw.check()
	if err != nil {
		return a, nil, err
	}
	if raw.Request.Object == nil {
		return a, nil, errors.New("the request has no object")
	}
	pod := &corev1.Pod{}
	if err := json.Unmarshal(*raw.Request.Object, pod); err != nil {
		return a, nil, fmt.Errorf("the object is no pod: %w", err)
	}
	return a, in(pod, raw.Request.Namespace), nil
}

// in sets the namespace, which a pod's creator may leave to the request.
func in(pod *corev1.Pod, namespace string) *corev1.Pod {
	if pod.Namespace == "" {
		pod.Namespace = namespace
	}
	return pod
}

// check looks at everything but the object.
func (r *review[Object]) check() (*asked, error) {
	if r.Kind != "AdmissionReview" || r.APIVersion != "admission.k8s.io/v1" && r.APIVersion != "admission.k8s.io/v1beta1" {
		return nil, fmt.Errorf("the body is no AdmissionReview of admission.k8s.io/v1 but kind %q, apiVersion %q", short(r.Kind), short(r.APIVersion))
	}
	if r.Request == nil || r.Request.UID == "" {
		return nil, errors.New("the AdmissionReview has no request with a uid")
	}
	a := &asked{apiVersion: r.APIVersion, kind: r.Kind, uid: r.Request.UID}
	if r.Request.Resource != (metav1.GroupVersionResource{Version: "v1", Resource: "pods"}) {
		return a, fmt.Errorf("the request is for %s, and only pods can be injected", short(r.Request.Resource.String()))
	}
	return a, nil
}

// short keeps a hostile value from filling logs and answers.
func short(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
