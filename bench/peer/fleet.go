package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// fleet is all simulated sidecars.
type fleet struct {
	delta    bool
	library  *library
	sidecars []*sidecar
	expected atomic.Pointer[expectation]
	synced   chan int
}

func newFleet(workloads []workload, delta bool) *fleet {
	f := &fleet{delta: delta, library: newLibrary(), synced: make(chan int, len(workloads))}
	for i, w := range workloads {
		f.sidecars = append(f.sidecars, newSidecar(f, i, w))
	}
	return f
}

// connection is the fleet's streams to one server.
type connection struct {
	fleet *fleet
	end   context.CancelFunc
	work  sync.WaitGroup
	errs  chan error
}

// connect opens all streams at once. Who is refused or loses its stream tries again, as a sidecar does.
func (f *fleet) connect(ctx context.Context, address string) *connection {
	ctx, end := context.WithCancel(ctx)
	c := &connection{fleet: f, end: end, errs: make(chan error, len(f.sidecars))}
	for _, p := range f.sidecars {
		c.work.Go(func() {
			for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
				err := p.run(ctx, address)
				if ended(ctx, err) {
					return
				}
				select {
				case c.errs <- fmt.Errorf("sidecar %s: %w", p.node.GetId(), err):
				default:
				}
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return c
}

// awaitSync waits until every sidecar has all that it asked for.
func (c *connection) awaitSync(ctx context.Context, limit time.Duration) error {
	late := time.After(limit)
	done := map[int]bool{}
	var last error
	for len(done) < len(c.fleet.sidecars) {
		select {
		case i := <-c.fleet.synced:
			done[i] = true
		case last = <-c.errs:
		case <-late:
			return fmt.Errorf("%d of %d sidecars are synced after %s; last error: %w", len(done), len(c.fleet.sidecars), limit, last)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// awaitQuiet waits until nothing has come for a while: a sidecar that lacks nothing when it comes back gets no answer.
func (c *connection) awaitQuiet(ctx context.Context, quiet, limit time.Duration) error {
	late := time.After(limit)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for last, since := int64(-1), time.Now(); time.Since(since) < quiet; {
		select {
		case <-c.fleet.synced:
		case <-tick.C:
		case <-late:
			return fmt.Errorf("it is still sent something after %s", limit)
		case <-ctx.Done():
			return ctx.Err()
		}
		if now := c.fleet.received(); now != last {
			last, since = now, time.Now()
		}
	}
	for _, p := range c.fleet.sidecars {
		if p.read.Load() == 0 {
			return fmt.Errorf("sidecar %s is sent nothing at all", p.node.GetId())
		}
	}
	return nil
}

// close ends all streams.
func (c *connection) close() {
	c.end()
	c.work.Wait()
}

// received is what all sidecars have read since they connected, in bytes.
func (f *fleet) received() (total int64) {
	for _, p := range f.sidecars {
		total += p.read.Load()
	}
	return total
}

// expect begins to wait for a change.
func (f *fleet) expect(marker string, types ...string) *expectation {
	e := &expectation{marker: []byte(marker), types: map[string]bool{}, arrived: make(chan time.Time, len(f.sidecars))}
	for _, t := range types {
		e.types[t] = true
	}
	f.expected.Store(e)
	return e
}

// await gives how long after began each sidecar was told. It fails when not all were by the limit; none of them says that
// the change is not carried out at all.
func (f *fleet) await(e *expectation, began time.Time, limit time.Duration) (took []time.Duration, err error) {
	late := time.After(limit)
	for len(took) < len(f.sidecars) {
		select {
		case at := <-e.arrived:
			took = append(took, at.Sub(began))
		case <-late:
			if len(took) == 0 {
				return nil, errNotServed
			}
			return nil, fmt.Errorf("%d of %d sidecars were told of %q within %s", len(took), len(f.sidecars), e.marker, limit)
		}
	}
	return took, nil
}

// percentile gives the value below which p percent lie.
func percentile(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(len(all)-1, len(all)*p/100)]
}
