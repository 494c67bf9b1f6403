package validate

import (
	"google.golang.org/protobuf/encoding/protojson"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func envoyFilter(c *check, f *networking.EnvoyFilter) {
	c.warnf(diag.ProxyInternals, spec, "an EnvoyFilter changes what the control plane has made, which is another with each version")
	c.workloadSelector(f.GetWorkloadSelector())
	if len(f.GetTargetRefs()) > 0 && f.GetWorkloadSelector() != nil {
		c.errorf(diag.Contradiction, spec.field("targetRefs"), "workloadSelector and targetRefs exclude each other")
	}
	for i, t := range f.GetTargetRefs() {
		c.target(spec.field("targetRefs").index(i), t)
	}
	for i, p := range f.GetConfigPatches() {
		at := spec.field("configPatches").index(i)
		waypoint := p.GetMatch().GetContext() == networking.EnvoyFilter_WAYPOINT
		if !waypoint {
			c.patchParts(at, p)
		}
		c.proxyVersion(at.field("match").field("proxy").field("proxyVersion"), p.GetMatch().GetProxy().GetProxyVersion())
		if !waypoint {
			c.matchFits(at.field("match"), p)
		}
		c.filterMatch(at.field("match").field("listener").field("filterChain").field("filter"), p, waypoint)
		if v := p.GetPatch().GetValue(); v != nil && p.GetPatch().GetOperation() != networking.EnvoyFilter_Patch_REMOVE {
			raw, err := protojson.Marshal(v)
			if err != nil {
				c.errorf(diag.PatchValue, at.field("patch").field("value"), "it cannot be read: %v", err)
				continue
			}
			c.payload(at.field("patch").field("value"), p, raw)
		}
	}
}

// patchParts checks that a patch says what it patches and how. Patches of waypoints are of other parts.
func (c *check) patchParts(at path, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	if p.GetApplyTo() == networking.EnvoyFilter_INVALID {
		c.errorf(diag.MissingValue, at.field("applyTo"), "it is missing")
	}
	operation := p.GetPatch().GetOperation()
	switch {
	case p.GetPatch() == nil:
		c.errorf(diag.MissingValue, at.field("patch"), "it is missing")
	case operation == networking.EnvoyFilter_Patch_INVALID:
		c.errorf(diag.MissingValue, at.field("patch").field("operation"), "it is missing")
	case operation != networking.EnvoyFilter_Patch_REMOVE && p.GetPatch().GetValue() == nil:
		c.errorf(diag.MissingValue, at.field("patch").field("value"), "it is missing: operation %s needs one", operation)
	}
}

func (c *check) proxyVersion(at path, pattern string) {
	if len(pattern) > longestRegex { // it would be ignored, as Istio does
		c.warnf(diag.NoEffect, at, "the regular expression has %d characters, and more than %d are not read", len(pattern), longestRegex).hint(`write one such as ^1\.30.*`)
	} else if pattern != "" {
		c.regex(at, pattern)
	}
}

// matchFits checks that a patch of one class of objects does not match by another.
func (c *check) matchFits(at path, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	var class string
	switch p.GetApplyTo() {
	case networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_FILTER_CHAIN, networking.EnvoyFilter_NETWORK_FILTER,
		networking.EnvoyFilter_HTTP_FILTER, networking.EnvoyFilter_LISTENER_FILTER:
		class = "listener"
	case networking.EnvoyFilter_CLUSTER:
		class = "cluster"
	case networking.EnvoyFilter_ROUTE_CONFIGURATION, networking.EnvoyFilter_VIRTUAL_HOST, networking.EnvoyFilter_HTTP_ROUTE:
		class = "routeConfiguration"
	default:
		return
	}
	var matches string
	switch p.GetMatch().GetObjectTypes().(type) {
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener:
		matches = "listener"
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration:
		matches = "routeConfiguration"
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_Cluster:
		matches = "cluster"
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_Waypoint:
		matches = "waypoint"
	default:
		return
	}
	if matches != class {
		c.errorf(diag.PatchMatch, at.field(matches), "a patch of %s matches by %s, not by %s", p.GetApplyTo(), class, matches)
	}
}

const connectionManager = "envoy.filters.network.http_connection_manager"

// filterMatch checks a match by a filter of a listener's chains.
func (c *check) filterMatch(at path, p *networking.EnvoyFilter_EnvoyConfigObjectPatch, waypoint bool) {
	f := p.GetMatch().GetListener().GetFilterChain().GetFilter()
	if f == nil || waypoint {
		return
	}
	switch p.GetApplyTo() {
	case networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_FILTER_CHAIN:
		c.warnf(diag.NoEffect, at, "a patch of %s does not look at filters", p.GetApplyTo())
	case networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_HTTP_FILTER:
	default:
		return
	}
	c.required(at.field("name"), f.GetName())
	c.oldName(at.field("name"), f.GetName())
	sub := f.GetSubFilter()
	if sub == nil {
		return
	}
	where := at.field("subFilter")
	switch {
	case p.GetApplyTo() != networking.EnvoyFilter_HTTP_FILTER:
		c.errorf(diag.PatchMatch, where, "only patches of HTTP_FILTER look into filters, and this is one of %s", p.GetApplyTo())
	case f.GetName() != connectionManager && oldNames[f.GetName()] != connectionManager:
		c.errorf(diag.PatchMatch, where, "only %s has filters within", connectionManager)
	default:
		c.required(where.field("name"), sub.GetName())
	}
	c.oldName(where.field("name"), sub.GetName())
}

// oldNames are names that Envoy's filters had, and those of today.
var oldNames = map[string]string{
	"envoy.buffer":                  "envoy.filters.http.buffer",
	"envoy.cors":                    "envoy.filters.http.cors",
	"envoy.csrf":                    "envoy.filters.http.csrf",
	"envoy.http_dynamo_filter":      "envoy.filters.http.dynamo",
	"envoy.ext_authz":               "envoy.filters.http.ext_authz",
	"envoy.fault":                   "envoy.filters.http.fault",
	"envoy.grpc_http1_bridge":       "envoy.filters.http.grpc_http1_bridge",
	"envoy.grpc_json_transcoder":    "envoy.filters.http.grpc_json_transcoder",
	"envoy.grpc_web":                "envoy.filters.http.grpc_web",
	"envoy.gzip":                    "envoy.filters.http.gzip",
	"envoy.health_check":            "envoy.filters.http.health_check",
	"envoy.ip_tagging":              "envoy.filters.http.ip_tagging",
	"envoy.lua":                     "envoy.filters.http.lua",
	"envoy.rate_limit":              "envoy.filters.http.ratelimit",
	"envoy.router":                  "envoy.filters.http.router",
	"envoy.squash":                  "envoy.filters.http.squash",
	"envoy.listener.http_inspector": "envoy.filters.listener.http_inspector",
	"envoy.listener.original_dst":   "envoy.filters.listener.original_dst",
	"envoy.listener.original_src":   "envoy.filters.listener.original_src",
	"envoy.listener.proxy_protocol": "envoy.filters.listener.proxy_protocol",
	"envoy.listener.tls_inspector":  "envoy.filters.listener.tls_inspector",
	"envoy.client_ssl_auth":         "envoy.filters.network.client_ssl_auth",
	"envoy.http_connection_manager": connectionManager,
	"envoy.mongo_proxy":             "envoy.filters.network.mongo_proxy",
	"envoy.ratelimit":               "envoy.filters.network.ratelimit",
	"envoy.redis_proxy":             "envoy.filters.network.redis_proxy",
	"envoy.tcp_proxy":               "envoy.filters.network.tcp_proxy",
}

func (c *check) oldName(at path, name string) {
	if now, old := oldNames[name]; old {
		c.warnf(diag.Deprecated, at, "%s is a name that proxies do not have any more", quote(name)).hint("write %s", now)
	}
}
