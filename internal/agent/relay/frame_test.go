package relay

import (
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

const listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRequestsAreUnderstoodWithoutDecodingThem(t *testing.T) {
	node := &corev3.Node{Id: "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local", UserAgentName: "envoy"}
	rejection := &status.Status{Code: 13, Message: "Error adding/updating listener(s) l0: bad"}
	for _, tt := range []struct {
		name   string
		given  proto.Message
		fields fields
		want   peeked
	}{
		{"delta: first request", &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: listenerType, ResourceNamesSubscribe: []string{"a"},
			InitialResourceVersions: map[string]string{"a": "1"}}, deltaFields, peeked{typeURL: listenerType}},
		{"delta: accepted", &discoveryv3.DeltaDiscoveryRequest{TypeUrl: listenerType, ResponseNonce: "7"}, deltaFields, peeked{typeURL: listenerType, nonce: "7"}},
		{"delta: rejected", &discoveryv3.DeltaDiscoveryRequest{TypeUrl: listenerType, ResponseNonce: "7", ErrorDetail: rejection}, deltaFields,
			peeked{listenerType, "7", true, rejection.Message}},
		{"world: accepted", &discoveryv3.DiscoveryRequest{VersionInfo: "v", TypeUrl: listenerType, ResponseNonce: "8", ResourceNames: []string{"b"}}, worldFields,
			peeked{typeURL: listenerType, nonce: "8"}},
		{"world: rejected", &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: listenerType, ResponseNonce: "8", ErrorDetail: rejection}, worldFields,
			peeked{listenerType, "8", true, rejection.Message}},
		{"rejected without a word", &discoveryv3.DeltaDiscoveryRequest{TypeUrl: listenerType, ErrorDetail: &status.Status{}}, deltaFields,
			peeked{typeURL: listenerType, rejected: true}},
		{"nothing", &discoveryv3.DeltaDiscoveryRequest{}, deltaFields, peeked{}},
	} {
		if got := peek(encode(t, tt.given), tt.fields); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func FuzzPeek(f *testing.F) {
	f.Add(encode(f, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: listenerType, ResponseNonce: "7", ErrorDetail: &status.Status{Code: 13, Message: "bad"}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		got := peek(data, deltaFields)
		var m discoveryv3.DeltaDiscoveryRequest
		if proto.Unmarshal(data, &m) != nil {
			return // only that it returns matters
		}
		if want := (peeked{m.GetTypeUrl(), m.GetResponseNonce(), m.GetErrorDetail() != nil, m.GetErrorDetail().GetMessage()}); got != want {
			// A message in several parts is merged by protobuf; no sender of xDS splits one.
			if !got.rejected || !want.rejected {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
	})
}
