package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/selvage-mesh/selvage/lab/internal/image"
	"github.com/selvage-mesh/selvage/lab/internal/node"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// loadEcho gives the lab's node the image docker.io/selvage/proxy:echo: the sidecar's image with the test's program in place
// of the agent, and a small program in place of Envoy.
func loadEcho(t *testing.T, cfg Config, dir *state.Dir) {
	t.Helper()
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "selvage-agent"), "./testdata/echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Symlink("/bin/true", filepath.Join(bin, "envoy")); err != nil {
		t.Fatal(err)
	}
	spec, err := image.Catalogue{Bin: bin, Tag: "echo"}.Proxy()
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{Config: cfg, dir: dir, node: node.Config{Dir: dir.File("node"), Run: runDir(dir)}}
	if err := l.load(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}
