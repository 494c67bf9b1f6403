package session

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"weak"
)

// Resource is one xDS resource as the protocol sees it: a name and a version. It is immutable and shared by all sessions.
type Resource struct {
	Name    string
	Version string // equal versions are equal content
	// Content is the version of the content alone where Version depends on something else too; else "".
	Content string
	// EndpointName is, for a cluster that learns its endpoints by EDS, the resource that it subscribes to; else "".
	EndpointName string
	// Data is what the caller sends for it; the session never looks inside.
	Data any
}

// sameContent reports whether a rejection of one is a rejection of the other.
func sameContent(a, b *Resource) bool {
	if a.Content != "" || b.Content != "" {
		return a.Content == b.Content
	}
	return a.Version == b.Version
}

// sum hashes name and version so that sums can be added: the sum of a set does not depend on an order, and changing one
// resource changes it by the difference. FNV-1a, then a finalizer that spreads the bits (splitmix64).
func (r *Resource) sum() uint64 {
	if r == nil {
		return 0
	}
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, s := range [...]string{r.Name, "\x00", r.Version} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * prime
		}
	}
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

// version is how a sum is shown to proxies and people: 16 hexadecimal digits.
func version(sum uint64) string {
	s := strconv.FormatUint(sum, 16)
	return "0000000000000000"[len(s):] + s
}

// Set is the immutable resources of one type that a view is sent, shared by all sessions of the view. What changed from one
// set to another is computed once for all of them. The nil Set is empty.
type Set struct {
	list  []*Resource // sorted by name, one of a name
	total uint64

	mu    sync.Mutex
	diffs []cachedDiff // newest last
}

// diff is what turns one set into another.
type diff struct {
	added   []*Resource // new or changed, sorted by name
	removed []string    // sorted
}

var nothing = &diff{}

// cachedDiff does not keep the old set alive: a chain of all sets that ever were would hang on the newest.
type cachedDiff struct {
	from weak.Pointer[Set]
	diff *diff
}

// keptDiffs bounds the cache: sessions that are slow to acknowledge come from a few older sets.
const keptDiffs = 4

// NewSet sorts resources by name; of two with one name the first counts. It takes over the slice.
func NewSet(resources []*Resource) *Set {
	order := func(a, b *Resource) int { return cmp.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(resources, order) {
		slices.SortStableFunc(resources, order)
	}
	s := &Set{list: slices.CompactFunc(resources, func(a, b *Resource) bool { return a.Name == b.Name })}
	for _, r := range s.list {
		s.total += r.sum()
	}
	return s
}

func byName(r *Resource, name string) int { return cmp.Compare(r.Name, name) }

// Get returns the resource of that name, or nil.
func (s *Set) Get(name string) *Resource {
	if s == nil {
		return nil
	}
	if i, ok := slices.BinarySearchFunc(s.list, name, byName); ok {
		return s.list[i]
	}
	return nil
}

// Len is the number of resources.
func (s *Set) Len() int { return len(s.all()) }

// Version identifies the content: equal on every replica and after every restart.
func (s *Set) Version() string { return version(s.sum()) }

func (s *Set) all() []*Resource {
	if s == nil {
		return nil
	}
	return s.list
}

func (s *Set) sum() uint64 {
	if s == nil {
		return 0
	}
	return s.total
}

// diffFrom is what a client that holds old lacks to hold s. The result is shared: do not change it.
func (s *Set) diffFrom(old *Set) *diff {
	switch {
	case s == old:
		return nothing
	case old.Len() == 0:
		return &diff{added: s.all()}
	case s == nil:
		return compare(old, s)
	}
	from := weak.Make(old)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.diffs {
		if c.from == from {
			return c.diff
		}
	}
	if len(s.diffs) >= keptDiffs {
		s.diffs = slices.Delete(s.diffs, 0, 1)
	}
	d := compare(old, s)
	s.diffs = append(s.diffs, cachedDiff{from, d})
	return d
}

// compare walks two sorted lists side by side.
func compare(old, now *Set) *diff {
	var d diff
	was := old.all()
	for _, r := range now.all() {
		for len(was) > 0 && was[0].Name < r.Name {
			d.removed, was = append(d.removed, was[0].Name), was[1:]
		}
		if len(was) > 0 && was[0].Name == r.Name {
			if was[0] != r && was[0].Version != r.Version {
				d.added = append(d.added, r)
			}
			was = was[1:]
			continue
		}
		d.added = append(d.added, r)
	}
	for _, r := range was {
		d.removed = append(d.removed, r.Name)
	}
	return &d
}
