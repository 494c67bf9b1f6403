package session_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/ads/session"
)

func TestDelta(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"nothing unchanged is sent on a reconnect", func(t *testing.T) {
			p := reconnected(t, shop, shop).gets().settled(true)
			for k := session.Clusters; k <= session.Routes; k++ {
				p.gives(k, session.Synced)
			}
		}},
		{"what changed while the client was away is sent on a reconnect, in order", func(t *testing.T) {
			now := world{cds: "+web=2 static=1 +new=1", eds: "web=1 new=1", lds: "l80=2", rds: "80=2"}
			p := reconnected(t, shop, now).gets("cds new=1 web=2", "eds web=1").ack("cds", "eds")
			p.gets().sub("eds", "new").gets("eds new=1").ack("eds")
			p.gets("lds l80=2 -l90", "rds 80=2").ack("lds", "rds").gets("cds -db").ack("cds")
			p.gets("eds -db").ack("eds").gets().settled(true)
		}},
		{"a claim of endpoints is not enough when their cluster was sent before it", func(t *testing.T) {
			p := connect(t, session.Delta, shop)
			p.delta("cds", session.DeltaRequest{Initial: map[string]string{"web": "0", "db": "1", "static": "1"}}).gets("cds web=1")
			p.delta("eds", session.DeltaRequest{Subscribe: []string{"web", "db"}, Initial: map[string]string{"web": "1@1", "db": "1@1"}}).gets("eds web=1")
		}},
		{"a claim of endpoints by a client without clusters is not believed", func(t *testing.T) {
			p := connect(t, session.Delta, shop).sub("cds").gets("cds db=1 static=1 web=1")
			p.delta("eds", session.DeltaRequest{Subscribe: []string{"web"}, Initial: map[string]string{"web": "1@1"}}).gets("eds web=1")
		}},
		{"endpoints that a changed cluster waits for are sent when the stream broke before they were", func(t *testing.T) {
			now := shop
			now.cds = "+web=2 +db=1 static=1"
			p := connect(t, session.Delta, now)
			p.delta("cds", session.DeltaRequest{Initial: map[string]string{"web": "2", "db": "1", "static": "1"}}).gets()
			p.delta("eds", session.DeltaRequest{Subscribe: []string{"web", "db"}, Initial: map[string]string{"web": "1@1", "db": "1@1"}}).gets("eds web=1")
		}},
		{"what a client should not have any more is removed on a reconnect", func(t *testing.T) {
			p := connect(t, session.Delta, shop)
			p.delta("lds", session.DeltaRequest{Initial: map[string]string{"l80": "1", "l90": "1", "gone": "7"}}).gets("lds -gone").ack("lds").gets()
		}},
		{"a client that starts is answered also with nothing", func(t *testing.T) {
			p := connect(t, session.Delta, world{}).sub("cds").gets("cds").sub("lds").gets("lds").ack("cds", "lds").gets()
			p.gives(session.Clusters, session.Synced).gives(session.Routes, session.NotSent)
		}},
		{"a client that starts gets everything at once", func(t *testing.T) {
			connect(t, session.Delta, shop).sub("cds").sub("eds", "web").sub("lds").sub("rds", "80").
				gets("cds db=1 static=1 web=1", "eds web=1", "lds l80=1 l90=1", "rds 80=1")
		}},
		{"a name that does not exist is answered at once, and sent when it exists", func(t *testing.T) {
			p := running(t, session.Delta).sub("eds", "later").gets("eds -later").ack("eds").gets().sub("rds", "99").gets("rds -99").ack("rds").gets()
			w := shop
			w.eds, w.rds = shop.eds+" later=1", "80=1 99=1"
			p.now(w, "later").gets("eds later=1", "rds 99=1")
		}},
		{"a name that begins to exist is sent even when the change does not list it", func(t *testing.T) {
			p := running(t, session.Delta).sub("eds", "later").gets("eds -later").ack("eds")
			w := shop
			w.eds = shop.eds + " later=1"
			p.now(w).gets("eds later=1")
		}},
		{"all endpoints are compared when it is not known what changed", func(t *testing.T) {
			p := running(t, session.Delta)
			w := shop
			w.eds = "web=2 db=1"
			p.s.Update(config(w), session.Changes{All: true})
			p.gets("eds web=2")
		}},
		{"names that are given up are not sent", func(t *testing.T) {
			w := shop
			w.eds = "web=2 db=2"
			running(t, session.Delta).unsub("eds", "web").now(w, "web", "db").gets("eds db=2")
		}},
		{"a subscription to * works as the empty one does", func(t *testing.T) {
			connect(t, session.Delta, shop).sub("cds", "*").gets("cds db=1 static=1 web=1").ack("cds").gets()
		}},
		{"clusters may be asked for by name", func(t *testing.T) {
			p := connect(t, session.Delta, shop).sub("cds", "web", "none").gets("cds web=1 -none").ack("cds").gets()
			w := shop
			w.cds = "+web=2 +db=2 static=1"
			p.now(w).gets("cds web=2").ack("cds").sub("cds", "*").gets("cds db=2 static=1").ack("cds").unsub("cds", "*").gets()
			w.cds = "+web=3 +db=3 static=1"
			p.now(w).gets("cds web=3")
		}},
		{"a subscription that rides on an acknowledgement counts", func(t *testing.T) {
			p := connect(t, session.Delta, shop).sub("eds", "web").gets("eds web=1")
			p.delta("eds", session.DeltaRequest{Nonce: p.last["eds"].Nonce, Subscribe: []string{"db"}}).gets("eds db=1")
		}},
		{"a subscription that rides on a stale acknowledgement counts", func(t *testing.T) {
			p := running(t, session.Delta)
			p.delta("rds", session.DeltaRequest{Nonce: "nonsense", Subscribe: []string{"99"}}).gets("rds -99")
		}},
		{"the others of a rejected response are sent again without the guilty that the text names", func(t *testing.T) {
			w := shop
			w.lds = "l80=bad l90=2"
			p := running(t, session.Delta).now(w).gets("lds l80=bad l90=2").nack("lds", "Error adding/updating listener(s) l80: no\n")
			p.gets("lds l90=2").ack("lds").gets().gives(session.Listeners, session.Rejected)
			w.lds = "l80=3 l90=2"
			p.now(w).gets("lds l80=3").ack("lds").gets().gives(session.Listeners, session.Synced)
		}},
		{"the guilty is found by halves when the text names nothing", func(t *testing.T) {
			w := world{cds: "a=1 b=1 c=bad d=1 e=1"}
			p := connect(t, session.Delta, w).sub("cds").gets("cds a=1 b=1 c=bad d=1 e=1").nack("cds", "no")
			p.gets("cds a=1 b=1 c=bad").nack("cds", "no").gets("cds a=1 b=1").ack("cds").gets("cds c=bad d=1").nack("cds", "no")
			p.gets("cds c=bad").nack("cds", "no")
			if g := p.out["cds"].Rejection.Guilty; len(g) != 1 || g[0].Name != "c" {
				t.Errorf("guilty: %v", g)
			}
			p.gets("cds d=1 e=1").ack("cds").gets().gives(session.Clusters, session.Rejected)
		}},
		{"the search for the guilty ends even if everything is rejected", func(t *testing.T) {
			var names []string
			for i := range 200 {
				names = append(names, fmt.Sprintf("c%03d=bad", i))
			}
			p := connect(t, session.Delta, world{cds: strings.Join(names, " ")}).sub("cds")
			sent := 0
			for {
				r, ok := p.s.Next()
				if !ok {
					break
				}
				p.last["cds"] = r
				p.nack("cds", "no")
				sent++
			}
			if p.gives(session.Clusters, session.Rejected); sent > 100 {
				t.Errorf("%d responses were sent", sent)
			}
		}},
		{"a new version of what is on its way follows its rejection", func(t *testing.T) {
			w := shop
			w.eds = "web=bad db=1"
			p := running(t, session.Delta).now(w, "web").gets("eds web=bad")
			w.eds = "web=3 db=1"
			p.now(w, "web").gets().nack("eds", "no").gets("eds web=3").ack("eds").gets().gives(session.Endpoints, session.Synced)
		}},
		{"an unsubscribed rejection is forgotten", func(t *testing.T) {
			w := shop
			w.rds = "80=bad"
			p := running(t, session.Delta).now(w).gets("rds 80=bad").nack("rds", "no").gets().gives(session.Routes, session.Rejected)
			p.unsub("rds", "80").gets().gives(session.Routes, session.Synced)
			p.sub("rds", "80").gets("rds 80=bad")
		}},
		{"endpoints of a service that goes are not taken away before its cluster", func(t *testing.T) {
			w := shop
			w.cds, w.eds, w.lds = "+web=1 static=1", "web=1", "l80=2"
			p := running(t, session.Delta).now(w, "db").gets("lds l80=2 -l90").ack("lds").gets("cds -db")
			p.unsub("eds", "db").ack("cds").gets().settled(true)
		}},
	} {
		t.Run(c.name, c.test)
	}
}
