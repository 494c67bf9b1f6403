package validate

import (
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routes "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	manager "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// patched are the messages of Envoy's that the value of a patch is, or is merged into.
var patched = map[networking.EnvoyFilter_ApplyTo]proto.Message{
	networking.EnvoyFilter_LISTENER: (*listener.Listener)(nil), networking.EnvoyFilter_FILTER_CHAIN: (*listener.FilterChain)(nil),
	networking.EnvoyFilter_NETWORK_FILTER: (*listener.Filter)(nil), networking.EnvoyFilter_LISTENER_FILTER: (*listener.ListenerFilter)(nil),
	networking.EnvoyFilter_HTTP_FILTER: (*manager.HttpFilter)(nil), networking.EnvoyFilter_CLUSTER: (*cluster.Cluster)(nil),
	networking.EnvoyFilter_ROUTE_CONFIGURATION: (*routes.RouteConfiguration)(nil), networking.EnvoyFilter_VIRTUAL_HOST: (*routes.VirtualHost)(nil),
	networking.EnvoyFilter_HTTP_ROUTE: (*routes.Route)(nil), networking.EnvoyFilter_EXTENSION_CONFIG: (*core.TypedExtensionConfig)(nil),
	networking.EnvoyFilter_BOOTSTRAP: (*bootstrap.Bootstrap)(nil),
}

// payload checks the value of a patch as a proxy would: field by field against Envoy's messages, through the messages that are packed
// within, and then by the rules that Envoy has for each field.
func (c *check) payload(at path, p *networking.EnvoyFilter_EnvoyConfigObjectPatch, raw json.RawMessage) {
	prototype, ok := patched[p.GetApplyTo()]
	if !ok {
		return
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		c.errorf(diag.PatchValue, at, "it cannot be read: %v", err)
		return
	}
	before, gone := c.errors(), len(c.pruned)
	m := prototype.ProtoReflect().New()
	s := &schema{check: c, envoy: true}
	s.message(m.Descriptor(), tree, at)
	unreadable := c.pruned[gone:]
	left, err := json.Marshal(tree)
	if err != nil {
		return
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(left, m.Interface()); err != nil {
		if c.errors() == before {
			c.errorf(diag.PatchValue, at, "it is no %s of Envoy's: %s", m.Descriptor().Name(), short(position.ReplaceAllString(err.Error(), "")))
		}
		return
	}
	if len(unreadable) > 0 {
		return // what is missing would be told of what was taken out
	}
	c.rules(place{at, tree}, m, p.GetPatch().GetOperation() == networking.EnvoyFilter_Patch_MERGE)
}

func (c *check) errors() (n int) {
	for _, p := range c.problems {
		if p.Severity == diag.Error {
			n++
		}
	}
	return n + c.left
}

// position is how protojson's errors begin.
var position = regexp.MustCompile(`^proto:.?(?:syntax error )?\(line \d+:\d+\):.?`)

// packed checks a message of any type. It reports false, for the caller to take it out, where the type is not known.
func (s *schema) packed(value any, at path) bool {
	members, ok := value.(map[string]any)
	if !ok {
		return s.wrong(at, "it must be an object, and is %s", describe(value))
	}
	url, ok := members["@type"].(string)
	if !ok {
		s.errorf(diag.PatchType, at.field("@type"), "it is missing: without it nobody knows what the rest is").hint("write type.googleapis.com/ and the name of a message of Envoy's")
		s.prune(at)
		return false
	}
	t, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		if s.unknownType(url, at.field("@type")) {
			return false
		}
		clear(members) // something of another type takes its place, so that it is not missed
		members["@type"], members["value"] = typePrefix+string((*emptypb.Empty)(nil).ProtoReflect().Descriptor().FullName()), map[string]any{}
		return true
	}
	d := t.Descriptor()
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") {
		return true
	}
	delete(members, "@type")
	s.message(d, members, at)
	members["@type"] = url
	return true
}

// typePrefix begins the names of types.
const typePrefix = "type.googleapis.com/"

// unknownType tells a name that is wrong from one that only this program does not know: proxies may be built with more.
func (s *schema) unknownType(url string, at path) (wrong bool) {
	name := protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:])
	var names []string
	protoregistry.GlobalFiles.RangeFilesByPackage(name.Parent(), func(f protoreflect.FileDescriptor) bool {
		for i := range f.Messages().Len() {
			names = append(names, string(f.Messages().Get(i).FullName()))
		}
		return true
	})
	switch {
	case !strings.Contains(url, "/") || !name.IsValid():
		s.errorf(diag.PatchType, at, "%s is no name of a type", quote(url)).hint("write type.googleapis.com/ and the name of a message of Envoy's")
	case len(names) > 0:
		told := s.errorf(diag.PatchType, at, "Envoy has no type %s", quote(string(name)))
		if near := nearest(string(name.Name()), lastParts(names)); near != "" {
			told.hint("did you mean %s%s.%s?", typePrefix, name.Parent(), near)
		}
	case strings.Contains(url, ".v2.") || strings.Contains(url, ".v2alpha"):
		s.errorf(diag.PatchType, at, "%s is of an old API, which proxies do not read any more", quote(string(name))).hint("use the type of the same name whose package ends in v3")
	default:
		s.warnf(diag.PatchType, at, "the type %s is not known here, so what is in it was not checked", quote(string(name))).hint("leave it if the proxies are built with it")
		return false
	}
	s.prune(at)
	return true
}

func lastParts(names []string) (parts []string) {
	for _, n := range names {
		parts = append(parts, n[strings.LastIndexByte(n, '.')+1:])
	}
	return parts
}

// deprecated reports whether a field is one that is about to go.
func deprecated(o protoreflect.ProtoMessage) bool {
	options, ok := o.(*descriptorpb.FieldOptions)
	return ok && options.GetDeprecated()
}

// place is where in the object a message stands, and how it is written there.
type place struct {
	at   path
	tree any
}

// member is where a field stands, by the name that it is written with.
func (p place) member(f protoreflect.FieldDescriptor) place {
	members, _ := p.tree.(map[string]any)
	if v, ok := members[f.JSONName()]; ok {
		return place{p.at.field(f.JSONName()), v}
	}
	return place{p.at.field(f.TextName()), members[f.TextName()]}
}

func (p place) item(i int) place {
	items, _ := p.tree.([]any)
	if i < len(items) {
		return place{p.at.index(i), items[i]}
	}
	return place{p.at.index(i), nil}
}

func (p place) entry(key string) place {
	members, _ := p.tree.(map[string]any)
	return place{p.at.key(key), members[key]}
}

// rules checks a message, and those that are packed within, by Envoy's rules. In a part, which is merged into a message, what is not
// there breaks none.
func (c *check) rules(p place, m protoreflect.Message, part bool) {
	if v, ok := m.Interface().(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			c.violations(p, m, err, part)
		}
	}
	c.within(p, m, part)
}

// within goes through the messages that a message has, to those of any type.
func (c *check) within(p place, m protoreflect.Message, part bool) {
	if any, ok := m.Interface().(*anypb.Any); ok {
		if inner, err := any.UnmarshalNew(); err == nil {
			c.rules(p, inner.ProtoReflect(), part)
		}
		return
	}
	if f := m.Descriptor().Fields().ByName("typed_config"); f != nil && !part && m.Descriptor().Fields().ByName("name") != nil && !configured(m) {
		c.warnf(diag.Deprecated, p.at, "it has no typed_config: proxies do not find extensions by their names any more").hint("add typed_config, with an @type")
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		where := p.member(f)
		switch {
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				c.within(where.item(i), v.List().Get(i).Message(), part)
			}
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				c.within(where.entry(k.String()), v.Message(), part)
				return true
			})
		case f.Message() != nil && !f.IsMap():
			c.within(where, v.Message(), part)
		}
		return true
	})
}

// configured reports whether an extension has its configuration, or a way to it.
func configured(m protoreflect.Message) bool {
	for _, name := range []protoreflect.Name{"typed_config", "config_discovery"} {
		if f := m.Descriptor().Fields().ByName(name); f != nil && m.Has(f) {
			return true
		}
	}
	return false
}

// violation is an error of the rules that are generated with Envoy's messages.
type violation interface {
	Field() string
	Reason() string
	Cause() error
}

func (c *check) violations(p place, m protoreflect.Message, err error, part bool) {
	if several, ok := err.(interface{ AllErrors() []error }); ok {
		for _, e := range several.AllErrors() {
			c.violations(p, m, e, part)
		}
		return
	}
	var v violation
	if !errors.As(err, &v) {
		c.errorf(diag.PatchRule, p.at, "%s", short(err.Error()))
		return
	}
	name, index, indexed := strings.Cut(strings.TrimSuffix(v.Field(), "]"), "[")
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if goName(f.Name()) != name {
			continue
		}
		where := p.member(f)
		value := m.Get(f)
		switch n, notNumber := strconv.Atoi(index); {
		case indexed && f.IsList() && notNumber == nil && n < value.List().Len():
			where, value = where.item(n), value.List().Get(n)
		case indexed && f.IsMap():
			where, value = where.entry(index), value.Map().Get(protoreflect.ValueOfString(index).MapKey())
		}
		if inner, ok := value.Interface().(protoreflect.Message); ok && v.Cause() != nil && value.IsValid() {
			c.violations(where, inner, v.Cause(), part)
		} else if !part || m.Has(f) {
			c.errorf(diag.PatchRule, where.at, "Envoy's rule for it: %s", short(v.Reason()))
		}
		return
	}
	if choice := oneof(m, name); choice == "" {
		c.errorf(diag.PatchRule, p.at, "Envoy's rule for %s: %s", name, short(v.Reason()))
	} else if !part {
		c.errorf(diag.PatchRule, p.at, "%s", choice)
	}
}

// oneof says what a choice of which nothing is set is between; "" where there is none of the name.
func oneof(m protoreflect.Message, name string) string {
	for i := range m.Descriptor().Oneofs().Len() {
		if o := m.Descriptor().Oneofs().Get(i); goName(o.Name()) == name {
			var names []string
			for j := range o.Fields().Len() {
				names = append(names, o.Fields().Get(j).TextName())
			}
			return "one of " + strings.Join(names, ", ") + " is needed"
		}
	}
	return ""
}

// goName is the name that the field has in Go: words put together, each with a capital.
func goName(name protoreflect.Name) string {
	var b strings.Builder
	upper := true
	for i, r := range string(name) {
		if r == '_' && i+1 < len(name) && name[i+1] >= 'a' && name[i+1] <= 'z' {
			upper = true
			continue
		}
		if upper && r >= 'a' && r <= 'z' {
			r -= 'a' - 'A'
		}
		upper = r >= '0' && r <= '9'
		b.WriteRune(r)
	}
	return b.String()
}
