package session_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// world is a configuration in short: "name=version" entries separated by spaces. A cluster with a "+" before its name has
// its endpoints by EDS, under its own name.
type world struct{ cds, eds, lds, rds string }

func resources(entries string) (rs []*session.Resource) {
	for _, e := range strings.Fields(entries) {
		name, version, _ := strings.Cut(e, "=")
		r := &session.Resource{Name: strings.TrimPrefix(name, "+"), Version: version}
		if name[0] == '+' {
			r.EndpointName = r.Name
		}
		rs = append(rs, r)
	}
	return rs
}

func config(w world) session.Config {
	return session.Config{
		Clusters: session.NewSet(resources(w.cds)), Listeners: session.NewSet(resources(w.lds)), Routes: session.NewSet(resources(w.rds)),
		Endpoints: stamped(session.NewSet(resources(w.eds))),
	}
}

// stamped makes the version of endpoints depend on that of their cluster, as VERSION@CLUSTER.
func stamped(eds *session.Set) func(name, cluster string) *session.Resource {
	return func(name, cluster string) *session.Resource {
		r := eds.Get(name)
		if r == nil {
			return nil
		}
		return &session.Resource{Name: r.Name, Version: r.Version + "@" + cluster, Content: r.Version}
	}
}

// peer is a client in a test: it takes responses and answers as it is told.
type peer struct {
	t     *testing.T
	s     *session.Session
	sotw  bool
	names map[string][]string         // subscriptions of the state of the world
	last  map[string]session.Response // newest response of each type
	out   map[string]session.Outcome  // newest outcome of each type
}

func connect(t *testing.T, v session.Variant, w world) *peer {
	return &peer{t: t, s: session.New(v, config(w)), sotw: v == session.SotW, names: map[string][]string{},
		last: map[string]session.Response{}, out: map[string]session.Outcome{}}
}

var urlOf = map[string]string{"cds": xds.ClusterType, "eds": xds.EndpointType, "lds": xds.ListenerType, "rds": xds.RouteType}

func url(kind string) string {
	if u, ok := urlOf[kind]; ok {
		return u
	}
	return kind
}

// delta sends a request of the delta variant.
func (p *peer) delta(kind string, r session.DeltaRequest) *peer {
	p.t.Helper()
	r.TypeURL = url(kind)
	out, err := p.s.Delta(r)
	if err != nil {
		p.t.Fatalf("Delta(%s): %v", kind, err)
	}
	p.out[kind] = out
	return p
}

// state sends a request of the state-of-the-world variant.
func (p *peer) state(kind string, r session.SotWRequest) *peer {
	p.t.Helper()
	r.TypeURL = url(kind)
	out, err := p.s.SotW(r)
	if err != nil {
		p.t.Fatalf("SotW(%s): %v", kind, err)
	}
	p.out[kind] = out
	return p
}

// sub subscribes to names (none: the wildcard) in either variant.
func (p *peer) sub(kind string, names ...string) *peer {
	p.t.Helper()
	if !p.sotw {
		return p.delta(kind, session.DeltaRequest{Subscribe: names})
	}
	p.names[kind] = append(p.names[kind], names...)
	return p.state(kind, session.SotWRequest{Names: p.names[kind], Nonce: p.last[kind].Nonce, Version: p.last[kind].Version})
}

func (p *peer) unsub(kind string, names ...string) *peer {
	p.t.Helper()
	return p.delta(kind, session.DeltaRequest{Unsubscribe: names})
}

// ack acknowledges the newest response of each of the kinds.
func (p *peer) ack(kinds ...string) *peer {
	p.t.Helper()
	for _, kind := range kinds {
		if p.sotw {
			p.state(kind, session.SotWRequest{Names: p.names[kind], Nonce: p.last[kind].Nonce, Version: p.last[kind].Version})
		} else {
			p.delta(kind, session.DeltaRequest{Nonce: p.last[kind].Nonce})
		}
	}
	return p
}

func (p *peer) nack(kind, text string) *peer {
	p.t.Helper()
	if p.sotw {
		return p.state(kind, session.SotWRequest{Names: p.names[kind], Nonce: p.last[kind].Nonce, Rejected: true, Error: text})
	}
	return p.delta(kind, session.DeltaRequest{Nonce: p.last[kind].Nonce, Rejected: true, Error: text})
}

// now publishes a configuration; changed are the endpoints that differ.
func (p *peer) now(w world, changed ...string) *peer {
	p.s.Update(config(w), session.Changes{Names: changed})
	return p
}

// gets wants exactly these responses to be written next, each as "kind name=version -removed".
func (p *peer) gets(want ...string) *peer {
	p.t.Helper()
	var got []string
	for {
		r, ok := p.s.Next()
		if !ok {
			break
		}
		words := []string{r.Kind.String()}
		if r.Kind == session.Unknown {
			words[0] = r.TypeURL
		}
		p.last[words[0]] = r
		for _, a := range r.Added {
			version, _, _ := strings.Cut(a.Version, "@")
			words = append(words, a.Name+"="+version)
		}
		for _, n := range r.Removed {
			words = append(words, "-"+n)
		}
		got = append(got, strings.Join(words, " "))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		p.t.Fatalf("responses (-want +got):\n%s", diff)
	}
	return p
}

func (p *peer) gives(kind session.Kind, want session.State) *peer {
	p.t.Helper()
	if got := p.s.Status(kind).State; got != want {
		p.t.Fatalf("%s is %s, want %s", kind, got, want)
	}
	return p
}

func (p *peer) settled(want bool) *peer {
	p.t.Helper()
	if got := p.s.Settled(); got != want {
		p.t.Fatalf("Settled() = %v, want %v", got, want)
	}
	return p
}

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

func TestDelta(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"nothing unchanged is sent on a reconnect", func(t *testing.T) {
			p := reconnected(t, shop, shop).gets().settled(true)
			for k := session.Clusters; k < session.Unknown; k++ {
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
		for k := session.Clusters; k < session.Unknown; k++ {
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
