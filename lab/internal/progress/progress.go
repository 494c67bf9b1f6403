// Package progress shows what a long command is doing: one line per finished step with the time it took, and on a terminal
// the step under way below them.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// width is that of a line; terminals are at least this wide.
const width = 79

// Reporter writes the lines. Steps may run at the same time.
type Reporter struct {
	mu      sync.Mutex
	out     io.Writer
	tty     bool
	colour  bool
	pending []*Step
}

// New writes to out, with overwriting when out is a terminal, and with colour when NO_COLOR does not forbid it.
func New(out *os.File) *Reporter {
	tty := term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb"
	return &Reporter{out: out, tty: tty, colour: tty && os.Getenv("NO_COLOR") == ""}
}

// Step is one thing under way.
type Step struct {
	r     *Reporter
	doing string
	began time.Time
}

// Step begins a step; doing is in the -ing form.
func (r *Reporter) Step(doing string) *Step {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Step{r: r, doing: doing, began: time.Now()}
	r.pending = append(r.pending, s)
	r.redraw("")
	return s
}

// Done ends the step; result is what is now so, in a few words.
func (s *Step) Done(result string) { s.end("✓", "32", result) }

// Fail ends the step without success; the error itself is shown by whoever called.
func (s *Step) Fail() { s.end("✗", "31", s.doing) }

// Note writes a line that is no step, such as a warning.
func (r *Reporter) Note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.redraw("  " + text + "\n")
}

func (s *Step) end(mark, colour, text string) {
	r := s.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range r.pending {
		if p == s {
			r.pending = append(r.pending[:i], r.pending[i+1:]...)
			if r.colour {
				mark = "\x1b[" + colour + "m" + mark + "\x1b[0m"
			}
			r.redraw(mark + " " + line(text, time.Since(s.began)) + "\n")
			return
		}
	}
}

// redraw replaces the line of the step under way by text, and writes that line again below.
func (r *Reporter) redraw(text string) {
	if !r.tty {
		fmt.Fprint(r.out, text)
		return
	}
	now := ""
	if n := len(r.pending); n > 0 {
		now = "· " + fit(r.pending[n-1].doing+" …", width-2)
	}
	fmt.Fprintf(r.out, "\r\x1b[K%s%s", text, now)
}

// line is text with the time right-aligned, width-2 columns in all.
func line(text string, took time.Duration) string {
	t := fmt.Sprintf("%.1f s", took.Seconds())
	text = fit(text, width-2-len(t)-1)
	return text + strings.Repeat(" ", width-2-len(t)-utf8.RuneCountInString(text)) + t
}

// fit cuts text to n columns.
func fit(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:n-1]) + "…"
}
