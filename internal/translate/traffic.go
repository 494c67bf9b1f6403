package translate

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

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
	of      string              // see mesh.EndpointKey
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
			out.ByLocality = set(out.ByLocality, mesh.EndpointKey{Host: svc.Host, Port: port, Subset: subset}, p.Balancer.Locality)
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

// route adds the virtual services that a client sees.
func (b *trafficBuilder) route(out *mesh.Outbound, client string, named map[mesh.Host]*mesh.Service) {
	seen := b.seen(client)
	if len(seen) == 0 {
		return
	}
	all := make([]*template, len(seen))
	for i, v := range seen {
		all[i] = b.template(v, client)
	}
	routing, collisions := newRouting(all)
	b.next.problems = append(b.next.problems, collisions...)
	done := map[*template]*mesh.VirtualService{}
	made := func(t *template) *mesh.VirtualService {
		if done[t] == nil {
			done[t] = b.resolve(t, client, named)
		}
		return done[t]
	}
	taken := map[string]bool{}               // hosts of virtual services that some service has
	ports := map[*template]map[uint32]bool{} // on which these take HTTP
	for _, svc := range out.Services {
		t, host := routing.of(string(svc.Host))
		if t == nil || len(t.made.HTTP) == 0 { // without a route for these clients it claims nothing
			continue
		}
		taken[host] = true
		out.Routing = set(out.Routing, svc.Host, made(t))
		for _, p := range svc.Ports {
			if p.Protocol.IsHTTP() {
				ports[t] = set(ports[t], p.Number, true)
			}
		}
	}
	for _, c := range routing.order {
		if taken[c.host] || named[mesh.Host(c.host)] != nil || len(c.by.made.HTTP) == 0 {
			continue
		}
		on := slices.Sorted(maps.Keys(ports[c.by]))
		if len(on) == 0 {
			on = []uint32{80} // what Istio takes for a host of which no service says a port
		}
		out.Routed = append(out.Routed, mesh.RoutedHost{Host: mesh.Host(c.host), Ports: on, By: made(c.by)})
	}
	slices.SortFunc(out.Routed, func(a, b mesh.RoutedHost) int { return strings.Compare(string(a.Host), string(b.Host)) })
	for _, t := range all {
		made(t) // its problems are told also where another goes before it
	}
}

// seen gives the virtual services of a client, in the order in which they count.
func (b *trafficBuilder) seen(client string) (all []*virtualService) {
	for _, n := range b.is.namespaces {
		for _, v := range n.virtual.each {
			if len(v.hosts) > 0 && v.to.includes(client) {
				all = append(all, v)
			}
		}
	}
	slices.SortFunc(all, func(x, y *virtualService) int {
		return cmp.Or(cmp.Compare(rank(x, client), rank(y, client)), cmp.Compare(x.source.Created, y.source.Created),
			strings.Compare(x.source.Namespace, y.source.Namespace), strings.Compare(x.source.Name, y.source.Name))
	})
	return all
}

func (b *trafficBuilder) template(v *virtualService, client string) *template {
	key := templateKey{of: v}
	if len(v.namespaces) > 0 {
		key.client = client
	}
	var delegates []*virtualService
	for _, d := range v.delegates {
		var to *virtualService
		if n := b.is.namespaces[d.Namespace]; n != nil {
			if to = n.virtual.each[d.Name]; to != nil && (len(to.hosts) > 0 || !to.to.includes(v.source.Namespace)) {
				to = nil
			}
		}
		delegates = append(delegates, to)
		key.delegates += identity(to)
		if to != nil && len(to.namespaces) > 0 {
			key.client = client
		}
	}
	t := b.next.templates[key]
	if t == nil {
		if t = b.was.templates[key]; t == nil || !slices.Equal(t.delegates, delegates) {
			t = templateOf(v, delegates, client, b.is.mesh.settings.ClusterDomain)
		}
		b.next.templates[key] = t
		b.next.problems = append(b.next.problems, t.problems...)
	}
	return t
}

// identity tells delegates apart that a template may have.
func identity(v *virtualService) string {
	if v == nil {
		return "-;"
	}
	return v.source.Namespace + "/" + v.source.Name + ";"
}

// resolve looks the destinations of a template up among the services that the client sees.
func (b *trafficBuilder) resolve(t *template, client string, named map[mesh.Host]*mesh.Service) *mesh.VirtualService {
	answers := make([]found, len(t.lookups))
	for i, l := range t.lookups {
		var missing string
		here := reference{t.of, l.field}
		if answers[i], missing = l.in(named); missing != "" && !b.missing[here] {
			if client == "" {
				b.missing[here] = true // for everybody
			}
			b.next.problems = append(b.next.problems, diag.Problem{
				Code: diag.ReferenceNotFound, Severity: diag.Error, Object: t.of.source.Ref(), Field: l.field,
				Detail: missing + audienceOf(client) + ": requests that are sent there are answered with 503", Hint: "mend the name, or create it",
			})
		}
	}
	for _, r := range b.next.resolved[t] {
		if slices.Equal(r.answers, answers) {
			return r.made
		}
	}
	var made *mesh.VirtualService
	for _, r := range b.was.resolved[t] {
		if slices.Equal(r.answers, answers) {
			made = r.made
		}
	}
	if made == nil {
		key := mesh.WorkloadKey{Namespace: t.made.Namespace, Name: t.made.Name}
		made = t.resolve(answers)
		if same := sameVirtual(made, b.kept[key]); same != made {
			made = same
		} else {
			b.kept[key] = append(b.kept[key], made)
		}
	}
	b.next.resolved[t] = append(b.next.resolved[t], resolution{answers, made})
	return made
}

func audienceOf(client string) string {
	if client == "" {
		return ""
	}
	return " for clients of namespace " + client
}

// in looks a destination up. Without a port it is the service's only one, or else the one that the client has called.
func (l lookup) in(named map[mesh.Host]*mesh.Service) (f found, missing string) {
	f.port = l.port
	svc := named[mesh.Host(l.host)]
	if svc == nil {
		return f, "there is no service " + l.host
	}
	if f.port == 0 && len(svc.Ports) == 1 {
		f.port = svc.Ports[0].Number
	}
	at := slices.IndexFunc(svc.Subsets, func(s *mesh.Subset) bool { return s.Name == l.subset })
	if l.subset != "" && at < 0 {
		return f, "no DestinationRule has a subset " + l.subset + " of " + l.host
	}
	for i, p := range svc.Ports {
		policy := p.Policy
		if at >= 0 {
			policy = svc.Subsets[at].Policies[i]
		}
		if (p.Number == f.port || f.port == 0) && policy != nil && f.hash == nil {
			f.hash = policy.Balancer.Hash
		}
	}
	return f, ""
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
				key := mesh.EndpointKey{Host: part.service.Host, Port: p.Number, Subset: s.Name, Of: part.of}
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
