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

// applyToYAML applies a patch to a document and keeps the order of its fields and its comments. asJSON is the same document as
// JSON, for documents that are JSON, or that use anchors: a change behind an anchor would show wherever it is used.
func applyToYAML(doc, asJSON []byte, ops []Op) ([]byte, error) {
	isJSON := json.Valid(doc)
	source := doc
	var root yamlv3.Node
	if err := yamlv3.Unmarshal(doc, &root); err != nil || hasAlias(&root) {
		// Also where YAML 1.1 lets through what YAML 1.2 does not.
		source, root = asJSON, yamlv3.Node{}
	}
	if isJSON {
		return patchJSON(asJSON, ops)
	}
	if root.Kind == 0 {
		if err := yamlv3.Unmarshal(source, &root); err != nil {
			return nil, fmt.Errorf("read document again: %w", err)
		}
		blockStyle(&root)
	}
	compact := compactSequences(&root) // before ours come in
	for _, op := range ops {
		if err := applyOp(root.Content[0], op); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	enc := yamlv3.NewEncoder(&out)
	enc.SetIndent(2)
	if compact {
		enc.CompactSeqIndent()
	}
	if err := enc.Encode(&root); err != nil {
		return nil, fmt.Errorf("write document: %w", err)
	}
	return out.Bytes(), nil
}

// patchJSON is for documents that are JSON: they stay JSON.
func patchJSON(asJSON []byte, ops []Op) ([]byte, error) {
	var root yamlv3.Node
	if err := yamlv3.Unmarshal(asJSON, &root); err != nil {
		return nil, fmt.Errorf("read document again: %w", err)
	}
	for _, op := range ops {
		if err := applyOp(root.Content[0], op); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	writeJSON(&out, root.Content[0])
	var indented bytes.Buffer
	if err := json.Indent(&indented, out.Bytes(), "", "  "); err != nil {
		return nil, fmt.Errorf("write document: %w", err)
	}
	return append(indented.Bytes(), '\n'), nil
}

// writeJSON writes a node that came from JSON, in its order.
func writeJSON(out *bytes.Buffer, n *yamlv3.Node) {
	switch n.Kind {
	case yamlv3.MappingNode:
		out.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				out.WriteByte(',')
			}
			writeString(out, n.Content[i].Value)
			out.WriteByte(':')
			writeJSON(out, n.Content[i+1])
		}
		out.WriteByte('}')
	case yamlv3.SequenceNode:
		out.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				out.WriteByte(',')
			}
			writeJSON(out, item)
		}
		out.WriteByte(']')
	default:
		if n.Tag == "!!str" || n.Style&(yamlv3.DoubleQuotedStyle|yamlv3.SingleQuotedStyle) != 0 {
			writeString(out, n.Value)
			return
		}
		out.WriteString(n.Value)
	}
}

func writeString(out *bytes.Buffer, s string) {
	data, _ := json.Marshal(s) // a string always has a form
	out.Write(data)
}

// hasAlias reports whether the document uses an anchor.
func hasAlias(n *yamlv3.Node) bool {
	return n.Kind == yamlv3.AliasNode || slices.ContainsFunc(n.Content, hasAlias)
}

// blockStyle makes a tree that was read from JSON look like YAML.
func blockStyle(n *yamlv3.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// compactSequences reports whether the document's author writes "- " below the key's first letter rather than indented.
func compactSequences(n *yamlv3.Node) bool {
	var compact, indented int
	var walk func(*yamlv3.Node)
	walk = func(n *yamlv3.Node) {
		for i := 0; n.Kind == yamlv3.MappingNode && i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if value.Kind == yamlv3.SequenceNode && value.Style&yamlv3.FlowStyle == 0 && len(value.Content) > 0 && value.Content[0].Column > 0 {
				if value.Content[0].Column <= key.Column+len("- ") {
					compact++
				} else {
					indented++
				}
			}
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(n)
	return compact >= indented
}

// applyOp applies one operation. Objects that are missing on the way are made: a template need not have metadata, which a pod
// at the API server always has.
func applyOp(root *yamlv3.Node, op Op) error {
	steps := strings.Split(strings.TrimPrefix(op.Path, "/"), "/")
	at := root
	for _, step := range steps[:len(steps)-1] {
		at = descend(at, unescape(step))
		if at == nil {
			return fmt.Errorf("apply %s %s: there is nothing at %q", op.Op, op.Path, step)
		}
	}
	last := unescape(steps[len(steps)-1])
	if op.Op == "remove" {
		for i := 0; i+1 < len(at.Content); i += 2 {
			if at.Content[i].Value == last {
				at.Content = slices.Delete(at.Content, i, i+2)
				return nil
			}
		}
		return nil
	}
	value, err := nodeOf(op.Value)
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", op.Op, op.Path, err)
	}
	if at.Kind == yamlv3.SequenceNode {
		i, err := strconv.Atoi(last)
		if last == "-" {
			i, err = len(at.Content), nil
		}
		if err != nil || i > len(at.Content) {
			return fmt.Errorf("apply %s %s: there is no place %q", op.Op, op.Path, last)
		}
		at.Content = slices.Insert(at.Content, i, value)
		return nil
	}
	set(at, last, value)
	return nil
}

func descend(at *yamlv3.Node, step string) *yamlv3.Node {
	if at.Kind == yamlv3.SequenceNode {
		if i, err := strconv.Atoi(step); err == nil && i < len(at.Content) {
			return at.Content[i]
		}
		return nil
	}
	for i := 0; i+1 < len(at.Content); i += 2 {
		if at.Content[i].Value != step {
			continue
		}
		if value := at.Content[i+1]; value.Kind == yamlv3.ScalarNode { // null
			*value = yamlv3.Node{Kind: yamlv3.MappingNode, Tag: "!!map"}
		}
		return at.Content[i+1]
	}
	made := &yamlv3.Node{Kind: yamlv3.MappingNode, Tag: "!!map"}
	if step == "metadata" { // where people look for it: before spec
		at.Content = slices.Insert(at.Content, 0, scalar(step), made)
	} else {
		at.Content = append(at.Content, scalar(step), made)
	}
	return made
}

// set replaces a field, with its comments kept, or adds it at the end.
func set(at *yamlv3.Node, key string, value *yamlv3.Node) {
	at.Style &^= yamlv3.FlowStyle // {} cannot hold a container that anyone can read
	for i := 0; i+1 < len(at.Content); i += 2 {
		if at.Content[i].Value == key {
			value.LineComment = at.Content[i+1].LineComment
			at.Content[i+1] = value
			return
		}
	}
	at.Content = append(at.Content, scalar(key), value)
}

func scalar(s string) *yamlv3.Node {
	return &yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!str", Value: s}
}

// nodeOf is a value as YAML, by way of its JSON form, which has the API's names of fields.
func nodeOf(value any) (*yamlv3.Node, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var n yamlv3.Node
	if err := yamlv3.Unmarshal(data, &n); err != nil {
		return nil, err
	}
	blockStyle(n.Content[0])
	return n.Content[0], nil
}

func unescape(step string) string {
	return strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
}
