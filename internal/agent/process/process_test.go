package process

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

// script is a process that ends as it is told.
type script struct {
	lasts time.Duration
	end   error
	sig   chan os.Signal
}

func (s *script) wait() error {
	select {
	case <-time.After(s.lasts):
		return s.end
	case <-s.sig:
		return errors.New("signal: terminated")
	}
}
func (s *script) signal(sig os.Signal) error { s.sig <- sig; return nil }

func scripted(lasts ...time.Duration) (p *Process, starts *[]time.Time) {
	starts = &[]time.Time{}
	p = &Process{config: Config{Log: quiet, MaxCrashes: defaultCrashes, Stable: defaultStable}, tail: &tail{to: io.Discard}, stopped: make(chan struct{})}
	p.start = func(*tail) (running, error) {
		n := len(*starts)
		*starts = append(*starts, time.Now())
		return &script{lasts[min(n, len(lasts)-1)], errors.New("exit status 1"), make(chan os.Signal, 2)}, nil
	}
	return p, starts
}

func TestRestartsPauseLongerEachTimeAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, starts := scripted(0)
		var gaveUp *GaveUpError
		if err := p.Run(t.Context()); !errors.As(err, &gaveUp) || gaveUp.Crashes != 10 {
			t.Fatalf("Run = %v, want to give up after 10", err)
		}
		var pauses []time.Duration
		for i := 1; i < len(*starts); i++ {
			pauses = append(pauses, (*starts)[i].Sub((*starts)[i-1]))
		}
		want := []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond,
			6400 * time.Millisecond, 10 * time.Second, 10 * time.Second, 10 * time.Second}
		if len(pauses) != len(want) {
			t.Fatalf("pauses %v, want %v", pauses, want)
		}
		for i := range want {
			if pauses[i] != want[i] {
				t.Errorf("pause %d is %s, want %s", i, pauses[i], want[i])
			}
		}
	})
}

func TestALongRunBeginsANewRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, starts := scripted(0, 0, 0, 0, 0, 0, 0, 0, 0, time.Minute, 0)
		if err := p.Run(t.Context()); err == nil {
			t.Fatal("did not give up")
		}
		if got := len(*starts); got != 19 { // nine crashes, one long run that counts as the first of ten
			t.Errorf("started %d times, want 19", got)
		}
	})
}

func TestStopEndsAPauseAndARun(t *testing.T) {
	for name, lasts := range map[string]time.Duration{"while it pauses": 0, "while it runs": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _ := scripted(lasts)
				ended := make(chan error)
				go func() { ended <- p.Run(t.Context()) }()
				synctest.Wait()
				p.Stop(false)
				if err := <-ended; err != nil {
					t.Errorf("Run = %v, want nil", err)
				}
			})
		})
	}
}

func TestACancelledContextKills(t *testing.T) {
	w := &firstWrite{done: make(chan struct{})}
	p := shell(t, w, "trap '' TERM; echo ready >&2; while :; do read -t 1 x < /dev/zero; done")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	<-w.done
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// shell is a real process.
func shell(t *testing.T, stderr io.Writer, script string) *Process {
	t.Helper()
	p, err := New(Config{Path: "/bin/sh", Args: []string{"-c", script}, Stderr: stderr, Log: quiet, MaxCrashes: 2})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGivingUpTellsTheLastWords(t *testing.T) {
	var log bytes.Buffer
	p := shell(t, &log, "i=0; while [ $i -lt 30 ]; do echo line $i >&2; i=$((i+1)); done; printf 'no newline' >&2; exit 3")
	err := p.Run(t.Context())
	var gaveUp *GaveUpError
	if !errors.As(err, &gaveUp) {
		t.Fatalf("Run = %v", err)
	}
	if gaveUp.Last != "exit status 3" || len(gaveUp.Lines) != lastLines+1 || gaveUp.Lines[len(gaveUp.Lines)-1] != "no newline" {
		t.Errorf("gave up with %+v", gaveUp)
	}
	if !strings.Contains(err.Error(), "ended 2 times in a row, last with exit status 3; its last words:\n") {
		t.Errorf("text %q", err)
	}
	if n := strings.Count(log.String(), "line 0\n"); n != 2 {
		t.Errorf("the log was passed on for %d runs, want 2:\n%s", n, log.String())
	}
}

// firstWrite tells when the process has written.
type firstWrite struct {
	once sync.Once
	done chan struct{}
}

func (w *firstWrite) Write(data []byte) (int, error) {
	w.once.Do(func() { close(w.done) })
	return len(data), nil
}

func TestStopSignals(t *testing.T) {
	for _, kill := range []bool{false, true} {
		w := &firstWrite{done: make(chan struct{})}
		trap := "trap 'exit 0' TERM"
		if kill {
			trap = "trap '' TERM"
		}
		p := shell(t, w, trap+"; echo ready >&2; while :; do read -t 1 x < /dev/zero; done")
		ended := make(chan error)
		go func() { ended <- p.Run(t.Context()) }()
		<-w.done
		p.Stop(false)
		if kill {
			p.Stop(true)
		}
		if err := <-ended; err != nil {
			t.Errorf("kill=%v: %v", kill, err)
		}
	}
}

func TestNoProgramIsSaidAtOnce(t *testing.T) {
	if _, err := New(Config{Path: "/nowhere/envoy"}); err == nil || !strings.Contains(err.Error(), "--envoy") {
		t.Errorf("New = %v", err)
	}
}
