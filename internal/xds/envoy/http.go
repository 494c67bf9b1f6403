package envoy

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// HTTPManager is the filter that reads HTTP, either version, from a connection and routes its requests.
type HTTPManager struct {
	StatPrefix string
	RouteName  string                      // name of a route configuration that comes over ADS, or
	Routes     *routev3.RouteConfiguration // one that is in the listener
	AccessLogs []*accesslogv3.AccessLog
	Inbound    bool
	// VerifiedPeer says that the connection has a client certificate that was checked (inbound only). Without one, what a
	// client says in X-Forwarded-Client-Cert is dropped.
	VerifiedPeer bool
	// Filters stand before all others.
	Filters []*hcmv3.HttpFilter
	// PodRouting adds the filters that PodHost configures.
	PodRouting bool
}

// Filter gives the network filter.
func (h HTTPManager) Filter() *listenerv3.Filter {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: StatName(h.StatPrefix),
		AccessLog:  h.AccessLogs,
		// HTTP/1.0 is what some proxies and probes speak by default.
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{AcceptHttp_10: true},
		UpgradeConfigs:      []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		// A stream may rest for as long as its two ends like.
		StreamIdleTimeout: duration(0),
		// The address in X-Forwarded-For is the client's own business inside of the mesh: it is passed on as it came.
		UseRemoteAddress: wrapperspb.Bool(false),
		// Istio's pathNormalization BASE: RFC 3986, slashes neither merged nor decoded.
		NormalizePath: isTrue(),
		MergeSlashes:  false,
	}
	if h.Routes != nil {
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: h.Routes}
	} else {
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ADS(), RouteConfigName: h.RouteName}}
	}
	if h.Inbound {
		m.ServerName = "istio-envoy"
		m.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{dropControlHeaders()}
	}
	if h.VerifiedPeer {
		m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_APPEND_FORWARD
		m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: isTrue(), Dns: true, Uri: true,
		}
	}
	m.HttpFilters = append(m.HttpFilters, h.Filters...)
	if h.PodRouting {
		m.HttpFilters = append(m.HttpFilters,
			httpFilter(headerMutation, &headermutationv3.HeaderMutation{}), httpFilter(headerToMetadata, &headertometadatav3.Config{}))
	}
	if !h.Inbound { // they do nothing but where a route says so; to add them when the first one does would drain connections
		m.HttpFilters = append(m.HttpFilters, httpFilter(faultFilter, &faultv3.HTTPFault{}), httpFilter(corsFilter, &corsv3.Cors{}))
	}
	m.HttpFilters = append(m.HttpFilters, router())
	return networkFilter(httpManager, m)
}

const (
	httpManager      = "envoy.filters.network.http_connection_manager"
	headerMutation   = "envoy.filters.http.header_mutation"
	headerToMetadata = "envoy.filters.http.header_to_metadata"
	faultFilter      = "envoy.filters.http.fault"
	corsFilter       = "envoy.filters.http.cors"
)

func router() *hcmv3.HttpFilter { return httpFilter("envoy.filters.http.router", &routerv3.Router{}) }

func httpFilter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(config)}}
}

// controlHeaders are the request headers by which a client tells the Envoy that it talks to how to retry, how long to wait
// and under which name to count (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter).
// They are for the client's own sidecar, which takes them away. Here they would let any peer multiply the requests to the
// workload, or make statistics without end.
var controlHeaders = []string{
	"x-envoy-decorator-operation",
	"x-envoy-force-trace",
	"x-envoy-hedge-on-per-try-timeout",
	"x-envoy-max-retries",
	"x-envoy-retriable-header-names",
	"x-envoy-retriable-status-codes",
	"x-envoy-retry-grpc-on",
	"x-envoy-retry-on",
	"x-envoy-upstream-alt-stat-name",
	"x-envoy-upstream-rq-per-try-timeout-ms",
	"x-envoy-upstream-rq-timeout-alt-response",
	"x-envoy-upstream-rq-timeout-ms",
	"x-envoy-upstream-stream-duration-ms",
}

func dropControlHeaders() *corev3.TypedExtensionConfig {
	m := &earlyv3.HeaderMutation{}
	for _, h := range controlHeaders {
		m.Mutations = append(m.Mutations, &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Remove{Remove: h}})
	}
	return extension("envoy.http.early_header_mutation.header_mutation", m)
}
