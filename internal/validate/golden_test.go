package validate_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/validate"
	_ "github.com/selvage-mesh/selvage/internal/validate/envoytypes"
)

// table is testdata/KIND.yaml: objects of one kind by what is to be said of them. A row is one line; UPDATE_GOLDEN=1 writes what is
// wanted anew.
type table struct {
	kind       string
	APIVersion string         `json:"apiVersion"`
	Base       map[string]any `json:"base"`    // a spec that is right by itself
	Valid      []row          `json:"valid"`   // nothing is said of them
	Warned     []row          `json:"warned"`  // they are admitted
	Invalid    []row          `json:"invalid"` // they are refused
}

// row is one object.
type row struct {
	Name     string         `json:"name"`
	Spec     map[string]any `json:"spec"`     // instead of the base
	Set      map[string]any `json:"set"`      // paths of the spec and their values; null takes a member out
	Metadata map[string]any `json:"metadata"` // beside name and namespace
	Want     []string       `json:"want"`     // SEVERITY CODE FIELD, in the order of being told
}

func tables(t testing.TB) (all []table) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no tables: %v", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		one := table{kind: strings.TrimSuffix(filepath.Base(name), ".yaml")}
		if err := yaml.UnmarshalStrict(data, &one); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, one)
	}
	return all
}

func (t table) rows() []row { return slices.Concat(t.Valid, t.Warned, t.Invalid) }

// object is the row's, as JSON.
func (t table) object(r row) ([]byte, error) {
	spec := r.Spec
	if spec == nil {
		raw, err := json.Marshal(t.Base)
		if err == nil {
			err = json.Unmarshal(raw, &spec) // a copy
		}
		if err != nil {
			return nil, err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(r.Set)) {
		if err := set(spec, steps.FindAllString(path, -1), r.Set[path]); err != nil {
			return nil, fmt.Errorf("%s: set %s: %w", r.Name, path, err)
		}
	}
	metadata := map[string]any{"name": "golden", "namespace": "shop"}
	maps.Copy(metadata, r.Metadata)
	return json.Marshal(map[string]any{"apiVersion": t.APIVersion, "kind": t.kind, "metadata": metadata, "spec": spec})
}

// steps are the names and [indexes] of a path.
var steps = regexp.MustCompile(`[^.\[\]]+`)

// set puts a value into an object, and makes what is on the way to it.
func set(in map[string]any, path []string, value any) error {
	name := path[0]
	if len(path) == 1 {
		if in[name] = value; value == nil {
			delete(in, name)
		}
		return nil
	}
	i, err := strconv.Atoi(path[1])
	if err != nil {
		members, ok := in[name].(map[string]any)
		if !ok {
			members = map[string]any{}
			in[name] = members
		}
		return set(members, path[1:], value)
	}
	list, _ := in[name].([]any)
	if i > len(list) {
		return fmt.Errorf("%s has %d items", name, len(list))
	}
	if i == len(list) {
		list = append(list, map[string]any{})
	}
	if len(path) == 2 {
		list[i] = value
	} else if item, ok := list[i].(map[string]any); !ok {
		return fmt.Errorf("%s[%d] is no object", name, i)
	} else if err := set(item, path[2:], value); err != nil {
		return err
	}
	in[name] = list
	return nil
}

// told are the problems of a row's object.
func told(tb testing.TB, t table, r row) (lines []string, worst diag.Severity) {
	tb.Helper()
	raw, err := t.object(r)
	if err != nil {
		tb.Fatalf("%s: %v", t.kind, err)
	}
	problems, err := validate.Object(raw)
	if err != nil {
		tb.Fatalf("%s: %s: %v", t.kind, r.Name, err)
	}
	for _, p := range problems {
		lines = append(lines, fmt.Sprintf("%s %s %s", p.Severity, p.Code, p.Field))
		worst = max(worst, p.Severity)
		if p.Hint == "" || p.Detail == "" || p.Object.Name == "" {
			tb.Errorf("%s: %s: it says too little: %+v", t.kind, r.Name, p)
		}
	}
	return lines, worst
}

// TestGolden holds every object of the tables to its verdict, its codes and its paths.
func TestGolden(t *testing.T) {
	if os.Getenv("UPDATE_GOLDEN") != "" {
		rewrite(t)
	}
	valid, invalid := 0, 0
	for _, table := range tables(t) {
		for verdict, rows := range map[diag.Severity][]row{diag.Info: table.Valid, diag.Warning: table.Warned, diag.Error: table.Invalid} {
			for _, r := range rows {
				got, worst := told(t, table, r)
				if worst != verdict {
					t.Errorf("%s: %s: the worst is %s, want %s: %q", table.kind, r.Name, worst, verdict, got)
				}
				if !slices.Equal(got, r.Want) {
					t.Errorf("%s: %s:\ngot  %q\nwant %q", table.kind, r.Name, got, r.Want)
				}
			}
		}
		valid, invalid = valid+len(table.Valid)+len(table.Warned), invalid+len(table.Invalid)
	}
	t.Logf("%d invalid and %d valid objects", invalid, valid)
	if invalid < 300 || valid < 200 {
		t.Errorf("there are %d invalid and %d valid objects, want at least 300 and 200", invalid, valid)
	}
}

var wanted = regexp.MustCompile(`, want: \[[^\n]*\]\}$`)

// rewrite puts what is said of each row at the end of its line.
func rewrite(t *testing.T) {
	t.Helper()
	for _, table := range tables(t) {
		name := filepath.Join("testdata", table.kind+".yaml")
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		rows, n := table.rows(), 0
		order := map[string][]row{"valid:": table.Valid, "warned:": table.Warned, "invalid:": table.Invalid}
		lines := strings.Split(string(data), "\n")
		for i, line := range lines {
			if section, ok := order[strings.Fields(line + " x")[0]]; ok {
				rows, n = section, 0
			}
			if !strings.HasPrefix(line, "- {name: ") {
				continue
			}
			got, _ := told(t, table, rows[n])
			n++
			line = wanted.ReplaceAllString(line, "}")
			if len(got) > 0 {
				quoted := make([]string, len(got))
				for j, g := range got {
					if quoted[j] = g; strings.ContainsAny(g, `[]{}":,`) {
						quoted[j] = "'" + strings.ReplaceAll(g, "'", "''") + "'"
					}
				}
				line = strings.TrimSuffix(line, "}") + ", want: [" + strings.Join(quoted, ", ") + "]}"
			}
			lines[i] = line
		}
		if err := os.WriteFile(name, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
