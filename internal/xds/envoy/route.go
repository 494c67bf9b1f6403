package envoy

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	overridehostv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	subsetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/subset/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// ServiceRoutes are the routes of one outbound port, without their virtual hosts. Of those Envoy takes the one with the most
// specific domain that matches the request's authority, whatever port that names: the connection has already said the port.
func ServiceRoutes(name string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: name, IgnorePortInHostMatching: true,
		// A route may arrive before its cluster.
		ValidateClusters: wrapperspb.Bool(false),
	}
}

// HostDiscovery makes a route configuration wait for its virtual hosts, which come over the same stream as it does.
func HostDiscovery() *routev3.Vhds {
	return &routev3.Vhds{ConfigSource: &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}, ResourceApiVersion: corev3.ApiVersion_V3,
	}}
}

// ServiceHost is the virtual host of one service port: every request goes to its cluster, and is repeated, at another
// endpoint if there is one, when it did not reach the workload or the workload refused to handle it.
func ServiceHost(name string, domains []string, cluster string, hash *mesh.Hash) *routev3.VirtualHost {
	route := toCluster("default", cluster, defaultRetry)
	route.GetRoute().HashPolicy = hashPolicy(hash)
	return &routev3.VirtualHost{Name: name, Domains: domains, IncludeRequestAttemptCount: true, Routes: []*routev3.Route{route}}
}

// PodHost is the virtual host for the pods of a headless service port: each request goes to the pod that the client connected
// to, which names such as web-0.web.shop mean, or nowhere. Its cluster must have PodRouting, its HTTPManager too.
func PodHost(name string, domains []string, cluster string) *routev3.VirtualHost {
	return &routev3.VirtualHost{
		Name: name, Domains: domains, IncludeRequestAttemptCount: true, TypedPerFilterConfig: podFilters,
		Routes: []*routev3.Route{toCluster("default", cluster, nil)},
	}
}

// podAddress is the dynamic metadata, in the namespace of load balancing, that tells a cluster with PodRouting which endpoint
// to take. Upstream Envoy cannot write it from the connection's address in one step, so two filters do: the first puts the
// address into a header, whatever the client has put there, the second takes it out again.
const (
	podNamespace = "envoy.lb"
	podAddress   = "selvage-pod"
	podHeader    = "x-selvage-pod"
)

var podFilters = map[string]*anypb.Any{
	headerMutation: pack(&headermutationv3.HeaderMutationPerRoute{
		Mutations: &headermutationv3.Mutations{RequestMutations: []*mutationrulesv3.HeaderMutation{{
			Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: podHeader, Value: "%DOWNSTREAM_LOCAL_ADDRESS%"},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}},
		}}},
	}),
	headerToMetadata: pack(&headertometadatav3.Config{
		RequestRules: []*headertometadatav3.Config_Rule{{
			Header:          podHeader,
			OnHeaderPresent: &headertometadatav3.Config_KeyValuePair{MetadataNamespace: podNamespace, Key: podAddress},
			Remove:          true,
		}},
	}),
}

// PodRouting makes a cluster take the endpoint that PodHost says, and balance what comes from other hosts. The first policy
// takes the endpoint with that address. When there is none, the second looks for a subset by the same key, which no endpoint
// has, so that the request fails: another pod would be a wrong answer. Without the key it uses the third.
func PodRouting(c *clusterv3.Cluster) {
	c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN // the default; what holds is the following
	c.LoadBalancingPolicy = podRouting
}

var podRouting = podRoutingOver(balancing("envoy.load_balancing_policies.least_request", &leastrequestv3.LeastRequest{}))

func podRoutingOver(policy *clusterv3.LoadBalancingPolicy) *clusterv3.LoadBalancingPolicy {
	return balancing("envoy.load_balancing_policies.override_host", &overridehostv3.OverrideHost{
		OverrideHostSources: []*overridehostv3.OverrideHost_OverrideHostSource{{Metadata: &metadatav3.MetadataKey{
			Key:  podNamespace,
			Path: []*metadatav3.MetadataKey_PathSegment{{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: podAddress}}},
		}}},
		FallbackPolicy: balancing("envoy.load_balancing_policies.subset", &subsetv3.Subset{
			FallbackPolicy: subsetv3.Subset_ANY_ENDPOINT,
			SubsetSelectors: []*subsetv3.Subset_LbSubsetSelector{{
				Keys: []string{podAddress}, FallbackPolicy: subsetv3.Subset_LbSubsetSelector_NO_FALLBACK,
			}},
			SubsetLbPolicy: policy,
		}),
	})
}

func balancing(name string, config proto.Message) *clusterv3.LoadBalancingPolicy {
	return &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{{TypedExtensionConfig: extension(name, config)}}}
}

// UnknownHost is the virtual host for requests to hosts that no service has: on to where they were going, or refused with 502.
func UnknownHost(refuse bool) *routev3.VirtualHost {
	if refuse {
		return &routev3.VirtualHost{Name: "block_all", Domains: []string{"*"}, Routes: []*routev3.Route{{
			Name: "block_all", Match: anyPath,
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 502}},
		}}}
	}
	return &routev3.VirtualHost{
		Name: "allow_any", Domains: []string{"*"}, IncludeRequestAttemptCount: true,
		Routes: []*routev3.Route{toCluster("allow_any", PassthroughCluster, nil)},
	}
}

// LocalRoutes are the routes to the proxy's own workload.
func LocalRoutes(name, host, cluster string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: name, ValidateClusters: wrapperspb.Bool(false),
		VirtualHosts: []*routev3.VirtualHost{{
			Name: host, Domains: []string{"*"}, Routes: []*routev3.Route{toCluster("default", cluster, localRetry)},
		}},
	}
}

// toCluster has no time limit of its own; a gRPC request's own deadline holds.
func toCluster(name, cluster string, retry *routev3.RetryPolicy) *routev3.Route {
	return &routev3.Route{Name: name, Match: anyPath, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier:  &routev3.RouteAction_Cluster{Cluster: cluster},
		Timeout:           duration(0),
		MaxStreamDuration: noLimit,
		RetryPolicy:       retry,
	}}}
}

var noLimit = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: duration(0), GrpcTimeoutHeaderMax: duration(0)}

var anyPath = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}

// localRetry repeats only what has not been sent to the workload yet: it may have closed the connection meanwhile.
var localRetry = &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: wrapperspb.UInt32(2)}

// defaultRetry is Istio's default.
var defaultRetry = &routev3.RetryPolicy{
	RetryOn:              "connect-failure,refused-stream,unavailable,cancelled,reset-before-request,retriable-status-codes",
	NumRetries:           wrapperspb.UInt32(2),
	RetriableStatusCodes: []uint32{503},
	RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
		Name:       "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack(&previoushostsv3.PreviousHostsPredicate{})},
	}},
	HostSelectionRetryMaxAttempts: 5,
}
