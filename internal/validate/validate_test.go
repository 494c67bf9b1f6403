package validate

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// TestObjects reads testdata/*.txtar: documents of YAML, separated by ---, each with the comments "# ERROR field: part of the
// detail" or "# WARNING …" for everything that is to be said of it, and none for a document that is right.
func TestObjects(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, name := range files {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			t.Run(filepath.Base(name)+"/"+f.Name, func(t *testing.T) {
				for doc := range strings.SplitSeq(string(f.Data), "\n---\n") {
					judge(t, doc)
				}
			})
		}
	}
}

func judge(t *testing.T, doc string) {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(doc))
	if err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
	problems, err := Object(raw)
	if err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
	var want []string
	for line := range strings.Lines(doc) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "# "); ok && (strings.HasPrefix(text, "ERROR ") || strings.HasPrefix(text, "WARNING ")) {
			want = append(want, text)
		}
	}
	for _, w := range want {
		found := false
		for _, p := range problems {
			word := "ERROR "
			if p.Severity == diag.Warning {
				word = "WARNING "
			}
			field, detail, _ := strings.Cut(strings.TrimPrefix(w, word), ": ")
			found = found || strings.HasPrefix(w, word) && p.Field == field && strings.Contains(p.Detail, detail)
		}
		if !found {
			t.Errorf("it is not said: %s\nof\n%s\nbut %v", w, doc, problems)
		}
	}
	if len(problems) != len(want) {
		t.Errorf("%d problems, want %d, of\n%s\n%v", len(problems), len(want), doc, problems)
	}
}

func TestKindsHaveTheirResources(t *testing.T) {
	got := strings.Join(Resources(), " ")
	want := "destinationrules envoyfilters gateways proxyconfigs serviceentries sidecars virtualservices workloadentries workloadgroups " +
		"authorizationpolicies peerauthentications requestauthentications telemetries wasmplugins trafficextensions"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestOtherKindsAreNotJudged(t *testing.T) {
	for _, raw := range []string{
		`{"apiVersion":"v1","kind":"Pod","spec":7}`, `{"apiVersion":"example.org/v1","kind":"Gateway","spec":{"x":[]}}`,
		`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","spec":{"listeners":[]}}`, `{"apiVersion":"networking.istio.io/v9","kind":"NewKind","spec":{"x":1}}`, `{}`,
	} {
		if p, err := Object([]byte(raw)); err != nil || p != nil {
			t.Errorf("%s: %v, %v", raw, p, err)
		}
	}
	for _, raw := range []string{``, `7`, `[]`, `{"kind":7}`, `{"apiVersion":"networking.istio.io/v1","kind":"Gateway","metadata":"x"}`} {
		if _, err := Object([]byte(raw)); err == nil {
			t.Errorf("%q is taken for an object", raw)
		}
	}
}

func FuzzObject(f *testing.F) {
	for _, k := range kinds {
		f.Add([]byte(`{"apiVersion":"` + k.group + `/v1","kind":"` + k.name + `","metadata":{"name":"x","namespace":"y"},"spec":{"hosts":["*"],"http":[{"match":[{"uri":{"regex":"("}}]}],"servers":[{"port":{"number":0}}],"rules":[{"from":[null]}],"configPatches":[null],"egress":[{}],"subsets":[null]}}`))
	}
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, name := range files {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			for doc := range strings.SplitSeq(string(file.Data), "\n---\n") {
				if raw, err := yaml.YAMLToJSON([]byte(doc)); err == nil {
					f.Add(raw)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		problems, err := Object(raw)
		if err != nil {
			return
		}
		for _, p := range problems {
			if p.Field == "" || p.Detail == "" || p.Code == "" || len(p.Detail) > 2000 {
				t.Errorf("%+v", p)
			}
		}
	})
}
