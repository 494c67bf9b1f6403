// Package intercept makes a pod's TCP traffic pass through its proxy: it computes the rules from checked options, installs them in
// one transaction with iptables-restore or nft, reads them back, and proves them by a real connection.
//
// The chains have Istio's names, because people look for them. Everything that comes from outside is parsed into numbers and
// addresses first, and commands get their input on stdin: no text of a pod reaches a shell or an argument list.
package intercept

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Ports is a set of TCP ports: all, or those listed.
type Ports struct {
	All  bool
	List []uint16 // sorted, each once
}

// Ranges is a set of addresses: all, or those listed.
type Ranges struct {
	All  bool
	List []netip.Prefix // masked, sorted, each once; IPv4 and IPv6
}

// Options say what is captured and what is not.
type Options struct {
	ProxyPort   uint16 // where outbound connections go: Envoy's virtualOutbound
	InboundPort uint16 // where inbound connections go: Envoy's virtualInbound
	ProxyUID    uint32 // whose connections are never captured: the proxy's own
	ProxyGID    uint32

	InboundPorts          Ports // ports of the pod that are captured
	ExcludeInboundPorts   []uint16
	OutboundRanges        Ranges // destinations that are captured
	ExcludeOutboundRanges []netip.Prefix
	ExcludeOutboundPorts  []uint16
	IncludeOutboundPorts  []uint16 // captured wherever they lead, but for the excluded ranges

	// OwnPorts are where the agent and Envoy answer themselves: the kubelet, and whoever collects metrics, reach them whatever else is
	// captured.
	OwnPorts []uint16

	ExcludeInterfaces []string // network devices whose traffic is left alone, in both directions
	RerouteInterfaces []string // devices of virtual machines or inner containers: what comes in by them is outbound traffic
}

// ParsePorts reads a comma-separated list of ports from 1 to 65535; "*" is all of them and "" is none.
func ParsePorts(s string) (Ports, error) {
	if strings.TrimSpace(s) == "*" {
		return Ports{All: true}, nil
	}
	list, err := ParsePortList(s)
	return Ports{List: list}, err
}

// ParsePortList is ParsePorts where "*" makes no sense.
func ParsePortList(s string) (list []uint16, err error) {
	for _, item := range items(s) {
		n, err := strconv.ParseUint(item, 10, 16)
		if err != nil || n == 0 || item[0] == '+' {
			return nil, fmt.Errorf("parse port %q: want a number from 1 to 65535", item)
		}
		list = append(list, uint16(n))
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// ParseRanges reads a comma-separated list of CIDRs or addresses, IPv4 or IPv6; "*" is every address and "" is none.
func ParseRanges(s string) (Ranges, error) {
	if strings.TrimSpace(s) == "*" {
		return Ranges{All: true}, nil
	}
	list, err := ParseRangeList(s)
	return Ranges{List: list}, err
}

// ParseRangeList is ParseRanges where "*" makes no sense. Host bits are cleared: 10.1.2.3/8 is 10.0.0.0/8.
func ParseRangeList(s string) (list []netip.Prefix, err error) {
	for _, item := range items(s) {
		prefix, err := netip.ParsePrefix(item)
		if err != nil {
			addr, addrErr := netip.ParseAddr(item)
			if addrErr != nil || addr.Zone() != "" {
				return nil, fmt.Errorf("parse address range %q: want a CIDR such as 10.0.0.0/8 or 2001:db8::/32, or an address", item)
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		if prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("parse address range %q: write it as IPv4", item)
		}
		list = append(list, prefix.Masked())
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(list), nil
}

// interfaceName is a name of a network device that needs no quoting anywhere.
var interfaceName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`)

// ParseInterfaces reads a comma-separated list of names of network devices, which have at most 15 letters, digits, dots, dashes and
// underscores.
func ParseInterfaces(s string) (list []string, err error) {
	for _, item := range items(s) {
		if !interfaceName.MatchString(item) {
			return nil, fmt.Errorf("parse interface %q: want the name of a network device such as eth1", item)
		}
		list = append(list, item)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// items splits at commas and drops white space around the parts, and empty parts.
func items(s string) (list []string) {
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// Validate says what makes the options useless or dangerous.
func (o Options) Validate() error {
	switch {
	case o.ProxyPort == 0 || o.InboundPort == 0:
		return errors.New("the proxy's ports must be from 1 to 65535")
	case o.ProxyPort == o.InboundPort:
		return fmt.Errorf("the proxy's outbound and inbound port are both %d", o.ProxyPort)
	case o.ProxyUID == 0 || o.ProxyGID == 0:
		return errors.New("the proxy must not run as user or group 0: every program of that user would bypass the mesh")
	}
	return nil
}
