package validate

import (
	"net/netip"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func sidecar(c *check, s *networking.Sidecar) {
	c.labels(spec.field("workloadSelector").field("labels"), s.GetWorkloadSelector().GetLabels())
	for i, in := range s.GetIngress() {
		at := spec.field("ingress").index(i)
		if in.GetPort() == nil {
			c.errorf(at.field("port"), "it is missing")
		} else {
			c.port(at.field("port").field("number"), in.GetPort().GetNumber())
		}
		c.defaultEndpoint(at.field("defaultEndpoint"), in.GetDefaultEndpoint())
	}
	for i, out := range s.GetEgress() {
		hosts := spec.field("egress").index(i).field("hosts")
		if len(out.GetHosts()) == 0 {
			c.errorf(hosts, "an egress listener needs at least one host, such as ./* for the own namespace")
		}
		for j, host := range out.GetHosts() {
			if namespace, name, ok := strings.Cut(host, "/"); !ok || namespace == "" || name == "" {
				c.errorf(hosts.index(j), "%s is not of the form NAMESPACE/HOST", quote(host))
				continue
			}
			c.namespacedHost(hosts.index(j), host)
		}
	}
	c.connectionPool(spec.field("inboundConnectionPool"), s.GetInboundConnectionPool())
}

// defaultEndpoint is where an ingress listener sends connections: to the pod's loopback, to its own address, or to a socket.
func (c *check) defaultEndpoint(at path, endpoint string) {
	if endpoint == "" || strings.HasPrefix(endpoint, "unix://") {
		return
	}
	a, err := netip.ParseAddrPort(endpoint)
	if err != nil || a.Port() == 0 || !a.Addr().IsLoopback() && !a.Addr().IsUnspecified() {
		c.errorf(at, "%s is none of 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT and unix://PATH", quote(endpoint))
	}
}
