// Package testneed says what a test needs of the machine. A need that cannot be met fails the test, with the command that
// meets it; only root may be missing, and then the test is skipped, but never with CI=true.
package testneed

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Root returns when the process may make network namespaces and mounts (level 2). Otherwise it skips the test, or fails it
// where CI=true.
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

// Bin returns the absolute path of bin/NAME, and fails the test with the make target that builds it when it is not there.
func Bin(t testing.TB, name, target string) string {
	t.Helper()
	_, self, _, _ := runtime.Caller(0)
	path := filepath.Join(filepath.Dir(self), "..", "..", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("needs bin/%s: run `make %s` first", name, target)
	}
	return path
}

// Envoy returns the path of the pinned Envoy.
func Envoy(t testing.TB) string {
	t.Helper()
	return Bin(t, "envoy", "envoy")
}
