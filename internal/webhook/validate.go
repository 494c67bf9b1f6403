package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/validate"
)

// validationMetrics have Istio's names and labels, but for the last.
type validationMetrics struct {
	passed, failed, httpError *prometheus.CounterVec
	seconds                   prometheus.Histogram
}

func newValidationMetrics(r prometheus.Registerer) (*validationMetrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &validationMetrics{
		passed:    counter("galley_validation_passed", "Objects that were admitted.", "group", "version", "resource"),
		failed:    counter("galley_validation_failed", "Objects that were refused, by reason.", "group", "version", "resource", "reason"),
		httpError: counter("galley_validation_http_error", "Requests for validation that could not be answered, by HTTP status.", "status"),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "selvage_validation_time_seconds",
			Help: "Time from a read request for validation to its answer.", Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5}}),
	}
	for _, c := range []prometheus.Collector{m.passed, m.failed, m.httpError, m.seconds} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register validation metrics: %w", err)
		}
	}
	return m, nil
}

// validationRequest is an admission request for any object.
type validationRequest struct {
	UID       string                      `json:"uid"`
	Resource  metav1.GroupVersionResource `json:"resource"`
	Namespace string                      `json:"namespace"`
	Operation string                      `json:"operation"`
	Name      string                      `json:"name"`
	DryRun    *bool                       `json:"dryRun"`
	Object    json.RawMessage             `json:"object"`
	OldObject json.RawMessage             `json:"oldObject"`
}

// probe reports whether the request is a control plane's own try, which is to be refused every few seconds for ever.
func (r *validationRequest) probe() bool {
	return r.DryRun != nil && *r.DryRun && strings.HasPrefix(r.Name, diag.ProbePrefix)
}

// serveValidate says whether an object can be used.
func (h *Handler) serveValidate(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, endpoint{
		what: "validation", failed: func(status int) { h.validated.httpError.WithLabelValues(strconv.Itoa(status)).Inc() },
		seconds: h.validated.seconds, answer: h.answerValidation,
	})
}

func (h *Handler) answerValidation(_ context.Context, body []byte) ([]byte, int, error) {
	var review struct {
		APIVersion string             `json:"apiVersion"`
		Kind       string             `json:"kind"`
		Request    *validationRequest `json:"request"`
	}
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("the body is no AdmissionReview: %w", err)
	}
	if err := checkReview(review.APIVersion, review.Kind); err != nil {
		return nil, http.StatusBadRequest, err
	}
	if review.Request == nil || review.Request.UID == "" {
		return nil, http.StatusBadRequest, errors.New("the AdmissionReview has no request with a uid")
	}
	r := h.validate(review.Request)
	r.UID = review.Request.UID
	return answer{APIVersion: review.APIVersion, Kind: review.Kind, Response: r}.append(make([]byte, 0, 1024)), http.StatusOK, nil
}

// validate decides about one object. What is going away, and what is invalid already and stays as it is, is let through: else its
// finalizers could not be taken off.
func (h *Handler) validate(r *validationRequest) *response {
	if r.Operation != "CREATE" && r.Operation != "UPDATE" || len(r.Object) == 0 || string(r.Object) == "null" {
		return &response{Allowed: true}
	}
	problems, err := validate.Object(r.Object)
	if err != nil {
		return h.invalid(r, "yaml_decode_error", err.Error(), nil)
	}
	var errs []diag.Problem
	var warnings []string
	for _, p := range problems {
		if p.Object.Namespace == "" {
			p.Object.Namespace = r.Namespace
		}
		if p.Severity == diag.Error {
			errs = append(errs, p)
		} else {
			warnings = append(warnings, describe(p))
		}
	}
	if len(errs) > 0 && !settled(r) {
		texts := make([]string, len(errs))
		for i, p := range errs {
			texts[i] = describe(p)
		}
		out := h.invalid(r, "invalid_resource", "configuration is invalid: "+strings.Join(texts, ";\n"), errs)
		out.Warnings = warnings
		return out
	}
	for _, p := range errs {
		warnings = append(warnings, describe(p))
	}
	h.validated.passed.WithLabelValues(labelsOf(r)...).Inc()
	return &response{Allowed: true, Warnings: warnings}
}

// describe says a problem to somebody who is writing the object.
func describe(p diag.Problem) string {
	object := p.Object.Kind + " " + p.Object.Name
	if p.Object.Namespace != "" {
		object = p.Object.Kind + " " + p.Object.Namespace + "/" + p.Object.Name
	}
	if p.Hint != "" {
		return fmt.Sprintf("%s: %s: %s (%s; %s)", object, p.Field, p.Detail, p.Code, p.Hint)
	}
	return fmt.Sprintf("%s: %s: %s (%s)", object, p.Field, p.Detail, p.Code)
}

// settled reports whether the object is being deleted, or its spec is what it was.
func settled(r *validationRequest) bool {
	type state struct {
		Metadata struct {
			DeletionTimestamp *string `json:"deletionTimestamp"`
		} `json:"metadata"`
		Spec any `json:"spec"`
	}
	var now, before state
	if json.Unmarshal(r.Object, &now) == nil && now.Metadata.DeletionTimestamp != nil {
		return true
	}
	return r.Operation == "UPDATE" && json.Unmarshal(r.OldObject, &before) == nil && reflect.DeepEqual(now.Spec, before.Spec)
}

// invalid refuses an object. The causes are for programs; kubectl shows the message.
func (h *Handler) invalid(r *validationRequest, reason, message string, problems []diag.Problem) *response {
	level := slog.LevelDebug
	if !r.probe() {
		level = slog.LevelInfo
		h.validated.failed.WithLabelValues(append(labelsOf(r), reason)...).Inc()
	}
	details := &metav1.StatusDetails{}
	for _, p := range problems {
		details.Name, details.Group, details.Kind = p.Object.Name, p.Object.Group, p.Object.Kind
		details.Causes = append(details.Causes, metav1.StatusCause{Type: metav1.CauseType(p.Code), Field: p.Field, Message: p.Detail})
	}
	details.Causes = append(details.Causes, metav1.StatusCause{Type: diag.CauseRevision, Message: h.config.Revision})
	h.config.Log.Log(context.Background(), level, "object refused", "resource", short(r.Resource.String()), "namespace", short(r.Namespace), "error", short(message))
	return &response{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest, Message: message, Details: details,
	}}
}

// labelsOf are a request's labels in metrics. Only kinds of Istio's API have labels of their own: whoever reaches the port can send
// any.
func labelsOf(r *validationRequest) []string {
	for _, group := range validate.Groups() {
		if r.Resource.Group == group && known[r.Resource.Version] && known[r.Resource.Resource] {
			return []string{group, r.Resource.Version, r.Resource.Resource}
		}
	}
	return []string{"other", "other", "other"}
}

// known are the versions and resources of Istio's API.
var known = func() map[string]bool {
	m := map[string]bool{"v1": true, "v1alpha1": true, "v1alpha3": true, "v1beta1": true}
	for _, resource := range validate.Resources() {
		m[resource] = true
	}
	return m
}()
