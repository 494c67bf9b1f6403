package validate

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// decode reads a spec. It reports false when that cannot be read, and why is among the problems.
func (c *check) decode(raw json.RawMessage, into message) bool {
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		c.errorf(spec, "it cannot be read: %v", err)
		return false
	}
	before := len(c.problems)
	c.schema(into.ProtoReflect().Descriptor(), tree, spec)
	for _, p := range c.problems[before:] {
		if p.Severity == diag.Error {
			return false
		}
	}
	if err := into.UnmarshalJSON(raw); err != nil {
		c.errorf(spec, "a value has the wrong form: %s", strings.TrimPrefix(err.Error(), "json: "))
		return false
	}
	return true
}

// schema compares a document with a message's descriptor. A field that it does not have is a warning: where the cluster's
// definitions are newer than this program that is no fault of the object. An unknown name of an enumeration is an error.
func (c *check) schema(d protoreflect.MessageDescriptor, value any, at path) {
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") {
		return // durations, wrappers and structs have forms of their own
	}
	members, ok := value.(map[string]any)
	if !ok {
		if value != nil {
			c.errorf(at, "it must be an object, and is %s", describe(value))
		}
		return
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		f := d.Fields().ByJSONName(name)
		if f == nil {
			f = d.Fields().ByTextName(name)
		}
		if f == nil {
			c.warnf(at.field(name), "there is no such field in %s: it has no effect", d.Name())
			continue
		}
		c.value(f, members[name], at.field(name))
	}
}

func (c *check) value(f protoreflect.FieldDescriptor, value any, at path) {
	switch {
	case value == nil:
	case f.IsMap():
		members, ok := value.(map[string]any)
		if !ok {
			c.errorf(at, "it must be an object, and is %s", describe(value))
			return
		}
		for _, key := range slices.Sorted(maps.Keys(members)) {
			c.single(f.MapValue(), members[key], at.key(key))
		}
	case f.IsList():
		items, ok := value.([]any)
		if !ok {
			c.errorf(at, "it must be a list, and is %s", describe(value))
			return
		}
		for i, item := range items {
			c.single(f, item, at.index(i))
		}
	default:
		c.single(f, value, at)
	}
}

func (c *check) single(f protoreflect.FieldDescriptor, value any, at path) {
	switch {
	case f.Message() != nil:
		c.schema(f.Message(), value, at)
	case f.Enum() != nil:
		name, ok := value.(string)
		if !ok || f.Enum().Values().ByName(protoreflect.Name(name)) != nil || f.Enum().FullName() == "google.protobuf.NullValue" {
			return // a number is read as one
		}
		var names []string
		for i := range f.Enum().Values().Len() {
			names = append(names, string(f.Enum().Values().Get(i).Name()))
		}
		c.errorf(at, "it is %s, and must be one of %s", quote(name), strings.Join(names, ", "))
	case f.Kind() == protoreflect.StringKind && value != nil:
		if _, ok := value.(string); !ok {
			c.errorf(at, "it must be a string, and is %s: put it in quotes", describe(value))
		}
	case f.Kind() == protoreflect.BoolKind && value != nil:
		if _, ok := value.(bool); !ok {
			c.errorf(at, "it must be true or false, and is %s", describe(value))
		}
	}
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
