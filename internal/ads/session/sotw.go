package session

import (
	"maps"
	"slices"
)

// SotW takes a request of the state-of-the-world variant. An error means that the client asks for more than it may.
func (s *Session) SotW(r SotWRequest) (Outcome, error) {
	t, out, err := s.begin(r.TypeURL, r.Names)
	if err != nil {
		return out, err
	}
	if !t.started {
		s.startSotW(t, r)
		return out, tooMany(t)
	}
	switch {
	case t.flight != nil && r.Nonce == t.flight.nonce:
		s.answer(t, r.Nonce, r.Rejected, r.Error, &out)
	case t.flight != nil || r.Nonce != t.lastNonce && r.Nonce != "":
		// The answer to the newest response will come with the names that the client wants by then.
		out.Stale = true
		return out, nil
	}
	s.setNames(t, r.Names)
	return out, tooMany(t)
}

// sentWhole reports whether each response must hold everything: what is not in it is removed by the client.
func (t *track) sentWhole(v Variant) bool {
	return v == SotW && (t.kind == Clusters || t.kind == Listeners)
}

func (s *Session) startSotW(t *track, r SotWRequest) {
	t.started = true
	t.claimed = r.Version != ""
	t.wildcard = len(r.Names) == 0 && t.kind != Endpoints && t.kind != Routes
	s.setNames(t, r.Names)
	// The version is that of the last response, for endpoints and routes too: a client that dropped one since and wants it
	// again would claim it as well. So only what is sent whole is believed.
	if want := t.wanted(); t.claimed && t.sentWhole(s.variant) && want.Version() == r.Version {
		t.base, t.answered = want, true
	}
}

// setNames makes the subscription what the client says it is now.
func (s *Session) setNames(t *track, names []string) {
	if len(names) == 0 && t.wildcard && len(t.names) == 0 {
		return
	}
	if t.sentWhole(s.variant) {
		wild := slices.Contains(names, wildcard)
		next := make(map[string]struct{}, len(names))
		for _, n := range names {
			if n != wildcard {
				next[n] = struct{}{}
			}
		}
		if wild != t.wildcard || !maps.Equal(next, t.names) {
			t.answered, t.refused = false, "" // also what does not exist is an answer
		}
		t.wildcard, t.names = wild, next
		return
	}
	keep := make(map[string]struct{}, len(names))
	for _, n := range names {
		keep[n] = struct{}{}
		_, wanted := t.over[n]
		_, beside := t.names[n]
		if !wanted && !beside {
			t.subscribe(n)
		}
	}
	if t.wildcard {
		if _, still := keep[wildcard]; !still && len(names) > 0 {
			t.endWildcard()
		}
		return
	}
	for n := range t.over {
		if _, still := keep[n]; !still {
			t.unsubscribe(n)
		}
	}
}

// wanted is the set that a client of a type that is sent whole should have.
func (t *track) wanted() *Set {
	if t.wildcard {
		return t.set
	}
	var rs []*Resource
	for n := range t.names {
		if r := t.lookup(n); r != nil {
			rs = append(rs, r)
		}
	}
	return NewSet(rs)
}

// planWhole decides about clusters and listeners of the state of the world. Additions cannot be sent without what is left:
// as long as clusters that go may be in use they are sent along.
func (s *Session) planWhole(t *track) (*flight, bool) {
	want := t.wanted()
	d := want.diffFrom(t.base)
	if t.answered && !t.unsure && len(d.added)+len(d.removed) == 0 {
		return nil, false
	}
	if want.Version() == t.refused || !s.mayGo(t) {
		return nil, false
	}
	removed, withheld := s.mayRemove(t, d.removed)
	if len(withheld) > 0 {
		if len(d.added)+len(removed) == 0 && !t.unsure {
			return nil, false
		}
		union := slices.Clone(want.all())
		for _, n := range withheld {
			union = append(union, t.base.Get(n))
		}
		if want = NewSet(union); want.Version() == t.refused {
			return nil, false
		}
	}
	return &flight{added: d.added, removed: removed, whole: want, full: true}, true
}
