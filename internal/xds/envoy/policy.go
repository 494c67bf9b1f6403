package envoy

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	maglevv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	ringhashv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	roundrobinv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// ApplyPolicy makes a cluster behave as a policy says, but for TLS and for the type of the cluster; nil changes nothing. The cluster may
// have parts that others share: they are replaced, never changed.
func ApplyPolicy(c *clusterv3.Cluster, p *mesh.TrafficPolicy, protocol UpstreamProtocol) {
	if p == nil {
		return
	}
	k := p.Connections
	if k.ConnectTimeout > 0 {
		c.ConnectTimeout = duration(k.ConnectTimeout)
	}
	if k.Keepalive != nil {
		c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: some(k.Keepalive.Probes), KeepaliveTime: seconds(k.Keepalive.Time), KeepaliveInterval: seconds(k.Keepalive.Interval),
		}}
	}
	c.CircuitBreakers = circuitBreakers(p)
	if protocol != Opaque {
		c.TypedExtensionProtocolOptions = httpPolicy(p, protocol)
	}
	if p.Outlier != nil {
		c.OutlierDetection = outlierDetection(p.Outlier)
		// Below this share of healthy endpoints nobody is left out. With 0 a request fails when all have been taken out.
		commonLB(c).HealthyPanicThreshold = &typev3.Percent{Value: float64(p.Outlier.MinHealthPercent)}
	}
	if c.GetLbPolicy() != clusterv3.Cluster_CLUSTER_PROVIDED {
		loadBalancer(c, p.Balancer)
	}
}

// commonLB gives the cluster's own common configuration.
func commonLB(c *clusterv3.Cluster) *clusterv3.Cluster_CommonLbConfig {
	if c.CommonLbConfig == nil {
		c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{}
	}
	return c.CommonLbConfig
}

// some is nil for 0, which stands for "not said".
func some(n uint32) *wrapperspb.UInt32Value {
	if n == 0 {
		return nil
	}
	return wrapperspb.UInt32(n)
}

func seconds(d time.Duration) *wrapperspb.UInt32Value { return some(uint32(d / time.Second)) }

func optional(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return duration(*d)
}

func circuitBreakers(p *mesh.TrafficPolicy) *clusterv3.CircuitBreakers {
	limit := func(n uint32) *wrapperspb.UInt32Value {
		if n == 0 {
			return most
		}
		return wrapperspb.UInt32(n)
	}
	t := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections: limit(p.Connections.Max), MaxPendingRequests: limit(p.Connections.MaxPending),
		MaxRequests: limit(p.Connections.MaxRequests), MaxRetries: limit(p.Connections.MaxRetries),
	}
	if b := p.RetryBudget; b != nil {
		t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{MinRetryConcurrency: some(b.Minimum)}
		if b.Percent != nil {
			t.RetryBudget.BudgetPercent = &typev3.Percent{Value: *b.Percent}
		}
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
}

func httpPolicy(p *mesh.TrafficPolicy, protocol UpstreamProtocol) map[string]*anypb.Any {
	k := p.Connections
	if protocol == HTTP1Only && k.UpgradeToHTTP2 {
		protocol = HTTP2Only
	}
	if k.AsReceived {
		protocol = AsReceived
	}
	h2 := &corev3.Http2ProtocolOptions{MaxConcurrentStreams: some(k.MaxConcurrentStreams)}
	if k.Ping != nil {
		h2.ConnectionKeepalive = &corev3.KeepaliveSettings{Interval: duration(k.Ping.Interval), Timeout: duration(k.Ping.Timeout)}
	}
	o := &httpv3.HttpProtocolOptions{}
	switch protocol {
	case Opaque:
	case HTTP1Only:
		o.UpstreamProtocolOptions = explicitHTTP1
	case HTTP2Only:
		o.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: h2},
		}}
	case AsReceived:
		o.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: h2,
		}}
	}
	common := &corev3.HttpProtocolOptions{IdleTimeout: optional(k.HTTPIdle), MaxRequestsPerConnection: some(k.MaxRequestsPerConn), MaxConnectionDuration: optional(k.MaxDuration)}
	if proto.Size(common) > 0 {
		o.CommonHttpProtocolOptions = common
	}
	if t := p.TLS; t != nil && (t.Mode == mesh.SimpleTLS || t.Mode == mesh.MutualTLS) && t.SNI == "" {
		// The server is asked, and checked, for the host of the request.
		o.UpstreamHttpProtocolOptions = &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: !t.SkipVerify && len(t.Names) == 0}
	}
	return httpOptions(o)
}

func outlierDetection(o *mesh.Outlier) *clusterv3.OutlierDetection {
	// Envoy's statistics of success rates would take out endpoints that nobody has asked to.
	d := &clusterv3.OutlierDetection{
		EnforcingSuccessRate: wrapperspb.UInt32(0), Interval: optional(o.Interval), BaseEjectionTime: optional(o.BaseEjection),
		MaxEjectionPercent: some(o.MaxEjectionPercent), SplitExternalLocalOriginErrors: o.SplitLocal,
	}
	enforce := func(n *uint32, count, share **wrapperspb.UInt32Value) {
		switch {
		case n == nil:
		case *n == 0:
			*share = wrapperspb.UInt32(0)
		default:
			*count, *share = wrapperspb.UInt32(*n), wrapperspb.UInt32(100)
		}
	}
	enforce(o.Consecutive5xx, &d.Consecutive_5Xx, &d.EnforcingConsecutive_5Xx)
	enforce(o.ConsecutiveGateway, &d.ConsecutiveGatewayFailure, &d.EnforcingConsecutiveGatewayFailure)
	if o.SplitLocal {
		enforce(o.ConsecutiveLocal, &d.ConsecutiveLocalOriginFailure, &d.EnforcingConsecutiveLocalOriginFailure)
		d.EnforcingLocalOriginSuccessRate = wrapperspb.UInt32(0)
	}
	return d
}

func slowStart(w *mesh.Warmup) *clusterv3.Cluster_SlowStartConfig {
	if w == nil {
		return nil
	}
	s := &clusterv3.Cluster_SlowStartConfig{SlowStartWindow: duration(w.Duration)}
	if w.Aggression > 0 {
		s.Aggression = &corev3.RuntimeDouble{DefaultValue: w.Aggression, RuntimeKey: "selvage.warmup.aggression"}
	}
	if w.MinimumPercent > 0 {
		s.MinWeightPercent = &typev3.Percent{Value: w.MinimumPercent}
	}
	return s
}

// loadBalancer sets how the cluster chooses. Where it has a policy of its own, PodRouting, that stays and falls back to this one.
func loadBalancer(c *clusterv3.Cluster, b mesh.Balancer) {
	if b.Locality != nil && len(b.Locality.Distribute) > 0 {
		commonLB(c).LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}
	}
	if c.LoadBalancingPolicy != nil {
		c.LoadBalancingPolicy = podRoutingOver(extensionPolicy(b))
		return
	}
	switch b.Kind {
	case mesh.LeastRequest, mesh.Passthrough:
		if w := slowStart(b.Warmup); w != nil {
			c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{SlowStartConfig: w}}
		}
	case mesh.RoundRobin:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		if w := slowStart(b.Warmup); w != nil {
			c.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{SlowStartConfig: w}}
		}
	case mesh.Random:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case mesh.RingHash:
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		if b.TableSize > 0 {
			c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(b.TableSize)}}
		}
	case mesh.Maglev:
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		if b.TableSize > 0 {
			c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(b.TableSize)}}
		}
	}
}

// extensionPolicy is the balancer in the form that can stand inside another.
func extensionPolicy(b mesh.Balancer) *clusterv3.LoadBalancingPolicy {
	switch b.Kind {
	case mesh.RoundRobin:
		return balancing("envoy.load_balancing_policies.round_robin", &roundrobinv3.RoundRobin{})
	case mesh.Random:
		return balancing("envoy.load_balancing_policies.random", &randomv3.Random{})
	case mesh.RingHash:
		r := &ringhashv3.RingHash{}
		if b.TableSize > 0 {
			r.MinimumRingSize = wrapperspb.UInt64(b.TableSize)
		}
		return balancing("envoy.load_balancing_policies.ring_hash", r)
	case mesh.Maglev:
		m := &maglevv3.Maglev{}
		if b.TableSize > 0 {
			m.TableSize = wrapperspb.UInt64(b.TableSize)
		}
		return balancing("envoy.load_balancing_policies.maglev", m)
	case mesh.LeastRequest, mesh.Passthrough:
	}
	return balancing("envoy.load_balancing_policies.least_request", &leastrequestv3.LeastRequest{})
}

// ProxyProtocol lets every connection of a cluster begin with a header of HAProxy's PROXY protocol, version 1 or 2.
func ProxyProtocol(c *clusterv3.Cluster, version uint32) {
	if version == 0 {
		return
	}
	wrap := func(inner *corev3.TransportSocket) *corev3.TransportSocket {
		if inner == nil {
			inner = plainSocket
		}
		return &corev3.TransportSocket{Name: "envoy.transport_sockets.upstream_proxy_protocol", ConfigType: &corev3.TransportSocket_TypedConfig{
			TypedConfig: pack(&proxyprotocolv3.ProxyProtocolUpstreamTransport{
				Config:          &corev3.ProxyProtocolConfig{Version: corev3.ProxyProtocolConfig_Version(version - 1)},
				TransportSocket: inner,
			}),
		}}
	}
	for i, m := range c.TransportSocketMatches {
		c.TransportSocketMatches[i] = &clusterv3.Cluster_TransportSocketMatch{Name: m.GetName(), Match: m.GetMatch(), TransportSocket: wrap(m.GetTransportSocket())}
	}
	c.TransportSocket = wrap(c.TransportSocket)
}
