package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// probePatch marks a dry-run pod of the control plane's probe as seen.
var probePatch = []byte(`[{"op":"replace","path":"/metadata/annotations/` + strings.ReplaceAll(verdict.Annotation, "/", "~1") + `","value":"` + verdict.Answered + `"}]`)

// serveProbe answers the probe's own webhook: see verdict.Mutating. It gives no sidecar, but tries whether it could.
func (h *Handler) serveProbe(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, endpoint{what: "probe", failed: func(int) { h.metrics.failure.Inc() }, answer: h.answerProbe})
}

// answerProbe is the whole of it, from bytes to bytes.
func (h *Handler) answerProbe(ctx context.Context, body []byte) ([]byte, int, error) {
	cfg := h.config.Config()
	asked, pod, err := parseReview(body, cfg)
	if err != nil && asked == nil {
		return nil, http.StatusBadRequest, err
	}
	out := &response{Allowed: true}
	if err == nil {
		err = h.try(ctx, cfg, pod)
	}
	if err != nil {
		out = &response{Result: &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid, Message: err.Error()}}
	} else if pod.Annotations[verdict.Annotation] != "" {
		out.Patch, out.PatchType = probePatch, "JSONPatch"
	}
	out.UID = asked.uid
	return answer{APIVersion: asked.apiVersion, Kind: asked.kind, Response: out}.append(nil), http.StatusOK, nil
}

// try says why the pod could not be injected, nil when it could or is already.
func (h *Handler) try(ctx context.Context, cfg *inject.Config, pod *corev1.Pod) error {
	if cfg == nil {
		return errors.New(noConfiguration)
	}
	if v := inject.Decide(pod, cfg); !v.Inject {
		return nil
	}
	_, _, err := h.inject(ctx, cfg, pod)
	return err
}

// serveValidationProbe answers the probe's own validating webhook: see verdict.Validating. That it is reached is all that it tells.
func (h *Handler) serveValidationProbe(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, endpoint{what: "probe", failed: func(status int) { h.validated.httpError.WithLabelValues(strconv.Itoa(status)).Inc() }, answer: answerReached})
}

func answerReached(_ context.Context, body []byte) ([]byte, int, error) {
	var raw review[json.RawMessage]
	if err := json.Unmarshal(body, &raw); err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("the body is no AdmissionReview: %w", err)
	}
	if err := checkReview(raw.APIVersion, raw.Kind); err != nil {
		return nil, http.StatusBadRequest, err
	}
	if raw.Request == nil || raw.Request.UID == "" {
		return nil, http.StatusBadRequest, errors.New("the AdmissionReview has no request with a uid")
	}
	return answer{APIVersion: raw.APIVersion, Kind: raw.Kind, Response: &response{UID: raw.Request.UID, Allowed: true}}.append(nil), http.StatusOK, nil
}
