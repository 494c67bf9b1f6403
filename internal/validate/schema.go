package validate

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// decode reads a spec, or what of it can be read: a value of the wrong form is told and taken out, so that the rest is checked all the
// same. It reports whether nothing had to be taken out.
func (c *check) decode(raw json.RawMessage, into message) bool {
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		c.errorf(diag.WrongForm, spec, "it cannot be read: %v", err)
		return false
	}
	if _, ok := tree.(map[string]any); !ok && tree != nil {
		c.errorf(diag.WrongForm, spec, "it must be an object, and is %s", describe(tree))
		return false
	}
	s := &schema{check: c}
	s.message(into.ProtoReflect().Descriptor(), tree, spec)
	if len(c.pruned) > 0 {
		left, err := json.Marshal(tree)
		if err != nil {
			return false
		}
		raw = left
	}
	if err := into.UnmarshalJSON(raw); err != nil {
		c.errorf(diag.WrongForm, spec, "a value has the wrong form: %s", strings.TrimPrefix(err.Error(), "json: "))
		return false
	}
	return len(c.pruned) == 0
}

// schema compares documents with messages' descriptors. What cannot be read is taken out of the document.
type schema struct {
	*check
	envoy bool // the document is Envoy's: unknown fields are errors, other messages lie within, and durations are only seconds
}

// message reports whether a value can be a message. A field that it does not have is a warning: where the cluster's definitions are
// newer than this program that is no fault of the object.
func (s *schema) message(d protoreflect.MessageDescriptor, value any, at path) bool {
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") {
		return s.wellKnown(d.FullName(), value, at)
	}
	members, ok := value.(map[string]any)
	if !ok {
		return value == nil || s.wrong(at, "it must be an object, and is %s", describe(value))
	}
	oneofs := map[protoreflect.OneofDescriptor]string{}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		f := d.Fields().ByJSONName(name)
		if f == nil {
			f = d.Fields().ByTextName(name)
		}
		if f == nil {
			s.unknown(d, name, at)
			delete(members, name)
			continue
		}
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() && members[name] != nil {
			if other, set := oneofs[o]; set {
				s.errorf(diag.Contradiction, at.field(name), "%s and %s exclude each other", other, name)
				s.prune(at.field(name))
				delete(members, name)
				continue
			}
			oneofs[o] = name
		}
		if s.envoy && deprecated(f.Options()) {
			s.warnf(diag.Deprecated, at.field(name), "Envoy is about to take this field of %s away", d.Name())
		}
		if s.value(f, members[name], at.field(name)) {
			members[name] = s.normal(f, members[name])
		} else {
			delete(members, name)
		}
	}
	return true
}

func (s *schema) unknown(d protoreflect.MessageDescriptor, name string, at path) {
	var names []string
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if s.envoy {
			names = append(names, f.TextName())
		} else {
			names = append(names, f.JSONName())
		}
	}
	var told told
	if s.envoy || s.strict {
		told = s.errorf(diag.UnknownField, at.field(name), "there is no such field in %s", d.Name())
	} else {
		told = s.warnf(diag.UnknownField, at.field(name), "there is no such field in %s: it has no effect", d.Name())
	}
	if near := nearest(name, names); near != "" {
		told.hint("did you mean %s?", near)
	}
}

// wrong notes a value that cannot be read; it is false, for the caller to take the value out.
func (s *schema) wrong(at path, format string, args ...any) bool {
	s.errorf(diag.WrongForm, at, format, args...)
	s.prune(at)
	return false
}

func (s *schema) prune(at path) { s.pruned = append(s.pruned, at.String()) }

func (s *schema) value(f protoreflect.FieldDescriptor, value any, at path) bool {
	switch {
	case value == nil:
		return true
	case f.IsMap():
		members, ok := value.(map[string]any)
		if !ok {
			return s.wrong(at, "it must be an object, and is %s", describe(value))
		}
		for _, key := range slices.Sorted(maps.Keys(members)) {
			if number := f.MapKey().Kind(); number == protoreflect.Uint32Kind {
				if _, err := strconv.ParseUint(key, 10, 32); err != nil {
					s.wrong(at.key(key), "%s is no number, and such are the keys here", quote(key))
					delete(members, key)
					continue
				}
			}
			if !s.single(f.MapValue(), members[key], at.key(key)) {
				delete(members, key)
			}
		}
	case f.IsList():
		items, ok := value.([]any)
		if !ok {
			return s.wrong(at, "it must be a list, and is %s", describe(value))
		}
		whole := true
		for i, item := range items {
			if item == nil {
				s.wrong(at.index(i), "it is null, and an item of a list must be something")
			}
			if items[i] = s.normal(f, item); item == nil || !s.single(f, item, at.index(i)) {
				whole = false // without it the indexes of the rest would be wrong
			}
		}
		if !whole {
			s.prune(at)
		}
		return whole
	default:
		return s.single(f, value, at)
	}
	return true
}

func (s *schema) single(f protoreflect.FieldDescriptor, value any, at path) bool {
	switch {
	case value == nil:
		return true
	case s.envoy && f.Message() != nil && f.Message().FullName() == "google.protobuf.Any":
		return s.packed(value, at)
	case f.Message() != nil:
		return s.message(f.Message(), value, at)
	case f.Enum() != nil:
		return s.enum(f.Enum(), value, at)
	case f.Kind() == protoreflect.StringKind || f.Kind() == protoreflect.BytesKind:
		if _, ok := value.(string); !ok {
			return s.wrong(at, "it must be a string, and is %s: put it in quotes", describe(value))
		}
	case f.Kind() == protoreflect.BoolKind:
		if _, ok := value.(bool); !ok {
			return s.wrong(at, "it must be true or false, and is %s", describe(value))
		}
	default:
		return s.number(f.Kind(), value, at)
	}
	return true
}

func (s *schema) enum(d protoreflect.EnumDescriptor, value any, at path) bool {
	name, ok := value.(string)
	if _, number := value.(float64); !ok && !number && d.FullName() != "google.protobuf.NullValue" {
		return s.wrong(at, "it must be a name, and is %s: put it in quotes", describe(value))
	}
	if !ok || d.Values().ByName(protoreflect.Name(name)) != nil || d.FullName() == "google.protobuf.NullValue" {
		return true // a number is read as one
	}
	var names []string
	for i := range d.Values().Len() {
		names = append(names, string(d.Values().Get(i).Name()))
	}
	told := s.errorf(diag.UnknownValue, at, "it is %s, and must be one of %s", quote(name), strings.Join(names, ", "))
	if near := nearest(name, names); near != "" {
		told.hint("did you mean %s?", near)
	}
	s.prune(at)
	return false
}

// number checks what may be written as a number or as one in quotes.
func (s *schema) number(kind protoreflect.Kind, value any, at path) bool {
	n, ok := value.(float64)
	if text, quoted := value.(string); quoted {
		var err error
		n, err = strconv.ParseFloat(text, 64)
		ok = err == nil
	}
	if !ok {
		return s.wrong(at, "it must be a number, and is %s", describe(value))
	}
	low, high := float64(-1<<63), float64(1<<63)
	switch kind {
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return true
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		low, high = -1<<31, 1<<31
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		low, high = 0, 1<<32
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		low, high = 0, 1<<64
	default:
	}
	switch {
	case n != float64(int64(n)) && n < 1<<63:
		return s.wrong(at, "it must be a whole number, and is %v", n)
	case n < low || n >= high:
		s.errorf(diag.OutOfRange, at, "it is %v, and the numbers here are from %.0f to %.0f", n, low, high-1)
		s.prune(at)
		return false
	}
	return true
}

// wrappers are the messages that are written as what they hold.
var wrappers = map[protoreflect.FullName]protoreflect.Kind{
	"google.protobuf.DoubleValue": protoreflect.DoubleKind, "google.protobuf.FloatValue": protoreflect.FloatKind,
	"google.protobuf.Int64Value": protoreflect.Int64Kind, "google.protobuf.UInt64Value": protoreflect.Uint64Kind,
	"google.protobuf.Int32Value": protoreflect.Int32Kind, "google.protobuf.UInt32Value": protoreflect.Uint32Kind,
}

// wellKnown checks the messages that have forms of their own.
func (s *schema) wellKnown(name protoreflect.FullName, value any, at path) bool {
	if value == nil {
		return true
	}
	if kind, ok := wrappers[name]; ok {
		return s.number(kind, value, at)
	}
	switch name {
	case "google.protobuf.BoolValue":
		if _, ok := value.(bool); !ok {
			return s.wrong(at, "it must be true or false, and is %s", describe(value))
		}
	case "google.protobuf.StringValue", "google.protobuf.BytesValue", "google.protobuf.Timestamp":
		if _, ok := value.(string); !ok {
			return s.wrong(at, "it must be a string, and is %s: put it in quotes", describe(value))
		}
	case "google.protobuf.Struct":
		if _, ok := value.(map[string]any); !ok {
			return s.wrong(at, "it must be an object, and is %s", describe(value))
		}
	case "google.protobuf.Duration":
		return s.length(value, at)
	}
	return true
}

// length checks how a duration is written: 1h30m for Istio, which hands EnvoyFilters' values to the same reader.
func (s *schema) length(value any, at path) bool {
	text, ok := value.(string)
	if ok {
		if _, err := time.ParseDuration(text); err == nil {
			return true
		}
	}
	if !ok {
		text = describe(value)
	} else {
		text = quote(text)
	}
	s.errorf(diag.InvalidDuration, at, "it is %s, and must be a number with a unit, such as 500ms, 5s or 1h", text)
	s.prune(at)
	return false
}

// normal writes a duration of Envoy's in seconds, the only form that readers of its messages have.
func (s *schema) normal(f protoreflect.FieldDescriptor, value any) any {
	text, ok := value.(string)
	if !ok || !s.envoy || f.Message() == nil || f.Message().FullName() != "google.protobuf.Duration" {
		return value
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return value
	}
	return strconv.FormatFloat(d.Seconds(), 'f', 9, 64) + "s"
}

func describe(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case float64:
		return "a number"
	case bool:
		return "true or false"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return "null"
}
