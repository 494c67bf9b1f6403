package xds_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// A golden file has prose, the view (viewFile), and what is wanted of it: the names of all resources, and those resources
// whole that the prose is about. UPDATE_GOLDEN=1 rewrites the wanted part.
//
// viewFile is the form in which a golden file writes a view.
type viewFile struct {
	Namespace string // of the proxy
	Addresses []netip.Addr
	Settings  *struct {
		AccessLogFile, AccessLogFormat  string
		AccessLogJSON, BlackHoleUnknown bool
		ConnectTimeoutMillis            int64
	}
	Services []struct {
		Name         string // NAME.NAMESPACE
		Addresses    []netip.Addr
		Headless     bool
		ExternalName mesh.Host
		Ports        []struct {
			Number     uint32
			Protocol   string
			Identities []string
			Instances  []netip.AddrPort
		}
	}
	Inbound struct {
		MTLS  string
		Ports []struct {
			Number         uint32
			Protocol, MTLS string
		}
	}
	Endpoints []struct {
		Of string // the name of their cluster
		At []struct {
			Address               netip.AddrPort
			MTLS, Draining        bool
			Region, Zone, Subzone string
		}
	}
	Show []string // "TYPE NAME", TYPE one of cluster, listener, route, endpoints
}

var protocols = map[string]mesh.Protocol{"": mesh.TCP, "TCP": mesh.TCP, "HTTP": mesh.HTTP, "HTTP2": mesh.HTTP2}
var modes = map[string]mesh.Mode{"": mesh.Permissive, "PERMISSIVE": mesh.Permissive, "STRICT": mesh.Strict, "DISABLE": mesh.Disabled}

func (f viewFile) world(t *testing.T) world {
	t.Helper()
	w := world{settings: settings(), addresses: f.Addresses, inbound: &mesh.Inbound{Namespace: f.Namespace, MTLS: pick(t, modes, f.Inbound.MTLS)}}
	if s := f.Settings; s != nil {
		w.settings.AccessLogFile, w.settings.AccessLogFormat, w.settings.AccessLogJSON = s.AccessLogFile, s.AccessLogFormat, s.AccessLogJSON
		w.settings.BlackHoleUnknown = s.BlackHoleUnknown
		w.settings.ConnectTimeoutMillis = max(s.ConnectTimeoutMillis, w.settings.ConnectTimeoutMillis)
	}
	for _, p := range f.Inbound.Ports {
		w.inbound.Ports = append(w.inbound.Ports, mesh.InboundPort{Number: p.Number, Protocol: pick(t, protocols, p.Protocol), MTLS: pick(t, modes, p.MTLS)})
	}
	for _, s := range f.Services {
		name, namespace, _ := strings.Cut(s.Name, ".")
		svc := service(name, namespace, "")
		svc.Addresses, svc.Headless, svc.ExternalName = s.Addresses, s.Headless, s.ExternalName
		for _, p := range s.Ports {
			svc.Ports = append(svc.Ports, &mesh.ServicePort{
				Number: p.Number, Protocol: pick(t, protocols, p.Protocol), Identities: p.Identities, Instances: p.Instances,
			})
		}
		w.services = append(w.services, svc)
	}
	slices.SortFunc(w.services, func(a, b *mesh.Service) int { return strings.Compare(string(a.Host), string(b.Host)) })
	for _, e := range f.Endpoints {
		key, ok := xds.ParseClusterName(e.Of)
		if !ok {
			t.Fatalf("endpoints of %q: not a cluster", e.Of)
		}
		set := &mesh.EndpointSet{Key: key}
		for _, a := range e.At {
			endpoint := mesh.Endpoint{
				Address: a.Address.Addr(), Port: uint32(a.Address.Port()), MTLS: a.MTLS,
				Locality: mesh.Locality{Region: a.Region, Zone: a.Zone, Subzone: a.Subzone},
			}
			if a.Draining {
				endpoint.Health = mesh.Draining
			}
			set.Endpoints = append(set.Endpoints, endpoint)
		}
		w.endpoints = append(w.endpoints, set)
	}
	return w
}

func pick[V any](t *testing.T, from map[string]V, name string) V {
	t.Helper()
	v, ok := from[name]
	if !ok {
		t.Fatalf("the view says %q", name)
	}
	return v
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(archive.Comment) == 0 || len(archive.Files) == 0 || archive.Files[0].Name != "view.yaml" {
		t.Fatal("a golden file begins with prose and view.yaml")
	}
	var f viewFile
	if err := yaml.UnmarshalStrict(archive.Files[0].Data, &f); err != nil {
		t.Fatal(err)
	}
	w := f.world(t)
	config, err := xds.Generate(w.view(t))
	if err != nil {
		t.Fatal(err)
	}
	byType := map[string][]xds.Resource{"cluster": config.Clusters, "listener": config.Listeners, "route": config.Routes}
	for _, set := range w.endpoints {
		r, err := xds.LoadAssignment(set, nil, mesh.Locality{})
		if err != nil {
			t.Fatal(err)
		}
		byType["endpoints"] = append(byType["endpoints"], r)
	}
	want := []txtar.File{{Name: "names", Data: names(byType)}}
	for _, show := range f.Show {
		kind, name, _ := strings.Cut(show, " ")
		i := slices.IndexFunc(byType[kind], func(r xds.Resource) bool { return r.Name == name })
		if i < 0 {
			t.Fatalf("there is no %s", show)
		}
		want = append(want, txtar.File{Name: show, Data: asYAML(t, byType[kind][i])})
	}
	for _, list := range byType {
		for _, r := range list {
			checkResource(t, r)
		}
	}
	envoyValidates(t, static(t, config))

	archive.Files = append(archive.Files[:1:1], want...)
	got := txtar.Format(archive)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(old), string(got)); diff != "" {
		t.Errorf("the result is not what the file wants (UPDATE_GOLDEN=1 rewrites it): -want +got\n%s", diff)
	}
}

func names(byType map[string][]xds.Resource) []byte {
	var b bytes.Buffer
	for _, kind := range []string{"cluster", "listener", "route", "endpoints"} {
		for _, r := range byType[kind] {
			fmt.Fprintf(&b, "%s %s\n", kind, r.Name)
		}
	}
	return b.Bytes()
}

func asYAML(t *testing.T, r xds.Resource) []byte {
	t.Helper()
	message, err := r.Body.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	out, err := yaml.Marshal(short(tree))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sdsSource is in every TLS context twice; golden files show it by a word.
const sdsSource = `{"api_config_source":{"api_type":"GRPC","grpc_services":[{"envoy_grpc":{"cluster_name":"sds-grpc"}}],` +
	`"set_node_on_first_message_only":true,"transport_api_version":"V3"},"initial_fetch_timeout":"0s","resource_api_version":"V3"}`

func short(tree any) any {
	switch node := tree.(type) {
	case map[string]any:
		for key, value := range node {
			if text, err := json.Marshal(value); err == nil && string(text) == sdsSource {
				node[key] = "(the agent)"
				continue
			}
			node[key] = short(value)
		}
	case []any:
		for i := range node {
			node[i] = short(node[i])
		}
	}
	return tree
}

// checkResource checks what holds for every resource: its body is of the type and valid, down to the last Any inside.
func checkResource(t *testing.T, r xds.Resource) {
	t.Helper()
	if r.Name == "" || r.Version == "" || r.Body == nil {
		t.Errorf("resource %q is not complete: %+v", r.Name, r)
		return
	}
	message, err := r.Body.UnmarshalNew()
	if err != nil {
		t.Errorf("%s: %v", r.Name, err)
		return
	}
	if err := validateAll(message); err != nil {
		t.Errorf("%s is not valid: %v", r.Name, err)
	}
}

// validateAll runs the validation of a message's own type, which goes through plain fields, and of all that is packed in it.
func validateAll(m proto.Message) error {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return err
		}
	}
	if packed, ok := m.(*anypb.Any); ok {
		inner, err := packed.UnmarshalNew()
		if err != nil {
			return err
		}
		return validateAll(inner)
	}
	var failed error
	check := func(v protoreflect.Value) {
		if failed == nil {
			failed = validateAll(v.Message().Interface())
		}
	}
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { check(v); return failed == nil })
		case f.IsMap():
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				check(v.List().Get(i))
			}
		case f.Message() != nil && !f.IsList():
			check(v)
		}
		return failed == nil
	})
	return failed
}
