package ads

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// Run pushes what is published until ctx ends, and then ends the streams.
func (s *Server) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.drain()
			return nil
		case <-s.inbox.arrived:
			if m, first, latest := s.inbox.peek(); m != nil {
				timer.Reset(time.Until(s.due(m, first, latest)))
			}
		case <-timer.C:
			if m, first := s.inbox.take(); m != nil {
				s.metrics.debounce.Observe(time.Since(first).Seconds())
				s.advance(m, first)
			}
		}
	}
}

// due is when a model should be pushed that holds changes since first, the last of which came at latest. The first change after
// a time of quiet goes out at once; those that follow closely are gathered.
func (s *Server) due(m *mesh.Model, first, latest time.Time) time.Time {
	quiet, bound, calm := s.config.Debounce, s.config.MaxDebounce, s.config.Debounce
	switch old := s.current(); {
	case old == nil:
		return first // proxies wait for it
	case s.onlyEndpoints(old, m):
		quiet = s.config.EndpointDebounce
		bound = 10 * quiet
		calm = bound
	}
	if first.Sub(s.pushed) >= calm {
		return first
	}
	at, last := latest.Add(quiet), first.Add(bound)
	if at.After(last) {
		return last
	}
	return at
}

// onlyEndpoints reports whether no connected proxy needs other clusters, listeners or routes. A pod that is new is no
// reason to wait: it has no proxy yet, or one that waits for it.
func (s *Server) onlyEndpoints(old, now *mesh.Model) bool {
	if old.Settings != now.Settings || old.Outbound != now.Outbound || !maps.Equal(old.Outbounds, now.Outbounds) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		k := mesh.WorkloadKey{Namespace: st.proxy.Namespace, Name: st.proxy.Name}
		was, is := old.Workloads[k], now.Workloads[k]
		if was != is && was != nil && is != nil && was.Inbound != is.Inbound {
			return false
		}
	}
	return true
}

// state is one published model. Streams hold the state that they have seen.
type state struct {
	seq      uint64
	model    *mesh.Model // nil before the first
	since    time.Time   // when the oldest change in it was published
	replaced chan struct{}
	// recent are the changes of this state and those before it, oldest first, so that a stream that slept through some knows
	// what it missed.
	recent []endpointChange
}

type endpointChange struct {
	seq   uint64
	names []string
}

// keptChanges is how many states a stream may miss before it compares all its endpoints.
const keptChanges = 32

// changesSince are the endpoints that may differ from those of the state with that number.
func (s *state) changesSince(seq uint64) session.Changes {
	i := slices.IndexFunc(s.recent, func(c endpointChange) bool { return c.seq == seq+1 })
	switch {
	case seq == s.seq:
		return session.Changes{}
	case i < 0:
		return session.Changes{All: true}
	case i == len(s.recent)-1:
		return session.Changes{Names: s.recent[i].names}
	}
	var c session.Changes
	for _, missed := range s.recent[i:] {
		c.Names = append(c.Names, missed.names...)
	}
	return c
}

// advance makes a model the current one and wakes all streams.
func (s *Server) advance(m *mesh.Model, since time.Time) {
	old := s.state.Load()
	if old.model == m {
		return
	}
	next := &state{seq: old.seq + 1, model: m, since: since, replaced: make(chan struct{})}
	changed := changedEndpoints(old.model, m)
	kept := old.recent[max(0, len(old.recent)-keptChanges+1):]
	next.recent = append(slices.Clone(kept), endpointChange{next.seq, names(changed)})
	s.state.Store(next)
	s.pushed = time.Now()
	if old.model != nil {
		for _, k := range changed {
			s.endpoints.forget(old.model.Endpoints[k])
		}
	}
	s.views.advance(next.seq)
	close(old.replaced)
}

func changedEndpoints(old, now *mesh.Model) (changed []mesh.EndpointKey) {
	if old == nil {
		old = &mesh.Model{}
	}
	for k, set := range now.Endpoints {
		if old.Endpoints[k] != set {
			changed = append(changed, k)
		}
	}
	for k := range old.Endpoints {
		if _, ok := now.Endpoints[k]; !ok {
			changed = append(changed, k)
		}
	}
	return changed
}

func names(keys []mesh.EndpointKey) []string {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = xds.ClusterName(k)
	}
	return list
}

// drain ends all streams and waits until they are gone.
func (s *Server) drain() {
	s.mu.Lock()
	s.idle = make(chan struct{})
	idle, open := s.idle, s.open
	s.mu.Unlock()
	close(s.draining)
	if open == 0 {
		return
	}
	late := time.NewTimer(s.config.DrainSpread + s.config.SendTimeout)
	defer late.Stop()
	select {
	case <-idle:
	case <-late.C:
		s.config.Log.Warn("some proxies did not let go of their streams at shutdown")
	}
}
