package ads_test

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// world makes models by hand, one from the other, sharing what did not change as the translator does.
type world struct{ mesh.Model }

// newWorld has the services web and db of namespace shop, and pods web-0 … of web.
func newWorld(pods int) *world {
	w := &world{mesh.Model{
		Settings: &mesh.Settings{TrustDomain: "cluster.local", RootNamespace: "istio-system", ClusterDomain: "cluster.local", ConnectTimeoutMillis: 1111},
		Outbound: &mesh.Outbound{}, Endpoints: map[mesh.EndpointKey]*mesh.EndpointSet{}, Workloads: map[mesh.WorkloadKey]*mesh.Workload{},
	}}
	w.service("db", "10.96.0.2", mesh.TCP)
	w.service("web", "10.96.0.1", mesh.HTTP)
	inbound := &mesh.Inbound{Namespace: "shop", Ports: []mesh.InboundPort{
		{Number: 8080, Protocol: mesh.HTTP, Services: []mesh.ServiceTarget{{Host: "web.shop.svc.cluster.local", Port: 80}}},
	}}
	for i := range pods {
		w.pod(fmt.Sprintf("web-%d", i), "web", inbound)
	}
	w.endpoints("web", "10.1.0.1")
	w.endpoints("db", "10.1.0.2")
	return w
}

func key(name string) mesh.EndpointKey {
	return mesh.EndpointKey{Host: mesh.Host(name + ".shop.svc.cluster.local"), Port: 80}
}

func workload(pod string) mesh.WorkloadKey { return mesh.WorkloadKey{Namespace: "shop", Name: pod} }

func clusterOf(name string) string { return xds.ClusterName(key(name)) }

// service adds a service of namespace shop, or replaces it.
func (w *world) service(name, address string, p mesh.Protocol) {
	out := &mesh.Outbound{}
	k := key(name)
	made := &mesh.Service{Host: k.Host, Name: name, Namespace: "shop", Addresses: []netip.Addr{netip.MustParseAddr(address)},
		Ports: []*mesh.ServicePort{{Number: 80, Protocol: p}}, Refs: []ref.Ref{{Kind: "Service", Namespace: "shop", Name: name}}}
	for _, s := range w.Outbound.Services {
		if s.Host < k.Host {
			out.Services = append(out.Services, s)
		}
	}
	out.Services = append(out.Services, made)
	for _, s := range w.Outbound.Services {
		if s.Host > k.Host {
			out.Services = append(out.Services, s)
		}
	}
	w.Outbound = out
	if w.Endpoints[k] == nil {
		w.endpoints(name)
	}
}

func (w *world) endpoints(name string, addresses ...string) {
	set := &mesh.EndpointSet{Key: key(name), Refs: []ref.Ref{{Kind: "Service", Namespace: "shop", Name: name}}}
	for _, a := range addresses {
		set.Endpoints = append(set.Endpoints, mesh.Endpoint{Address: netip.MustParseAddr(a), Port: 8080})
	}
	w.Endpoints = maps.Clone(w.Endpoints)
	w.Endpoints[set.Key] = set
}

func (w *world) pod(name, account string, in *mesh.Inbound) {
	k := mesh.WorkloadKey{Namespace: "shop", Name: name}
	w.Workloads = maps.Clone(w.Workloads)
	w.Workloads[k] = &mesh.Workload{Key: k, ServiceAccount: account, Inbound: in, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}
}

// model is the world as it is now.
func (w *world) model() *mesh.Model {
	m := w.Model
	return &m
}

// large is a mesh of n services, with pods replicas of one workload.
func large(n, pods int) *world {
	w := newWorld(pods)
	w.Outbound = &mesh.Outbound{}
	for i := range n {
		name := fmt.Sprintf("s%04d", i)
		k := key(name)
		w.Outbound.Services = append(w.Outbound.Services, &mesh.Service{Host: k.Host, Name: name, Namespace: "shop",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})}, Ports: []*mesh.ServicePort{{Number: 80, Protocol: mesh.HTTP}}})
		w.Endpoints[k] = &mesh.EndpointSet{Key: k, Endpoints: []mesh.Endpoint{{Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Port: 8080}}}
	}
	return w
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
