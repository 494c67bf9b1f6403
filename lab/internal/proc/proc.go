// Package proc starts the programs of a lab and ends them again: those it started and no others, also after the one who
// started them was killed, and also after a reboot gave their process ids to strangers.
//
// A process is known by its id together with the moment it started; and every process of a lab carries the lab's marker in
// its environment, which its children inherit, so that none is lost between its start and its being written down.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marker is the environment variable whose value is the folder of the lab that a process belongs to.
const marker = "SELVAGE_LAB_DIR"

// ID is one process for ever: ids are used again, but not with the same start and boot.
type ID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot: field 22 of /proc/PID/stat
	Boot  string `json:"boot"`  // the kernel's boot id
}

// Command is a program to start.
type Command struct {
	Lab   string // the lab's folder, absolute: the marker
	Path  string
	Args  []string // without the program's name
	Env   []string // beside the caller's own environment
	Log   string   // stdout and stderr are appended to this file
	Files []*os.File
}

// Running is a process started by this one.
type Running struct {
	ID
	Log    string
	exited chan struct{}
	err    error
}

// Start starts the program in a session of its own, so that a Ctrl-C at the terminal does not reach it. It runs in the
// namespaces of the calling thread.
func Start(c Command) (*Running, error) {
	log, err := os.OpenFile(c.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	defer log.Close()
	cmd := exec.Command(c.Path, c.Args...) //nolint:noctx // it outlives the caller and every context of it
	cmd.Env = append(Environ(c.Lab), c.Env...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, c.Files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	r := &Running{Log: c.Log, exited: make(chan struct{})}
	// Before it is waited for, its id cannot become another's, even when it has ended already.
	r.ID, _, err = identify(cmd.Process.Pid)
	if err != nil {
		err = errors.Join(err, cmd.Process.Kill())
	}
	go func() {
		r.err = cmd.Wait()
		close(r.exited)
	}()
	return r, err
}

// Exited is closed when the process has ended.
func (r *Running) Exited() <-chan struct{} { return r.exited }

// Failure says how the process ended, with the last line of its log that tells something.
func (r *Running) Failure() error {
	<-r.exited
	how := "exit status 0"
	if r.err != nil {
		how = r.err.Error()
	}
	if line := lastLine(r.Log); line != "" {
		return fmt.Errorf("%s: %s", how, line)
	}
	return errors.New(how)
}

// Identify returns the identity of a live process.
func Identify(pid int) (ID, error) {
	id, ended, err := identify(pid)
	if err == nil && ended {
		err = fmt.Errorf("identify process %d: %w", pid, os.ErrProcessDone)
	}
	return id, err
}

// identify also takes a process that has ended and that its parent has not waited for.
func identify(pid int) (id ID, ended bool, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ID{}, false, fmt.Errorf("identify process %d: %w", pid, err)
	}
	// The second field is the program's name in parentheses and may hold any character, parentheses too.
	rest := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const state, start = 0, 19 // fields 3 and 22, counted from the field after the name
	if len(rest) <= start {
		return ID{}, false, fmt.Errorf("identify process %d: cannot read its stat %q", pid, stat)
	}
	ticks, err := strconv.ParseUint(rest[start], 10, 64)
	if err != nil {
		return ID{}, false, fmt.Errorf("identify process %d: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ID{}, false, fmt.Errorf("identify process %d: %w", pid, err)
	}
	ended = rest[state] == "Z" || rest[state] == "X"
	return ID{PID: pid, Start: ticks, Boot: strings.TrimSpace(string(boot))}, ended, nil
}

// Alive says whether that very process still runs.
func (id ID) Alive() bool {
	if id.PID <= 0 {
		return false
	}
	now, err := Identify(id.PID)
	return err == nil && now == id
}

// Stop asks the process to end, waits up to grace, then kills it. It returns when the process is gone; one that is gone
// already is no error.
func Stop(ctx context.Context, id ID, grace time.Duration) error {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return ignoreGone(id, err)
	}
	defer unix.Close(fd)
	if !id.Alive() { // asked after the descriptor was opened: from here on it cannot become another process
		return nil
	}
	if grace > 0 {
		if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
			return ignoreGone(id, err)
		}
		if gone(ctx, fd, grace) {
			return nil
		}
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return ignoreGone(id, err)
	}
	if !gone(context.WithoutCancel(ctx), fd, 10*time.Second) {
		return fmt.Errorf("stop process %d: it does not end, even when killed", id.PID)
	}
	return nil
}

// Marked returns the processes that carry the marker of the lab in that folder, but for the calling one.
func Marked(lab string) ([]ID, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	want := []byte(marker + "=" + lab)
	var found []ID
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile("/proc/" + e.Name() + "/environ")
		if err != nil { // gone, or another user's
			continue
		}
		if !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, want) }) {
			continue
		}
		if id, err := Identify(pid); err == nil {
			found = append(found, id)
		}
	}
	return found, nil
}

// Environ is the caller's environment with the marker of a lab, and without proxies: whoever a program of a lab talks to is on
// this machine, where no proxy could lead.
func Environ(lab string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasSuffix(strings.ToUpper(name), "_PROXY")
	})
	return append(env, marker+"="+lab)
}

// Unmark returns env without the marker, for programs that a user runs inside a lab.
func Unmark(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, marker+"=") })
}

// gone waits until the process of the descriptor has ended; a zombie whose parent does not wait for it counts as ended.
func gone(ctx context.Context, pidfd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 50)
		if n > 0 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) || ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
	}
}

func ignoreGone(id ID, err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return fmt.Errorf("stop process %d: %w", id.PID, err)
}

// lastLine returns the last line of a log that is not blank, cut to a length that fits a message.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	line := strings.TrimSpace(lines[len(lines)-1])
	const limit = 300
	if len(line) > limit {
		line = line[:limit] + "…"
	}
	return line
}
