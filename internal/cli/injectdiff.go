package cli

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// edit is one line of the difference of two texts: ' ' in both, '-' in the first, '+' in the second.
type edit struct {
	kind byte
	line string
}

// writeDiff writes what injection changes, as a patch that `patch` takes.
func (a *app) writeDiff(list []manifest) error {
	var out bytes.Buffer
	for _, m := range list {
		var edits []edit
		for _, d := range m.docs {
			for line := range strings.Lines(string(d.Head)) {
				edits = append(edits, edit{' ', line})
			}
			edits = append(edits, differ(slices.Collect(strings.Lines(string(d.Before))), slices.Collect(strings.Lines(string(d.After))))...)
		}
		if slices.ContainsFunc(edits, func(e edit) bool { return e.kind != ' ' }) {
			fmt.Fprintf(&out, "--- %s\n+++ %s\n", m.name, m.name)
			writeHunks(&out, edits)
		}
	}
	text := out.String()
	if a.color(a.Stdout) {
		text = paintDiff(text)
	}
	_, err := fmt.Fprint(a.Stdout, text)
	return err
}

func paintDiff(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		color := map[byte]string{'+': "\x1b[32m", '-': "\x1b[31m", '@': "\x1b[36m"}[line[0]]
		if color == "" {
			b.WriteString(line)
			continue
		}
		b.WriteString(color + strings.TrimSuffix(line, "\n") + "\x1b[0m\n")
	}
	return b.String()
}

// writeHunks writes the edits with three lines around each change.
func writeHunks(out *bytes.Buffer, edits []edit) {
	const around = 3
	before, after := 1, 1 // lines of the two texts at edits[i]
	for i := 0; i < len(edits); {
		next := i
		for next < len(edits) && edits[next].kind == ' ' {
			next++
		}
		if next == len(edits) {
			return
		}
		start := max(i, next-around)
		before, after = before+start-i, after+start-i
		end, same := next, 0
		for end < len(edits) && same <= 2*around {
			if edits[end].kind == ' ' {
				same++
			} else {
				same = 0
			}
			end++
		}
		end -= max(same-around, 0)
		removed, added := 0, 0
		for _, e := range edits[start:end] {
			if e.kind != '+' {
				removed++
			}
			if e.kind != '-' {
				added++
			}
		}
		fmt.Fprintf(out, "@@ -%s +%s @@\n", hunkRange(before, removed), hunkRange(after, added))
		for _, e := range edits[start:end] {
			out.WriteByte(e.kind)
			out.WriteString(e.line)
			if !strings.HasSuffix(e.line, "\n") {
				out.WriteString("\n\\ No newline at end of file\n")
			}
		}
		before, after, i = before+removed, after+added, end
	}
}

func hunkRange(line, count int) string {
	if count == 0 {
		line--
	}
	if count == 1 {
		return fmt.Sprint(line)
	}
	return fmt.Sprintf("%d,%d", line, count)
}

// differ compares two texts by lines: at the lines that each has once it is cut, in between it is compared line by line. Its
// time grows with the texts' length, not with its square.
func differ(a, b []string) (out []edit) {
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		out = append(out, edit{' ', a[head]})
		head++
	}
	a, b = a[head:], b[head:]
	tail := 0
	for tail < len(a) && tail < len(b) && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	out = append(out, differMiddle(a[:len(a)-tail], b[:len(b)-tail])...)
	for _, line := range a[len(a)-tail:] {
		out = append(out, edit{' ', line})
	}
	return out
}

func differMiddle(a, b []string) (out []edit) {
	const small = 1 << 20 // cells of the table of differLines
	pairs := anchors(a, b)
	switch {
	case len(a) == 0 || len(b) == 0:
	case len(pairs) > 0:
		i, j := 0, 0
		for _, p := range pairs {
			out = append(out, differ(a[i:p[0]], b[j:p[1]])...)
			out = append(out, edit{' ', a[p[0]]})
			i, j = p[0]+1, p[1]+1
		}
		return append(out, differ(a[i:], b[j:])...)
	case len(a)*len(b) <= small:
		return differLines(a, b)
	}
	for _, line := range a {
		out = append(out, edit{'-', line})
	}
	for _, line := range b {
		out = append(out, edit{'+', line})
	}
	return out
}

// anchors are the longest run of lines, in both orders, that each text has once: pairs of their places.
func anchors(a, b []string) [][2]int {
	type places struct{ a, b, at int } // how often, and where in b
	seen := map[string]*places{}
	for _, line := range a {
		if seen[line] == nil {
			seen[line] = &places{}
		}
		seen[line].a++
	}
	for j, line := range b {
		if p := seen[line]; p != nil {
			p.b++
			p.at = j
		}
	}
	var candidates [][2]int
	for i, line := range a {
		if p := seen[line]; p.a == 1 && p.b == 1 {
			candidates = append(candidates, [2]int{i, p.at})
		}
	}
	// The longest increasing run, by the ends of the runs of each length.
	var ends []int
	previous := make([]int, len(candidates))
	for n, c := range candidates {
		at, _ := slices.BinarySearchFunc(ends, c[1], func(end, j int) int { return candidates[end][1] - j })
		previous[n] = -1
		if at > 0 {
			previous[n] = ends[at-1]
		}
		if at == len(ends) {
			ends = append(ends, n)
		} else {
			ends[at] = n
		}
	}
	var run [][2]int
	if len(ends) > 0 {
		for n := ends[len(ends)-1]; n >= 0; n = previous[n] {
			run = append(run, candidates[n])
		}
	}
	slices.Reverse(run)
	return run
}

// differLines finds the longest common run of lines by its table.
func differLines(a, b []string) (out []edit) {
	width := len(b) + 1
	common := make([]int32, (len(a)+1)*width)
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i*width+j] = common[(i+1)*width+j+1] + 1
			} else {
				common[i*width+j] = max(common[(i+1)*width+j], common[i*width+j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, edit{' ', a[i]})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || common[(i+1)*width+j] >= common[i*width+j+1]):
			out = append(out, edit{'-', a[i]})
			i++
		default:
			out = append(out, edit{'+', b[j]})
			j++
		}
	}
	return out
}
