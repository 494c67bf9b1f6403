// Package index keeps the parts of Kubernetes objects that the mesh is made of. It projects each object on what is used of
// it and compares that with what it has, so that a status write, a heartbeat or an annotation is not a change, and it gives
// the state of all of them as one immutable Snapshot. It is pure: who watches and where is package kube's.
package index

import (
	"net/netip"
	"slices"
	"sort"

	securityapi "istio.io/api/security/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// Snapshot is one immutable state of the world. What did not change is the same pointer in the next snapshot: a table, a
// namespace, an object. Pointer equality therefore means "nothing to do".
type Snapshot struct {
	Config     Config
	Mesh       *MeshConfig
	Nodes      *Table[*Node]
	Namespaces *Table[*Namespace]
	Keys       *Keys // of the issuers of tokens
	// Problems are those of reading: a mesh configuration that cannot be used, a kind that cannot be read.
	Problems []diag.Problem
}

// Namespace is everything of one namespace.
type Namespace struct {
	Name                string
	Labels              map[string]string // nil also while only objects of the namespace are known, not yet the namespace
	Services            *Table[*Service]
	Slices              *Table[*EndpointSlice] // by service, then name; see SlicesOf
	Pods                *Table[*Pod]
	PeerAuthentications *Table[*PeerAuthentication]

	resources tables
}

func (n *Namespace) key() string { return n.Name }

// SlicesOf gives the endpoint slices of one service, in the order of their names.
func (n *Namespace) SlicesOf(service string) []*EndpointSlice {
	all := n.Slices.All()
	from := sort.Search(len(all), func(i int) bool { return all[i].Service >= service })
	to := from
	for to < len(all) && all[to].Service == service {
		to++
	}
	return all[from:to]
}

// Service is what is used of a Service. UDP and SCTP ports are left out: a proxy does not capture them.
type Service struct {
	Namespace, Name string
	Created         int64 // seconds since the epoch
	Addresses       []netip.Addr
	Headless        bool              // clusterIP None
	ExternalName    string            // "" unless the type is ExternalName
	Selector        map[string]string // empty for a service whose endpoints somebody else writes
	Ports           []ServicePort     // in the order of the object
	ExportTo        string            // annotation networking.istio.io/exportTo
}

// ServicePort is one TCP port of a Service.
type ServicePort struct {
	Number      uint32
	Name        string
	AppProtocol string
	Target      TargetPort
}

// TargetPort is the port of the pods behind a service port: a number, or the name of a container's port.
type TargetPort struct {
	Number uint32 // 0 when it is a name
	Name   string
}

func (s *Service) key() string { return s.Name }

// Ref names the object.
func (s *Service) Ref() ref.Ref {
	return ref.Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}
}

// EndpointSlice is what is used of an EndpointSlice that belongs to a service.
type EndpointSlice struct {
	Namespace, Name string
	Service         string
	Ports           []EndpointPort // TCP ports, sorted by name and number
	Endpoints       []Endpoint     // one for each address, sorted

	id string
}

// EndpointPort is one port of a slice: the name is that of the service port.
type EndpointPort struct {
	Name   string
	Number uint32
}

// Endpoint is one address of a slice.
type Endpoint struct {
	Address netip.Addr
	State   State
	Pod     string // name of the pod of the same namespace that has the address, "" for none
	PodUID  string // "" when the slice does not say
	Node    string // "" when the slice does not say
	Zone    string // "" when the slice does not say
}

// State says what an endpoint is good for.
type State uint8

// The states, from the conditions ready, serving and terminating.
const (
	NotReady State = iota
	Ready
	Draining // terminating, but still serving
)

func (s *EndpointSlice) key() string { return s.id }

// sliceKey orders slices by service: names of objects have no NUL.
func sliceKey(service, name string) string { return service + "\x00" + name }

// Ref names the object, without its generation: most of its generations change only the readiness of an endpoint.
func (s *EndpointSlice) Ref() ref.Ref {
	return ref.Ref{Group: "discovery.k8s.io", Kind: "EndpointSlice", Namespace: s.Namespace, Name: s.Name}
}

// Pod is what is used of a Pod that has not ended.
type Pod struct {
	Namespace, Name string
	UID             string
	ServiceAccount  string // never ""
	Node            string // "" while it is not scheduled
	Addresses       []netip.Addr
	Ready           bool // by its own word: condition Ready
	Labels          map[string]string
	Ports           []ContainerPort // the named ones, in the order of the containers
}

// ContainerPort is a TCP port that a container has given a name.
type ContainerPort struct {
	Name   string
	Number uint32
}

func (p *Pod) key() string { return p.Name }

// Ref names the object.
func (p *Pod) Ref() ref.Ref { return ref.Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Name} }

// Port gives the number of the container port with this name.
func (p *Pod) Port(name string) (number uint32, ok bool) {
	for _, port := range p.Ports {
		if port.Name == name {
			return port.Number, true
		}
	}
	return 0, false
}

// Node is where a Node stands.
type Node struct {
	Name                  string
	Region, Zone, Subzone string
}

func (n *Node) key() string { return n.Name }

// Ref names the object.
func (n *Node) Ref() ref.Ref { return ref.Ref{Kind: "Node", Name: n.Name} }

// PeerAuthentication is what is used of a security.istio.io PeerAuthentication of our revision, which is all of it.
type PeerAuthentication struct {
	Namespace, Name string
	Generation      int64
	Created         int64             // seconds since the epoch
	Selector        map[string]string // empty for the namespace's or the mesh's
	Mode            securityapi.PeerAuthentication_MutualTLS_Mode
	Ports           []PortMode // sorted by number
}

// PortMode is the mode of one port of a workload.
type PortMode struct {
	Number uint32
	Mode   securityapi.PeerAuthentication_MutualTLS_Mode
}

func (p *PeerAuthentication) key() string { return p.Name }

// Ref names the object.
func (p *PeerAuthentication) Ref() ref.Ref {
	return ref.Ref{Group: "security.istio.io", Kind: "PeerAuthentication", Namespace: p.Namespace, Name: p.Name, Generation: p.Generation}
}

// ChangedSince lists the objects that came, went or changed between two snapshots, sorted. Everything is new since nil.
func (s *Snapshot) ChangedSince(before *Snapshot) (changed []ref.Ref) {
	if before == s {
		return nil
	}
	if before == nil {
		before = &Snapshot{}
	}
	if s.Mesh != before.Mesh && s.Mesh != nil {
		if !s.Mesh.Ref.IsZero() {
			changed = append(changed, s.Mesh.Ref)
		}
	}
	changed = appendChanges(changed, before.Nodes, s.Nodes)
	for was, is := range Changes(before.Namespaces, s.Namespaces) {
		was, is = orEmpty(was), orEmpty(is)
		changed = appendChanges(changed, was.Services, is.Services)
		changed = appendChanges(changed, was.Slices, is.Slices)
		changed = appendChanges(changed, was.Pods, is.Pods)
		changed = appendChanges(changed, was.PeerAuthentications, is.PeerAuthentications)
		for i := range is.resources {
			changed = appendChanges(changed, was.resources[i], is.resources[i])
		}
	}
	slices.SortFunc(changed, ref.Compare)
	return slices.Compact(changed) // a policy stands in two tables
}

func orEmpty(n *Namespace) *Namespace {
	if n == nil {
		return &Namespace{}
	}
	return n
}

func appendChanges[T interface {
	object
	Ref() ref.Ref
}](changed []ref.Ref, before, after *Table[T]) []ref.Ref {
	var none T
	for was, is := range Changes(before, after) {
		if is == none {
			is = was
		}
		changed = append(changed, is.Ref())
	}
	return changed
}
