// Package testneed says what a test of the lab needs of the machine. A need that cannot be met fails the test, with the
// command that meets it; only root may be missing, and then the test is skipped, but never with CI=true.
package testneed

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Root returns when the process may make network namespaces and mounts. Otherwise it skips the test, or fails it where CI=true.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root (level 2), and CI=true allows no skip: run the tests as root")
	}
	t.Skip("needs root (level 2): run `sudo make test`")
}

// Bin returns the folder with the programs, and fails the test when one of names is not in there.
func Bin(t testing.TB, names ...string) string {
	t.Helper()
	_, self, _, _ := runtime.Caller(0)
	bin := filepath.Join(filepath.Dir(self), "..", "..", "..", "bin")
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("needs bin/%s: run `make build lab envoy` first", name)
		}
	}
	return bin
}
