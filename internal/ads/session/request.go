package session

import (
	"fmt"
	"strings"
)

// DeltaRequest is what matters of a DeltaDiscoveryRequest.
type DeltaRequest struct {
	TypeURL                string
	Nonce                  string
	Rejected               bool // error_detail is there
	Error                  string
	Subscribe, Unsubscribe []string
	Initial                map[string]string // initial_resource_versions
}

// SotWRequest is what matters of a DiscoveryRequest.
type SotWRequest struct {
	TypeURL  string
	Nonce    string
	Rejected bool
	Error    string
	Names    []string
	Version  string
}

// Outcome is what a request turned out to be, for logs and metrics.
type Outcome struct {
	Kind      Kind
	Unserved  bool       // the first request of a type that is not served
	Stale     bool       // it answers another response than the one on its way
	Rejection *Rejection // not nil for a rejection
}

// Rejection is a response that the client has refused, or a part of it.
type Rejection struct {
	Version string // of the whole type, as Status shows it
	Error   string
	// Guilty are the resources that are not sent again before they change. Empty while it is not known which they are: the
	// session then sends less at a time until it is.
	Guilty []*Resource
}

const wildcard = "*"

// Delta takes a request of the delta variant. An error means that the client asks for more than it may.
func (s *Session) Delta(r DeltaRequest) (Outcome, error) {
	t, out, err := s.begin(r.TypeURL, r.Subscribe, r.Unsubscribe)
	if err != nil {
		return out, err
	}
	if !t.started {
		s.startDelta(t, r)
		return out, tooMany(t)
	}
	s.answer(t, r.Nonce, r.Rejected, r.Error, &out)
	if t.kind == VirtualHosts {
		return out, nil // what it should have follows from its route configurations
	}
	for _, n := range r.Unsubscribe {
		t.unsubscribe(n)
		if t.kind == Routes {
			s.endTable(n)
		}
	}
	for _, n := range r.Subscribe {
		t.subscribe(n)
		if s.hosts[n] != nil && t.kind == Routes && !t.wildcard {
			t.over[n] = nil // it may have dropped it
			s.endTable(n)
		}
	}
	return out, tooMany(t)
}

// begin finds what a request is about, and what is known of it before it is carried out. It refuses names that are too long
// and types beyond the bound.
func (s *Session) begin(typeURL string, names ...[]string) (*track, Outcome, error) {
	if err := tooLong(names...); err != nil {
		return nil, Outcome{}, err
	}
	t, err := s.track(typeURL)
	if err != nil {
		return nil, Outcome{}, err
	}
	return t, Outcome{Kind: t.kind, Unserved: t.kind == Unknown && !t.started}, nil
}

// tooLong refuses names that no resource of ours has, and that would only be kept.
func tooLong(lists ...[]string) error {
	for _, names := range lists {
		for _, n := range names {
			if len(n) > maxName {
				return fmt.Errorf("subscribe to a resource whose name has %d bytes: at most %d are allowed", len(n), maxName)
			}
		}
	}
	return nil
}

func tooMany(t *track) error {
	if n := max(t.subscribed(), len(t.forced)); n > maxNames {
		return fmt.Errorf("subscribe to %d resources of %s: at most %d are allowed", n, t.url, maxNames)
	}
	return nil
}

// startDelta takes the first request of a type: a subscription, and what the client still holds from an earlier stream.
func (s *Session) startDelta(t *track, r DeltaRequest) {
	t.started = true
	if t.kind == VirtualHosts {
		s.startHosts(t, r)
		return
	}
	t.claimed = len(r.Initial) > 0
	t.answered = t.claimed
	if len(r.Subscribe) == 0 { // the form from before there was "*"
		t.wildcard = t.kind != Endpoints && t.kind != Routes
	}
	if n := len(r.Subscribe); n > 0 {
		t.over = make(map[string]*Resource, n)
		t.forced = make(map[string]struct{}, n)
	}
	for _, n := range r.Subscribe {
		t.subscribe(n)
	}
	if !t.claimed {
		return
	}
	if t.wildcard {
		t.claimAll(r.Initial)
		return
	}
	if c := s.tracks[Clusters]; t.kind == Endpoints && c.started && !c.claimed {
		return // endpoints of clusters that it does not have
	}
	for n := range t.over {
		v, ok := r.Initial[n]
		if _, again := s.rewarmed[n]; !ok || again {
			continue // forced by subscribe
		}
		delete(t.forced, n)
		t.over[n] = claim(t.lookup(n), n, v)
		put(&t.dirty, n)
	}
	if t.kind == Endpoints {
		s.rewarmed = nil
	}
}

// claim is what a client holds under a name at a version: now, if it is the same.
func claim(now *Resource, name, version string) *Resource {
	if now != nil && now.Version == version {
		return now
	}
	return &Resource{Name: name, Version: version}
}

// claimAll notes what a client with a wildcard holds.
func (t *track) claimAll(initial map[string]string) {
	t.base, t.over = t.set, map[string]*Resource{}
	same := 0
	for _, r := range t.set.all() {
		switch v, ok := initial[r.Name]; {
		case !ok:
			t.over[r.Name] = nil
		case v != r.Version:
			t.over[r.Name] = claim(nil, r.Name, v)
			same++
		default:
			same++
		}
	}
	if same < len(initial) {
		for n, v := range initial {
			if t.set.Get(n) == nil {
				t.over[n] = claim(nil, n, v)
			}
		}
	}
	for n := range t.names { // held, as far as it exists
		if t.held(n) != nil {
			delete(t.forced, n)
		}
	}
}

// subscribe adds one name. The client must be sent it even if it was before: it may have dropped it since.
func (t *track) subscribe(name string) {
	if name == wildcard && t.kind != Endpoints {
		t.becomeWildcard()
		return
	}
	if r := t.lookup(name); r != nil {
		name = r.Name // one string for all sessions
	}
	put(&t.forced, name)
	if t.wildcard {
		put(&t.names, name)
		return
	}
	if _, ok := t.over[name]; !ok {
		if t.over == nil {
			t.over = map[string]*Resource{}
		}
		t.over[name] = nil
	}
}

func (t *track) becomeWildcard() {
	if t.wildcard {
		return
	}
	t.wildcard = true
	for n, r := range t.over {
		put(&t.names, n)
		if r == nil {
			delete(t.over, n)
		}
	}
	clear(t.dirty)
}

func (t *track) unsubscribe(name string) {
	delete(t.names, name)
	delete(t.rejected, name)
	switch {
	case name == wildcard && t.wildcard:
		t.endWildcard()
	case t.wildcard:
		put(&t.forced, name) // the wildcard still covers it: say what is true of it
	default:
		delete(t.over, name)
		delete(t.dirty, name)
		delete(t.forced, name)
		delete(t.missing, name)
	}
	t.forgetError()
}

func (t *track) endWildcard() {
	over := make(map[string]*Resource, len(t.names))
	for n := range t.names {
		over[n] = t.held(n)
	}
	if t.flight != nil {
		t.flight.whole = nil
	}
	t.wildcard, t.names, t.base, t.over, t.forced = false, nil, nil, over, nil
	t.recheckAll()
}

// answer takes an ACK or NACK of the response that is on its way.
func (s *Session) answer(t *track, nonce string, rejected bool, text string, out *Outcome) {
	if nonce == "" {
		return // a change of the subscription only
	}
	f := t.flight
	if f == nil || nonce != f.nonce {
		out.Stale = true
		return
	}
	if t.kind == VirtualHosts && s.serving != nil {
		t.flight, t = nil, s.serving
		s.serving = nil
	}
	if !rejected {
		t.acknowledged()
		s.warmed(t, f, false)
		return
	}
	s.warmed(t, f, true)
	if len(text) > maxErrorText {
		text = text[:maxErrorText]
	}
	text = strings.ToValidUTF8(text, "�")
	version := t.versionAfter(f)
	out.Rejection = &Rejection{Version: version, Error: text, Guilty: t.refuse(text, version)}
}
