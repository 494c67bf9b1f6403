package scope_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/scope"
)

func model(addresses ...string) *mesh.Model {
	w := &mesh.Workload{ServiceAccount: "web", Inbound: &mesh.Inbound{Namespace: "shop"}}
	for _, a := range addresses {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	return &mesh.Model{
		Settings: &mesh.Settings{}, Outbound: &mesh.Outbound{},
		Workloads: map[mesh.WorkloadKey]*mesh.Workload{{Namespace: "shop", Name: "web-0"}: w},
	}
}

func TestAProxyIsWhatItsAddressesSay(t *testing.T) {
	both := []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00::5")}
	for _, c := range []struct {
		name      string
		addresses []string
		id        string
		says      []netip.Addr
		want      scope.Traits
	}{
		{"IPv4", []string{"10.1.0.5"}, "sidecar~10.1.0.5~web-0.shop~x", nil, scope.Traits{IPv4: true}},
		{"IPv6", []string{"fd00::5"}, "sidecar~fd00::5~web-0.shop~x", nil, scope.Traits{IPv6: true}},
		{"both", []string{"10.1.0.5", "fd00::5"}, "sidecar~10.1.0.5~web-0.shop~x", nil, scope.Traits{IPv4: true, IPv6: true}},
		{"not in the pod's status yet", nil, "sidecar~fd00::5~web-0.shop~x", nil, scope.Traits{IPv6: true}},
		{"not in the pod's status yet, and the proxy knows more", nil, "sidecar~10.1.0.5~web-0.shop~x", both, scope.Traits{IPv4: true, IPv6: true}},
		{"nothing known", nil, "web-0", nil, scope.Traits{IPv4: true}},
		{"nonsense", nil, "sidecar~x~web-0.shop~x", nil, scope.Traits{IPv4: true}},
	} {
		v, err := scope.For(model(c.addresses...), scope.Proxy{ID: c.id, Addresses: c.says, Namespace: "shop", Name: "web-0", ServiceAccount: "web"})
		if err != nil || v.Traits != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, v.Traits, err, c.want)
		}
	}
}

func TestAProxySeesNothingAsSomeoneElse(t *testing.T) {
	_, err := scope.For(model(), scope.Proxy{Namespace: "shop", Name: "web-0", ServiceAccount: "bank"})
	if err == nil || !strings.Contains(err.Error(), "runs as web") {
		t.Errorf("another service account: %v", err)
	}
	var unknown *scope.UnknownWorkloadError
	if _, err := scope.For(model(), scope.Proxy{Namespace: "shop", Name: "web-1", ServiceAccount: "web"}); !errors.As(err, &unknown) {
		t.Errorf("an unknown pod: %v", err)
	}
}
