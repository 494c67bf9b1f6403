package validate

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// Labels of service entries that change what is allowed in them.
const (
	useWaypoint  = "istio.io/use-waypoint"
	autoAllocate = "networking.istio.io/enable-autoallocate-ip"
)

func serviceEntry(c *check, s *networking.ServiceEntry) {
	c.workloadSelector(s.GetWorkloadSelector())
	dynamic := s.GetResolution() == networking.ServiceEntry_DYNAMIC_DNS
	hosts := spec.field("hosts")
	if len(s.GetHosts()) == 0 {
		c.errorf(diag.MissingValue, hosts, "a service entry needs at least one host")
	}
	for i, host := range s.GetHosts() {
		switch {
		case host == "*":
			c.errorf(diag.InvalidHost, hosts.index(i), "* alone is not allowed: it would take every host over").hint("write a wildcard such as *.example.org")
		case hostProblem(host, true) != "":
			c.host(hosts.index(i), host)
		case partialWildcard(host) && !dynamic:
			c.warnf(diag.InvalidHost, hosts.index(i), "%s has a wildcard that is not a whole part of the name: no host is matched", quote(host)).hint("write *.example.org")
		}
	}
	blocks := -1
	for i, a := range s.GetAddresses() {
		if c.addressOrBlock(spec.field("addresses").index(i), a); strings.Contains(a, "/") && blocks < 0 {
			blocks = i
		}
	}
	if r := s.GetResolution(); blocks >= 0 && r != networking.ServiceEntry_NONE && r != networking.ServiceEntry_STATIC {
		c.errorf(diag.Contradiction, spec.field("addresses").index(blocks), "resolution %s has no CIDR blocks: a name is looked up for one address", r).hint("use resolution NONE or STATIC, or single addresses")
	}
	c.servicePorts(s)
	c.resolution(s)
	c.exportTo(spec.field("exportTo"), s.GetExportTo(), true)
}

func (c *check) servicePorts(s *networking.ServiceEntry) {
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, p := range s.GetPorts() {
		at := spec.field("ports").index(i)
		c.port(at.field("number"), p.GetNumber())
		if numbers[p.GetNumber()] {
			c.errorf(diag.Duplicate, at.field("number"), "port %d is there twice", p.GetNumber())
		}
		if name := p.GetName(); c.required(at.field("name"), name) {
			c.name(at.field("name"), "a port", name)
			if names[name] {
				c.errorf(diag.Duplicate, at.field("name"), "another port is called %s too", quote(name))
			}
		}
		names[p.GetName()], numbers[p.GetNumber()] = true, true
		if p.GetProtocol() != "" {
			c.protocol(at.field("protocol"), p.GetProtocol())
		}
		if p.GetTargetPort() != 0 {
			c.port(at.field("targetPort"), p.GetTargetPort())
		}
		if (p.GetProtocol() == "" || p.GetProtocol() == "TCP") && len(s.GetAddresses()) == 0 && c.meta != nil && !c.allocated(s) {
			c.warnf(diag.NoEffect, at, "connections of TCP are told apart by their address, and the entry has none and is given none").hint("name spec.addresses, or a protocol")
		}
		if r := s.GetResolution(); r != networking.ServiceEntry_NONE && len(s.GetHosts()) > 1 && !protocolOf(p.GetProtocol()).http() && !protocolOf(p.GetProtocol()).tls() {
			c.errorf(diag.Contradiction, at.field("protocol"), "with resolution %s several hosts are told apart by HTTP or TLS, and this port has neither", r).hint("make an entry for each host")
		}
	}
}

// allocated reports whether the control plane gives the entry an address.
func (c *check) allocated(s *networking.ServiceEntry) bool {
	return s.GetResolution() != networking.ServiceEntry_NONE && !strings.EqualFold(c.meta.labels[autoAllocate], "false")
}

func (c *check) resolution(s *networking.ServiceEntry) {
	at := spec.field("endpoints")
	if s.GetWorkloadSelector() != nil && s.GetEndpoints() != nil {
		c.errorf(diag.Contradiction, at, "endpoints and workloadSelector exclude each other")
	}
	switch s.GetResolution() {
	case networking.ServiceEntry_NONE:
		if len(s.GetEndpoints()) > 0 {
			c.errorf(diag.Contradiction, at, "resolution NONE sends requests where they were going, so it has no endpoints").hint("use resolution STATIC or DNS")
		}
		if s.GetWorkloadSelector() != nil {
			c.warnf(diag.NoEffect, spec.field("workloadSelector"), "resolution NONE sends requests where they were going, so no workloads are selected").hint("use resolution STATIC or DNS")
		}
	case networking.ServiceEntry_STATIC:
		for i, e := range s.GetEndpoints() {
			c.endpoint(at.index(i), e, s.GetPorts(), false)
		}
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		c.resolvedByDNS(s)
	case networking.ServiceEntry_DYNAMIC_DNS:
		c.resolvedByRequest(s)
	default:
		c.errorf(diag.UnknownValue, spec.field("resolution"), "there is no resolution %d", s.GetResolution())
	}
}

func (c *check) resolvedByDNS(s *networking.ServiceEntry) {
	at := spec.field("endpoints")
	for i, host := range s.GetHosts() {
		if len(s.GetEndpoints()) == 0 && host != "*" && hostProblem(host, true) == "" && hostProblem(host, false) != "" {
			c.errorf(diag.Contradiction, spec.field("hosts").index(i), "DNS cannot resolve %s, and there are no endpoints", quote(host)).hint("name endpoints, or use resolution NONE or DYNAMIC_DNS")
		}
	}
	if n := len(s.GetEndpoints()); n > 1 && s.GetResolution() == networking.ServiceEntry_DNS_ROUND_ROBIN {
		c.errorf(diag.Contradiction, at, "resolution DNS_ROUND_ROBIN asks for one name, and there are %d endpoints", n).hint("use resolution DNS, or one endpoint")
	}
	for i, e := range s.GetEndpoints() {
		where := at.index(i)
		if !isAddress(e.GetAddress()) {
			c.fullName(where.field("address"), e.GetAddress())
		}
		c.labels(where.field("labels"), e.GetLabels())
		c.endpointPorts(where.field("ports"), e.GetPorts(), s.GetPorts(), true)
	}
	if len(s.GetHosts()) < 2 || len(s.GetAddresses()) == 0 {
		return
	}
	for i, p := range s.GetPorts() {
		if protocolOf(p.GetProtocol()).tcp() {
			c.warnf(diag.NoEffect, spec.field("ports").index(i).field("protocol"), "the hosts have their addresses in common, so this port leads to the first of them").hint("make an entry for each host")
			return
		}
	}
}

// resolvedByRequest checks entries whose host is looked up when a request names it: wildcards are what they are for.
func (c *check) resolvedByRequest(s *networking.ServiceEntry) {
	for i, host := range s.GetHosts() {
		if !isWild(host) {
			c.errorf(diag.Contradiction, spec.field("hosts").index(i), "resolution DYNAMIC_DNS is for wildcards, and %s has none", quote(host)).hint("use resolution DNS")
		}
	}
	if len(s.GetAddresses()) > 0 {
		c.errorf(diag.Contradiction, spec.field("addresses"), "resolution DYNAMIC_DNS finds the address of each host, so none is named")
	}
	if len(s.GetEndpoints()) > 0 {
		c.errorf(diag.Contradiction, spec.field("endpoints"), "resolution DYNAMIC_DNS finds the address of each host, so none is named")
	}
	for i, p := range s.GetPorts() {
		switch protocolOf(p.GetProtocol()) {
		case "HTTP", "HTTP2", "GRPC", "TLS":
		default:
			c.errorf(diag.Contradiction, spec.field("ports").index(i).field("protocol"), "resolution DYNAMIC_DNS learns the host from HTTP, HTTP2, GRPC or TLS, and this port is of %s", quote(p.GetProtocol()))
		}
	}
	if c.meta == nil || s.GetLocation() != networking.ServiceEntry_MESH_INTERNAL {
		return
	}
	if w := c.meta.labels[useWaypoint]; w != "" && !strings.EqualFold(w, "none") {
		c.errorf(diag.NotSupported, spec.field("location"), "a waypoint does not look hosts within the mesh up").hint("use location MESH_EXTERNAL, or take the label %s away", useWaypoint)
	}
}

// endpoint checks an address and its ports; names says whether the address may be a DNS name.
func (c *check) endpoint(at path, e *networking.WorkloadEntry, service []*networking.ServicePort, names bool) {
	address, where := e.GetAddress(), at.field("address")
	socket, isSocket := strings.CutPrefix(address, unixPrefix)
	switch {
	case address == "" && e.GetNetwork() == "":
		c.errorf(diag.MissingValue, where, "it is missing").hint("name an address, or the network through whose gateway the workload is reached")
	case address == "":
		c.warnf(diag.MissingValue, where, "it is missing: the workload is reached through the gateway of network %s alone", quote(e.GetNetwork())).hint("leave it so if that is meant")
	case isSocket:
		c.socket(where, socket)
		if len(e.GetPorts()) > 0 {
			c.errorf(diag.Contradiction, at.field("ports"), "a Unix socket has no ports")
		}
		if !names && len(service) != 1 {
			c.errorf(diag.Contradiction, where, "a Unix socket is one endpoint of one port, and the service has %d", len(service)).hint("make an entry for each port")
		}
	case isAddress(address):
	case !names:
		c.errorf(diag.InvalidAddress, where, "%s is no IP address, and resolution STATIC asks no DNS", quote(address)).hint("write an IP address, or use resolution DNS")
	default:
		c.fullName(where, address)
	}
	c.endpointPorts(at.field("ports"), e.GetPorts(), service, !names)
	c.labels(at.field("labels"), e.GetLabels())
}

func (c *check) endpointPorts(at path, ports map[string]uint32, service []*networking.ServicePort, known bool) {
	names := map[string]bool{}
	for _, p := range service {
		names[p.GetName()] = true
	}
	for name, number := range sorted(ports) {
		c.name(at.key(name), "a port", name)
		c.port(at.key(name), number)
		if known && !names[name] {
			c.errorf(diag.UnknownValue, at.key(name), "spec.ports has no port of the name %s", quote(name)).hint("name one of the entry's ports")
		}
	}
}
