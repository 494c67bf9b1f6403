package xds

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// httpPort is one port number that at least one service uses for HTTP.
type httpPort struct {
	number   uint32
	targets  []target          // sorted by host
	routed   []mesh.RoutedHost // hosts beyond services, sorted
	headless bool              // one of them is headless
	named    []connections     // of TLS, by the name that the client shows, sorted
	rest     *connections      // that nothing else takes; nil for those to no service
	refs     []ref.Ref
	// namespaces are those of the targets and their aliases: only proxies in them know a target by a short name.
	namespaces map[string]bool
}

// http reports whether the port has routes.
func (h *httpPort) http() bool { return len(h.targets)+len(h.routed) > 0 }

// connections are those to one service of which nothing but the port, or the name, is known.
type connections struct {
	host    mesh.Host
	cluster string
	policy  *mesh.TrafficPolicy
}

// addConnections adds a port of a service without an address, which is not HTTP. Of two that cannot be told apart the first counts.
func (h *httpPort) addConnections(svc *mesh.Service, p *mesh.ServicePort) {
	c := connections{svc.Host, ClusterName(mesh.EndpointKey{Host: svc.Host, Port: p.Number}), p.Policy}
	switch {
	case p.Protocol == mesh.TLS:
		h.named = append(h.named, c)
	case h.rest == nil:
		h.rest = &c
	default:
		return
	}
	h.refs = append(h.refs, svc.Refs...)
}

// target is a service that takes HTTP on a port, and the ExternalName services that stand for it.
type target struct {
	service *mesh.Service
	aliases []*mesh.Service
}

// index finds services by host.
func index(o *mesh.Outbound) map[mesh.Host]*mesh.Service {
	named := make(map[mesh.Host]*mesh.Service, len(o.Services))
	for _, svc := range o.Services {
		named[svc.Host] = svc
	}
	return named
}

// maxAliases is how many ExternalName services may follow one another.
const maxAliases = 8

// resolve follows ExternalName services to a service of the mesh, or gives nil when they lead out of it or in a circle.
func resolve(named map[mesh.Host]*mesh.Service, svc *mesh.Service) *mesh.Service {
	for range maxAliases {
		if svc == nil || svc.ExternalName == "" {
			return svc
		}
		svc = named[svc.ExternalName]
	}
	return nil
}

// isAlias says whether svc is only another name for a service of the mesh.
func isAlias(named map[mesh.Host]*mesh.Service, svc *mesh.Service) bool {
	return svc.ExternalName != "" && resolve(named, svc) != nil
}

// httpPorts sorts the services by the ports on which they take HTTP. An alias is known on all ports of what it stands for,
// whichever it lists itself: DNS leads its clients there, and its manifest often lists none.
func (b build) httpPorts(o *mesh.Outbound, named map[mesh.Host]*mesh.Service) []*httpPort {
	aliases := map[*mesh.Service][]*mesh.Service{}
	for _, svc := range o.Services {
		if isAlias(named, svc) {
			to := resolve(named, svc)
			aliases[to] = append(aliases[to], svc)
		}
	}
	ports := map[uint32]*httpPort{}
	for _, svc := range o.Services {
		if isAlias(named, svc) {
			continue
		}
		for _, p := range svc.Ports {
			if slices.Contains(reserved, p.Number) {
				continue
			}
			if !p.Protocol.IsHTTP() {
				if declared(svc) && len(svc.Addresses) == 0 && (len(svc.Targets) > 0 || svc.Resolution < mesh.AllOfName) {
					portOf(ports, p.Number).addConnections(svc, p)
				}
				continue
			}
			h := portOf(ports, p.Number)
			h.add(target{svc, aliases[svc]})
			if vs := o.Routing[svc.Host]; vs != nil {
				h.refs = append(h.refs, vs.Refs...)
			}
		}
	}
	for _, r := range o.Routed {
		for _, number := range r.Ports {
			if !slices.Contains(reserved, number) {
				h := portOf(ports, number)
				h.routed, h.refs = append(h.routed, r), append(h.refs, r.By.Refs...)
			}
		}
	}
	sorted := slices.SortedFunc(maps.Values(ports), func(a, b *httpPort) int { return cmp.Compare(a.number, b.number) })
	for _, h := range sorted {
		h.refs = b.refs(h.refs)
	}
	return sorted
}

// declared reports whether a service is a ServiceEntry's: its hosts have names of any form, and need no address.
func declared(svc *mesh.Service) bool {
	return slices.ContainsFunc(svc.Refs, func(r ref.Ref) bool { return r.Kind == "ServiceEntry" })
}

func portOf(ports map[uint32]*httpPort, number uint32) *httpPort {
	h := ports[number]
	if h == nil {
		h = &httpPort{number: number, namespaces: map[string]bool{}}
		ports[number] = h
	}
	return h
}

func (h *httpPort) add(t target) {
	h.targets = append(h.targets, t)
	h.headless = h.headless || t.service.Headless
	for _, svc := range append([]*mesh.Service{t.service}, t.aliases...) {
		h.refs = append(h.refs, svc.Refs...)
		h.namespaces[svc.Namespace] = true
	}
}

// routeKey names one form of a route configuration. Namespace is "" for the form that all namespaces see that have no short
// name of their own on the port.
type routeKey struct {
	port      uint32
	namespace string
}

// routeForm is one form of a route configuration, with its virtual hosts if these are sent apart.
type routeForm struct {
	route Resource
	hosts *Hosts
}

// routesOf gives the routes as a proxy in the namespace sees them, sorted by name, and what Config.Hosts has: it also knows the services of its own
// namespace by their bare name. This is the one part of a view that depends on the namespace, so a route configuration is
// made, and kept, once for each namespace that has a service on its port, and once for all others.
func (o *outbound) routesOf(namespace string) (routes []Resource, hosts map[string]*Hosts, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	routes = make([]Resource, 0, len(o.ports))
	if o.key.traits.HostDiscovery {
		hosts = make(map[string]*Hosts, len(o.ports))
	}
	for _, p := range o.ports {
		if !p.http() {
			continue
		}
		key := routeKey{port: p.number}
		if p.namespaces[namespace] {
			key.namespace = namespace
		}
		r, ok := o.routes[key]
		if !ok {
			if r, err = o.route(p, namespace); err != nil {
				return nil, nil, err
			}
			o.routes[key] = r
		}
		routes = append(routes, r.route)
		if r.hosts != nil {
			hosts[r.route.Name] = r.hosts
		}
	}
	slices.SortFunc(routes, byName)
	return routes, hosts, nil
}

// route makes one form of a route configuration. A mesh has many services and many namespaces, and all forms change whenever
// a service comes or goes, so the virtual hosts, which mostly stay, are not marshalled again: in protobuf's encoding a message
// is the concatenation of its fields.
func (o *outbound) route(p *httpPort, namespace string) (routeForm, error) {
	name, b := port(p.number), o.key.build
	routes := envoy.ServiceRoutes(name)
	if b.traits.HostDiscovery {
		routes.Vhds = envoy.HostDiscovery()
	}
	body, err := envoy.Marshal(routes)
	if err != nil {
		return routeForm{}, fmt.Errorf("marshal route configuration %s: %w", name, err)
	}
	hosts, err := o.virtualHosts(p, namespace)
	if err != nil {
		return routeForm{}, fmt.Errorf("marshal virtual hosts of port %s: %w", name, err)
	}
	// Among the others, so that a rejection of these cannot leave it there alone.
	unknown, err := b.hosts(name, nil, envoy.UnknownHost(b.settings.BlackHoleUnknown))
	if err != nil {
		return routeForm{}, fmt.Errorf("marshal virtual hosts of port %s: %w", name, err)
	}
	hosts = append(hosts, unknown)
	form := routeForm{}
	if b.traits.HostDiscovery {
		form.hosts = &Hosts{}
		for _, h := range hosts {
			form.hosts.All = append(form.hosts.All, h.apart...)
		}
		slices.SortFunc(form.hosts.All, byName)
	} else {
		for _, h := range hosts {
			body = append(body, h.fields...)
		}
	}
	form.route = Resource{
		Name: name, Version: version(body), Body: &anypb.Any{TypeUrl: RouteType, Value: body},
		Refs: p.refs, // as long as the port has services: shared by all forms
	}
	return form, nil
}

// madeHosts are virtual hosts, marshalled: as fields of a route configuration, or each as a resource of its own.
type madeHosts struct {
	fields []byte
	apart  []Resource
}

// hosts marshals virtual hosts of a route configuration in the one way or the other.
func (b build) hosts(route string, refs []ref.Ref, hosts ...*routev3.VirtualHost) (made madeHosts, err error) {
	if !b.traits.HostDiscovery {
		made.fields, err = envoy.Marshal(&routev3.RouteConfiguration{VirtualHosts: hosts})
		return made, err
	}
	for _, h := range hosts {
		h.Name = hostResource(route, h.GetName())
		r, err := b.resource(h.GetName(), h, refs)
		if err != nil {
			return made, err
		}
		made.apart = append(made.apart, r)
	}
	return made, nil
}

// virtualHosts gives those of each target, with all names by which a proxy in the
// namespace can call it. Envoy refuses a route configuration in which a name stands twice: a host's own full name goes before
// another's short one, then the first wins.
func (o *outbound) virtualHosts(p *httpPort, namespace string) (all []madeHosts, err error) {
	taken := make(map[string]bool, 6*len(p.targets))
	for _, t := range p.targets {
		taken[string(t.service.Host)] = true
	}
	complete := true
	free := func(names []string) []string {
		return slices.DeleteFunc(names, func(n string) bool {
			was := taken[n]
			taken[n] = true
			complete = complete && !was
			return was
		})
	}
	for _, t := range p.targets {
		complete = true
		d := o.key.domainsOf(t, namespace)
		d.own, d.pods = append([]string{string(t.service.Host)}, free(d.own)...), free(d.pods)
		vs := o.key.outbound.Routing[t.service.Host]
		known, form := &o.services[t.service].hosts, hostForm{t.service, vs, p.number, t.service.Namespace == namespace}
		if vs != nil {
			known = &o.routed
		}
		if made, ok := known.Load(form); ok && complete && len(t.aliases) == 0 {
			all = append(all, made.(madeHosts))
			continue
		}
		refs := t.refs()
		if vs != nil {
			refs = append(refs, vs.Refs...)
		}
		hosts, err := o.key.hosts(port(p.number), refs, virtualHostsOf(t.service, p.number, d, vs)...)
		if err != nil {
			return nil, err
		}
		if complete && len(t.aliases) == 0 {
			known.Store(form, hosts)
		}
		all = append(all, hosts)
	}
	for _, r := range p.routed {
		names := free([]string{string(r.Host), string(r.Host) + "."})
		if strings.HasPrefix(string(r.Host), "*") {
			names = names[:min(1, len(names))] // Envoy knows no wildcard with a dot at its end
		}
		host := envoy.VirtualHost(fmt.Sprintf("%s:%d", r.Host, p.number), names, r.By, p.number, clusterOn(p.number))
		if len(names) == 0 || len(host.GetRoutes()) == 0 {
			continue
		}
		hosts, err := o.key.hosts(port(p.number), r.By.Refs, host)
		if err != nil {
			return nil, err
		}
		all = append(all, hosts)
	}
	return all, nil
}

// clusterOn names the clusters of destinations as requests to one port see them.
func clusterOn(number uint32) func(mesh.Destination) string {
	return func(d mesh.Destination) string {
		return ClusterName(mesh.EndpointKey{Host: d.Host, Port: cmp.Or(d.Port, number)}.OfSubset(d.Subset, ""))
	}
}

// hostForm names the virtual hosts of a service that has all of its names and no alias.
type hostForm struct {
	service *mesh.Service
	by      *mesh.VirtualService // nil for none
	port    uint32
	own     bool // as a proxy in the service's own namespace sees it
}

func virtualHostsOf(svc *mesh.Service, number uint32, d domains, vs *mesh.VirtualService) []*routev3.VirtualHost {
	name := fmt.Sprintf("%s:%d", svc.Host, number)
	cluster := ClusterName(mesh.EndpointKey{Host: svc.Host, Port: number})
	hosts := []*routev3.VirtualHost{envoy.ServiceHost(name, d.own, cluster, hashOf(svc, number))}
	if vs != nil {
		if routed := envoy.VirtualHost(name, d.own, vs, number, clusterOn(number)); len(routed.GetRoutes()) > 0 { // some are for other ports only
			hosts[0] = routed
		}
	}
	if len(d.pods) > 0 {
		hosts = append(hosts, envoy.PodHost("*."+name, d.pods, cluster))
	}
	return hosts
}

// refs are the service and its aliases.
func (t target) refs() []ref.Ref {
	refs := slices.Clone(t.service.Refs)
	for _, a := range t.aliases {
		refs = append(refs, a.Refs...)
	}
	return refs
}

func hashOf(svc *mesh.Service, number uint32) *mesh.Hash {
	for _, p := range svc.Ports {
		if p.Number == number && p.Policy != nil {
			return p.Policy.Balancer.Hash
		}
	}
	return nil
}

// domains are the names of a target: its own but for the host itself, and those of its pods.
type domains struct{ own, pods []string }

func (b build) domainsOf(t target, namespace string) (d domains) {
	svc := t.service
	d.own = b.names(svc, namespace)
	if svc.Headless {
		d.pods = append(d.pods, "*."+string(svc.Host))
		for _, n := range d.own {
			d.pods = append(d.pods, "*."+n)
		}
	}
	for _, a := range t.aliases {
		d.own = append(append(d.own, string(a.Host)), b.names(a, namespace)...)
	}
	for _, a := range svc.Addresses {
		d.own = append(d.own, authority(a))
	}
	return d
}

// names are the forms of a service's host that a resolver in the namespace completes to it, but for the host itself
// (https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/, namespaces of Services).
func (b build) names(svc *mesh.Service, namespace string) []string {
	var names []string
	if !strings.HasPrefix(string(svc.Host), "*") { // Envoy knows no wildcard with a dot at its end
		names = append(names, string(svc.Host)+".")
	}
	suffix := ".svc." + b.settings.ClusterDomain
	short, ok := strings.CutSuffix(string(svc.Host), suffix)
	if !ok || short != svc.Name+"."+svc.Namespace {
		return names // not a Kubernetes service
	}
	names = append(names, short+".svc", short)
	if svc.Namespace == namespace {
		names = append(names, svc.Name)
	}
	return names
}

// authority is an address as it stands in a URL (RFC 3986, section 3.2.2).
func authority(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}
