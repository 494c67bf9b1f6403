// Package envoy builds Envoy's own messages: clusters, listeners, filter chains, TLS contexts, access logs and the sidecar's
// bootstrap. It is the one place that knows the names and the spelling of Envoy's extensions (the canonical ones, as upstream
// Envoy registers them) and the few names that a sidecar and its control plane have agreed on.
//
// Its functions are pure. Parts that never differ are shared between the messages that they return, so those are for reading
// and sending; who wants to change one clones it first. The control plane and the agent both link it, so it must stay
// free of client-go and of Kubernetes' and Istio's packages.
package envoy

import (
	"fmt"
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The clusters that every sidecar has besides those of services. Their names are Istio's: they stand in people's dashboards.
const (
	PassthroughCluster        = "PassthroughCluster"
	BlackHoleCluster          = "BlackHoleCluster"
	InboundPassthroughCluster = "InboundPassthroughCluster"

	// XDSCluster and SDSCluster are in the bootstrap: the agent's Unix sockets.
	XDSCluster = "xds-grpc"
	SDSCluster = "sds-grpc"
)

// The names of the secrets that the agent serves over SDS.
const (
	CertificateSecret = "default" // the workload's certificate and key
	RootSecret        = "ROOTCA"  // the roots that peers are checked against
)

// The ports that a sidecar takes for itself.
const (
	AdminPort      = 15000
	OutboundPort   = 15001
	InboundPort    = 15006
	PrometheusPort = 15090
)

// pack packs a message; equal messages give equal bytes. It panics on a string that is not UTF-8, the only thing that cannot be
// marshalled: all text here comes from JSON or YAML, whose decoders let no such string through.
func pack(m proto.Message) *anypb.Any {
	body, err := Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("marshal %s: %v", m.ProtoReflect().Descriptor().FullName(), err))
	}
	return &anypb.Any{TypeUrl: TypeURL(m), Value: body}
}

// Marshal gives the bytes of a message, the same for equal messages within one build of the program.
func Marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// TypeURL is the name under which a message travels inside an Any.
func TypeURL(m proto.Message) string {
	return "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
}

func extension(name string, config proto.Message) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: pack(config)}
}

func duration(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

func isTrue() *wrapperspb.BoolValue { return wrapperspb.Bool(true) }

// Address is a TCP address; port 0 is any.
func Address(ip netip.Addr, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: socketAddress(ip, port)}}
}

func socketAddress(ip netip.Addr, port uint32) *corev3.SocketAddress {
	return &corev3.SocketAddress{Address: ip.String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}
}

func pipe(path string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
}

// ADS is the source of everything that comes over the aggregated stream. Envoy waits for it without an end: with a time-out,
// a cluster or listener that is being replaced while the control plane is away would be swapped for an empty one, which
// drops the traffic that the old one carries.
func ADS() *corev3.ConfigSource { return ads }

var ads = &corev3.ConfigSource{
	ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	InitialFetchTimeout:   duration(0),
	ResourceApiVersion:    corev3.ApiVersion_V3,
}

// sds is the agent's secret service. Waiting without an end keeps a sidecar that has no certificate yet from opening its
// listeners and failing handshakes.
var sds = &corev3.ConfigSource{
	ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
		ApiType:                   corev3.ApiConfigSource_GRPC,
		TransportApiVersion:       corev3.ApiVersion_V3,
		SetNodeOnFirstMessageOnly: true,
		GrpcServices:              []*corev3.GrpcService{grpcService(SDSCluster)},
	}},
	InitialFetchTimeout: duration(0),
	ResourceApiVersion:  corev3.ApiVersion_V3,
}

func grpcService(cluster string) *corev3.GrpcService {
	return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster},
	}}
}

// NoTimeout is the duration that means "for as long as it takes".
func NoTimeout() *durationpb.Duration { return duration(0) }
