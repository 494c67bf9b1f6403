package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/selvage-mesh/selvage/internal/readiness"
)

// ready joins what Envoy, the relay and the identity know.
func (a *Agent) ready(ctx context.Context) readiness.Status {
	s := a.admin.readiness(ctx)
	if a.drains.has() {
		s.ServerState = "DRAINING"
	}
	state := a.relay.State()
	switch {
	case state.Failure != nil:
		s.Upstream = state.Failure.Error()
	case state.Waiting:
		s.Upstream = fmt.Sprintf("%s is connected and has not answered yet: does it know the pod %s/%s?",
			a.config.Proxy.DiscoveryAddress, a.config.Pod.Namespace, a.config.Pod.Name)
	}
	if m, _ := a.identity.Current(); m.Leaf == nil {
		s.Certificate = "the authority has not answered yet"
		if err := a.identity.Failure(); err != nil {
			s.Certificate = err.Error()
		}
	}
	rejections := make([]string, 0, len(state.Rejections))
	for _, r := range state.Rejections {
		rejections = append(rejections, r.Type+": "+r.Reason)
	}
	s.Rejection = strings.Join(rejections, "; ")
	return s
}

// register adds the agent's own metrics, under Istio's names where it has them.
func (a *Agent) register() {
	counter := func(name, help string, value func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	a.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		counter("istio_agent_xds_proxy_requests", "xDS requests of the proxy passed on.", func() uint64 { return a.relay.State().Requests }),
		counter("istio_agent_xds_proxy_responses", "xDS responses of the control plane passed on.", func() uint64 { return a.relay.State().Responses }),
		counter("istio_agent_istiod_connection_failures", "xDS connections to the control plane that failed.", func() uint64 { return a.relay.State().Failures }),
		counter("istio_agent_istiod_connection_terminations", "xDS streams that the control plane ended.", func() uint64 { return a.relay.State().Ended }),
		gauge("istio_agent_xds_connected", "1 while the control plane answers on an open xDS stream.", func() float64 { return boolean(a.relay.State().Connected) }),
		gauge("istio_agent_xds_rejected_types", "Types of configuration whose newest push the proxy has refused.", func() float64 { return float64(len(a.relay.State().Rejections)) }),
		gauge("istio_agent_cert_expiry_seconds", "Seconds until the workload certificate ends; negative when it has, and 0 while there is none.", a.certificateLeft),
		gauge("istio_agent_envoy_starts", "How often Envoy was started by this agent.", func() float64 { return float64(a.proxy.Starts()) }),
		gauge("istio_agent_start_time_seconds", "When the agent started, in seconds since 1970.", func() float64 { return float64(a.started.UnixMilli()) / 1000 }),
	)
}

func (a *Agent) certificateLeft() float64 {
	m, _ := a.identity.Current()
	if m.Leaf == nil {
		return 0
	}
	return time.Until(m.Leaf.NotAfter).Seconds()
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
