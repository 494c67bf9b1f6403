package xds_test

import (
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// TestVirtualHostsApart holds that a proxy which is sent virtual hosts apart gets the same routes as one that is not.
func TestVirtualHostsApart(t *testing.T) {
	for name, w := range map[string]world{
		"services, headless ones and aliases": {settings: settings(), inbound: &mesh.Inbound{Namespace: "shop"}, services: []*mesh.Service{
			service("api", "shop", "", port(80, mesh.HTTP), port(9090, mesh.HTTP2)),
			externalName("old", "shop", "web.shop.svc.cluster.local"),
			service("web", "other", "10.96.0.11", port(80, mesh.HTTP)),
			service("web", "shop", "10.96.0.10", port(80, mesh.HTTP)),
		}},
		"no HTTP at all": {settings: settings(), inbound: &mesh.Inbound{Namespace: "shop"}, services: []*mesh.Service{
			service("db", "shop", "10.96.0.12", port(5432, mesh.TCP)),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			v := w.view(t)
			inline := generate(t, xds.Generate, v)
			v.Traits.HostDiscovery = true
			apart := generate(t, xds.Generate, v)
			if len(inline.Hosts) != 0 || len(apart.Hosts) != len(inline.Routes) {
				t.Fatalf("%d and %d tables of virtual hosts for %d route configurations", len(inline.Hosts), len(apart.Hosts), len(inline.Routes))
			}
			for i, r := range inline.Routes {
				want, got := unpack(t, r.Body, &routev3.RouteConfiguration{}), unpack(t, apart.Routes[i].Body, &routev3.RouteConfiguration{})
				if len(got.GetVirtualHosts()) != 0 || got.GetVhds().GetConfigSource().GetAds() == nil {
					t.Errorf("route configuration %s: %s", r.Name, got)
				}
				byName := map[string]*routev3.VirtualHost{}
				for _, h := range apart.Hosts[r.Name].All {
					host := unpack(t, h.Body, &routev3.VirtualHost{})
					rest, ok := strings.CutPrefix(h.Name, r.Name+"/")
					if host.GetName() != h.Name || !ok || strings.Contains(rest, "/") {
						t.Errorf("virtual host %s of %s is resource %s", host.GetName(), r.Name, h.Name)
					}
					host.Name = rest
					byName[rest] = host
				}
				if len(byName) != len(want.GetVirtualHosts()) {
					t.Errorf("%d virtual hosts, want %d", len(byName), len(want.GetVirtualHosts()))
				}
				for _, h := range want.GetVirtualHosts() {
					if !proto.Equal(byName[h.GetName()], h) {
						t.Errorf("virtual host %s: %s, want %s", h.GetName(), byName[h.GetName()], h)
					}
				}
			}
		})
	}
}
