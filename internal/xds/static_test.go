package xds_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/testneed"
	"github.com/selvage-mesh/selvage/internal/xds"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

func unpack[M proto.Message](t testing.TB, body *anypb.Any, into M) M {
	t.Helper()
	if err := body.UnmarshalTo(into); err != nil {
		t.Fatal(err)
	}
	return into
}

// static puts a generated configuration into a bootstrap file, so that Envoy can be asked about it without a control plane.
// Routes, which a proxy fetches by name, are put where they are named.
func static(t testing.TB, config *xds.Config) *bootstrapv3.Bootstrap {
	t.Helper()
	b, err := envoy.Bootstrap(envoy.BootstrapConfig{
		NodeID: "sidecar~10.0.0.1~client.shop~shop.svc.cluster.local", Cluster: "client.shop", XDSSocket: "XDS", SDSSocket: "socket", IPv6: false,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.DynamicResources.CdsConfig, b.DynamicResources.LdsConfig = nil, nil
	routes := map[string]*routev3.RouteConfiguration{}
	for _, r := range config.Routes {
		routes[r.Name] = unpack(t, r.Body, &routev3.RouteConfiguration{})
	}
	for _, r := range config.Clusters {
		b.StaticResources.Clusters = append(b.StaticResources.Clusters, unpack(t, r.Body, &clusterv3.Cluster{}))
	}
	for _, r := range config.Listeners {
		l := unpack(t, r.Body, &listenerv3.Listener{})
		for _, chain := range l.GetFilterChains() {
			inlineRoutes(t, chain.GetFilters()[0], routes)
		}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, l)
	}
	return b
}

func inlineRoutes(t testing.TB, f *listenerv3.Filter, routes map[string]*routev3.RouteConfiguration) {
	t.Helper()
	manager := &hcmv3.HttpConnectionManager{}
	if !f.GetTypedConfig().MessageIs(manager) {
		return
	}
	unpack(t, f.GetTypedConfig(), manager)
	name := manager.GetRds().GetRouteConfigName()
	if name == "" {
		return
	}
	if routes[name] == nil {
		t.Fatalf("a listener names route configuration %q, which is not generated", name)
	}
	manager.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes[name]}
	packed, err := anypb.New(manager)
	if err != nil {
		t.Fatal(err)
	}
	f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
}

// envoyValidates asks the real Envoy whether it would take the configuration.
func envoyValidates(t testing.TB, b *bootstrapv3.Bootstrap) {
	t.Helper()
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testneed.Envoy(t), "--mode", "validate", "-c", file, "-l", "warning").CombinedOutput(); err != nil {
		t.Fatalf("Envoy refuses the configuration: %v\n%s", err, out)
	} else if len(out) > 0 {
		t.Logf("Envoy says: %s", out)
	}
}
