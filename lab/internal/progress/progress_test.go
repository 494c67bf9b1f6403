package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestLinesFitATerminal(t *testing.T) {
	for _, text := range []string{"short", strings.Repeat("ü", 200)} {
		got := "✓ " + line(text, 1234*time.Millisecond)
		if n := utf8.RuneCountInString(got); n != width {
			t.Errorf("%d columns: %q", n, got)
		}
		if !strings.HasSuffix(got, " 1.2 s") {
			t.Errorf("no time at the end: %q", got)
		}
	}
}

func TestAFileGetsOnlyFinishedSteps(t *testing.T) {
	var b bytes.Buffer
	r := &Reporter{out: &b}
	one, two := r.Step("one-ing"), r.Step("two-ing")
	two.Done("two")
	one.Fail()
	one.Fail() // again changes nothing
	got := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(got) != 2 || !strings.HasPrefix(got[0], "✓ two ") || !strings.HasPrefix(got[1], "✗ one-ing ") || strings.Contains(b.String(), "\x1b") {
		t.Errorf("wrote %q", b.String())
	}
}

func TestATerminalShowsTheStepUnderWay(t *testing.T) {
	var b bytes.Buffer
	r := &Reporter{out: &b, tty: true}
	one, two := r.Step("one-ing"), r.Step("two-ing")
	two.Done("two")
	if !strings.HasSuffix(b.String(), "\r\x1b[K✓ "+line("two", 0)+"\n· one-ing …") {
		t.Errorf("wrote %q", b.String())
	}
	one.Done("one")
	if !strings.HasSuffix(b.String(), "0.0 s\n") {
		t.Errorf("the end leaves a line that is not finished: %q", b.String())
	}
}
