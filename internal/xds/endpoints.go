package xds

import (
	"cmp"
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// LoadAssignment gives the endpoints of one service port, under the name of its cluster and grouped by locality. It is the
// same for every view that may see the port, unless by is not nil: then it is for clients of one locality.
func LoadAssignment(set *mesh.EndpointSet, by *mesh.LocalityBalancing, client mesh.Locality) (Resource, error) {
	name := ClusterName(set.Key)
	assignment := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	tls := envoy.TLSEndpoint()
	groups := map[mesh.Locality]*endpointv3.LocalityLbEndpoints{}
	for _, e := range set.Endpoints {
		group := groups[e.Locality]
		if group == nil {
			group = &endpointv3.LocalityLbEndpoints{Locality: locality(e.Locality)}
			groups[e.Locality] = group
			assignment.Endpoints = append(assignment.Endpoints, group)
		}
		endpoint := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: envoy.Address(e.Address, e.Port)},
		}}
		if e.Health == mesh.Draining {
			endpoint.HealthStatus = corev3.HealthStatus_DRAINING
		}
		if e.Weight > 0 {
			endpoint.LoadBalancingWeight = wrapperspb.UInt32(e.Weight)
		}
		if e.MTLS {
			endpoint.Metadata = tls
		}
		group.LbEndpoints = append(group.LbEndpoints, endpoint)
	}
	slices.SortFunc(assignment.Endpoints, func(a, b *endpointv3.LocalityLbEndpoints) int {
		x, y := a.GetLocality(), b.GetLocality()
		return cmp.Or(cmp.Compare(x.GetRegion(), y.GetRegion()), cmp.Compare(x.GetZone(), y.GetZone()), cmp.Compare(x.GetSubZone(), y.GetSubZone()))
	})
	if by != nil {
		assignment.Endpoints = balanced(assignment.Endpoints, by, client)
	}
	body, err := envoy.Marshal(assignment)
	if err != nil {
		return Resource{}, fmt.Errorf("marshal endpoints of %s: %w", name, err)
	}
	return Resource{
		Name: name, Version: version(body), Refs: sortedRefs(slices.Clone(set.Refs)),
		Body: &anypb.Any{TypeUrl: EndpointType, Value: body},
	}, nil
}

func locality(l mesh.Locality) *corev3.Locality {
	if l == (mesh.Locality{}) {
		return nil
	}
	return &corev3.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.Subzone}
}
