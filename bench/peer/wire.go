package main

import (
	"fmt"
	"hash/maphash"
	"sync"
	"unique"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The types that a sidecar asks for.
const (
	clusterType     = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType    = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType    = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType       = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	virtualHostType = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
)

// raw is a response as it came: to decode 2 MB for each of 2,000 simulated sidecars would make the client the bottleneck.
type raw []byte

// codec gives responses undecoded.
type codec struct{ encoding.CodecV2 }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*raw); ok {
		*r = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// resource is one of a response. Its bytes belong to the response.
type resource struct {
	name    string
	version unique.Handle[string]
	body    []byte
}

// response is what matters of a response of either variant.
type response struct {
	typeURL, nonce, version string
	resources               []resource
	removed                 []string
}

// Field numbers of envoy.service.discovery.v3, the same in both variants but for the resources, which the state of the world
// has as bare Any.
const (
	fieldVersion   = 1
	fieldResources = 2
	fieldTypeURL   = 4
	fieldNonce     = 5
	fieldRemoved   = 6
)

func parse(data raw, delta bool) (r response, err error) {
	err = fields(data, func(number protowire.Number, value []byte) error {
		switch number {
		case fieldVersion:
			r.version = string(value)
		case fieldResources:
			one, err := parseResource(value, delta)
			r.resources = append(r.resources, one)
			return err
		case fieldTypeURL:
			r.typeURL = string(value)
		case fieldNonce:
			r.nonce = string(value)
		case fieldRemoved:
			if delta {
				r.removed = append(r.removed, string(value))
			}
		}
		return nil
	})
	return r, err
}

func parseResource(data []byte, delta bool) (r resource, err error) {
	r.version = unique.Make("") // istiod gives none
	if !delta {
		r.body, err = anyValue(data)
		return r, err
	}
	err = fields(data, func(number protowire.Number, value []byte) (err error) {
		switch number {
		case 1:
			r.version = unique.Make(string(value))
		case 2:
			r.body, err = anyValue(value)
		case 3:
			r.name = string(value)
		}
		return err
	})
	return r, err
}

func anyValue(data []byte) (body []byte, err error) {
	err = fields(data, func(number protowire.Number, value []byte) error {
		if number == 2 {
			body = value
		}
		return nil
	})
	return body, err
}

// fields calls do for each field of a message that has a length; others are skipped.
func fields(data []byte, do func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return fmt.Errorf("read a response: %w", protowire.ParseError(n))
		}
		data = data[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
				return fmt.Errorf("read a response: %w", protowire.ParseError(n))
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return fmt.Errorf("read a response: %w", protowire.ParseError(n))
		}
		if err := do(number, value); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// facts is what a sidecar must know of a resource in order to ask for what it needs next.
type facts struct {
	name  string   // as the resource itself says it
	needs []string // a cluster's endpoints, a listener's routes
	hosts bool     // a route configuration whose virtual hosts come by VHDS
}

// library decodes each distinct resource once for all simulated sidecars.
type library struct {
	seed  maphash.Seed
	known sync.Map // sum of the bytes → facts
}

func newLibrary() *library { return &library{seed: maphash.MakeSeed()} }

func (l *library) facts(typeURL string, body []byte) (facts, error) {
	sum := maphash.Bytes(l.seed, body)
	if f, ok := l.known.Load(sum); ok {
		return f.(facts), nil
	}
	f, err := decode(typeURL, body)
	if err != nil {
		return facts{}, fmt.Errorf("decode a resource of %s: %w", typeURL, err)
	}
	l.known.Store(sum, f)
	return f, nil
}

func decode(typeURL string, body []byte) (f facts, err error) {
	switch typeURL {
	case clusterType:
		var c clusterv3.Cluster
		if err = proto.Unmarshal(body, &c); err != nil {
			return f, err
		}
		f.name = c.GetName()
		if c.GetType() == clusterv3.Cluster_EDS {
			name := c.GetEdsClusterConfig().GetServiceName()
			if name == "" {
				name = c.GetName()
			}
			f.needs = []string{name}
		}
	case listenerType:
		var l listenerv3.Listener
		if err = proto.Unmarshal(body, &l); err != nil {
			return f, err
		}
		f.name = l.GetName()
		f.needs, err = routesOf(&l)
	default: // endpoints, routes and virtual hosts begin with their name
		err = fields(body, func(number protowire.Number, value []byte) error {
			f.name = pick(number == 1, string(value), f.name)
			f.hosts = f.hosts || typeURL == routeType && number == 9
			return nil
		})
	}
	return f, err
}

func pick[T any](first bool, a, b T) T {
	if first {
		return a
	}
	return b
}

func routesOf(l *listenerv3.Listener) (names []string, err error) {
	chains := l.GetFilterChains()
	if d := l.GetDefaultFilterChain(); d != nil {
		chains = append(chains, d)
	}
	for _, chain := range chains {
		for _, filter := range chain.GetFilters() {
			if filter.GetTypedConfig().GetTypeUrl() != "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" {
				continue
			}
			var m hcmv3.HttpConnectionManager
			if err := filter.GetTypedConfig().UnmarshalTo(&m); err != nil {
				return nil, err
			}
			if name := m.GetRds().GetRouteConfigName(); name != "" {
				names = append(names, name)
			}
		}
	}
	return names, nil
}
