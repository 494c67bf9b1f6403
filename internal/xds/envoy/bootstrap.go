package envoy

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// How fast a sidecar finds a control plane that was away: the wait doubles from the first to the second, with jitter.
const (
	reconnectBase = 150 * time.Millisecond
	reconnectMax  = 5 * time.Second
)

// maxSocketPath is the longest path of a Unix socket on Linux, without its final zero byte (unix(7)).
const maxSocketPath = 107

// BootstrapConfig is what the agent knows when it starts Envoy.
type BootstrapConfig struct {
	NodeID   string // sidecar~IP~POD.NAMESPACE~NAMESPACE.svc.CLUSTERDOMAIN
	Cluster  string // WORKLOAD.NAMESPACE: Envoy's --service-cluster
	Metadata map[string]any
	Locality Locality

	// XDSSocket and SDSSocket are the Unix sockets on which the agent serves the delta aggregated stream and the secrets.
	XDSSocket, SDSSocket string

	// AdminPort is on 127.0.0.1, PrometheusPort on every address. 0 means AdminPort and PrometheusPort of this package.
	AdminPort, PrometheusPort uint32
	// IPv6 says that the pod has an IPv6 address: what listens on every address then does so on those too.
	IPv6 bool

	// MaxConnections bounds the connections that clients may hold open, over all listeners; 0 is no bound but the memory.
	MaxConnections int64
	Stats          StatsConfig
	// Runtime are values of Envoy's runtime, by name; a number and a boolean are understood as such.
	Runtime map[string]string
}

// Locality is where the proxy runs.
type Locality struct{ Region, Zone, SubZone string }

// Bootstrap gives the configuration that Envoy starts with. It fails, naming the field, on what Envoy would refuse.
func Bootstrap(c BootstrapConfig) (*bootstrapv3.Bootstrap, error) {
	if c.AdminPort == 0 {
		c.AdminPort = AdminPort
	}
	if c.PrometheusPort == 0 {
		c.PrometheusPort = PrometheusPort
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("build bootstrap: %w", err)
	}
	metadata, err := structpb.NewStruct(c.Metadata)
	if err != nil {
		return nil, fmt.Errorf("build bootstrap: node metadata: %w", err)
	}
	b := &bootstrapv3.Bootstrap{
		Node: &corev3.Node{
			Id: c.NodeID, Cluster: c.Cluster, Metadata: metadata,
			Locality: &corev3.Locality{Region: c.Locality.Region, Zone: c.Locality.Zone, SubZone: c.Locality.SubZone},
		},
		Admin: &bootstrapv3.Admin{
			Address:               Address(loopback, c.AdminPort),
			IgnoreGlobalConnLimit: true, // still there to be asked why when a proxy is full
		},
		DynamicResources: dynamicResources(),
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Clusters: []*clusterv3.Cluster{
				agentCluster(XDSCluster, c.XDSSocket),
				agentCluster(SDSCluster, c.SDSSocket),
				adminCluster(c.AdminPort),
			},
			Listeners: []*listenerv3.Listener{prometheusListener(c.PrometheusPort, c.IPv6)},
		},
		OverloadManager: connectionLimit(c.MaxConnections),
		StatsConfig:     c.Stats.config(),
		// Nothing is pushed to a sink: statistics are put together when someone asks, and an idle pod stays idle.
		StatsFlush: &bootstrapv3.Bootstrap_StatsFlushOnAdmin{StatsFlushOnAdmin: true},
		// Most services of a mesh are never called by one pod: their counters, and their share of each worker thread, are
		// made when the first request comes.
		DeferredStatOptions: &bootstrapv3.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
		ClusterManager:      &bootstrapv3.ClusterManager{EnableDeferredClusterCreation: true},
	}
	if c.Stats.FlushInterval > 0 {
		b.StatsFlush, b.StatsFlushInterval = nil, duration(c.Stats.FlushInterval)
	}
	if c.Stats.EvictionInterval > 0 {
		b.StatsEviction = &bootstrapv3.Bootstrap_StatsEvictionInterval{StatsEvictionInterval: duration(c.Stats.EvictionInterval)}
	}
	b.LayeredRuntime = runtimeLayers(c.Runtime)
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("build bootstrap: %w", err)
	}
	return b, nil
}

func (c BootstrapConfig) check() error {
	for _, f := range []struct{ name, value string }{
		{"NodeID", c.NodeID}, {"Cluster", c.Cluster}, {"XDSSocket", c.XDSSocket}, {"SDSSocket", c.SDSSocket},
	} {
		if f.value == "" {
			return fmt.Errorf("%s is empty", f.name)
		}
	}
	for _, path := range []string{c.XDSSocket, c.SDSSocket} {
		if len(path) > maxSocketPath {
			return fmt.Errorf("socket path %s has %d bytes; a Unix socket's path has at most %d", path, len(path), maxSocketPath)
		}
	}
	if err := c.Stats.check(); err != nil {
		return err
	}
	if c.MaxConnections < 0 {
		return fmt.Errorf("MaxConnections is %d", c.MaxConnections)
	}
	if c.AdminPort > 65535 || c.PrometheusPort > 65535 {
		return fmt.Errorf("admin port %d, Prometheus port %d: a port is at most 65535", c.AdminPort, c.PrometheusPort)
	}
	if c.AdminPort == c.PrometheusPort {
		return errors.New("AdminPort and PrometheusPort are the same")
	}
	return nil
}

// runtimeLayers are a layer for the values, nil without any, and above it one that the admin interface can change.
func runtimeLayers(values map[string]string) *bootstrapv3.LayeredRuntime {
	if len(values) == 0 {
		return nil
	}
	layer := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for name, text := range values {
		value := structpb.NewStringValue(text)
		if n, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(n) && !math.IsInf(n, 0) {
			value = structpb.NewNumberValue(n)
		} else if text == "true" || text == "false" {
			value = structpb.NewBoolValue(text == "true")
		}
		layer.Fields[name] = value
	}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{
		{Name: "proxy_config", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: layer}},
		{Name: "admin", LayerSpecifier: &bootstrapv3.RuntimeLayer_AdminLayer_{AdminLayer: &bootstrapv3.RuntimeLayer_AdminLayer{}}},
	}}
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// dynamicResources makes the aggregated delta stream the source of everything. RetryPolicy is the back-off after the stream
// has broken, in place of Envoy's 0.5 to 30 seconds.
func dynamicResources() *bootstrapv3.Bootstrap_DynamicResources {
	agent := grpcService(XDSCluster)
	agent.GetEnvoyGrpc().RetryPolicy = &corev3.RetryPolicy{
		RetryBackOff: &corev3.BackoffStrategy{BaseInterval: duration(reconnectBase), MaxInterval: duration(reconnectMax)},
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices:              []*corev3.GrpcService{agent},
		},
		CdsConfig: ADS(),
		LdsConfig: ADS(),
	}
}

func agentCluster(name, socket string) *clusterv3.Cluster {
	c := staticCluster(name, pipe(socket))
	c.TypedExtensionProtocolOptions = HTTP2Only.options()
	return c
}

const adminClusterName = "prometheus_stats"

func adminCluster(port uint32) *clusterv3.Cluster {
	return staticCluster(adminClusterName, Address(loopback, port))
}

func staticCluster(name string, to *corev3.Address) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, AltStatName: StatName(name),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       duration(time.Second),
		CircuitBreakers:      noCircuitBreaker,
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: to}}}},
		}}},
	}
}

// prometheusListener serves /stats/prometheus of the admin interface, and nothing else of it, to whoever scrapes the pod.
func prometheusListener(port uint32, ipv6 bool) *listenerv3.Listener {
	address := Address(netip.IPv4Unspecified(), port)
	if ipv6 {
		address = Address(netip.IPv6Unspecified(), port)
		address.GetSocketAddress().Ipv4Compat = true
	}
	const path = "/stats/prometheus"
	get := &routev3.HeaderMatcher{Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "GET"}},
	}}
	routes := &routev3.RouteConfiguration{Name: adminClusterName, VirtualHosts: []*routev3.VirtualHost{{
		Name: "backend", Domains: []string{"*"},
		Routes: []*routev3.Route{{
			Match: &routev3.RouteMatch{
				PathSpecifier: &routev3.RouteMatch_Path{Path: path},
				Headers:       []*routev3.HeaderMatcher{get},
			},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: adminClusterName},
			}},
		}},
	}}}
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix:     StatName("prometheus"),
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes},
		HttpFilters:    []*hcmv3.HttpFilter{router()},
	}
	return &listenerv3.Listener{
		Name: "prometheus", Address: address, IgnoreGlobalConnLimit: true,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{networkFilter("envoy.filters.network.http_connection_manager", manager)}}},
	}
}

// connectionLimit is set even where it bounds nothing: without one, Envoy warns at every start.
func connectionLimit(n int64) *overloadv3.OverloadManager {
	if n == 0 {
		n = math.MaxInt32
	}
	return &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
		Name: "envoy.resource_monitors.global_downstream_max_connections",
		ConfigType: &overloadv3.ResourceMonitor_TypedConfig{
			TypedConfig: pack(&downstreamv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: n}),
		},
	}}}
}
