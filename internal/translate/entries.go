package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"istio.io/api/label"
	networkingapi "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// entries are the ServiceEntries of one namespace. They do not change.
type entries struct {
	each     []*entryPart // the oldest first
	selects  bool         // one of them selects workloads
	problems []diag.Problem
}

// entryPart is one host of a ServiceEntry: a service that the mesh's objects declare and no Service does.
type entryPart struct {
	created int64
	service *mesh.Service
	sets    []*mesh.EndpointSet // one for each port of service, in the same order
	to      audience
}

// object names the ServiceEntry.
func (e *entryPart) object() ref.Ref {
	for _, r := range e.service.Refs {
		if r.Kind == "ServiceEntry" {
			return r
		}
	}
	return e.service.Refs[0]
}

// readEntries makes the entries of a namespace anew when something that they are made of has changed.
func (n *namespace) readEntries(prev *namespace) {
	fresh := prev.source == nil || prev.entries == nil
	same := func(k index.Kind) bool { return prev.view.Resources(k) == n.view.Resources(k) }
	if !fresh && same(index.ServiceEntries) && same(index.WorkloadEntries) && (!prev.entries.selects || sameMap(prev.pods, n.pods)) {
		return
	}
	out := &entries{}
	for _, r := range byAge(n.view.Resources(index.ServiceEntries).All()) {
		spec, ok := r.Spec.(*networkingapi.ServiceEntry)
		if !ok || !r.Valid {
			continue
		}
		e := &entryReader{reader: reader{object: r.Ref()}, n: n, source: r, spec: spec}
		e.problems = refusedFields(r.Ref(), spec)
		out.each = append(out.each, e.parts()...)
		out.problems = append(out.problems, e.problems...)
		out.selects = out.selects || spec.GetWorkloadSelector() != nil
	}
	for _, r := range n.view.Resources(index.WorkloadEntries).All() {
		if spec, ok := r.Spec.(*networkingapi.WorkloadEntry); ok && r.Valid {
			out.problems = append(out.problems, refusedFields(r.Ref(), spec)...)
		}
	}
	n.entries = out
	if prev.entries != nil {
		out.reuse(prev.entries)
	}
}

// reuse takes what is as it was from before, and all of it when nothing differs.
func (e *entries) reuse(before *entries) {
	for _, part := range e.each {
		for _, old := range before.each {
			if old.service.Host != part.service.Host {
				continue
			}
			if reflect.DeepEqual(old.service, part.service) {
				part.service = old.service
			}
			for i, set := range part.sets {
				for _, was := range old.sets {
					if was.Key == set.Key && slices.EqualFunc(was.Endpoints, set.Endpoints, sameEndpoint) && slices.Equal(was.Refs, set.Refs) {
						part.sets[i] = was
					}
				}
			}
		}
	}
}

// sameEndpoint compares the labels of what is no pod by what they say.
func sameEndpoint(a, b mesh.Endpoint) bool {
	if a.Labels != nil && b.Labels != nil && maps.Equal(a.Labels.Values, b.Labels.Values) {
		b.Labels = a.Labels
	}
	return a == b
}

// same reports whether two say the same to clients.
func (e *entries) same(o *entries) bool {
	if e == nil || o == nil {
		return e == o
	}
	return slices.EqualFunc(e.each, o.each, func(a, b *entryPart) bool {
		return a.created == b.created && a.service == b.service && slices.Equal(a.sets, b.sets) && reflect.DeepEqual(a.to, b.to)
	})
}

// entryReader reads one ServiceEntry.
type entryReader struct {
	reader
	n      *namespace
	source *index.Resource
	spec   *networkingapi.ServiceEntry
}

// entryEndpoint is one endpoint of an entry, by address or by name.
type entryEndpoint struct {
	spec  *networkingapi.WorkloadEntry
	ref   ref.Ref
	mesh  mesh.Endpoint // without a port
	name  string        // "" when there is an address
	ports map[string]uint32
}

// resolutions are how the endpoints of a service are found.
var resolutions = map[networkingapi.ServiceEntry_Resolution]mesh.Resolution{
	networkingapi.ServiceEntry_NONE: mesh.AsCalled, networkingapi.ServiceEntry_STATIC: mesh.Known,
	networkingapi.ServiceEntry_DNS: mesh.AllOfName, networkingapi.ServiceEntry_DNS_ROUND_ROBIN: mesh.OneOfName,
}

// parts gives one service for each host.
func (e *entryReader) parts() (parts []*entryPart) {
	resolution, ok := resolutions[e.spec.GetResolution()]
	if !ok {
		e.add(diag.UnsupportedField, diag.Error, "spec.resolution", fmt.Sprintf("this version does not carry out %s: the entry has no effect", e.spec.GetResolution()),
			"write DNS or NONE")
		return nil
	}
	addresses := e.addresses()
	endpoints := e.endpoints()
	for _, host := range e.spec.GetHosts() {
		part := &entryPart{created: e.source.Created, to: readAudience(e.spec.GetExportTo(), e.n.globals.mesh.exportServices, e.source.Namespace)}
		part.service = &mesh.Service{
			Host: mesh.Host(strings.ToLower(strings.TrimSuffix(host, "."))), Namespace: e.source.Namespace, Name: e.source.Name, Addresses: addresses,
			Resolution: resolution, Names: e.spec.GetSubjectAltNames(), Refs: []ref.Ref{e.source.Ref()},
		}
		for _, p := range e.spec.GetPorts() {
			port := &mesh.ServicePort{Number: p.GetNumber(), Name: p.GetName(), Protocol: entryProtocol(p)}
			part.service.Ports = append(part.service.Ports, port)
		}
		slices.SortFunc(part.service.Ports, func(a, b *mesh.ServicePort) int { return cmp.Compare(a.Number, b.Number) })
		e.fill(part, endpoints)
		parts = append(parts, part)
	}
	return parts
}

// addresses are the entry's virtual addresses.
func (e *entryReader) addresses() (all []netip.Addr) {
	for i, text := range e.spec.GetAddresses() {
		a, err := netip.ParseAddr(text)
		if err != nil {
			e.add(diag.UnsupportedField, diag.Error, fmt.Sprintf("spec.addresses[%d]", i),
				"this version does not carry out blocks of addresses: "+text+" has no effect", "write single addresses, or none")
			continue
		}
		all = append(all, a.Unmap())
	}
	return all
}

// entryProtocol reads the protocol of a port. What is TLS is told apart by the name that its client shows.
func entryProtocol(p *networkingapi.ServicePort) mesh.Protocol {
	switch said := strings.ToLower(p.GetProtocol()); said {
	case "tls", "https":
		return mesh.TLS
	case "http_proxy":
		return mesh.HTTP
	default:
		return protocol(index.ServicePort{AppProtocol: said, Name: p.GetName()})
	}
}

// endpoints are those that stand in the entry, or the workloads that it selects.
func (e *entryReader) endpoints() (all []entryEndpoint) {
	for i, w := range e.spec.GetEndpoints() {
		all = append(all, e.endpoint(w, w.GetLabels(), e.source.Ref(), fmt.Sprintf("spec.endpoints[%d].address", i))...)
	}
	selector := e.spec.GetWorkloadSelector().GetLabels()
	if len(selector) == 0 {
		return all
	}
	for _, r := range e.n.view.Resources(index.WorkloadEntries).All() {
		w, ok := r.Spec.(*networkingapi.WorkloadEntry)
		if !ok || !r.Valid {
			continue
		}
		labels := map[string]string{}
		for _, from := range []map[string]string{r.Labels, w.GetLabels()} { // what the spec says counts
			for k, v := range from {
				labels[k] = v
			}
		}
		if matches(selector, labels) {
			all = append(all, e.endpoint(w, labels, r.Ref(), "")...)
		}
	}
	for _, pod := range e.n.view.Pods.All() {
		if part := e.n.pods[pod.Name]; part != nil && pod.Ready && matches(selector, pod.Labels) {
			all = append(all, e.pod(part)...)
		}
	}
	return all
}

// pod gives the endpoints that a pod is.
func (e *entryReader) pod(part *podPart) (all []entryEndpoint) {
	for _, a := range part.workload.Addresses {
		m := mesh.Endpoint{Address: a, Identity: part.identity, Locality: part.workload.Locality, Workload: part.workload.Key, Labels: part.labels}
		m.MTLS = part.sidecar && e.n.globals.mesh.autoMTLS && e.spec.GetLocation() == networkingapi.ServiceEntry_MESH_INTERNAL
		all = append(all, entryEndpoint{ref: part.source.Ref(), mesh: m})
	}
	return all
}

func (e *entryReader) endpoint(w *networkingapi.WorkloadEntry, labels map[string]string, from ref.Ref, field string) []entryEndpoint {
	out := entryEndpoint{spec: w, ref: from, ports: w.GetPorts()}
	out.mesh.Labels, out.mesh.Weight = &mesh.Labels{Values: labels}, w.GetWeight()
	parts := append(strings.SplitN(w.GetLocality(), "/", 3), "", "")
	out.mesh.Locality = mesh.Locality{Region: parts[0], Zone: parts[1], Subzone: parts[2]}
	if w.GetServiceAccount() != "" {
		out.mesh.Identity = "spiffe://" + e.n.globals.mesh.settings.TrustDomain + "/ns/" + e.n.source.Name + "/sa/" + w.GetServiceAccount()
	}
	out.mesh.MTLS = e.spec.GetLocation() == networkingapi.ServiceEntry_MESH_INTERNAL && e.n.globals.mesh.autoMTLS && labels[label.SecurityTlsMode.Name] == "istio"
	if a, err := netip.ParseAddr(w.GetAddress()); err == nil {
		out.mesh.Address = a.Unmap()
		return []entryEndpoint{out}
	}
	if strings.HasPrefix(w.GetAddress(), "unix:") || w.GetAddress() == "" {
		if field != "" {
			e.add(diag.UnsupportedField, diag.Error, field, fmt.Sprintf("this version does not carry out the address %q: the endpoint is left out", w.GetAddress()), "write an IP address or a host name")
		}
		return nil
	}
	out.name = strings.ToLower(w.GetAddress())
	return []entryEndpoint{out}
}

// fill gives the service its endpoints, in the form that its resolution has.
func (e *entryReader) fill(part *entryPart, endpoints []entryEndpoint) {
	svc := part.service
	target := map[uint32]uint32{}
	for _, p := range e.spec.GetPorts() {
		target[p.GetNumber()] = cmp.Or(p.GetTargetPort(), p.GetNumber())
	}
	refs := []ref.Ref{e.source.Ref()}
	for _, ep := range endpoints {
		refs = append(refs, ep.ref)
	}
	slices.SortFunc(refs, ref.Compare)
	refs = slices.Compact(refs)
	if svc.Resolution == mesh.AllOfName || svc.Resolution == mesh.OneOfName {
		svc.Targets, svc.Refs = e.targets(svc, endpoints, target), refs
	}
	for _, p := range svc.Ports {
		set := &mesh.EndpointSet{Key: mesh.EndpointKey{Host: svc.Host, Port: p.Number}, Refs: refs}
		for _, ep := range endpoints {
			if svc.Resolution != mesh.Known || ep.name != "" {
				continue
			}
			m := ep.mesh
			m.Port = cmp.Or(ep.ports[p.Name], target[p.Number])
			set.Endpoints = append(set.Endpoints, m)
			if m.Identity != "" && !slices.Contains(p.Identities, m.Identity) {
				p.Identities = append(p.Identities, m.Identity)
			}
		}
		slices.Sort(p.Identities)
		set.Endpoints = once(set.Endpoints)
		part.sets = append(part.sets, set)
	}
}

// targets are the names to look up: those of the endpoints, or the host itself.
func (e *entryReader) targets(svc *mesh.Service, endpoints []entryEndpoint, target map[uint32]uint32) (all []mesh.Target) {
	if len(endpoints) == 0 && !strings.HasPrefix(string(svc.Host), "*") {
		endpoints = []entryEndpoint{{name: string(svc.Host)}}
	}
	for _, ep := range endpoints {
		t := mesh.Target{Name: ep.name, Locality: ep.mesh.Locality, Weight: ep.mesh.Weight, Labels: ep.mesh.Labels}
		if t.Name == "" {
			t.Name = ep.mesh.Address.String()
		}
		for _, p := range svc.Ports {
			t.Ports = append(t.Ports, cmp.Or(ep.ports[p.Name], target[p.Number]))
		}
		all = append(all, t)
	}
	if svc.Resolution == mesh.OneOfName && len(all) > 1 {
		e.add(diag.InvalidField, diag.Warning, "spec.endpoints", "resolution DNS_ROUND_ROBIN has one endpoint: only "+all[0].Name+" is used", "use DNS, or take the others out")
		all = all[:1]
	}
	return all
}
