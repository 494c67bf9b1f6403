package validate

import (
	networking "istio.io/api/networking/v1alpha3"
)

func envoyFilter(c *check, f *networking.EnvoyFilter) {
	c.labels(spec.field("workloadSelector").field("labels"), f.GetWorkloadSelector().GetLabels())
	for i, p := range f.GetConfigPatches() {
		at := spec.field("configPatches").index(i)
		if p.GetApplyTo() == networking.EnvoyFilter_INVALID {
			c.errorf(at.field("applyTo"), "it is missing")
		}
		c.envoyPatch(at.field("patch"), p.GetPatch())
		if v := p.GetMatch().GetProxy().GetProxyVersion(); v != "" {
			c.regex(at.field("match").field("proxy").field("proxyVersion"), v)
		}
		c.matchFits(at.field("match"), p)
	}
}

func (c *check) envoyPatch(at path, p *networking.EnvoyFilter_Patch) {
	switch {
	case p == nil:
		c.errorf(at, "it is missing")
	case p.GetOperation() == networking.EnvoyFilter_Patch_INVALID:
		c.errorf(at.field("operation"), "it is missing")
	case p.GetOperation() != networking.EnvoyFilter_Patch_REMOVE && p.GetValue() == nil:
		c.errorf(at.field("value"), "it is missing: operation %s needs one", p.GetOperation())
	}
}

// matchFits checks that a patch of one class of objects does not match by another.
func (c *check) matchFits(at path, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	var class string
	switch p.GetApplyTo() {
	case networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_FILTER_CHAIN, networking.EnvoyFilter_LISTENER_FILTER:
		class = "listener"
	case networking.EnvoyFilter_CLUSTER:
		class = "cluster"
	case networking.EnvoyFilter_ROUTE_CONFIGURATION, networking.EnvoyFilter_VIRTUAL_HOST:
		class = "routeConfiguration"
	default:
		return // filters and routes may be a waypoint's too
	}
	var matches string
	switch p.GetMatch().GetObjectTypes().(type) {
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener:
		matches = "listener"
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration:
		matches = "routeConfiguration"
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_Cluster:
		matches = "cluster"
	default:
		return
	}
	if matches != class {
		c.errorf(at.field(matches), "a patch of %s matches by %s, not by %s", p.GetApplyTo(), class, matches)
	}
}
