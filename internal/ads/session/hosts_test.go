package session_test

import (
	"testing"

	"github.com/selvage-mesh/selvage/internal/ads/session"
)

// apart is a world whose two route configurations have their virtual hosts apart.
var apart = world{cds: "a=1 b=1", lds: "l80=1 l90=1", rds: "80=1 90=1", vhds: "80/a=1 80/b=1 90/a=1"}

// served is a client that has everything of apart.
func served(t *testing.T) *peer {
	t.Helper()
	p := connect(t, session.Delta, apart).sub("cds").sub("lds").sub("rds", "80", "90").gets("cds a=1 b=1", "lds l80=1 l90=1", "rds 80=1 90=1")
	return p.ack("cds", "lds", "rds").sub("vhds").gets("vhds 80/a=1 80/b=1").ack("vhds").gets("vhds 90/a=1").ack("vhds").gets().settled(true)
}

// claims comes back on a new stream with what a client says it holds of routes and virtual hosts.
func claims(t *testing.T, w world, rds, vhds map[string]string) *peer {
	t.Helper()
	return connect(t, session.Delta, w).delta("cds", session.DeltaRequest{Initial: map[string]string{"a": "1", "b": "1"}}).
		delta("lds", session.DeltaRequest{Initial: map[string]string{"l80": "1", "l90": "1"}}).
		delta("rds", session.DeltaRequest{Subscribe: []string{"80", "90"}, Initial: rds}).
		delta("vhds", session.DeltaRequest{Initial: vhds})
}

func TestVirtualHosts(t *testing.T) {
	both := map[string]string{"80": "1", "90": "1"}
	all := map[string]string{"80/a": "1", "80/b": "1", "90/a": "1"}
	for _, c := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"they follow the acknowledgement of their route configuration, whole and never two of these together", func(t *testing.T) {
			p := connect(t, session.Delta, apart).sub("vhds").sub("rds", "80", "90").gets("rds 80=1 90=1").ack("rds")
			p.gets("vhds 80/a=1 80/b=1").ack("vhds").gets("vhds 90/a=1").ack("vhds").gets().gives(session.VirtualHosts, session.Synced)
		}},
		{"one that changes is all that is sent", func(t *testing.T) {
			w := apart
			w.vhds = "80/a=1 80/b=2 80/c=1 90/a=1"
			served(t).now(w).gets("vhds 80/b=2 80/c=1").ack("vhds").gets().settled(true)
		}},
		{"one that goes is removed", func(t *testing.T) {
			w := apart
			w.vhds = "80/b=1 90/a=1"
			served(t).now(w).gets("vhds -80/a").ack("vhds").gets().settled(true)
		}},
		{"a change of the route configuration leaves them alone", func(t *testing.T) {
			w := apart
			w.rds = "80=2 90=1"
			served(t).now(w).gets("rds 80=2").ack("rds").gets().settled(true)
		}},
		{"they wait for new clusters, and clusters that go for them", func(t *testing.T) {
			w := apart
			w.cds, w.vhds = "b=1 c=1", "80/a=1 80/b=2 90/a=1"
			p := served(t).now(w).gets("cds c=1").ack("cds").gets("vhds 80/b=2")
			p.ack("vhds").gets("cds -a").ack("cds").gets().settled(true)
		}},
		{"a route configuration that is given up takes them along, so that they are not claimed for ever", func(t *testing.T) {
			served(t).unsub("rds", "80").gets("vhds -80/a -80/b").ack("vhds").gets().settled(true)
		}},
		{"a route configuration that begins again waits until the client holds none of them", func(t *testing.T) {
			p := served(t).unsub("rds", "80").gets("vhds -80/a -80/b").sub("rds", "80").gets().ack("vhds")
			p.gets().gets("rds 80=1").ack("rds").gets("vhds 80/a=1 80/b=1").ack("vhds").gets().settled(true)
		}},
		{"the same for one that is asked for again without having been given up", func(t *testing.T) {
			p := served(t).sub("rds", "80").gets("vhds -80/a -80/b").ack("vhds").gets().gets("rds 80=1").ack("rds")
			p.gets("vhds 80/a=1 80/b=1").ack("vhds").gets().settled(true)
		}},
		{"nothing that a client holds is sent again when it comes back", func(t *testing.T) {
			claims(t, apart, both, all).gets().settled(true).gives(session.VirtualHosts, session.Synced)
		}},
		{"what changed while it was away is", func(t *testing.T) {
			w := apart
			w.rds, w.vhds = "80=2 90=1", "80/a=2 80/c=1 90/a=1"
			claims(t, w, both, all).gets("rds 80=2", "vhds 80/a=2 80/c=1 -80/b").ack("rds", "vhds").gets().settled(true)
		}},
		{"a claim is not believed without one of their route configuration", func(t *testing.T) {
			p := claims(t, apart, map[string]string{"90": "1"}, all).gets("vhds -80/a -80/b").ack("vhds")
			p.gets().gets("rds 80=1").ack("rds").gets("vhds 80/a=1 80/b=1").ack("vhds").gets().settled(true)
		}},
		{"a client that comes back without having any is given time to say so, and then gets its routes", func(t *testing.T) {
			p := connect(t, session.Delta, apart).delta("lds", session.DeltaRequest{Initial: map[string]string{"l80": "1", "l90": "1"}})
			p.sub("rds", "80", "90").gets()
			p.s.OpenGates()
			p.gets("rds 80=1 90=1").ack("rds").sub("vhds").gets("vhds 80/a=1 80/b=1")
		}},
		{"the others of a rejected response are sent again, and the guilty is found by halves", func(t *testing.T) {
			w := apart
			w.vhds = "80/a=2 80/b=bad 90/a=1"
			p := served(t).now(w).gets("vhds 80/a=2 80/b=bad").nack("vhds", "Only unique values for domains are permitted.")
			p.gets("vhds 80/a=2").ack("vhds").gets("vhds 80/b=bad").nack("vhds", "Only unique values for domains are permitted.")
			p.gets().gives(session.VirtualHosts, session.Rejected)
			if g := p.out["vhds"].Rejection.Guilty; len(g) != 1 || g[0].Name != "80/b" {
				t.Errorf("guilty: %v", g)
			}
			w.vhds = "80/a=2 80/b=3 90/a=1"
			p.now(w).gets("vhds 80/b=3").ack("vhds").gets().gives(session.VirtualHosts, session.Synced)
		}},
	} {
		t.Run(c.name, c.test)
	}
}
