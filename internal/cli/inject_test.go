package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// documents are n of mixed kinds: of seven, four have pods. Every document has a comment that tells it apart.
func documents(n int) string {
	kinds := []string{
		"apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web-%[1]d\nspec:\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata:\n      labels: {app: web}\n    spec:\n      # the one\n      containers:\n      - name: web\n        image: 'example.com/web' # of today\n        readinessProbe: {httpGet: {path: /, port: 8080}}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: web-%[1]d}\nspec:\n    ports: [{port: 80}]   # wide\n",
		"apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: job-%[1]d}\nspec:\n  schedule: \"0 3 * * *\"\n  jobTemplate:\n    spec:\n      template:\n        spec: {restartPolicy: Never, containers: [{name: job, image: example.com/job}]}\n",
		"apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: things-%[1]d.example.com}\nspec:\n  versions:\n  - schema: {openAPIV3Schema: {properties: {containers: {type: array}}}}\n",
		"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: s-%[1]d}}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: p-%[1]d}\n  spec:\n    containers:\n    - name: p\n",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c-%[1]d}\ndata:\n  text: |\n    kind: Pod\n\n    # no comment\n",
		"apiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n    name: db-%[1]d\nspec:\n    template:\n        spec:\n            containers:\n                - name: db\n                  livenessProbe:\n                      tcpSocket: {port: 5432}\n",
	}
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString("---\n")
		}
		fmt.Fprintf(&b, "# document %[1]d\n"+kinds[i%len(kinds)], i)
	}
	return b.String()
}

// TestInject500: in a file of 500 documents each object with pods gets its sidecar, every line of the file stays, in its order, and
// a second run gives the same bytes.
func TestInject500(t *testing.T) {
	home := t.TempDir()
	path := filepath.Join(home, "all.yaml")
	before := documents(500)
	inject := func(text string) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := run(t, home, "", "inject", "--offline", "-f", path)
		if got.code != 0 {
			t.Fatalf("exit code %d: %s", got.code, got.stderr)
		}
		return got.stdout
	}
	after := inject(before)
	if n := strings.Count(after, "name: istio-proxy"); n != 286 { // 71 times seven documents and three, four of seven with pods
		t.Errorf("%d sidecars", n)
	}
	rest := after
	for line := range strings.Lines(before) {
		at := strings.Index(rest, line)
		if strings.Contains(line, "containers: [{name: job") || strings.Contains(line, "{httpGet: {path: /, port: 8080}}") || strings.Contains(line, "tcpSocket: {port: 5432}") ||
			strings.Contains(line, "labels: {app: web}}") || strings.Contains(line, "metadata: {name: p-") || strings.Contains(line, "labels: {app: web}\n") {
			continue // what is changed, in one line
		}
		if at < 0 {
			t.Fatalf("line %q is lost, or not in its place", line)
		}
		rest = rest[at+len(line):]
	}
	if again := inject(after); again != after {
		t.Error("a second run changes something")
	}
}

// BenchmarkInject500 is `selvage inject -f` on a file of 500 mixed documents, the command as a whole.
func BenchmarkInject500(b *testing.B) {
	home := b.TempDir()
	path := filepath.Join(home, "all.yaml")
	if err := os.WriteFile(path, []byte(documents(500)), 0o600); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if got := run(b, home, "", "inject", "--offline", "-f", path); got.code != 0 {
			b.Fatal(got.stderr)
		}
	}
}
