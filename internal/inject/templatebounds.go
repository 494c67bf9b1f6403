package inject

import (
	"reflect"
	"strings"
)

// What the functions of templates may work on. A silly template must end with a message, and must not take the control plane's memory
// first: every function looks at its arguments before it does anything.
const (
	mostBytes   = 1 << 20 // of a string
	mostEntries = 10_000  // of a list or map
	mostPattern = 1_000   // bytes of a regular expression
	mostWidth   = 1_000   // of a number in a format of printf
)

// constant are the functions whose work and whose result do not grow with their arguments.
var constant = setOf("default", "empty", "coalesce", "ternary", "first", "last", "mustFirst", "mustLast", "get", "hasKey", "fail",
	"kindOf", "kindIs", "typeOf", "typeIs", "typeIsLike", "list", "tuple", "dict", "set", "unset",
	"add", "add1", "sub", "mul", "div", "mod", "max", "min", "biggest", "floor", "ceil", "round", "addf", "add1f", "subf", "mulf", "divf", "maxf", "minf",
	"int", "int64", "float64", "toDecimal", "formatDuration", "isset", "excludeInboundPort", "includeInboundPorts", "applicationPorts",
	"kubevirtInterfaces", "excludeInterfaces", "annotation", "valueOrDefault", "appendMultusNetwork", "otelResourceAttributes",
	"until", "untilStep", "seq", "env")

// shallow are the functions that go through a list and not through what is in its entries.
var shallow = setOf("append", "push", "prepend", "concat", "slice", "rest", "initial", "reverse", "mustAppend", "mustPush", "mustPrepend", "mustSlice",
	"mustRest", "mustInitial", "mustReverse", "keys", "values", "pick", "omit", "strdict", "compact", "mustCompact", "chunk", "mustChunk", "dig", "pluck", "has", "mustHas")

// square are the functions that compare each entry of a list with each other one.
var square = setOf("uniq", "mustUniq", "without", "mustWithout")

func setOf(names ...string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}

// larger are the functions that can make much of little: what their results may have at most, in bytes.
var larger = map[string]func(args []any) int{
	"replace":    func(args []any) int { return replaced(textAt(args, 0), textAt(args, 1), textAt(args, 2)) },
	"join":       func(args []any) int { return times(entriesOf(args, 1), len(textAt(args, 0))) },
	"indent":     indented,
	"nindent":    indented,
	"repeat":     func(args []any) int { return times(intAt(args, 0), len(textAt(args, 1))) },
	"wrapWith":   func(args []any) int { return times(len(textAt(args, 2)), len(textAt(args, 1))) },
	"printf":     func(args []any) int { return width(textAt(args, 0)) },
	"split":      func(args []any) int { return pieces(textAt(args, 0), textAt(args, 1)) },
	"splitList":  func(args []any) int { return pieces(textAt(args, 0), textAt(args, 1)) },
	"splitn":     func(args []any) int { return pieces(textAt(args, 0), textAt(args, 2)) },
	"regexMatch": pattern, "mustRegexMatch": pattern, "regexFind": pattern, "mustRegexFind": pattern,
	"regexFindAll": matched, "mustRegexFindAll": matched, "regexSplit": matched, "mustRegexSplit": matched,
	"regexReplaceAll": rewritten3, "mustRegexReplaceAll": rewritten3, "regexReplaceAllLiteral": rewritten3, "mustRegexReplaceAllLiteral": rewritten3,
}

func textAt(args []any, i int) string {
	if i < len(args) {
		s, _ := args[i].(string)
		return s
	}
	return ""
}

func intAt(args []any, i int) int {
	if i < len(args) {
		n, _ := args[i].(int)
		return n
	}
	return 0
}

// times is a product, and more than any bound where that would be too large for an int.
func times(a, b int) int {
	if a > 0 && b > mostBytes*1024/a {
		return mostBytes * 1024
	}
	return max(a, 0) * b
}

func entriesOf(args []any, i int) int {
	if i >= len(args) {
		return 0
	}
	switch v := reflect.ValueOf(args[i]); v.Kind() {
	case reflect.Slice, reflect.Array, reflect.Map:
		return v.Len()
	default:
		return 1
	}
}

func replaced(old, by, text string) int {
	if len(by) <= len(old) {
		return 0
	}
	return times(strings.Count(text, old), len(by)-len(old))
}

func indented(args []any) int {
	if intAt(args, 0) < 0 {
		return mostBytes + 1 // strings.Repeat would panic
	}
	return times(intAt(args, 0), strings.Count(textAt(args, 1), "\n")+1)
}

// width is what the numbers in a format can make of nothing: after a percent sign each is a width or a precision.
func width(format string) (sum int) {
	verb, number := false, 0
	for _, c := range []byte(format) {
		switch {
		case !verb:
			verb = c == '%'
			continue
		case c >= '0' && c <= '9':
			if number = number*10 + int(c-'0'); number > mostWidth {
				return mostBytes + 1
			}
			continue
		case c == '*':
			return mostBytes + 1
		}
		sum, number = sum+number, 0
		verb = strings.IndexByte("+-# .[]", c) >= 0
	}
	return sum
}

// pieces is for a text that is cut: each piece costs as much as its header.
func pieces(separator, text string) int {
	n := strings.Count(text, separator)
	if n > mostEntries {
		return mostBytes + 1
	}
	return n * 16
}

func pattern(args []any) int {
	if len(textAt(args, 0)) > mostPattern {
		return mostBytes + 1
	}
	return 0
}

// matched is for what may give a match for every byte.
func matched(args []any) int {
	return max(pattern(args), 16*len(textAt(args, 1)))
}

// rewritten3 is for (pattern, text, replacement): the replacement may stand for the text itself ($0), and come after every byte.
func rewritten3(args []any) int {
	return max(pattern(args), times(len(textAt(args, 1))+1, len(textAt(args, 2)))/16)
}

// charge looks at what a function is to work on, before it does.
func (e *execution) charge(name string, args ...any) error {
	if shallow[name] || square[name] {
		n := 0
		for i := range args {
			n += entriesOf(args, i)
		}
		if square[name] {
			n = times(n, max(n, 1))
		}
		return e.spend(n * 8 / stepBytes)
	}
	n := 0
	for i := range args {
		if n += weigh(args[i], mostBytes-n); n > mostBytes {
			return errTooLarge
		}
	}
	if most := larger[name]; most != nil {
		more := most(args)
		if more > mostBytes {
			return errTooMuch
		}
		n += more
		if strings.Contains(name, "egex") {
			n += times(len(textAt(args, 0)), len(textAt(args, 1))) / 16
		}
	}
	return e.spend(n / stepBytes)
}

// result bounds what a function gives.
func result[T any](v T) (T, error) {
	tooMuch := false
	switch v := any(v).(type) {
	case string:
		tooMuch = len(v) > mostBytes
	case []any:
		tooMuch = len(v) > mostEntries
	case []string:
		tooMuch = len(v) > mostEntries
	case map[string]any:
		tooMuch = len(v) > mostEntries
	case map[string]string:
		tooMuch = len(v) > mostEntries
	}
	if tooMuch {
		var none T
		return none, errTooMuch
	}
	return v, nil
}

// bound is a function of a template that counts what it does. The usual signatures go without reflection.
func (e *execution) bound(name string, f any) any {
	switch f := f.(type) {
	case func(string) string:
		return func(a string) (s string, err error) {
			if err = e.charge(name, a); err != nil {
				return "", err
			}
			return result(f(a))
		}
	case func(string, string) string:
		return func(a, b string) (s string, err error) {
			if err = e.charge(name, a, b); err != nil {
				return "", err
			}
			return result(f(a, b))
		}
	case func(any) string:
		return func(a any) (s string, err error) {
			if err = e.charge(name, a); err != nil {
				return "", err
			}
			return result(f(a))
		}
	case func(...any) string:
		return func(args ...any) (s string, err error) {
			if err = e.charge(name, args...); err != nil {
				return "", err
			}
			return result(f(args...))
		}
	case func(string, ...any) string:
		return func(a string, args ...any) (s string, err error) {
			if err = e.charge(name, append([]any{a}, args...)...); err != nil {
				return "", err
			}
			return result(f(a, args...))
		}
	case func(string, any) string:
		return func(a string, b any) (s string, err error) {
			if err = e.charge(name, a, b); err != nil {
				return "", err
			}
			return result(f(a, b))
		}
	case func(int, string) string:
		return func(n int, a string) (s string, err error) {
			if err = e.charge(name, n, a); err != nil {
				return "", err
			}
			return result(f(n, a))
		}
	}
	return e.boundAny(name, reflect.ValueOf(f))
}

// boundAny is bound for any other signature.
func (e *execution) boundAny(name string, f reflect.Value) any {
	t := f.Type()
	in := make([]reflect.Type, t.NumIn())
	for i := range in {
		in[i] = t.In(i)
	}
	failure := reflect.TypeFor[error]()
	signature := reflect.FuncOf(in, []reflect.Type{t.Out(0), failure}, t.IsVariadic())
	failed := func(err error) []reflect.Value {
		return []reflect.Value{reflect.Zero(t.Out(0)), reflect.ValueOf(&err).Elem()}
	}
	return reflect.MakeFunc(signature, func(args []reflect.Value) []reflect.Value {
		plain := make([]any, 0, len(args))
		for i, arg := range args {
			if t.IsVariadic() && i == len(args)-1 {
				for j := range arg.Len() {
					plain = append(plain, arg.Index(j).Interface())
				}
				break
			}
			plain = append(plain, arg.Interface())
		}
		if err := e.charge(name, plain...); err != nil {
			return failed(err)
		}
		call := f.Call
		if t.IsVariadic() {
			call = f.CallSlice
		}
		out := call(args)
		if len(out) == 2 && !out[1].IsNil() {
			return out
		}
		if _, err := result(out[0].Interface()); err != nil {
			return failed(err)
		}
		return []reflect.Value{out[0], reflect.Zero(failure)}
	}).Interface()
}

// printed looks at what is written without a function: a map that holds itself would never end.
func (e *execution) printed(v reflect.Value) (reflect.Value, error) {
	switch v.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64, reflect.Float64, reflect.Invalid:
		return v, nil
	default:
	}
	if !v.CanInterface() {
		return v, nil
	}
	n := weigh(v.Interface(), mostBytes)
	if n > mostBytes {
		return v, errTooLarge
	}
	return v, e.spend(n / stepBytes)
}
