package podwatch

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// metrics are two: how many such pods there are, counted when somebody asks, and how many there were.
type metrics struct {
	watcher *Watcher
	now     *prometheus.Desc
	seen    *prometheus.CounterVec
}

func newMetrics(w *Watcher) *metrics {
	return &metrics{
		watcher: w,
		now: prometheus.NewDesc("selvage_pods_without_sidecar",
			"Pods that labels give a sidecar, or that say something about it, and that have none, by reason. Only the replica that leads has it.", []string{"reason"}, nil),
		seen: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "selvage_pods_without_sidecar_total",
			Help: "Pods that were found without a sidecar although labels give them one, by reason."}, []string{"reason"}),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.now
	m.seen.Describe(out)
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	m.seen.Collect(out)
	m.watcher.mu.Lock()
	r := m.watcher.current
	m.watcher.mu.Unlock()
	if r == nil {
		return
	}
	counts := map[inject.Reason]int{}
	r.mu.Lock()
	for _, g := range r.pods.groups {
		if g.reason != "" {
			counts[g.reason] += len(g.pods)
		}
	}
	r.mu.Unlock()
	for reason, n := range counts {
		out <- prometheus.MustNewConstMetric(m.now, prometheus.GaugeValue, float64(n), string(reason))
	}
}
