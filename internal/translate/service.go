package translate

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// servicePart is what one Service and its slices became.
type servicePart struct {
	source   *index.Service
	slices   []*index.EndpointSlice
	service  *mesh.Service
	sets     []*mesh.EndpointSet // one for each port of service, in the same order
	to       audience
	problems []diag.Problem
}

// servicePart translates one service; what comes out as it was before is taken from prev by pointer.
func (n *namespace) servicePart(svc *index.Service, prev *servicePart) *servicePart {
	part := &servicePart{source: svc, slices: n.view.SlicesOf(svc.Name), to: serviceAudience(svc, n.globals.mesh.exportServices)}
	part.service = &mesh.Service{
		Host: n.host(svc.Name), Namespace: svc.Namespace, Name: svc.Name,
		Addresses: svc.Addresses, Headless: svc.Headless, ExternalName: mesh.Host(svc.ExternalName),
		Refs: []ref.Ref{svc.Ref()},
	}
	ports := slices.Clone(svc.Ports)
	slices.SortStableFunc(ports, func(a, b index.ServicePort) int { return cmp.Compare(a.Number, b.Number) })
	for _, p := range ports {
		port := &mesh.ServicePort{Number: p.Number, Name: p.Name, Protocol: protocol(p)}
		part.sets = append(part.sets, n.endpoints(part, port))
		part.service.Ports = append(part.service.Ports, port)
	}
	part.reuse(prev)
	return part
}

// reuse takes every piece that is as it was from the part before.
func (part *servicePart) reuse(prev *servicePart) {
	if prev == nil {
		return
	}
	if reflect.DeepEqual(part.service, prev.service) {
		part.service = prev.service
	}
	for i, set := range part.sets {
		for _, old := range prev.sets {
			if old.Key == set.Key && slices.Equal(old.Endpoints, set.Endpoints) && slices.Equal(old.Refs, set.Refs) {
				part.sets[i] = old
			}
		}
	}
}

// endpoints gives the endpoints of one port, and notes in the port what its clients must know of the pods behind it, ready or
// not: an identity before the first endpoint that shows it, and an instance for as long as it may have connections, which a
// listener that goes would cut.
func (n *namespace) endpoints(part *servicePart, port *mesh.ServicePort) *mesh.EndpointSet {
	set := &mesh.EndpointSet{
		Key:  mesh.EndpointKey{Host: part.service.Host, Port: port.Number},
		Refs: []ref.Ref{part.source.Ref()},
	}
	byAddress := part.service.Headless && !port.Protocol.IsHTTP()
	identities := map[string]bool{}
	for _, slice := range part.slices {
		for _, sp := range slice.Ports {
			if sp.Name != port.Name {
				continue
			}
			for _, e := range slice.Endpoints {
				endpoint, ok := n.endpoint(e, sp.Number)
				if endpoint.Identity != "" {
					identities[endpoint.Identity] = true
				}
				if byAddress && endpoint.MTLS {
					port.Instances = append(port.Instances, netip.AddrPortFrom(endpoint.Address, uint16(endpoint.Port)))
				}
				if ok {
					set.Endpoints = append(set.Endpoints, endpoint)
				}
			}
		}
		set.Refs = append(set.Refs, slice.Ref())
	}
	slices.SortFunc(set.Refs, ref.Compare)
	set.Endpoints = once(set.Endpoints)
	port.Identities = slices.Sorted(maps.Keys(identities))
	slices.SortFunc(port.Instances, netip.AddrPort.Compare)
	port.Instances = slices.Compact(port.Instances)
	return set
}

// once sorts endpoints and keeps one of each address: while a pod moves from one slice to another it may stand in both,
// and there the better state counts.
func once(endpoints []mesh.Endpoint) []mesh.Endpoint {
	slices.SortStableFunc(endpoints, func(a, b mesh.Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Health, b.Health))
	})
	return slices.CompactFunc(endpoints, func(a, b mesh.Endpoint) bool { return a.Address == b.Address && a.Port == b.Port })
}

// endpoint reports false for one that is not to be called: not ready, or of a pod that is not known. The slice and its pod
// come by two watches, and to call a pod before its side of mutual TLS is known would be wrong either way.
func (n *namespace) endpoint(e index.Endpoint, port uint32) (mesh.Endpoint, bool) {
	out := mesh.Endpoint{Address: e.Address, Port: port}
	if e.State == index.Draining {
		out.Health = mesh.Draining
	}
	if e.Pod == "" {
		out.Locality = localityOf(n.nodes.Get(e.Node))
		if out.Locality.Zone == "" {
			out.Locality.Zone = e.Zone
		}
		return out, e.State != index.NotReady
	}
	pod, ok := n.pods[e.Pod]
	if !ok || e.PodUID != "" && e.PodUID != pod.source.UID {
		return out, false
	}
	out.Labels = pod.labels
	out.Workload, out.Locality, out.Identity = pod.workload.Key, pod.workload.Locality, pod.identity
	out.MTLS = pod.sidecar && n.globals.mesh.autoMTLS && modeOf(pod.workload.Inbound, port) != mesh.Disabled
	return out, e.State != index.NotReady
}

func localityOf(node *index.Node) mesh.Locality {
	if node == nil {
		return mesh.Locality{}
	}
	return mesh.Locality{Region: node.Region, Zone: node.Zone, Subzone: node.Subzone}
}
