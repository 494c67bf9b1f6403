package envoy

import (
	"net/netip"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// Transport protocols, as Envoy's TLS inspector names them.
const (
	TransportTLS   = "tls"
	TransportPlain = "raw_buffer"
)

// PlainHTTP are the application protocols that Envoy's HTTP inspector finds in a plain-text connection.
var PlainHTTP = []string{"http/1.0", "http/1.1", "h2c"}

// inspectionTimeout is how long the inbound listener waits for the first bytes of a connection before it takes it for plain
// text. A client of a server-first protocol (MySQL, SMTP) that has no sidecar sends none.
const inspectionTimeout = 5 * time.Second

// handshakeTimeout bounds a TLS handshake, so that clients that begin one and stop do not hold connections.
const handshakeTimeout = 15 * time.Second

// InboundListener is the listener for all that comes to the pod. The order of its filter chains means nothing: the one with
// the most specific match is taken, and the connection is closed when there is none.
func InboundListener(name string, families Families, filters []*listenerv3.ListenerFilter) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:                             name,
		TrafficDirection:                 corev3.TrafficDirection_INBOUND,
		ListenerFilters:                  filters,
		ListenerFiltersTimeout:           duration(inspectionTimeout),
		ContinueOnListenerFiltersTimeout: true,
	}
	setAddress(l, families, InboundPort)
	return l
}

// OutboundCapture is the listener on which all that the pod sends arrives. It hands each connection to the listener that has
// the connection's original destination, and keeps those that none has.
func OutboundCapture(name string, families Families) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: name, TrafficDirection: corev3.TrafficDirection_OUTBOUND, UseOriginalDst: isTrue(),
		DrainType: listenerv3.Listener_MODIFY_ONLY,
	}
	setAddress(l, families, OutboundPort)
	return l
}

// OutboundWildcard takes outbound connections to one port of any address, from OutboundCapture.
func OutboundWildcard(name string, families Families, port uint32) *listenerv3.Listener {
	l := outboundListener(name)
	setAddress(l, families, port)
	return l
}

// OutboundExact takes outbound connections to one address and port, from OutboundCapture. It goes before OutboundWildcard.
func OutboundExact(name string, at netip.AddrPort) *listenerv3.Listener {
	l := outboundListener(name)
	l.Address = Address(at.Addr(), uint32(at.Port()))
	return l
}

// outboundListener binds no port. A pod that drains still calls others while it finishes what it began, hence the drain type.
func outboundListener(name string) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: name, TrafficDirection: corev3.TrafficDirection_OUTBOUND, BindToPort: wrapperspb.Bool(false),
		DrainType: listenerv3.Listener_MODIFY_ONLY,
	}
}

// setAddress makes a listener take a port of every address of the families; of IPv4 when there are none.
func setAddress(l *listenerv3.Listener, families Families, port uint32) {
	v4, v6 := Address(netip.IPv4Unspecified(), port), Address(netip.IPv6Unspecified(), port)
	switch {
	case families.IPv4 && families.IPv6:
		l.Address, l.AdditionalAddresses = v4, []*listenerv3.AdditionalAddress{{Address: v6}}
	case families.IPv6:
		l.Address = v6
	default:
		l.Address = v4
	}
}

// Chain is a filter chain with one filter. A nil match takes every connection; a nil socket is plain text.
func Chain(name string, match *listenerv3.FilterChainMatch, filter *listenerv3.Filter, socket *corev3.TransportSocket) *listenerv3.FilterChain {
	chain := &listenerv3.FilterChain{Name: name, FilterChainMatch: match, Filters: []*listenerv3.Filter{filter}, TransportSocket: socket}
	if socket != nil {
		chain.TransportSocketConnectTimeout = duration(handshakeTimeout)
	}
	return chain
}

// IsHTTP reports whether a chain reads HTTP.
func IsHTTP(c *listenerv3.FilterChain) bool {
	for _, f := range c.GetFilters() {
		if f.GetName() == httpManager {
			return true
		}
	}
	return false
}

// Match chooses a filter chain; zero fields match everything. Envoy looks at the port first, then at the transport protocol,
// then at ALPN, and does not go back: a connection to a port that some chain names is never given to a chain without a port.
type Match struct {
	Port      uint32
	Transport string
	ALPN      []string
	// ServerNames are what a TLS client shows; one may begin with "*.".
	ServerNames []string
}

// Proto gives Envoy's message.
func (m Match) Proto() *listenerv3.FilterChainMatch {
	match := &listenerv3.FilterChainMatch{TransportProtocol: m.Transport, ApplicationProtocols: m.ALPN, ServerNames: m.ServerNames}
	if m.Port != 0 {
		match.DestinationPort = wrapperspb.UInt32(m.Port)
	}
	return match
}

// TCPProxy is the filter that sends all bytes of a connection to a cluster.
func TCPProxy(statPrefix, cluster string, logs []*accesslogv3.AccessLog) *listenerv3.Filter {
	return networkFilter("envoy.filters.network.tcp_proxy", &tcpv3.TcpProxy{
		StatPrefix:       StatName(statPrefix),
		ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: cluster},
		AccessLog:        logs,
	})
}

// ServiceTCP is TCPProxy for a service port with a policy, which may be nil.
func ServiceTCP(cluster string, p *mesh.TrafficPolicy, logs []*accesslogv3.AccessLog) *listenerv3.Filter {
	if p == nil {
		return TCPProxy(cluster, cluster, logs)
	}
	t := &tcpv3.TcpProxy{
		StatPrefix: StatName(cluster), ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: cluster}, AccessLog: logs,
		IdleTimeout: optional(p.Connections.TCPIdle), MaxDownstreamConnectionDuration: optional(p.Connections.MaxDuration),
	}
	if h := p.Balancer.Hash; h != nil && h.SourceIP {
		t.HashPolicy = []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
	}
	return networkFilter("envoy.filters.network.tcp_proxy", t)
}

func networkFilter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(config)}}
}

// OriginalDestinationFilter restores the address that the client wanted to connect to.
func OriginalDestinationFilter() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{})
}

// TLSInspector tells TLS from plain text, and what the ClientHello says. It waits for the client's first bytes, but not for
// connections that skip matches (nil for none).
func TLSInspector(skip *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	f := listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{})
	f.FilterDisabled = skip
	return f
}

// HTTPInspector tells HTTP from other plain text.
func HTTPInspector() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{})
}

func listenerFilter(name string, config proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(config)}}
}

// AnyPort matches connections to one of the ports; nil when there are none.
func AnyPort(ports []uint32) *listenerv3.ListenerFilterChainMatchPredicate {
	rules := make([]*listenerv3.ListenerFilterChainMatchPredicate, len(ports))
	for i, p := range ports {
		rules[i] = &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
			DestinationPortRange: &typev3.Int32Range{Start: int32(p), End: int32(p) + 1},
		}}
	}
	switch len(rules) {
	case 0:
		return nil
	case 1: // a set has at least two
		return rules[0]
	}
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
}

// Not matches what p does not.
func Not(p *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilterChainMatchPredicate {
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: p}}
}
