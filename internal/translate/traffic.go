package translate

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// traffic is what the services, DestinationRules and VirtualServices of all namespaces come to, for each kind of client. Once it is made
// it does not change. It is made anew as a whole when a service or one of these objects changes, and takes all that stays the same from
// the one before; what is made of a single object is kept while the object stays.
type traffic struct {
	outbound  *mesh.Outbound
	outbounds map[string]*mesh.Outbound // of the namespaces that see it otherwise

	merged    map[mergedKey]*rule
	applied   map[appliedKey]*mesh.Service
	templates map[templateKey]*template
	resolved  map[*template][]resolution

	parts    map[mesh.Host][]subsetPart     // of the services that have subsets
	sets     map[mesh.EndpointKey]subsetSet // their endpoints
	problems []diag.Problem
}

type mergedKey struct {
	group *ruleGroup
	seen  string
}

type appliedKey struct {
	raw  *mesh.Service
	rule *rule
}

type templateKey struct {
	of        *virtualService
	client    string
	delegates string
}

type resolution struct {
	answers []found
	made    *mesh.VirtualService
}

// subsetPart is a service as some clients see it, and the rule that says what its subsets are.
type subsetPart struct {
	service *mesh.Service
	rule    *rule
	of      string              // see mesh.EndpointKey.OfSubset
	entry   []*mesh.EndpointSet // of a ServiceEntry; nil for a Service, which has its own
}

// subsetSet is the endpoints of a subset, and what they were taken from.
type subsetSet struct {
	raw    *mesh.EndpointSet
	labels map[string]string
	set    *mesh.EndpointSet
}

// translateTraffic works on what the namespaces have become; changed are those that are not as they were.
func translateTraffic(is, was *memo, changed map[string]changes) *traffic {
	if was.traffic == nil || trafficChanged(is, was, changed) {
		b := newTrafficBuilder(is, was.traffic)
		b.build()
		return b.next
	}
	touched := map[mesh.Host]bool{}
	for name, what := range changed {
		if n := is.namespaces[name]; n != nil {
			for service := range what.services {
				if host := n.host(service); len(was.traffic.parts[host]) > 0 {
					touched[host] = true
				}
			}
		}
	}
	if len(touched) == 0 {
		return was.traffic
	}
	next := *was.traffic
	next.sets = maps.Clone(next.sets)
	for host := range touched {
		is.subsets(&next, next.parts[host], was.traffic.sets)
	}
	return &next
}

// trafficChanged reports whether anything but endpoints is new.
func trafficChanged(is, was *memo, changed map[string]changes) bool {
	if is.mesh != was.mesh {
		return true
	}
	none := &namespace{}
	for name, what := range changed {
		before, after := cmp.Or(was.namespaces[name], none), cmp.Or(is.namespaces[name], none)
		if before == none || after == none || before.rules != after.rules || before.virtual != after.virtual || !before.entries.same(after.entries) {
			return true
		}
		for service := range what.services {
			old, part := cmp.Or(before.services[service], noService), cmp.Or(after.services[service], noService)
			if old.service != part.service || !reflect.DeepEqual(old.to, part.to) {
				return true
			}
		}
	}
	return false
}

// subsets makes the endpoints of the subsets of one service, and takes them from before while nothing about them is new.
func (is *memo) subsets(into *traffic, parts []subsetPart, before map[mesh.EndpointKey]subsetSet) {
	for _, part := range parts {
		raw := part.entry
		if raw == nil {
			raw = is.setsOf(part.service)
		}
		for _, s := range part.service.Subsets {
			labels := part.rule.labelsOf(s.Name)
			for i, p := range part.service.Ports {
				if i >= len(raw) {
					break
				}
				key := mesh.EndpointKey{Host: part.service.Host, Port: p.Number}.OfSubset(s.Name, part.of)
				next := subsetSet{raw: raw[i], labels: labels}
				old, ok := before[key]
				if ok && old.raw == next.raw && maps.Equal(old.labels, labels) && slices.Equal(old.set.Refs, subsetRefs(raw[i], part.rule)) {
					next.set = old.set
				} else if next.set = subsetOf(key, raw[i], labels, part.rule); ok && slices.Equal(old.set.Endpoints, next.set.Endpoints) && slices.Equal(old.set.Refs, next.set.Refs) {
					next.set = old.set
				}
				into.sets[key] = next
			}
		}
	}
}

func (is *memo) setsOf(svc *mesh.Service) []*mesh.EndpointSet {
	if n := is.namespaces[svc.Namespace]; n != nil {
		if part := n.services[svc.Name]; part != nil {
			return part.sets
		}
	}
	return nil
}

func subsetRefs(raw *mesh.EndpointSet, r *rule) []ref.Ref {
	refs := slices.Concat(raw.Refs, r.refs)
	slices.SortFunc(refs, ref.Compare)
	return slices.Compact(refs)
}

func subsetOf(key mesh.EndpointKey, raw *mesh.EndpointSet, labels map[string]string, r *rule) *mesh.EndpointSet {
	set := &mesh.EndpointSet{Key: key, Refs: subsetRefs(raw, r)}
	for _, e := range raw.Endpoints {
		if len(labels) == 0 || e.Labels != nil && matches(labels, e.Labels.Values) {
			set.Endpoints = append(set.Endpoints, e)
		}
	}
	return set
}

// readTraffic reads the objects of one namespace that say where traffic goes; what has not changed is taken from before.
func (n *namespace) readTraffic(prev *namespace) {
	fresh := prev.source == nil
	if fresh || prev.view.Resources(index.DestinationRules) != n.view.Resources(index.DestinationRules) {
		n.rules = readRules(n.view, n.globals.mesh)
	}
	if fresh || prev.view.Resources(index.VirtualServices) != n.view.Resources(index.VirtualServices) {
		n.virtual = readVirtualServices(n.view, n.globals.mesh)
	}
}
