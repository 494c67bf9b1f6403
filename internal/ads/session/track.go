package session

import (
	"maps"
	"slices"
)

// track is what is known about one type on one stream: what the client wants, what it holds, what is on its way.
//
// What the client holds is base with the exceptions in over. For a wildcard subscription base is a set that was sent to all
// proxies of the view, and over is all but always empty: a proxy costs no memory for each resource, and what it lacks is the
// difference of two sets, which is computed once for all. For a subscription by name base is nil and the keys of over are
// the subscription itself.
type track struct {
	kind Kind
	url  string
	set  *Set                        // what all clients of the view should have; nil for endpoints
	find func(name string) *Resource // the same by name, for endpoints

	started  bool // the client has asked for the type
	answered bool // it was answered, or showed that it holds what it needs
	claimed  bool // it came with what it got on an earlier stream
	wildcard bool
	names    map[string]struct{} // beside a wildcard, or of a type that is always sent whole: names that were asked for

	base *Set
	over map[string]*Resource // nil value: not held

	dirty    map[string]struct{} // by name: those that may differ from what is held
	missing  map[string]struct{} // by name, endpoints only: those that do not exist, as the client was told
	forced   map[string]struct{} // must be sent, whatever is held
	rejected map[string]*Resource
	refused  string // state of the world, types sent whole: the version that was rejected

	unsure bool // the same: it may have taken a part of what it rejected

	limit    int // of resources in a response while looking for what was rejected; 0: none
	halvings int // rejections since the last Update that did not tell what they were about

	flight      *flight
	lastNonce   string
	lastError   string
	lastVersion string // that was rejected
}

// flight is a response that is not acknowledged.
type flight struct {
	nonce   string
	added   []*Resource // may be shared with other sessions
	removed []string
	forced  []string // those of the names that were forced
	// whole is what the client holds after it, but for the exceptions; nil when the response is a part.
	whole  *Set
	except map[string]*Resource
	full   bool // state of the world: all of whole is in it
}

// lookup gives what the client should have under a name, nil for nothing.
func (t *track) lookup(name string) *Resource {
	if t.find != nil {
		return t.find(name)
	}
	return t.set.Get(name)
}

func put(m *map[string]struct{}, name string) {
	if *m == nil {
		*m = map[string]struct{}{}
	}
	(*m)[name] = struct{}{}
}

// held is the client's resource of that name, nil when it has none.
func (t *track) held(name string) *Resource {
	if r, ok := t.over[name]; ok {
		return r
	}
	return t.base.Get(name)
}

// hold notes what the client has now; nil for nothing.
func (t *track) hold(name string, r *Resource) {
	_, listed := t.over[name]
	switch {
	case !t.wildcard && !listed: // given up in the meantime
	case t.wildcard && t.base.Get(name) == r:
		delete(t.over, name)
	default:
		if t.over == nil {
			t.over = map[string]*Resource{}
		}
		t.over[name] = r
	}
}

// subscribed counts what was asked for by name.
func (t *track) subscribed() int { return len(t.over) + len(t.names) }

// recheck notes that the content of a name may have changed; of use for subscriptions by name.
func (t *track) recheck(name string) {
	if _, ok := t.over[name]; ok {
		put(&t.dirty, name)
	}
}

func (t *track) recheckAll() {
	for n := range t.over {
		put(&t.dirty, n)
	}
}

// forgetOldRejections forgets those whose content has changed since: they may be sent again.
func (t *track) forgetOldRejections() {
	for n, r := range t.rejected {
		if now := t.lookup(n); now == nil || !sameContent(now, r) {
			delete(t.rejected, n)
			t.recheck(n)
		}
	}
	t.forgetError()
}

func (t *track) forgetError() {
	if len(t.rejected) == 0 && t.refused == "" {
		t.lastError, t.lastVersion = "", ""
	}
}

// lacks tells what the client needs to know about one name.
func (t *track) lacks(name string) (add *Resource, remove bool) {
	want, have := t.lookup(name), t.held(name)
	_, forced := t.forced[name]
	if want == nil {
		return nil, have != nil || forced
	}
	if !forced && have != nil && have.Version == want.Version {
		return nil, false
	}
	if r := t.rejected[name]; r != nil && sameContent(r, want) {
		return nil, false
	}
	return want, false
}

// pending is all that the client lacks, sorted by name. The slices may be shared.
func (t *track) pending() (added []*Resource, removed []string) {
	var names []string
	if t.wildcard {
		d := t.set.diffFrom(t.base)
		if len(t.over)+len(t.forced)+len(t.rejected) == 0 {
			return d.added, d.removed
		}
		for _, r := range d.added {
			names = append(names, r.Name)
		}
		names = append(names, d.removed...)
		names = slices.AppendSeq(names, maps.Keys(t.over))
	} else {
		if len(t.dirty)+len(t.forced) == 0 {
			return nil, nil
		}
		names = slices.Collect(maps.Keys(t.dirty))
	}
	names = slices.AppendSeq(names, maps.Keys(t.forced))
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		add, remove := t.lacks(n)
		switch {
		case add != nil:
			added = append(added, add)
		case remove:
			removed = append(removed, n)
		default:
			delete(t.dirty, n)
			delete(t.forced, n)
		}
	}
	return added, removed
}

// lacking reports whether the client lacks anything that it can be sent.
func (t *track) lacking(v Variant) bool {
	if !t.started {
		return false
	}
	if t.sentWhole(v) {
		want := t.wanted()
		return (t.unsure || want.sum() != t.base.sum()) && want.Version() != t.refused
	}
	added, removed := t.pending()
	return len(added)+len(removed) > 0
}

// launched notes that a response was written.
func (t *track) launched(f *flight) {
	t.flight, t.lastNonce, t.answered = f, f.nonce, true
	sent := func(name string) {
		delete(t.dirty, name)
		if _, ok := t.forced[name]; ok {
			delete(t.forced, name)
			f.forced = append(f.forced, name)
		}
	}
	if len(t.dirty)+len(t.forced)+len(t.missing) > 0 {
		for _, r := range f.added {
			sent(r.Name)
			delete(t.missing, r.Name)
		}
	}
	for _, n := range f.removed {
		sent(n)
		if t.kind == Endpoints {
			put(&t.missing, n)
		}
	}
	// A map that was large stays large: let go of what a first subscription has filled.
	if len(t.dirty) == 0 {
		t.dirty = nil
	}
	if len(t.forced) == 0 {
		t.forced = nil
	}
}

// acknowledged notes that the client holds what was sent.
func (t *track) acknowledged() {
	f := t.flight
	t.flight = nil
	if f.full {
		t.base, t.rejected, t.refused, t.unsure = f.whole, nil, "", false
		t.forgetError()
		return
	}
	t.forgetError()
	if f.whole != nil && t.wildcard {
		t.base, t.over = f.whole, f.except
		return
	}
	for _, r := range f.added {
		t.hold(r.Name, r)
	}
	for _, n := range f.removed {
		t.hold(n, nil)
	}
}

// heldSum and versionAfter give the version of the whole type, before and after a response.
func (t *track) heldSum() uint64 {
	sum := t.base.sum()
	for n, r := range t.over {
		sum += r.sum() - t.base.Get(n).sum()
	}
	return sum
}

func (t *track) versionAfter(f *flight) string {
	if f.full {
		return f.whole.Version()
	}
	sum := t.heldSum()
	for _, r := range f.added {
		sum += r.sum() - t.held(r.Name).sum()
	}
	for _, n := range f.removed {
		sum -= t.held(n).sum()
	}
	return version(sum)
}
