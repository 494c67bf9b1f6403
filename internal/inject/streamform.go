package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// isJSON reports whether the document is JSON, which kubectl reads by other rules than YAML.
func (d Document) isJSON() bool {
	text := bytes.TrimSpace(d.After)
	return len(text) > 0 && (text[0] == '{' || text[0] == '[') && json.Valid(text)
}

// YAML is the document with its sidecars as YAML: one that is YAML already stays as it is.
func (d Document) YAML() ([]byte, error) {
	if !d.isJSON() {
		return d.After, nil
	}
	return textStyle{indent: 2, compact: true}.encode(parseJSON(bytes.TrimSpace(d.After)).yaml())
}

// JSON is the document with its sidecars as indented JSON, fields in the document's order; nil for comments alone.
func (d Document) JSON() ([]byte, error) {
	if onlyComments(d.After) {
		return nil, nil
	}
	data := bytes.TrimSpace(d.After)
	var root yamlv3.Node
	if !d.isJSON() {
		var err error
		if data, err = yaml.YAMLToJSON(d.After); err != nil {
			return nil, fmt.Errorf("document %d: %w", d.Number, errors.New(yamlError(err)))
		}
		_ = yamlv3.Unmarshal(d.After, &root) // without it the fields are in the order of the alphabet
	}
	tree := parseJSON(data)
	if len(root.Content) == 1 {
		tree.order(root.Content[0])
	}
	var b bytes.Buffer
	tree.write(&b, "  ", "")
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// order puts fields into the order in which a YAML tree has them; those that it does not have come last.
func (n *jsonNode) order(like *yamlv3.Node) {
	if like.Kind == yamlv3.AliasNode {
		like = like.Alias
	}
	switch {
	case n.kind == '[' && like.Kind == yamlv3.SequenceNode:
		for i := range min(len(n.kids), len(like.Content)) {
			n.kids[i].order(like.Content[i])
		}
	case n.kind == '{' && like.Kind == yamlv3.MappingNode:
		var keys []string
		var kids []*jsonNode
		for i := 0; i+1 < len(like.Content); i += 2 {
			if at := slices.Index(n.keys, like.Content[i].Value); at >= 0 && !slices.Contains(keys, n.keys[at]) {
				n.kids[at].order(like.Content[i+1])
				keys, kids = append(keys, n.keys[at]), append(kids, n.kids[at])
			}
		}
		for i, key := range n.keys {
			if !slices.Contains(keys, key) {
				keys, kids = append(keys, key), append(kids, n.kids[i])
			}
		}
		n.keys, n.kids = keys, kids
	}
}
