package session

import (
	"slices"
	"strings"
)

// maxHalvings bounds the search for what a rejection is about: so many rejections that name nothing, then all that is left
// is held to be guilty until the configuration changes.
const maxHalvings = 32

// refuse notes a rejection and gives the resources that are guilty of it, as far as that is known.
//
// What else was in the response is sent again: Envoy stops at the first bad endpoints or route, in an order of its own, so
// nobody can tell what of the rest it has taken. Where the text names the guilty, that is one more response. Where it does
// not, the next ones hold half as much until a rejection is about one resource.
func (t *track) refuse(text, version string) []*Resource {
	f := t.flight
	t.flight = nil
	t.lastError, t.lastVersion = text, version
	guilty := named(text, f.added)
	if f.full {
		t.refused = f.whole.Version()
		t.unsure = len(guilty) < len(f.added) || len(f.removed) > 0
		if len(guilty) == 0 {
			guilty = f.added
		}
		t.reject(guilty)
		return guilty
	}
	if len(f.added) == 0 { // a removal, which cannot be wrong twice
		for _, n := range f.removed {
			t.hold(n, nil)
		}
		return nil
	}
	if len(guilty) == 0 && (len(f.added) == 1 || t.halvings >= maxHalvings) {
		guilty = f.added
	}
	t.doubt(f, guilty)
	for _, n := range f.forced {
		put(&t.forced, n)
	}
	if !t.wildcard {
		for _, r := range f.added {
			t.recheck(r.Name)
		}
		for _, n := range f.removed {
			t.recheck(n)
		}
	}
	if len(guilty) == 0 {
		t.halvings++
		t.limit = (len(f.added) + 1) / 2
		return nil
	}
	t.limit = 0
	t.reject(guilty)
	return guilty
}

// doubt notes that the client may or may not have taken what was sent beside the guilty: it must be sent what it should have,
// even if that is what it had before, and told of a removal, even if it is not known to hold the resource.
func (t *track) doubt(f *flight, guilty []*Resource) {
	for _, r := range f.added {
		if !slices.Contains(guilty, r) {
			t.hold(r.Name, &Resource{Name: r.Name})
		}
	}
	for _, n := range f.removed {
		t.hold(n, &Resource{Name: n})
	}
}

func (t *track) reject(guilty []*Resource) {
	if t.rejected == nil {
		t.rejected = make(map[string]*Resource, len(guilty))
	}
	for _, r := range guilty {
		t.rejected[r.Name] = r
		delete(t.forced, r.Name)
		delete(t.dirty, r.Name)
	}
	// The newest configuration may have other content already.
	t.forgetOldRejections()
}

// listed begins Envoy's text about clusters and listeners: `Error adding/updating listener(s) NAME: cause, NAME: cause`.
var listed = [...]string{"Error adding/updating listener(s) ", "Error adding/updating cluster(s) "}

// named gives the resources that a rejection names.
func named(text string, sent []*Resource) (found []*Resource) {
	list := ""
	for _, prefix := range listed {
		if _, rest, ok := strings.Cut(text, prefix); ok {
			list = rest
		}
	}
	for _, r := range sent {
		if r.Name == "" {
			continue
		}
		if list != "" && inList(list, r.Name) || list == "" && inText(text, r.Name) {
			found = append(found, r)
		}
	}
	return found
}

// inList looks for "NAME: " where an entry can begin.
func inList(list, name string) bool {
	if strings.HasPrefix(list, name+": ") {
		return true
	}
	for _, before := range [...]string{", ", "\n"} {
		if strings.Contains(list, before+name+": ") {
			return true
		}
	}
	return false
}

// inText looks for a name as a word of its own. A name of digits only, such as a route configuration's "80", is too easily
// something else: it counts in quotes or after the word route.
func inText(text, name string) bool {
	number := strings.Trim(name, "0123456789") == ""
	for at := 0; ; {
		i := strings.Index(text[at:], name)
		if i < 0 {
			return false
		}
		start := at + i
		end := start + len(name)
		before, after := text[:start], text[end:]
		whole := (before == "" || !partOfName(before[len(before)-1])) && endOfName(after)
		if whole && (!number || strings.HasSuffix(before, "route ") || quoted(before, after)) {
			return true
		}
		at = start + 1
	}
}

func quoted(before, after string) bool {
	return before != "" && after != "" && before[len(before)-1] == after[0] && strings.IndexByte("'\"`", after[0]) >= 0
}

// endOfName reports whether a name may end before rest; a full stop ends it only when it ends a sentence.
func endOfName(rest string) bool {
	if rest == "" {
		return true
	}
	if rest[0] == '.' {
		return len(rest) == 1 || rest[1] == ' ' || rest[1] == '\n'
	}
	return !partOfName(rest[0])
}

func partOfName(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-|/*~", c) >= 0
}
