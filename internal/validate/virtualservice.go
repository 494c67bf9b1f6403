package validate

import (
	"slices"

	networking "istio.io/api/networking/v1alpha3"
)

func virtualService(c *check, vs *networking.VirtualService) {
	delegate := len(vs.GetHosts()) == 0 // another virtual service's http routes lead here
	if delegate && (len(vs.GetGateways()) > 0 || len(vs.GetTls()) > 0 || len(vs.GetTcp()) > 0) {
		c.errorf(spec.field("hosts"), "they are missing: without hosts this is a delegate, which has only http routes and no gateways")
	}
	if len(vs.GetHttp())+len(vs.GetTls())+len(vs.GetTcp()) == 0 {
		c.errorf(spec, "it routes nothing: http, tls or tcp is needed")
	}
	mesh := len(vs.GetGateways()) == 0 || slices.Contains(vs.GetGateways(), "mesh")
	for i, host := range vs.GetHosts() {
		at := spec.field("hosts").index(i)
		if c.host(at, host); host == "*" && mesh {
			c.errorf(at, "* is for gateways alone: for the sidecars of the mesh it would take every service over")
		}
	}
	for i, r := range vs.GetHttp() {
		c.httpRoute(spec.field("http").index(i), r)
	}
	for i, r := range vs.GetTls() {
		c.tlsRoute(spec.field("tls").index(i), r)
	}
	for i, r := range vs.GetTcp() {
		at := spec.field("tcp").index(i)
		for j, m := range r.GetMatch() {
			c.layer4(at.field("match").index(j), m.GetDestinationSubnets(), m.GetPort())
		}
		c.destinations(at.field("route"), r.GetRoute())
	}
}

func (c *check) tlsRoute(at path, r *networking.TLSRoute) {
	if len(r.GetMatch()) == 0 {
		c.errorf(at.field("match"), "it is missing: a tls route is chosen by sniHosts")
	}
	for j, m := range r.GetMatch() {
		where := at.field("match").index(j)
		if len(m.GetSniHosts()) == 0 {
			c.errorf(where.field("sniHosts"), "they are missing")
		}
		for k, host := range m.GetSniHosts() {
			c.host(where.field("sniHosts").index(k), host)
		}
		c.layer4(where, m.GetDestinationSubnets(), m.GetPort())
	}
	c.destinations(at.field("route"), r.GetRoute())
}

func (c *check) layer4(at path, subnets []string, port uint32) {
	for i, s := range subnets {
		c.addressOrBlock(at.field("destinationSubnets").index(i), s)
	}
	if port != 0 {
		c.port(at.field("port"), port)
	}
}

func (c *check) destinations(at path, routes []*networking.RouteDestination) {
	if len(routes) == 0 {
		c.errorf(at, "it is missing: there is nowhere to send connections to")
	}
	weights := make([]int32, 0, len(routes))
	for i, r := range routes {
		c.destination(at.index(i).field("destination"), r.GetDestination())
		weights = append(weights, r.GetWeight())
	}
	c.weights(at, weights)
}

func (c *check) weights(at path, weights []int32) {
	total := int64(0)
	for i, w := range weights {
		c.notNegative(at.index(i).field("weight"), int64(w))
		total += int64(w)
	}
	if len(weights) > 1 && total == 0 {
		c.errorf(at, "the weights of its %d destinations are all 0: none would be chosen", len(weights))
	}
}

func (c *check) destination(at path, d *networking.Destination) {
	host := at.field("host")
	if c.required(host, d.GetHost()) {
		if c.host(host, d.GetHost()); d.GetHost() == "*" {
			c.errorf(host, "* is no destination")
		}
	}
	if d.GetSubset() != "" {
		c.subset(at.field("subset"), d.GetSubset())
	}
	if d.GetPort() != nil {
		c.port(at.field("port").field("number"), d.GetPort().GetNumber())
	}
}

func (c *check) httpRoute(at path, r *networking.HTTPRoute) {
	c.httpAction(at, r)
	for i, m := range r.GetMatch() {
		c.httpMatch(at.field("match").index(i), m)
	}
	weights := make([]int32, 0, len(r.GetRoute()))
	for i, d := range r.GetRoute() {
		c.destination(at.field("route").index(i).field("destination"), d.GetDestination())
		weights = append(weights, d.GetWeight())
	}
	c.weights(at.field("route"), weights)
	if r.GetMirror() != nil {
		c.destination(at.field("mirror"), r.GetMirror())
	}
	for i, m := range r.GetMirrors() {
		c.destination(at.field("mirrors").index(i).field("destination"), m.GetDestination())
		c.percentage(at.field("mirrors").index(i).field("percentage"), m.GetPercentage())
	}
	c.percentage(at.field("mirrorPercentage"), r.GetMirrorPercentage())
	c.duration(at.field("timeout"), r.GetTimeout())
	if retries := at.field("retries"); r.GetRetries() != nil {
		c.notNegative(retries.field("attempts"), int64(r.GetRetries().GetAttempts()))
		c.duration(retries.field("perTryTimeout"), r.GetRetries().GetPerTryTimeout())
	}
	c.fault(at.field("fault"), r.GetFault())
	if cors := r.GetCorsPolicy(); cors != nil {
		for i, o := range cors.GetAllowOrigins() {
			c.stringMatch(at.field("corsPolicy").field("allowOrigins").index(i), o)
		}
		c.duration(at.field("corsPolicy").field("maxAge"), cors.GetMaxAge())
	}
	if rewrite := r.GetRewrite().GetUriRegexRewrite(); rewrite != nil {
		c.regex(at.field("rewrite").field("uriRegexRewrite").field("match"), rewrite.GetMatch())
	}
}

// httpAction checks that a route does exactly one thing.
func (c *check) httpAction(at path, r *networking.HTTPRoute) {
	var actions []string
	for _, a := range []struct {
		name string
		set  bool
	}{{"route", len(r.GetRoute()) > 0}, {"redirect", r.GetRedirect() != nil}, {"directResponse", r.GetDirectResponse() != nil}, {"delegate", r.GetDelegate() != nil}} {
		if a.set {
			actions = append(actions, a.name)
		}
	}
	switch len(actions) {
	case 0:
		c.errorf(at, "it does nothing: route, redirect, directResponse or delegate is needed")
	case 1:
	default:
		c.errorf(at.field(actions[1]), "a route does one thing, and this one has %s too", actions[0])
	}
	if redirect := r.GetRedirect(); redirect != nil {
		if code := redirect.GetRedirectCode(); code != 0 && (code < 300 || code > 399) {
			c.errorf(at.field("redirect").field("redirectCode"), "it is %d, and a redirect's code is between 300 and 399", code)
		}
	}
	if direct := r.GetDirectResponse(); direct != nil && (direct.GetStatus() < 100 || direct.GetStatus() > 599) {
		c.errorf(at.field("directResponse").field("status"), "it is %d, and an HTTP status is between 100 and 599", direct.GetStatus())
	}
}

func (c *check) httpMatch(at path, m *networking.HTTPMatchRequest) {
	for _, s := range []struct {
		field string
		match *networking.StringMatch
	}{{"uri", m.GetUri()}, {"scheme", m.GetScheme()}, {"method", m.GetMethod()}, {"authority", m.GetAuthority()}} {
		c.stringMatch(at.field(s.field), s.match)
	}
	for field, all := range map[string]map[string]*networking.StringMatch{
		"headers": m.GetHeaders(), "withoutHeaders": m.GetWithoutHeaders(), "queryParams": m.GetQueryParams(),
	} {
		for name, match := range all {
			if name == "" {
				c.errorf(at.field(field), "one has no name")
			}
			c.stringMatch(at.field(field).key(name), match)
		}
	}
	if m.GetPort() != 0 {
		c.port(at.field("port"), m.GetPort())
	}
	c.labels(at.field("sourceLabels"), m.GetSourceLabels())
}

func (c *check) stringMatch(at path, m *networking.StringMatch) {
	if r, ok := m.GetMatchType().(*networking.StringMatch_Regex); ok {
		c.regex(at.field("regex"), r.Regex)
	}
}

func (c *check) percentage(at path, p *networking.Percent) {
	if p != nil {
		c.percent(at.field("value"), p.GetValue())
	}
}

func (c *check) fault(at path, f *networking.HTTPFaultInjection) {
	if d := f.GetDelay(); d != nil {
		c.percentage(at.field("delay").field("percentage"), d.GetPercentage())
		c.duration(at.field("delay").field("fixedDelay"), d.GetFixedDelay())
	}
	if a := f.GetAbort(); a != nil {
		c.percentage(at.field("abort").field("percentage"), a.GetPercentage())
		if status, ok := a.GetErrorType().(*networking.HTTPFaultInjection_Abort_HttpStatus); ok && (status.HttpStatus < 200 || status.HttpStatus > 600) {
			c.errorf(at.field("abort").field("httpStatus"), "it is %d, and a status that ends a request is between 200 and 600", status.HttpStatus)
		}
	}
}
