package intercept

import (
	"net/netip"
	"slices"
)

// The chains. They have Istio's names.
const (
	chainInbound    = "ISTIO_INBOUND"     // from PREROUTING: what arrives at the pod
	chainInRedirect = "ISTIO_IN_REDIRECT" // to the proxy's inbound port
	chainOutput     = "ISTIO_OUTPUT"      // from OUTPUT: what the pod sends
	chainRedirect   = "ISTIO_REDIRECT"    // to the proxy's outbound port
	verdictReturn   = "RETURN"
	verdictRedirect = "REDIRECT"
)

// family is one of the two IP versions, with the addresses that the rules treat specially.
type family struct {
	v6       bool
	loopback netip.Prefix
	// passthrough is the source address with which the proxy calls the pod's own application, so that such a connection is
	// not captured again: 127.0.0.6 or ::6, as in Istio. The control plane sets it on inbound clusters, the agent on probes.
	passthrough netip.Prefix
}

var (
	ipv4 = family{false, netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("127.0.0.6/32")}
	ipv6 = family{true, netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::6/128")}
)

// hook is a jump from a built-in chain to one of ours, for TCP.
type hook struct{ from, to string }

var hooks = []hook{{"PREROUTING", chainInbound}, {"OUTPUT", chainOutput}}

// chain is an ordered list of rules.
type chain struct {
	name  string
	rules []rule
}

// rule matches TCP connections; a zero field matches anything.
type rule struct {
	src        netip.Prefix
	dst        netip.Prefix
	notDst     bool   // match every destination but dst
	onLoopback bool   // leaves by the loopback device: the destination is an address of the pod itself
	in, out    string // the device that it came by or leaves by
	dport      uint16
	uid, gid   uint32
	target     string // a chain, verdictReturn or verdictRedirect
	toPort     uint16 // for verdictRedirect
}

// chains computes the rules of one family. The order inside a chain decides.
func chains(o Options, f family) []chain {
	return []chain{
		{chainInbound, inbound(o, f)},
		{chainInRedirect, []rule{{target: verdictRedirect, toPort: o.InboundPort}}},
		{chainOutput, outbound(o, f)},
		{chainRedirect, []rule{{target: verdictRedirect, toPort: o.ProxyPort}}},
	}
}

func inbound(o Options, f family) (rules []rule) {
	for _, device := range o.ExcludeInterfaces {
		rules = append(rules, rule{in: device, target: verdictReturn})
	}
	for _, device := range o.RerouteInterfaces {
		for _, r := range outboundChoice(o, f) {
			r.in = device
			rules = append(rules, r)
		}
		rules = append(rules, rule{in: device, target: verdictReturn})
	}
	for _, port := range o.notCaptured() {
		rules = append(rules, rule{dport: port, target: verdictReturn})
	}
	if o.InboundPorts.All {
		return append(rules, rule{target: chainInRedirect})
	}
	for _, port := range o.InboundPorts.List {
		rules = append(rules, rule{dport: port, target: chainInRedirect})
	}
	return rules
}

// notCaptured are the inbound ports that are left alone, sorted.
func (o Options) notCaptured() []uint16 {
	list := slices.Concat(o.ExcludeInboundPorts, o.OwnPorts)
	slices.Sort(list)
	return slices.Compact(list)
}

func outbound(o Options, f family) (rules []rule) {
	for _, device := range o.ExcludeInterfaces {
		rules = append(rules, rule{out: device, target: verdictReturn})
	}
	rules = append(rules, []rule{
		// The proxy hands an inbound connection to the application.
		{src: f.passthrough, onLoopback: true, target: verdictReturn},
		// The proxy chose this very pod as the endpoint of a call: the call enters it as any other would, by the inbound side.
		{dst: f.loopback, notDst: true, onLoopback: true, uid: o.ProxyUID, target: chainInRedirect},
		{dst: f.loopback, notDst: true, onLoopback: true, gid: o.ProxyGID, target: chainInRedirect},
		// Whatever else stays inside the pod (the application calling itself, anyone calling localhost) is not the mesh's.
		{onLoopback: true, target: verdictReturn},
		// What the proxy itself sends has been through the proxy.
		{uid: o.ProxyUID, target: verdictReturn},
		{gid: o.ProxyGID, target: verdictReturn},
	}...)
	return append(rules, outboundChoice(o, f)...)
}

// outboundChoice is the choice by port and destination.
func outboundChoice(o Options, f family) (rules []rule) {
	for _, port := range o.ExcludeOutboundPorts {
		rules = append(rules, rule{dport: port, target: verdictReturn})
	}
	for _, prefix := range o.ExcludeOutboundRanges {
		if prefix.Addr().Is6() == f.v6 {
			rules = append(rules, rule{dst: prefix, target: verdictReturn})
		}
	}
	if o.OutboundRanges.All {
		return append(rules, rule{target: chainRedirect})
	}
	for _, port := range o.IncludeOutboundPorts {
		rules = append(rules, rule{dport: port, target: chainRedirect})
	}
	for _, prefix := range o.OutboundRanges.List {
		if prefix.Addr().Is6() == f.v6 {
			rules = append(rules, rule{dst: prefix, target: chainRedirect})
		}
	}
	return rules
}
