package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// checkOutput refuses a value of -o that the command does not have.
func (a *app) checkOutput(cmd *cobra.Command, formats ...string) error {
	if a.output == "" || slices.Contains(formats, a.output) {
		return nil
	}
	return &usageError{cmd.CommandPath(), fmt.Errorf("-o %s: the formats are %s", a.output, strings.Join(formats, ", "))}
}

// table is aligned text, columns apart by two spaces, without trailing blanks.
type table struct {
	header []string
	rows   [][]string
	gap    int                                  // spaces between columns; 0 is 2
	paint  func(column int, cell string) string // colours a cell after it was aligned; nil for none
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// width is that of the widest line.
func (t *table) width() int {
	total := 0
	for _, w := range t.widths() {
		total += w + t.space()
	}
	return total - t.space()
}

func (t *table) space() int {
	if t.gap == 0 {
		return 2
	}
	return t.gap
}

func (t *table) widths() []int {
	widths := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		for n, cell := range row {
			widths[n] = max(widths[n], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

// drop removes a column.
func (t *table) drop(name string) {
	n := slices.Index(t.header, name)
	if n < 0 {
		return
	}
	t.header = slices.Delete(slices.Clone(t.header), n, n+1)
	for r, row := range t.rows {
		t.rows[r] = slices.Delete(row, n, n+1)
	}
}

func (t *table) write(w io.Writer) error {
	widths := t.widths()
	var b strings.Builder
	for r, row := range append([][]string{t.header}, t.rows...) {
		for n, cell := range row {
			text := cell
			if t.paint != nil && r > 0 {
				text = t.paint(n, cell)
			}
			b.WriteString(text)
			if n < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[n]-utf8.RuneCountInString(cell)+t.space()))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printable is text without control characters: what a proxy reports must not move the cursor of whoever reads it.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// wrap breaks text at blanks into lines of at most width, each after the indent. A longer word has a line of its own.
func wrap(text, indent string, width int) string {
	var b strings.Builder
	for paragraph := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		line := indent
		for word := range strings.FieldsSeq(printable(paragraph)) {
			if line != indent && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
				b.WriteString(line + "\n")
				line = indent
			}
			if line != indent {
				line += " "
			}
			line += word
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// fold wraps each line of text that is too long, and leaves the others and their indents as they are.
func fold(text string, width int) string {
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		if utf8.RuneCountInString(line) <= width {
			b.WriteString(line + "\n")
			continue
		}
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		b.WriteString(wrap(line, indent, width))
	}
	return b.String()
}
