package install_test

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/install"
)

// TestDifferencesAreNamedByTheirPath: a list is read by the names of its items, a text by its lines, and what the API server writes
// itself is no difference.
func TestDifferencesAreNamedByTheirPath(t *testing.T) {
	const base = `
metadata: {name: a, resourceVersion: "1", generation: 1, labels: {app.kubernetes.io/name: x}, managedFields: [{manager: a}]}
spec:
  replicas: 2
  containers: [{name: one, image: "a:1"}, {name: two, image: "b:1"}]
  args: [a, b]
data: {mesh: "a: 1\nb: 2\nc: 3\n"}
status: {ready: 1}
`
	for name, c := range map[string]struct {
		change, to string // of base
		want       []string
	}{
		"nothing":                       {"", "", nil},
		"bookkeeping":                   {`resourceVersion: "1", generation: 1`, `resourceVersion: "7", generation: 2`, nil},
		"status":                        {"ready: 1", "ready: 2", nil},
		"a number":                      {"replicas: 2", "replicas: 3", []string{"spec.replicas: 2 -> 3"}},
		"a field that goes":             {"  replicas: 2\n", "", []string{"spec.replicas: 2 -> (none)"}},
		"a field that comes":            {"  replicas: 2\n", "  replicas: 2\n  paused: true\n", []string{"spec.paused: (none) -> true"}},
		"a named item":                  {"b:1", "b:2", []string{`spec.containers[two].image: "b:1" -> "b:2"`}},
		"an item that comes":            {"a:1\"}", "a:1\"}, {name: three}", []string{`spec.containers[three]: (none) -> {"name":"three"}`}},
		"the order of items":            {`{name: one, image: "a:1"}, {name: two, image: "b:1"}`, `{name: two, image: "b:1"}, {name: one, image: "a:1"}`, []string{`spec.containers: [{"image":"a:1",`}},
		"a list of words":               {"[a, b]", "[a, c]", []string{`spec.args: ["a","b"] -> ["a","c"]`}},
		"a key with dots":               {"name: x", "name: z", []string{`metadata.labels["app.kubernetes.io/name"]: "x" -> "z"`}},
		"a line of a text":              {"b: 2", "b: 9", []string{`data.mesh: "b: 2" -> "b: 9"`}},
		"more than a person wants read": {"b: 2", "b: " + strings.Repeat("9", 500), []string{"… (505 characters)"}},
	} {
		before, after := &unstructured.Unstructured{}, &unstructured.Unstructured{}
		for u, text := range map[*unstructured.Unstructured]string{before: base, after: strings.Replace(base, c.change, c.to, 1)} {
			if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
				t.Fatal(err)
			}
		}
		got := install.Differences(before, after)
		if len(got) != len(c.want) {
			t.Errorf("%s: %v; want %v", name, got, c.want)
			continue
		}
		for n, want := range c.want {
			if !strings.Contains(got[n].String(), want) {
				t.Errorf("%s: %s; want %s", name, got[n], want)
			}
		}
	}
}

func TestAPlanInASentence(t *testing.T) {
	changes := []install.Change{{Action: install.Created}, {Action: install.Configured}, {Action: install.Unchanged}, {Action: install.Unchanged}}
	if got := install.Summary(changes); got != "1 object to create, 1 to change, 2 unchanged" {
		t.Error(got)
	}
	if got := fmt.Sprint(install.Field{Path: "a", New: "<b>"}); got != `a: (none) -> "<b>"` {
		t.Error(got)
	}
}
