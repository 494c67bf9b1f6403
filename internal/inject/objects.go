package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// header is what every object has.
type header struct {
	metav1.TypeMeta
	Metadata metav1.ObjectMeta `json:"metadata"`
}

// podObject is an object that has pods.
type podObject struct {
	path     string // from the document's root to the object
	at       string // from the object to its pod, "" for a Pod
	subject  ref.Ref
	pod      *corev1.Pod
	workload workload
}

// parsed is a document as it is read.
type parsed struct {
	o      StreamOptions
	d      *Document
	isJSON bool
	root   *yamlv3.Node // nil for JSON, and where YAML 1.2 does not let through what YAML 1.1 does
	asJSON []byte
	notes  []string
	visit  func(*podObject) error
	other  func(kind string, asJSON []byte) // nil when nobody asks
}

func (o StreamOptions) parse(d *Document) *parsed { return &parsed{o: o, d: d} }

// wrong is an error with its place.
func (p *parsed) wrong(path string, err error) error {
	return &DocumentError{p.d.Number, p.line(path), err}
}

// deepestList bounds Lists in Lists.
const deepestList = 16

// run finds the objects of the document that have pods.
func (p *parsed) run() error {
	text := bytes.TrimSpace(bytes.TrimPrefix(p.d.Before, []byte("\ufeff")))
	if onlyComments(text) {
		return nil
	}
	if p.isJSON = (text[0] == '{' || text[0] == '[') && json.Valid(text); p.isJSON {
		p.asJSON = text
	} else if err := p.readYAML(); err != nil {
		return err
	}
	kind, isObject := p.kind()
	switch {
	case !isObject && kind == "null":
		return nil
	case !isObject:
		return p.wrong("", fmt.Errorf("it is %s and no object: is this a manifest?", kind))
	}
	if p.asJSON == nil && (p.other != nil || hasPods(kind)) {
		if err := p.toJSON(); err != nil {
			return err
		}
	}
	if err := p.twice(hasPods(kind)); err != nil {
		return err
	}
	if p.asJSON == nil {
		if kind == "" {
			p.notes = append(p.notes, "it has no kind and is passed on as it is")
		}
		return p.stranger(kind)
	}
	return p.object(p.asJSON, "", metav1.TypeMeta{}, 0)
}

// readYAML reads the tree, and the JSON where there is none.
func (p *parsed) readYAML() error {
	if end := afterEnd(p.d.Before); end >= 0 {
		return &DocumentError{p.d.Number, p.d.Line + end, errors.New("there is text after the end of the document (...): put --- between documents")}
	}
	var root yamlv3.Node
	err := yamlv3.Unmarshal(p.d.Before, &root)
	if err == nil && len(root.Content) == 1 {
		p.root = &root
		return nil
	}
	if p.toJSON() == nil {
		return nil
	}
	if err == nil {
		err = errors.New("it cannot be read")
	}
	return p.unreadable(err)
}

func (p *parsed) toJSON() (err error) {
	if p.asJSON, err = yaml.YAMLToJSON(p.d.Before); err != nil {
		p.asJSON = nil
		return p.unreadable(err)
	}
	return nil
}

var atLine = regexp.MustCompile(`^line (\d+): `)

// unreadable is a YAML error with the line of the stream.
func (p *parsed) unreadable(err error) error {
	message, line := yamlError(err), p.d.Line
	if m := atLine.FindStringSubmatch(message); m != nil {
		n, _ := strconv.Atoi(m[1]) // digits
		line, message = line+max(n, 1)-1, message[len(m[0]):]
		if hasTab(p.d.Before, n) {
			message += ": it is indented with a tab, and YAML wants blanks"
		}
	}
	name := ""
	if kind := kindLine.FindSubmatch(p.d.Before); kind != nil {
		name = string(kind[1])
		if m := nameLine.FindSubmatch(p.d.Before); m != nil {
			name += " " + string(m[1])
		}
		name += ": "
	}
	return &DocumentError{p.d.Number, line, fmt.Errorf("%sit is no YAML: %s", name, message)}
}

// hasTab reports whether a tab is among what the line, counted from 1, begins with.
func hasTab(body []byte, line int) bool {
	for text := range bytes.Lines(body) {
		if line--; line == 0 {
			return bytes.HasPrefix(bytes.TrimLeft(text, " "), []byte("\t"))
		}
	}
	return false
}

// The lines by which people know an object, for text that cannot be parsed.
var (
	kindLine = regexp.MustCompile(`(?m)^kind: *([A-Za-z]+)`)
	nameLine = regexp.MustCompile(`(?m)^  +name: *([a-z0-9.-]+)`)
)

// afterEnd is the index of the first line with text after the line "...", -1 when there is none.
func afterEnd(body []byte) int {
	ended, n := false, 0
	for line := range bytes.Lines(body) {
		text := bytes.TrimSpace(line)
		switch {
		case ended && len(text) > 0 && text[0] != '#' && text[0] != '%' && string(text) != "...":
			return n
		case bytes.HasPrefix(line, []byte("...")) && string(text) == "...":
			ended = true
		}
		n++
	}
	return -1
}

// kind is the object's kind, or what the document is when it is no object.
func (p *parsed) kind() (kind string, isObject bool) {
	if p.root == nil {
		var t metav1.TypeMeta
		if p.asJSON[0] == '{' {
			_ = json.Unmarshal(p.asJSON, &t) // a kind that is no text is none
			return t.Kind, true
		}
		return wordOf(p.asJSON[0]), false
	}
	body := p.root.Content[0]
	if body.Kind == yamlv3.MappingNode {
		if i := keyIn(body, "kind"); i >= 0 {
			return body.Content[i+1].Value, true
		}
		return "", true
	}
	switch {
	case body.Kind == yamlv3.SequenceNode:
		return "a list", false
	case body.ShortTag() == "!!null":
		return "null", false
	}
	return "text", false
}

// wordOf names what a JSON value is by its first letter.
func wordOf(c byte) string {
	switch c {
	case '[':
		return "a list"
	case 'n':
		return "null"
	}
	return "text"
}

// hasPods reports whether objects of the kind may hold pods.
func hasPods(kind string) bool {
	return strings.HasSuffix(kind, "List") || slices.ContainsFunc(podKinds, func(k string) bool { return k == kind })
}

// twice finds keys that stand twice in one object. Readers of YAML do not agree on which one counts.
func (p *parsed) twice(isError bool) error {
	err := func() error {
		if p.root == nil {
			if key := p.jsonTwice(); key != "" {
				return &DocumentError{p.d.Number, p.line(""), fmt.Errorf("key %q stands twice in one object", key)}
			}
			return nil
		}
		first, second := duplicate(p.root)
		if second == nil {
			return nil
		}
		return &DocumentError{p.d.Number, p.d.Line + second.Line - 1,
			fmt.Errorf("%skey %q stands twice in one object, first on line %d", p.name(), second.Value, p.d.Line+first.Line-1)}
	}()
	if wrong := (*DocumentError)(nil); !isError && errors.As(err, &wrong) {
		p.notes = append(p.notes, wrong.Err.Error())
		return nil
	}
	return err
}

// name is the object of a document whose text is wrong, as far as it can be read: "Deployment web: ".
func (p *parsed) name() string {
	body := p.root.Content[0]
	var kind, name string
	if i := keyIn(body, "kind"); i >= 0 {
		kind = body.Content[i+1].Value
	}
	if i := keyIn(body, "metadata"); i >= 0 {
		if j := keyIn(body.Content[i+1], "name"); j >= 0 {
			name = body.Content[i+1].Content[j+1].Value
		}
	}
	if kind == "" || name == "" {
		return ""
	}
	return kind + " " + name + ": "
}

func (p *parsed) jsonTwice() string {
	var find func(n *jsonNode) string
	find = func(n *jsonNode) string {
		seen := make(map[string]bool, len(n.keys))
		for i, kid := range n.kids {
			if n.kind == '{' {
				if seen[n.keys[i]] {
					return n.keys[i]
				}
				seen[n.keys[i]] = true
			}
			if key := find(kid); key != "" {
				return key
			}
		}
		return ""
	}
	return find(parseJSON(p.asJSON))
}

// duplicate finds a key that stands twice in one mapping.
func duplicate(n *yamlv3.Node) (first, second *yamlv3.Node) {
	if n.Kind == yamlv3.MappingNode {
		const few = 12 // comparing each to each is faster than a map
		var seen map[string]*yamlv3.Node
		if len(n.Content) > 2*few {
			seen = make(map[string]*yamlv3.Node, len(n.Content)/2)
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yamlv3.ScalarNode || key.Value == "<<" {
				continue
			}
			if seen != nil {
				if seen[key.Value] != nil {
					return seen[key.Value], key
				}
				seen[key.Value] = key
				continue
			}
			for j := 0; j < i; j += 2 {
				if n.Content[j].Value == key.Value && n.Content[j].Kind == yamlv3.ScalarNode {
					return n.Content[j], key
				}
			}
		}
	}
	for _, c := range n.Content {
		if first, second = duplicate(c); second != nil {
			return first, second
		}
	}
	return nil, nil
}

// line is the stream's line of what a path leads to, or of the nearest thing above it that is written somewhere.
func (p *parsed) line(path string) int {
	if p.root == nil || len(p.root.Content) == 0 {
		text := bytes.TrimLeft(p.d.Before, " \t\r\n")
		return p.d.Line + bytes.Count(p.d.Before[:len(p.d.Before)-len(text)], []byte("\n"))
	}
	at := p.root.Content[0]
	line := at.Line
	for step := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		var next *yamlv3.Node
		switch {
		case step == "":
		case at.Kind == yamlv3.SequenceNode:
			if i, ok := place(step, len(at.Content), false); ok {
				next = at.Content[i]
				line = next.Line
			}
		default:
			if i := keyIn(at, unescape(step)); i >= 0 {
				next = at.Content[i+1]
				line = at.Content[i].Line
			}
		}
		if next == nil {
			break
		}
		at = next
	}
	return p.d.Line + max(line, 1) - 1
}

// problemLine is the line of the annotation that a problem is about, or of the object.
func (p *parsed) problemLine(w *podObject, problem diag.Problem) int {
	key, isAnnotation := strings.CutPrefix(problem.Field, "metadata.annotations[")
	if key, closed := strings.CutSuffix(key, "]"); isAnnotation && closed {
		return p.line(w.path + w.at + "/metadata/annotations/" + escape(key))
	}
	return p.line(w.path)
}
