// Package trust reasons about the roots that a mesh believes: how far a change of the root has come and what it waits for, what a
// proxy says about the roots that it uses, and what is about to expire. It is pure.
//
// A root changes in stages, so that at no moment two peers meet of which one does not believe the other: see Stage. Between two
// stages stands a gate: everybody who must know has to have said so.
package trust

import (
	"fmt"
	"slices"
	"time"
)

// Stage is how far a change of the root has come.
type Stage string

// The stages, in their order.
const (
	// Stable: one authority signs, and its roots are trusted.
	Stable Stage = "stable"
	// Distribute: the old authority signs still; the roots of both are trusted, and everybody is told so.
	Distribute Stage = "distribute"
	// Sign: the new authority signs; the roots of both are trusted until nobody shows a certificate of the old one.
	Sign Stage = "sign"
	// Retire: only the new roots are trusted, and everybody is told so.
	Retire Stage = "retire"
)

// Next is the stage after s; Stable after the last.
func (s Stage) Next() Stage {
	switch s {
	case Distribute:
		return Sign
	case Sign:
		return Retire
	case Stable, Retire:
	}
	return Stable
}

// Valid reports whether s is a stage of a change.
func (s Stage) Valid() bool { return s == Distribute || s == Sign || s == Retire }

// Ages are how old a stage must be before it is believed of a proxy that cannot say what it trusts.
type Ages struct {
	// Roots covers the way of a ConfigMap into a pod: the kubelet looks about once a minute.
	Roots time.Duration
	// Certificate covers the life of the certificates that the old authority has signed.
	Certificate time.Duration
}

// Proxy is a connected proxy, as far as it matters here.
type Proxy struct {
	Name string // NAMESPACE/POD
	// Roots is the hash of the roots that it uses (pki.BundleHash), "" when it cannot say.
	Roots string
	// Root is the fingerprint of the root that its certificate leads to, "" when that is not known.
	Root string
}

// Wanted is what is expected of everybody at a stage.
type Wanted struct {
	Stage Stage
	Since time.Time // when the stage began
	Roots string    // hash of the roots to trust
	Root  string    // fingerprint of the new authority's root
}

// Count is how many of a kind have acknowledged a stage.
type Count struct {
	Total int `json:"total"`
	Done  int `json:"done"`
	ByAge int `json:"byAge,omitempty"` // of Done: cannot say it themselves and are believed to have it by now
	// Waiting are the names of some that have not, sorted: at most MaxWaiting.
	Waiting []string `json:"waiting,omitempty"`
}

// MaxWaiting is how many names a Count has.
const MaxWaiting = 5

// Open reports whether all have acknowledged.
func (c Count) Open() bool { return c.Done >= c.Total }

// String is `3 of 5, waiting for a, b`.
func (c Count) String() string {
	text := fmt.Sprintf("%d of %d", c.Done, c.Total)
	if c.ByAge > 0 {
		text += fmt.Sprintf(" (%d by age)", c.ByAge)
	}
	return text
}

// Equal reports whether two counts say the same.
func (c Count) Equal(other Count) bool {
	return c.Total == other.Total && c.Done == other.Done && c.ByAge == other.ByAge && slices.Equal(c.Waiting, other.Waiting)
}

// Add counts c and other together.
func (c Count) Add(other Count) Count {
	c.Total, c.Done, c.ByAge = c.Total+other.Total, c.Done+other.Done, c.ByAge+other.ByAge
	c.Waiting = some(append(slices.Clone(c.Waiting), other.Waiting...))
	return c
}

// Counted is a Count of total things of which those with the names have not acknowledged.
func Counted(total int, waiting []string) Count {
	return Count{Total: total, Done: total - len(waiting), Waiting: some(waiting)}
}

func some(names []string) []string {
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(len(names), MaxWaiting)]
}

// Acknowledged counts the proxies that have what the stage wants of them: its roots, and, before the old root goes, a certificate
// of the new one.
func Acknowledged(w Wanted, proxies []Proxy, ages Ages, now time.Time) Count {
	c := Count{Total: len(proxies)}
	var waiting []string
	for _, p := range proxies {
		done, byAge := p.has(w, ages, now.Sub(w.Since))
		switch {
		case !done:
			waiting = append(waiting, p.Name)
			continue
		case byAge:
			c.ByAge++
		}
		c.Done++
	}
	c.Waiting = some(waiting)
	return c
}

func (p Proxy) has(w Wanted, ages Ages, age time.Duration) (done, byAge bool) {
	if w.Stage == Sign {
		if p.Root != "" && p.Root == w.Root {
			return true, false
		}
		// Who can say what it trusts says the truth about its certificate too: only of others time is the witness.
		return p.Roots == "" && age >= ages.Certificate, true
	}
	if p.Roots == "" {
		return age >= ages.Roots, true
	}
	return p.Roots == w.Roots, false
}
