package filter

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httpcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	tcpcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// provider is an authorizer with the policies that ask it.
type provider struct {
	*mesh.Authorizer
	policies []*mesh.AccessPolicy
}

// providers gathers the policies that ask somebody else, by whom they ask, in the order of names.
func providers(policies []*mesh.AccessPolicy) (all []provider) {
	for _, p := range of(policies, mesh.ActionCustom) {
		if p.DryRun || p.Provider == nil {
			continue
		}
		i := slices.IndexFunc(all, func(q provider) bool { return q.Name == p.Provider.Name })
		if i < 0 {
			i = len(all)
			all = append(all, provider{Authorizer: p.Provider})
		}
		all[i].policies = append(all[i].policies, p)
	}
	slices.SortFunc(all, func(a, b provider) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// prefix begins the name of the metadata that says which policy has matched: whether the authorizer is to be asked. Each authorizer
// has a name of its own, so that one is not asked because of another's policy.
func (p provider) prefix() string { return "istio_ext_authz_" + p.Name + "_" }

// asks begins the names of the rules.
const asks = "istio-ext-authz-"

func (p provider) rules(tcp bool) *rbacv3.RBAC {
	out := &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}
	for _, policy := range p.policies {
		addRules(out.Policies, policy, asks, tcp)
	}
	return out
}

// matched tells a check that one of the rules has matched.
func (p provider) matched(filter string) *matcherv3.MetadataMatcher {
	return metadata(filter, valueMatcher(mesh.ValueMatch{Kind: mesh.MatchPrefix, Text: asks}), p.prefix()+"shadow_effective_policy_id")
}

// http gives the two filters that ask about requests: the first finds out whether a rule matches, without refusing, the second asks.
func (p provider) http() []*hcmv3.HttpFilter {
	check := &httpcheckv3.ExtAuthz{
		FailureModeAllow: p.FailOpen, ClearRouteCache: p.ClearRouteCache, TransportApiVersion: corev3.ApiVersion_V3,
		StatusOnError:         &typev3.HttpStatus{Code: typev3.StatusCode(cmp.Or(p.StatusOnError, 403))},
		FilterEnabledMetadata: p.matched(httpRBAC),
	}
	if p.BodyBytes > 0 {
		check.WithRequestBody = &httpcheckv3.BufferSettings{MaxRequestBytes: p.BodyBytes, AllowPartialMessage: p.PartialBody, PackAsBytes: p.BodyAsBytes}
	}
	if p.GRPC {
		check.Services = &httpcheckv3.ExtAuthz_GrpcService{GrpcService: p.grpcService()}
	} else {
		check.Services = &httpcheckv3.ExtAuthz_HttpService{HttpService: p.httpService()}
		if len(p.RequestHeaders) > 0 {
			check.AllowedHeaders = anyOf(p.RequestHeaders)
		}
	}
	return []*hcmv3.HttpFilter{
		httpFilter(httpRBAC, &httpv3.RBAC{ShadowRules: p.rules(false), ShadowRulesStatPrefix: p.prefix()}),
		httpFilter(httpCheck, check),
	}
}

// network gives the same for connections. Only an authorizer that speaks gRPC can be asked about these: in place of another, what
// it would be asked about is refused.
func (p provider) network() []*listenerv3.Filter {
	if !p.GRPC {
		return []*listenerv3.Filter{networkFilter(tcpRBAC, &networkv3.RBAC{Rules: p.rules(true), StatPrefix: "tcp."})}
	}
	return []*listenerv3.Filter{
		networkFilter(tcpRBAC, &networkv3.RBAC{ShadowRules: p.rules(true), ShadowRulesStatPrefix: p.prefix(), StatPrefix: "tcp."}),
		networkFilter(tcpCheck, &tcpcheckv3.ExtAuthz{
			StatPrefix: "tcp.", GrpcService: p.grpcService(), FailureModeAllow: p.FailOpen, TransportApiVersion: corev3.ApiVersion_V3,
			FilterEnabledMetadata: p.matched(tcpRBAC),
		}),
	}
}

func (p provider) cluster() string { return fmt.Sprintf("outbound|%d||%s", p.Port, p.Service) }

func (p provider) grpcService() *corev3.GrpcService {
	return &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: p.cluster(), Authority: string(p.Service)}},
		Timeout:         durationpb.New(p.Timeout),
	}
}

func (p provider) httpService() *httpcheckv3.HttpService {
	out := &httpcheckv3.HttpService{
		ServerUri: &corev3.HttpUri{
			Uri: fmt.Sprintf("http://%s:%d", p.Service, p.Port), Timeout: durationpb.New(p.Timeout), HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: p.cluster()},
		},
		PathPrefix: p.PathPrefix,
	}
	if len(p.AddedHeaders) > 0 {
		out.AuthorizationRequest = &httpcheckv3.AuthorizationRequest{}
		for _, name := range slices.Sorted(maps.Keys(p.AddedHeaders)) {
			out.AuthorizationRequest.HeadersToAdd = append(out.AuthorizationRequest.HeadersToAdd, &corev3.HeaderValue{Key: name, Value: p.AddedHeaders[name]})
		}
	}
	if len(p.UpstreamOnAllow)+len(p.DownstreamOnDeny)+len(p.DownstreamOnAllow) > 0 {
		out.AuthorizationResponse = &httpcheckv3.AuthorizationResponse{
			AllowedUpstreamHeaders: anyOf(p.UpstreamOnAllow), AllowedClientHeaders: anyOf(p.DownstreamOnDeny), AllowedClientHeadersOnSuccess: anyOf(p.DownstreamOnAllow),
		}
	}
	return out
}

// anyOf matches the names of headers, in any case; nil for none.
func anyOf(matches []mesh.ValueMatch) *matcherv3.ListStringMatcher {
	if len(matches) == 0 {
		return nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, m := range matches {
		out.Patterns = append(out.Patterns, stringMatcher(m, true))
	}
	return out
}
