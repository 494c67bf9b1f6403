package xds

import (
	"cmp"
	"slices"
	"strings"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// weighed gives every locality the weight of its endpoints: a cluster that takes weights sends nothing where there is none.
func weighed(groups []*endpointv3.LocalityLbEndpoints) []*endpointv3.LocalityLbEndpoints {
	for _, g := range groups {
		g.LoadBalancingWeight = wrapperspb.UInt32(max(1, uint32(len(g.GetLbEndpoints()))))
	}
	return groups
}

// balanced gives the groups of endpoints as clients of one locality take them: with the weights of a distribution that begins there, or,
// where there is none, by how near they are (istio.io, LocalityLoadBalancerSetting). A client whose locality is not known has no
// preference.
func balanced(groups []*endpointv3.LocalityLbEndpoints, by *mesh.LocalityBalancing, client mesh.Locality) []*endpointv3.LocalityLbEndpoints {
	if len(by.Distribute) == 0 && client == (mesh.Locality{}) {
		return groups
	}
	for _, d := range by.Distribute {
		if client != (mesh.Locality{}) && matchesLocality(d.From, client) {
			return distributed(groups, d)
		}
	}
	if len(by.Distribute) > 0 {
		return weighed(groups)
	}
	return prioritized(groups, by.Failover, client)
}

func localityOf(g *endpointv3.LocalityLbEndpoints) mesh.Locality {
	l := g.GetLocality()
	return mesh.Locality{Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubZone()}
}

// matchesLocality reports whether a locality is what a pattern says; what the pattern leaves out is anything.
func matchesLocality(pattern string, l mesh.Locality) bool {
	parts := strings.SplitN(pattern, "/", 3)
	for i, has := range []string{l.Region, l.Zone, l.Subzone} {
		if i >= len(parts) || parts[i] == "*" {
			return true
		}
		if parts[i] != has {
			return false
		}
	}
	return true
}

// distributed gives each locality its share; several that one pattern matches share it by the number of their endpoints. A locality that
// no pattern matches gets nothing.
func distributed(groups []*endpointv3.LocalityLbEndpoints, d mesh.Distribution) (kept []*endpointv3.LocalityLbEndpoints) {
	rest := slices.Clone(groups)
	for _, to := range d.To {
		var matched []*endpointv3.LocalityLbEndpoints
		rest = slices.DeleteFunc(rest, func(g *endpointv3.LocalityLbEndpoints) bool {
			is := matchesLocality(to.Pattern, localityOf(g))
			if is {
				matched = append(matched, g)
			}
			return is
		})
		total := 0
		for _, g := range matched {
			total += len(g.GetLbEndpoints())
		}
		for _, g := range matched {
			if to.Weight == 0 {
				continue
			}
			g.LoadBalancingWeight = wrapperspb.UInt32(max(1, uint32(int(to.Weight)*100*len(g.GetLbEndpoints())/max(1, total))))
			kept = append(kept, g)
		}
	}
	slices.SortFunc(kept, func(a, b *endpointv3.LocalityLbEndpoints) int { return compareLocality(localityOf(a), localityOf(b)) })
	return kept
}

func compareLocality(a, b mesh.Locality) int {
	return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Subzone, b.Subzone))
}

// prioritized orders localities by how near they are: the same subzone, the same zone, the same region, the region that the client's
// fails over to, all others. Envoy wants priorities without gaps.
func prioritized(groups []*endpointv3.LocalityLbEndpoints, failover []mesh.Failover, client mesh.Locality) []*endpointv3.LocalityLbEndpoints {
	distance := func(l mesh.Locality) uint32 {
		switch {
		case l == client:
			return 0
		case l.Region == client.Region && l.Zone == client.Zone:
			return 1
		case l.Region == client.Region:
			return 2
		case slices.Contains(failover, mesh.Failover{From: client.Region, To: l.Region}):
			return 3
		}
		return 4
	}
	var present []uint32
	for _, g := range groups {
		present = append(present, distance(localityOf(g)))
	}
	slices.Sort(present)
	present = slices.Compact(present)
	for _, g := range groups {
		at, _ := slices.BinarySearch(present, distance(localityOf(g)))
		g.Priority = uint32(at)
	}
	return groups
}
