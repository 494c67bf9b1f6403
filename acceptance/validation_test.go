package acceptance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/validate"
	_ "github.com/selvage-mesh/selvage/internal/validate/envoytypes" // a filter of any type is a filter
)

// verdict is a line of validation/Validate*.jsonl.
type verdict struct {
	Kind        string            `json:"kind"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	Spec        json.RawMessage   `json:"spec"`
	Valid       bool              `json:"valid"`
	Error       string            `json:"error"`
	Warning     string            `json:"warning"`
}

// intended are verdicts that are meant to differ: FILE:LINE, and why. testdata/validation-differences.yaml holds them.
type intended map[string]string

// TestValidation prints how many objects are valid, or invalid, here as for Istio; and of those that Istio warns of, how many are
// warned of here.
func TestValidation(t *testing.T) {
	dir := folder(t, "validation")
	differ := intended{}
	data, err := os.ReadFile("testdata/validation-differences.yaml")
	if err == nil {
		err = yaml.UnmarshalStrict(data, &differ)
	}
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "Validate*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("find verdicts in %s: %v (%d)", dir, err, len(files))
	}
	verdicts, warnings := tally{area: "validation"}, tally{area: "validation (warnings)"}
	meant := 0
	for _, path := range files {
		kind := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "Validate"), ".jsonl")
		for n, v := range read(t, path) {
			name := fmt.Sprintf("%s:%d", filepath.Base(path), n+1)
			problems := v.problems(t, kind)
			difference := v.compare(problems)
			if reason := differ[name]; reason != "" {
				if difference == "" {
					difference = "it is meant to differ, and does not: " + reason
				} else {
					meant++
					difference = ""
				}
			}
			verdicts.add(name+" "+v.Name, difference)
			if v.Warning != "" {
				warnings.add(name+" "+v.Name, v.warned(problems))
			}
		}
	}
	verdicts.print()
	fmt.Printf("  %d of them are meant to differ (acceptance/testdata/validation-differences.yaml)\n", meant)
	warnings.print()
}

func read(t *testing.T, path string) (all []verdict) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var v verdict
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatalf("read %s: %v", path, err)
		}
		all = append(all, v)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// groups are the API groups of the kinds that are not of networking.istio.io.
var groups = map[string]string{
	"AuthorizationPolicy": "security.istio.io", "PeerAuthentication": "security.istio.io", "RequestAuthentication": "security.istio.io",
	"Telemetry": "telemetry.istio.io", "WasmPlugin": "extensions.istio.io", "TrafficExtension": "extensions.istio.io",
}

func (v verdict) problems(t *testing.T, kind string) []diag.Problem {
	t.Helper()
	group := groups[kind]
	if group == "" {
		group = "networking.istio.io"
	}
	raw, err := json.Marshal(map[string]any{
		"apiVersion": group + "/v1", "kind": kind, "spec": v.Spec,
		"metadata": map[string]any{"name": v.Name, "namespace": v.Namespace, "labels": v.Labels, "annotations": v.Annotations},
	})
	if err != nil {
		t.Fatal(err)
	}
	problems, err := validate.Object(raw)
	if err != nil {
		t.Fatal(err)
	}
	return problems
}

func (v verdict) compare(problems []diag.Problem) string {
	var errs []string
	for _, p := range problems {
		if p.Severity == diag.Error {
			errs = append(errs, p.String())
		}
	}
	switch {
	case v.Valid && len(errs) > 0:
		return "Istio admits it; here: " + strings.Join(errs, "\n") + "\n" + string(v.Spec)
	case !v.Valid && len(errs) == 0:
		return "Istio refuses it: " + v.Error + "\n" + string(v.Spec)
	}
	return ""
}

func (v verdict) warned(problems []diag.Problem) string {
	for _, p := range problems {
		if p.Severity == diag.Warning {
			return ""
		}
	}
	return "Istio warns: " + v.Warning + "\n" + string(v.Spec)
}
