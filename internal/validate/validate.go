// Package validate says what is wrong with one object of Istio's API, looked at alone: fields and values that its schema does not
// have, and what its documentation forbids. It is pure.
//
// What no check here knows is admitted: a refusal stops somebody's work, so it must be right. Checks that need other objects
// belong to an analysis. A new check is one more function call in the kind's check; a new kind is one more row of kinds.
package validate

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	networkingbeta "istio.io/api/networking/v1beta1"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// message is a spec: a protobuf message that reads its JSON as Istio does, durations such as 1h included.
type message interface {
	proto.Message
	json.Unmarshaler
}

// kind is how the objects of one kind are checked.
type kind struct {
	group, name string
	spec        func() message
	check       func(*check, message)
}

// checked makes a kind's check of a function for its type.
func checked[M message](f func(*check, M)) func(*check, message) {
	return func(c *check, m message) {
		if typed, ok := m.(M); ok {
			c.annotations(m)
			f(c, typed)
		}
	}
}

const (
	networkingGroup = "networking.istio.io"
	securityGroup   = "security.istio.io"
	telemetryGroup  = "telemetry.istio.io"
	extensionsGroup = "extensions.istio.io"
)

var kinds = []kind{
	{networkingGroup, "DestinationRule", func() message { return &networking.DestinationRule{} }, checked(destinationRule)},
	{networkingGroup, "EnvoyFilter", func() message { return &networking.EnvoyFilter{} }, checked(envoyFilter)},
	{networkingGroup, "Gateway", func() message { return &networking.Gateway{} }, checked(gateway)},
	{networkingGroup, "ProxyConfig", func() message { return &networkingbeta.ProxyConfig{} }, checked(proxyConfig)},
	{networkingGroup, "ServiceEntry", func() message { return &networking.ServiceEntry{} }, checked(serviceEntry)},
	{networkingGroup, "Sidecar", func() message { return &networking.Sidecar{} }, checked(sidecar)},
	{networkingGroup, "VirtualService", func() message { return &networking.VirtualService{} }, checked(virtualService)},
	{networkingGroup, "WorkloadEntry", func() message { return &networking.WorkloadEntry{} }, checked(workloadEntry)},
	{networkingGroup, "WorkloadGroup", func() message { return &networking.WorkloadGroup{} }, checked(workloadGroup)},
	{securityGroup, "AuthorizationPolicy", func() message { return &security.AuthorizationPolicy{} }, checked(authorizationPolicy)},
	{securityGroup, "PeerAuthentication", func() message { return &security.PeerAuthentication{} }, checked(peerAuthentication)},
	{securityGroup, "RequestAuthentication", func() message { return &security.RequestAuthentication{} }, checked(requestAuthentication)},
	{telemetryGroup, "Telemetry", func() message { return &telemetry.Telemetry{} }, checked(telemetryOf)},
	{extensionsGroup, "WasmPlugin", func() message { return &extensions.WasmPlugin{} }, checked(wasmPlugin)},
	{extensionsGroup, "TrafficExtension", func() message { return &extensions.TrafficExtension{} }, checked(trafficExtension)},
}

// Groups are the API groups of the kinds, sorted.
func Groups() []string {
	var groups []string
	for _, k := range kinds {
		groups = append(groups, k.group)
	}
	slices.Sort(groups)
	return slices.Compact(groups)
}

// Knows reports whether objects of the kind are checked.
func Knows(group, name string) bool { return find(group, name) != nil }

func find(group, name string) *kind {
	for i := range kinds {
		if kinds[i].group == group && kinds[i].name == name {
			return &kinds[i]
		}
	}
	return nil
}

// object is what every object has.
type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name         string            `json:"name"`
		GenerateName string            `json:"generateName"`
		Namespace    string            `json:"namespace"`
		Generation   int64             `json:"generation"`
		Labels       map[string]string `json:"labels"`
		Annotations  map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec json.RawMessage `json:"spec"`
}

// ErrNotJSON is returned for input that is no JSON object.
var ErrNotJSON = errors.New("it is no JSON object of Kubernetes")

// Spec reads the spec of an object as Object does, from JSON. The message is nil when it cannot be read, or when the kind is not one
// of Istio's API, which ok tells apart; a field that the message does not have is a Warning, and all that is wrong with values is
// among the problems too.
func Spec(of ref.Ref, raw json.RawMessage) (read proto.Message, problems []diag.Problem, ok bool) {
	k := find(of.Group, of.Kind)
	if k == nil {
		return nil, nil, false
	}
	c := &check{object: of}
	read = c.run(k, raw)
	return read, c.all(), true
}

// run checks a spec. It gives nil for one that cannot be read as a whole. A fault of a check is contained: it is told, and what was
// found until then stands.
func (c *check) run(k *kind, raw json.RawMessage) (read proto.Message) {
	defer func() {
		if fault := recover(); fault != nil {
			c.warnf(diag.CheckFailed, spec, "it could not be checked, which is a fault of Selvage's: %s", short(fmt.Sprint(fault)))
		}
	}()
	m := k.spec()
	whole := len(raw) == 0 || c.decode(raw, m)
	if whole {
		read = m
	}
	k.check(c, m)
	return read
}

// Object gives the problems of one object, given as JSON; none for kinds that are not of Istio's API. An Error is a reason to refuse
// it, a Warning is not. The error is ErrNotJSON, wrapped.
func Object(raw []byte) ([]diag.Problem, error) { return judge(raw, false) }

// File is Object for a document that has not been through an API server, which would take unknown fields out and ask for a name: they
// are Errors, and so are kinds that Istio's groups do not have. Known reports whether the object is of Istio's API.
func File(raw []byte) (problems []diag.Problem, known bool, err error) {
	var o object
	if problems, err = judge(raw, true); err != nil {
		return nil, false, err
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrNotJSON, err)
	}
	group, _, _ := strings.Cut(o.APIVersion, "/")
	return problems, slices.Contains(Groups(), group), nil
}

func judge(raw []byte, strict bool) ([]diag.Problem, error) {
	var o object
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotJSON, err)
	}
	group, _, grouped := strings.Cut(o.APIVersion, "/")
	if !grouped {
		return nil, nil // a core kind of Kubernetes
	}
	c := &check{
		object: ref.Ref{Group: group, Kind: o.Kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name, Generation: o.Metadata.Generation},
		meta:   &metadata{o.Metadata.Labels, o.Metadata.Annotations}, strict: strict,
	}
	k := find(group, o.Kind)
	switch {
	case k == nil && strict && slices.Contains(Groups(), group):
		c.unknownKind(group)
		return c.all(), nil
	case k == nil:
		return nil, nil
	case strict:
		c.envelope(raw, &o)
	}
	c.run(k, o.Spec)
	return c.all(), nil
}

func (c *check) unknownKind(group string) {
	var names []string
	for _, k := range kinds {
		if k.group == group {
			names = append(names, k.name)
		}
	}
	told := c.errorf(diag.UnknownValue, path{name: "kind"}, "%s has no kind %s", group, quote(c.object.Kind))
	if near := nearest(c.object.Kind, names); near != "" {
		told.hint("did you mean %s?", near)
	}
}

// envelope checks what an API server would: the fields beside the spec, and that there is a name.
func (c *check) envelope(raw []byte, o *object) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return // it was read before
	}
	fields := []string{"apiVersion", "kind", "metadata", "spec", "status"}
	for name := range sorted(all) {
		if slices.Contains(fields, name) {
			continue
		}
		told := c.errorf(diag.UnknownField, path{name: name}, "there is no such field in %s", c.object.Kind)
		if near := nearest(name, fields); near != "" {
			told.hint("did you mean %s?", near)
		}
	}
	if o.Metadata.Name == "" && o.Metadata.GenerateName == "" {
		c.errorf(diag.MissingValue, objectMeta.field("name"), "it is missing")
	}
}
