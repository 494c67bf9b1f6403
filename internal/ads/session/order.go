package session

import "slices"

// plan decides what one type is sent next, if anything. It is called only when nothing of the type is on its way.
func (s *Session) plan(t *track) (*flight, bool) {
	switch {
	case t.sentWhole(s.variant):
		return s.planWhole(t)
	case t == s.tracks[VirtualHosts] && s.variant == Delta:
		return s.planHosts(t)
	}
	added, removed := t.pending()
	if t.kind == Routes {
		added = s.mayBegin(t, added)
	}
	if len(added)+len(removed) == 0 {
		t.limit = 0
		if !t.mustAnswer(s.variant) {
			return nil, false
		}
		return &flight{whole: t.exactly()}, true
	}
	if !s.mayGo(t) {
		return nil, false
	}
	removed, withheld := s.mayRemove(t, removed)
	f := &flight{added: added, removed: removed}
	if t.limit > 0 && len(added) > t.limit {
		f.added, f.removed = added[:t.limit], nil
	} else if t.wildcard {
		f.whole, f.except = t.set, t.exceptions(withheld)
	}
	if s.variant == SotW { // the absence of endpoints and routes cannot be said
		for _, n := range f.removed {
			t.hold(n, nil)
			delete(t.dirty, n)
			delete(t.forced, n)
			if t.kind == Endpoints {
				put(&t.missing, n)
			}
		}
		f.removed = nil
	}
	return f, len(f.added)+len(f.removed) > 0 || t.mustAnswer(s.variant)
}

// mustAnswer reports whether the client waits for an answer even if that is empty: Envoy starts only when it has one for
// clusters and listeners.
func (t *track) mustAnswer(v Variant) bool {
	return !t.answered && (t.wildcard || t.kind == Unknown || v == SotW && len(t.over) > 0)
}

// exactly is what a client with nothing pending holds, as a whole.
func (t *track) exactly() *Set {
	if t.wildcard && len(t.over) == 0 {
		return t.set
	}
	return nil
}

// exceptions are what the client will hold otherwise than set has it, after a response with all that could be sent.
func (t *track) exceptions(withheld []string) map[string]*Resource {
	if len(withheld)+len(t.rejected) == 0 {
		return nil
	}
	except := make(map[string]*Resource, len(withheld)+len(t.rejected))
	for _, n := range withheld {
		except[n] = t.held(n)
	}
	for n := range t.rejected {
		if have, want := t.held(n), t.lookup(n); have != want {
			except[n] = have
		}
	}
	return except
}

// mayGo keeps listeners and routes back until the clusters that they may refer to are there with their endpoints. A client
// that has nothing yet is not kept waiting.
func (s *Session) mayGo(t *track) bool {
	if t.kind < Listeners || t.kind == Unknown || !t.answered && !t.claimed || s.clustersReady() {
		return true
	}
	s.blocked = true
	return s.patient
}

// clustersReady reports whether no cluster is on its way and none waits for its endpoints.
func (s *Session) clustersReady() bool {
	c := s.tracks[Clusters]
	if c.started && c.flight != nil {
		if len(c.flight.added) > 0 || c.lacksMore(s.variant) {
			return false
		}
	}
	for n := range s.warming {
		if s.tracks[Endpoints].lookup(n) == nil { // gone since
			delete(s.warming, n)
		}
	}
	return len(s.warming) == 0
}

// lacksMore reports whether there is something to add that is not on its way.
func (t *track) lacksMore(v Variant) bool {
	if t.sentWhole(v) {
		return len(t.wanted().diffFrom(t.base).added) > 0
	}
	added, _ := t.pending()
	return len(added) > 0
}

// mayRemove keeps removals back while something may still refer to what goes: clusters until listeners and routes are
// settled, endpoints until clusters are.
func (s *Session) mayRemove(t *track, removed []string) (now, withheld []string) {
	if len(removed) == 0 {
		return nil, nil
	}
	if t.kind == Clusters && !s.clustersUnused() {
		return nil, removed
	}
	if c := s.tracks[Clusters]; t.kind != Endpoints || c.flight == nil && !c.lacking(s.variant) {
		return removed, nil
	}
	for _, n := range removed {
		if _, asked := t.forced[n]; asked {
			now = append(now, n)
		} else {
			withheld = append(withheld, n)
		}
	}
	return now, withheld
}

// clustersUnused reports whether the client's listeners and routes are those that go with the new clusters. While one is
// rejected the client keeps the old one, and with it the clusters that it may lead to.
func (s *Session) clustersUnused() bool {
	for _, k := range []Kind{Listeners, Routes, VirtualHosts} {
		t := s.tracks[k]
		if s.Rejecting(k) {
			return false
		}
		// A client that comes back has listeners and routes that it did not name on this stream yet.
		unseen := !t.started && s.tracks[Clusters].claimed && (k != VirtualHosts || len(s.hosts) > 0)
		if unseen || t.flight != nil || t.lacking(s.variant) || k == VirtualHosts && s.hostsLacking() {
			s.blocked = true
			if !s.patient {
				return false
			}
		}
	}
	return true
}

// clusterSent is the version of a cluster that the client was sent last, or came with; "" when it was sent none.
func (s *Session) clusterSent(name string) string {
	c := s.tracks[Clusters]
	if c.flight != nil {
		if i, ok := slices.BinarySearchFunc(c.flight.added, name, byName); ok {
			return c.flight.added[i].Version
		}
	}
	if r := c.held(name); r != nil {
		return r.Version
	}
	return ""
}

// clustersSent notes that the endpoints of these clusters must follow.
func (s *Session) clustersSent(clusters []*Resource) {
	eds := s.tracks[Endpoints]
	// A client that only starts has nothing that could refer to them too early.
	moves := s.tracks[Clusters].claimed || s.tracks[Listeners].answered || s.tracks[Routes].answered
	onItsWay := ""
	if eds.flight != nil {
		onItsWay = eds.flight.nonce
	}
	for _, c := range clusters {
		if c.EndpointName == "" {
			continue
		}
		if _, ok := eds.over[c.EndpointName]; ok {
			put(&eds.forced, c.EndpointName)
		}
		if !eds.started && s.tracks[Clusters].claimed {
			put(&s.rewarmed, c.EndpointName)
		}
		if moves {
			if s.warming == nil {
				s.warming = map[string]string{}
			}
			s.warming[c.EndpointName] = onItsWay
		}
	}
}

// warmed notes what the client's answer means for clusters that wait for their endpoints.
func (s *Session) warmed(t *track, f *flight, rejected bool) {
	if len(s.warming) == 0 || t.kind > Endpoints {
		return
	}
	answered := func(name string) {
		if before, ok := s.warming[name]; ok && before != f.nonce {
			delete(s.warming, name)
		}
	}
	for _, r := range f.added {
		switch {
		case t.kind == Endpoints:
			answered(r.Name)
		case rejected:
			delete(s.warming, r.EndpointName)
		}
	}
	if t.kind == Endpoints {
		for _, n := range f.removed {
			answered(n)
		}
	}
}
