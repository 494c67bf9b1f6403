package validate

import (
	networking "istio.io/api/networking/v1alpha3"
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
			c.subset(at.field("name"), name)
			if names[name] {
				c.errorf(at.field("name"), "another subset is called %s too", quote(name))
			}
			names[name] = true
		}
		c.labels(at.field("labels"), s.GetLabels())
		c.trafficPolicy(at.field("trafficPolicy"), s.GetTrafficPolicy())
	}
}

func (c *check) trafficPolicy(at path, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	c.connectionPool(at.field("connectionPool"), p.GetConnectionPool())
	c.outlierDetection(at.field("outlierDetection"), p.GetOutlierDetection())
	c.clientTLS(at.field("tls"), p.GetTls())
	for i, s := range p.GetPortLevelSettings() {
		where := at.field("portLevelSettings").index(i)
		c.port(where.field("port").field("number"), s.GetPort().GetNumber())
		c.connectionPool(where.field("connectionPool"), s.GetConnectionPool())
		c.outlierDetection(where.field("outlierDetection"), s.GetOutlierDetection())
		c.clientTLS(where.field("tls"), s.GetTls())
	}
}

func (c *check) connectionPool(at path, p *networking.ConnectionPoolSettings) {
	tcp, http := p.GetTcp(), p.GetHttp()
	c.notNegative(at.field("tcp").field("maxConnections"), int64(tcp.GetMaxConnections()))
	c.duration(at.field("tcp").field("connectTimeout"), tcp.GetConnectTimeout())
	c.notNegative(at.field("http").field("http1MaxPendingRequests"), int64(http.GetHttp1MaxPendingRequests()))
	c.notNegative(at.field("http").field("http2MaxRequests"), int64(http.GetHttp2MaxRequests()))
	c.notNegative(at.field("http").field("maxRequestsPerConnection"), int64(http.GetMaxRequestsPerConnection()))
	c.notNegative(at.field("http").field("maxRetries"), int64(http.GetMaxRetries()))
	c.notNegative(at.field("http").field("maxConcurrentStreams"), int64(http.GetMaxConcurrentStreams()))
	c.duration(at.field("http").field("idleTimeout"), http.GetIdleTimeout())
}

func (c *check) outlierDetection(at path, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	c.percent(at.field("maxEjectionPercent"), float64(o.GetMaxEjectionPercent()))
	c.percent(at.field("minHealthPercent"), float64(o.GetMinHealthPercent()))
	c.duration(at.field("interval"), o.GetInterval())
	c.duration(at.field("baseEjectionTime"), o.GetBaseEjectionTime())
}

func (c *check) clientTLS(at path, t *networking.ClientTLSSettings) {
	if t.GetMode() != networking.ClientTLSSettings_MUTUAL || t.GetCredentialName() != "" {
		return
	}
	if t.GetClientCertificate() == "" || t.GetPrivateKey() == "" {
		c.errorf(at, "mode MUTUAL needs clientCertificate and privateKey, or credentialName")
	}
}
