package validate

import (
	"net"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func sidecar(c *check, s *networking.Sidecar) {
	c.workloadSelector(s.GetWorkloadSelector())
	if len(s.GetEgress()) == 0 && len(s.GetIngress()) == 0 && s.GetOutboundTrafficPolicy() == nil && s.GetInboundConnectionPool() == nil {
		c.errorf(diag.NothingSaid, spec, "it says nothing: ingress, egress, outboundTrafficPolicy or inboundConnectionPool is needed")
	}
	ports := map[uint32]bool{}
	for i, in := range s.GetIngress() {
		at := spec.field("ingress").index(i)
		if in.GetPort() == nil {
			c.errorf(diag.MissingValue, at.field("port"), "it is missing")
			continue
		}
		c.ingress(at, in)
		if n := in.GetPort().GetNumber(); ports[n] && n > 0 {
			c.errorf(diag.Duplicate, at.field("port").field("number"), "another ingress listener has port %d too", n)
		}
		ports[in.GetPort().GetNumber()] = true
	}
	c.egress(s.GetEgress())
	c.connectionPool(spec.field("inboundConnectionPool"), s.GetInboundConnectionPool())
	c.outbound(spec.field("outboundTrafficPolicy"), s.GetOutboundTrafficPolicy())
}

func (c *check) ingress(at path, in *networking.IstioIngressListener) {
	c.sidecarPort(at.field("port"), in.GetPort())
	c.port(at.field("port").field("number"), in.GetPort().GetNumber())
	if in.GetBind() != "" {
		c.address(at.field("bind"), in.GetBind())
	}
	c.defaultEndpoint(at.field("defaultEndpoint"), in.GetDefaultEndpoint())
	c.connectionPool(at.field("connectionPool"), in.GetConnectionPool())
	p := protocolOf(in.GetPort().GetProtocol())
	if in.GetConnectionPool().GetHttp() != nil && !p.http() {
		c.warnf(diag.NoEffect, at.field("connectionPool").field("http"), "the port's protocol is %s, so only the settings of tcp are used", quote(in.GetPort().GetProtocol()))
	}
	tls := in.GetTls()
	if tls == nil {
		return
	}
	where := at.field("tls")
	for _, f := range []given{
		{"subjectAltNames", len(tls.GetSubjectAltNames()) > 0}, {"httpsRedirect", tls.GetHttpsRedirect()}, {"credentialName", tls.GetCredentialName() != ""},
		{"credentialNames", len(tls.GetCredentialNames()) > 0}, {"tlsCertificates", len(tls.GetTlsCertificates()) > 0},
	} {
		if f.set {
			c.errorf(diag.NotSupported, where.field(f.name), "sidecars do not have it")
		}
	}
	if m := tls.GetMode(); m == networking.ServerTLSSettings_ISTIO_MUTUAL || m == networking.ServerTLSSettings_AUTO_PASSTHROUGH {
		c.errorf(diag.NotSupported, where.field("mode"), "sidecars do not have mode %s here", m).hint("use SIMPLE or MUTUAL; the mesh's own mTLS is told by a PeerAuthentication")
	}
	if !p.tls() {
		c.errorf(diag.InvalidTLS, where, "protocol %s has no TLS settings", quote(in.GetPort().GetProtocol())).hint("use protocol HTTPS or TLS")
	}
	c.serverTLS(where, tls)
}

func (c *check) sidecarPort(at path, p *networking.SidecarPort) {
	if p.GetName() != "" {
		c.name(at.field("name"), "a port", p.GetName())
	}
	if p.GetProtocol() != "" {
		c.protocol(at.field("protocol"), p.GetProtocol())
	}
	if p.GetTargetPort() > 0 { //nolint:staticcheck // the field is checked because it is deprecated
		c.errorf(diag.NotSupported, at.field("targetPort"), "it has no meaning in a sidecar: defaultEndpoint says where connections go")
	}
}

// defaultEndpoint is where an ingress listener sends connections: to the pod's loopback, to its own address, or to a socket.
func (c *check) defaultEndpoint(at path, endpoint string) {
	if endpoint == "" {
		return
	}
	if name, ok := strings.CutPrefix(endpoint, unixPrefix); ok {
		c.socket(at, name)
		return
	}
	host, port, err := net.SplitHostPort(endpoint)
	n, notNumber := strconv.ParseUint(port, 10, 16)
	if err != nil || notNumber != nil || n == 0 || !slices.Contains([]string{"", "127.0.0.1", "0.0.0.0", "::1", "::"}, host) {
		c.errorf(diag.InvalidAddress, at, "%s is none of 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT and unix://PATH", quote(endpoint)).hint("write 127.0.0.1:PORT for the pod's loopback, or 0.0.0.0:PORT for its own address")
	}
}

func (c *check) egress(listeners []*networking.IstioEgressListener) {
	ports, sockets := map[uint32]bool{}, map[string]bool{}
	for i, out := range listeners {
		at := spec.field("egress").index(i)
		switch p := out.GetPort(); {
		case p == nil && i < len(listeners)-1:
			c.errorf(diag.Contradiction, at.field("port"), "it is missing: only the last listener takes all other ports").hint("name the port, or move the listener to the end")
		case p == nil:
		default:
			c.sidecarPort(at.field("port"), p)
			c.egressPort(at, out)
			if n := p.GetNumber(); n > 0 && ports[n] {
				c.errorf(diag.Duplicate, at.field("port").field("number"), "another egress listener has port %d too", n)
			} else if n == 0 && sockets[out.GetBind()] {
				c.errorf(diag.Duplicate, at.field("bind"), "another egress listener has the socket %s too", quote(out.GetBind()))
			}
			if ports[p.GetNumber()] = true; p.GetNumber() == 0 {
				sockets[out.GetBind()] = true
			}
		}
		c.egressHosts(at.field("hosts"), out.GetHosts())
	}
}

func (c *check) egressPort(at path, out *networking.IstioEgressListener) {
	name, socket := strings.CutPrefix(out.GetBind(), unixPrefix)
	switch {
	case out.GetPort().GetNumber() > 0:
		c.port(at.field("port").field("number"), out.GetPort().GetNumber())
		if out.GetBind() != "" {
			c.address(at.field("bind"), out.GetBind())
		}
	case !socket:
		c.errorf(diag.InvalidPort, at.field("port").field("number"), "it is 0, which only a Unix socket may be").hint("write the port's number, or bind: unix://PATH")
	default:
		c.socket(at.field("bind"), name)
		if m := out.GetCaptureMode(); m != networking.CaptureMode_DEFAULT && m != networking.CaptureMode_NONE {
			c.errorf(diag.Contradiction, at.field("captureMode"), "nothing is captured at a Unix socket").hint("take it out, or write NONE")
		}
	}
}

func (c *check) egressHosts(at path, hosts []string) {
	if len(hosts) == 0 {
		c.errorf(diag.MissingValue, at, "an egress listener needs at least one host").hint("write ./* for the own namespace")
	}
	seen, whole, namespaces := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i, host := range hosts {
		where := at.index(i)
		namespace, name, parted := strings.Cut(host, "/")
		if !parted || namespace == "" || name == "" {
			c.errorf(diag.InvalidHost, where, "%s is not of the form NAMESPACE/HOST", quote(host)).hint("write ./%s for a host of the own namespace", short(host))
			continue
		}
		excluded, not := strings.CutPrefix(namespace, "~") // ~NAMESPACE takes hosts out, ~ is nobody's
		if !not || excluded != "" {
			c.hostNamespace(where, host, excluded)
		}
		c.exposed(where, name, false)
		if not {
			continue
		}
		if namespace == "." {
			namespace = c.object.Namespace
		}
		key := namespace + "/" + name
		if seen[key] || whole[namespace] || name == "*" && namespaces[namespace] {
			c.warnf(diag.Duplicate, where, "another entry has the hosts of %s too", quote(host))
		}
		seen[key], namespaces[namespace] = true, true
		whole[namespace] = whole[namespace] || name == "*"
	}
	if whole["*"] && len(namespaces) > 1 {
		c.warnf(diag.NoEffect, at, "*/* has all hosts, so the other entries add none").hint("keep */* alone, or take it out")
	}
}

func (c *check) outbound(at path, p *networking.OutboundTrafficPolicy) {
	mode := p.GetMode()
	if _, known := networking.OutboundTrafficPolicy_Mode_name[int32(mode)]; !known || mode.String() == "ALLOW_ANY_DYNAMIC_DNS" {
		c.errorf(diag.NotSupported, at.field("mode"), "sidecars do not have mode %s: it is the mesh's", mode).hint("write ALLOW_ANY or REGISTRY_ONLY, or set it in the mesh configuration")
		return
	}
	proxy := p.GetEgressProxy()
	if proxy == nil {
		return
	}
	where := at.field("egressProxy")
	if mode != networking.OutboundTrafficPolicy_ALLOW_ANY {
		c.errorf(diag.Contradiction, where, "mode %s sends nothing on that a proxy could take", mode).hint("write mode: ALLOW_ANY")
		return
	}
	if proxy.GetPort() == nil {
		c.errorf(diag.MissingValue, where.field("port"), "it is missing")
	}
	if problem := hostProblem(proxy.GetHost(), true); problem == "" {
		c.fullName(where.field("host"), proxy.GetHost())
	}
	c.destination(where, proxy)
}
