package inject

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
)

// jsonNode is a JSON value with the order of its fields and the spelling of its strings and numbers.
type jsonNode struct {
	kind byte   // '{', '[' or 0 for anything else
	raw  string // of a string, number, true, false or null
	keys []string
	kids []*jsonNode
}

// parseJSON reads one value; data must be valid JSON.
func parseJSON(data []byte) *jsonNode {
	p := jsonParser{data: data}
	return p.value()
}

type jsonParser struct {
	data []byte
	at   int
}

func (p *jsonParser) space() byte {
	for p.at < len(p.data) && (p.data[p.at] == ' ' || p.data[p.at] == '\t' || p.data[p.at] == '\n' || p.data[p.at] == '\r') {
		p.at++
	}
	if p.at == len(p.data) {
		return 0
	}
	return p.data[p.at]
}

func (p *jsonParser) value() *jsonNode {
	switch c := p.space(); c {
	case '{', '[':
		n := &jsonNode{kind: c}
		for p.at++; ; {
			switch p.space() {
			case '}', ']', 0:
				p.at++
				return n
			case ',':
				p.at++
				continue
			}
			if c == '{' {
				n.keys = append(n.keys, unquote(p.scalar()))
				p.space()
				p.at++ // the colon
			}
			n.kids = append(n.kids, p.value())
		}
	default:
		return &jsonNode{raw: p.scalar()}
	}
}

// scalar is the text up to the end of a string, or of a word.
func (p *jsonParser) scalar() string {
	start := p.at
	if p.at < len(p.data) && p.data[p.at] == '"' {
		for p.at++; p.at < len(p.data) && p.data[p.at] != '"'; p.at++ {
			if p.data[p.at] == '\\' {
				p.at++
			}
		}
		p.at = min(p.at+1, len(p.data))
		return string(p.data[start:p.at])
	}
	for p.at < len(p.data) && !strings.ContainsRune(" \t\r\n,:]}", rune(p.data[p.at])) {
		p.at++
	}
	return string(p.data[start:p.at])
}

func unquote(raw string) string {
	if len(raw) > 1 && strings.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	var s string
	_ = json.Unmarshal([]byte(raw), &s) // the whole was valid
	return s
}

func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always has a form
	return strings.TrimSuffix(b.String(), "\n")
}

// write prints the value; an indent of "" gives one line.
func (n *jsonNode) write(b *bytes.Buffer, indent, margin string) {
	if n.kind == 0 {
		b.WriteString(n.raw)
		return
	}
	end := map[byte]byte{'{': '}', '[': ']'}[n.kind]
	b.WriteByte(n.kind)
	inner := margin + indent
	for i, kid := range n.kids {
		if i > 0 {
			b.WriteByte(',')
		}
		if indent != "" {
			b.WriteString("\n" + inner)
		}
		if n.kind == '{' {
			b.WriteString(quote(n.keys[i]))
			b.WriteByte(':')
			if indent != "" {
				b.WriteByte(' ')
			}
		}
		kid.write(b, indent, inner)
	}
	if indent != "" && len(n.kids) > 0 {
		b.WriteString("\n" + margin)
	}
	b.WriteByte(end)
}

// yaml is the value as a YAML tree in block style.
func (n *jsonNode) yaml() *yamlv3.Node {
	switch {
	case n.kind == '{':
		out := &yamlv3.Node{Kind: yamlv3.MappingNode, Tag: "!!map", Content: make([]*yamlv3.Node, 0, 2*len(n.kids))}
		for i, kid := range n.kids {
			out.Content = append(out.Content, scalar(n.keys[i]), kid.yaml())
		}
		return out
	case n.kind == '[':
		out := &yamlv3.Node{Kind: yamlv3.SequenceNode, Tag: "!!seq", Content: make([]*yamlv3.Node, 0, len(n.kids))}
		for _, kid := range n.kids {
			out.Content = append(out.Content, kid.yaml())
		}
		return out
	case strings.HasPrefix(n.raw, `"`):
		return scalar(unquote(n.raw))
	case n.raw == "null":
		return &yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!null", Value: n.raw}
	case n.raw == "true" || n.raw == "false":
		return &yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!bool", Value: n.raw}
	case strings.ContainsAny(n.raw, ".eE"):
		return &yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!float", Value: n.raw}
	}
	return &yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!int", Value: n.raw}
}

// apply carries out one operation. Objects that are missing on the way are made, as in the YAML form.
func (n *jsonNode) apply(op Op) error {
	steps := strings.Split(strings.TrimPrefix(op.Path, "/"), "/")
	at := n
	for _, step := range steps[:len(steps)-1] {
		next := at.child(unescape(step))
		if next == nil {
			return fmt.Errorf("apply %s %s: there is nothing at %q", op.Op, op.Path, step)
		}
		at = next
	}
	last := unescape(steps[len(steps)-1])
	var value *jsonNode
	if op.Op != "remove" {
		data, err := json.Marshal(op.Value)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", op.Op, op.Path, err)
		}
		value = parseJSON(data)
	}
	if at.kind == '[' {
		i, ok := place(last, len(at.kids), op.Op == "add")
		if !ok {
			return fmt.Errorf("apply %s %s: there is no place %q", op.Op, op.Path, last)
		}
		switch op.Op {
		case "remove":
			at.kids = slices.Delete(at.kids, i, i+1)
		case "replace":
			at.kids[i] = value
		default:
			at.kids = slices.Insert(at.kids, i, value)
		}
		return nil
	}
	i := slices.Index(at.keys, last)
	switch {
	case op.Op == "remove" && i >= 0:
		at.keys, at.kids = slices.Delete(at.keys, i, i+1), slices.Delete(at.kids, i, i+1)
	case op.Op == "remove":
	case i >= 0:
		at.kids[i] = value
	default:
		at.keys, at.kids = append(at.keys, last), append(at.kids, value)
	}
	return nil
}

// place is the index that a step of a path means; one past the end and "-" are places to add.
func place(step string, length int, adding bool) (int, bool) {
	if step == "-" && adding {
		return length, true
	}
	i, err := strconv.Atoi(step)
	return i, err == nil && i >= 0 && (i < length || adding && i == length)
}

func (n *jsonNode) child(step string) *jsonNode {
	if n.kind == '[' {
		if i, ok := place(step, len(n.kids), false); ok {
			return n.kids[i]
		}
		return nil
	}
	if n.kind != '{' {
		return nil
	}
	if i := slices.Index(n.keys, step); i >= 0 {
		if n.kids[i].raw == "null" {
			n.kids[i] = &jsonNode{kind: '{'}
		}
		return n.kids[i]
	}
	made, i := &jsonNode{kind: '{'}, len(n.keys)
	if spec := slices.Index(n.keys, "spec"); step == "metadata" && spec >= 0 {
		i = spec
	}
	n.keys, n.kids = slices.Insert(n.keys, i, step), slices.Insert(n.kids, i, made)
	return made
}

// applyToJSON applies a patch to a document that is JSON: it stays JSON, with its order and its indentation.
func applyToJSON(doc []byte, ops []Op) ([]byte, error) {
	root := parseJSON(doc)
	for _, op := range ops {
		if err := root.apply(op); err != nil {
			return nil, err
		}
	}
	content := bytes.TrimSpace(doc)
	start := bytes.Index(doc, content)
	var b bytes.Buffer
	b.Write(doc[:start])
	root.write(&b, indentOf(content), "")
	b.Write(doc[start+len(content):])
	if bytes.Contains(content, []byte("\r\n")) {
		return toCRLF(b.Bytes()), nil
	}
	return b.Bytes(), nil
}

// indentOf is what a JSON text puts before a field of its outermost object, "" when it is on one line.
func indentOf(content []byte) string {
	_, rest, found := bytes.Cut(content, []byte("\n"))
	if !found {
		return ""
	}
	if indent := rest[:len(rest)-len(bytes.TrimLeft(rest, " \t"))]; len(indent) > 0 {
		return string(indent)
	}
	return "  "
}

// toCRLF ends every line as Windows does.
func toCRLF(text []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
}
