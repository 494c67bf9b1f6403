package validate

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func destinationRule(c *check, d *networking.DestinationRule) {
	if host := spec.field("host"); c.required(host, d.GetHost()) {
		c.host(host, d.GetHost())
	}
	c.selector(spec.field("workloadSelector"), d.GetWorkloadSelector())
	c.trafficPolicy(spec.field("trafficPolicy"), d.GetTrafficPolicy())
	names := map[string]bool{}
	for i, s := range d.GetSubsets() {
		at := spec.field("subsets").index(i)
		if name := s.GetName(); c.required(at.field("name"), name) {
			c.name(at.field("name"), "a subset", name)
			if names[name] {
				c.errorf(diag.Duplicate, at.field("name"), "another subset is called %s too", quote(name))
			}
			names[name] = true
		}
		c.labels(at.field("labels"), s.GetLabels())
		c.trafficPolicy(at.field("trafficPolicy"), s.GetTrafficPolicy())
	}
	c.exportTo(spec.field("exportTo"), d.GetExportTo(), false)
	if d.GetWorkloadSelector() == nil {
		return
	}
	for i, n := range d.GetExportTo() {
		if n != "." && n != c.object.Namespace {
			c.errorf(diag.Contradiction, spec.field("exportTo").index(i), "a rule with a workloadSelector is for its own namespace alone").hint("write . or take workloadSelector out")
		}
	}
}

func (c *check) trafficPolicy(at path, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	if p.GetConnectionPool() == nil && p.GetOutlierDetection() == nil && p.GetLoadBalancer() == nil && p.GetTls() == nil && p.GetPortLevelSettings() == nil &&
		p.GetTunnel() == nil && p.GetProxyProtocol() == nil && p.GetRetryBudget() == nil {
		c.errorf(diag.NothingSaid, at, "it says nothing")
	}
	c.poolAndBalancer(at, p)
	c.tunnel(at.field("tunnel"), p.GetTunnel())
	if p.GetTunnel() != nil && p.GetProxyProtocol() != nil {
		c.errorf(diag.Contradiction, at.field("proxyProtocol"), "tunnel and proxyProtocol exclude each other")
	}
	if v := p.GetProxyProtocol().GetVersion(); v < networking.TrafficPolicy_ProxyProtocol_V1 || v > networking.TrafficPolicy_ProxyProtocol_V2 {
		c.errorf(diag.UnknownValue, at.field("proxyProtocol").field("version"), "it is %d, and must be V1 or V2", v)
	}
	for i, s := range p.GetPortLevelSettings() {
		where := at.field("portLevelSettings").index(i)
		if s.GetPort() == nil {
			c.errorf(diag.MissingValue, where.field("port"), "it is missing: settings of a port name the port")
		}
		if s.GetConnectionPool() == nil && s.GetOutlierDetection() == nil && s.GetLoadBalancer() == nil && s.GetTls() == nil {
			c.errorf(diag.NothingSaid, where, "it says nothing")
		}
		c.poolAndBalancer(where, s)
	}
}

// settings are what a policy has for all ports, and again for single ones.
type settings interface {
	GetConnectionPool() *networking.ConnectionPoolSettings
	GetOutlierDetection() *networking.OutlierDetection
	GetLoadBalancer() *networking.LoadBalancerSettings
	GetTls() *networking.ClientTLSSettings
}

func (c *check) poolAndBalancer(at path, s settings) {
	c.connectionPool(at.field("connectionPool"), s.GetConnectionPool())
	c.outlierDetection(at.field("outlierDetection"), s.GetOutlierDetection())
	c.loadBalancer(at.field("loadBalancer"), s.GetLoadBalancer(), s.GetOutlierDetection() != nil)
	c.clientTLS(at.field("tls"), s.GetTls())
}

func (c *check) tunnel(at path, t *networking.TrafficPolicy_TunnelSettings) {
	if t == nil {
		return
	}
	if p := t.GetProtocol(); p != "" && p != "CONNECT" && p != "POST" {
		c.errorf(diag.UnknownValue, at.field("protocol"), "it is %s", quote(p)).hint("write CONNECT or POST")
	}
	if host := at.field("targetHost"); c.required(host, t.GetTargetHost()) && !isAddress(t.GetTargetHost()) {
		c.fullName(host, t.GetTargetHost())
	}
	c.port(at.field("targetPort"), t.GetTargetPort())
}

func (c *check) connectionPool(at path, p *networking.ConnectionPoolSettings) {
	if p == nil {
		return
	}
	tcp, http := p.GetTcp(), p.GetHttp()
	if tcp == nil && http == nil {
		c.errorf(diag.NothingSaid, at, "it says nothing: tcp or http is needed")
	}
	where := at.field("tcp")
	c.notNegative(where.field("maxConnections"), int64(tcp.GetMaxConnections()))
	c.duration(where.field("connectTimeout"), tcp.GetConnectTimeout())
	c.duration(where.field("maxConnectionDuration"), tcp.GetMaxConnectionDuration())
	if tcp.GetIdleTimeout().AsDuration() != 0 { // 0s turns the timeout off
		c.duration(where.field("idleTimeout"), tcp.GetIdleTimeout())
	}
	c.duration(where.field("tcpKeepalive").field("time"), tcp.GetTcpKeepalive().GetTime())
	c.duration(where.field("tcpKeepalive").field("interval"), tcp.GetTcpKeepalive().GetInterval())
	c.httpPool(at.field("http"), http)
}

func (c *check) httpPool(at path, p *networking.ConnectionPoolSettings_HTTPSettings) {
	for _, n := range []struct {
		field string
		value int32
	}{
		{"http1MaxPendingRequests", p.GetHttp1MaxPendingRequests()}, {"http2MaxRequests", p.GetHttp2MaxRequests()},
		{"maxRequestsPerConnection", p.GetMaxRequestsPerConnection()}, {"maxRetries", p.GetMaxRetries()}, {"maxConcurrentStreams", p.GetMaxConcurrentStreams()},
	} {
		c.notNegative(at.field(n.field), int64(n.value))
	}
	c.duration(at.field("idleTimeout"), p.GetIdleTimeout())
	if p.GetUseClientProtocol() && p.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE {
		c.errorf(diag.Contradiction, at.field("useClientProtocol"), "the client's protocol cannot be kept where h2UpgradePolicy is UPGRADE")
	}
	if k := p.GetHttp2KeepAlive(); k != nil {
		where := at.field("http2KeepAlive")
		if k.GetInterval() == nil {
			c.errorf(diag.MissingValue, where.field("interval"), "it is missing")
		}
		if k.GetTimeout() == nil {
			c.errorf(diag.MissingValue, where.field("timeout"), "it is missing")
		}
		c.duration(where.field("interval"), k.GetInterval())
		c.duration(where.field("timeout"), k.GetTimeout())
	}
}

func (c *check) outlierDetection(at path, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	c.percent(at.field("maxEjectionPercent"), float64(o.GetMaxEjectionPercent()))
	c.percent(at.field("minHealthPercent"), float64(o.GetMinHealthPercent()))
	c.duration(at.field("interval"), o.GetInterval())
	c.duration(at.field("baseEjectionTime"), o.GetBaseEjectionTime())
	if o.GetConsecutiveErrors() != 0 { //nolint:staticcheck // the field is checked because it is deprecated
		c.warnf(diag.Deprecated, at.field("consecutiveErrors"), "the field is deprecated").hint("use consecutiveGatewayErrors or consecutive5xxErrors")
	}
	if !o.GetSplitExternalLocalOriginErrors() && o.GetConsecutiveLocalOriginFailures().GetValue() > 0 {
		c.errorf(diag.Contradiction, at.field("consecutiveLocalOriginFailures"), "local failures are not counted for themselves where splitExternalLocalOriginErrors is off").hint("set splitExternalLocalOriginErrors: true")
	}
}

func (c *check) clientTLS(at path, t *networking.ClientTLSSettings) {
	if t == nil {
		return
	}
	mode, named := t.GetMode(), t.GetCredentialName() != ""
	simple, mutual := mode == networking.ClientTLSSettings_SIMPLE, mode == networking.ClientTLSSettings_MUTUAL
	if rest, ok := strings.CutPrefix(t.GetCredentialName(), "configmap://"); ok {
		namespace, name, parted := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		switch {
		case rest == "" || parted && (name == "" || strings.Contains(name, "/")):
			c.errorf(diag.InvalidName, at.field("credentialName"), "%s names no ConfigMap", quote(t.GetCredentialName())).hint("write configmap://NAME")
		case parted && namespace != c.object.Namespace:
			c.errorf(diag.NotSupported, at.field("credentialName"), "a ConfigMap of another namespace is not read").hint("copy it into the namespace of the rule")
		}
	}
	if t.GetInsecureSkipVerify().GetValue() {
		for _, f := range []struct {
			name string
			set  bool
		}{
			{"caCertificates", (simple || mutual) && t.GetCaCertificates() != ""}, {"credentialName", simple && named},
			{"subjectAltNames", (simple || mutual) && len(t.GetSubjectAltNames()) > 0},
		} {
			if f.set {
				c.errorf(diag.Contradiction, at.field(f.name), "with insecureSkipVerify the server's certificate is not checked, by this neither")
			}
		}
	}
	if (simple || mutual) && named {
		for _, f := range []struct{ name, value string }{
			{"clientCertificate", t.GetClientCertificate()}, {"privateKey", t.GetPrivateKey()}, {"caCertificates", t.GetCaCertificates()}, {"caCrl", t.GetCaCrl()},
		} {
			if f.value != "" {
				c.errorf(diag.Contradiction, at.field(f.name), "credentialName brings the certificates, so no files are named")
			}
		}
		return
	}
	if mutual && (t.GetClientCertificate() == "" || t.GetPrivateKey() == "") {
		c.errorf(diag.InvalidTLS, at, "mode MUTUAL needs clientCertificate and privateKey, or credentialName")
	}
}
