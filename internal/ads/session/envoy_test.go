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
	applied  [5]map[string]string
	held     [5]map[string]string
	subs     [5]map[string]bool // endpoints and routes
	version  [5]string
	nonce    [5]string
	asked    [5]bool // on this stream
	begun    [5]bool // ever
	warming  map[string]bool
	rejected map[string]bool // kind/name@version that was refused in a way that tells which
	up, down []any           // message; session.Response
	eds      map[string]bool
	stray    map[string]bool
	first    map[string]bool // what came first of a type: a client that starts is not kept waiting
}

func (e *envoy) reset() {
	e.up, e.down = nil, nil
	e.nonce, e.asked = [5]string{}, [5]bool{}
	clear(e.rejected)
	for k := range e.applied { // what it took of a response that it rejected is never claimed, and can be lost sight of
		for n := range e.applied[k] {
			if _, ok := e.held[k][n]; !ok && e.variant == session.Delta && session.Kind(k) != session.VirtualHosts {
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
			maps.DeleteFunc(e.applied[session.VirtualHosts], func(h, _ string) bool { return strings.HasPrefix(h, n+"/") })
			maps.DeleteFunc(e.rejected, func(key string, _ bool) bool {
				return strings.HasPrefix(key, fmt.Sprintf("%v/%s@", k, n)) || strings.HasPrefix(key, fmt.Sprintf("vhds/%s/", n))
			})
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
		if route, _, _ := strings.Cut(a.Name, "/"); k == session.VirtualHosts && !strings.HasPrefix(r.Added[0].Name, route+"/") {
			t.Fatalf("%s and %s are of two route configurations", r.Added[0].Name, a.Name)
		}
		content, _, _ := strings.Cut(a.Version, "@")
		key := fmt.Sprintf("%v/%s@%s", k, a.Name, content)
		if e.rejected[key] && (e.variant == session.Delta || k == session.Endpoints || k == session.Routes) {
			t.Fatalf("%s was sent again after its rejection", key)
		}
		if strings.HasPrefix(a.Version, "bad") && (e.subs[k][a.Name] || k == session.Clusters || k == session.Listeners || e.hasTable(k, a.Name)) {
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

// apply takes the good resources of a response. Of one with a bad one it takes all other clusters and listeners, but it stops
// somewhere in endpoints and routes; and it remembers none of them.
func (e *envoy) apply(r session.Response, rejected bool) {
	k := r.Kind
	if k == session.VirtualHosts {
		e.applyHosts(r, rejected)
		return
	}
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
		if byName && !e.subs[k][a.Name] || strings.HasPrefix(a.Version, "bad") || rejected && byName && e.rnd.IntN(3) == 0 {
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

// hasTable reports whether a virtual host is of a route configuration that the client has.
func (e *envoy) hasTable(k session.Kind, name string) bool {
	route, _, _ := strings.Cut(name, "/")
	_, has := e.applied[session.Routes][route]
	return k == session.VirtualHosts && has
}

// applyHosts takes all virtual hosts of a response or none. Those of a route configuration that it does not have it drops, and
// holds them to be there.
func (e *envoy) applyHosts(r session.Response, rejected bool) {
	k := r.Kind
	if rejected {
		return
	}
	for _, n := range r.Removed {
		delete(e.held[k], n)
		delete(e.applied[k], n)
	}
	begins := map[string]bool{}
	for _, a := range r.Added {
		e.held[k][a.Name] = a.Version
		if !e.hasTable(k, a.Name) {
			continue
		}
		route, _, _ := strings.Cut(a.Name, "/")
		if _, known := begins[route]; !known {
			begins[route] = true
			for n := range e.applied[k] {
				begins[route] = begins[route] && !strings.HasPrefix(n, route+"/")
			}
		}
		e.applied[k][a.Name] = a.Version
		if begins[route] {
			e.first[a.Name+"@"+a.Version] = true
		}
	}
}

// follow subscribes to what the client's clusters and listeners name, and starts the next type as Envoy does.
func (e *envoy) follow(k session.Kind) {
	switch k {
	case session.VirtualHosts:
	case session.Routes:
		for n := range e.applied[k] {
			if n != "r0" && e.variant == session.Delta && !e.asked[session.VirtualHosts] {
				e.ask(session.VirtualHosts)
			}
		}
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
	default:
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
	for _, k := range []session.Kind{session.Listeners, session.Routes, session.VirtualHosts} {
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
