package validate

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func serviceEntry(c *check, s *networking.ServiceEntry) {
	hosts := spec.field("hosts")
	if len(s.GetHosts()) == 0 {
		c.errorf(hosts, "a service entry needs at least one host")
	}
	for i, host := range s.GetHosts() {
		if c.host(hosts.index(i), host); host == "*" {
			c.errorf(hosts.index(i), "* alone is not allowed: it would take every host over")
		}
	}
	for i, a := range s.GetAddresses() {
		c.addressOrBlock(spec.field("addresses").index(i), a)
	}
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, p := range s.GetPorts() {
		at := spec.field("ports").index(i)
		c.port(at.field("number"), p.GetNumber())
		if numbers[p.GetNumber()] {
			c.errorf(at.field("number"), "port %d is there twice", p.GetNumber())
		}
		if name := p.GetName(); c.required(at.field("name"), name) && names[name] {
			c.errorf(at.field("name"), "another port is called %s too", quote(name))
		}
		names[p.GetName()], numbers[p.GetNumber()] = true, true
		if p.GetProtocol() != "" {
			c.protocol(at.field("protocol"), p.GetProtocol())
		}
		if p.GetTargetPort() != 0 {
			c.port(at.field("targetPort"), p.GetTargetPort())
		}
	}
	c.endpoints(s)
}

func (c *check) endpoints(s *networking.ServiceEntry) {
	at := spec.field("endpoints")
	if s.GetWorkloadSelector() != nil && len(s.GetEndpoints()) > 0 {
		c.errorf(at, "endpoints and workloadSelector exclude each other")
	}
	switch s.GetResolution() {
	case networking.ServiceEntry_NONE:
		if len(s.GetEndpoints()) > 0 {
			c.errorf(at, "resolution NONE sends requests where they were going, so it has no endpoints")
		}
	case networking.ServiceEntry_STATIC:
		for i, e := range s.GetEndpoints() {
			if a := e.GetAddress(); a != "" && !strings.HasPrefix(a, "unix://") && !isAddress(a) {
				c.errorf(at.index(i).field("address"), "%s is no IP address, and resolution STATIC asks no DNS", quote(a))
			}
		}
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		for i, host := range s.GetHosts() {
			if len(s.GetEndpoints()) == 0 && strings.HasPrefix(host, "*") {
				c.errorf(spec.field("hosts").index(i), "%s has a wildcard, which DNS cannot resolve: name endpoints or another resolution", quote(host))
			}
		}
	case networking.ServiceEntry_DYNAMIC_DNS: // the host of the request is looked up: a wildcard is what it is for
	}
}
