package probe

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// metrics are documented in docs/self-probe.md.
type metrics struct {
	success, verdicts, lastSuccess *prometheus.GaugeVec
	runs                           *prometheus.CounterVec
	seconds                        *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	target := []string{"check", "revision"}
	m := &metrics{
		success: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "selvage_probe_success",
			Help: "1 when the check is proven to work through the API server, 0 when it does not. Absent while it is not known, and but at the replica that leads."}, target),
		verdicts: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "selvage_probe_verdict",
			Help: "1 for the verdict that holds now, 0 for all others."}, append(target, "verdict")),
		lastSuccess: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "selvage_probe_last_success_timestamp_seconds",
			Help: "Unix time of the last dry run that proved the check."}, target),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "selvage_probe_runs_total",
			Help: "Dry runs, by what each one said."}, append(target, "verdict")),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "selvage_probe_duration_seconds",
			Help: "Time that the API server took for a dry run.", Buckets: []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, target),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.success, m.verdicts, m.lastSuccess, m.runs, m.seconds} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of the probe: %w", err)
		}
	}
	return m, nil
}

// ran counts one dry run.
func (m *metrics) ran(t target, f verdict.Finding, took time.Duration, now time.Time) {
	m.runs.WithLabelValues(string(t.check), t.revision, string(f.Verdict)).Inc()
	m.seconds.WithLabelValues(string(t.check), t.revision).Observe(took.Seconds())
	if f.Verdict == verdict.OK {
		m.lastSuccess.WithLabelValues(string(t.check), t.revision).Set(float64(now.UnixMilli()) / 1000)
	}
}

// holds shows the verdict of a target.
func (m *metrics) holds(t target, v verdict.Verdict) {
	for _, each := range verdict.Verdicts {
		m.verdicts.WithLabelValues(string(t.check), t.revision, string(each)).Set(one(each == v))
	}
	if v == verdict.CouldNotProbe {
		m.success.DeleteLabelValues(string(t.check), t.revision)
		return
	}
	m.success.WithLabelValues(string(t.check), t.revision).Set(one(v == verdict.OK))
}

// gone takes the gauges of a target away: nobody probes it here any more.
func (m *metrics) gone(t target) {
	m.success.DeleteLabelValues(string(t.check), t.revision)
	m.lastSuccess.DeleteLabelValues(string(t.check), t.revision)
	m.verdicts.DeletePartialMatch(prometheus.Labels{"check": string(t.check), "revision": t.revision})
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
