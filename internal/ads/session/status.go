package session

import (
	"maps"
	"slices"
)

// State is how far a client is with one type.
type State string

// The states, as `selvage status` shows them.
const (
	NotSent  State = "NOT_SENT" // the client has not asked, or was not answered
	Synced   State = "SYNCED"   // it has acknowledged all that it should have
	Stale    State = "STALE"    // something is on its way or waits for another type
	Rejected State = "REJECTED" // it has refused something that it should have, and keeps what it had before
)

// Status is one type of a client.
type Status struct {
	State    State
	Sent     string // version of the whole type as it was sent last
	Acked    string // version of what the client is known to hold
	Error    string // the client's words, while something is rejected
	Rejected []*Resource
}

// Status describes one of the served kinds.
func (s *Session) Status(k Kind) Status {
	if k == VirtualHosts {
		return s.hostsStatus()
	}
	t := s.tracks[k]
	if !t.started || !t.answered {
		return Status{State: NotSent}
	}
	st := Status{State: Synced, Acked: version(t.heldSum()), Error: t.lastError}
	st.Sent = st.Acked
	switch {
	case t.flight != nil:
		st.Sent = t.versionAfter(t.flight)
	case t.lastVersion != "":
		st.Sent = t.lastVersion
	}
	switch {
	case s.Rejecting(k):
		st.State = Rejected
		for _, n := range slices.Sorted(maps.Keys(t.rejected)) {
			st.Rejected = append(st.Rejected, t.rejected[n])
		}
	case t.flight != nil || t.lacking(s.variant):
		st.State = Stale
	}
	return st
}
