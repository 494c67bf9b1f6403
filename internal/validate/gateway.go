package validate

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func gateway(c *check, g *networking.Gateway) {
	servers := spec.field("servers")
	if len(g.GetServers()) == 0 {
		c.errorf(servers, "a gateway needs at least one server")
	}
	names := map[string]bool{}
	for i, s := range g.GetServers() {
		at := servers.index(i)
		port := at.field("port")
		if s.GetPort() == nil {
			c.errorf(port, "it is missing")
			continue
		}
		c.port(port.field("number"), s.GetPort().GetNumber())
		c.protocol(port.field("protocol"), s.GetPort().GetProtocol())
		if name := s.GetPort().GetName(); c.required(port.field("name"), name) {
			if names[name] {
				c.errorf(port.field("name"), "another server's port is called %s too: names are of one port", quote(name))
			}
			names[name] = true
		}
		if len(s.GetHosts()) == 0 {
			c.errorf(at.field("hosts"), "a server needs at least one host")
		}
		for j, host := range s.GetHosts() {
			c.namespacedHost(at.field("hosts").index(j), host)
		}
		c.serverTLS(at.field("tls"), s)
	}
	c.labels(spec.field("selector"), g.GetSelector())
}

// namespacedHost checks [NAMESPACE/]HOST, where NAMESPACE may be * or a dot.
func (c *check) namespacedHost(at path, host string) {
	namespace, name, ok := strings.Cut(host, "/")
	if !ok {
		c.host(at, host)
		return
	}
	if namespace == "" || strings.ContainsAny(namespace, " \t\n") {
		c.errorf(at, "%s names no namespace before the slash: a name, * or . stands there", quote(host))
	}
	c.host(at, name)
}

// serverTLS checks what a server needs to end TLS.
func (c *check) serverTLS(at path, s *networking.Server) {
	tls, protocol := s.GetTls(), strings.ToUpper(s.GetPort().GetProtocol())
	if tls == nil {
		if protocol == "HTTPS" || protocol == "TLS" {
			c.errorf(at, "it is missing: a server of protocol %s needs TLS settings", protocol)
		}
		return
	}
	if protocol != "HTTPS" && protocol != "TLS" {
		return
	}
	mode := tls.GetMode()
	switch mode {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_OPTIONAL_MUTUAL:
	default:
		return
	}
	if tls.GetCredentialName() != "" || len(tls.GetCredentialNames()) > 0 || len(tls.GetTlsCertificates()) > 0 {
		return
	}
	if tls.GetServerCertificate() == "" || tls.GetPrivateKey() == "" {
		c.errorf(at, "mode %s needs credentialName, or serverCertificate and privateKey", mode)
	}
	if mode != networking.ServerTLSSettings_SIMPLE && tls.GetCaCertificates() == "" && tls.GetCaCertCredentialName() == "" {
		c.errorf(at.field("caCertificates"), "it is missing: mode %s checks the certificates of clients", mode)
	}
}
