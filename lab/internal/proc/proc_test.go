package proc

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, lab, script string) *Running {
	t.Helper()
	r, err := Start(Command{Lab: lab, Path: "/bin/sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Stop(context.Background(), r.ID, 0) })
	return r
}

func TestAStrangerWithTheSameProcessIDIsNotKilled(t *testing.T) {
	r := start(t, t.TempDir(), "sleep 600")
	stale := r.ID
	stale.Start-- // the process that had this id before
	if stale.Alive() {
		t.Error("a process that started at another moment counts as alive")
	}
	if err := Stop(context.Background(), stale, 0); err != nil {
		t.Fatal(err)
	}
	afterReboot := r.ID
	afterReboot.Boot = "another boot"
	if err := Stop(context.Background(), afterReboot, 0); err != nil {
		t.Fatal(err)
	}
	if !r.Alive() {
		t.Error("a stranger was killed")
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	r := start(t, t.TempDir(), `trap "" TERM; while :; do sleep 0.1; done`)
	if err := Stop(context.Background(), r.ID, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	<-r.Exited()
	if r.Alive() {
		t.Error("it still runs")
	}
	if err := Stop(context.Background(), r.ID, time.Second); err != nil {
		t.Errorf("to stop what has ended is an error: %v", err)
	}
}

func TestAnOrphanIsFoundByItsMarker(t *testing.T) {
	lab := t.TempDir()
	log := filepath.Join(t.TempDir(), "log")
	r, err := Start(Command{Lab: lab, Path: "/bin/sh", Args: []string{"-c", "setsid sleep 600 & echo $!; exit 3"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	<-r.Exited()
	line, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(line)))
	if err != nil {
		t.Fatal(err)
	}
	found, err := Marked(lab)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].PID != child {
		t.Fatalf("found %v, want process %d", found, child)
	}
	if others, _ := Marked(lab + "2"); len(others) != 0 {
		t.Errorf("processes of one lab were found for another: %v", others)
	}
	if err := Stop(context.Background(), found[0], 0); err != nil {
		t.Fatal(err)
	}
	if left, _ := Marked(lab); len(left) != 0 {
		t.Errorf("still there: %v", left)
	}
}

func TestAFailureIsToldByItsLastLine(t *testing.T) {
	r := start(t, t.TempDir(), "echo starting; echo port 6443 is in use >&2; exit 7")
	if got := r.Failure().Error(); !strings.Contains(got, "exit status 7") || !strings.Contains(got, "port 6443 is in use") {
		t.Errorf("Failure() = %q", got)
	}
}

func TestAProcessIsKnownWhateverItIsCalled(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a) R 1 (b")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	self, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if id.Start < self.Start || id.Start == 0 {
		t.Errorf("started at tick %d, before this test at %d", id.Start, self.Start)
	}
}

func TestTheMarkerDoesNotReachTheUsersPrograms(t *testing.T) {
	r := start(t, "/some/lab", "exec sleep 600")
	f, err := os.Open(fmt.Sprintf("/proc/%d/environ", r.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var env []string
	s := bufio.NewScanner(f)
	s.Split(func(data []byte, eof bool) (int, []byte, error) {
		for i, b := range data {
			if b == 0 {
				return i + 1, data[:i], nil
			}
		}
		return 0, nil, nil
	})
	for s.Scan() {
		env = append(env, s.Text())
	}
	if clean := Unmark(env); len(clean) != len(env)-1 || strings.Contains(strings.Join(clean, "\n"), "/some/lab") {
		t.Errorf("Unmark left the marker in: %v", clean)
	}
}

// An API server that has heard of a proxy asks it for the webhooks inside of the lab, where it is not.
func TestProgramsOfALabHearOfNoProxy(t *testing.T) {
	for _, name := range []string{"HTTPS_PROXY", "http_proxy", "ALL_PROXY", "NO_PROXY"} {
		t.Setenv(name, "http://proxy.example:3128")
	}
	t.Setenv("SELVAGE_LOG_LEVEL", "debug")
	env := strings.Join(Environ("/some/lab"), "\n")
	if strings.Contains(env, "proxy.example") || !strings.Contains(env, "SELVAGE_LOG_LEVEL=debug") {
		t.Errorf("the environment is\n%s", env)
	}
}
