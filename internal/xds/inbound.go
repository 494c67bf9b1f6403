package xds

import (
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
	"github.com/selvage-mesh/selvage/internal/xds/filter"
)

// inbound is what leads to a proxy's own workload.
type inbound struct{ clusters, listeners []Resource }

func generateInbound(b build, in *mesh.Inbound) (inbound, error) {
	var made inbound
	add := func(name string, http bool, refs []ref.Ref) error {
		r, err := b.resource(name, envoy.LocalWorkload(name, b.connectTimeout(), http, b.families()), refs)
		made.clusters = append(made.clusters, r)
		return err
	}
	if err := add(envoy.InboundPassthroughCluster, false, nil); err != nil {
		return inbound{}, err
	}
	ports := servedPorts(in)
	for _, p := range ports {
		if err := add(inboundName(p.Number), p.Protocol.IsHTTP(), p.Refs); err != nil {
			return inbound{}, err
		}
	}
	slices.SortFunc(made.clusters, byName)
	l, err := b.virtualInbound(in, ports)
	if err != nil {
		return inbound{}, err
	}
	made.listeners = []Resource{l}
	return made, nil
}

// servedPorts leaves out what the listener cannot have twice: its own port, which has a chain of its own.
func servedPorts(in *mesh.Inbound) []mesh.InboundPort {
	ports := slices.DeleteFunc(slices.Clone(in.Ports), func(p mesh.InboundPort) bool { return p.Number == envoy.InboundPort })
	return slices.CompactFunc(ports, func(a, b mesh.InboundPort) bool { return a.Number == b.Number })
}

// virtualInbound is the listener that the interception rules lead to.
func (b build) virtualInbound(in *mesh.Inbound, ports []mesh.InboundPort) (Resource, error) {
	const name = "virtualInbound"
	filters := []*listenerv3.ListenerFilter{envoy.OriginalDestinationFilter()}
	if inspect, skip := plainPorts(in, ports); inspect {
		filters = append(filters, envoy.TLSInspector(skip))
	}
	l := envoy.InboundListener(name, b.families(), filters)
	l.AccessLog = b.accessLog().Unmatched()
	// A connection to the listener's own port would come back for ever.
	l.FilterChains = []*listenerv3.FilterChain{
		envoy.Chain("virtualInbound-blackhole", envoy.Match{Port: envoy.InboundPort}.Proto(),
			envoy.TCPProxy(envoy.BlackHoleCluster, envoy.BlackHoleCluster, b.accessLog().Loggers()), nil),
	}
	refs, access := slices.Clone(in.Refs), filter.For(in.Access)
	for _, p := range ports {
		l.FilterChains = append(l.FilterChains, b.chains(served{name: "inbound_" + port(p.Number), cluster: inboundName(p.Number), port: p, access: access})...)
		refs = append(refs, p.Refs...)
	}
	// Ports that no service leads to: whatever speaks there, it is carried as bytes.
	rest := mesh.InboundPort{Protocol: mesh.TCP, MTLS: in.MTLS}
	l.FilterChains = append(l.FilterChains, b.chains(served{name: "virtualInbound-catchall", cluster: envoy.InboundPassthroughCluster, port: rest, access: access})...)
	return b.resource(name, l, refs)
}

// plainPorts says whether any connection has to be asked whether it is TLS, and which need not be: those to ports that only
// take plain text. There, protocols in which the server speaks first work from the first byte. On a PERMISSIVE port they
// work at once for clients with a sidecar, whose TLS begins with the client, and after the inspection's time-out for
// clients without.
func plainPorts(in *mesh.Inbound, ports []mesh.InboundPort) (inspect bool, skip *listenerv3.ListenerFilterChainMatchPredicate) {
	var plain, asked []uint32
	for _, p := range ports {
		if p.MTLS == mesh.Disabled {
			plain = append(plain, p.Number)
		} else {
			asked = append(asked, p.Number)
		}
	}
	if in.MTLS != mesh.Disabled {
		return true, envoy.AnyPort(plain)
	}
	if len(asked) == 0 {
		return false, nil
	}
	return true, envoy.Not(envoy.AnyPort(asked))
}

// served is one port of the workload, or, with number 0, all that are not listed.
type served struct {
	name    string // of the filter chains
	cluster string
	port    mesh.InboundPort
	access  filter.Access
}

// chains gives the ways into one port. A connection that matches none is closed, which is how STRICT refuses plain text.
func (b build) chains(s served) []*listenerv3.FilterChain {
	n := s.port.Number
	mutual := func(match envoy.Match) *listenerv3.FilterChain {
		var alpn []string
		if s.port.Protocol.IsHTTP() {
			alpn = []string{"h2", "http/1.1"}
		}
		return s.guarded(envoy.Chain(s.name+"_mtls", match.Proto(), b.serve(s, true), envoy.DownstreamTLS(b.trustDomains(), alpn...)))
	}
	switch s.port.MTLS {
	case mesh.Strict:
		return []*listenerv3.FilterChain{mutual(envoy.Match{Port: n, Transport: envoy.TransportTLS})}
	case mesh.Disabled:
		return []*listenerv3.FilterChain{s.guarded(envoy.Chain(s.name+"_plain", envoy.Match{Port: n}.Proto(), b.serve(s, false), nil))}
	case mesh.Permissive:
	}
	return []*listenerv3.FilterChain{
		mutual(envoy.Match{Port: n, Transport: envoy.TransportTLS, ALPN: envoy.MeshALPN}),
		s.guarded(envoy.Chain(s.name+"_plain", envoy.Match{Port: n, Transport: envoy.TransportPlain}.Proto(), b.serve(s, false), nil)),
		// TLS of the application's own
		s.guarded(envoy.Chain(s.name+"_tls", envoy.Match{Port: n, Transport: envoy.TransportTLS}.Proto(),
			envoy.TCPProxy(s.cluster, s.cluster, b.accessLog().Loggers()), nil)),
	}
}

// guarded puts the policies for bytes before what carries bytes. Where requests are told apart, serve has put them.
func (s served) guarded(c *listenerv3.FilterChain) *listenerv3.FilterChain {
	if !envoy.IsHTTP(c) {
		c.Filters = slices.Concat(s.access.Network, c.Filters)
	}
	return c
}

// trustDomains are those of the peers whose certificates count.
func (b build) trustDomains() []string {
	return append([]string{b.settings.TrustDomain}, b.settings.TrustDomainAliases...)
}

// serve is the filter that passes a connection's content to the workload.
func (b build) serve(s served, verified bool) *listenerv3.Filter {
	if !s.port.Protocol.IsHTTP() {
		return envoy.TCPProxy(s.cluster, s.cluster, b.accessLog().Loggers())
	}
	return envoy.HTTPManager{
		StatPrefix: "inbound_0.0.0.0_" + port(s.port.Number), AccessLogs: b.accessLog().Loggers(), Inbound: true, VerifiedPeer: verified, Filters: s.access.HTTP,
		Routes: envoy.LocalRoutes(s.cluster, "inbound|http|"+port(s.port.Number), s.cluster),
	}.Filter()
}
