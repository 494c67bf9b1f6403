package xds

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// ClusterName is the name of the outbound cluster of a service port, under which its endpoints are sent too:
// outbound|80||web.shop.svc.cluster.local, as Istio's dashboards and tools expect it.
func ClusterName(k mesh.EndpointKey) string {
	return "outbound|" + port(k.Port) + "||" + string(k.Host)
}

// ParseClusterName is the inverse of ClusterName. It reports false for every other name.
func ParseClusterName(name string) (mesh.EndpointKey, bool) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 || parts[0] != "outbound" || parts[2] != "" || parts[3] == "" {
		return mesh.EndpointKey{}, false
	}
	number, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil || port(uint32(number)) != parts[1] { // no sign, no leading zero: one name for one key
		return mesh.EndpointKey{}, false
	}
	return mesh.EndpointKey{Host: mesh.Host(parts[3]), Port: uint32(number)}, true
}

func inboundName(number uint32) string { return "inbound|" + port(number) + "||" }

// sni is the server name that a client shows for a service port: in a ClientHello there is no room for a cluster's name.
func sni(k mesh.EndpointKey) string { return "outbound_." + port(k.Port) + "_._." + string(k.Host) }

func exactListenerName(ip netip.Addr, number uint32) string { return ip.String() + "_" + port(number) }

func port(number uint32) string { return strconv.FormatUint(uint64(number), 10) }
