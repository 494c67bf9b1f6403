package webhook

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/jsonscan"
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

// append appends the answer's JSON, as json.Marshal would write it. Nearly all of it is the patch.
func (a answer) append(b []byte) []byte {
	member := func(name string, value any) {
		data, err := json.Marshal(value)
		if err != nil {
			panic("encode answer: " + err.Error()) // strings and numbers
		}
		b = append(append(b, name...), data...)
	}
	r := a.Response
	member(`{"apiVersion":`, a.APIVersion)
	member(`,"kind":`, a.Kind)
	member(`,"response":{"uid":`, r.UID)
	member(`,"allowed":`, r.Allowed)
	if r.Result != nil {
		member(`,"status":`, r.Result)
	}
	if len(r.Patch) > 0 {
		b = append(base64.StdEncoding.AppendEncode(append(b, `,"patch":"`...), r.Patch), '"')
	}
	if r.PatchType != "" {
		member(`,"patchType":`, r.PatchType)
	}
	if len(r.Warnings) > 0 {
		member(`,"warnings":`, r.Warnings)
	}
	if len(r.AuditAnnotations) > 0 {
		member(`,"auditAnnotations":`, r.AuditAnnotations)
	}
	return append(b, "}}"...)
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
	whole := cfg != nil && cfg.ByTemplates()
	if r, object, err := scanReview(body, whole); err == nil && r.Request != nil && object != nil {
		if !whole { // in one pass, for nearly every request there is
			if pod, ok := r.Request.Object.Pod(); ok && (cfg == nil || !cfg.NeedsWhole(pod)) {
				a, err := r.check()
				return a, in(pod, r.Request.Namespace), err
			}
		}
		if pod, err := inject.ScanPod(jsonscan.New(object)); err == nil {
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
	if err := inject.CheckQuantities(*raw.Request.Object); err != nil {
		return a, nil, fmt.Errorf("the object is no pod: %w", err)
	}
	pod := &corev1.Pod{}
	if err := json.Unmarshal(*raw.Request.Object, pod); err != nil {
		return a, nil, fmt.Errorf("the object is no pod: %w", err)
	}
	return a, in(pod, raw.Request.Namespace), nil
}

// scanReview reads a request for injection's view of a pod, and gives the pod's JSON too; whole says that nobody wants the view. An error
// says only that another way must be tried.
func scanReview(body []byte, whole bool) (r review[inject.View], object []byte, err error) {
	s := jsonscan.New(body)
	err = s.Object(func(name []byte) (err error) {
		switch string(name) {
		case "apiVersion":
			r.APIVersion, err = s.String()
		case "kind":
			r.Kind, err = s.String()
		case "request":
			if s.Null() {
				r.Request, object = nil, nil
				return nil
			}
			r.Request = &request[inject.View]{}
			object, err = scanRequest(s, r.Request, body, whole)
		default:
			err = s.Skip()
		}
		return err
	})
	if err == nil {
		err = s.End()
	}
	return r, object, err
}

func scanRequest(s *jsonscan.Scanner, r *request[inject.View], body []byte, whole bool) (object []byte, err error) {
	err = s.Object(func(name []byte) (err error) {
		switch string(name) {
		case "uid":
			r.UID, err = s.String()
		case "namespace":
			r.Namespace, err = s.String()
		case "operation":
			r.Operation, err = s.String()
		case "resource":
			var raw []byte
			if raw, err = s.Raw(); err == nil && string(raw) != podsResource {
				err = json.Unmarshal(raw, &r.Resource)
			} else if err == nil {
				r.Resource = metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
			}
		case "object":
			if s.Null() {
				r.Object, object = nil, nil
				return nil
			}
			r.Object = &inject.View{}
			begin := s.Offset()
			if whole {
				err = s.Skip()
			} else {
				err = r.Object.Scan(s)
			}
			object = body[begin:s.Offset()]
		default:
			err = s.Skip()
		}
		return err
	})
	return object, err
}

// podsResource is how an API server writes it.
const podsResource = `{"group":"","version":"v1","resource":"pods"}`

// in sets the namespace, which a pod's creator may leave to the request.
func in(pod *corev1.Pod, namespace string) *corev1.Pod {
	if pod.Namespace == "" {
		pod.Namespace = namespace
	}
	return pod
}

// check looks at everything but the object.
func (r *review[Object]) check() (*asked, error) {
	if err := checkReview(r.APIVersion, r.Kind); err != nil {
		return nil, err
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

func checkReview(apiVersion, kind string) error {
	if kind != "AdmissionReview" || apiVersion != "admission.k8s.io/v1" && apiVersion != "admission.k8s.io/v1beta1" {
		return fmt.Errorf("the body is no AdmissionReview of admission.k8s.io/v1 but kind %q, apiVersion %q", short(kind), short(apiVersion))
	}
	return nil
}

// short keeps a hostile value from filling logs and answers.
func short(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
