package session

import (
	"maps"
	"slices"
	"strings"
)

// Virtual hosts as resources of their own (VHDS): a change of one is a few hundred bytes, where its route configuration may be
// half a megabyte. A client has one subscription without names for the virtual hosts of all its route configurations, and
// knows to which one belongs by its name, ROUTE/NAME. The session keeps a track for each route configuration: its table.
//
// What Envoy makes of it decides the order (measured on 1.37 to 1.40, docs/design/0012). Virtual hosts of a route configuration
// that it does not have it acknowledges, drops, and claims to hold when it comes back. So they are sent only once their route
// configuration is known to be there, and a route configuration that begins goes only to a client that holds no virtual
// hosts of that name: then what it claims for a route configuration that it also claims is true, wherever the stream broke.
// The first response of a table releases its listener: so that is complete. A rejection is all or nothing for each route
// configuration: so no response is about two.

// table is the virtual hosts of one route configuration.
type table struct {
	track
	route string
	// closing says that the client has given the route configuration up, or does not have it yet: what it holds from before is
	// taken from it.
	closing bool
}

// routeOf is the route configuration to which a virtual host belongs.
func routeOf(host string) string {
	return host[:max(0, strings.LastIndexByte(host, '/'))]
}

func (s *Session) addTable(route string, closing bool) *table {
	t := &table{track: track{kind: VirtualHosts, url: urls[VirtualHosts], started: true, wildcard: true}, route: route, closing: closing}
	// Only a client that starts is not kept waiting; the listener of a later table is not released before it comes.
	t.answered = s.tracks[VirtualHosts].answered || s.tracks[VirtualHosts].claimed
	s.fill(t)
	at, _ := slices.BinarySearchFunc(s.tables, route, byRoute)
	s.tables = slices.Insert(s.tables, at, t)
	return t
}

func byRoute(t *table, route string) int { return strings.Compare(t.route, route) }

// table finds the table of a route configuration, or gives nil.
func (s *Session) table(route string) *table {
	if at, ok := slices.BinarySearchFunc(s.tables, route, byRoute); ok {
		return s.tables[at]
	}
	return nil
}

// fill makes a table lead to what the client should have.
func (s *Session) fill(t *table) {
	if t.set = s.hosts[t.route]; t.closing {
		t.set = nil
	}
}

// startHosts takes the first request for virtual hosts.
func (s *Session) startHosts(t *track, r DeltaRequest) {
	t.claimed = len(r.Initial) > 0
	if s.variant != Delta || !t.claimed {
		return
	}
	s.claims = map[string]map[string]string{}
	for n, v := range r.Initial {
		route := routeOf(n)
		if s.claims[route] == nil {
			s.claims[route] = map[string]string{}
		}
		s.claims[route][n] = v
	}
}

// endTable begins to take a table away, because the client has given up its route configuration, lost it, or asks for it anew.
func (s *Session) endTable(route string) {
	if t := s.table(route); t != nil {
		t.closing = true
		s.fill(t)
	}
}

// mayBegin keeps route configurations back that the client does not have, as long as it may hold virtual hosts of them.
func (s *Session) mayBegin(routes *track, added []*Resource) []*Resource {
	if s.variant != Delta || len(s.hosts) == 0 {
		return added
	}
	now := make([]*Resource, 0, len(added))
	for _, r := range added {
		_, forced := routes.forced[r.Name]
		if s.hosts[r.Name] == nil || routes.held(r.Name) != nil && !forced || s.empty(r.Name) {
			now = append(now, r)
			continue
		}
		s.blocked = true
	}
	return now
}

// empty reports whether the client holds no virtual host of a route configuration that it does not have, and sees to it that
// it does not.
func (s *Session) empty(route string) bool {
	front := s.tracks[VirtualHosts]
	if !front.started { // a client that comes back says soon what it holds, unless it never had any
		return s.patient || !s.tracks[Clusters].claimed && !s.tracks[Listeners].claimed && !s.tracks[Routes].claimed
	}
	if claims := s.claims[route]; claims != nil {
		t := s.addTable(route, true)
		for n := range claims {
			t.hold(n, &Resource{Name: n})
		}
		delete(s.claims, route)
	}
	s.endTable(route)
	return s.table(route) == nil
}

// open makes tables for the route configurations that the client has.
func (s *Session) open() {
	routes := s.tracks[Routes]
	for route, held := range routes.over {
		if held == nil || held.Version == "" || s.hosts[route] == nil || s.table(route) != nil {
			continue
		}
		if _, again := routes.forced[route]; again {
			continue
		}
		t := s.addTable(route, false)
		if claims := s.claims[route]; claims != nil {
			t.claimed, t.answered = true, true
			t.claimAll(claims)
			delete(s.claims, route)
		}
	}
}

// planHosts decides what is sent of the next table that lacks something.
func (s *Session) planHosts(front *track) (*flight, bool) {
	s.open()
	s.tables = slices.DeleteFunc(s.tables, func(t *table) bool { return t.set == nil && !t.lacking(s.variant) })
	for _, t := range s.tables {
		// The route configuration, and the listener that has it, go first.
		if t.set == nil && !t.closing && s.tracks[Routes].held(t.route) != nil {
			s.blocked = true
			continue
		}
		if f, ok := s.plan(&t.track); ok {
			s.serving = &t.track
			return f, true
		}
	}
	if len(s.hosts) == 0 && !front.answered {
		return &flight{}, true // there is nothing of the kind
	}
	return nil, false
}

func (s *Session) hostsRejected() bool {
	for _, t := range s.tables {
		if t.rejecting() {
			return true
		}
	}
	return false
}

func (s *Session) hostsLacking() bool {
	s.open()
	for _, t := range s.tables {
		if t.lacking(s.variant) {
			return true
		}
	}
	return false
}

// hostsStatus sums up all tables.
func (s *Session) hostsStatus() Status {
	front := s.tracks[VirtualHosts]
	if !front.started || len(s.tables) == 0 {
		return Status{State: NotSent}
	}
	var acked, sent uint64
	st := Status{State: Synced}
	for _, t := range s.tables {
		acked += t.heldSum()
		sent += t.set.sum()
		if st.Error == "" {
			st.Error = t.lastError
		}
		for _, n := range slices.Sorted(maps.Keys(t.rejected)) {
			st.Rejected = append(st.Rejected, t.rejected[n])
		}
	}
	st.Acked, st.Sent = version(acked), version(sent)
	switch {
	case s.Rejecting(VirtualHosts):
		st.State = Rejected
	case front.flight != nil || s.hostsLacking():
		st.State = Stale
	}
	return st
}
