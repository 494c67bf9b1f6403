package inject

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"sigs.k8s.io/yaml"
)

// carriedOut are the fields of ProxyConfig that have an effect: the agent reads those marked true from PROXY_CONFIG, injection
// itself acts on the others. Everything else that is set becomes a Problem.
var carriedOut = map[string]bool{
	"discoveryAddress":                true,
	"concurrency":                     true,
	"drainDuration":                   true,
	"terminationDrainDuration":        true,
	"fileFlushInterval":               true,
	"fileFlushMinSizeKb":              true,
	"proxyStatsMatcher":               true,
	"runtimeValues":                   true,
	"proxyMetadata":                   false,
	"image":                           false,
	"holdApplicationUntilProxyStarts": false,
	"meshId":                          false,
	"interceptionMode":                false,
	"statusPort":                      false,
}

// agentVariables are the environment variables that the agent reads besides ISTIO_META_NAME and ISTIO_METAJSON_NAME, and those of
// Go's runtime. A test asks the agent itself.
var agentVariables = []string{
	"POD_NAME", "POD_NAMESPACE", "INSTANCE_IP", "HOST_IP", "SERVICE_ACCOUNT", "PROXY_CONFIG", "CA_ADDR", "ISTIOD_SAN", "TRUST_DOMAIN", "ISTIO_CPU_LIMIT",
	"ISTIO_KUBE_APP_PROBERS", "ISTIO_PROMETHEUS_ANNOTATIONS", "ISTIO_BOOTSTRAP_OVERRIDE", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "MINIMUM_DRAIN_DURATION",
	"SECRET_TTL", "SECRET_GRACE_PERIOD_RATIO", "GOMEMLIMIT", "GOMAXPROCS", "GOGC", "GODEBUG",
}

func agentReads(name string) bool {
	return slices.Contains(agentVariables, name) || strings.HasPrefix(name, "ISTIO_META_") || strings.HasPrefix(name, "ISTIO_METAJSON_")
}

// asInstalled are fields that Istio's charts write out with the only value that they can have here: no Problem.
var asInstalled = map[string]string{
	"binaryPath":             "/usr/local/bin/envoy",
	"configPath":             "./etc/istio/proxy",
	"controlPlaneAuthPolicy": "MUTUAL_TLS",
	"proxyAdminPort":         "15000",
	"serviceCluster":         "istio-proxy",
	"statNameLength":         "189",
	"tracing":                "",
}

// parseProxyConfig reads a ProxyConfig document (YAML or JSON, the names of fields in either of protobuf's spellings) and lays
// it over base, which is not changed. A field that the document names wins, also with its zero value; proxyMetadata is merged by
// key. unknown lists fields that this version's API does not have.
func parseProxyConfig(base *meshv1alpha1.ProxyConfig, doc []byte) (merged *meshv1alpha1.ProxyConfig, unknown []string, err error) {
	over := &meshv1alpha1.ProxyConfig{}
	named, unknown, err := readProto(doc, over)
	if err != nil {
		return nil, nil, err
	}
	merged = proto.Clone(base).(*meshv1alpha1.ProxyConfig)
	overlay(merged.ProtoReflect(), over.ProtoReflect(), named)
	return merged, unknown, nil
}

// readProto reads YAML or JSON into an empty message and returns the top-level names that the document has. A name that the
// message does not know is left out and returned in unknown.
func readProto(doc []byte, into proto.Message) (named map[string]json.RawMessage, unknown []string, err error) {
	asJSON, err := yaml.YAMLToJSON(doc)
	if err != nil {
		return nil, nil, err
	}
	if string(asJSON) == "null" {
		return nil, nil, nil
	}
	if err := json.Unmarshal(asJSON, &named); err != nil {
		return nil, nil, fmt.Errorf("it is not a map of fields")
	}
	fields := into.ProtoReflect().Descriptor().Fields()
	for name := range named {
		if fieldNamed(fields, name) == nil {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	if err := protojson.Unmarshal(asJSON, into); err != nil {
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(asJSON, into); err != nil {
			return nil, nil, cleanProtoError(err)
		}
		if len(unknown) == 0 { // deeper down: the error's own words say which
			unknown = append(unknown, cleanProtoError(err).Error())
		}
	}
	return named, unknown, nil
}

// cleanProtoError takes away the marker that protobuf puts before its messages to keep programs from comparing them.
func cleanProtoError(err error) error {
	s := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	return fmt.Errorf("%s", strings.TrimSpace(s))
}

// fieldNamed finds a field by its JSON or its proto name.
func fieldNamed(fields protoreflect.FieldDescriptors, name string) protoreflect.FieldDescriptor {
	if f := fields.ByJSONName(name); f != nil {
		return f
	}
	return fields.ByName(protoreflect.Name(name))
}

// overlay sets in dst every field that named names, from src. The maps of strings are merged by key.
func overlay(dst, src protoreflect.Message, named map[string]json.RawMessage) {
	fields := dst.Descriptor().Fields()
	for name := range named {
		f := fieldNamed(fields, name)
		switch {
		case f == nil:
		case f.IsMap() && src.Has(f):
			into := dst.Mutable(f).Map()
			src.Get(f).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				into.Set(k, v)
				return true
			})
		case src.Has(f):
			dst.Set(f, src.Get(f))
		default:
			dst.Clear(f)
		}
	}
}

// proxyConfigEnv is PROXY_CONFIG: the fields that the agent reads, as compact JSON with the fields in the order of the proto,
// the same bytes on every run and in every build.
func proxyConfigEnv(pc *meshv1alpha1.ProxyConfig) string {
	slim := &meshv1alpha1.ProxyConfig{}
	from, into := pc.ProtoReflect(), slim.ProtoReflect()
	for name, agent := range carriedOut {
		if f := from.Descriptor().Fields().ByJSONName(name); agent && from.Has(f) {
			into.Set(f, from.Get(f))
		}
	}
	return compactProto(slim)
}

// compactProto is protojson without the white space that it varies on purpose.
func compactProto(m proto.Message) string {
	data, err := protojson.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", m, err)) // only for invalid UTF-8, which no decoder of ours lets in
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		panic(fmt.Sprintf("encode %T: %v", m, err))
	}
	return b.String()
}

// notCarriedOut lists the fields of a ProxyConfig that are set and have no effect, by their JSON names, sorted.
func notCarriedOut(pc *meshv1alpha1.ProxyConfig) (names []string) {
	pc.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := f.JSONName()
		if name == "proxyMetadata" {
			for key := range pc.GetProxyMetadata() {
				if !agentReads(key) {
					names = append(names, "proxyMetadata."+key)
				}
			}
			return true
		}
		if _, ok := carriedOut[name]; ok {
			return true
		}
		if usual, ok := asInstalled[name]; ok && sameScalar(f, v, usual) {
			return true
		}
		names = append(names, name)
		return true
	})
	slices.Sort(names)
	return names
}

// sameScalar compares a scalar or an enum with its text; a message is the same as "" when it is empty.
func sameScalar(f protoreflect.FieldDescriptor, v protoreflect.Value, text string) bool {
	switch {
	case f.IsMap() || f.IsList():
		return false
	case f.Kind() == protoreflect.MessageKind:
		return text == "" && proto.Size(v.Message().Interface()) == 0
	case f.Kind() == protoreflect.EnumKind:
		value := f.Enum().Values().ByNumber(v.Enum())
		return value != nil && string(value.Name()) == text
	}
	return v.String() == text
}
