// Package mesh is the model between Istio's API and Envoy's: services, workloads, endpoints and policies, resolved, each
// part with the objects it came from. It knows neither Kubernetes nor Istio nor Envoy, so a generator cannot look behind it.
//
// Everything in a Model is immutable once published and shared by pointer between models: a part whose inputs did not
// change is the same pointer in the next model. Pointer equality therefore means "nothing to do".
package mesh

import (
	"net/netip"
	"unique"

	"github.com/selvage-mesh/selvage/internal/ref"
)

// Model is one immutable state of the mesh.
type Model struct {
	Settings *Settings
	// Outbound is what a proxy may call whose namespace is not in Outbounds.
	Outbound *Outbound
	// Outbounds are for the namespaces that see the mesh otherwise than the others: by exportTo, or by rules of their own.
	Outbounds map[string]*Outbound
	// Endpoints has one entry for each service port in Outbound, also when it has no endpoint.
	Endpoints map[EndpointKey]*EndpointSet
	// Workloads are the pods, by namespace and name.
	Workloads map[WorkloadKey]*Workload
	// Memo is what the translator keeps in order to make the next model from this one. Nobody else reads it, and it is nil
	// in a model that was written by hand.
	Memo any
}

// Settings are the mesh-wide values, of the mesh configuration and the root namespace.
type Settings struct {
	TrustDomain string // "cluster.local"
	// TrustDomainAliases are trust domains whose identities count as those of TrustDomain.
	TrustDomainAliases []string
	RootNamespace      string // "istio-system"
	ClusterDomain      string // "cluster.local": the suffix of service hosts
	// AccessLogFile is the path of the proxies' access log, "" for none.
	AccessLogFile string
	// AccessLogFormat is Envoy's format string (text) or a JSON object of such strings; "" for the default text format.
	AccessLogFormat string
	AccessLogJSON   bool
	// BlackHoleUnknown refuses outbound calls to addresses that no service has (outboundTrafficPolicy REGISTRY_ONLY).
	BlackHoleUnknown bool
	// ConnectTimeoutMillis is how long an upstream connection may take, in milliseconds.
	ConnectTimeoutMillis int64
	Refs                 []ref.Ref
}

// Host is a fully qualified service name, such as web.shop.svc.cluster.local, in lower case, without a trailing dot.
type Host string

// Protocol is what a service port says it speaks.
type Protocol uint8

// The protocols, as the generators tell them apart. A port that does not say is TCP.
const (
	TCP   Protocol = iota // opaque bytes; also TLS that the application itself terminates
	HTTP                  // HTTP/1.1
	HTTP2                 // HTTP/2 without TLS: also gRPC
	TLS                   // of the application's own, told apart by the name that the client shows
)

// IsHTTP reports whether requests can be told apart and routed.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 }

// String is Istio's word for the protocol.
func (p Protocol) String() string { return [...]string{"TCP", "HTTP", "HTTP2", "TLS"}[p] }

// Outbound is everything that a proxy may call.
type Outbound struct {
	Services []*Service // sorted by host
	// Routing is the VirtualService of each service that has one.
	Routing map[Host]*VirtualService
	// Routed are the hosts beyond services that VirtualServices route, sorted.
	Routed []RoutedHost
	// Private names the namespace whose rule makes the subsets of a host, where that is the clients' own; nil for none.
	Private map[Host]string
	// ByLocality is, for each service port and subset whose endpoints depend on where the client is, how.
	ByLocality map[EndpointKey]*LocalityBalancing
}

// Service is one host with its ports.
type Service struct {
	Host      Host
	Namespace string
	Name      string
	// Addresses are the service's virtual addresses; empty for a headless service.
	Addresses []netip.Addr
	// Headless says that clients call the endpoints' own addresses.
	Headless bool
	// ExternalName is the DNS name that an ExternalName service stands for, "" for all others.
	ExternalName Host
	Ports        []*ServicePort // sorted by number
	Subsets      []*Subset      // sorted by name
	// Resolution is how the endpoints are found.
	Resolution Resolution
	// Targets are what AllOfName and OneOfName look up.
	Targets []Target
	// Names are those that a server may show to a client whose policy says TLS and no names; none for any.
	Names []string
	Refs  []ref.Ref
}

// Resolution is how the endpoints of a service are found.
type Resolution uint8

// The resolutions.
const (
	Known     Resolution = iota // the model has them
	AsCalled                    // the address that the client called
	AllOfName                   // all addresses that the targets' names have
	OneOfName                   // the first address that the target's name has, for each new connection
)

// Target is a name, or an address, to which the connections of a service go.
type Target struct {
	Name     string
	Ports    []uint32 // one for each port of the service, in the same order
	Locality Locality
	Weight   uint32 // 0 for not said
	Labels   *Labels
}

// ServicePort is one port of a service.
type ServicePort struct {
	Number   uint32
	Name     string
	Protocol Protocol
	// Identities are the SPIFFE identities that its endpoints may show, sorted; empty while it has none that are known.
	Identities []string
	// Instances are where those of its endpoints listen that take mutual TLS, ready or not, sorted; only for a TCP port of a
	// headless service, whose clients call the endpoints themselves: nothing but the address says which service they call.
	Instances []netip.AddrPort
	// Policy is how clients call the port; nil for the mesh's defaults.
	Policy *TrafficPolicy
}

// EndpointKey names the endpoints of one service port, or of a subset of them. It is small, because a model has many and each change
// copies them.
type EndpointKey struct {
	Host Host
	Port uint32                // the service port's number
	part unique.Handle[subset] // zero for all
}

type subset struct{ name, of string }

// OfSubset names the endpoints of a subset, "" for all. Of is the namespace whose rule says what the subset is, "" for the rule that
// holds for everybody. It is no part of the name by which proxies know the endpoints: they see one rule of a host.
func (k EndpointKey) OfSubset(name, of string) EndpointKey {
	if k.part = (unique.Handle[subset]{}); name != "" {
		k.part = unique.Make(subset{name, of})
	}
	return k
}

// Subset is the name of the subset, "" for all endpoints.
func (k EndpointKey) Subset() string {
	if k.part == (unique.Handle[subset]{}) {
		return ""
	}
	return k.part.Value().name
}

// EndpointSet is the endpoints of one service port, sorted by address and port.
type EndpointSet struct {
	Key       EndpointKey
	Endpoints []Endpoint
	Refs      []ref.Ref
}

// Endpoint is one address that answers for a service port.
type Endpoint struct {
	Address  netip.Addr
	Port     uint32
	Health   Health
	MTLS     bool   // a sidecar stands before it and takes mutual TLS
	Identity string // SPIFFE identity, "" when not known
	Weight   uint32 // among the endpoints of its locality, 0 for not said
	Locality Locality
	Workload WorkloadKey // zero when no pod stands behind the address
	Labels   *Labels     // of the workload, nil when not known; the same pointer while they are the same
}

// Labels are those of a workload.
type Labels struct{ Values map[string]string }

// Health says whether new connections should go to an endpoint.
type Health uint8

// The states of an endpoint; one that is not ready and not draining is not in the model at all.
const (
	Healthy  Health = iota
	Draining        // terminating but still serving: used only when nothing healthy is left
)

// Locality is where an endpoint or a proxy runs (topology.kubernetes.io/region, /zone, topology.istio.io/subzone).
type Locality struct{ Region, Zone, Subzone string }

// WorkloadKey names a pod.
type WorkloadKey struct{ Namespace, Name string }

// Workload is one pod as its own proxy sees it.
type Workload struct {
	Key            WorkloadKey
	ServiceAccount string
	Addresses      []netip.Addr
	Locality       Locality
	// Inbound is what the proxy serves. Replicas with the same services and policies share one pointer.
	Inbound *Inbound
}

// Inbound is what a proxy serves for its workload.
type Inbound struct {
	// Namespace of the workload.
	Namespace string
	Ports     []InboundPort // sorted by number
	// MTLS is for ports that are not listed in Ports.
	MTLS Mode
	// Access decides who may call the workload; nil when nothing does.
	Access *Access
	Refs   []ref.Ref // the policies that decided
}

// InboundPort is one port that the workload listens on.
type InboundPort struct {
	Number   uint32 // the container's port, where the connection arrives
	Protocol Protocol
	MTLS     Mode
	Services []ServiceTarget // the service ports that lead here, sorted; empty for a port that only a policy names
	Refs     []ref.Ref
}

// ServiceTarget is a service port that leads to an inbound port.
type ServiceTarget struct {
	Host Host
	Port uint32
}

// Mode is how a port takes connections (security.istio.io PeerAuthentication, mtls.mode).
type Mode uint8

// The modes. Unset is resolved to Permissive during translation and never stands in a Model.
const (
	Permissive Mode = iota // mutual TLS and plain text
	Strict                 // mutual TLS only
	Disabled               // plain text only
)

// String is Istio's word for the mode.
func (m Mode) String() string { return [...]string{"PERMISSIVE", "STRICT", "DISABLE"}[m] }
