package session_test

import (
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/ads/session"
)

var shop = world{cds: "+web=1 +db=1 static=1", eds: "web=1 db=1", lds: "l80=1 l90=1", rds: "80=1"}

// running is a client that has all of shop.
func running(t *testing.T, v session.Variant) *peer {
	t.Helper()
	p := connect(t, v, shop)
	p.sub("cds").gets("cds db=1 static=1 web=1").ack("cds")
	p.sub("eds", "web", "db").gets("eds db=1 web=1").ack("eds")
	p.sub("lds").gets("lds l80=1 l90=1").ack("lds")
	p.sub("rds", "80").gets("rds 80=1").ack("rds").gets().settled(true)
	return p
}

// reconnected is a client that had everything of w, on a new stream to a server that has now.
func reconnected(t *testing.T, had, now world) *peer {
	t.Helper()
	p := connect(t, session.Delta, now)
	for _, k := range []struct{ kind, had string }{{"cds", had.cds}, {"eds", had.eds}, {"lds", had.lds}, {"rds", had.rds}} {
		r := session.DeltaRequest{Initial: map[string]string{}}
		for _, e := range resources(k.had) {
			r.Initial[e.Name] = e.Version
			if c := session.NewSet(resources(had.cds)).Get(e.Name); k.kind == "eds" && c != nil {
				r.Initial[e.Name] += "@" + c.Version
			}
			if k.kind == "eds" || k.kind == "rds" {
				r.Subscribe = append(r.Subscribe, e.Name)
			}
		}
		p.delta(k.kind, r)
	}
	return p
}

func TestBoth(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(p *peer)
	}{
		{"a client that has everything is sent nothing", func(p *peer) {
			p.gets().gives(session.Clusters, session.Synced).gives(session.Endpoints, session.Synced)
			p.gives(session.Listeners, session.Synced).gives(session.Routes, session.Synced)
		}},
		{"a change of endpoints sends only these", func(p *peer) {
			w := shop
			w.eds = "web=2 db=1"
			p.now(w, "web").gets("eds web=2").gives(session.Endpoints, session.Stale).settled(false)
			p.ack("eds").gets().gives(session.Endpoints, session.Synced).settled(true)
		}},
		{"endpoints that nobody asked for are not sent", func(p *peer) {
			w := shop
			w.eds += " other=1"
			p.now(w, "other").gets().settled(true)
		}},
		{"at most one response of a type is unacknowledged, and the latest wins", func(p *peer) {
			w := shop
			for _, v := range []string{"2", "3", "4"} {
				w.eds = "db=1 web=" + v
				p.now(w, "web")
				if v == "2" {
					p.gets("eds web=2")
				} else {
					p.gets()
				}
			}
			p.ack("eds").gets("eds web=4").ack("eds").gets()
		}},
		{"a change that was taken back before it was sent is not sent", func(p *peer) {
			w := shop
			w.eds = "db=2 web=2"
			p.now(w, "web", "db").gets("eds db=2 web=2")
			w.eds = "db=2 web=3"
			p.now(w, "web").gets()
			w.eds = "db=2 web=2"
			p.now(w, "web").gets().ack("eds").gets()
		}},
		{"a stale nonce is ignored", func(p *peer) {
			w := shop
			w.eds = "web=2 db=1"
			old := p.last["eds"]
			p.now(w, "web").gets("eds web=2")
			fresh := p.last["eds"]
			p.last["eds"] = old
			if !p.ack("eds").out["eds"].Stale {
				p.t.Error("an ACK of an older response was not called stale")
			}
			if !p.nack("eds", "late").out["eds"].Stale {
				p.t.Error("a NACK of an older response was not called stale")
			}
			p.gives(session.Endpoints, session.Stale).gets()
			p.last["eds"] = fresh
			p.ack("eds").gets().gives(session.Endpoints, session.Synced)
		}},
		{"the endpoints of a changed cluster are sent again right behind it, changed or not", func(p *peer) {
			w := shop
			w.cds = "+web=2 +db=1 static=1"
			p.now(w).gets(p.cds("web=2", "db=1 static=1 web=2"), "eds web=1").ack("cds", "eds").gets().settled(true)
		}},
		{"the endpoints of a changed cluster wait for those on their way and follow then", func(p *peer) {
			w := shop
			w.eds = "web=2 db=1"
			p.now(w, "web").gets("eds web=2")
			w.cds = "+web=2 +db=1 static=1"
			p.now(w).gets(p.cds("web=2", "db=1 static=1 web=2")).ack("eds").gets("eds web=2")
			p.ack("cds", "eds").gets().settled(true)
		}},
		{"a rejected version is not sent again, until its content changes", func(p *peer) {
			w := shop
			w.eds = "web=bad db=1"
			p.now(w, "web").gets("eds web=bad").nack("eds", "no").gets().gives(session.Endpoints, session.Rejected).settled(true)
			w.eds = "web=bad db=2"
			p.now(w, "db").gets("eds db=2").ack("eds").gets().gives(session.Endpoints, session.Rejected)
			w.eds = "web=3 db=2"
			p.now(w, "web").gets("eds web=3").ack("eds").gets().gives(session.Endpoints, session.Synced)
			if e := p.s.Status(session.Endpoints).Error; e != "" {
				p.t.Errorf("the error %q outlived its cause", e)
			}
		}},
		{"a rejected version that is taken back is forgotten", func(p *peer) {
			w := shop
			w.lds = "l80=bad l90=1"
			p.now(w).gets(p.lds("l80=bad", "l80=bad l90=1")).nack("lds", "Error adding/updating listener(s) l80: no").gets()
			p.gives(session.Listeners, session.Rejected)
			st := p.s.Status(session.Listeners)
			if len(st.Rejected) != 1 || st.Rejected[0].Name != "l80" || !strings.Contains(st.Error, "l80: no") || st.Sent == st.Acked {
				p.t.Errorf("status = %+v", st)
			}
			p.now(shop).gets().gives(session.Listeners, session.Synced)
		}},
		{"clusters come before the listeners and routes that need them, with their endpoints", func(p *peer) {
			w := world{cds: shop.cds + " +new=1", eds: shop.eds + " new=1", lds: "l80=2 l90=1", rds: "80=2"}
			p.now(w, "new").gets(p.cds("new=1", "db=1 new=1 static=1 web=1"))
			p.ack("cds").gets().sub("eds", "new").gets("eds new=1").ack("eds")
			p.gets(p.lds("l80=2", "l80=2 l90=1"), "rds 80=2").ack("lds", "rds").gets().settled(true)
		}},
		{"listeners do not wait for ever", func(p *peer) {
			w := world{cds: shop.cds + " +new=1", eds: shop.eds + " new=1", lds: "l80=2 l90=1", rds: "80=1"}
			p.now(w, "new").gets(p.cds("new=1", "db=1 new=1 static=1 web=1")).ack("cds").gets()
			if !p.s.Blocked() {
				p.t.Fatal("nothing is blocked")
			}
			p.s.OpenGates()
			p.gets(p.lds("l80=2", "l80=2 l90=1")).ack("lds").gets().settled(true)
			if p.s.Blocked() {
				p.t.Fatal("something is still blocked")
			}
		}},
		{"a rejected cluster does not hold listeners back", func(p *peer) {
			w := world{cds: shop.cds + " +new=bad", eds: shop.eds + " new=1", lds: "l80=2 l90=1", rds: "80=1"}
			p.now(w, "new").gets(p.cds("new=bad", "db=1 new=bad static=1 web=1")).nack("cds", "Error adding/updating cluster(s) new: no")
			p.gets(p.lds("l80=2", "l80=2 l90=1")).ack("lds").gets()
		}},
		{"clusters go after the listeners and routes that used them", func(p *peer) {
			w := world{cds: "+web=1 static=1", eds: "web=1", lds: "l80=2 l90=1", rds: "80=2"}
			p.now(w, "db").gets(p.lds("l80=2", "l80=2 l90=1"), "rds 80=2").ack("lds").gets().ack("rds")
			p.gets(p.cds("-db", "static=1 web=1")).ack("cds")
		}},
		{"clusters stay while a listener or route that may need them is rejected", func(p *peer) {
			w := world{cds: "+web=1 static=1", eds: "web=1", lds: "l80=bad l90=1", rds: "80=1"}
			p.now(w, "db").gets(p.lds("l80=bad", "l80=bad l90=1")).nack("lds", "Error adding/updating listener(s) l80: no").gets()
			w.lds = "l80=3 l90=1"
			p.now(w).gets(p.lds("l80=3", "l80=3 l90=1")).ack("lds").gets(p.cds("-db", "static=1 web=1"))
		}},
		{"one response that both adds and removes clusters is made two", func(p *peer) {
			w := world{cds: "+web=1 static=1 next=1", eds: "web=1", lds: "l80=2 l90=1", rds: "80=1"}
			p.now(w, "db").gets(p.cds("next=1", "db=1 next=1 static=1 web=1")).ack("cds")
			p.gets(p.lds("l80=2", "l80=2 l90=1")).ack("lds").gets(p.cds("-db", "next=1 static=1 web=1"))
		}},
		{"a type that is not served is answered with nothing, once", func(p *peer) {
			p.sub("type.example/Secret", "default")
			if !p.out["type.example/Secret"].Unserved {
				p.t.Error("the first request of the type was not reported")
			}
			want := "type.example/Secret -default"
			if p.sotw {
				want = "type.example/Secret"
			}
			p.gets(want).ack("type.example/Secret").gets()
			p.sub("type.example/NameTable").gets("type.example/NameTable").ack("type.example/NameTable").gets()
			if p.out["type.example/NameTable"].Unserved {
				p.t.Error("a later request of the type was reported")
			}
		}},
		{"a resource that is subscribed to again is sent again", func(p *peer) {
			if p.sotw {
				p.names["eds"] = []string{"db"}
				p.ack("eds").gets()
				p.sub("eds", "web").gets("eds web=1")
				return
			}
			p.unsub("eds", "web").sub("eds", "web").gets("eds web=1").sub("eds", "web").gets().ack("eds").gets("eds web=1")
		}},
		{"routes that were added are sent when they are asked for", func(p *peer) {
			w := shop
			w.rds = "80=1 90=1"
			p.now(w).gets().sub("rds", "90").gets("rds 90=1").ack("rds").gets()
		}},
	} {
		for v, name := range map[session.Variant]string{session.Delta: "delta", session.SotW: "state of the world"} {
			t.Run(c.name+"/"+name, func(t *testing.T) { c.test(running(t, v)) })
		}
	}
}

// cds and lds are what a response of the kind looks like in the peer's variant.
func (p *peer) cds(delta, whole string) string { return p.either("cds ", delta, whole) }
func (p *peer) lds(delta, whole string) string { return p.either("lds ", delta, whole) }
func (p *peer) either(kind, delta, whole string) string {
	if p.sotw {
		return kind + whole
	}
	return kind + delta
}
