package session_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// world is a configuration in short: "name=version" entries separated by spaces. A cluster with a "+" before its name has
// its endpoints by EDS, under its own name.
// Virtual hosts are named ROUTE/NAME, and the routes that have any have all of theirs so.
type world struct{ cds, eds, lds, rds, vhds string }

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
		Endpoints: stamped(session.NewSet(resources(w.eds))), Hosts: tables(resources(w.vhds)),
	}
}

// tables sorts virtual hosts by their route configurations.
func tables(hosts []*session.Resource) map[string]*session.Set {
	by := map[string][]*session.Resource{}
	for _, h := range hosts {
		route, _, _ := strings.Cut(h.Name, "/")
		by[route] = append(by[route], h)
	}
	sets := map[string]*session.Set{}
	for route, rs := range by {
		sets[route] = session.NewSet(rs)
	}
	return sets
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

var urlOf = map[string]string{"cds": xds.ClusterType, "eds": xds.EndpointType, "lds": xds.ListenerType, "rds": xds.RouteType, "vhds": xds.VirtualHostType}

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
