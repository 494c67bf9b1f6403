package translate

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingapi "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// trafficPolicy resolves what a DestinationRule says of one port: the settings of the port go before those of the subset, and these
// before those of the host, each kind of setting as a whole (istio.io, DestinationRule, portLevelSettings: what a port's settings
// leave out is not inherited from the policy of the host).
func trafficPolicy(host, subset *networkingapi.TrafficPolicy, port uint32) *mesh.TrafficPolicy {
	out := &mesh.TrafficPolicy{}
	s := overlay(overlay(settings{}, host, port), subset, port)
	out.Connections = connections(s.pool)
	out.Outlier = outlier(s.outlier)
	out.TLS = clientTLS(s.tls)
	out.Balancer = balancer(s.balancer, out.Outlier != nil)
	if b := s.budget; b != nil {
		out.RetryBudget = &mesh.RetryBudget{Percent: pointer(b.GetPercent()), Minimum: b.GetMinRetryConcurrency()}
	}
	if s.proxy != nil {
		out.ProxyProtocol = 1 + uint32(s.proxy.GetVersion())
	}
	if reflect.DeepEqual(out, &mesh.TrafficPolicy{}) {
		return nil
	}
	return out
}

// settings are the parts of a policy that hold for one port.
type settings struct {
	balancer *networkingapi.LoadBalancerSettings
	pool     *networkingapi.ConnectionPoolSettings
	outlier  *networkingapi.OutlierDetection
	tls      *networkingapi.ClientTLSSettings
	budget   *networkingapi.TrafficPolicy_RetryBudget
	proxy    *networkingapi.TrafficPolicy_ProxyProtocol
}

// overlay puts what a narrower policy says over a wider one's settings.
func overlay(wide settings, p *networkingapi.TrafficPolicy, port uint32) settings {
	if p == nil {
		return wide
	}
	s := settings{
		cmp.Or(p.GetLoadBalancer(), wide.balancer), cmp.Or(p.GetConnectionPool(), wide.pool), cmp.Or(p.GetOutlierDetection(), wide.outlier),
		cmp.Or(p.GetTls(), wide.tls), cmp.Or(p.GetRetryBudget(), wide.budget), cmp.Or(p.GetProxyProtocol(), wide.proxy),
	}
	for _, of := range p.GetPortLevelSettings() {
		if of.GetPort().GetNumber() == port {
			s.balancer, s.pool, s.outlier, s.tls = of.GetLoadBalancer(), of.GetConnectionPool(), of.GetOutlierDetection(), of.GetTls()
			break
		}
	}
	return s
}

// The kinds of a simple balancer. LEAST_CONN is the former name of LEAST_REQUEST.
var simpleBalancers = map[networkingapi.LoadBalancerSettings_SimpleLB]mesh.BalancerKind{
	networkingapi.LoadBalancerSettings_ROUND_ROBIN: mesh.RoundRobin,
	networkingapi.LoadBalancerSettings_RANDOM:      mesh.Random,
	networkingapi.LoadBalancerSettings_PASSTHROUGH: mesh.Passthrough,
}

// balancer reads the load balancer. Priorities by locality are Istio's default, and need outlier detection to know what has failed.
func balancer(lb *networkingapi.LoadBalancerSettings, outliers bool) (b mesh.Balancer) {
	b.Kind = simpleBalancers[lb.GetSimple()]
	if h := lb.GetConsistentHash(); h != nil {
		b.Kind, b.TableSize, b.Hash = mesh.RingHash, cmp.Or(h.GetRingHash().GetMinimumRingSize(), h.GetMinimumRingSize()), hash(h) //nolint:staticcheck // people still write the former form
		if m := h.GetMaglev(); m != nil {
			b.Kind, b.TableSize = mesh.Maglev, m.GetTableSize()
		}
	}
	if w := lb.GetWarmup(); w != nil {
		b.Warmup = &mesh.Warmup{Duration: w.GetDuration().AsDuration(), MinimumPercent: w.GetMinimumPercent().GetValue(), Aggression: w.GetAggression().GetValue()}
	} else if d := lb.GetWarmupDurationSecs(); d != nil {
		b.Warmup = &mesh.Warmup{Duration: d.AsDuration()}
	}
	l := lb.GetLocalityLbSetting()
	if l.GetEnabled() != nil && !l.GetEnabled().GetValue() || !outliers && len(l.GetDistribute()) == 0 {
		return b
	}
	b.Locality = &mesh.LocalityBalancing{}
	for _, d := range l.GetDistribute() {
		from := mesh.Distribution{From: d.GetFrom()}
		for pattern, weight := range d.GetTo() {
			from.To = append(from.To, mesh.LocalityWeight{Pattern: pattern, Weight: weight})
		}
		slices.SortFunc(from.To, func(x, y mesh.LocalityWeight) int {
			return cmp.Or(cmp.Compare(specificity(y.Pattern), specificity(x.Pattern)), strings.Compare(x.Pattern, y.Pattern))
		})
		b.Locality.Distribute = append(b.Locality.Distribute, from)
	}
	for _, f := range l.GetFailover() {
		b.Locality.Failover = append(b.Locality.Failover, mesh.Failover{From: f.GetFrom(), To: f.GetTo()})
	}
	return b
}

// specificity orders patterns of localities: each part that is given counts more than *.
func specificity(pattern string) int {
	n := 0
	for part := range strings.SplitSeq(pattern, "/") {
		if n++; part != "*" && part != "" {
			n += 2
		}
	}
	return n
}

func hash(h *networkingapi.LoadBalancerSettings_ConsistentHashLB) *mesh.Hash {
	out := &mesh.Hash{Header: h.GetHttpHeaderName(), QueryParameter: h.GetHttpQueryParameterName(), SourceIP: h.GetUseSourceIp()}
	if c := h.GetHttpCookie(); c != nil {
		out.Cookie = &mesh.HashCookie{Name: c.GetName(), Path: c.GetPath(), TTL: maybe(c.GetTtl())}
		for _, a := range c.GetAttributes() {
			out.Cookie.Attributes = append(out.Cookie.Attributes, mesh.Pair{Name: a.GetName(), Value: a.GetValue()})
		}
	}
	return out
}

func connections(p *networkingapi.ConnectionPoolSettings) (c mesh.Connections) {
	tcp, http := p.GetTcp(), p.GetHttp()
	c = mesh.Connections{
		Max: uint32(tcp.GetMaxConnections()), MaxPending: uint32(http.GetHttp1MaxPendingRequests()), MaxRequests: uint32(http.GetHttp2MaxRequests()),
		MaxRequestsPerConn: uint32(http.GetMaxRequestsPerConnection()), MaxRetries: uint32(http.GetMaxRetries()),
		MaxConcurrentStreams: uint32(http.GetMaxConcurrentStreams()),
		ConnectTimeout:       tcp.GetConnectTimeout().AsDuration(), MaxDuration: maybe(tcp.GetMaxConnectionDuration()),
		TCPIdle: maybe(tcp.GetIdleTimeout()), HTTPIdle: maybe(http.GetIdleTimeout()),
		UpgradeToHTTP2: http.GetH2UpgradePolicy() == networkingapi.ConnectionPoolSettings_HTTPSettings_UPGRADE,
		AsReceived:     http.GetUseClientProtocol(),
	}
	if k := tcp.GetTcpKeepalive(); k != nil {
		c.Keepalive = &mesh.Keepalive{Probes: k.GetProbes(), Time: k.GetTime().AsDuration(), Interval: k.GetInterval().AsDuration()}
	}
	if k := http.GetHttp2KeepAlive(); k != nil {
		c.Ping = &mesh.Ping{Interval: k.GetInterval().AsDuration(), Timeout: k.GetTimeout().AsDuration()}
	}
	return c
}

func outlier(o *networkingapi.OutlierDetection) *mesh.Outlier {
	if o == nil {
		return nil
	}
	return &mesh.Outlier{
		Consecutive5xx: number(o.GetConsecutive_5XxErrors()), ConsecutiveGateway: number(o.GetConsecutiveGatewayErrors()),
		SplitLocal: o.GetSplitExternalLocalOriginErrors(), ConsecutiveLocal: number(o.GetConsecutiveLocalOriginFailures()),
		Interval: maybe(o.GetInterval()), BaseEjection: maybe(o.GetBaseEjectionTime()),
		MaxEjectionPercent: uint32(max(0, o.GetMaxEjectionPercent())), MinHealthPercent: uint32(max(0, o.GetMinHealthPercent())),
	}
}

var tlsModes = map[networkingapi.ClientTLSSettings_TLSmode]mesh.TLSMode{
	networkingapi.ClientTLSSettings_DISABLE: mesh.PlainText, networkingapi.ClientTLSSettings_SIMPLE: mesh.SimpleTLS,
	networkingapi.ClientTLSSettings_MUTUAL: mesh.MutualTLS, networkingapi.ClientTLSSettings_ISTIO_MUTUAL: mesh.MeshTLS,
}

func clientTLS(t *networkingapi.ClientTLSSettings) *mesh.ClientTLS {
	if t == nil {
		return nil
	}
	out := &mesh.ClientTLS{Mode: tlsModes[t.GetMode()], SNI: t.GetSni(), Names: t.GetSubjectAltNames()}
	if out.Mode == mesh.SimpleTLS || out.Mode == mesh.MutualTLS {
		out.Roots, out.CRL, out.SkipVerify = t.GetCaCertificates(), t.GetCaCrl(), t.GetInsecureSkipVerify().GetValue()
	}
	if out.Mode == mesh.MutualTLS && t.GetClientCertificate() == "" { // it is in a secret, which is refused: a server that asks for it says no
		out.Mode = mesh.SimpleTLS
	}
	if out.Mode == mesh.MutualTLS {
		out.Certificate, out.Key = t.GetClientCertificate(), t.GetPrivateKey()
	}
	return out
}

func maybe(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	return new(d.AsDuration())
}

func number(v *wrapperspb.UInt32Value) *uint32 {
	if v == nil {
		return nil
	}
	return new(v.GetValue())
}

func pointer(v *wrapperspb.DoubleValue) *float64 {
	if v == nil {
		return nil
	}
	return new(v.GetValue())
}
