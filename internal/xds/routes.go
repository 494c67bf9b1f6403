package xds

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// httpPort is one port number that at least one service uses for HTTP.
type httpPort struct {
	number   uint32
	targets  []target // sorted by host
	headless bool     // one of them is headless
	refs     []ref.Ref
	// namespaces are those of the targets and their aliases: only proxies in them know a target by a short name.
	namespaces map[string]bool
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
			if !p.Protocol.IsHTTP() || slices.Contains(reserved, p.Number) {
				continue
			}
			h := ports[p.Number]
			if h == nil {
				h = &httpPort{number: p.Number, namespaces: map[string]bool{}}
				ports[p.Number] = h
			}
			h.add(target{svc, aliases[svc]})
		}
	}
	sorted := slices.SortedFunc(maps.Values(ports), func(a, b *httpPort) int { return cmp.Compare(a.number, b.number) })
	for _, h := range sorted {
		h.refs = b.refs(h.refs)
	}
	return sorted
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

// routesOf gives the routes as a proxy in the namespace sees them, sorted by name: it also knows the services of its own
// namespace by their bare name. This is the one part of a view that depends on the namespace, so a route configuration is
// made, and kept, once for each namespace that has a service on its port, and once for all others.
func (o *outbound) routesOf(namespace string) ([]Resource, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	routes := make([]Resource, 0, len(o.ports))
	for _, p := range o.ports {
		key := routeKey{port: p.number}
		if p.namespaces[namespace] {
			key.namespace = namespace
		}
		r, ok := o.routes[key]
		if !ok {
			var err error
			if r, err = o.key.route(p, namespace); err != nil {
				return nil, err
			}
			o.routes[key] = r
		}
		routes = append(routes, r)
	}
	slices.SortFunc(routes, byName)
	return routes, nil
}

func (b build) route(p *httpPort, namespace string) (Resource, error) {
	name := port(p.number)
	hosts := append(p.virtualHosts(b, namespace), envoy.UnknownHost(b.settings.BlackHoleUnknown))
	r, err := b.resource(name, envoy.ServiceRoutes(name, hosts), nil)
	r.Refs = p.refs // as long as the port has services: shared by all forms
	return r, err
}

// virtualHosts gives one for each target, with all names by which a proxy in the namespace can call it. Envoy refuses a
// route configuration in which a name stands twice: a host's own full name goes before another's short one, then the first wins.
func (p *httpPort) virtualHosts(b build, namespace string) []*routev3.VirtualHost {
	taken := make(map[string]bool, 6*len(p.targets))
	for _, t := range p.targets {
		taken[string(t.service.Host)] = true
	}
	free := func(names []string) []string {
		return slices.DeleteFunc(names, func(n string) bool { was := taken[n]; taken[n] = true; return was })
	}
	hosts := make([]*routev3.VirtualHost, 0, len(p.targets)+1)
	for _, t := range p.targets {
		svc := t.service
		name := fmt.Sprintf("%s:%d", svc.Host, p.number)
		cluster := ClusterName(mesh.EndpointKey{Host: svc.Host, Port: p.number})
		domains := append([]string{string(svc.Host)}, free(b.names(svc, namespace))...)
		for _, a := range t.aliases {
			domains = append(domains, free(append([]string{string(a.Host)}, b.names(a, namespace)...))...)
		}
		domains = append(domains, free(addresses(svc))...)
		hosts = append(hosts, envoy.ServiceHost(name, domains, cluster))
		if svc.Headless {
			pods := []string{"*." + string(svc.Host)}
			for _, n := range b.names(svc, namespace) {
				pods = append(pods, "*."+n)
			}
			hosts = append(hosts, envoy.PodHost("*."+name, free(pods), cluster))
		}
	}
	return hosts
}

// names are the forms of a service's host that a resolver in the namespace completes to it, but for the host itself
// (https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/, namespaces of Services).
func (b build) names(svc *mesh.Service, namespace string) []string {
	names := []string{string(svc.Host) + "."}
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

func addresses(svc *mesh.Service) []string {
	hosts := make([]string, 0, len(svc.Addresses))
	for _, a := range svc.Addresses {
		hosts = append(hosts, authority(a))
	}
	return hosts
}

// authority is an address as it stands in a URL (RFC 3986, section 3.2.2).
func authority(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}
