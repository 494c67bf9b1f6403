package translate

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// meshGateway is the name that stands for the sidecars among the gateways of a VirtualService.
const meshGateway = "mesh"

// virtualService is one VirtualService of Istio's, read. It does not change.
type virtualService struct {
	source *index.Resource
	spec   *networkingapi.VirtualService
	to     audience
	hosts  []string // complete
	// namespaces are the sourceNamespaces of its matches, by which clients differ.
	namespaces []string
	delegates  []mesh.WorkloadKey // namespace and name of what it delegates to, in order
	problems   []diag.Problem
}

// virtualServices are those of one namespace that sidecars use, by name; the ones without hosts are delegates.
type virtualServices struct {
	source   *index.Table[*index.Resource]
	each     map[string]*virtualService
	problems []diag.Problem
}

func readVirtualServices(ns *index.Namespace, m *meshWide) *virtualServices {
	out := &virtualServices{source: ns.Resources(index.VirtualServices), each: map[string]*virtualService{}}
	for _, r := range out.source.All() {
		spec, ok := r.Spec.(*networkingapi.VirtualService)
		if !ok || !r.Valid {
			continue
		}
		v := &virtualService{source: r, spec: spec, to: readAudience(spec.GetExportTo(), m.exportVirtual, ns.Name)}
		v.problems = append(refusedFields(r.Ref(), spec), v.gateways()...)
		out.problems = append(out.problems, v.problems...)
		if len(spec.GetGateways()) > 0 && !slices.Contains(spec.GetGateways(), meshGateway) {
			continue
		}
		for _, h := range spec.GetHosts() {
			v.hosts = append(v.hosts, fullName(h, ns.Name, m.settings.ClusterDomain))
		}
		for _, route := range spec.GetHttp() {
			for _, match := range route.GetMatch() {
				if match.GetSourceNamespace() != "" {
					v.namespaces = append(v.namespaces, match.GetSourceNamespace())
				}
			}
			if d := route.GetDelegate(); d != nil {
				v.delegates = append(v.delegates, mesh.WorkloadKey{Namespace: orDefault(d.GetNamespace(), ns.Name), Name: d.GetName()})
			}
		}
		out.each[r.Name] = v
	}
	return out
}

// gateways says that nobody serves the gateways it names.
func (v *virtualService) gateways() []diag.Problem {
	r := reader{object: v.source.Ref()}
	for i, g := range v.spec.GetGateways() {
		if g != meshGateway {
			r.add(diag.UnsupportedField, diag.Warning, fmt.Sprintf("spec.gateways[%d]", i),
				"this version has no gateways: nothing is routed there", "leave it if that does no harm; for the sidecars the name is "+meshGateway)
		}
	}
	return r.problems
}

// template is a virtual service as a kind of client sees it, with delegates in their places, and destinations that are not looked up
// yet.
type template struct {
	of        *virtualService
	delegates []*virtualService // nil for one that is not there
	client    string            // where sourceNamespaces count
	made      *mesh.VirtualService
	lookups   []lookup // of its destinations, in order
	problems  []diag.Problem
}

// lookup is what a destination must be looked up for, and where it stands.
type lookup struct {
	host, subset string
	port         uint32
	field        string
}

// found is what a look-up gave. Of two that are equal a virtual service is the same.
type found struct {
	port uint32
	hash *mesh.Hash
}

// templateOf makes a virtual service for clients of one namespace.
func templateOf(v *virtualService, delegates []*virtualService, client, domain string) *template {
	t := &template{of: v, delegates: delegates, client: client}
	r := &routeReader{reader: reader{object: v.source.Ref()}, namespace: v.source.Namespace, client: client, domain: domain}
	t.made = &mesh.VirtualService{Namespace: v.source.Namespace, Name: v.source.Name, Refs: []ref.Ref{v.source.Ref()}}
	next := 0
	for i, route := range v.spec.GetHttp() {
		at := fmt.Sprintf("spec.http[%d]", i)
		if route.GetDelegate() == nil {
			t.made.HTTP = r.append(t.made.HTTP, route, at)
			continue
		}
		d := delegates[next]
		if next++; d == nil {
			r.add(diag.ReferenceNotFound, diag.Error, at+".delegate", fmt.Sprintf("there is no VirtualService %s/%s without hosts: the route has no effect",
				orDefault(route.GetDelegate().GetNamespace(), v.source.Namespace), route.GetDelegate().GetName()), "create it, or mend the name")
			continue
		}
		r.namespace = d.source.Namespace
		for _, merged := range delegated(route, d.spec.GetHttp()) {
			t.made.HTTP = r.append(t.made.HTTP, merged, at+".delegate")
		}
		r.namespace = v.source.Namespace
		t.made.Refs = append(t.made.Refs, d.source.Ref())
	}
	slices.SortFunc(t.made.Refs, ref.Compare)
	t.made.Refs = slices.Compact(t.made.Refs)
	t.lookups, t.problems = r.lookups, r.problems
	return t
}

// resolve fills in what was looked up.
func (t *template) resolve(answers []found) *mesh.VirtualService {
	out := *t.made
	out.HTTP = make([]*mesh.HTTPRoute, len(t.made.HTTP))
	next := 0
	fill := func(d mesh.Destination) mesh.Destination {
		d.Port, d.Hash = answers[next].port, answers[next].hash
		next++
		return d
	}
	for i, route := range t.made.HTTP {
		r := *route
		r.Destinations = slices.Clone(route.Destinations)
		for j, d := range r.Destinations {
			r.Destinations[j] = fill(d)
		}
		r.Mirrors = slices.Clone(route.Mirrors)
		for j, m := range r.Mirrors {
			r.Mirrors[j].To = fill(m.To)
		}
		out.HTTP[i] = &r
	}
	return &out
}

// routing is which virtual service counts for which host, for clients of one namespace.
type routing struct {
	exact map[string]*template
	wild  []claim // the longest first
	order []claim // all, in the order in which they count
}

type claim struct {
	host string
	by   *template
}

// rank orders what a client sees as Istio does: what is for its namespace alone, what was exported to it by name, what is for everybody;
// within these the oldest first.
func rank(v *virtualService, client string) int {
	switch {
	case !v.to.limited:
		return 2
	case v.source.Namespace == client && len(v.to.only) == 1:
		return 0
	}
	return 1
}

// collide tells a virtual service of hosts that another one has.
func collide(host string, by, first *virtualService) diag.Problem {
	return diag.Problem{
		Code: diag.HostCollision, Severity: diag.Warning, Object: by.source.Ref(), Field: "spec.hosts",
		Detail: "its routes of " + host + " have no effect where " + first.source.Ref().String() + " is seen, which routes that host too and goes before it",
		Hint:   "put the routes into one VirtualService, or let one delegate to the other",
	}
}

func newRouting(all []*template) (r routing, problems []diag.Problem) {
	r.exact = map[string]*template{}
	wild := map[string]*template{}
	for _, t := range all {
		for _, host := range t.of.hosts {
			into := r.exact
			if strings.HasPrefix(host, "*") {
				into = wild
			}
			if first := into[host]; first != nil {
				if first.of != t.of {
					problems = append(problems, collide(host, t.of, first.of))
				}
				continue
			}
			into[host] = t
			r.order = append(r.order, claim{host, t})
		}
	}
	for _, host := range slices.SortedFunc(maps.Keys(wild), func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	}) {
		r.wild = append(r.wild, claim{host, wild[host]})
	}
	return r, problems
}

// of gives the virtual service of a host, by its full name before wildcards, and the host by which it claims it.
func (r routing) of(host string) (*template, string) {
	if t := r.exact[host]; t != nil {
		return t, host
	}
	for _, c := range r.wild {
		if covers(c.host, host) {
			return c.by, c.host
		}
	}
	return nil, ""
}

// sameVirtual takes what is equal from before by pointer.
func sameVirtual(made *mesh.VirtualService, before []*mesh.VirtualService) *mesh.VirtualService {
	for _, old := range before {
		if reflect.DeepEqual(old, made) {
			return old
		}
	}
	return made
}
