// Package acceptance measures how well Selvage does what Istio does, with test data of Istio's that is not in this repository:
// ACCEPTANCE_DIR names the folder, and without it nothing is measured. `make acceptance` runs it. A number is a measure and no test:
// it fails only where the data cannot be read.
package acceptance

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// folder is that of one area's data; the test is skipped where there is none.
func folder(t *testing.T, area string) string {
	t.Helper()
	root := os.Getenv("ACCEPTANCE_DIR")
	if root == "" {
		t.Skip("ACCEPTANCE_DIR is not set: run make acceptance")
	}
	dir := filepath.Join(root, area)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("there is no acceptance data in %s", dir)
	}
	return dir
}

// differences compares JSON values and names the paths where they differ, a line each. Entries of lists are named by their name or
// mountPath where they have one.
func differences(path string, want, got any) (out []string) {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			break
		}
		keys := maps.Clone(w)
		maps.Copy(keys, g)
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			out = append(out, differences(path+"."+key, w[key], g[key])...)
		}
		return out
	case []any:
		g, ok := got.([]any)
		if !ok {
			break
		}
		if byName, ok := named(w); ok {
			if theirs, ok := named(g); ok && len(byName) > 0 {
				return differences(path, byName, theirs)
			}
		}
		for i := range max(len(w), len(g)) {
			out = append(out, differences(fmt.Sprintf("%s[%d]", path, i), at(w, i), at(g, i))...)
		}
		return out
	}
	if reflect.DeepEqual(want, got) {
		return nil
	}
	return []string{fmt.Sprintf("%s: got %s, want %s", path, asJSON(got), asJSON(want))}
}

func at(list []any, i int) any {
	if i < len(list) {
		return list[i]
	}
	return nil
}

// named is a list as a map, with the entries' order; ok is false when an entry has no name.
func named(list []any) (out map[string]any, ok bool) {
	out = map[string]any{}
	var order []any
	for _, item := range list {
		entry, _ := item.(map[string]any)
		name, _ := entry["mountPath"].(string)
		if name == "" {
			name, _ = entry["name"].(string)
		}
		if name == "" || out[name] != nil {
			return nil, false
		}
		out[name] = entry
		order = append(order, name)
	}
	if len(order) > 0 {
		out["(order)"] = fmt.Sprint(order...)
	}
	return out, true
}

func asJSON(v any) string {
	if v == nil {
		return "nothing"
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// generic is a value as JSON values.
func generic(v any) (out any) {
	data, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		panic(err) // they came from JSON
	}
	return out
}

// tally counts the cases of one area and keeps the first differences.
type tally struct {
	area        string
	good, cases int
	differences []string
}

// add notes a case; an empty difference is a good one.
func (c *tally) add(name, difference string) {
	c.cases++
	if difference == "" {
		c.good++
		return
	}
	c.differences = append(c.differences, "  "+name+"\n      "+strings.ReplaceAll(strings.TrimRight(difference, "\n"), "\n", "\n      "))
}

// print writes "area: N of M" and the first differences; ACCEPTANCE_DIFFERENCES says how many (3).
func (c *tally) print() {
	most := 3
	if n, err := strconv.Atoi(os.Getenv("ACCEPTANCE_DIFFERENCES")); err == nil {
		most = n
	}
	fmt.Printf("%s: %d of %d\n", c.area, c.good, c.cases)
	for _, d := range c.differences[:min(most, len(c.differences))] {
		fmt.Println(d)
	}
	if left := len(c.differences) - most; left > 0 {
		fmt.Printf("  … and %d more (ACCEPTANCE_DIFFERENCES=100 shows them)\n", left)
	}
}
