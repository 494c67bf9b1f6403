//go:build apiserver

package live_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// validated are the objects of the tables of validate's tests: a spec for each kind, and changes of it.
func validated(t *testing.T) (all []sample) {
	t.Helper()
	files, err := filepath.Glob("../../validate/testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ Spec, Set map[string]any }
	for _, file := range files {
		var table struct {
			APIVersion             string
			Base                   json.RawMessage
			Valid, Warned, Invalid []row
		}
		data, err := os.ReadFile(file)
		if err == nil {
			err = yaml.Unmarshal(data, &table)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, r := range slices.Concat(table.Valid, table.Warned, table.Invalid) {
			spec := any(r.Spec)
			if r.Spec == nil {
				if err := json.Unmarshal(table.Base, &spec); err != nil {
					t.Fatal(err)
				}
			}
			for _, path := range slices.Sorted(maps.Keys(r.Set)) {
				spec = with(spec, regexp.MustCompile(`[^.\[\]]+`).FindAllString(path, -1), r.Set[path])
			}
			o := &unstructured.Unstructured{}
			raw, err := json.Marshal(map[string]any{"apiVersion": table.APIVersion, "kind": strings.TrimSuffix(filepath.Base(file), ".yaml"), "metadata": map[string]any{"name": "a"}, "spec": spec})
			if err == nil {
				err = o.UnmarshalJSON(raw)
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, sample{Unstructured: o, problems: problems(t, o)})
		}
	}
	if len(all) < 200 {
		t.Fatalf("%d objects: the tables are somewhere else", len(all))
	}
	return all
}

// with gives a value with another one at a path; nil takes a member out.
func with(in any, path []string, value any) any {
	if len(path) == 0 {
		return value
	}
	if i, err := strconv.Atoi(path[0]); err == nil {
		if list, isList := in.([]any); isList || in == nil {
			if i >= len(list) {
				return append(list, with(nil, path[1:], value))
			}
			list[i] = with(list[i], path[1:], value)
			return list
		}
	}
	members, ok := in.(map[string]any)
	if !ok {
		members = map[string]any{}
	}
	if members[path[0]] = with(members[path[0]], path[1:], value); members[path[0]] == nil {
		delete(members, path[0])
	}
	return members
}
