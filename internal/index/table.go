package index

import (
	"iter"
	"maps"
	"slices"
	"sort"
)

// object is what a Table holds: pointers to projections, which are ordered by their key. The key of an object never changes.
type object interface {
	comparable
	key() string
}

// Table is the objects of one kind in one place. It is immutable: the same pointer means the same objects, and two tables
// share every object that did not change. The nil Table is empty.
type Table[T object] struct {
	items []T // sorted by key, no nil
}

// All gives the objects in the order of their names. The slice belongs to the table.
func (t *Table[T]) All() []T {
	if t == nil {
		return nil
	}
	return t.items
}

// Len is the number of objects.
func (t *Table[T]) Len() int { return len(t.All()) }

// Get gives the object with this name, or nil.
func (t *Table[T]) Get(name string) (found T) {
	items := t.All()
	if i := search(items, name); i < len(items) && items[i].key() == name {
		return items[i]
	}
	return found
}

func search[T object](items []T, key string) int {
	return sort.Search(len(items), func(i int) bool { return items[i].key() >= key })
}

// with gives a table with some objects put in or, where the change is nil, taken out. It gives t itself when that leaves
// everything as it is, and nil when nothing is left.
func (t *Table[T]) with(changes map[string]T) *Table[T] {
	var gone T
	var merged []T
	old, differs := t.All(), false
	for _, key := range slices.Sorted(maps.Keys(changes)) {
		i := search(old, key)
		merged, old = append(merged, old[:i]...), old[i:]
		change := changes[key]
		var before T
		if len(old) > 0 && old[0].key() == key {
			before, old = old[0], old[1:]
		}
		if change != gone {
			merged = append(merged, change)
		}
		differs = differs || before != change
	}
	if !differs {
		return t
	}
	if merged = append(merged, old...); len(merged) == 0 {
		return nil
	}
	return &Table[T]{merged}
}

// Changes walks what differs between two tables, in the order of names: the object before and after, of which one is nil
// when it came or went.
func Changes[T object](before, after *Table[T]) iter.Seq2[T, T] {
	return func(yield func(before, after T) bool) {
		var none T
		if before == after {
			return
		}
		a, b := before.All(), after.All()
		for len(a) > 0 || len(b) > 0 {
			switch {
			case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
				a, b = a[1:], b[1:]
			case len(b) == 0 || len(a) > 0 && a[0].key() < b[0].key():
				if !yield(a[0], none) {
					return
				}
				a = a[1:]
			case len(a) == 0 || b[0].key() < a[0].key():
				if !yield(none, b[0]) {
					return
				}
				b = b[1:]
			default:
				if !yield(a[0], b[0]) {
					return
				}
				a, b = a[1:], b[1:]
			}
		}
	}
}
