package probe

import (
	"math/rand/v2"
	"time"
)

const (
	// quick is how soon is asked again after something has changed, and how long a bad answer waits for its confirmation. From
	// there the pauses double.
	quick = time.Second
	// slow is the pause while all is well: two dry runs of some milliseconds each time.
	slow = 15 * time.Second
	// slowBad is the pause while something does not work: its end is to be seen soon, and each try may hold up the API server's
	// request for the webhook's timeout of 10 s.
	slowBad = 10 * time.Second
	// settle is how long after a change of a webhook configuration is asked: the API server reads it by a watch too.
	settle = 250 * time.Millisecond
)

// pace says how long to pause between two rounds.
type pace struct{ last time.Duration }

// after gives the pause after a round. restless is one that brought a change, or a bad answer that nothing confirms yet.
func (p *pace) after(restless, bad bool) time.Duration {
	limit := slow
	if bad {
		limit = slowBad
	}
	switch {
	case restless || p.last == 0:
		p.last = quick
	default:
		p.last = min(2*p.last, limit)
	}
	return jittered(p.last)
}

// reset makes the pauses short again.
func (p *pace) reset() { p.last = 0 }

// jittered is d give or take a tenth, so that the probes of many clusters, or revisions, do not come in step.
func jittered(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5) //nolint:gosec // nobody gains by guessing it
}
