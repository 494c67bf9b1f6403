package inject

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
)

// textStyle is how the author of a document lays YAML out.
type textStyle struct {
	indent  int  // of a mapping in a mapping
	compact bool // "- " stands below the first letter of its key
	crlf    bool
}

// styleOf looks at how the document does it mostly.
func styleOf(root *yamlv3.Node) textStyle {
	var compact, indented int
	steps := map[int]int{}
	var walk func(*yamlv3.Node)
	walk = func(n *yamlv3.Node) {
		for i := 0; n.Kind == yamlv3.MappingNode && i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if value.Style&yamlv3.FlowStyle != 0 || len(value.Content) == 0 || value.Content[0].Line <= key.Line {
				continue
			}
			switch value.Kind {
			case yamlv3.SequenceNode:
				if value.Content[0].Column <= key.Column+len("- ") {
					compact++
				} else {
					indented++
				}
			case yamlv3.MappingNode:
				steps[value.Content[0].Column-key.Column]++
			default: // one line
			}
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(root)
	s := textStyle{indent: 2, compact: compact >= indented}
	for step, n := range steps {
		if step > 1 && step < 10 && (n > steps[s.indent] || n == steps[s.indent] && step < s.indent) {
			s.indent = step
		}
	}
	return s
}

// encode writes a tree.
func (s textStyle) encode(n *yamlv3.Node) ([]byte, error) {
	var out bytes.Buffer
	enc := yamlv3.NewEncoder(&out)
	enc.SetIndent(s.indent)
	if s.compact {
		enc.CompactSeqIndent()
	}
	if err := enc.Encode(n); err != nil {
		return nil, fmt.Errorf("write document: %w", err)
	}
	return out.Bytes(), nil
}

// errNotKept says that the text of a document cannot be kept around a change; it is written anew then.
var errNotKept = errors.New("the text cannot be kept")

// keepText writes the changed tree with the source's lines wherever nothing changed.
func (t *tree) keepText(doc []byte, style textStyle) (out []byte, err error) {
	if bytes.ContainsAny(doc, "\u0085\u2028\u2029") || bytes.Count(doc, []byte("\r")) != bytes.Count(doc, []byte("\r\n")) {
		return nil, errNotKept // what ends a line is not the same for everybody
	}
	k := &keeper{tree: t, style: style, eol: "\n"}
	if usesCRLF(doc) {
		k.eol = "\r\n"
	}
	for line := range bytes.Lines(doc) {
		k.lines = append(k.lines, string(line))
	}
	body := t.root.Content[0]
	if !k.isKept(body) {
		return nil, errNotKept
	}
	end := len(k.lines)
	for i, line := range k.lines {
		if strings.HasPrefix(line, "...") && strings.TrimSpace(line[3:]) == "" {
			end = i
			break
		}
	}
	if err := k.collection(body, 0, end); err != nil {
		return nil, err
	}
	k.copy(end, len(k.lines))
	out = k.out.Bytes()
	if !bytes.HasSuffix(doc, []byte("\n")) {
		out = bytes.TrimSuffix(out, []byte(k.eol))
	}
	return out, nil
}

// keeper writes a document; lines are the source's, each with its end.
type keeper struct {
	tree  *tree
	style textStyle
	eol   string
	lines []string
	out   bytes.Buffer
}

// isKept reports whether a changed node can be written entry by entry: a collection in block style that has an entry left.
func (k *keeper) isKept(n *yamlv3.Node) bool {
	before, touched := k.tree.before[n]
	if !touched || n.Line == 0 || k.tree.flow[n] || len(before) == 0 || n.Kind != yamlv3.MappingNode && n.Kind != yamlv3.SequenceNode {
		return false
	}
	for _, c := range n.Content {
		if c.Line > 0 {
			return true
		}
	}
	return false
}

func (k *keeper) copy(from, to int) {
	for ; from < to; from++ {
		k.write(k.lines[from])
	}
}

func (k *keeper) write(text string) {
	if n := k.out.Len(); n > 0 && k.out.Bytes()[n-1] != '\n' {
		k.out.WriteString(k.eol) // the source's last line had no end
	}
	k.out.WriteString(text)
}

// entry is one of a collection's in the source: its first node (the key, or the item), and where it stands.
type entry struct {
	first  *yamlv3.Node
	line   int // index into lines
	column int // of the key or the dash, from 0
}

// entries finds where the collection's entries begin.
func (k *keeper) entries(n *yamlv3.Node, from, to int) ([]entry, error) {
	before, step := k.tree.before[n], 1
	if n.Kind == yamlv3.MappingNode {
		step = 2
	}
	var list []entry
	for i := 0; i < len(before); i += step {
		e := entry{first: before[i], line: before[i].Line - 1, column: before[i].Column - 1}
		last := from - 1
		if len(list) > 0 {
			last = list[len(list)-1].line
		}
		if e.line <= last || e.line >= to || e.column < 0 || e.column > len(k.lines[e.line]) {
			return nil, errNotKept
		}
		prefix := k.lines[e.line][:e.column]
		if n.Kind == yamlv3.SequenceNode {
			prefix = strings.TrimRight(prefix, " ")
			if !strings.HasSuffix(prefix, "-") {
				return nil, errNotKept
			}
			e.column = len(prefix) - 1
			prefix = prefix[:e.column]
		}
		if strings.Trim(prefix, " -") != "" {
			return nil, errNotKept
		}
		list = append(list, e)
	}
	return list, nil
}

// collection writes a changed collection, whose lines are from up to to.
func (k *keeper) collection(n *yamlv3.Node, from, to int) error {
	list, err := k.entries(n, from, to)
	if err != nil {
		return err
	}
	after, step := n.Content, 1
	if n.Kind == yamlv3.MappingNode {
		step = 2
	}
	at := 0
	added := func() error { // what is new before the next entry of the source
		for ; at < len(after) && after[at].Line == 0; at += step {
			if err := k.add(n.Kind, after[at:at+step], list[0].column); err != nil {
				return err
			}
		}
		return nil
	}
	if at < len(after) && after[at].Line == 0 && strings.TrimSpace(k.lines[list[0].line][:list[0].column]) != "" {
		return errNotKept // the first entry stands behind a dash: nothing can come before it
	}
	if err := added(); err != nil {
		return err
	}
	k.copy(from, list[0].line)
	for i, e := range list {
		next := to
		if i+1 < len(list) {
			next = list[i+1].line
		}
		end := k.contentEnd(e, next)
		switch {
		case at < len(after) && after[at] == e.first:
			if err := k.entry(n.Kind, after[at:at+step], e, end); err != nil {
				return err
			}
			at += step
			if err := added(); err != nil {
				return err
			}
		case strings.TrimSpace(k.lines[e.line][:e.column]) != "":
			return errNotKept // what is behind a dash cannot go alone
		default: // it was removed, or its place has something new
			if err := added(); err != nil {
				return err
			}
		}
		k.copy(end, next)
	}
	if at != len(after) {
		return errNotKept
	}
	return nil
}

// contentEnd is where an entry ends: blank lines, and comments that stand no deeper, belong to what follows.
func (k *keeper) contentEnd(e entry, next int) int {
	for ; next > e.line+1; next-- {
		line := strings.TrimSpace(k.lines[next-1])
		indent := len(k.lines[next-1]) - len(strings.TrimLeft(k.lines[next-1], " "))
		if line != "" && (line[0] != '#' || indent > e.column) {
			break
		}
	}
	return next
}

// entry writes one entry that was in the source, its lines up to end.
func (k *keeper) entry(kind yamlv3.Kind, nodes []*yamlv3.Node, e entry, end int) error {
	value := nodes[len(nodes)-1]
	_, touched := k.tree.before[value]
	switch {
	case value.Line > 0 && !touched:
		k.copy(e.line, end)
		return nil
	case k.isKept(value):
		first := k.tree.before[value][0].Line - 1
		if first == e.line && kind == yamlv3.MappingNode {
			return errNotKept
		}
		if first > e.line {
			k.copy(e.line, e.line+1)
			return k.collection(value, e.line+1, end)
		}
		return k.collection(value, e.line, end)
	}
	text, err := k.render(kind, nodes, e.column)
	if err != nil {
		return err
	}
	k.write(k.lines[e.line][:e.column] + text[e.column:])
	return nil
}

// add writes an entry that is new.
func (k *keeper) add(kind yamlv3.Kind, nodes []*yamlv3.Node, column int) error {
	text, err := k.render(kind, nodes, column)
	if err != nil {
		return err
	}
	k.write(text)
	return nil
}

// render is an entry as text at a column. The comments before and after it are no part of it: they stay where they are.
func (k *keeper) render(kind yamlv3.Kind, nodes []*yamlv3.Node, column int) (string, error) {
	alone := &yamlv3.Node{Kind: kind}
	for _, n := range nodes {
		c := *n
		c.HeadComment, c.FootComment = "", ""
		alone.Content = append(alone.Content, &c)
	}
	var plain bytes.Buffer
	if k.style.block(&plain, alone, column) {
		text := strings.Repeat(" ", column) + plain.String()
		if k.eol != "\n" {
			text = strings.ReplaceAll(text, "\n", k.eol)
		}
		return text, nil
	}
	text, err := k.style.encode(alone)
	if err != nil {
		return "", err
	}
	margin := strings.Repeat(" ", column)
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if line != "" {
			b.WriteString(margin)
		}
		b.WriteString(line + k.eol)
	}
	return b.String(), nil
}

// block writes a tree that came from JSON as the encoder of the YAML library would, in a fraction of its time. It reports false,
// with nothing to be used, for what it does not know: comments, styles, texts of several lines.
func (s textStyle) block(b *bytes.Buffer, n *yamlv3.Node, margin int) bool {
	pad := strings.Repeat(" ", margin)
	switch {
	case n.Line != 0 || n.Style&^yamlv3.DoubleQuotedStyle != 0 || n.HeadComment+n.LineComment+n.FootComment+n.Anchor != "":
		return false
	case n.Kind == yamlv3.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if i > 0 {
				b.WriteString(pad)
			}
			if key.Line != 0 || !s.scalar(b, key) {
				return false
			}
			b.WriteByte(':')
			inner := margin + s.indent
			if value.Kind == yamlv3.SequenceNode && s.compact {
				inner = margin
			}
			switch {
			case len(value.Content) > 0:
				b.WriteString("\n" + strings.Repeat(" ", inner))
			default:
				b.WriteByte(' ')
			}
			if !s.block(b, value, inner) {
				return false
			}
		}
		if len(n.Content) == 0 {
			b.WriteString("{}\n")
		}
		return true
	case n.Kind == yamlv3.SequenceNode:
		for i, item := range n.Content {
			if i > 0 {
				b.WriteString(pad)
			}
			b.WriteString("- ")
			if !s.block(b, item, margin+len("- ")) {
				return false
			}
		}
		if len(n.Content) == 0 {
			b.WriteString("[]\n")
		}
		return true
	case n.Kind == yamlv3.ScalarNode:
		ok := s.scalar(b, n)
		b.WriteByte('\n')
		return ok
	}
	return false
}

// scalar writes one value without the end of its line.
func (s textStyle) scalar(b *bytes.Buffer, n *yamlv3.Node) bool {
	v := n.Value
	switch {
	case n.Tag != "!!str":
		b.WriteString(v)
		return n.Tag == "!!int" || n.Tag == "!!bool" || n.Tag == "!!null"
	case isPlain(v):
		b.WriteString(v)
		return true
	case v == "":
		b.WriteString(`""`)
		return true
	}
	for i := range len(v) {
		if v[i] < ' ' || v[i] > '~' {
			return false
		}
	}
	switch {
	case n.Style != 0:
		b.WriteString(quote(v))
		return true
	case strings.IndexByte(`{["*&!%@|>`, v[0]) >= 0:
		b.WriteString("'" + strings.ReplaceAll(v, "'", "''") + "'")
		return true
	}
	text, err := s.encode(n)
	if err != nil || bytes.Count(text, []byte("\n")) != 1 {
		return false
	}
	b.Write(text[:len(text)-1])
	return true
}

// isPlain reports whether a text needs no quotes in any YAML: it begins with a letter, a slash or a dash before a letter, holds
// nothing that means something, and is no word for a truth or nothing; or it is a quantity or a list of numbers.
func isPlain(v string) bool {
	const longestWord = 5 // false
	if v == "" || len(v) <= longestWord && isWord(strings.ToLower(v)) {
		return false
	}
	if unit := strings.TrimLeft(v, "0123456789"); unit != v { // a quantity, a list of ports
		return unit == "m" || unit == "Mi" || unit == "Gi" || unit != "" && strings.Trim(v, "0123456789,") == ""
	}
	letters := strings.TrimLeft(v, "-")
	if letters == "" || strings.HasPrefix(v, "---") || letters[0] != '/' && (letters[0]|0x20 < 'a' || letters[0]|0x20 > 'z') {
		return false
	}
	for i := range len(v) {
		switch c := v[i]; {
		case c|0x20 >= 'a' && c|0x20 <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == '/', c == '=':
		case c == ':' && i+1 < len(v) && v[i+1] != ' ':
		default:
			return false
		}
	}
	return true
}

func isWord(v string) bool {
	switch v {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return true
	}
	return false
}
