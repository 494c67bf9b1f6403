// Package filter builds the Envoy filters that decide who may call a workload: RBAC for policies, ext_authz for external
// authorizers, jwt_authn for tokens. It is pure, and only the control plane links it.
package filter

import (
	"fmt"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// The canonical names of the filters. RBAC and jwt_authn write dynamic metadata under theirs.
const (
	httpRBAC    = "envoy.filters.http.rbac"
	tcpRBAC     = "envoy.filters.network.rbac"
	httpCheck   = "envoy.filters.http.ext_authz"
	tcpCheck    = "envoy.filters.network.ext_authz"
	tokenFilter = "envoy.filters.http.jwt_authn"
)

// Access is what stands before a workload, for its HTTP and its other ports.
type Access struct {
	HTTP    []*hcmv3.HttpFilter
	Network []*listenerv3.Filter
}

// For gives the filters of a workload, in the order in which they decide: tokens, external authorizers, what is only to be noted,
// what refuses, what allows. On ports that are not HTTP a condition that only HTTP can meet is never met: a rule with one allows
// nothing there, and refuses as if the condition were not in it.
func For(a *mesh.Access) (out Access) {
	if a == nil {
		return out
	}
	if len(a.Tokens) > 0 {
		out.HTTP = append(out.HTTP, httpFilter(tokenFilter, tokens(a.Tokens)))
	}
	asked := providers(a.Policies)
	for _, p := range asked {
		// Istio asks one authorizer for a workload and refuses what several would be asked about; so does what cannot be asked.
		if len(asked) > 1 || p.Service == "" {
			out.HTTP = append(out.HTTP, httpFilter(httpRBAC, ruleSet{rules: p.rules(false)}.http()))
			out.Network = append(out.Network, networkFilter(tcpRBAC, ruleSet{rules: p.rules(true)}.network()))
			continue
		}
		out.HTTP = append(out.HTTP, p.http()...)
		out.Network = append(out.Network, p.network()...)
	}
	for _, action := range []mesh.Action{mesh.ActionAudit, mesh.ActionDeny, mesh.ActionAllow} {
		some := of(a.Policies, action)
		if len(some) == 0 {
			continue
		}
		out.HTTP = append(out.HTTP, httpFilter(httpRBAC, rules(some, action, false).http()))
		out.Network = append(out.Network, networkFilter(tcpRBAC, rules(some, action, true).network()))
	}
	return out
}

func of(policies []*mesh.AccessPolicy, action mesh.Action) (some []*mesh.AccessPolicy) {
	for _, p := range policies {
		if p.Action == action {
			some = append(some, p)
		}
	}
	return some
}

func httpFilter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(config)}}
}

func networkFilter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(config)}}
}

// pack packs a message. All text in it comes from JSON or YAML, which is UTF-8, so it can be marshalled.
func pack(m proto.Message) *anypb.Any {
	body, err := envoy.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("marshal %s: %v", m.ProtoReflect().Descriptor().FullName(), err))
	}
	return &anypb.Any{TypeUrl: envoy.TypeURL(m), Value: body}
}
