package envoy

import (
	"math"
	"net/netip"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	commondnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// UpstreamProtocol is what a cluster speaks to its endpoints.
type UpstreamProtocol uint8

// The protocols. An opaque cluster carries bytes and has no HTTP options.
const (
	Opaque UpstreamProtocol = iota
	HTTP1Only
	HTTP2Only
	AsReceived // whichever HTTP version the request came with
)

var (
	explicitHTTP1 = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
	}}
	explicitHTTP2 = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
	}}
	asReceived = &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
	}}
	http1Options      = httpOptions(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: explicitHTTP1})
	http2Options      = httpOptions(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: explicitHTTP2})
	asReceivedOptions = httpOptions(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: asReceived})
	workloadOptions   = httpOptions(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions:   asReceived,
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: duration(localIdle)},
	})
)

func httpOptions(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(o)}
}

func (p UpstreamProtocol) options() map[string]*anypb.Any {
	switch p {
	case Opaque:
	case HTTP1Only:
		return http1Options
	case HTTP2Only:
		return http2Options
	case AsReceived:
		return asReceivedOptions
	}
	return nil
}

func newCluster(name string, connectTimeout time.Duration) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: name, AltStatName: StatName(name), ConnectTimeout: duration(connectTimeout), CircuitBreakers: noCircuitBreaker}
}

// EDSCluster is a cluster whose endpoints are sent under its own name.
//
// A draining endpoint gets no new request while a healthy one is left, and still serves when none is: Envoy counts draining as
// unhealthy, and with the lowest panic threshold it falls back to all endpoints only when not one in a hundred is healthy. Its
// default of 50 % would send new requests to pods that are going away in the middle of every rolling restart.
func EDSCluster(name string, connectTimeout time.Duration, protocol UpstreamProtocol) *clusterv3.Cluster {
	c := newCluster(name, connectTimeout)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ADS(), ServiceName: name}
	c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: panicPercent}}
	c.TypedExtensionProtocolOptions = protocol.options()
	return c
}

// panicPercent is a whole number to Envoy; 0 would never fall back.
const panicPercent = 1

// OriginalDestination is a cluster that connects to where the client wanted to connect to.
func OriginalDestination(name string, connectTimeout time.Duration, protocol UpstreamProtocol) *clusterv3.Cluster {
	c := newCluster(name, connectTimeout)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	c.TypedExtensionProtocolOptions = protocol.options()
	return c
}

// The addresses from which a sidecar calls its own workload. The interception rules let them through, so that the call does
// not come back to the sidecar.
var (
	inboundSource4 = netip.MustParseAddr("127.0.0.6")
	inboundSource6 = netip.MustParseAddr("::6")
)

// localIdle is how long an unused connection to the workload is kept. It is shorter than the keep-alive time of the usual
// application servers (from 2 s), because a request that is sent just as the server closes the connection fails, and cannot
// be repeated safely. A new connection over loopback costs some tens of microseconds.
const localIdle = 1500 * time.Millisecond

// LocalWorkload is the cluster that leads to the sidecar's own workload, at the port where the connection arrived. HTTP
// arrives there in the version in which it came.
func LocalWorkload(name string, connectTimeout time.Duration, http bool, families Families) *clusterv3.Cluster {
	c := OriginalDestination(name, connectTimeout, Opaque)
	if http {
		c.TypedExtensionProtocolOptions = workloadOptions
	}
	first, extra := inboundSource4, families.IPv6
	if !families.IPv4 && families.IPv6 {
		first, extra = inboundSource6, false
	}
	bind := &corev3.BindConfig{SourceAddress: socketAddress(first, 0)}
	if extra {
		bind.ExtraSourceAddresses = []*corev3.ExtraSourceAddress{{Address: socketAddress(inboundSource6, 0)}}
	}
	c.UpstreamBindConfig = bind
	return c
}

// BlackHole is the cluster without an endpoint: what is sent there is refused.
func BlackHole() *clusterv3.Cluster {
	c := newCluster(BlackHoleCluster, time.Second)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	return c
}

// DNSCluster is a cluster whose endpoints are the addresses that names have in DNS: all of them, or, for one name, whichever comes first
// when a connection is made. There is at least one target.
func DNSCluster(name string, connectTimeout time.Duration, protocol UpstreamProtocol, all bool, targets ...DNSTarget) *clusterv3.Cluster {
	c := newCluster(name, connectTimeout)
	family := commondnsv3.DnsLookupFamily_V4_ONLY
	switch families := targets[0].Families; {
	case families.IPv4 && families.IPv6:
		family = commondnsv3.DnsLookupFamily_ALL
	case families.IPv6:
		family = commondnsv3.DnsLookupFamily_V6_ONLY
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: "envoy.clusters.dns",
		TypedConfig: pack(&dnsv3.DnsCluster{
			DnsRefreshRate: duration(time.Minute), RespectDnsTtl: true, DnsJitter: duration(100 * time.Millisecond), DnsLookupFamily: family,
			AllAddressesInSingleEndpoint: !all,
		}),
	}}
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: name}
	for _, t := range targets {
		endpoint := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: t.Name, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: t.Port},
			}}},
		}}, LoadBalancingWeight: some(t.Weight)}
		group := &endpointv3.LocalityLbEndpoints{LbEndpoints: []*endpointv3.LbEndpoint{endpoint}}
		if t.Locality != (mesh.Locality{}) {
			group.Locality = &corev3.Locality{Region: t.Locality.Region, Zone: t.Locality.Zone, SubZone: t.Locality.Subzone}
		}
		c.LoadAssignment.Endpoints = append(c.LoadAssignment.Endpoints, group)
	}
	c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	c.TypedExtensionProtocolOptions = protocol.options()
	return c
}

// DNSTarget is a name and port, and the address families that can be reached.
type DNSTarget struct {
	Name     string
	Port     uint32
	Families Families
	Locality mesh.Locality
	Weight   uint32 // 0 for not said
}

// Families are the IP families that a proxy has addresses of.
type Families struct{ IPv4, IPv6 bool }

// noCircuitBreaker lifts Envoy's default limits (1,024 connections, requests and waiting requests, 3 retries), which would
// refuse requests that the service itself can take.
var noCircuitBreaker = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
	MaxConnections: most, MaxPendingRequests: most, MaxRequests: most, MaxRetries: most,
}}}

var most = wrapperspb.UInt32(math.MaxUint32)

// AutoMTLS makes a cluster use mutual TLS to the endpoints that take it (TLSEndpoint), and plain text to all others.
func AutoMTLS(c *clusterv3.Cluster, tls UpstreamTLS) {
	c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{
		{Name: "tlsMode-istio", Match: tlsEndpointFields, TransportSocket: tls.Socket()},
		plainMatch,
	}
}

// TLSEndpoint is the metadata of an endpoint that takes the mesh's mutual TLS.
func TLSEndpoint() *corev3.Metadata { return tlsEndpoint }

// tlsEndpointFields are the metadata by which a cluster chooses the transport socket. Their names are Istio's.
var (
	tlsEndpointFields = &structpb.Struct{Fields: map[string]*structpb.Value{"tlsMode": structpb.NewStringValue("istio")}}
	tlsEndpoint       = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.transport_socket_match": tlsEndpointFields}}
	plainMatch        = &clusterv3.Cluster_TransportSocketMatch{
		Name: "tlsMode-disabled", Match: &structpb.Struct{}, TransportSocket: plainSocket,
	}
)
