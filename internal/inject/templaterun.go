package inject

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"text/template"
	"text/template/parse"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"google.golang.org/protobuf/proto"
)

// A template is somebody's program, and it runs for every pod. What bounds it is counted in steps, which come out the same on every
// machine: one for all that it writes and for each turn of a loop, and more for a function that has much to do. Whoever has a clock
// adds a limit of his own (Config.Until).
const (
	// mostSteps bounds one run. Istio's sidecar takes about 1,000.
	mostSteps = 100_000
	// stepBytes is how many bytes a function may go through for one step.
	stepBytes = 256
	// askEvery is after how many steps the limit of Config.Until is asked: it reads a clock.
	askEvery = 32
	// deepestCall bounds templates that call each other, deepestBlock the blocks in one of them: together they bound the stack.
	deepestCall  = 100
	deepestBlock = 200
	// keptBuffer is the largest buffer that is kept for the next pod.
	keptBuffer = 256 << 10
)

var (
	errEndless  = fmt.Errorf("it takes more than %d steps: does it loop?", mostSteps)
	errTooDeep  = fmt.Errorf("its templates call each other more than %d deep: does one call itself?", deepestCall)
	errTooMuch  = errors.New("the result is too large for a pod")
	errTooLarge = errors.New("what it is given is too large for a pod")
)

// marks are texts of no bytes: writing them changes nothing, but whoever executes the template hears of it. They are told apart by
// their place.
var marks [3]byte

const (
	stepMark = iota
	enterMark
	leaveMark
)

// mark is the node of a mark in a template.
func mark(which int) parse.Node {
	return &parse.TextNode{NodeType: parse.NodeText, Text: marks[which:which:len(marks)]}
}

// execution runs one template for one pod after the other. Its functions are bound to it, so that they count. It is kept in a pool: to
// make one costs more than to run it.
type execution struct {
	tree  *template.Template
	out   bytes.Buffer
	steps int
	asked int // at how many steps stop was asked
	depth int
	stop  func() error
	// usual is the mesh's ProxyConfig, and usualJSON what protoToJSON gives for it: most pods have no other.
	usual     *meshv1alpha1.ProxyConfig
	usualJSON string
}

// newExecution gives a template the functions that it uses, bounded.
func (t *podTemplate) newExecution() *execution {
	e := &execution{}
	tree, err := t.tree.Clone()
	if err != nil {
		panic("copy a template: " + err.Error()) // text/template never gives one
	}
	funcs := template.FuncMap{}
	for name := range t.calls {
		if f, has := templateFuncs()[name]; has && !constant[name] {
			funcs[name] = e.bound(name, f)
		}
	}
	funcs[printedFunc] = e.printed
	funcs["protoToJSON"] = e.protoToJSON
	e.tree = tree.Funcs(funcs)
	return e
}

// output is what a template gave, read: shared by the pods for which it gave the same text, and not to be changed.
type output struct {
	part map[string]any
	// pod is part as a pod; nil where it is none, or has directives of the strategic merge.
	pod *corev1.Pod
}

// outputs are what a template gave lately. Reading it costs more than executing the template, and the replicas of a workload get the
// same: nothing in Istio's template depends on more than that of a pod.
type outputs struct {
	mu    sync.Mutex
	known map[string]*output
}

// The limits on what is kept for one template: about 5 MiB where all have Istio's size.
const (
	keptOutputs = 64
	keptText    = 64 << 10
)

func (o *outputs) read(text []byte) (*output, error) {
	o.mu.Lock()
	out := o.known[string(text)]
	o.mu.Unlock()
	if out != nil {
		return out, nil
	}
	part, err := readOutput(text)
	if err != nil {
		return nil, err
	}
	out = newOutput(part)
	if len(text) > keptText {
		return out, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known == nil || len(o.known) >= keptOutputs {
		o.known = make(map[string]*output, keptOutputs)
	}
	o.known[string(text)] = out
	return out, nil
}

// execute gives what the template gives for one pod. The error names the line, if it is the template's; a panic is one too.
func (t *podTemplate) execute(c *Config, data *templateData) (out *output, err error) {
	e, _ := t.pool.Get().(*execution)
	if e == nil {
		e = t.newExecution()
	}
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, fmt.Errorf("it panics: %v", p)
			return // the execution is left to the garbage collector
		}
		if e.out.Cap() <= keptBuffer {
			t.pool.Put(e)
		}
	}()
	e.out.Reset()
	e.steps, e.asked, e.depth, e.stop = 0, 0, 0, c.stop
	e.usual, e.usualJSON = c.settings.Mesh.GetDefaultConfig(), c.proxyJSON
	if t.mutates {
		copied := *data
		copied.Values = copyJSON(data.Values).(map[string]any)
		data = &copied
	}
	if err := e.tree.Execute(e, data); err != nil {
		return nil, errors.New(plainTemplateError(err))
	}
	return t.outputs.read(e.out.Bytes())
}

// protoToJSON keeps what does not depend on the pod.
func (e *execution) protoToJSON(m proto.Message) string {
	if pc, ok := m.(*meshv1alpha1.ProxyConfig); ok && pc != nil && pc == e.usual {
		return e.usualJSON
	}
	return protoToJSON(m)
}

// Write takes what the template writes, and the marks in it.
func (e *execution) Write(p []byte) (int, error) {
	if len(p) == 0 && cap(p) > 0 && cap(p) <= len(marks) {
		switch &p[:1][0] {
		case &marks[enterMark]:
			if e.depth++; e.depth > deepestCall {
				return 0, errTooDeep
			}
		case &marks[leaveMark]:
			e.depth--
		}
	}
	if err := e.spend(1); err != nil {
		return 0, err
	}
	if e.out.Len()+len(p) > mostBytes {
		return 0, errTooMuch
	}
	return e.out.Write(p)
}

// spend counts steps, and stops the template when there were too many.
func (e *execution) spend(steps int) error {
	if e.steps += steps; e.steps > mostSteps {
		return errEndless
	}
	if e.stop != nil && e.steps-e.asked >= askEvery {
		e.asked = e.steps
		return e.stop()
	}
	return nil
}

// Until is c for one request: stop is asked again and again while templates run for the pod, and its error ends them. This package
// has no clock.
func (c *Config) Until(stop func() error) *Config {
	copied := *c
	copied.stop = stop
	return &copied
}

// weigh is about how many bytes a value has as text; more than most is not counted. A value may hold another one many times over, so
// that printing it would never end.
func weigh(v any, most int) int {
	switch v := v.(type) {
	case nil, bool, int, int64, float64:
		return 8
	case string:
		return len(v) + 8
	case []byte:
		return len(v) + 8
	case []string:
		n := 8
		for i := 0; i < len(v) && n <= most; i++ {
			n += len(v[i]) + 8
		}
		return n
	case map[string]string:
		n := 8
		for key, value := range v {
			if n += len(key) + len(value) + 16; n > most {
				break
			}
		}
		return n
	case []any:
		n := 8
		for i := 0; i < len(v) && n <= most; i++ {
			n += weigh(v[i], most-n)
		}
		return n
	case map[string]any:
		n := 8
		for key, value := range v {
			if n += len(key) + 8; n > most {
				break
			}
			n += weigh(value, most-n)
		}
		return n
	case proto.Message:
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			return 8
		}
		return proto.Size(v)*4 + 8
	}
	return weighAny(reflect.ValueOf(v), most)
}

// weighAny is weigh for the API's types.
func weighAny(v reflect.Value, most int) int {
	n := 8
	switch v.Kind() {
	case reflect.String:
		n += v.Len()
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			if v.CanInterface() && v.Kind() == reflect.Pointer {
				if m, ok := v.Interface().(proto.Message); ok {
					return weigh(m, most)
				}
			}
			n += weighAny(v.Elem(), most-n)
		}
	case reflect.Slice, reflect.Array:
		for i := 0; i < v.Len() && n <= most; i++ {
			n += weighAny(v.Index(i), most-n)
		}
	case reflect.Map:
		for entries := v.MapRange(); entries.Next() && n <= most; {
			n += weighAny(entries.Key(), most-n)
			n += weighAny(entries.Value(), most-n)
		}
	case reflect.Struct:
		for i := 0; i < v.NumField() && n <= most; i++ {
			if f := v.Field(i); !f.IsZero() {
				n += weighAny(f, most-n)
			}
		}
	default: // a number: eight bytes
	}
	return n
}
