package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
)

// applyToYAML applies a patch to a document of YAML. What the patch does not touch stays byte for byte: comments, blank lines,
// quotes, anchors, the ends of lines. Where the text cannot be kept so (a touched part in flow style at the root, say), the
// document is written anew with its order and comments, and as a last resort from its JSON form. Each of these is read again and
// compared, so that a document is written right or not at all. asJSON is the same document as JSON; root its tree, nil where
// YAML 1.2 does not let through what YAML 1.1 does.
func applyToYAML(doc, asJSON []byte, root *yamlv3.Node, ops []Op) ([]byte, error) {
	if root != nil {
		t := &tree{root: root, before: map[*yamlv3.Node][]*yamlv3.Node{}, flow: map[*yamlv3.Node]bool{}}
		style := styleOf(root)
		if err := t.applyAll(ops); err != nil {
			return nil, err
		}
		if out, err := t.keepText(doc, style); err == nil && t.reads(out) {
			return out, nil
		}
		if out, err := style.encode(root); err == nil {
			if style.crlf = usesCRLF(doc); style.crlf {
				out = toCRLF(out)
			}
			if t.reads(out) {
				return out, nil
			}
		}
	}
	fresh := parseJSON(asJSON)
	for _, op := range ops {
		if err := fresh.apply(op); err != nil {
			return nil, err
		}
	}
	tree := fresh.yaml()
	out, err := textStyle{indent: 2}.encode(tree)
	if err != nil {
		return nil, err
	}
	var again yamlv3.Node
	if err := yamlv3.Unmarshal(out, &again); err != nil || len(again.Content) != 1 || !sameTree(tree, again.Content[0]) {
		return nil, errors.New("write document: it does not read as it was written; please report this document")
	}
	if usesCRLF(doc) {
		out = toCRLF(out)
	}
	return out, nil
}

func usesCRLF(doc []byte) bool {
	return 2*bytes.Count(doc, []byte("\r\n")) > bytes.Count(doc, []byte("\n"))
}

// tree is a document that is changed, and what is remembered of its source.
type tree struct {
	root   *yamlv3.Node
	before map[*yamlv3.Node][]*yamlv3.Node // the content of each node on a path of the patch, as it was
	flow   map[*yamlv3.Node]bool           // those of them that were in flow style
}

func (t *tree) applyAll(ops []Op) error {
	for _, op := range ops {
		if err := t.apply(op); err != nil {
			return err
		}
	}
	return nil
}

// touch notes that something in the node is about to change.
func (t *tree) touch(n *yamlv3.Node) {
	if _, known := t.before[n]; known {
		return
	}
	t.before[n] = slices.Clone(n.Content)
	t.flow[n] = n.Style&yamlv3.FlowStyle != 0
	n.Style &^= yamlv3.FlowStyle // {} cannot hold a container that anyone can read
	if n.Anchor != "" {
		// A change here would show wherever the anchor is used: those places get a copy.
		t.replaceAliases(t.root, n)
	}
}

// replaceAliases puts copies where aliases of target are, and reports whether it found any below n.
func (t *tree) replaceAliases(n, target *yamlv3.Node) bool {
	found := false
	for i := 0; i < len(n.Content); i++ {
		child := n.Content[i]
		switch {
		case child.Kind == yamlv3.AliasNode && child.Alias == target:
			t.touch(n)
			n.Content[i] = detached(target)
			found = true
		case t.replaceAliases(child, target):
			t.touch(n)
			found = true
		}
	}
	return found
}

// detached is a copy without place in the source and without anchors.
func detached(n *yamlv3.Node) *yamlv3.Node {
	c := *n
	c.Line, c.Column, c.Anchor = 0, 0, ""
	c.HeadComment, c.LineComment, c.FootComment = "", "", ""
	c.Content = make([]*yamlv3.Node, len(n.Content))
	for i, child := range n.Content {
		c.Content[i] = detached(child)
	}
	return &c
}

// apply carries out one operation. Objects that are missing on the way are made: a template need not have metadata, which a pod
// at the API server always has.
func (t *tree) apply(op Op) error {
	steps := strings.Split(strings.TrimPrefix(op.Path, "/"), "/")
	at := t.root.Content[0]
	t.touch(t.root)
	t.touch(at)
	for _, step := range steps[:len(steps)-1] {
		if at = t.descend(at, unescape(step)); at == nil {
			return fmt.Errorf("apply %s %s: there is nothing at %q", op.Op, op.Path, step)
		}
		t.touch(at)
	}
	last := unescape(steps[len(steps)-1])
	if op.Op == "remove" {
		return removeAt(at, op, last)
	}
	value, err := nodeOf(op.Value)
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", op.Op, op.Path, err)
	}
	if at.Kind == yamlv3.SequenceNode {
		i, ok := place(last, len(at.Content), op.Op == "add")
		if !ok {
			return fmt.Errorf("apply %s %s: there is no place %q", op.Op, op.Path, last)
		}
		if op.Op == "replace" {
			at.Content[i] = value
		} else {
			at.Content = slices.Insert(at.Content, i, value)
		}
		return nil
	}
	if at.Kind != yamlv3.MappingNode {
		return fmt.Errorf("apply %s %s: there is no object to put it into", op.Op, op.Path)
	}
	if i := keyIn(at, last); i >= 0 {
		value.LineComment = at.Content[i+1].LineComment
		at.Content[i+1] = value
	} else {
		at.Content = append(at.Content, scalar(last), value)
	}
	return nil
}

func removeAt(at *yamlv3.Node, op Op, last string) error {
	if at.Kind == yamlv3.SequenceNode {
		i, ok := place(last, len(at.Content), false)
		if !ok {
			return fmt.Errorf("apply %s %s: there is no place %q", op.Op, op.Path, last)
		}
		at.Content = slices.Delete(at.Content, i, i+1)
		return nil
	}
	inlineMerge(at, last, 0)
	if i := keyIn(at, last); i >= 0 {
		at.Content = slices.Delete(at.Content, i, i+2)
	}
	return nil
}

// keyIn is the index of a key in a mapping, or -1.
func keyIn(at *yamlv3.Node, key string) int {
	for i := 0; at.Kind == yamlv3.MappingNode && i+1 < len(at.Content); i += 2 {
		if at.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// descend is the child at a step of a path; an alias there becomes a copy first.
func (t *tree) descend(at *yamlv3.Node, step string) *yamlv3.Node {
	slot := -1
	switch at.Kind {
	case yamlv3.SequenceNode:
		i, ok := place(step, len(at.Content), false)
		if !ok {
			return nil
		}
		slot = i
	case yamlv3.MappingNode:
		inlineMerge(at, step, 0)
		if i := keyIn(at, step); i >= 0 {
			slot = i + 1
		}
	default:
		return nil
	}
	if slot < 0 {
		made, i := &yamlv3.Node{Kind: yamlv3.MappingNode, Tag: "!!map"}, len(at.Content)
		if spec := keyIn(at, "spec"); step == "metadata" && spec >= 0 { // where people look for it
			i = spec
		}
		at.Content = slices.Insert(at.Content, i, scalar(step), made)
		return made
	}
	switch child := at.Content[slot]; child.Kind {
	case yamlv3.AliasNode:
		at.Content[slot] = detached(child.Alias)
	case yamlv3.ScalarNode: // null
		at.Content[slot] = &yamlv3.Node{Kind: yamlv3.MappingNode, Tag: "!!map", LineComment: child.LineComment}
	default:
	}
	return at.Content[slot]
}

// inlineMerge takes merge keys ("<<") out of a mapping where the key comes from them, and puts in what they bring.
func inlineMerge(at *yamlv3.Node, key string, depth int) {
	const deepest = 8 // nobody merges deeper; it bounds what a hostile document can make of it
	merge := keyIn(at, "<<")
	if merge < 0 || depth > deepest || keyIn(at, key) >= 0 {
		return
	}
	source := at.Content[merge+1]
	list := []*yamlv3.Node{source}
	if source.Kind == yamlv3.SequenceNode {
		list = source.Content
	}
	var add []*yamlv3.Node
	for _, from := range list {
		if from.Kind == yamlv3.AliasNode {
			from = from.Alias
		}
		inner := detached(from)
		inlineMerge(inner, key, depth+1)
		for i := 0; inner.Kind == yamlv3.MappingNode && i+1 < len(inner.Content); i += 2 {
			name := inner.Content[i].Value
			if keyIn(at, name) < 0 && !slices.ContainsFunc(add, func(n *yamlv3.Node) bool { return n.Value == name }) {
				add = append(add, inner.Content[i], inner.Content[i+1])
			}
		}
	}
	if slices.ContainsFunc(add, func(n *yamlv3.Node) bool { return n.Value == key }) {
		at.Content = append(slices.Delete(at.Content, merge, merge+2), add...)
	}
}

// scalar is a text. YAML 1.1, by which Kubernetes reads, takes more texts for something else than YAML 1.2, by which they are
// written here: yes, 0777, 1:30.
func scalar(s string) *yamlv3.Node {
	n := &yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!str", Value: s}
	if s != "" && !isPlain(s) && (isWord(strings.ToLower(s)) || strings.IndexByte("0123456789+-.~=<", s[0]) >= 0) && !strings.Contains(s, "\n") {
		n.Style = yamlv3.DoubleQuotedStyle
	}
	return n
}

// nodeOf is a value as YAML, by way of its JSON form, which has the API's names of fields.
func nodeOf(value any) (*yamlv3.Node, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return parseJSON(data).yaml(), nil
}

func unescape(step string) string {
	return strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
}

// reads reports whether the text reads as the tree that it was made of.
func (t *tree) reads(text []byte) bool {
	var again yamlv3.Node
	if err := yamlv3.Unmarshal(text, &again); err != nil {
		return false
	}
	return sameTree(t.root, &again)
}

// sameTree compares what two trees say; style, comments and names of anchors say nothing.
func sameTree(a, b *yamlv3.Node) bool {
	if a.Kind != b.Kind || len(a.Content) != len(b.Content) {
		return false
	}
	switch a.Kind {
	case yamlv3.AliasNode:
		return a.Value == b.Value
	case yamlv3.ScalarNode:
		if a.Value != b.Value || a.ShortTag() != b.ShortTag() {
			return false
		}
	default: // only what they hold counts
	}
	for i := range a.Content {
		if !sameTree(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}
