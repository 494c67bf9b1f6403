package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"istio.io/api/label"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

const (
	// steady is between two tries while nothing changes, eager after a change; in between it doubles.
	steady = 10 * time.Second
	eager  = time.Second
	// patience is for one try: longer than the webhook's timeout.
	patience = 8 * time.Second
)

// ValidationConfig says what to prove.
type ValidationConfig struct {
	Istio      istioclient.Interface
	Namespace  string                // where the invalid object is tried; create on gateways.networking.istio.io is needed there
	Revision   string                // whose validation
	Registerer prometheus.Registerer // may be nil
	Log        *slog.Logger
}

// Validation proves, again and again, that an invalid object is refused by this revision's validating webhook when it is created
// through the API server. The object is a Gateway without servers, of this revision, and the creation a dry run.
type Validation struct {
	config ValidationConfig
	gauge  prometheus.Gauge

	mu      sync.Mutex
	working bool
	since   time.Time // zero while it is not known
	cause   string
	changed chan struct{}
}

// NewValidation starts nothing.
func NewValidation(c ValidationConfig) (*Validation, error) {
	if c.Istio == nil || c.Namespace == "" || c.Revision == "" || c.Log == nil {
		return nil, errors.New("configure validation probe: a client, a namespace, a revision and a logger are needed")
	}
	v := &Validation{config: c, changed: make(chan struct{}), gauge: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "selvage_validation_working",
		Help: "1 while an invalid object is refused by this revision's webhook through the API server, else 0, also where another replica tries.",
	})}
	if c.Registerer != nil {
		if err := c.Registerer.Register(v.gauge); err != nil {
			return nil, fmt.Errorf("configure validation probe: register metrics: %w", err)
		}
	}
	return v, nil
}

// Validation tells whether validation works, since when that is so (zero while it is not known), and gives a channel that is closed
// when that changes.
func (v *Validation) Validation() (working bool, since time.Time, changed <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.working, v.since, v.changed
}

// Run tries until ctx ends; then nothing is known any more. It returns nil.
func (v *Validation) Run(ctx context.Context) error {
	defer v.set(false, time.Time{}, "")
	pause := eager
	for {
		changed := v.try(ctx)
		if pause = min(2*pause, steady); changed {
			pause = eager
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// try asks once. It reports whether the answer is another than before.
func (v *Validation) try(ctx context.Context) (changed bool) {
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := v.config.Istio.NetworkingV1().Gateways(v.config.Namespace).Create(asking, &networkingv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{GenerateName: diag.ProbePrefix, Namespace: v.config.Namespace, Labels: map[string]string{label.IoIstioRev.Name: v.config.Revision}},
		Spec:       networking.Gateway{},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if ctx.Err() != nil {
		return false
	}
	working, cause, known := v.judge(err)
	if !known {
		v.config.Log.Debug("validation cannot be tried", "error", err)
		return false
	}
	return v.set(working, time.Now(), cause)
}

// judge reads an answer. It is not known when there was none: without an API server nobody writes configuration either.
func (v *Validation) judge(err error) (working bool, cause string, known bool) {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return false, "an invalid Gateway was let through: there is no validating webhook for it, or it cannot be called and its failurePolicy Ignore hides why", true
	case !errors.As(err, &status):
		return false, "", false
	}
	s := status.Status()
	by := slices.IndexFunc(causes(s), func(c metav1.StatusCause) bool { return string(c.Type) == diag.CauseRevision })
	switch {
	case by >= 0 && s.Details.Causes[by].Message == v.config.Revision:
		return true, "", true
	case by >= 0:
		return false, fmt.Sprintf("the control plane of revision %q answers for revision %q: the webhook leads to the wrong Service", s.Details.Causes[by].Message, v.config.Revision), true
	case apierrors.IsForbidden(err) && !strings.Contains(s.Message, "admission webhook"):
		return false, "the control plane may not try: `selvage install` grants create on gateways.networking.istio.io in " + v.config.Namespace + ": " + s.Message, true
	case apierrors.IsTooManyRequests(err) || apierrors.IsUnauthorized(err):
		return false, "", false
	}
	return false, s.Message, true
}

func causes(s metav1.Status) []metav1.StatusCause {
	if s.Details == nil {
		return nil
	}
	return s.Details.Causes
}

// set notes an answer and tells of it when it is another.
func (v *Validation) set(working bool, when time.Time, cause string) (changed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	log := v.config.Log
	switch {
	case when.IsZero():
	case working && (!v.working || v.since.IsZero()):
		log.Info("validation works through the API server")
	case !working && (cause != v.cause || v.since.IsZero()):
		log.Warn("validation does not work through the API server", "cause", cause)
	}
	v.cause = cause
	v.gauge.Set(0)
	if working {
		v.gauge.Set(1)
	}
	if working == v.working && when.IsZero() == v.since.IsZero() {
		return false
	}
	v.working, v.since = working, when
	close(v.changed)
	v.changed = make(chan struct{})
	return true
}
