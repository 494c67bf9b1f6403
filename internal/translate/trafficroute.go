package translate

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

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
