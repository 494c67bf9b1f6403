package ads

import (
	"fmt"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/xds"
)

func cluster(t testing.TB, c *clusterv3.Cluster, version string) xds.Resource {
	t.Helper()
	body, err := anypb.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Resource{Name: c.GetName(), Version: version, Body: body}
}

// marshal puts a frame on the wire in both ways: through Codec, and through the usual codec of a server that has not Codec.
func marshal(t *testing.T, f *frame, check func([]byte)) {
	t.Helper()
	for _, c := range []encoding.CodecV2{codec{encoding.GetCodecV2("proto")}, encoding.GetCodecV2("proto")} {
		out, err := c.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		check(out.Materialize())
		out.Free()
	}
}

func TestFrameIsTheMessage(t *testing.T) {
	a := cluster(t, &clusterv3.Cluster{Name: "a", AltStatName: "x"}, "1")
	b := cluster(t, &clusterv3.Cluster{Name: "b"}, "2")
	empty := xds.Resource{Name: "c", Version: "3", Body: &anypb.Any{TypeUrl: xds.ClusterType}}
	var added []*session.Resource
	for _, r := range []xds.Resource{a, b, empty} {
		added = append(added, newResource(session.Clusters, r))
	}
	for n := range len(added) + 1 {
		response := session.Response{TypeURL: xds.ClusterType, Nonce: "7", Version: "v", Added: added[:n], Removed: []string{"gone", "away"}}
		delta := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: xds.ClusterType, Nonce: "7", RemovedResources: []string{"gone", "away"}}
		sotw := &discoveryv3.DiscoveryResponse{TypeUrl: xds.ClusterType, Nonce: "7", VersionInfo: "v"}
		for _, r := range []xds.Resource{a, b, empty}[:n] {
			delta.Resources = append(delta.Resources, &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
			sotw.Resources = append(sotw.Resources, r.Body)
		}
		marshal(t, newFrame(session.Delta, response), func(wire []byte) { same(t, wire, delta, &discoveryv3.DeltaDiscoveryResponse{}) })
		marshal(t, newFrame(session.SotW, response), func(wire []byte) { same(t, wire, sotw, &discoveryv3.DiscoveryResponse{}) })
	}
}

func same(t *testing.T, wire []byte, want, got proto.Message) {
	t.Helper()
	if err := proto.Unmarshal(wire, got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(want, got) {
		t.Fatalf("the wire says\n%v\nwant\n%v", got, want)
	}
}

func TestEndpointName(t *testing.T) {
	for _, c := range []struct {
		cluster *clusterv3.Cluster
		want    string
	}{
		{&clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}}, "c"},
		{&clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: "other"}}, "other"},
		{&clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}}, ""},
		{&clusterv3.Cluster{Name: "c"}, ""},
	} {
		if got := newResource(session.Clusters, cluster(t, c.cluster, "1")).EndpointName; got != c.want {
			t.Errorf("%v asks for endpoints %q, want %q", c.cluster, got, c.want)
		}
	}
}

func FuzzEndpointName(f *testing.F) {
	f.Add([]byte{0x10, 3, 0x1a, 2, 0x12, 0})
	f.Fuzz(func(_ *testing.T, b []byte) { _ = fmt.Sprint(endpointName("c", b)) })
}
