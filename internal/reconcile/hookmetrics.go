package reconcile

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/selvage-mesh/selvage/internal/admission"
)

// webhookMetrics: the first three have Istio's names and labels.
type webhookMetrics struct {
	attempts, retries, failures *prometheus.CounterVec
	overwritten, policies       *prometheus.CounterVec
	wrong, pause, missing       *prometheus.GaugeVec
}

func newWebhookMetrics(r prometheus.Registerer) (*webhookMetrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"kind", "name"})
	}
	m := &webhookMetrics{
		attempts: counter("webhook_patch_attempts_total", "Writes of a webhook configuration, by its name.", "name"),
		retries:  counter("webhook_patch_retries_total", "Writes of a webhook configuration that were, or are to be, repeated, by name and reason.", "name", "reason"),
		failures: counter("webhook_patch_failures_total", "Writes of a webhook configuration that failed, by name and reason.", "name", "reason"),
		overwritten: counter("selvage_webhook_overwritten_total",
			"How often a webhook configuration that was right was made wrong, by the field manager that did it, as far as can be seen.", "kind", "name", "manager"),
		policies: counter("selvage_webhook_failure_policy_total", "Writes of a validator's failurePolicy, by its new value.", "name", "policy"),
		wrong:    gauge("selvage_webhook_wrong_entries", "Entries of a webhook configuration that are not as they should be now."),
		pause:    gauge("selvage_webhook_rival_pause_seconds", "How long repairs wait because a rival goes on overwriting them; 0 for not at all."),
		missing:  gauge("selvage_webhook_missing", "1 while a webhook configuration of this revision does not exist, else 0."),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.attempts, m.retries, m.failures, m.overwritten, m.policies, m.wrong, m.pause, m.missing} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// forget drops the gauges of a configuration that is gone.
func (m *webhookMetrics) forget(k admission.Key) {
	m.wrong.DeleteLabelValues(string(k.Kind), k.Name)
	m.pause.DeleteLabelValues(string(k.Kind), k.Name)
}
