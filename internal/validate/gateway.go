package validate

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func gateway(c *check, g *networking.Gateway) {
	if c.object.Name != "" && !isLabel(c.object.Name) && !c.derived() {
		c.errorf(diag.InvalidName, objectMeta.field("name"), "%s is no name of a gateway: virtual services name it in NAMESPACE/NAME", quote(c.object.Name))
	}
	servers := spec.field("servers")
	if len(g.GetServers()) == 0 {
		c.errorf(diag.MissingValue, servers, "a gateway needs at least one server")
	}
	names := map[string]bool{}
	for i, s := range g.GetServers() {
		at := servers.index(i)
		c.serverHosts(at.field("hosts"), s.GetHosts())
		c.bind(at.field("bind"), s.GetBind())
		port := at.field("port")
		if s.GetPort() == nil {
			c.errorf(diag.MissingValue, port, "it is missing")
			continue
		}
		c.serverPort(port, s.GetPort(), strings.HasPrefix(s.GetBind(), unixPrefix))
		if name := s.GetPort().GetName(); c.required(port.field("name"), name) {
			if names[name] {
				c.errorf(diag.Duplicate, port.field("name"), "another server's port is called %s too: names are of one port", quote(name))
			}
			names[name] = true
		}
		c.gatewayTLS(at.field("tls"), s)
	}
	for name, value := range sorted(g.GetSelector()) {
		if !isLabelName(name) || value != "" && !qualified.MatchString(value) {
			c.warnf(diag.InvalidLabels, spec.field("selector").key(name), "no pod can have the label %s: nothing is selected", quote(name+"="+value))
		}
	}
}

func (c *check) serverHosts(at path, hosts []string) {
	if len(hosts) == 0 {
		c.errorf(diag.MissingValue, at, "a server needs at least one host")
	}
	for i, host := range hosts {
		where := at.index(i)
		if namespace, name, parted := strings.Cut(host, "/"); parted {
			c.hostNamespace(where, host, namespace)
			host = name
		}
		c.exposed(where, host, true)
	}
}

// hostNamespace checks what stands before the slash of [NAMESPACE/]HOST.
func (c *check) hostNamespace(at path, host, namespace string) {
	switch {
	case namespace == "*" || namespace == ".":
	case namespace == "~" && c.derived(): // no route is attached
	case !isLabel(namespace):
		c.errorf(diag.InvalidName, at, "%s names no namespace before the slash", quote(host)).hint("write a name, * or . before the slash")
	}
}

// exposed checks a host that gateways and sidecars take in: a whole name, since a short one would be another in each namespace.
func (c *check) exposed(at path, host string, addresses bool) {
	switch {
	case addresses && isAddress(host):
	case host != "*" && host != "" && !strings.Contains(host, "."):
		c.errorf(diag.InvalidHost, at, "%s is a short name", quote(host)).hint("write the whole name, such as web.shop.svc.cluster.local")
	case partialWildcard(host):
		c.errorf(diag.InvalidHost, at, "%s has a wildcard that is not a whole part of the name", quote(host)).hint("write *.example.org")
	default:
		c.host(at, host)
	}
}

func (c *check) serverPort(at path, p *networking.Port, socket bool) {
	if p.GetNumber() > 0 || !socket {
		c.port(at.field("number"), p.GetNumber())
	}
	if p.GetNumber() > 0 && socket {
		c.errorf(diag.Contradiction, at.field("number"), "the server listens at a Unix socket, which has no port").hint("write 0")
	}
	c.protocol(at.field("protocol"), p.GetProtocol())
	if p.GetTargetPort() > 0 { //nolint:staticcheck // the field is checked because it is deprecated
		c.errorf(diag.NotSupported, at.field("targetPort"), "it has no meaning in a gateway, whose Service maps ports")
	}
}

// bind checks where a listener listens.
func (c *check) bind(at path, bind string) {
	if name, ok := strings.CutPrefix(bind, unixPrefix); ok {
		c.socket(at, name)
	} else if bind != "" {
		c.address(at, bind)
	}
}

func (c *check) gatewayTLS(at path, s *networking.Server) {
	tls, p := s.GetTls(), protocolOf(s.GetPort().GetProtocol())
	switch {
	case tls == nil && p.tls():
		c.errorf(diag.InvalidTLS, at, "it is missing: a server of protocol %s needs TLS settings", p).hint("add tls with a mode, or use protocol HTTP or TCP")
	case tls == nil:
		return
	case p.tls() || !p.known():
	case !p.http():
		c.errorf(diag.InvalidTLS, at, "protocol %s has no TLS settings", p).hint("use protocol TLS")
	case tls.GetMode() != networking.ServerTLSSettings_PASSTHROUGH && tls.GetMode() != networking.ServerTLSSettings_AUTO_PASSTHROUGH ||
		tls.GetCaCertificates() != "" || tls.GetPrivateKey() != "" || tls.GetServerCertificate() != "":
		c.errorf(diag.InvalidTLS, at, "protocol %s is in plain text, so only httpsRedirect has a meaning", p).hint("use protocol HTTPS")
	}
	if tls.GetHttpsRedirect() && !p.http() {
		c.warnf(diag.NoEffect, at.field("httpsRedirect"), "only servers of HTTP send clients to HTTPS")
	}
	c.serverTLS(at, tls)
}
