package webhook

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics carry Istio's names where it has the same, so dashboards keep working.
type metrics struct {
	requests, success, failure prometheus.Counter
	skips                      *prometheus.CounterVec
	seconds                    prometheus.Histogram
	panics, refused            prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		requests: counter("sidecar_injection_requests_total", "Requests for injection."),
		success:  counter("sidecar_injection_success_total", "Requests that were answered with a patch."),
		failure:  counter("sidecar_injection_failure_total", "Requests that were answered with an error, or could not be read."),
		skips: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidecar_injection_skip_total",
			Help: "Requests for pods that get no sidecar, by reason."}, []string{"reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sidecar_injection_time_seconds",
			Help: "Time from a read request to its answer.", Buckets: []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5}}),
		panics:  counter("selvage_webhook_panics_total", "Panics that were contained in one request. Each is a bug."),
		refused: counter("selvage_webhook_overload_total", "Requests that were turned away because too much was in flight."),
	}
	for _, c := range []prometheus.Collector{m.requests, m.success, m.failure, m.skips, m.seconds, m.panics, m.refused} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register webhook metrics: %w", err)
		}
	}
	return m, nil
}
