// Package webhook answers the API server's admission requests over HTTPS: /inject gives a pod its sidecar, /validate refuses Istio
// configuration that cannot be used. It reads and bounds what comes in, asks packages inject and validate, and says the outcome:
// as a patch, as warnings and errors that name the object and the cause, as metrics and as logs. It has no side effects, so a dry
// run is answered like any other request.
//
// Whoever can reach the port can call it: bodies are limited in size and in number, bad input is answered and never logged in
// full, a panic ends one request.
package webhook

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

const (
	// maxBody is twice what etcd takes for one object, which is sent with itself and its managed fields.
	maxBody = 3 << 20
	// maxInFlight bounds the memory of bodies that are read at the same time.
	maxInFlight = 64 << 20
	// unsized is what a request without Content-Length counts for.
	unsized = maxBody
	// readTimeout is for a body to arrive, waitTimeout for its turn. Both end before the API server's 10 s.
	readTimeout = 5 * time.Second
	// writeTimeout is how long a peer may take to read the answer.
	writeTimeout = 5 * time.Second
	waitTimeout  = 3 * time.Second
	// templateTime is how long an operator's templates may run for one pod, by default. Istio's take a millisecond.
	templateTime = 2 * time.Second
	// templateTurns is for how many pods templates run at the same time, for each processor: what they make in memory is not bounded
	// by the size of requests.
	templateTurns = 2
)

// Config is what a Handler needs.
type Config struct {
	// Config gives the configuration in force, nil while there is none. It is called for each request and must not block.
	Config     func() *inject.Config
	Revision   string // of this control plane; refusals carry it
	Registerer prometheus.Registerer
	Log        *slog.Logger
	// TemplateTime is how long an operator's templates may run for one pod; 0 is two seconds.
	TemplateTime time.Duration
}

// Handler serves the webhooks. It is an http.Handler for the paths /inject, /inject/cluster/CLUSTER/net/NETWORK and /validate.
type Handler struct {
	config    Config
	metrics   *metrics
	validated *validationMetrics
	bytes     *semaphore.Weighted
	turns     *semaphore.Weighted // of templates
	mux       *http.ServeMux
}

// endpoint is what one path does with a request whose body was read.
type endpoint struct {
	what    string              // as in "injection failed"
	failed  func(status int)    // counts a request that no API server would send, or that could not be answered
	seconds prometheus.Observer // nil where nobody measures
	answer  func(ctx context.Context, body []byte) (answer []byte, status int, err error)
}

// New registers the metrics; it starts nothing.
func New(c Config) (*Handler, error) {
	if c.Config == nil || c.Registerer == nil || c.Log == nil {
		return nil, errors.New("make webhook: Config, Registerer and Log must be set")
	}
	if c.TemplateTime == 0 {
		c.TemplateTime = templateTime
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	v, err := newValidationMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	h := &Handler{config: c, metrics: m, validated: v, bytes: semaphore.NewWeighted(maxInFlight),
		turns: semaphore.NewWeighted(int64(templateTurns * runtime.GOMAXPROCS(0))), mux: http.NewServeMux()}
	h.mux.HandleFunc("POST /inject", h.serveInject)
	h.mux.HandleFunc("POST /inject/cluster/{cluster}", h.serveInject)
	h.mux.HandleFunc("POST /inject/cluster/{cluster}/net/{network}", h.serveInject)
	h.mux.HandleFunc("POST "+verdict.InjectionPath, h.serveProbe)
	h.mux.HandleFunc("POST "+verdict.ValidationPath, h.serveValidationProbe)
	h.mux.HandleFunc("POST /validate", h.serveValidate)
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// serveInject gives pods their sidecars.
func (h *Handler) serveInject(w http.ResponseWriter, r *http.Request) {
	h.metrics.requests.Inc()
	h.serve(w, r, h.injection(r.PathValue("cluster"), r.PathValue("network")))
}

func (h *Handler) injection(cluster, network string) endpoint {
	return endpoint{
		what: "injection", failed: func(int) { h.metrics.failure.Inc() }, seconds: h.metrics.seconds,
		answer: func(ctx context.Context, body []byte) ([]byte, int, error) {
			return h.answer(ctx, body, cluster, network)
		},
	}
}

// serve reads a request and writes its answer. A request that no API server would send gets an HTTP error.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, e endpoint) {
	fail := func(status int, err error) {
		e.failed(status)
		h.config.Log.Warn(e.what+" request refused", "status", status, "peer", r.RemoteAddr, "error", err)
		http.Error(w, err.Error(), status)
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		fail(http.StatusUnsupportedMediaType, fmt.Errorf("the content type is %q: send application/json", short(r.Header.Get("Content-Type"))))
		return
	}
	if r.ContentLength > maxBody {
		fail(http.StatusRequestEntityTooLarge, fmt.Errorf("the body has %d bytes: the most is %d", r.ContentLength, maxBody))
		return
	}
	release, err := h.admit(r)
	if err != nil {
		h.metrics.refused.Inc()
		w.Header().Set("Retry-After", "1")
		fail(http.StatusServiceUnavailable, err)
		return
	}
	body, status, err := readBody(w, r)
	if err != nil {
		release()
		fail(status, err)
		return
	}
	answer, status, err := h.contain(r.Context(), body, e)
	release() // before the answer is written: who reads it slowly, or not at all, holds up nobody else
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	if err != nil {
		fail(status, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) // the peer is gone: it will ask again
}

// admit waits, not long, until the request's body fits into what may be in flight.
func (h *Handler) admit(r *http.Request) (release func(), err error) {
	n := r.ContentLength
	if n < 0 {
		n = unsized
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitTimeout)
	defer cancel()
	if err := h.bytes.Acquire(ctx, n); err != nil {
		return nil, errors.New("too many requests are in flight: try again")
	}
	return func() { h.bytes.Release(n) }, nil
}

func readBody(w http.ResponseWriter, r *http.Request) (body []byte, status int, err error) {
	// Not every ResponseWriter has deadlines (tests); the server's own ReadTimeout then holds.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout))
	var b bytes.Buffer
	if r.ContentLength > 0 {
		b.Grow(int(r.ContentLength) + bytes.MinRead) // which admit has let in
	}
	if _, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than %d bytes", maxBody)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, http.StatusBadRequest, errors.New("the body ends early")
		}
		return nil, http.StatusRequestTimeout, fmt.Errorf("read body: %w", err)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return b.Bytes(), 0, nil
}

// contain answers, measures it, and turns a panic into an error of this one request.
func (h *Handler) contain(ctx context.Context, body []byte, e endpoint) (answer []byte, status int, err error) {
	start := time.Now()
	defer func() {
		if e.seconds != nil {
			e.seconds.Observe(time.Since(start).Seconds())
		}
		if p := recover(); p != nil {
			h.metrics.panics.Inc()
			h.config.Log.Error(e.what+" panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			answer, status, err = nil, http.StatusInternalServerError, errors.New(e.what+" failed by a bug of the control plane: its log says where")
		}
	}()
	return e.answer(ctx, body)
}

// noConfiguration is what is told while there is no configuration.
const noConfiguration = "there is no injector configuration that can be used yet: look at the ConfigMaps istio and istio-sidecar-injector and at the control plane's log"

// patchBuffers are of patches that have been written into their answers.
var patchBuffers sync.Pool

// maxPatchBuffer keeps the pool from holding what one huge pod needed.
const maxPatchBuffer = 64 << 10

// answer is the whole of injection, from bytes to bytes.
func (h *Handler) answer(ctx context.Context, body []byte, cluster, network string) (out []byte, status int, err error) {
	for _, name := range []string{cluster, network} {
		if name != "" && !inject.IsClusterName(name) {
			return nil, http.StatusBadRequest, fmt.Errorf("%q in the path is no name of a cluster or network", short(name))
		}
	}
	cfg := h.config.Config()
	asked, pod, err := parseReview(body, cfg)
	if err != nil && asked == nil {
		return nil, http.StatusBadRequest, err
	}
	var r *response
	switch {
	case err != nil:
		r = h.denied(http.StatusBadRequest, metav1.StatusReasonBadRequest, err)
	case cfg == nil:
		r = h.denied(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable,
			errors.New(noConfiguration))
	default:
		r = h.review(ctx, cfg.ForCluster(cluster, network), pod)
	}
	r.UID = asked.uid
	room := base64.StdEncoding.EncodedLen(len(r.Patch)) + 512
	out = answer{APIVersion: asked.apiVersion, Kind: asked.kind, Response: r}.append(make([]byte, 0, room))
	if n := cap(r.Patch); n > 0 && n <= maxPatchBuffer {
		patchBuffers.Put(r.Patch[:0]) //nolint:staticcheck // a slice's header costs one small allocation, the slice is 8 KiB
	}
	return out, http.StatusOK, nil
}

// review decides about a pod and patches it.
func (h *Handler) review(ctx context.Context, cfg *inject.Config, pod *corev1.Pod) *response {
	verdict := inject.Decide(pod, cfg)
	var warnings []string
	if verdict.Warning != "" {
		warnings = append(warnings, fmt.Sprintf("pod %s/%s: %s", pod.Namespace, nameOf(pod), verdict.Warning))
	}
	if !verdict.Inject && verdict.Reason != inject.AlreadyInjected {
		return h.skipped(pod, verdict, warnings)
	}
	after, problems, err := h.inject(ctx, cfg, pod)
	if errors.Is(err, errNoTurn) {
		return h.denied(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, err)
	}
	if err != nil {
		return h.denied(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, err)
	}
	for _, p := range problems {
		warnings = append(warnings, inject.Describe(p))
	}
	ops := inject.Patch(pod, after)
	if len(ops) == 0 {
		return h.skipped(pod, verdict, warnings)
	}
	buffer, _ := patchBuffers.Get().([]byte)
	patch := cfg.AppendPatch(buffer[:0], ops)
	h.metrics.success.Inc()
	h.config.Log.Debug("pod injected", "namespace", pod.Namespace, "pod", nameOf(pod), "reason", verdict.Reason, "warnings", len(warnings))
	return &response{Allowed: true, Patch: patch, PatchType: "JSONPatch", Warnings: warnings,
		AuditAnnotations: map[string]string{"injection": string(verdict.Reason)}}
}

// errNoTurn says that the pods before take too long.
var errNoTurn = errors.New("the templates of other pods take all the time that there is: try again, and look whether a template of the ConfigMap istio-sidecar-injector loops")

// inject is inject.Pod. Templates of an operator's get a time limit, and run for few pods at once.
func (h *Handler) inject(ctx context.Context, cfg *inject.Config, pod *corev1.Pod) (*corev1.Pod, []diag.Problem, error) {
	if !cfg.NeedsWhole(pod) {
		return inject.Pod(pod, cfg)
	}
	wait, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	if h.turns.Acquire(wait, 1) != nil {
		return nil, nil, errNoTurn
	}
	defer h.turns.Release(1)
	ctx, cancel = context.WithTimeoutCause(ctx, h.config.TemplateTime, fmt.Errorf("it ran for %s and has not ended: does it loop?", h.config.TemplateTime))
	defer cancel()
	return inject.Pod(pod, cfg.Until(func() error { return context.Cause(ctx) }))
}

// skipped lets a pod through as it is. Where the pod asks for a sidecar and gets none, its creator and the log hear of it.
func (h *Handler) skipped(pod *corev1.Pod, v inject.Verdict, warnings []string) *response {
	h.metrics.skips.WithLabelValues(string(v.Reason)).Inc()
	level := slog.LevelDebug
	if v.Surprising {
		level = slog.LevelInfo
		warnings = append(warnings, fmt.Sprintf("pod %s/%s gets no sidecar: %s", pod.Namespace, nameOf(pod), v.Detail))
	}
	h.config.Log.Log(context.Background(), level, "pod skipped", "namespace", pod.Namespace, "pod", nameOf(pod), "reason", v.Reason, "detail", v.Detail)
	return &response{Allowed: true, Warnings: warnings, AuditAnnotations: map[string]string{"injection": string(v.Reason)}}
}

// denied refuses the pod: without its sidecar it would run outside the mesh, and nobody would know.
func (h *Handler) denied(code int32, reason metav1.StatusReason, err error) *response {
	h.metrics.failure.Inc()
	h.config.Log.Info("pod refused", "code", code, "error", err)
	return &response{Result: &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: err.Error()}}
}

// nameOf is the pod's name, or the beginning of it that its controller gave.
func nameOf(pod *corev1.Pod) string {
	if pod.Name != "" {
		return pod.Name
	}
	return pod.GenerateName + "*"
}
