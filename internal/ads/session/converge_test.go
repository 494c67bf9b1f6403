package session_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/ads/session"
)

// stream is one connection between an envoy and a session.
type stream struct {
	t      *testing.T
	s      *session.Session
	e      *envoy
	flying map[session.Kind]string
}

func (st *stream) send() {
	for {
		r, ok := st.s.Next()
		if !ok {
			return
		}
		if n := st.flying[r.Kind]; n != "" {
			st.t.Fatalf("%s is sent while %s is not answered", r.Kind, n)
		}
		st.flying[r.Kind] = r.Nonce
		st.e.down = append(st.e.down, r)
	}
}

func (st *stream) take() {
	m := st.e.up[0].(message)
	st.e.up = st.e.up[1:]
	if m.nonce != "" && st.flying[m.kind] == m.nonce {
		delete(st.flying, m.kind)
	}
	var err error
	if url := urlOf[m.kind.String()]; st.e.variant == session.SotW {
		_, err = st.s.SotW(session.SotWRequest{TypeURL: url, Nonce: m.nonce, Rejected: m.rejected, Error: m.text, Names: m.names, Version: m.version})
	} else {
		_, err = st.s.Delta(session.DeltaRequest{TypeURL: url, Nonce: m.nonce, Rejected: m.rejected, Error: m.text, Subscribe: m.sub,
			Unsubscribe: m.un, Initial: m.initial})
	}
	if err != nil {
		st.t.Fatal(err)
	}
}

// rest lets everything go its way until nothing moves.
func (st *stream) rest(check func()) {
	for range 10_000 {
		st.send()
		switch {
		case len(st.e.down) > 0:
			st.e.receive(st.t)
			check()
		case len(st.e.up) > 0:
			st.take()
		case st.s.Blocked():
			st.s.OpenGates()
		default:
			if !st.s.Settled() {
				st.t.Fatal("nothing moves, but the session is not settled")
			}
			return
		}
	}
	st.t.Fatal("the client and the session never come to rest")
}

// TestClientConverges lets a random client and a random mesh run against each other.
func TestClientConverges(t *testing.T) {
	runs := 150
	if testing.Short() {
		runs = 50
	}
	for _, v := range []session.Variant{session.Delta, session.SotW} {
		for _, bad := range []bool{false, true} {
			t.Run(fmt.Sprintf("variant %d, bad content %v", v, bad), func(t *testing.T) {
				for seed := range runs {
					if !t.Run(fmt.Sprint(seed), func(t *testing.T) { converge(t, v, bad, uint64(seed)) }) {
						return
					}
				}
			})
		}
	}
}

// FuzzClientConverges tries seeds without end.
func FuzzClientConverges(f *testing.F) {
	f.Add(uint64(1), false, false)
	f.Fuzz(func(t *testing.T, seed uint64, sotw, bad bool) {
		v := session.Delta
		if sotw {
			v = session.SotW
		}
		converge(t, v, bad, seed)
	})
}

func converge(t *testing.T, v session.Variant, bad bool, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	m := newMesh(rnd, bad)
	e := &envoy{rnd: rnd, variant: v, warming: map[string]bool{}, rejected: map[string]bool{}, eds: map[string]bool{},
		first: map[string]bool{}, stray: map[string]bool{}}
	for k := range e.applied {
		e.applied[k], e.held[k], e.subs[k] = map[string]string{}, map[string]string{}, map[string]bool{}
	}
	sure := !bad
	check := func() {
		if sure {
			e.complete(t)
		}
	}
	var st *stream
	connect := func() {
		st = &stream{t: t, s: session.New(v, m.config()), e: e, flying: map[session.Kind]string{}}
		e.reset()
	}
	connect()
	for range 300 {
		switch n := rnd.IntN(100); {
		case n < 12:
			changed := m.change()
			st.s.Update(m.config(), session.Changes{Names: changed, All: rnd.IntN(10) == 0})
			clearChanged(e, m)
		case n < 14 && (v == session.Delta || bad || seed%2 == 0):
			// In the state of the world a client that comes back does not say what it has, so what goes cannot be told
			// from what stays.
			sure = sure && v == session.Delta
			connect()
		case n < 16 && bad:
			st.s.OpenGates()
		case n < 45 && len(e.down) > 0:
			e.receive(t)
			check()
		case n < 80 && len(e.up) > 0:
			st.take()
		default:
			if rnd.IntN(3) > 0 { // the writer is not always ready
				st.send()
			}
		}
	}
	if v == session.Delta && seed%2 == 0 { // the stream breaks in the middle of something
		st.rest(check)
		changed := m.change()
		st.s.Update(m.config(), session.Changes{Names: changed})
		st.send()
		for range rnd.IntN(4) {
			if len(e.down) > 0 {
				e.receive(t)
			}
		}
		connect()
	}
	st.rest(check)
	st.good(m)
	if !bad && len(e.warming) > 0 {
		t.Fatalf("clusters wait for endpoints: %v", e.warming)
	}
	m.stopB = true
	m.repair()
	st.s.Update(m.config(), session.Changes{All: true})
	clear(e.rejected)
	st.rest(check)
	st.same(m)
}

// clearChanged forgets rejections whose content has changed: going back to it later is a change.
func clearChanged(e *envoy, m *mesh) {
	for k := range m.res {
		for key := range e.rejected {
			kind, rest, _ := strings.Cut(key, "/")
			name, version, _ := strings.Cut(rest, "@")
			if kind == session.Kind(k).String() && m.res[k][name] != version {
				delete(e.rejected, key)
			}
		}
	}
}

// repair replaces all that is bad.
func (m *mesh) repair() {
	for k := range m.res {
		for n, v := range m.res[k] {
			if strings.HasPrefix(v, "bad") {
				m.res[k][n] = strings.TrimPrefix(v, "bad")
			}
		}
	}
}

// good wants that the client has all that is good, whatever else was rejected beside it.
func (st *stream) good(m *mesh) {
	st.t.Helper()
	for k := range m.res {
		if st.e.variant == session.SotW && (session.Kind(k) == session.Clusters || session.Kind(k) == session.Listeners) {
			continue // all or nothing
		}
		for n, v := range m.res[k] {
			if st.e.variant == session.SotW && session.Kind(k) == session.VirtualHosts {
				continue // inline there
			}
			if (session.Kind(k) == session.Endpoints || session.Kind(k) == session.Routes) && !st.e.subs[k][n] ||
				session.Kind(k) == session.VirtualHosts && !st.e.hasTable(session.VirtualHosts, n) {
				continue
			}
			if route, _, _ := strings.Cut(n, "/"); strings.HasPrefix(m.res[session.Routes][route], "bad") {
				continue // whether the client has one of before is not known for certain
			}
			if got := st.e.applied[k][n]; !strings.HasPrefix(v, "bad") && got != v {
				st.t.Fatalf("%s %s is at %q, should be at %q (beside what is rejected)", session.Kind(k), n, got, v)
			}
		}
	}
}

// same wants that the client has exactly what it should.
func (st *stream) same(m *mesh) {
	st.t.Helper()
	for k := range m.res {
		kind := session.Kind(k)
		want := maps.Clone(m.res[k])
		if kind == session.Endpoints || kind == session.Routes {
			maps.DeleteFunc(want, func(n, _ string) bool { return !st.e.subs[k][n] })
		}
		if kind == session.VirtualHosts {
			maps.DeleteFunc(want, func(n, _ string) bool { return !st.e.hasTable(kind, n) || st.e.variant == session.SotW })
		}
		if state := st.s.Status(kind).State; state != session.Synced && len(want) > 0 {
			st.t.Fatalf("%s is %s", kind, state)
		}
		got := maps.Clone(st.e.applied[k])
		maps.DeleteFunc(got, func(n, _ string) bool {
			return want[n] == "" && (st.e.stray[fmt.Sprint(k, n)] || kind == session.Endpoints && st.e.stray[fmt.Sprint(int(session.Clusters), n)])
		})
		if !maps.Equal(want, got) {
			st.t.Fatalf("%s: client has\n%v, should have\n%v", kind, got, want)
		}
	}
	if len(st.e.warming) > 0 {
		st.t.Fatalf("clusters wait for endpoints: %v", st.e.warming)
	}
}
