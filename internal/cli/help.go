package cli

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// layOut makes the help of every command fit a terminal of plainWidth columns.
func (a *app) layOut(root *cobra.Command) {
	// The flag package lets a line run up to five columns over, so that no single word is left for the next.
	const wrapped = ".FlagUsagesWrapped 75"
	usage := strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", wrapped)
	root.SetUsageTemplate(strings.ReplaceAll(usage, " for more information about a command.", " for more."))
	a.reflowAll(root)
}

// reflowAll lays out the texts of a command and of those below it.
func (a *app) reflowAll(cmd *cobra.Command) {
	cmd.Long = a.reflow(cmd.Long)
	for _, below := range cmd.Commands() {
		a.reflowAll(below)
	}
}

// quoted is a command of this program in a text.
var quoted = regexp.MustCompile("`selvage ([^`]+)`")

// reflow breaks the paragraphs of a text anew, and names the program as it was called.
func (a *app) reflow(text string) string {
	text = quoted.ReplaceAllString(text, "`"+a.display()+" $1`")
	var paragraphs []string
	for p := range strings.SplitSeq(text, "\n\n") {
		paragraphs = append(paragraphs, wrap(strings.ReplaceAll(p, "\n", " "), "", plainWidth-1))
	}
	return strings.TrimSpace(strings.Join(paragraphs, "\n"))
}

// gap is what stands between a command and what is said about it in a block of examples.
var gap = regexp.MustCompile(` {3,}`)

// examples lays out a block of example lines, with the program's name as it was called. What is said about a command stands
// behind it where all of the block fits, else above it.
func (a *app) examples(block string) string {
	var commands, notes []string
	widest, fits := 0, true
	for line := range strings.SplitSeq(strings.TrimSpace(block), "\n") {
		parts := gap.Split(strings.TrimSpace(line), 2)
		command, note := parts[0], ""
		if len(parts) == 2 {
			note = "# " + parts[1]
		}
		command = strings.TrimPrefix(strings.ReplaceAll(" "+command, " selvage ", " "+a.display()+" "), " ")
		commands, notes = append(commands, command), append(notes, note)
		widest = max(widest, utf8.RuneCountInString(command))
	}
	for _, note := range notes {
		fits = fits && 2+widest+2+utf8.RuneCountInString(note) < plainWidth
	}
	var lines []string
	for n, command := range commands {
		switch {
		case notes[n] == "":
			lines = append(lines, "  "+command)
		case fits:
			lines = append(lines, "  "+command+strings.Repeat(" ", widest+2-utf8.RuneCountInString(command))+notes[n])
		default:
			lines = append(lines, "  "+notes[n], "  "+command)
		}
	}
	return strings.Join(lines, "\n")
}
