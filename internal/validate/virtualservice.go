package validate

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// routed is what a virtual service's routes are checked with.
type routed struct {
	hosts    hostSet
	gateways bool // it is for gateways alone
	delegate bool // another virtual service's http routes lead here
	sni      bool // its tls routes may name clusters, as east-west gateways do
}

func virtualService(c *check, vs *networking.VirtualService) {
	r := routed{delegate: len(vs.GetHosts()) == 0, gateways: len(vs.GetGateways()) > 0 && !slices.Contains(vs.GetGateways(), "mesh")}
	for _, t := range vs.GetTls() {
		r.sni = r.sni || slices.ContainsFunc(t.GetMatch(), func(m *networking.TLSMatchAttributes) bool { return len(m.GetSniHosts()) > 0 })
	}
	if r.delegate {
		for _, f := range []given{{"gateways", len(vs.GetGateways()) > 0}, {"tls", len(vs.GetTls()) > 0}, {"tcp", len(vs.GetTcp()) > 0}} {
			if f.set {
				c.errorf(diag.Contradiction, spec.field(f.name), "without hosts this is a delegate, which has only http routes and no gateways").hint("name the hosts, or take %s out", f.name)
			}
		}
	}
	if len(vs.GetHttp())+len(vs.GetTls())+len(vs.GetTcp()) == 0 {
		c.errorf(diag.NothingSaid, spec, "it routes nothing: http, tls or tcp is needed")
	}
	c.gatewayNames(spec.field("gateways"), vs.GetGateways())
	c.virtualHosts(vs.GetHosts(), r)
	r.hosts = newHostSet(vs.GetHosts())
	for i, route := range vs.GetHttp() {
		c.httpRoute(spec.field("http").index(i), route, r)
	}
	for i, route := range vs.GetTls() {
		c.tlsRoute(spec.field("tls").index(i), route, r)
	}
	for i, route := range vs.GetTcp() {
		at := spec.field("tcp").index(i)
		for j, m := range route.GetMatch() {
			c.layer4(at.field("match").index(j), m)
		}
		c.destinations(at.field("route"), route.GetRoute())
	}
	c.exportTo(spec.field("exportTo"), vs.GetExportTo(), false)
	c.unreached(vs)
}

// virtualHosts checks the hosts, each and then among themselves.
func (c *check) virtualHosts(hosts []string, r routed) {
	good := true
	for i, host := range hosts {
		at := spec.field("hosts").index(i)
		switch {
		case host == "*" && !r.gateways:
			c.errorf(diag.InvalidHost, at, "* is for gateways alone: for the sidecars of the mesh it would take every service over").hint("name hosts, or the gateways that it is for")
			good = false
		case isAddress(host) || r.gateways && r.sni && clusterName(host):
		case hostProblem(host, true) != "":
			c.host(at, host)
			good = false
		}
	}
	const mostCompared = 1000 // each is compared with each
	if !good || len(hosts) > mostCompared {
		return
	}
	for i, host := range hosts {
		for _, before := range hosts[:i] {
			if covers(before, host) || covers(host, before) {
				c.errorf(diag.Duplicate, spec.field("hosts").index(i), "%s and %s have hosts in common", quote(before), quote(host)).hint("keep the one that is meant")
				break
			}
		}
	}
}

// clusterName reports whether a name is one that Istio makes of a service for AUTO_PASSTHROUGH: outbound_.PORT_.SUBSET_.HOST.
func clusterName(s string) bool {
	parts := strings.Split(s, "_")
	return len(parts) >= 4 && parts[0] == "outbound" && strings.ContainsAny(parts[1], "0123456789") && hostProblem(strings.Trim(parts[3], "."), true) == ""
}

// gatewayNames checks names of gateways: mesh, NAME or NAMESPACE/NAME.
func (c *check) gatewayNames(at path, names []string) {
	for i, full := range names {
		where := at.index(i)
		namespace, name, parted := strings.Cut(full, "/")
		if !parted {
			if c.fullName(where, full); strings.Contains(full, ".") && hostProblem(full, false) == "" {
				parts := strings.Split(full, ".")
				c.warnf(diag.Deprecated, where, "%s names a gateway as a host", quote(full)).hint("write %s/%s", parts[1], parts[0])
			}
			continue
		}
		if !isLabel(namespace) || !isLabel(name) && !c.derived() {
			c.errorf(diag.InvalidName, where, "%s names no gateway", quote(full)).hint("write NAME or NAMESPACE/NAME")
		}
	}
}

func (c *check) tlsRoute(at path, t *networking.TLSRoute, r routed) {
	if len(t.GetMatch()) == 0 {
		c.errorf(diag.MissingValue, at.field("match"), "it is missing: a tls route is chosen by sniHosts")
	}
	for j, m := range t.GetMatch() {
		where := at.field("match").index(j)
		if len(m.GetSniHosts()) == 0 {
			c.errorf(diag.MissingValue, where.field("sniHosts"), "they are missing")
		}
		for k, host := range m.GetSniHosts() {
			c.sniHost(where.field("sniHosts").index(k), host, r)
		}
		c.layer4(where, m)
	}
	c.destinations(at.field("route"), t.GetRoute())
}

func (c *check) sniHost(at path, host string, r routed) {
	switch {
	case isAddress(host):
		c.warnf(diag.InvalidHost, at, "clients that go to an address send no server name, so %s is rarely matched", quote(host)).hint("match by destinationSubnets in a tcp route")
		return
	case r.gateways && clusterName(host):
	case hostProblem(host, true) != "":
		c.host(at, host)
		return
	}
	if !r.delegate && !r.hosts.covers(host) {
		c.errorf(diag.Contradiction, at, "%s is none of spec.hosts", quote(host)).hint("add it to spec.hosts")
	}
}

// hostSet answers quickly for many hosts.
type hostSet struct {
	exact map[string]bool
	wild  []string
}

func newHostSet(hosts []string) hostSet {
	s := hostSet{exact: map[string]bool{}}
	for _, h := range hosts {
		if s.exact[h] = true; isWild(h) {
			s.wild = append(s.wild, h)
		}
	}
	return s
}

func (s hostSet) covers(host string) bool {
	return s.exact[host] || slices.ContainsFunc(s.wild, func(w string) bool { return covers(w, host) })
}

// byConnection is what a match of connections, of tls or of tcp, has.
type byConnection interface {
	GetDestinationSubnets() []string
	GetPort() uint32
	GetSourceLabels() map[string]string
	GetGateways() []string
}

func (c *check) layer4(at path, m byConnection) {
	for i, s := range m.GetDestinationSubnets() {
		c.addressOrBlock(at.field("destinationSubnets").index(i), s)
	}
	if m.GetPort() != 0 {
		c.port(at.field("port"), m.GetPort())
	}
	c.labels(at.field("sourceLabels"), m.GetSourceLabels())
	c.gatewayNames(at.field("gateways"), m.GetGateways())
}

func (c *check) destinations(at path, routes []*networking.RouteDestination) {
	if len(routes) == 0 {
		c.errorf(diag.MissingValue, at, "it is missing: there is nowhere to send connections to").hint("name a destination")
	}
	weights := make([]int32, 0, len(routes))
	for i, r := range routes {
		c.destination(at.index(i).field("destination"), r.GetDestination())
		weights = append(weights, r.GetWeight())
	}
	c.weights(at, weights)
}

func (c *check) weights(at path, weights []int32) {
	total := int64(0)
	for i, w := range weights {
		c.notNegative(at.index(i).field("weight"), int64(w))
		total += int64(w)
	}
	if len(weights) > 1 && total == 0 {
		c.errorf(diag.OutOfRange, at, "the weights of its %d destinations are all 0: none would be chosen", len(weights)).hint("give each its share, such as 90 and 10")
	}
}

func (c *check) destination(at path, d *networking.Destination) {
	if d == nil {
		c.errorf(diag.MissingValue, at, "it is missing")
		return
	}
	if c.derived() {
		return // a destination may not exist
	}
	host := at.field("host")
	if c.required(host, d.GetHost()) {
		if d.GetHost() == "*" {
			c.errorf(diag.InvalidHost, host, "* is no destination")
		} else {
			c.host(host, d.GetHost())
		}
	}
	if d.GetSubset() != "" {
		c.name(at.field("subset"), "a subset", d.GetSubset())
	}
	if d.GetPort() != nil {
		c.port(at.field("port").field("number"), d.GetPort().GetNumber())
	}
}
