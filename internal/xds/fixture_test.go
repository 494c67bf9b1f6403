package xds_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/scope"
)

// The helpers here write models by hand, as short as they can be read.

func settings() *mesh.Settings {
	return &mesh.Settings{
		TrustDomain: "cluster.local", RootNamespace: "istio-system", ClusterDomain: "cluster.local", ConnectTimeoutMillis: 10_000,
		Refs: []ref.Ref{{Kind: "ConfigMap", Namespace: "istio-system", Name: "istio"}},
	}
}

// service is name in namespace with the ports; options change it.
func service(name, namespace, address string, ports ...*mesh.ServicePort) *mesh.Service {
	svc := &mesh.Service{
		Host: mesh.Host(name + "." + namespace + ".svc.cluster.local"), Name: name, Namespace: namespace, Ports: ports,
		Refs: []ref.Ref{{Kind: "Service", Namespace: namespace, Name: name}},
	}
	if address == "" {
		svc.Headless = true
	} else {
		svc.Addresses = []netip.Addr{netip.MustParseAddr(address)}
	}
	return svc
}

func externalName(name, namespace, to string, ports ...*mesh.ServicePort) *mesh.Service {
	svc := service(name, namespace, "", ports...)
	svc.Headless, svc.ExternalName = false, mesh.Host(to)
	return svc
}

func port(number uint32, protocol mesh.Protocol, identities ...string) *mesh.ServicePort {
	return &mesh.ServicePort{Number: number, Protocol: protocol, Identities: identities}
}

func identity(namespace, account string) string {
	return "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
}

// world is a model with one pod, shop/client, as whose proxy everything is seen.
type world struct {
	settings  *mesh.Settings
	services  []*mesh.Service
	inbound   *mesh.Inbound
	addresses []netip.Addr
	endpoints []*mesh.EndpointSet
}

func (w world) model() *mesh.Model {
	key := mesh.WorkloadKey{Namespace: w.inbound.Namespace, Name: "client"}
	m := &mesh.Model{
		Settings: w.settings, Outbound: &mesh.Outbound{Services: w.services}, Endpoints: map[mesh.EndpointKey]*mesh.EndpointSet{},
		Workloads: map[mesh.WorkloadKey]*mesh.Workload{key: {Key: key, ServiceAccount: "client", Addresses: w.addresses, Inbound: w.inbound}},
	}
	if m.Settings == nil {
		m.Settings = settings()
	}
	for _, s := range w.endpoints {
		m.Endpoints[s.Key] = s
	}
	return m
}

func (w world) view(t testing.TB) scope.View {
	t.Helper()
	v, err := scope.For(w.model(), scope.Proxy{Namespace: w.inbound.Namespace, Name: "client", ServiceAccount: "client"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// large is a mesh of n services, each with an HTTP, an HTTP/2 and a TCP port, 20 to a namespace.
func large(n int) world {
	w := world{inbound: &mesh.Inbound{Namespace: "ns-0", Ports: []mesh.InboundPort{
		{Number: 8080, Protocol: mesh.HTTP, Services: []mesh.ServiceTarget{{Host: "s-0.ns-0.svc.cluster.local", Port: 80}}},
	}}}
	for i := range n {
		namespace, name := fmt.Sprintf("ns-%d", i/20), fmt.Sprintf("s-%d", i)
		id := identity(namespace, name)
		address := address4(10, 96, byte(i>>8), byte(i)).String()
		w.services = append(w.services, service(name, namespace, address, port(80, mesh.HTTP, id), port(3306, mesh.TCP, id), port(9090, mesh.HTTP2, id)))
	}
	return w
}

func address4(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }
