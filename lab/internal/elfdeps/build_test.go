package elfdeps

import (
	"os"
	"os/exec"
	"testing"
)

func build(t *testing.T, program, source string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", program, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
