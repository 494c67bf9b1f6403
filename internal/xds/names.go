package xds

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// ClusterName is the name of the outbound cluster of a service port, or of a subset of its endpoints, under which these are sent too:
// outbound|80|v1|web.shop.svc.cluster.local, as Istio's dashboards and tools expect it.
func ClusterName(k mesh.EndpointKey) string {
	return "outbound|" + port(k.Port) + "|" + k.Subset() + "|" + string(k.Host)
}

// ParseClusterName is the inverse of ClusterName. It reports false for every other name. A proxy that
// connects has it called for every service port several times, so it makes no garbage.
func ParseClusterName(name string) (mesh.EndpointKey, bool) {
	rest, ok := strings.CutPrefix(name, "outbound|")
	digits, rest, found := strings.Cut(rest, "|")
	subset, host, whole := strings.Cut(rest, "|")
	if !ok || !found || !whole || host == "" || strings.Contains(host, "|") {
		return mesh.EndpointKey{}, false
	}
	number, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || len(digits) > 1 && digits[0] == '0' { // one name for one key
		return mesh.EndpointKey{}, false
	}
	return mesh.EndpointKey{Host: mesh.Host(host), Port: uint32(number)}.OfSubset(subset, ""), true
}

// hostResource is the name of a virtual host that is a resource of its own: Envoy takes what stands before the last / for the
// name of its route configuration.
func hostResource(route, host string) string { return route + "/" + strings.ReplaceAll(host, "/", "_") }

func inboundName(number uint32) string { return "inbound|" + port(number) + "||" }

// sni is the server name that a client shows for a service port: in a ClientHello there is no room for a cluster's name.
func sni(k mesh.EndpointKey) string {
	return "outbound_." + port(k.Port) + "_." + k.Subset() + "_." + string(k.Host)
}

func exactListenerName(ip netip.Addr, number uint32) string { return ip.String() + "_" + port(number) }

func port(number uint32) string { return strconv.FormatUint(uint64(number), 10) }
