package ads

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/selvage-mesh/selvage/internal/scope"
)

// node is what a proxy says about itself in the first request of a stream.
type node struct {
	id        string
	namespace string
	pod       string
	envoy     scope.Version
	release   string // metadata ISTIO_VERSION: the release of the agent
	addresses []netip.Addr
	account   string // metadata SERVICE_ACCOUNT; nothing but the proxy's word
}

// maxNodeID bounds what a proxy may have us keep and log as its name.
const maxNodeID = 1024

// parseNode reads a node whose id is, as Istio's, TYPE~IP~POD.NAMESPACE~DOMAIN.
func parseNode(n *corev3.Node) (node, error) {
	if n == nil {
		return node{}, fmt.Errorf("the first request of a stream must carry the node")
	}
	id := n.GetId()
	bad := func(cause string) (node, error) {
		return node{}, fmt.Errorf("node id %.200q: %s; want sidecar~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN, as selvage-agent sends it", id, cause)
	}
	if len(id) > maxNodeID {
		return bad(fmt.Sprintf("it has %d bytes, more than %d", len(id), maxNodeID))
	}
	parts := strings.Split(id, "~")
	if len(parts) != 4 {
		return bad(fmt.Sprintf("it has %d parts instead of 4", len(parts)))
	}
	if parts[0] != "sidecar" {
		return bad(fmt.Sprintf("proxies of type %.40q are not served", parts[0]))
	}
	if ip, err := netip.ParseAddr(parts[1]); err != nil || ip.Zone() != "" {
		return bad(fmt.Sprintf("%.60q is no IP address", parts[1]))
	}
	dot := strings.LastIndexByte(parts[2], '.')
	if dot <= 0 || dot == len(parts[2])-1 || len(parts[2]) > 253+1+63 {
		return bad(fmt.Sprintf("%.60q does not name a pod and its namespace", parts[2]))
	}
	v := n.GetUserAgentBuildVersion().GetVersion()
	return node{
		id: id, pod: parts[2][:dot], namespace: parts[2][dot+1:],
		envoy:     scope.Version{Major: v.GetMajorNumber(), Minor: v.GetMinorNumber(), Patch: v.GetPatch()},
		release:   release(n.GetMetadata().GetFields()["ISTIO_VERSION"].GetStringValue()),
		account:   cmp.Or(n.GetMetadata().GetFields()["SERVICE_ACCOUNT"].GetStringValue(), "default"),
		addresses: addresses(n.GetMetadata().GetFields()["INSTANCE_IPS"].GetStringValue()),
	}, nil
}

// maxAddresses is how many addresses are read of a list that a proxy sends; the agent sends one of each family.
const maxAddresses = 8

// addresses reads the list in which a proxy says which addresses it has, as in Istio; what is none is left out.
func addresses(list string) (all []netip.Addr) {
	for i, s := range strings.SplitN(list, ",", maxAddresses+1) {
		if a, err := netip.ParseAddr(s); err == nil && i < maxAddresses {
			all = append(all, a)
		}
	}
	return all
}

// release is a metric label, so only what looks like a release is taken from a proxy.
func release(s string) string {
	if s == "" || len(s) > 32 {
		return "unknown"
	}
	for _, c := range []byte(s) {
		alphanumeric := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alphanumeric && strings.IndexByte(".-+_", c) < 0 {
			return "unknown"
		}
	}
	return s
}

func versionString(v scope.Version) string {
	if v == (scope.Version{}) {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}
