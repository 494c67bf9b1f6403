package cli_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/tools/txtar"

	"github.com/selvage-mesh/selvage/internal/cli"
)

// TestTranscripts runs testdata/*.txtar: prose first; `args` is the command line, one argument a line; `stdin` and other files
// (written to a folder that $DIR stands for) are what it reads; `stdout`, `stderr` and `code` are what it gives. No cluster is
// configured. UPDATE_GOLDEN=1 rewrites what it gives.
func TestTranscripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("find transcripts: %v (%d)", err, len(paths))
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) { transcript(t, path) })
	}
}

func transcript(t *testing.T, path string) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(bytes.TrimSpace(archive.Comment)) == 0 {
		t.Error("the file does not say what it shows")
	}
	dir, part := t.TempDir(), map[string]string{}
	var inputs []txtar.File
	for _, f := range archive.Files {
		part[f.Name] = string(f.Data)
		if f.Name == "stdout" || f.Name == "stderr" || f.Name == "code" {
			continue
		}
		inputs = append(inputs, f)
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := strings.Split(strings.TrimSpace(strings.ReplaceAll(part["args"], "$DIR", dir)), "\n")
	got := run(t, dir, part["stdin"], args...)
	got.stdout, got.stderr = strings.ReplaceAll(got.stdout, dir, "$DIR"), strings.ReplaceAll(got.stderr, dir, "$DIR")
	code := strconv.Itoa(got.code) + "\n"
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		archive.Files = slices.Concat(inputs, []txtar.File{{Name: "code", Data: []byte(code)},
			{Name: "stderr", Data: []byte(got.stderr)}, {Name: "stdout", Data: []byte(got.stdout)}})
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for name, text := range map[string]string{"code": code, "stderr": got.stderr, "stdout": got.stdout} {
		if text != part[name] {
			t.Errorf("%s:\n%s\nwant:\n%s", name, text, part[name])
		}
	}
}

// result is what a command gave.
type result struct {
	stdout, stderr string
	code           int
}

// run executes a command line where no kubeconfig is to be found but those that it names.
func run(t testing.TB, home, stdin string, args ...string) result {
	t.Helper()
	t.Setenv("HOME", home)
	t.Setenv("KUBECONFIG", "")
	var stdout, stderr bytes.Buffer
	code := cli.Run(t.Context(), cli.Config{
		Program: "selvage", Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" },
	}, args)
	return result{stdout.String(), stderr.String(), code}
}

// TestHelp holds the help of every command to its form: what it is in a line, examples that begin with the program's name as
// it was called, and lines that a terminal of 80 columns shows whole.
func TestHelp(t *testing.T) {
	commands := []string{"up", "down", "install", "uninstall", "status", "inject", "version", "revision", "revision list", "revision tag",
		"revision tag set", "revision tag remove", "revision migrate", "revision retire", "revision prune"}
	for program, called := range map[string]string{
		"selvage": "selvage", "bin/selvage": "bin/selvage", "/usr/local/bin/selvage": "selvage", "/usr/local/bin/kubectl-selvage": "kubectl selvage",
	} {
		for _, command := range append([]string{""}, commands...) {
			var stdout, stderr bytes.Buffer
			args := append(strings.Fields(command), "--help")
			t.Setenv("PATH", t.TempDir()) // up and down answer themselves when the lab's program is not there
			code := cli.Run(t.Context(), cli.Config{Program: program, Stdout: &stdout, Stderr: &stderr,
				Getenv: func(string) string { return "" }}, args)
			help := stdout.String()
			if code != 0 || stderr.Len() > 0 {
				t.Errorf("%s %s: exit code %d, stderr %q", called, args, code, stderr.String())
			}
			_, examples, found := strings.Cut(help, "Examples:\n")
			if !found || !strings.Contains(examples, "  "+called+" "+command) && !strings.Contains(examples, called+" "+command) {
				t.Errorf("%s %s has no example that says %q:\n%s", called, args, called+" "+command, help)
			}
			if called != "selvage" && regexp.MustCompile("(?m)(^ +|`|[|] |sudo )selvage [a-z]").MatchString(strings.ReplaceAll(help, called, "")) {
				t.Errorf("%s %s shows another name:\n%s", called, args, help)
			}
			for line := range strings.Lines(help) {
				if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
					t.Errorf("%s %s has a line of %d columns: %s", called, args, n, line)
				}
			}
		}
	}
}
