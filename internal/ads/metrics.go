package ads

import (
	"fmt"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/selvage-mesh/selvage/internal/ads/session"
)

// metrics are Istio's where it has one for the same thing, with its names and labels, so that dashboards keep working.
type metrics struct {
	connected      *prometheus.GaugeVec   // by version
	pushes         *prometheus.CounterVec // by type
	pushTime       *prometheus.HistogramVec
	convergence    prometheus.Histogram
	debounce       prometheus.Histogram
	rejects        *prometheus.CounterVec
	rejected       [session.Unknown]*prometheus.GaugeVec // by node, err
	expiredNonce   prometheus.Counter
	writeTimeouts  prometheus.Counter
	answerTimeouts prometheus.Counter
	unserved       prometheus.Counter
	refused        *prometheus.CounterVec // by code

	views                prometheus.Gauge
	viewHits, viewMisses prometheus.Counter
	endpointMisses       prometheus.Counter

	mu       sync.Mutex
	versions map[string]int     // streams by label
	guilty   map[rejecting]bool // series of rejected
}

type rejecting struct {
	kind session.Kind
	node string
}

const (
	maxVersions  = 20  // label values of pilot_xds; more proxies' versions are counted as "other"
	maxRejecting = 200 // series of pilot_xds_TYPE_reject
)

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	slow := []float64{.1, .5, 1, 3, 5, 10, 20, 30}
	fast := []float64{.01, .1, 1, 3, 5, 10, 20, 30}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "pilot_xds", Help: "Proxies connected to this control plane by xDS, by the version of their agent."}, []string{"version"}),
		pushes:    counters("pilot_xds_pushes", "Responses sent to proxies, by type; TYPE_senderr counts those that could not be written.", "type"),
		pushTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "pilot_xds_push_time", Buckets: fast,
			Help: "Time in seconds to write a response to a proxy."}, []string{"type"}),
		convergence: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "pilot_proxy_convergence_time", Buckets: slow,
			Help: "Time in seconds from a change until a proxy has acknowledged everything that it needs of it."}),
		debounce: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "pilot_debounce_time", Buckets: fast,
			Help: "Time in seconds from the first change of a batch until the batch is pushed."}),
		rejects:        counters("pilot_total_xds_rejects", "Responses that a proxy has rejected, by type.", "type"),
		expiredNonce:   counter("pilot_xds_expired_nonce", "Requests that answer an older response than the newest."),
		writeTimeouts:  counter("pilot_xds_write_timeout", "Streams that were reset because a response could not be written in time."),
		answerTimeouts: counter("selvage_xds_answer_timeouts_total", "Streams that were reset because the proxy left a response unanswered."),
		unserved:       counter("selvage_xds_unserved_types_total", "Subscriptions to types that are not served; they are answered with nothing."),
		refused:        counters("selvage_xds_refused_streams_total", "Streams that were refused before anything was sent, by gRPC code.", "code"),
		views:          prometheus.NewGauge(prometheus.GaugeOpts{Name: "selvage_views", Help: "Distinct configurations that are kept for connected proxies."}),
		viewHits:       counter("selvage_view_cache_hits_total", "Times that a proxy was given a configuration that was generated before."),
		viewMisses:     counter("selvage_view_cache_misses_total", "Times that a configuration was generated."),
		endpointMisses: counter("selvage_endpoint_cache_misses_total", "Times that the endpoints of a service port were generated."),
		versions:       map[string]int{}, guilty: map[rejecting]bool{},
	}
	all := append(make([]prometheus.Collector, 0, 20), m.connected, m.pushes, m.pushTime, m.convergence, m.debounce, m.rejects, m.expiredNonce, m.writeTimeouts,
		m.answerTimeouts, m.unserved, m.refused, m.views, m.viewHits, m.viewMisses, m.endpointMisses)
	for k := range m.rejected {
		kind := session.Kind(k).String()
		m.rejected[k] = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "pilot_xds_" + kind + "_reject",
			Help: fmt.Sprintf("Proxies that reject %s configuration at present (at most %d of them).", strings.ToUpper(kind), maxRejecting)}, []string{"node", "err"})
		all = append(all, m.rejected[k])
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of ads: %w", err)
		}
	}
	return m, nil
}

// connect counts a stream and gives the label under which disconnect must count it.
func (m *metrics) connect(version string) (label string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.versions[version] == 0 && len(m.versions) >= maxVersions {
		version = "other"
	}
	m.versions[version]++
	m.connected.WithLabelValues(version).Set(float64(m.versions[version]))
	return version
}

func (m *metrics) disconnect(label string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.versions[label]--; m.versions[label] > 0 {
		m.connected.WithLabelValues(label).Set(float64(m.versions[label]))
		return
	}
	delete(m.versions, label)
	m.connected.DeleteLabelValues(label)
}

// rejecting says whether a proxy rejects a type at present. A proxy that does not has no series, so there are few of them.
func (m *metrics) rejecting(kind session.Kind, node string, now bool) {
	if kind >= session.Unknown {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := rejecting{kind, node}
	switch {
	case now && !m.guilty[key] && len(m.guilty) < maxRejecting:
		m.guilty[key] = true
		m.rejected[kind].WithLabelValues(node, "Internal").Set(1)
	case !now && m.guilty[key]:
		delete(m.guilty, key)
		m.rejected[kind].DeleteLabelValues(node, "Internal")
	}
}
