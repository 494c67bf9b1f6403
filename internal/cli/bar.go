package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// bar tells how far something of several steps is: on a terminal a line that is drawn anew, elsewhere a plain line for each change.
type bar struct {
	w     io.Writer
	live  bool
	total int
	last  string // plain lines: what was written last
}

// newBar draws on w if that is a terminal which can.
func (a *app) newBar(total int) *bar {
	return &bar{w: a.Stderr, live: isTerminal(a.Stderr) && a.Getenv("TERM") != "dumb", total: total}
}

// barWidth is that of the drawn part, in columns.
const barWidth = 20

// show says how many steps are done, and what is being done. part, from 0 to 1, is how far the present step is.
func (b *bar) show(done int, part float64, text string) {
	if !b.live {
		if line := fmt.Sprintf("[%d/%d] %s", done, b.total, text); line != b.last {
			fmt.Fprintln(b.w, line)
			b.last = line
		}
		return
	}
	full := 0
	if b.total > 0 {
		full = int(float64(barWidth) * (float64(done) + part) / float64(b.total))
	}
	full = max(0, min(full, barWidth))
	line := fmt.Sprintf("[%s%s] %d/%d %s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), done, b.total, text)
	fmt.Fprintf(b.w, "\r\x1b[K%s", clip(line, b.columns()))
}

// line writes a line that stays.
func (b *bar) line(format string, args ...any) {
	b.clear()
	fmt.Fprintf(b.w, format+"\n", args...)
}

// clear takes the drawn line away.
func (b *bar) clear() {
	if b.live {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

func (b *bar) columns() int {
	if file, ok := b.w.(*os.File); ok {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			return width - 1
		}
	}
	return plainWidth - 1
}

// clip cuts a line to a width, so that drawing it anew does not scroll.
func clip(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:max(width, 0)])
}
