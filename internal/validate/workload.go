package validate

import (
	"regexp"

	networking "istio.io/api/networking/v1alpha3"
	networkingbeta "istio.io/api/networking/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func workloadEntry(c *check, w *networking.WorkloadEntry) { c.endpoint(spec, w, nil, true) }

func workloadGroup(c *check, g *networking.WorkloadGroup) {
	if g.GetTemplate() == nil {
		c.errorf(diag.MissingValue, spec.field("template"), "it is missing: it is what the group's workloads are made of")
	}
	c.labels(spec.field("metadata").field("labels"), g.GetMetadata().GetLabels())
	if g.GetProbe() != nil {
		c.probe(spec.field("probe"), g.GetProbe())
	}
}

// probeHeader is the name of a header as Kubernetes' probes have them.
var probeHeader = regexp.MustCompile(`^[-A-Za-z0-9]+$`)

func (c *check) probe(at path, p *networking.ReadinessProbe) {
	for _, n := range []struct {
		field string
		value int32
	}{
		{"periodSeconds", p.GetPeriodSeconds()}, {"initialDelaySeconds", p.GetInitialDelaySeconds()}, {"timeoutSeconds", p.GetTimeoutSeconds()},
		{"successThreshold", p.GetSuccessThreshold()}, {"failureThreshold", p.GetFailureThreshold()},
	} {
		c.notNegative(at.field(n.field), int64(n.value))
	}
	switch m := p.GetHealthCheckMethod().(type) {
	case *networking.ReadinessProbe_HttpGet:
		where := at.field("httpGet")
		c.port(where.field("port"), m.HttpGet.GetPort())
		if s := m.HttpGet.GetScheme(); s != "" && s != "HTTP" && s != "HTTPS" {
			c.errorf(diag.UnknownValue, where.field("scheme"), "it is %s", quote(s)).hint("write HTTP or HTTPS")
		}
		for i, h := range m.HttpGet.GetHttpHeaders() {
			if name := where.field("httpHeaders").index(i).field("name"); c.required(name, h.GetName()) && !probeHeader.MatchString(h.GetName()) {
				c.errorf(diag.InvalidHeader, name, "%s is no name of a header: letters, digits and '-' may stand here", quote(h.GetName()))
			}
		}
	case *networking.ReadinessProbe_TcpSocket:
		c.port(at.field("tcpSocket").field("port"), m.TcpSocket.GetPort())
	case *networking.ReadinessProbe_Exec:
		if len(m.Exec.GetCommand()) == 0 {
			c.errorf(diag.MissingValue, at.field("exec").field("command"), "it is missing")
		}
	case *networking.ReadinessProbe_Grpc:
		c.port(at.field("grpc").field("port"), m.Grpc.GetPort())
	default:
		c.errorf(diag.NothingSaid, at, "it asks nothing: httpGet, tcpSocket, grpc or exec is needed")
	}
}

func proxyConfig(c *check, p *networkingbeta.ProxyConfig) {
	c.selector(spec.field("selector"), p.GetSelector())
	c.notNegative(spec.field("concurrency"), int64(p.GetConcurrency().GetValue()))
}
