package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"time"
	"unique"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/types/known/structpb"
)

// sidecar is one simulated proxy. It subscribes as Envoy does (clusters, their endpoints, listeners, their routes), accepts
// everything, and keeps of it only names and versions, which it shows again when it reconnects.
type sidecar struct {
	fleet *fleet
	index int
	node  *corev3.Node
	delta bool

	types  map[string]*subscription
	synced bool
	seen   map[string]bool // of the expectation, by type
	waits  *expectation
	read   atomic.Int64 // bytes of this connection, with gRPC's framing
}

// subscription is one type of a sidecar.
type subscription struct {
	asked    bool
	again    bool // it was asked for on an earlier stream
	answered bool
	wanted   map[string]bool // nil for everything
	missing  map[string]bool // of wanted: not answered yet
	held     map[string]unique.Handle[string]
	needs    map[string][]string // by resource: what it needs of the next type
	nonce    string              // of the last response
	version  string
}

func newSidecar(f *fleet, index int, w workload) *sidecar {
	text := structpb.NewStringValue
	return &sidecar{
		fleet: f, index: index, delta: f.delta, types: map[string]*subscription{}, seen: map[string]bool{},
		node: &corev3.Node{
			Id:            fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", w.address, w.pod, w.namespace, w.namespace),
			UserAgentName: "envoy", UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
				Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 40}}},
			Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
				"NAME": text(w.pod), "NAMESPACE": text(w.namespace), "SERVICE_ACCOUNT": text(account), "CLUSTER_ID": text("Kubernetes"),
				"ISTIO_VERSION": text("1.31.0"), "INSTANCE_IPS": text(w.address), "MESH_ID": text("cluster.local"),
				"LABELS": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
					"app": text(w.service), "security.istio.io/tlsMode": text("istio")}}),
			}},
		},
	}
}

// stream is what both variants have in common.
type stream interface {
	SendMsg(any) error
	RecvMsg(any) error
}

// run connects and serves the stream until ctx ends or the server goes.
func (p *sidecar) run(ctx context.Context, address string) error {
	p.synced = false
	p.read.Store(0)
	for _, s := range p.types {
		*s = subscription{again: s.asked || s.again, wanted: s.wanted, held: s.held, needs: s.needs, version: s.version}
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", address)
			return counted{c, &p.read}, err
		}),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{encoding.GetCodecV2("proto")}), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		return err
	}
	defer conn.Close()
	method := "/envoy.service.discovery.v3.AggregatedDiscoveryService/" + pick(p.delta, "DeltaAggregatedResources", "StreamAggregatedResources")
	rpc, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	if err := p.ask(rpc, clusterType, nil); err != nil {
		return err
	}
	if err := p.askAgain(rpc); err != nil {
		return err
	}
	for {
		var data raw
		if err := rpc.RecvMsg(&data); err != nil {
			return err
		}
		if err := p.take(rpc, data); err != nil {
			return err
		}
	}
}

// counted counts what is read from a connection.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func (p *sidecar) of(typeURL string) *subscription {
	s := p.types[typeURL]
	if s == nil {
		s = &subscription{held: map[string]unique.Handle[string]{}, needs: map[string][]string{}}
		p.types[typeURL] = s
	}
	return s
}

// ask begins or changes a subscription. Names are nil for everything.
func (p *sidecar) ask(rpc stream, typeURL string, names []string) error {
	s := p.of(typeURL)
	added, gone := s.want(names)
	first := !s.asked
	if !first && len(added)+len(gone) == 0 {
		return nil
	}
	s.asked = true
	if !p.delta {
		r := &discoveryv3.DiscoveryRequest{TypeUrl: typeURL, ResponseNonce: s.nonce, VersionInfo: s.version, ResourceNames: names}
		if first && typeURL == clusterType {
			r.Node = p.node
		}
		return rpc.SendMsg(r)
	}
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: added, ResourceNamesUnsubscribe: gone}
	if first {
		r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe = names, nil
		r.InitialResourceVersions = make(map[string]string, len(s.held))
		for name, version := range s.held {
			r.InitialResourceVersions[name] = version.Value()
		}
	}
	if first && typeURL == clusterType {
		r.Node = p.node
	}
	return rpc.SendMsg(r)
}

// askAgain asks for all that the sidecar has from an earlier stream, at once, as Envoy does.
func (p *sidecar) askAgain(rpc stream) error {
	for _, t := range []string{endpointType, listenerType, routeType, virtualHostType} {
		s := p.of(t)
		if !s.again {
			continue
		}
		var names []string
		if t == endpointType || t == routeType {
			names = append([]string{}, slices.Sorted(maps.Keys(s.wanted))...)
		}
		if err := p.ask(rpc, t, names); err != nil {
			return err
		}
	}
	return nil
}

// want makes names the wanted ones, and says what is new and what is not wanted any more.
func (s *subscription) want(names []string) (added, gone []string) {
	if names == nil {
		return nil, nil
	}
	wanted := make(map[string]bool, len(names))
	for _, n := range names {
		wanted[n] = true
		if !s.wanted[n] {
			added = append(added, n)
		}
	}
	missing := map[string]bool{}
	for n := range wanted {
		if _, held := s.held[n]; !held && (s.missing[n] || !s.wanted[n]) {
			missing[n] = true
		}
	}
	for n := range s.wanted {
		if !wanted[n] {
			gone = append(gone, n)
			delete(s.held, n)
		}
	}
	s.wanted, s.missing = wanted, missing
	return added, gone
}

// take accepts a response and asks for what it makes necessary.
func (p *sidecar) take(rpc stream, data raw) error {
	now := time.Now()
	r, err := parse(data, p.delta)
	if err != nil {
		return err
	}
	p.notice(r.typeURL, data, now)
	s := p.of(r.typeURL)
	s.answered, s.nonce, s.version = true, r.nonce, r.version
	if err := p.store(s, r); err != nil {
		return err
	}
	if err := p.acknowledge(rpc, r, s); err != nil {
		return err
	}
	if err := p.follow(rpc, r.typeURL); err != nil {
		return err
	}
	if !p.synced && p.complete() {
		p.synced = true
		p.fleet.synced <- p.index
	}
	return nil
}

// store keeps names, versions and needs.
func (p *sidecar) store(s *subscription, r response) error {
	whole := !p.delta && (r.typeURL == clusterType || r.typeURL == listenerType)
	if whole {
		clear(s.held)
		clear(s.needs)
	}
	for _, one := range r.resources {
		f, err := p.fleet.library.facts(r.typeURL, one.body)
		if err != nil {
			return err
		}
		name := pick(one.name != "", one.name, f.name)
		s.held[name] = one.version
		delete(s.missing, name)
		if len(f.needs) > 0 {
			s.needs[name] = f.needs
		} else {
			delete(s.needs, name)
		}
		if f.hosts {
			s.needs[name] = []string{}
		}
	}
	for _, name := range r.removed {
		delete(s.held, name)
		delete(s.needs, name)
		delete(s.missing, name)
	}
	return nil
}

func (p *sidecar) acknowledge(rpc stream, r response, s *subscription) error {
	if p.delta {
		return rpc.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce})
	}
	return rpc.SendMsg(&discoveryv3.DiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce, VersionInfo: r.version,
		ResourceNames: slices.Sorted(maps.Keys(s.wanted))})
}

// follow asks for what a type makes necessary, in Envoy's order: listeners when there are clusters and endpoints, routes when
// there are listeners.
func (p *sidecar) follow(rpc stream, typeURL string) error {
	s := p.of(typeURL)
	var needs []string
	for _, n := range s.needs {
		needs = append(needs, n...)
	}
	slices.Sort(needs)
	needs = slices.Compact(needs)
	switch typeURL {
	case clusterType:
		if len(needs) > 0 || p.of(endpointType).asked {
			if err := p.ask(rpc, endpointType, append([]string{}, needs...)); err != nil {
				return err
			}
		}
		if len(needs) == 0 {
			return p.ask(rpc, listenerType, nil)
		}
	case endpointType:
		return p.ask(rpc, listenerType, nil)
	case listenerType:
		if len(needs) > 0 || p.of(routeType).asked {
			return p.ask(rpc, routeType, append([]string{}, needs...))
		}
	case routeType:
		if p.delta && len(s.needs) > 0 && !p.of(virtualHostType).asked {
			return p.ask(rpc, virtualHostType, nil)
		}
	}
	return nil
}

// complete reports whether everything that was asked for was answered.
func (p *sidecar) complete() bool {
	for _, t := range []string{clusterType, endpointType, listenerType, routeType} {
		if s := p.of(t); !s.asked || len(s.missing) > 0 {
			return false
		}
	}
	hosts := p.of(virtualHostType)
	return p.of(clusterType).answered && p.of(listenerType).answered && hosts.answered == hosts.asked
}

// notice tells whoever waits for a change that this sidecar has it.
func (p *sidecar) notice(typeURL string, data []byte, now time.Time) {
	e := p.fleet.expected.Load()
	if e == nil {
		return
	}
	if e != p.waits {
		p.waits = e
		clear(p.seen)
	}
	// Routes come as route configurations or as virtual hosts.
	kind := pick(typeURL == virtualHostType, routeType, typeURL)
	if p.seen[kind] || !e.types[kind] || !bytes.Contains(data, e.marker) {
		return
	}
	p.seen[kind] = true
	if len(p.seen) == len(e.types) {
		e.arrived <- now
	}
}

// expectation is a change that every sidecar is to be told of: text that stands in responses of these types.
type expectation struct {
	marker  []byte
	types   map[string]bool
	arrived chan time.Time
}

// ended reports whether an error only says that this side has ended the stream.
func ended(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.Canceled)
}
