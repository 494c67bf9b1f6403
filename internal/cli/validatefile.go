package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	yamlnode "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/validate"
	_ "github.com/selvage-mesh/selvage/internal/validate/envoytypes" // what EnvoyFilters name is looked into
)

// judgement is what is said of all files.
type judgement struct {
	Objects  int       `json:"objects"` // of Istio's API
	Others   int       `json:"others"`
	Problems []finding `json:"problems"`
}

// finding is a problem and where in a file it is.
type finding struct {
	File      string `json:"file"`
	Line      int    `json:"line"` // from 1
	Column    int    `json:"column"`
	Severity  string `json:"severity"`
	Code      string `json:"code"`
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Field     string `json:"field,omitempty"`
	Detail    string `json:"detail"`
	Hint      string `json:"hint,omitempty"`
	severity  diag.Severity
}

func (f finding) place() string { return fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Column) }

func (f finding) object() string {
	name := f.Name
	if f.Namespace != "" {
		name = f.Namespace + "/" + f.Name
	}
	return strings.TrimSpace(f.Kind + " " + name)
}

// judge adds what is said of a file's documents. Objects without a namespace are taken to be of the one that is given.
func (v *judgement) judge(file string, data []byte, namespace string) {
	for _, d := range documentsOf(data) {
		raw, err := yaml.YAMLToJSONStrict(d.text)
		if err != nil {
			v.unreadable(file, d, err)
			continue
		}
		if bytes.Equal(raw, []byte("null")) {
			continue
		}
		var root yamlnode.Node
		_ = yamlnode.Unmarshal(d.text, &root) // it is for line numbers alone
		v.document(raw, located{file, d.line, &root, ""}, namespace)
	}
}

// mostNested bounds how deep lists of lists are read.
const mostNested = 5

func (v *judgement) document(raw []byte, at located, namespace string) {
	var o struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Items      []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &o); err == nil && o.APIVersion == "v1" && o.Kind == "List" && strings.Count(at.prefix, "items") < mostNested {
		for i, item := range o.Items {
			below := at
			below.prefix = fmt.Sprintf("%sitems[%d].", at.prefix, i)
			v.document(item, below, namespace)
		}
		return
	}
	problems, known, err := validate.File(withNamespace(raw, namespace))
	switch {
	case err != nil:
		v.add(diag.Problem{Code: diag.WrongForm, Severity: diag.Error, Detail: "the document is no object of Kubernetes", Hint: "write objects with apiVersion, kind and metadata"}, at)
	case known:
		v.Objects++
	default:
		v.Others++
	}
	for _, p := range problems {
		v.add(p, at)
	}
}

// withNamespace is the object with a namespace, if it has none.
func withNamespace(raw []byte, namespace string) []byte {
	var o map[string]json.RawMessage
	var meta map[string]json.RawMessage
	if namespace == "" || json.Unmarshal(raw, &o) != nil || json.Unmarshal(o["metadata"], &meta) != nil || meta == nil || meta["namespace"] != nil {
		return raw
	}
	meta["namespace"], _ = json.Marshal(namespace) // a string can be written
	o["metadata"], _ = json.Marshal(meta)          // it was JSON
	out, err := json.Marshal(o)
	if err != nil {
		return raw
	}
	return out
}

func (v *judgement) add(p diag.Problem, at located) {
	line, column := at.find(p.Field)
	v.Problems = append(v.Problems, finding{
		File: at.file, Line: line, Column: column, Severity: p.Severity.String(), severity: p.Severity, Code: string(p.Code), Kind: p.Object.Kind,
		Namespace: p.Object.Namespace, Name: p.Object.Name, Field: p.Field, Detail: p.Detail, Hint: p.Hint,
	})
}

// yamlLine is how the parser tells where it failed.
var yamlLine = regexp.MustCompile(`^line (\d+): `)

func (v *judgement) unreadable(file string, d document, err error) {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	text, line := err.Error(), d.line
	text = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(text, "error converting YAML to JSON: "), "yaml: "))
	text = strings.TrimSpace(strings.TrimPrefix(text, "unmarshal errors:"))
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[1]) // they are digits
		line, text = d.line+n-1, text[len(m[0]):]
	}
	v.Problems = append(v.Problems, finding{
		File: file, Line: line, Column: 1, Severity: diag.Error.String(), severity: diag.Error, Code: string(diag.WrongForm),
		Detail: "the document cannot be read: " + printable(text), Hint: "mend its YAML: mind the indentation, and names that are there twice",
	})
}

// document is one of a file's, from a line on.
type document struct {
	text []byte
	line int
}

// documentsOf parts a stream where lines begin with three dashes, which begin a document wherever they stand.
func documentsOf(data []byte) (all []document) {
	current := document{line: 1}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if rest, ok := bytes.CutPrefix(line, []byte("---")); ok && (len(bytes.TrimSpace(rest)) == 0 || rest[0] == ' ' || rest[0] == '\t') {
			all = append(all, current)
			current = document{line: n + 1}
			if text := bytes.TrimSpace(rest); len(text) > 0 && text[0] != '#' {
				current = document{text: append([]byte("   "), rest...), line: n}
			}
			continue
		}
		current.text = append(current.text, line...)
	}
	all = append(all, current)
	kept := all[:0]
	for _, d := range all {
		if len(bytes.TrimSpace(d.text)) > 0 {
			kept = append(kept, d)
		}
	}
	return kept
}

// located is a document's place: its file, the line that it begins with, its nodes, and the path of the object in it, "" or one that
// ends in a dot.
type located struct {
	file   string
	line   int
	root   *yamlnode.Node
	prefix string
}

// step is a part of a path: a name, an index, or a key in brackets and quotes.
var step = regexp.MustCompile(`\["(?:[^"\\]|\\.)*"\]|\[\d+\]|[^.\[\]]+`)

// find gives the line and column of a field, or of the nearest that is there around it.
func (l located) find(field string) (line, column int) {
	node, line, column := l.root, l.line, 1
	if node.Kind == yamlnode.DocumentNode && len(node.Content) > 0 {
		node = node.Content[0]
		line, column = l.line+node.Line-1, node.Column
	}
	for _, s := range step.FindAllString(l.prefix+field, -1) {
		at, next := child(node, s)
		if next == nil {
			break
		}
		line, column, node = l.line+at.Line-1, at.Column, next
	}
	return line, column
}

// child is a member of a node and where it begins: for a member of an object, its name.
func child(node *yamlnode.Node, step string) (at, value *yamlnode.Node) {
	for node.Kind == yamlnode.AliasNode {
		node = node.Alias
	}
	name := step
	if strings.HasPrefix(step, "[") {
		name = strings.Trim(step, "[]")
		if i, err := strconv.Atoi(name); err == nil {
			if node.Kind != yamlnode.SequenceNode || i >= len(node.Content) {
				return nil, nil
			}
			return node.Content[i], node.Content[i]
		}
		if text, err := strconv.Unquote(name); err == nil {
			name = text
		}
	}
	if node.Kind != yamlnode.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == name {
			return node.Content[i], node.Content[i+1]
		}
	}
	return nil, nil
}
