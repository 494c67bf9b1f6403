// Package selvage_test holds the rules of the house as tests: which package may import which, that every package says what
// it is for, and what must never be linked where. Files are parsed in this process: a test that asks `go list` would pass
// from the test cache after the tree has changed.
package selvage_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/selvage-mesh/selvage/"

// mayImport is the import table of ARCHITECTURE.md: for each package under internal/, the packages of ours that its code
// (not its tests) may import. A package that is not listed here fails the test, so the table is complete.
var mayImport = map[string][]string{
	"ref":           {},
	"version":       {},
	"testneed":      {},
	"diag":          {"ref"},
	"index":         {"diag", "ref", "validate"},
	"mesh":          {"ref"},
	"translate":     {"diag", "index", "mesh", "ref"},
	"scope":         {"mesh"},
	"xds":           {"mesh", "ref", "scope", "xds/envoy", "xds/filter"},
	"xds/envoy":     {"mesh", "ref", "scope"},
	"xds/filter":    {"mesh", "xds/envoy"},
	"ads/session":   {"ref", "xds"},
	"ads":           {"ads/session", "diag", "mesh", "pki", "ref", "scope", "trust", "xds"},
	"kube":          {"diag", "index", "ref"},
	"jsonscan":      {},
	"jwks":          {"index"},
	"validate":      {"diag", "ref"},
	"inject":        {"diag", "jsonscan", "ref", "version"},
	"webhook":       {"diag", "inject", "jsonscan", "probe/verdict", "ref", "validate"},
	"podwatch":      {"inject", "revision"},
	"restart":       {},
	"probe/verdict": {"diag", "inject", "ref"},
	"probe":         {"diag", "inject", "probe/verdict", "ref"},
	"admission":     {"diag", "probe/verdict", "ref"},
	"pki":           {},
	"trust":         {"diag", "pki", "ref"},
	"ca":            {"admission", "diag", "pki", "ref", "trust"},
	"reconcile":     {"admission", "diag", "ref", "trust"},
	"readiness":     {},
	"intercept":     {},
	"agent":         {"pki", "readiness", "trust", "version", "xds/envoy"},
	"policy":        {"diag", "inject", "probe/verdict", "ref", "revision", "validate"},
	"policy/live":   {"inject", "policy", "revision", "revision/live"},
	"install":       {"diag", "inject", "policy", "probe/verdict", "ref", "restart", "revision", "validate", "version"},
	"revision":      {"diag", "inject", "ref"},
	"revision/live": {"diag", "inject", "revision"},
	"cli":           {"diag", "inject", "install", "policy", "policy/live", "ref", "revision", "revision/live", "trust", "validate", "version"},
}

// pure are the packages that do no I/O and read no clock: what they return depends on what they are given.
var pure = []string{"ref", "diag", "index", "mesh", "translate", "scope", "xds", "xds/envoy", "xds/filter", "ads/session", "inject", "admission", "pki", "trust", "readiness", "jsonscan", "policy", "probe/verdict", "revision", "validate"}

// impure are imports that a pure package cannot have.
var impure = []string{"os", "os/exec", "net/http", "log", "log/slog", "google.golang.org/grpc", "k8s.io/client-go"}

// file is one parsed Go file of the tree.
type file struct {
	path string // relative to the root, with slashes
	ast  *ast.File
}

func (f file) dir() string  { return filepath.ToSlash(filepath.Dir(f.path)) }
func (f file) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }
func (f file) imports() (paths []string) {
	for _, spec := range f.ast.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		paths = append(paths, p)
	}
	return paths
}

// files parses the imports and comments of every Go file of this module.
func files(t *testing.T) (all []file) {
	t.Helper()
	set := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." {
			_, err := os.Stat(filepath.Join(path, "go.mod")) // another module
			if err == nil || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(set, path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, file{filepath.ToSlash(path), parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// table gives the rule for a package under internal/: its own row, or that of the package that it is a part of.
func table(pkg string) (row string, allowed []string, ok bool) {
	for row = pkg; row != "."; row = filepath.ToSlash(filepath.Dir(row)) {
		if allowed, ok = mayImport[row]; ok {
			return row, allowed, true
		}
	}
	return "", nil, false
}

func TestImportsFollowTheTable(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range files(t) {
		pkg, ok := strings.CutPrefix(f.dir(), "internal/")
		if !ok || f.isTest() || f.ast.Name.Name == "main" {
			continue
		}
		row, allowed, ok := table(pkg)
		if !ok {
			t.Errorf("internal/%s is not in the import table of arch_test.go", pkg)
			continue
		}
		seen[row] = true
		for _, imported := range f.imports() {
			other, ours := strings.CutPrefix(imported, module+"internal/")
			if !ours || other == row || strings.HasPrefix(other, row+"/") || strings.HasPrefix(row, other+"/") && slices.Contains(allowed, other) {
				continue
			}
			otherRow, _, _ := table(other)
			if otherRow != row && !slices.Contains(allowed, otherRow) {
				t.Errorf("%s imports internal/%s: the table does not allow internal/%s to", f.path, other, row)
			}
		}
	}
	for row := range mayImport {
		if !seen[row] {
			t.Errorf("the import table has a row for internal/%s, which does not exist", row)
		}
	}
}

func TestPurePackagesDoNoIO(t *testing.T) {
	for _, f := range files(t) {
		pkg, ok := strings.CutPrefix(f.dir(), "internal/")
		if !ok || f.isTest() || f.ast.Name.Name == "main" {
			continue
		}
		row, _, _ := table(pkg)
		if !slices.Contains(pure, row) {
			continue
		}
		for _, imported := range f.imports() {
			for _, bad := range impure {
				if imported == bad || strings.HasPrefix(imported, bad+"/") {
					t.Errorf("%s imports %s: internal/%s is pure", f.path, imported, row)
				}
			}
		}
	}
}

func TestMeshKnowsNoFormat(t *testing.T) {
	for _, f := range files(t) {
		if f.dir() != "internal/mesh" {
			continue
		}
		for _, imported := range f.imports() {
			for _, bad := range []string{"k8s.io/", "istio.io/", "github.com/envoyproxy/"} {
				if strings.HasPrefix(imported, bad) {
					t.Errorf("%s imports %s: the model knows neither Kubernetes nor Istio nor Envoy", f.path, imported)
				}
			}
		}
	}
}

func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	comment, where := map[string]bool{}, map[string]string{}
	for _, f := range files(t) {
		if f.isTest() {
			continue
		}
		where[f.dir()] = f.path
		if f.ast.Doc == nil {
			continue
		}
		want := "Package " + f.ast.Name.Name + " "
		if f.ast.Name.Name == "main" {
			want = "Command "
		}
		if strings.HasPrefix(f.ast.Doc.Text(), want) {
			comment[f.dir()] = true
		}
	}
	for dir := range where {
		if !comment[dir] {
			t.Errorf("%s has no package comment: say what the package is for in a comment that begins with its name", dir)
		}
	}
}

// TestAgentLinksNoClientGo follows the agent's imports through this module. The sidecar runs beside every pod: what it links,
// every pod pays for.
func TestAgentLinksNoClientGo(t *testing.T) {
	byDir := map[string][]file{}
	for _, f := range files(t) {
		if !f.isTest() {
			byDir[f.dir()] = append(byDir[f.dir()], f)
		}
	}
	if len(byDir["cmd/selvage-agent"]) == 0 {
		t.Fatal("cmd/selvage-agent has no Go files")
	}
	visited := map[string]bool{}
	var visit func(dir, via string)
	visit = func(dir, via string) {
		if visited[dir] {
			return
		}
		visited[dir] = true
		for _, f := range byDir[dir] {
			for _, imported := range f.imports() {
				if own, ok := strings.CutPrefix(imported, module); ok {
					visit(own, via+" → "+own)
				}
				for _, bad := range []string{"k8s.io/", "istio.io/client-go", "sigs.k8s.io/controller-runtime"} {
					if strings.HasPrefix(imported, bad) {
						t.Errorf("%s imports %s (%s)", f.path, imported, via)
					}
				}
			}
		}
	}
	visit("cmd/selvage-agent", "cmd/selvage-agent")
}

// TestEveryCodeHasAPage keeps docs/codes complete: a code that a user sees must lead to an explanation.
func TestEveryCodeHasAPage(t *testing.T) {
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, "internal/diag/codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]bool{}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			code, _ := strconv.Unquote(lit.Value)
			codes[code] = true
			page, err := os.ReadFile(filepath.Join("docs", "codes", code+".md"))
			if err != nil {
				t.Errorf("code %s has no page docs/codes/%s.md", code, code)
			} else if !strings.HasPrefix(string(page), "# "+code) {
				t.Errorf("docs/codes/%s.md must begin with `# %s`", code, code)
			}
		}
		return true
	})
	pages, err := os.ReadDir("docs/codes")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if name := strings.TrimSuffix(page.Name(), ".md"); name != "README" && !codes[name] {
			t.Errorf("docs/codes/%s explains a code that internal/diag/codes.go does not have", page.Name())
		}
	}
}

// TestEveryDirectDependencyHasALine keeps docs/dependencies.md complete, for each of the Go modules here.
func TestEveryDirectDependencyHasALine(t *testing.T) {
	table, err := os.ReadFile(filepath.Join("docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{".", "lab", "lab/dns", "lab/kubernetes", "tools", "tools/helm", "tools/istio"} {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		direct, block := 0, false
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			one, isRequire := strings.CutPrefix(line, "require ")
			switch {
			case line == "require (":
				block = true
				continue
			case line == ")":
				block = false
				continue
			case isRequire:
				line = one
			case !block:
				continue
			}
			path, _, _ := strings.Cut(line, " ")
			if path == "" || strings.HasSuffix(line, "// indirect") {
				continue
			}
			direct++
			if !strings.Contains(string(table), "`"+path+"`") {
				t.Errorf("docs/dependencies.md has no line for %s, which %s/go.mod requires", path, dir)
			}
		}
		if direct == 0 && dir != "tools/istio" { // what a tool directive alone asks for counts as indirect
			t.Errorf("%s/go.mod has no direct dependency: this test does not read it rightly", dir)
		}
	}
}
