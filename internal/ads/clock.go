package ads

import (
	"time"

	"github.com/selvage-mesh/selvage/internal/ads/session"
)

// deadline is one thing that a stream does not wait for for ever.
type deadline int

// The deadlines of a stream. From answer on there is one for each served type.
const (
	send   deadline = iota // a write blocks
	gate                   // a type waits for another
	drain                  // the server ends
	answer                 // a response is not acknowledged

	deadlines = answer + deadline(session.Unknown)
)

// clock holds the deadlines of a stream behind one timer.
type clock struct {
	at    [deadlines]time.Time // zero: not running
	timer *time.Timer
	next  time.Time // when the timer fires; zero when it does not
}

func (c *clock) set(d deadline, at time.Time) { c.at[d] = at }

func (c *clock) clear(d deadline) { c.at[d] = time.Time{} }

// keep lets a deadline run while it is wanted: it starts when it does not run, and ends when it is not wanted.
func (c *clock) keep(d deadline, wanted bool, after time.Duration) {
	switch {
	case !wanted:
		c.clear(d)
	case c.at[d].IsZero():
		c.set(d, time.Now().Add(after))
	}
}

func (c *clock) passed(d deadline, now time.Time) bool {
	return !c.at[d].IsZero() && !now.Before(c.at[d])
}

// expired delivers when the earliest deadline has passed.
func (c *clock) expired() <-chan time.Time {
	var first time.Time
	for _, at := range c.at {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	switch {
	case first.IsZero():
		return nil // the timer may fire in vain, which nobody sees
	case c.timer == nil:
		c.timer = time.NewTimer(time.Until(first))
	case !first.Equal(c.next):
		c.timer.Reset(time.Until(first))
	}
	c.next = first
	return c.timer.C
}

// fired says that expired has delivered. Deadlines that are left as they are expire again at once.
func (c *clock) fired() { c.next = time.Time{} }

func (c *clock) stop() {
	if c.timer != nil {
		c.timer.Stop()
	}
}
