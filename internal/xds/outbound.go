package xds

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

type outboundKey struct {
	build
	outbound *mesh.Outbound
}

// outbound is what leads out of the proxies that see the same services. It is immutable, but for the routes, which are
// made when the first proxy of a namespace asks.
type outbound struct {
	key       outboundKey
	clusters  []Resource // sorted by name
	listeners []Resource // sorted by name
	services  map[*mesh.Service]*serviceResources
	ports     []*httpPort // sorted by number
	routed    sync.Map    // hostForm → as serviceResources.hosts, of services with a VirtualService

	mu     sync.Mutex
	routes map[routeKey]routeForm
}

// serviceResources are what one service makes by itself.
type serviceResources struct {
	clusters, listeners []Resource
	hosts               sync.Map // hostForm → its virtual hosts (madeHosts)
}

// reserved are the ports on every address that a listener of the proxy's own has already.
var reserved = []uint32{envoy.OutboundPort, envoy.InboundPort, envoy.PrometheusPort}

// newOutbound makes the part. What services of the part before have made is taken over: they are the same by pointer, and
// before has the same settings.
func newOutbound(key outboundKey, before *outbound) (*outbound, error) {
	o := &outbound{
		key: key, routes: map[routeKey]routeForm{},
		services: make(map[*mesh.Service]*serviceResources, len(key.outbound.Services)),
	}
	named := index(key.outbound)
	for _, svc := range key.outbound.Services {
		var made *serviceResources
		if before != nil {
			made = before.services[svc]
		}
		if made == nil {
			var err error
			if made, err = generateService(key.build, svc); err != nil {
				return nil, fmt.Errorf("service %s: %w", svc.Host, err)
			}
		}
		o.services[svc] = made
		if !isAlias(named, svc) {
			o.clusters = append(o.clusters, made.clusters...)
			o.listeners = append(o.listeners, made.listeners...)
		}
	}
	if before != nil && len(key.outbound.Routing) > 0 {
		before.routed.Range(func(k, v any) bool {
			if form := k.(hostForm); o.services[form.service] != nil && key.outbound.Routing[form.service.Host] == form.by {
				o.routed.Store(k, v)
			}
			return true
		})
	}
	o.ports = key.httpPorts(key.outbound, named)
	if err := o.addFixed(); err != nil {
		return nil, err
	}
	o.clusters, o.listeners = unique(o.clusters), unique(o.listeners)
	return o, nil
}

// unique sorts by name and keeps the first of each: two services with one address and port are a collision that translation
// reports, and Envoy would refuse both.
func unique(rs []Resource) []Resource {
	slices.SortStableFunc(rs, byName)
	return slices.CompactFunc(rs, func(a, b Resource) bool { return a.Name == b.Name })
}

// addFixed adds the clusters and listeners that do not belong to a service.
func (o *outbound) addFixed() error {
	b := o.key.build
	for _, c := range []*clusterv3.Cluster{
		envoy.OriginalDestination(envoy.PassthroughCluster, b.connectTimeout(), envoy.AsReceived),
		envoy.BlackHole(),
	} {
		r, err := b.resource(c.GetName(), c, nil)
		if err != nil {
			return err
		}
		o.clusters = append(o.clusters, r)
	}
	capture, err := b.capture()
	if err != nil {
		return err
	}
	o.listeners = append(o.listeners, capture)
	for _, p := range o.ports {
		l, err := b.wildcard(p)
		if err != nil {
			return err
		}
		o.listeners = append(o.listeners, l)
	}
	return nil
}

// capture is the listener that the interception rules lead to. What no other listener takes goes on to where it was going,
// unless the mesh refuses that; a connection to the listener's own port would come back for ever.
func (b build) capture() (Resource, error) {
	const name = "virtualOutbound"
	l := envoy.OutboundCapture(name, b.families())
	l.AccessLog = b.accessLog().Unmatched()
	l.FilterChains = []*listenerv3.FilterChain{
		envoy.Chain("virtualOutbound-trafficloop", envoy.Match{Port: envoy.OutboundPort}.Proto(),
			envoy.TCPProxy(envoy.BlackHoleCluster, envoy.BlackHoleCluster, b.accessLog().Loggers()), nil),
	}
	l.DefaultFilterChain = b.unknown()
	return b.resource(name, l, nil)
}

// unknown is the filter chain for what is addressed to no service.
func (b build) unknown() *listenerv3.FilterChain {
	cluster := envoy.PassthroughCluster
	if b.settings.BlackHoleUnknown {
		cluster = envoy.BlackHoleCluster
	}
	return envoy.Chain(cluster, nil, envoy.TCPProxy(cluster, cluster, b.accessLog().Loggers()), nil)
}

// wildcard takes HTTP to one port of any address, and lets everything else pass. It waits for the client's first bytes for as
// long as it takes: a connection that an HTTP client has opened in advance must not be taken for something else. A
// server-first protocol on a port number that some service uses for HTTP works when its own service has an address, or is
// declared on another port number.
func (b build) wildcard(p *httpPort) (Resource, error) {
	name := exactListenerName(netip.IPv4Unspecified(), p.number)
	if f := b.families(); !f.IPv4 {
		name = exactListenerName(netip.IPv6Unspecified(), p.number)
	}
	manager := envoy.HTTPManager{
		StatPrefix: "outbound_" + name, RouteName: port(p.number),
		AccessLogs: b.accessLog().Loggers(), PodRouting: p.headless,
	}
	l := envoy.OutboundWildcard(name, b.families(), p.number)
	l.ListenerFilters = []*listenerv3.ListenerFilter{envoy.TLSInspector(nil), envoy.HTTPInspector()}
	l.ListenerFiltersTimeout, l.ContinueOnListenerFiltersTimeout = envoy.NoTimeout(), true
	if p.http() {
		l.FilterChains = []*listenerv3.FilterChain{
			envoy.Chain(name, envoy.Match{Transport: envoy.TransportPlain, ALPN: envoy.PlainHTTP}.Proto(), manager.Filter(), nil),
		}
	}
	for _, c := range p.named { // of TLS that the client itself speaks
		match := envoy.Match{Transport: envoy.TransportTLS, ServerNames: []string{string(c.host)}}
		l.FilterChains = append(l.FilterChains, envoy.Chain(c.cluster, match.Proto(), envoy.ServiceTCP(c.cluster, c.policy, b.accessLog().Loggers()), nil))
	}
	l.DefaultFilterChain = b.unknown()
	if p.rest != nil {
		l.DefaultFilterChain = envoy.Chain(p.rest.cluster, nil, envoy.ServiceTCP(p.rest.cluster, p.rest.policy, b.accessLog().Loggers()), nil)
		if !p.http() && len(p.named) == 0 { // nothing is to be told apart, and the server may speak first
			l.ListenerFilters = nil
		}
	}
	r, err := b.resource(name, l, nil)
	r.Refs = p.refs
	return r, err
}

// generateService makes the clusters of a service and its subsets, and the listeners of its TCP ports.
func generateService(b build, svc *mesh.Service) (*serviceResources, error) {
	made := &serviceResources{}
	for i, p := range svc.Ports {
		c := b.cluster(svc, p, "", p.Policy)
		if c == nil {
			continue
		}
		all := []*clusterv3.Cluster{c}
		for _, s := range svc.Subsets {
			if of := b.cluster(svc, p, s.Name, s.Policies[i]); of != nil {
				all = append(all, of)
			}
		}
		for _, c := range all {
			r, err := b.resource(c.GetName(), c, svc.Refs)
			if err != nil {
				return nil, err
			}
			made.clusters = append(made.clusters, r)
		}
		for _, at := range tcpAddresses(svc, p) {
			if !b.reaches(at.Addr()) {
				continue
			}
			r, err := b.exact(at, c.GetName(), p.Policy, svc.Refs)
			if err != nil {
				return nil, err
			}
			made.listeners = append(made.listeners, r)
		}
	}
	return made, nil
}

// reaches says whether the proxy has addresses of ip's family. Envoy refuses a listener of a family that the kernel lacks.
func (b build) reaches(ip netip.Addr) bool {
	f := b.families()
	return ip.Is4() && f.IPv4 || ip.Is6() && f.IPv6
}

// tcpAddresses are the addresses by which a connection to a TCP port is known to be for it.
func tcpAddresses(svc *mesh.Service, p *mesh.ServicePort) []netip.AddrPort {
	switch {
	case p.Protocol.IsHTTP() || svc.ExternalName != "":
		return nil
	case svc.Headless:
		return p.Instances
	}
	all := make([]netip.AddrPort, len(svc.Addresses))
	for i, ip := range svc.Addresses {
		all[i] = netip.AddrPortFrom(ip, uint16(p.Number))
	}
	return all
}

// exact takes TCP to one address and port. It reads nothing before it connects, so server-first protocols work.
func (b build) exact(at netip.AddrPort, cluster string, policy *mesh.TrafficPolicy, refs []ref.Ref) (Resource, error) {
	name := exactListenerName(at.Addr(), uint32(at.Port()))
	l := envoy.OutboundExact(name, at)
	l.FilterChains = []*listenerv3.FilterChain{envoy.Chain(name, nil, envoy.ServiceTCP(cluster, policy, b.accessLog().Loggers()), nil)}
	return b.resource(name, l, refs)
}

// cluster is that of one service port, or of a subset of its endpoints, or nil when there is nothing that it would be used for.
func (b build) cluster(svc *mesh.Service, p *mesh.ServicePort, subset string, policy *mesh.TrafficPolicy) *clusterv3.Cluster {
	key := mesh.EndpointKey{Host: svc.Host, Port: p.Number}.OfSubset(subset, "")
	name, protocol := ClusterName(key), upstreamProtocol(p.Protocol)
	passthrough := policy != nil && policy.Balancer.Kind == mesh.Passthrough
	var c *clusterv3.Cluster
	always := false // only listeners of addresses that take mutual TLS lead here
	switch {
	case svc.Resolution == mesh.AsCalled:
		c = envoy.OriginalDestination(name, b.connectTimeout(), protocol)
	case svc.Resolution == mesh.AllOfName || svc.Resolution == mesh.OneOfName:
		targets := b.targets(svc, p, subset)
		if len(targets) == 0 {
			return nil // a wildcard, of which nobody knows what to look up
		}
		c = envoy.DNSCluster(name, b.connectTimeout(), protocol, svc.Resolution == mesh.AllOfName, targets...)
	case svc.ExternalName != "" && !p.Protocol.IsHTTP():
		return nil // only the address says where a TCP connection goes, and the name's addresses are not known here
	case svc.ExternalName != "":
		c = envoy.DNSCluster(name, b.connectTimeout(), protocol, true, envoy.DNSTarget{Name: string(svc.ExternalName), Port: p.Number, Families: b.families()})
	case svc.Headless && !p.Protocol.IsHTTP():
		c, always = envoy.OriginalDestination(name, b.connectTimeout(), protocol), true
	case passthrough:
		c = envoy.OriginalDestination(name, b.connectTimeout(), protocol)
	default:
		c = envoy.EDSCluster(name, b.connectTimeout(), protocol)
		if svc.Headless {
			envoy.PodRouting(c)
		}
	}
	b.secure(c, svc, p, subset, policy, svc.ExternalName == "" && svc.Resolution == mesh.Known && !passthrough, always)
	envoy.ApplyPolicy(c, policy, protocol)
	if policy != nil {
		envoy.ProxyProtocol(c, policy.ProxyProtocol)
	}
	return c
}

// targets are the names of a service port, or those of a subset.
func (b build) targets(svc *mesh.Service, p *mesh.ServicePort, subset string) (all []envoy.DNSTarget) {
	at := slices.Index(svc.Ports, p)
	for _, t := range svc.Targets {
		if !inSubset(svc, subset, t.Labels) {
			continue
		}
		all = append(all, envoy.DNSTarget{Name: t.Name, Port: t.Ports[at], Families: b.families(), Locality: t.Locality, Weight: t.Weight})
	}
	return all
}

func inSubset(svc *mesh.Service, subset string, labels *mesh.Labels) bool {
	for _, s := range svc.Subsets {
		if s.Name != subset {
			continue
		}
		for k, v := range s.Labels {
			if labels == nil || labels.Values[k] != v {
				return false
			}
		}
	}
	return true
}

// secure sets the TLS of a cluster: as its policy says, or, without one, the mesh's own to the endpoints that take it, or always.
func (b build) secure(c *clusterv3.Cluster, svc *mesh.Service, p *mesh.ServicePort, subset string, policy *mesh.TrafficPolicy, auto, always bool) {
	key := mesh.EndpointKey{Host: svc.Host, Port: p.Number}.OfSubset(subset, "")
	tls := envoy.UpstreamTLS{SNI: sni(key), Identities: p.Identities, TrustDomain: b.settings.TrustDomain, HTTP2: p.Protocol == mesh.HTTP2}
	if policy != nil && policy.TLS != nil {
		switch t := policy.TLS; t.Mode {
		case mesh.PlainText:
		case mesh.SimpleTLS, mesh.MutualTLS:
			if len(t.Names) == 0 && len(svc.Names) > 0 {
				named := *t
				named.Names = svc.Names
				t = &named
			}
			c.TransportSocket = envoy.Origination(t, p.Protocol == mesh.HTTP2)
		case mesh.MeshTLS:
			if t.SNI != "" {
				tls.SNI = t.SNI
			}
			if len(t.Names) > 0 {
				tls.Identities = t.Names
			}
			c.TransportSocket = tls.Socket()
		}
		return
	}
	switch {
	case always:
		c.TransportSocket = tls.Socket()
	case auto:
		envoy.AutoMTLS(c, tls)
	}
}

func upstreamProtocol(p mesh.Protocol) envoy.UpstreamProtocol {
	switch p {
	case mesh.HTTP:
		return envoy.HTTP1Only
	case mesh.HTTP2:
		return envoy.HTTP2Only
	case mesh.TCP, mesh.TLS:
	}
	return envoy.Opaque
}
