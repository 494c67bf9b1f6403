package session_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/selvage-mesh/selvage/internal/ads/session"
)

// mesh is a random but consistent world: a listener's version names the routes and clusters that it needs, and a route's the
// clusters, as "v7:a,b". A version that begins with "bad" is rejected.
type mesh struct {
	rnd             *rand.Rand
	n               int                  // makes versions unique
	res             [5]map[string]string // by kind: name → version
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
	for i := range 9 { // r0 holds its virtual hosts, r1 and r2 always have one
		n := fmt.Sprintf("r%d/h%d", 1+i%2, i/2)
		if m.rnd.IntN(4) == 0 && i >= 2 {
			delete(m.res[session.VirtualHosts], n)
			continue
		}
		redo(session.VirtualHosts, n, m.res[session.Clusters], "c")
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
	var hosts []*session.Resource
	for n, v := range m.res[session.VirtualHosts] {
		hosts = append(hosts, &session.Resource{Name: n, Version: v})
	}
	return session.Config{Clusters: set(session.Clusters), Listeners: set(session.Listeners), Routes: set(session.Routes),
		Endpoints: stamped(set(session.Endpoints)), Hosts: tables(hosts)}
}
