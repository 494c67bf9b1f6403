package install

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Action is what happens to an object.
type Action string

// The actions, in the words of kubectl.
const (
	Created    Action = "created"
	Configured Action = "configured"
	Unchanged  Action = "unchanged"
)

// Change is one object and what happens to it.
type Change struct {
	Object string  `json:"object"` // as in "Deployment istio-system/istiod"
	Action Action  `json:"action"`
	Fields []Field `json:"fields,omitempty"` // of a configured one, sorted by path
	// Conflicts are fields that somebody else has set since, as in ".data.mesh (conflict with "kubectl-edit" using v1)". They are set
	// back, unless the object stays as it is.
	Conflicts []string `json:"conflicts,omitempty"`
	// Kept says that the object was edited, and stays as it is.
	Kept bool `json:"kept,omitempty"`
}

// Field is one that differs. Old is nil for one that comes, New for one that goes.
type Field struct {
	Path string `json:"path"` // as in "spec.template.spec.containers[discovery].image"
	Old  any    `json:"old,omitempty"`
	New  any    `json:"new,omitempty"`
}

// differences are the fields in which two states of an object differ, in nothing but bookkeeping. Of a text of several lines only the
// lines that differ are given.
func differences(before, after *unstructured.Unstructured) (out []Field) {
	walk("", trimmed(before), trimmed(after), &out)
	return out
}

// trimmed is an object without what the API server writes itself.
func trimmed(u *unstructured.Unstructured) map[string]any {
	c := u.DeepCopy()
	c.SetManagedFields(nil)
	c.SetResourceVersion("")
	c.SetGeneration(0)
	delete(c.Object, "status")
	return c.Object
}

func walk(path string, before, after any, out *[]Field) {
	if reflect.DeepEqual(before, after) {
		return
	}
	oldMap, isMap := before.(map[string]any)
	newMap, areMaps := after.(map[string]any)
	if isMap && areMaps {
		walkMaps(path, oldMap, newMap, "", out)
		return
	}
	oldItems, wasNamed := byName(before)
	newItems, areNamed := byName(after)
	if wasNamed && areNamed && sameOrder(before, after) {
		walkMaps(path, oldItems, newItems, "[", out)
		return
	}
	oldText, wasText := before.(string)
	newText, isText := after.(string)
	if wasText && isText && strings.Contains(oldText+newText, "\n") {
		before, after = lines(oldText, newText), lines(newText, oldText)
	}
	*out = append(*out, Field{path, before, after})
}

func walkMaps(path string, before, after map[string]any, open string, out *[]Field) {
	keys := maps.Clone(before)
	maps.Copy(keys, after)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		walk(step(path, open, key), before[key], after[key], out)
	}
}

// step is the path one deeper. A key that has dots itself stands in quotes.
func step(path, open, key string) string {
	switch {
	case open != "":
		return path + "[" + key + "]"
	case strings.ContainsAny(key, "./"):
		return path + "[" + strconv.Quote(key) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}

// byName gives the items of a list whose items all have a name of their own, as containers, ports and webhooks do.
func byName(node any) (map[string]any, bool) {
	list, ok := node.([]any)
	items := map[string]any{}
	for _, item := range list {
		m, _ := item.(map[string]any)
		name, _ := m["name"].(string)
		if name == "" || items[name] != nil {
			return nil, false
		}
		items[name] = item
	}
	return items, ok && len(list) > 0
}

// sameOrder reports whether what two lists have in common comes in the same order: else the order is the change.
func sameOrder(before, after any) bool {
	names := func(node any, other map[string]any) (out []string) {
		for _, item := range node.([]any) {
			if name := item.(map[string]any)["name"].(string); other[name] != nil {
				out = append(out, name)
			}
		}
		return out
	}
	oldItems, _ := byName(before)
	newItems, _ := byName(after)
	return slices.Equal(names(before, newItems), names(after, oldItems))
}

// lines are those of a text that the other has not.
func lines(text, other string) string {
	there := map[string]int{}
	for line := range strings.SplitSeq(other, "\n") {
		there[line]++
	}
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		if there[line]--; there[line] < 0 {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// mostShown is how many characters of a value a person is shown.
const mostShown = 100

// String is the field for a person: one line.
func (f Field) String() string {
	return f.Path + ": " + shown(f.Old) + " -> " + shown(f.New)
}

func shown(value any) string {
	if value == nil {
		return "(none)"
	}
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Sprint(value)
	}
	out := strings.TrimSpace(b.String())
	if text := []rune(out); len(text) > mostShown {
		return fmt.Sprintf("%s… (%d characters)", string(text[:mostShown]), len(text))
	}
	return out
}

// Summary is a plan in a sentence: "3 objects to create, 1 to change, 40 unchanged".
func Summary(changes []Change) string {
	count := map[Action]int{}
	for _, c := range changes {
		count[c.Action]++
	}
	noun := "objects"
	if count[Created] == 1 {
		noun = "object"
	}
	return fmt.Sprintf("%d %s to create, %d to change, %d unchanged", count[Created], noun, count[Configured], count[Unchanged])
}
