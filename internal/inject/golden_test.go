package inject_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// TestGolden runs testdata/*.txtar: the comment says what is shown; `in.yaml` is a stream; `mesh.yaml`, `config.yaml` and
// `values.yaml` (optional) are the injector's documents; `kubernetes` (optional) the cluster's minor version; `serves` (optional) says
// that everything is served, so that the patch for what the agent cannot serve yet is seen. Wanted are
// `out.yaml`, the stream with sidecars, and `said`, what the user is told. UPDATE_GOLDEN=1 rewrites them.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("find golden files: %v (%d)", err, len(paths))
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) { golden(t, path) })
	}
}

func golden(t *testing.T, path string) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(bytes.TrimSpace(archive.Comment)) == 0 {
		t.Error("the file does not say what it shows")
	}
	part := map[string][]byte{}
	for _, f := range archive.Files {
		part[f.Name] = f.Data
	}
	out, said := runStream(t, part)
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		files := archive.Files[:0]
		for _, f := range archive.Files {
			if f.Name != "out.yaml" && f.Name != "said" {
				files = append(files, f)
			}
		}
		archive.Files = append(files, txtar.File{Name: "said", Data: []byte(said)}, txtar.File{Name: "out.yaml", Data: []byte(out)})
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := string(part["said"]); said != want {
		t.Errorf("said:\n%s\nwant:\n%s", said, want)
	}
	if want := string(part["out.yaml"]); out != want {
		t.Errorf("out.yaml:\n%s\nwant:\n%s", out, want)
	}
}

// runStream injects in.yaml and puts verdicts, warnings and the error into lines. A second run must change nothing.
func runStream(t *testing.T, part map[string][]byte) (out, said string) {
	t.Helper()
	var lines []string
	say := func(s string) { lines = append(lines, strings.Split(s, "\n")...) }
	settings, problems := inject.ParseSettings(part["mesh.yaml"], part["config.yaml"], part["values.yaml"])
	if part["serves"] != nil {
		settings.Serves = inject.Everything()
	}
	cfg, more := settings.Compile()
	problems = append(problems, more...)
	for _, p := range problems {
		say(p.String())
	}
	if cfg != nil {
		if string(bytes.TrimSpace(part["kubernetes"])) == "1.28" {
			cfg = cfg.ForKubernetes(1, 28)
		}
		var b bytes.Buffer
		outcomes, err := inject.Stream(bytes.NewReader(part["in.yaml"]), &b, inject.StreamOptions{Config: cfg, Namespace: "shop"})
		for _, o := range outcomes {
			say(o.Object.String() + ": " + string(o.Verdict.Reason) + ": " + o.Verdict.Detail)
			for _, w := range o.Warnings {
				say("  " + w.String())
			}
		}
		if err != nil {
			say("error: " + err.Error())
		} else {
			var again bytes.Buffer
			if _, err := inject.Stream(bytes.NewReader(b.Bytes()), &again, inject.StreamOptions{Config: cfg, Namespace: "shop"}); err != nil || again.String() != b.String() {
				t.Errorf("a second run changed something (error %v):\n%s", err, again.String())
			}
		}
		out = b.String()
	}
	return out, strings.Join(append(lines, ""), "\n")
}

// podFrom reads one pod.
func podFrom(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

// servingConfig is configFrom for a mesh whose agent serves everything.
func servingConfig(t testing.TB, mesh, config, values string) *inject.Config {
	t.Helper()
	settings, problems := inject.ParseSettings([]byte(mesh), []byte(config), []byte(values))
	settings.Serves = inject.Everything()
	cfg, more := settings.Compile()
	for _, p := range append(problems, more...) {
		if p.Severity == diag.Error {
			t.Fatal(p)
		}
	}
	return cfg
}

// configFrom compiles the defaults with values laid over them.
func configFrom(t testing.TB, mesh, config, values string) *inject.Config {
	t.Helper()
	cfg, problems := inject.ParseConfig([]byte(mesh), []byte(config), []byte(values))
	for _, p := range problems {
		if p.Severity == diag.Error {
			t.Fatal(p)
		}
	}
	return cfg
}
