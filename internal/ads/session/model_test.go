package session_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/ads/session"
)

// mesh is a random but consistent world: a listener's version names the routes and clusters that it needs, and a route's the
// clusters, as "v7:a,b". A version that begins with "bad" is rejected.
type mesh struct {
	rnd             *rand.Rand
	n               int                  // makes versions unique
	res             [4]map[string]string // by kind: name → version
	eds             map[string]bool      // clusters with EDS
	allowBad, stopB bool
}

func newMesh(rnd *rand.Rand, bad bool) *mesh {
	m := &mesh{rnd: rnd, allowBad: bad, eds: map[string]bool{}}
	for k := range m.res {
		m.res[k] = map[string]string{}
	}
	m.change()
	return m
}

func (m *mesh) version(needs ...string) string {
	m.n++
	v := fmt.Sprintf("v%d:%s", m.n, strings.Join(needs, ","))
	if m.allowBad && !m.stopB && m.rnd.IntN(6) == 0 {
		v = "bad" + v
	}
	return v
}

func needs(version string) []string {
	_, list, _ := strings.Cut(version, ":")
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// change makes the next world, and gives the endpoints that differ.
func (m *mesh) change() (changed []string) {
	if m.rnd.IntN(2) == 0 && len(m.res[session.Endpoints]) > 0 { // only endpoints
		for _, n := range slices.Sorted(maps.Keys(m.res[session.Endpoints])) {
			if m.rnd.IntN(3) == 0 {
				m.res[session.Endpoints][n] = m.version()
				changed = append(changed, n)
			}
		}
		return changed
	}
	for i := range 6 {
		n := fmt.Sprintf("c%d", i)
		switch _, is := m.res[session.Clusters][n]; {
		case !is && m.rnd.IntN(2) == 0 || is && m.rnd.IntN(5) == 0: // made, changed
			m.res[session.Clusters][n] = m.version()
			if m.eds[n] = i != 0; m.eds[n] && !is {
				m.res[session.Endpoints][n] = m.version()
				changed = append(changed, n)
			}
		case is && m.rnd.IntN(4) == 0: // gone
			delete(m.res[session.Clusters], n)
			if m.eds[n] {
				delete(m.res[session.Endpoints], n)
				changed = append(changed, n)
			}
		}
	}
	some := func(from map[string]string) (names []string) {
		for _, n := range slices.Sorted(maps.Keys(from)) {
			if m.rnd.IntN(3) == 0 {
				names = append(names, n)
			}
		}
		return names
	}
	// Whatever refers to something that is gone must change; the rest may stay.
	redo := func(k session.Kind, n string, from map[string]string, prefix string) {
		v, is := m.res[k][n]
		broken := slices.ContainsFunc(needs(v), func(x string) bool {
			_, there := from[x]
			return strings.HasPrefix(x, prefix) && !there
		})
		if !is || broken || m.rnd.IntN(4) == 0 {
			m.res[k][n] = m.version(some(from)...)
		}
	}
	for i := range 3 {
		redo(session.Routes, fmt.Sprintf("r%d", i), m.res[session.Clusters], "c")
	}
	for i := range 3 {
		n := fmt.Sprintf("l%d", i)
		if m.rnd.IntN(8) == 0 {
			delete(m.res[session.Listeners], n)
			continue
		}
		all := maps.Clone(m.res[session.Clusters])
		maps.Copy(all, m.res[session.Routes])
		redo(session.Listeners, n, all, "")
	}
	return changed
}

func (m *mesh) config() session.Config {
	set := func(k session.Kind) *session.Set {
		var rs []*session.Resource
		for n, v := range m.res[k] {
			r := &session.Resource{Name: n, Version: v}
			if k == session.Clusters && m.eds[n] {
				r.EndpointName = n
			}
			rs = append(rs, r)
		}
		return session.NewSet(rs)
	}
	return session.Config{Clusters: set(session.Clusters), Listeners: set(session.Listeners), Routes: set(session.Routes),
		Endpoints: stamped(set(session.Endpoints))}
}

// message is a request of either variant.
type message struct {
	kind     session.Kind
	nonce    string
	rejected bool
	text     string
	sub, un  []string
	initial  map[string]string
	names    []string
	version  string
}

// envoy is a client as Envoy is one: what it claims is what it acknowledged, what it applied may be more.
type envoy struct {
	rnd      *rand.Rand
	variant  session.Variant
	applied  [4]map[string]string
	held     [4]map[string]string
	subs     [4]map[string]bool // endpoints and routes
	version  [4]string
	nonce    [4]string
	asked    [4]bool // on this stream
	begun    [4]bool // ever
	warming  map[string]bool
	rejected map[string]bool // kind/name@version that was refused in a way that tells which
	up, down []any           // message; session.Response
	eds      map[string]bool
	stray    map[string]bool
	first    map[string]bool // what came first of a type: a client that starts is not kept waiting
}

func (e *envoy) reset() {
	e.up, e.down = nil, nil
	e.nonce, e.asked = [4]string{}, [4]bool{}
	clear(e.rejected)
	for k := range e.applied { // what it took of a response that it rejected is never claimed, and can be lost sight of
		for n := range e.applied[k] {
			if _, ok := e.held[k][n]; !ok && e.variant == session.Delta {
				e.stray[fmt.Sprint(k, n)] = true
			}
		}
	}
	for k := range session.Unknown {
		if e.begun[k] || k == session.Clusters {
			e.ask(k)
		}
	}
}

// ask sends the first request of a type on a stream.
func (e *envoy) ask(k session.Kind) {
	if (k == session.Endpoints || k == session.Routes) && len(e.subs[k]) == 0 {
		return
	}
	e.asked[k], e.begun[k] = true, true
	m := message{kind: k}
	names := slices.Sorted(maps.Keys(e.subs[k]))
	if e.variant == session.SotW {
		m.names, m.version = names, e.version[k]
	} else {
		m.sub, m.initial = names, maps.Clone(e.held[k])
	}
	e.up = append(e.up, m)
}

// want changes what the client subscribes to by name.
func (e *envoy) want(k session.Kind, names map[string]bool) {
	var m message
	for n := range names {
		if !e.subs[k][n] {
			m.sub = append(m.sub, n)
		}
	}
	for n := range e.subs[k] {
		if !names[n] {
			m.un = append(m.un, n)
			delete(e.held[k], n)
			delete(e.applied[k], n)
			maps.DeleteFunc(e.rejected, func(key string, _ bool) bool { return strings.HasPrefix(key, fmt.Sprintf("%v/%s@", k, n)) })
		}
	}
	e.subs[k] = names
	if len(m.sub)+len(m.un) == 0 {
		return
	}
	if !e.asked[k] {
		e.ask(k)
		return
	}
	if m.kind = k; e.variant == session.SotW {
		m = message{kind: k, names: slices.Sorted(maps.Keys(names)), version: e.version[k], nonce: e.nonce[k]}
	}
	e.up = append(e.up, m)
}

// receive applies the next response and answers it.
func (e *envoy) receive(t *testing.T) {
	r := e.down[0].(session.Response)
	e.down = e.down[1:]
	k := r.Kind
	var bad []string
	for _, a := range r.Added {
		content, _, _ := strings.Cut(a.Version, "@")
		key := fmt.Sprintf("%v/%s@%s", k, a.Name, content)
		if e.rejected[key] && !(e.variant == session.SotW && k != session.Endpoints && k != session.Routes) {
			t.Fatalf("%s was sent again after its rejection", key)
		}
		if strings.HasPrefix(a.Version, "bad") && (e.subs[k][a.Name] || k == session.Clusters || k == session.Listeners) {
			bad = append(bad, a.Name)
		}
	}
	e.apply(r, len(bad) > 0)
	answer := message{kind: k, nonce: r.Nonce}
	e.nonce[k] = r.Nonce
	if len(bad) > 0 {
		answer.rejected = true
		if answer.text = "no"; e.rnd.IntN(2) == 0 {
			answer.text = "cannot take " + strings.Join(bad, " and ")
		}
		if answer.text != "no" || len(r.Added) == 1 {
			for _, a := range r.Added {
				if slices.Contains(bad, a.Name) {
					content, _, _ := strings.Cut(a.Version, "@")
					e.rejected[fmt.Sprintf("%v/%s@%s", k, a.Name, content)] = true
				}
			}
		}
	} else {
		e.version[k] = r.Version
	}
	answer.version = e.version[k]
	answer.names = slices.Sorted(maps.Keys(e.subs[k]))
	e.up = append(e.up, answer)
	e.follow(k)
}

// apply takes the good resources of a response; of one with a bad one maybe some, and it does not remember them.
func (e *envoy) apply(r session.Response, rejected bool) {
	k := r.Kind
	removed := r.Removed
	whole := e.variant == session.SotW && (k == session.Clusters || k == session.Listeners)
	if whole {
		for n := range e.applied[k] {
			if !slices.ContainsFunc(r.Added, func(a *session.Resource) bool { return a.Name == n }) {
				removed = append(removed, n)
			}
		}
	}
	for _, n := range removed {
		if !rejected {
			delete(e.held[k], n)
		}
		if k == session.Clusters || k == session.Listeners {
			delete(e.applied[k], n)
		}
		delete(e.warming, n)
	}
	initial := len(e.applied[k]) == 0
	for _, a := range r.Added {
		byName := k == session.Endpoints || k == session.Routes
		if byName && !e.subs[k][a.Name] || strings.HasPrefix(a.Version, "bad") || rejected && e.rnd.IntN(3) == 0 {
			continue
		}
		if k == session.Clusters && e.applied[k][a.Name] != a.Version {
			if e.eds[a.Name] = a.EndpointName != ""; e.eds[a.Name] {
				e.warming[a.Name] = true
			}
		}
		if k == session.Endpoints {
			delete(e.warming, a.Name)
		}
		e.applied[k][a.Name], _, _ = strings.Cut(a.Version, "@")
		if initial {
			e.first[a.Name+"@"+a.Version] = true
		}
		if !rejected {
			e.held[k][a.Name] = a.Version
		}
	}
}

// follow subscribes to what the client's clusters and listeners name, and starts the next type as Envoy does.
func (e *envoy) follow(k session.Kind) {
	switch k {
	case session.Clusters:
		want := map[string]bool{}
		for n := range e.applied[k] {
			if e.eds[n] {
				want[n] = true
			}
		}
		e.want(session.Endpoints, want)
		if len(want) > 0 {
			return
		}
		fallthrough
	case session.Endpoints:
		if !e.begun[session.Listeners] {
			e.ask(session.Listeners)
		}
	case session.Listeners:
		want := map[string]bool{}
		for _, v := range e.applied[k] {
			for _, n := range needs(v) {
				if n[0] == 'r' {
					want[n] = true
				}
			}
		}
		e.want(session.Routes, want)
	}
}

// complete checks make before break: what a listener or route of the client needs is there, and has had endpoints.
func (e *envoy) complete(t *testing.T) {
	t.Helper()
	for _, k := range []session.Kind{session.Listeners, session.Routes} {
		for n, v := range e.applied[k] {
			for _, c := range needs(v) {
				if c[0] != 'c' || e.first[n+"@"+v] {
					continue
				}
				if _, ok := e.applied[session.Clusters][c]; !ok {
					t.Fatalf("%s %s (%s) needs cluster %s, which is not there", k, n, v, c)
				}
				if _, ok := e.applied[session.Endpoints][c]; e.eds[c] && !ok {
					t.Fatalf("%s %s (%s) needs cluster %s, which has no endpoints yet", k, n, v, c)
				}
			}
		}
	}
}

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
	runs := 300
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
			if (session.Kind(k) == session.Endpoints || session.Kind(k) == session.Routes) && !st.e.subs[k][n] {
				continue
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
