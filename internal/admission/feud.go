package admission

import "time"

const (
	// feudNamed is from how many overwritten repairs on a rival is called one: an installer writes once or twice.
	feudNamed = 5
	// feudWeary is from how many on, by the same rival, repairs become rarer. With a rival that writes every second that is five
	// minutes, in which the bundle was right nearly all the time and people were told.
	feudWeary = 300
	// firstPause doubles with each further fight, up to longestPause.
	firstPause   = 2 * time.Second
	longestPause = time.Minute
	// feudQuiet is how long nobody must have overwritten a repair for the feud to be over. It is longer than two pauses.
	feudQuiet = 150 * time.Second
	// manyRivals bounds what is kept of one feud, and the series of its metric.
	manyRivals = 20
)

// The names under which rivals are counted that managedFields do not name, and those after the first twenty.
const (
	UnknownRival = "unknown"
	OtherRivals  = "other"
)

// Feud is the history of one configuration with the writers that overwrite it. The zero value is peace.
type Feud struct {
	fights map[string]int // by field manager
	rival  Rival          // of the last fight
	last   time.Time
}

// Told is what a fight means for people.
type Told int

// What is to be said after a fight.
const (
	Quiet  Told = iota // nothing new
	Repair             // one of the first repairs: each is said
	Named              // the rival is one: name it, and single repairs no more
	Weary              // from now on repairs are rarer
)

// Lost notes that a repair was overwritten.
func (f *Feud) Lost(now time.Time, by Rival) Told {
	if f.fights == nil {
		f.fights = map[string]int{}
	}
	f.rival, f.last = by, now
	name := f.name(by)
	f.fights[name]++
	switch n := f.fights[name]; {
	case n < feudNamed:
		return Repair
	case n == feudNamed:
		return Named
	case n == feudWeary:
		return Weary
	}
	return Quiet
}

func (f *Feud) name(by Rival) string {
	name := by.Manager
	if name == "" {
		name = UnknownRival
	}
	if _, known := f.fights[name]; !known && len(f.fights) >= manyRivals {
		return OtherRivals
	}
	return name
}

// Rival is who fought last, the name under which it is counted, and how often it overwrote a repair.
func (f *Feud) Rival() (by Rival, name string, fights int) {
	name = f.name(f.rival)
	return f.rival, name, f.fights[name]
}

// Named reports whether the last rival fought often enough to be called one.
func (f *Feud) Named() bool {
	_, _, n := f.Rival()
	return n >= feudNamed
}

// Pause is how long a repair must wait since the last fight.
func (f *Feud) Pause() time.Duration {
	_, _, n := f.Rival()
	if n < feudWeary {
		return 0
	}
	pause := firstPause
	for range n - feudWeary {
		if pause *= 2; pause >= longestPause {
			return longestPause
		}
	}
	return pause
}

// Wait is how much of the pause is left.
func (f *Feud) Wait(now time.Time) time.Duration {
	return max(0, f.Pause()-now.Sub(f.last))
}

// Over reports whether there was a named rival and it has stopped; again is when to ask next, 0 when there is nothing to ask.
// After the end of a feud, named or not, everything is forgotten.
func (f *Feud) Over(now time.Time) (ended bool, again time.Duration) {
	if len(f.fights) == 0 {
		return false, 0
	}
	if left := feudQuiet - now.Sub(f.last); left > 0 {
		return false, left
	}
	for _, n := range f.fights {
		ended = ended || n >= feudNamed
	}
	f.fights = nil
	return ended, 0
}
