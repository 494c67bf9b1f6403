// Package process keeps the proxy running: it starts it, starts it again after a crash with a growing pause, and gives up, with the
// proxy's last words, when it cannot be kept alive.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config says what to run. Zero durations and counts take the defaults below.
type Config struct {
	Path   string
	Args   []string
	Stdout *os.File  // passed on to the proxy as it is: its access log
	Stderr io.Writer // gets the proxy's log; the last lines are remembered
	Log    *slog.Logger

	MaxCrashes int           // in a row, before giving up
	Stable     time.Duration // a run of at least this long begins a new row
}

// The defaults: 200 ms, 400 ms, … up to 10 s between starts, and 10 crashes in a row make about 40 s. A container that restarts with
// the agent would lose the interception's proxy for longer, by the kubelet's own back-off.
const (
	defaultCrashes = 10
	defaultStable  = time.Minute
	restartBase    = 200 * time.Millisecond
	restartMax     = 10 * time.Second
	lastLines      = 20
)

// GaveUpError says that the proxy cannot be kept running.
type GaveUpError struct {
	Crashes int
	Last    string   // how it ended: "exit status 1", "signal: segmentation fault"
	Lines   []string // the end of its log
}

// Error is one line, and then the end of the log.
func (e *GaveUpError) Error() string {
	text := fmt.Sprintf("run the proxy: it ended %d times in a row, last with %s", e.Crashes, e.Last)
	if len(e.Lines) > 0 {
		text += "; its last words:\n  " + strings.Join(e.Lines, "\n  ")
	}
	return text
}

// Process is one proxy through its restarts.
type Process struct {
	config Config
	start  func(*tail) (running, error) // replaced in tests of the timing
	tail   *tail

	mu       sync.Mutex
	current  running
	stopping bool
	stopped  chan struct{} // closed by the first Stop
	starts   int
}

// running is a started process.
type running interface {
	wait() error
	signal(os.Signal) error
}

// New checks that there is something to run.
func New(c Config) (*Process, error) {
	if _, err := exec.LookPath(c.Path); err != nil {
		return nil, fmt.Errorf("find the proxy: %w; set --envoy to where it is", err)
	}
	if c.MaxCrashes == 0 {
		c.MaxCrashes = defaultCrashes
	}
	if c.Stable == 0 {
		c.Stable = defaultStable
	}
	p := &Process{config: c, tail: &tail{to: c.Stderr}, stopped: make(chan struct{})}
	p.start = p.exec
	return p, nil
}

// Run keeps the proxy running until Stop or until ctx ends, which kills it. It returns nil after a stop and *GaveUpError when the proxy
// cannot be kept running.
func (p *Process) Run(ctx context.Context) error {
	for crashes := 0; ; {
		began := time.Now()
		stopped, err := p.once(ctx)
		if stopped || ctx.Err() != nil {
			return nil //nolint:nilerr // how a proxy ends that was asked to is not a failure
		}
		if time.Since(began) >= p.config.Stable {
			crashes = 0
		}
		crashes++
		how := "exit status 0"
		if err != nil {
			how = err.Error()
		}
		if crashes >= p.config.MaxCrashes {
			return &GaveUpError{Crashes: crashes, Last: how, Lines: p.tail.lines()}
		}
		wait := min(restartBase<<(crashes-1), restartMax)
		p.config.Log.Error("the proxy ended by itself, will start it again", "how", how, "in_a_row", crashes, "pause", wait)
		select {
		case <-time.After(wait):
		case <-p.stopped:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// once runs the proxy to its end. stopped says that it was asked to end.
func (p *Process) once(ctx context.Context) (stopped bool, err error) {
	p.mu.Lock()
	if p.stopping {
		p.mu.Unlock()
		return true, nil
	}
	r, err := p.start(p.tail)
	if err != nil {
		p.mu.Unlock()
		return false, err
	}
	p.current = r
	p.starts++
	p.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- r.wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		if killErr := r.signal(syscall.SIGKILL); killErr != nil && !errors.Is(killErr, os.ErrProcessDone) {
			p.config.Log.Error("cannot kill the proxy", "error", killErr)
		}
		err = <-ended
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = nil
	return p.stopping, err
}

// Stop asks the proxy to end, which it does at once, and makes Run return. With kill it is not asked.
func (p *Process) Stop(kill bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopping {
		p.stopping = true
		close(p.stopped)
	}
	if p.current == nil {
		return
	}
	sig := syscall.SIGTERM
	if kill {
		sig = syscall.SIGKILL
	}
	if err := p.current.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.config.Log.Error("cannot signal the proxy", "signal", sig, "error", err)
	}
}

// Starts is how often the proxy was started.
func (p *Process) Starts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starts
}

// child is a started command.
type child struct {
	cmd   *exec.Cmd
	ended chan error
}

// exec starts the command. A thread of its own starts it and waits for it: the kernel kills the proxy when that thread ends (PDEATHSIG
// goes by thread, prctl(2)), so a proxy never outlives its agent.
func (p *Process) exec(log *tail) (running, error) {
	c := &child{ended: make(chan error, 1)}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		c.cmd = exec.Command(p.config.Path, p.config.Args...) //nolint:noctx // Stop ends it in the order that a proxy wants
		c.cmd.Stdout, c.cmd.Stderr = p.config.Stdout, log
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.ended <- c.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the proxy: %w", err)
	}
	return c, nil
}

func (c *child) wait() error                { return <-c.ended }
func (c *child) signal(sig os.Signal) error { return c.cmd.Process.Signal(sig) }

// tail passes a log on and remembers its last lines.
type tail struct {
	to   io.Writer
	mu   sync.Mutex
	kept [][]byte
	part []byte // of a line that has not ended
}

const maxLine = 2048 // bytes of a line that are remembered

// Write implements io.Writer.
func (t *tail) Write(data []byte) (int, error) {
	t.mu.Lock()
	for rest := data; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		if room := maxLine - len(t.part); room > 0 {
			t.part = append(t.part, line[:min(len(line), room)]...)
		}
		if ended {
			t.kept = append(t.kept, t.part)
			t.kept = t.kept[max(0, len(t.kept)-lastLines):]
			t.part = nil
		}
		rest = after
	}
	t.mu.Unlock()
	return t.to.Write(data)
}

// lines gives the last lines.
func (t *tail) lines() (lines []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, line := range append(t.kept[:len(t.kept):len(t.kept)], t.part) {
		if text := strings.TrimSpace(string(line)); text != "" {
			lines = append(lines, text)
		}
	}
	return lines
}
