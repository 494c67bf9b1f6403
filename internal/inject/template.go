package inject

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"text/template"
	"text/template/parse"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"

	"embed"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// There are two ways to an injected pod. Our own `sidecar` template is Go code (sidecar.go), which is the fast one. Any other
// template is a text: Go's text/template with the data and the functions that Istio gives to its own, executed for the pod and
// merged into it by strategic merge. Both share what is around the template: annotations, probes, metrics, labels, the status.

// shippedFiles are the texts of the templates that are there without being in any ConfigMap. That of sidecar says in Istio's
// language what sidecar.go does, for who wants to change it; a property test keeps the two the same.
//
//go:embed templates/*.yaml
var shippedFiles embed.FS

// shippedNames are the built-in templates. An entry of `config.templates` of the same name takes their place.
var shippedNames = []string{sidecarTemplate, "gateway", "grpc-agent"}

// ShippedTemplate is the text of a built-in template: sidecar, gateway or grpc-agent; "" for another name.
func ShippedTemplate(name string) string {
	data, err := shippedFiles.ReadFile("templates/" + name + ".yaml")
	if err != nil {
		return ""
	}
	return string(data)
}

// podTemplate is one parsed template. It may be executed by any number of goroutines.
type podTemplate struct {
	name    string
	tree    *template.Template // not executed itself: its functions have no bounds
	calls   map[string]bool    // the functions that it uses
	agent   bool               // it is for our agent: it reads .Sidecar
	mutates bool               // it changes maps that it is given, so it needs copies
	pool    sync.Pool          // of executions
	outputs outputs
}

// templateSet are the templates of a Config.
type templateSet struct {
	byName   map[string]*podTemplate
	aliases  map[string][]string
	defaults []string
	typed    bool // sidecar is the built-in one: the typed path serves it
	// typedDefault says that pods without a wish of their own take the typed path.
	typedDefault bool
}

// shipped are the parsed built-in templates. They parse: a test executes them.
var shipped = sync.OnceValue(func() map[string]*podTemplate {
	out := map[string]*podTemplate{}
	for _, name := range shippedNames {
		t, err := parseTemplate(name, ShippedTemplate(name))
		if err != nil {
			panic("parse the built-in template " + name + ": " + err.Error())
		}
		out[name] = t
	}
	return out
})

// parseTemplate parses a template and bounds it. The error names the template and the line.
func parseTemplate(name, text string) (*podTemplate, error) {
	if len(text) > mostBytes {
		return nil, fmt.Errorf("it has %d bytes, and may have %d", len(text), mostBytes)
	}
	tree, err := template.New(name).Funcs(templateFuncs()).Parse(text)
	if err != nil {
		return nil, errors.New(plainTemplateError(err))
	}
	t := &podTemplate{name: name, tree: tree, calls: map[string]bool{"protoToJSON": true}}
	for _, part := range tree.Templates() {
		if part.Tree == nil || part.Root == nil {
			continue
		}
		if !t.inspect(part.Root, 0) {
			return nil, fmt.Errorf("its blocks stand in each other more than %d deep", deepestBlock)
		}
		part.Root.Nodes = append(append([]parse.Node{mark(enterMark)}, part.Root.Nodes...), mark(leaveMark))
	}
	return t, nil
}

// changing are the functions that change a map that they are given.
var changing = []string{"set", "unset", "merge", "mergeOverwrite", "mustMerge", "mustMergeOverwrite"}

// inspect puts a mark into every loop and a bound around what is written without a function, and finds out what the template uses. It
// reports false for blocks that are too deep.
func (t *podTemplate) inspect(n parse.Node, depth int) bool {
	if depth > 2*deepestBlock { // a block is two nodes
		return false
	}
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return true
		}
		for _, child := range n.Nodes {
			if !t.inspect(child, depth+1) {
				return false
			}
		}
	case *parse.RangeNode:
		if !t.branch(&n.BranchNode, depth) {
			return false
		}
		n.List.Nodes = append([]parse.Node{mark(stepMark)}, n.List.Nodes...)
	case *parse.IfNode:
		return t.branch(&n.BranchNode, depth)
	case *parse.WithNode:
		return t.branch(&n.BranchNode, depth)
	case *parse.ActionNode:
		if !t.inspect(n.Pipe, depth+1) {
			return false
		}
		t.bindPrinted(n)
	case *parse.TemplateNode:
		return t.inspect(n.Pipe, depth+1)
	case *parse.PipeNode:
		if n == nil {
			return true
		}
		for _, command := range n.Cmds {
			for _, arg := range command.Args {
				if !t.inspect(arg, depth+1) {
					return false
				}
			}
		}
	case *parse.ChainNode:
		return t.inspect(n.Node, depth+1)
	case *parse.IdentifierNode:
		t.calls[n.Ident] = true
		t.mutates = t.mutates || slices.Contains(changing, n.Ident)
	case *parse.FieldNode:
		t.agent = t.agent || n.Ident[0] == "Sidecar"
	case *parse.VariableNode:
		t.agent = t.agent || len(n.Ident) > 1 && n.Ident[0] == "$" && n.Ident[1] == "Sidecar"
	}
	return true
}

func (t *podTemplate) branch(b *parse.BranchNode, depth int) bool {
	return t.inspect(b.Pipe, depth+1) && t.inspect(b.List, depth+1) && t.inspect(b.ElseList, depth+1)
}

// printedFunc is the name of execution.printed in templates. It is there when they are executed and not when they are parsed, so that
// none can call it.
const printedFunc = "asPrinted"

// bindPrinted lets printed look at what an action writes, unless that is the text of a function, which was looked at.
func (t *podTemplate) bindPrinted(n *parse.ActionNode) {
	if len(n.Pipe.Decl) > 0 || len(n.Pipe.Cmds) == 0 {
		return
	}
	last := n.Pipe.Cmds[len(n.Pipe.Cmds)-1]
	if name, ok := last.Args[0].(*parse.IdentifierNode); ok {
		if f := reflect.TypeOf(templateFuncs()[name.Ident]); f != nil && f.Out(0).Kind() == reflect.String {
			return
		}
	}
	call := parse.NewIdentifier(printedFunc).SetPos(n.Pos).SetTree(t.tree.Tree)
	n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: n.Pos, Args: []parse.Node{call}})
}

// copyJSON copies JSON values.
func copyJSON(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, item := range v {
			out[key] = copyJSON(item)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = copyJSON(v[i])
		}
		return out
	}
	return v
}

// whereInTemplate is the beginning of text/template's messages: "template: NAME:LINE:COLUMN: ".
var whereInTemplate = regexp.MustCompile(`^template: [^:]*:(\d+)(:\d+)?: `)

// notDefined is how text/template says that there is no such function.
var notDefined = regexp.MustCompile(`function "([^"]+)" not defined`)

// plainTemplateError is text/template's message with the line first: "line 12: …".
func plainTemplateError(err error) string {
	s := whereInTemplate.ReplaceAllString(err.Error(), "line $1: ")
	if m := notDefined.FindStringSubmatch(s); m != nil && slices.Contains(unrepeatable, m[1]) {
		s += ": functions that give something else on each run are not available"
	}
	const most = 500
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// templateSet compiles the templates of the settings.
func (c *compiler) templateSet() {
	in := c.settings.Injector
	set := &templateSet{byName: maps.Clone(shipped()), aliases: in.Aliases, defaults: in.DefaultTemplates, typed: true}
	c.config.templates = set
	if len(set.defaults) == 0 {
		set.defaults = []string{sidecarTemplate}
	}
	for _, name := range sortedKeys(in.Templates) {
		if in.Templates[name] != "" && in.Templates[name] == ShippedTemplate(name) {
			continue
		}
		t, err := parseTemplate(name, in.Templates[name])
		if err != nil {
			c.report(diag.Error, "config.templates."+name, err.Error(), "")
			continue
		}
		set.byName[name] = t
		set.typed = set.typed && name != sidecarTemplate
	}
	for _, alias := range sortedKeys(set.aliases) {
		for _, name := range set.aliases[alias] {
			_, has := in.Templates[name]
			if has || set.byName[name] != nil {
				continue // one that does not parse was reported
			}
			problem, hint := fmt.Sprintf("there is no template %q", name), set.have()
			if list := set.aliases[name]; len(list) > 0 {
				problem, hint = fmt.Sprintf("%q is an alias too, and an alias stands for templates only", name), "write "+strings.Join(list, ", ")+" in its place"
			}
			c.report(diag.Error, "config.aliases."+alias, problem, hint)
		}
	}
	for _, name := range set.resolve(set.defaults) {
		t := set.byName[name]
		_, has := in.Templates[name]
		switch {
		case t == nil && !has:
			c.report(diag.Error, "config.defaultTemplates", fmt.Sprintf("there is no template %q", name), set.have())
		case t != nil && t == shipped()[name]:
			c.notServed("config.defaultTemplates", named(fmt.Sprintf("template %q cannot be used yet", name), c.settings.Serves.template(name)))
		}
	}
	names := set.resolve(set.defaults)
	set.typedDefault = set.typed && len(names) == 1 && names[0] == sidecarTemplate
}

// forAgent reports whether pods take a template for our agent without asking: then what the mesh's configuration wants of the agent is
// checked.
func (s *templateSet) forAgent() bool {
	return s.typed || slices.ContainsFunc(s.resolve(s.defaults), func(name string) bool { return s.byName[name] != nil && s.byName[name].agent })
}

// have names the templates that there are, for messages.
func (s *templateSet) have() string {
	names := append(sortedKeys(s.byName), sortedKeys(s.aliases)...)
	slices.Sort(names)
	return "there are " + strings.Join(slices.Compact(names), ", ")
}

// resolve puts the templates of aliases in their place. As in Istio an alias of an alias is none.
func (s *templateSet) resolve(names []string) []string {
	out := make([]string, 0, len(names))
	for _, name := range names {
		if list, has := s.aliases[name]; has {
			out = append(out, list...)
		} else {
			out = append(out, name)
		}
	}
	return out
}

// selectTemplates finds the templates of a pod, in the order in which they apply: those of its annotation, or the default ones. nil
// means the typed path: exactly our own sidecar. The error is a *RefusedError.
func (c *Config) selectTemplates(pod *corev1.Pod, subject ref.Ref) ([]*podTemplate, error) {
	set, names := c.templates, c.templates.defaults
	value, asked := pod.Annotations[annotation.InjectTemplates.Name]
	if asked {
		names = items(value)
	}
	if !asked && set.typedDefault {
		return nil, nil
	}
	names = set.resolve(names)
	if set.typed && len(names) == 1 && names[0] == sidecarTemplate {
		return nil, nil
	}
	problem := func(err error, hint string) error {
		if !asked {
			value = strings.Join(set.defaults, ",")
		}
		p := invalidAnnotation(subject, annotation.InjectTemplates.Name, value, err)
		p.Hint = first(hint, p.Hint)
		return &RefusedError{Problems: []diag.Problem{p}}
	}
	if len(names) == 0 {
		return nil, problem(errors.New("it names no template"), set.have())
	}
	const most = 16
	if len(names) > most {
		return nil, problem(fmt.Errorf("it selects %d templates, and may select %d", len(names), most), "")
	}
	out := make([]*podTemplate, len(names))
	for i, name := range names {
		t := set.byName[name]
		if t == nil {
			return nil, problem(fmt.Errorf("there is no template %q", name), set.have())
		}
		if t == shipped()[name] {
			if err := c.settings.Serves.template(name); err != nil {
				return nil, problem(named(fmt.Sprintf("template %q cannot be used yet", name), err), "")
			}
		}
		out[i] = t
	}
	return out, nil
}

// ByTemplates reports whether pods that say nothing go through templates, which read all of them (NeedsWhole).
func (c *Config) ByTemplates() bool { return !c.templates.typedDefault }

// NeedsWhole reports whether Pod reads more of a pod than its View has: templates read all of it.
func (c *Config) NeedsWhole(pod *corev1.Pod) bool {
	list, err := c.selectTemplates(pod, ref.Ref{})
	return err == nil && list != nil
}
