package elfdeps

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestADynamicProgramNeedsItsLoaderAndLibraries(t *testing.T) {
	r, err := Resolve("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Interpreters) != 1 {
		t.Errorf("loaders: %v, want one", r.Interpreters)
	}
	names := map[string]bool{}
	for _, l := range r.Libraries {
		if names[l.Name] {
			t.Errorf("%s is named twice", l.Name)
		}
		names[l.Name] = true
		if info, err := os.Lstat(l.Path); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %s is no file", l.Name, l.Path)
		}
	}
	if !names["libc.so.6"] {
		t.Errorf("libraries of /bin/sh: %v, without the C library", r.Libraries)
	}
	if !strings.HasSuffix(r.Dir(), "-linux-gnu") && !strings.Contains(r.Dir(), "lib") {
		t.Errorf("Dir() = %s", r.Dir())
	}
}

func TestAStaticProgramNeedsNothing(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "static")
	build(t, program, source)
	r, err := Resolve(program)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Libraries)+len(r.Interpreters) != 0 {
		t.Errorf("a static program needs %v", r)
	}
}

func TestAMissingLibraryIsNamed(t *testing.T) {
	// A copy of the shell whose need for libc.so.6 is renamed in place, to a library that nobody has.
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "sh")
	broken := strings.ReplaceAll(string(shell), "libc.so.6\x00", "libq.so.9\x00")
	if err := os.WriteFile(program, []byte(broken), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = Resolve(program)
	var missing *MissingError
	if !errors.As(err, &missing) || missing.Library != "libq.so.9" || missing.Program != program {
		t.Errorf("Resolve() = %v, want libq.so.9 of %s missing", err, program)
	}
}

func TestWhatIsNoProgramIsAnError(t *testing.T) {
	if _, err := Resolve("/etc/passwd"); err == nil || !strings.Contains(err.Error(), "/etc/passwd") {
		t.Errorf("Resolve(/etc/passwd) = %v", err)
	}
}

func TestTheLoadersConfigurationIsRead(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"ld.so.conf":       "# comment\ninclude conf.d/*.conf\n/opt/last\n",
		"conf.d/10-a.conf": "/opt/a # trailing\n",
		"conf.d/20-b.conf": "/opt/b\ninclude ../ld.so.conf\n", // a loop
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := configured(filepath.Join(dir, "ld.so.conf"), 0)
	if len(got) < 3 || got[0] != "/opt/a" || got[1] != "/opt/b" || got[len(got)-1] != "/opt/last" {
		t.Errorf("folders: %v", got)
	}
}
