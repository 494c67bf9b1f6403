package session_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/xds"
)

func TestStateOfTheWorld(t *testing.T) {
	again := func(t *testing.T, now world, versions [4]string) *peer {
		p := connect(t, session.SotW, now)
		p.names = map[string][]string{"eds": {"web", "db"}, "rds": {"80"}}
		for i, k := range []string{"cds", "eds", "lds", "rds"} {
			p.state(k, session.SotWRequest{Names: p.names[k], Version: versions[i]})
		}
		return p
	}
	versions := func(p *peer) (v [4]string) {
		for i, k := range []string{"cds", "eds", "lds", "rds"} {
			v[i] = p.last[k].Version
		}
		return v
	}
	t.Run("clusters and listeners that did not change are not sent on a reconnect", func(t *testing.T) {
		p := again(t, shop, versions(running(t, session.SotW))).gets("eds db=1 web=1", "rds 80=1").ack("eds", "rds").gets().settled(true)
		for k := session.Clusters; k <= session.Routes; k++ {
			p.gives(k, session.Synced)
		}
	})
	t.Run("what changed while the client was away is sent on a reconnect", func(t *testing.T) {
		now := shop
		now.lds, now.rds = "l80=2", "80=2"
		again(t, now, versions(running(t, session.SotW))).gets("eds db=1 web=1", "lds l80=2", "rds 80=2")
	})
	t.Run("a client that may have taken a part of what it rejected is told what it should have, even if that is what it had", func(t *testing.T) {
		w := shop
		w.lds = "l80=2 l90=bad"
		p := running(t, session.SotW).now(w).gets("lds l80=2 l90=bad").nack("lds", "Error adding/updating listener(s) l90: no").gets()
		p.now(shop).gets("lds l80=1 l90=1").ack("lds").gets().gives(session.Listeners, session.Synced)
	})
	t.Run("a changed endpoint changes the version of all", func(t *testing.T) {
		p := running(t, session.SotW)
		before := versions(p)
		w := shop
		w.eds = "web=2 db=1"
		p.now(w, "web").gets("eds web=2").ack("eds")
		if v := versions(p); v[1] == before[1] {
			t.Error("the version stayed the same")
		}
	})
	t.Run("a client that starts is answered also with nothing", func(t *testing.T) {
		connect(t, session.SotW, world{}).sub("cds").gets("cds").sub("lds").gets("lds").sub("eds", "x").gets("eds")
	})
	t.Run("a set of names limits clusters", func(t *testing.T) {
		p := connect(t, session.SotW, shop).sub("cds", "web").gets("cds web=1").ack("cds").gets()
		p.sub("cds", "none").gets("cds web=1").ack("cds").gets()
	})
}

func TestLimits(t *testing.T) {
	t.Run("a client may not subscribe without end", func(t *testing.T) {
		s := session.New(session.Delta, config(shop))
		names := make([]string, 100_001)
		for i := range names {
			names[i] = fmt.Sprint(i)
		}
		if _, err := s.Delta(session.DeltaRequest{TypeURL: xds.EndpointType, Subscribe: names}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a client may not ask for types without end", func(t *testing.T) {
		s := session.New(session.SotW, config(shop))
		var err error
		for i := range 100 {
			if _, err = s.SotW(session.SotWRequest{TypeURL: fmt.Sprint("type/", i)}); err != nil {
				break
			}
		}
		if err == nil {
			t.Error("no error")
		}
	})
}

func TestRejectionText(t *testing.T) {
	for _, c := range []struct{ text, sent, want string }{
		{"Error adding/updating listener(s) 0.0.0.0_80: bad, l1: worse", "0.0.0.0_8080=1 0.0.0.0_80=1 l=1 l1=1", "0.0.0.0_80 l1"},
		{"Error adding/updating cluster(s) outbound|80||web.shop.svc.cluster.local: no", "outbound|80||web.shop.svc.cluster.local=1 web=1", "outbound|80||web.shop.svc.cluster.local"},
		{"goo.gle/debugonly Error adding/updating listener(s) l0: error adding listener: 'l1' has duplicate address", "l0=1 l1=1", "l0"},
		{"Only unique values for domains are permitted. Duplicate entry of domain x in route 80", "80=1 8080=1", "80"},
		{"port 80 is out of range", "80=1", ""},
		{"Proto constraint validation failed", "web=1 db=1", ""},
		{"malformed IP address in outbound|80||web.shop.svc.cluster.local.", "outbound|80||web.shop.svc.cluster.local=1 outbound|80||web.shop=1", "outbound|80||web.shop.svc.cluster.local"},
	} {
		p := connect(t, session.Delta, world{cds: c.sent}).sub("cds")
		p.gets("cds "+strings.Join(sorted(c.sent), " ")).nack("cds", c.text)
		var got []string
		for _, r := range p.out["cds"].Rejection.Guilty {
			got = append(got, r.Name)
		}
		if len(p.last["cds"].Added) == 1 && c.want == "" {
			continue // the only one is guilty by itself
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q names %q, want %q", c.text, got, c.want)
		}
	}
}

func sorted(entries string) []string {
	f := strings.Fields(entries)
	slices.SortFunc(f, func(a, b string) int {
		a, _, _ = strings.Cut(a, "=")
		b, _, _ = strings.Cut(b, "=")
		return strings.Compare(a, b)
	})
	return f
}
