package translate

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

// trafficBuilder makes one traffic.
type trafficBuilder struct {
	is    *memo
	was   *traffic
	next  *traffic
	raw   []rawService // of all namespaces, by host
	known map[mesh.Host][]*mesh.Service
	kept  map[mesh.WorkloadKey][]*mesh.VirtualService // as they were, by namespace and name
	// missing are the references that lead nowhere for clients that nobody names, and so, nearly always, for all.
	missing map[reference]bool
	entries map[mesh.Host][]*mesh.EndpointSet // endpoints of the hosts of ServiceEntries
}

// rawService is a service as it is without a rule.
type rawService struct {
	service *mesh.Service
	sets    []*mesh.EndpointSet // nil for those of a Service, which are in the model anyhow
	to      audience
}

// reference is where a virtual service names something.
type reference struct {
	by    *virtualService
	field string
}

func newTrafficBuilder(is *memo, was *traffic) *trafficBuilder {
	b := &trafficBuilder{is: is, was: was, known: map[mesh.Host][]*mesh.Service{}, kept: map[mesh.WorkloadKey][]*mesh.VirtualService{}, missing: map[reference]bool{}, entries: map[mesh.Host][]*mesh.EndpointSet{}}
	if was == nil {
		b.was = &traffic{}
	}
	b.next = &traffic{
		merged: map[mergedKey]*rule{}, applied: map[appliedKey]*mesh.Service{}, templates: map[templateKey]*template{},
		resolved: map[*template][]resolution{}, parts: map[mesh.Host][]subsetPart{}, sets: map[mesh.EndpointKey]subsetSet{},
	}
	for _, s := range b.was.applied {
		b.known[s.Host] = append(b.known[s.Host], s)
	}
	for _, rs := range b.was.resolved {
		for _, r := range rs {
			key := mesh.WorkloadKey{Namespace: r.made.Namespace, Name: r.made.Name}
			b.kept[key] = append(b.kept[key], r.made)
		}
	}
	for _, n := range is.namespaces {
		for _, part := range n.services {
			b.raw = append(b.raw, rawService{part.service, nil, part.to})
		}
	}
	b.addEntries()
	slices.SortFunc(b.raw, func(x, y rawService) int { return strings.Compare(string(x.service.Host), string(y.service.Host)) })
	return b
}

// addEntries adds the hosts of ServiceEntries that no Service and no older entry has.
func (b *trafficBuilder) addEntries() {
	var all []*entryPart
	for _, n := range b.is.namespaces {
		all = append(all, n.entries.each...)
	}
	if len(all) == 0 {
		return
	}
	slices.SortStableFunc(all, func(x, y *entryPart) int {
		return cmp.Or(cmp.Compare(x.created, y.created), strings.Compare(x.service.Namespace, y.service.Namespace), strings.Compare(x.service.Name, y.service.Name))
	})
	owner := map[mesh.Host]*mesh.Service{}
	for _, r := range b.raw {
		owner[r.service.Host] = r.service
	}
	for _, e := range all {
		if first := owner[e.service.Host]; first != nil {
			b.next.problems = append(b.next.problems, diag.Problem{
				Code: diag.HostCollision, Severity: diag.Error, Object: e.object(), Field: "spec.hosts",
				Detail: string(e.service.Host) + " is declared by " + first.Refs[0].String() + ", which counts: the host of this entry has no effect",
				Hint:   "put ports and endpoints into one of the two",
			})
			continue
		}
		owner[e.service.Host] = e.service
		b.raw = append(b.raw, rawService{e.service, e.sets, e.to})
		for i, set := range e.sets {
			b.next.sets[set.Key] = subsetSet{raw: e.sets[i], set: set}
		}
		b.entries[e.service.Host] = e.sets
	}
}

func (b *trafficBuilder) build() {
	base := b.see("")
	b.next.outbound = sameOutbound(base, b.was.outbound)
	special := map[string]*mesh.Outbound{}
	for _, client := range b.special() {
		mine := b.see(client)
		if mine = sameOutbound(mine, b.was.outbounds[client]); sameOutbound(mine, b.next.outbound) != b.next.outbound {
			special[client] = mine
		}
	}
	if maps.Equal(special, b.was.outbounds) {
		b.next.outbounds = b.was.outbounds
	} else if len(special) > 0 {
		b.next.outbounds = special
	}
	for host, parts := range b.next.parts {
		for i := range parts {
			parts[i].entry = b.entries[host]
		}
		b.is.subsets(b.next, parts, b.was.sets)
	}
	b.next.problems = sorted(b.next.problems)
}

// sameOutbound gives before when made says the same.
func sameOutbound(made, before *mesh.Outbound) *mesh.Outbound {
	if before != nil && slices.Equal(made.Services, before.Services) && maps.Equal(made.Routing, before.Routing) &&
		slices.EqualFunc(made.Routed, before.Routed, func(a, b mesh.RoutedHost) bool {
			return a.Host == b.Host && a.By == b.By && slices.Equal(a.Ports, b.Ports)
		}) && maps.Equal(made.Private, before.Private) && maps.Equal(made.ByLocality, before.ByLocality) {
		return before
	}
	return made
}

// special names the namespaces that may see the mesh otherwise than one that no object names, sorted.
func (b *trafficBuilder) special() []string {
	names := map[string]bool{}
	add := func(all []string) {
		for _, name := range all {
			names[name] = true
		}
	}
	for _, part := range b.raw {
		add(part.to.only)
	}
	for name, n := range b.is.namespaces {
		for _, v := range n.virtual.each {
			add(v.to.only)
			add(v.namespaces)
		}
		own := "." + name + ".svc." + b.is.mesh.settings.ClusterDomain
		foreign := len(n.rules.wild) > 0
		for host, g := range n.rules.exact {
			foreign = foreign || !strings.HasSuffix(host, own)
			for _, d := range g.each {
				add(d.to.only)
			}
		}
		for _, g := range n.rules.wild {
			for _, d := range g.each {
				add(d.to.only)
			}
		}
		if foreign {
			names[name] = true
		}
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(names)), func(name string) bool { return b.is.namespaces[name] == nil })
}

// see makes what clients of a namespace see; "" stands for one that no object names.
func (b *trafficBuilder) see(client string) *mesh.Outbound {
	out := &mesh.Outbound{}
	named := map[mesh.Host]*mesh.Service{}
	for _, part := range b.raw {
		if !part.to.includes(client) {
			continue
		}
		r := b.ruleFor(client, part.service)
		svc := b.apply(r, part.service)
		if r != nil && len(r.subsets) > 0 {
			of := ""
			if client != "" && r != b.ruleFor("", part.service) {
				of = client
				out.Private = set(out.Private, svc.Host, client)
			}
			if client == "" || of != "" {
				b.next.parts[svc.Host] = append(b.next.parts[svc.Host], subsetPart{service: svc, rule: r, of: of})
			}
		}
		byLocality(out, svc)
		out.Services = append(out.Services, svc)
		named[svc.Host] = svc
	}
	b.route(out, client, named)
	return out
}

func set[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	if m == nil {
		m = map[K]V{}
	}
	m[k] = v
	return m
}

func byLocality(out *mesh.Outbound, svc *mesh.Service) {
	note := func(p *mesh.TrafficPolicy, port uint32, subset string) {
		if p != nil && p.Balancer.Locality != nil {
			out.ByLocality = set(out.ByLocality, mesh.EndpointKey{Host: svc.Host, Port: port}.OfSubset(subset, ""), p.Balancer.Locality)
		}
	}
	for i, p := range svc.Ports {
		note(p.Policy, p.Number, "")
		for _, s := range svc.Subsets {
			note(s.Policies[i], p.Number, s.Name)
		}
	}
}

// ruleFor finds the rule for a service: that of the client's namespace, then that of the service's, then that of the root namespace,
// whose own clients have only its private rules before the others (istio.io, DestinationRule, exportTo; Istio's lookup).
func (b *trafficBuilder) ruleFor(client string, svc *mesh.Service) *rule {
	host, root := string(svc.Host), b.is.mesh.settings.RootNamespace
	all := func(*destinationRule) bool { return true }
	private := func(d *destinationRule) bool { return d.to.limited && d.to.includes(client) }
	exported := func(d *destinationRule) bool { return d.to.includes(client) }
	steps := []struct {
		namespace string
		seen      func(*destinationRule) bool
	}{{client, all}, {svc.Namespace, exported}, {root, exported}}
	if client == root {
		steps[0].seen = private
	}
	for _, s := range steps {
		if n := b.is.namespaces[s.namespace]; n != nil {
			if r := b.find(n.rules, host, s.seen); r != nil {
				return r
			}
		}
	}
	return nil
}

func (b *trafficBuilder) find(r *rules, host string, seen func(*destinationRule) bool) *rule {
	if g := r.exact[host]; g != nil {
		if found := b.merge(g, seen); found != nil {
			return found
		}
	}
	for _, g := range r.wild {
		if covers(g.host, host) {
			if found := b.merge(g, seen); found != nil {
				return found
			}
		}
	}
	return nil
}

func (b *trafficBuilder) merge(g *ruleGroup, seen func(*destinationRule) bool) *rule {
	mask, any := g.mask(seen)
	if !any {
		return nil
	}
	key := mergedKey{g, mask}
	r := b.next.merged[key]
	if r == nil {
		if r = b.was.merged[key]; r == nil {
			r = g.merge(mask)
		}
		b.next.merged[key] = r
	}
	return r
}

// apply gives a service as clients see it for whom the rule holds.
func (b *trafficBuilder) apply(r *rule, raw *mesh.Service) *mesh.Service {
	if r == nil {
		return raw
	}
	key := appliedKey{raw, r}
	svc := b.next.applied[key]
	if svc == nil {
		if svc = b.was.applied[key]; svc == nil {
			svc = b.intern(r.apply(raw))
		}
		b.next.applied[key] = svc
	}
	return svc
}

// intern gives the one pointer for services that say the same.
func (b *trafficBuilder) intern(svc *mesh.Service) *mesh.Service {
	for _, old := range b.known[svc.Host] {
		if reflect.DeepEqual(old, svc) {
			return old
		}
	}
	b.known[svc.Host] = append(b.known[svc.Host], svc)
	return svc
}
