package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
)

// enclosed runs f in a node's mount namespace. The folders that had to be made are removed, unless a lab may stand on them.
func enclosed(c Config, f func() error) error {
	runtime.LockOSThread() // and never unlocked
	made, err := c.Enclose()
	if err != nil {
		return err
	}
	err = f()
	if labs, _ := filepath.Glob("/run/selvage-*"); len(labs) == 0 {
		for _, dir := range made {
			_ = os.Remove(dir)
		}
	}
	return err
}

// sleeper starts a process and puts it into a cgroup; the channel is closed when it has ended.
func sleeper(t *testing.T, procs string) <-chan struct{} {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if err := os.WriteFile(procs, []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	return ended
}
