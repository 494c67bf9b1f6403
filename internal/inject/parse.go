package inject

import (
	"encoding/json"
	"slices"
	"strings"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"

	"google.golang.org/protobuf/proto"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// ParseConfig reads the ConfigMaps' documents and compiles them: mesh is MeshConfig as YAML, config the rules of the decision
// as YAML, values JSON (or YAML). An empty document, and a field that a document leaves out, has its default. The Config is nil
// when a problem of severity Error is among the problems; an older Config then stays in force.
func ParseConfig(mesh, config, values []byte) (*Config, []diag.Problem) {
	settings, problems := ParseSettings(mesh, config, values)
	for _, p := range problems {
		if p.Severity == diag.Error {
			return nil, problems
		}
	}
	cfg, more := settings.Compile()
	return cfg, append(problems, more...)
}

// ParseSettings is ParseConfig without compiling: for who changes or renders the settings.
func ParseSettings(mesh, config, values []byte) (Settings, []diag.Problem) {
	s := Default("")
	var problems []diag.Problem
	if err := yaml.Unmarshal(values, &s.Values); err != nil {
		problems = append(problems, injectorProblem(s.Values, diag.Error, "values", "cannot read it: "+yamlError(err), ""))
		s.Values = Default("").Values
	} else if err := yaml.Unmarshal(values, &s.Document); err != nil {
		problems = append(problems, injectorProblem(s.Values, diag.Error, "values", "cannot read it: "+yamlError(err), ""))
	}
	if s.Values.Revision == "" {
		s.Values.Revision = DefaultRevision
	}
	if s.Values.Global.Namespace == "" {
		s.Values.Global.Namespace = DefaultNamespace
	}
	s.Mesh = defaultMesh(s.Values.Global.Namespace, s.Values.Revision)
	if err := yaml.Unmarshal(config, &s.Injector); err != nil {
		problems = append(problems, injectorProblem(s.Values, diag.Error, "config", "cannot read it: "+yamlError(err), ""))
	}
	problems = append(problems, unknownKeys(s.Values, config)...)
	return s, append(problems, s.readMesh(mesh)...)
}

// injectorKeys are the keys of `config` in Istio's format. Legacy keys of older charts say nothing that we need.
var injectorKeys = []string{"policy", "defaultTemplates", "neverInjectSelector", "alwaysInjectSelector", "injectedAnnotations", "templates", "aliases", "template", "rawTemplates"}

// legacyTemplate is what Istio's charts write into the key template, for control planes that are older than the chart to fail on.
const legacyTemplate = `"{{ Template_Version_And_Istio_Version_Mismatched_Check_Installation }}"`

// unknownKeys warns of keys of `config` that nobody reads: a misspelt neverInjectSelector would inject what must not be.
func unknownKeys(v Values, config []byte) (out []diag.Problem) {
	var keys map[string]json.RawMessage
	if yaml.Unmarshal(config, &keys) != nil {
		return nil // reported where it is read
	}
	for _, key := range sortedKeys(keys) {
		switch {
		case (key == "template" || key == "rawTemplates") && !slices.Contains([]string{"null", `""`, "{}", legacyTemplate}, string(keys[key])):
			out = append(out, injectorProblem(v, diag.Warning, "config."+key, "the key is of Istio before 1.10: it has no effect", "put the template under templates."+sidecarTemplate))
		case !containsFold(injectorKeys, key):
			out = append(out, injectorProblem(v, diag.Warning, "config."+key, "there is no such key: it has no effect", ""))
		}
	}
	return out
}

func containsFold(list []string, s string) bool {
	for _, item := range list {
		if strings.EqualFold(item, s) {
			return true
		}
	}
	return false
}

// readMesh lays the mesh document over the defaults; its defaultConfig is laid over the default one field by field.
func (s *Settings) readMesh(doc []byte) []diag.Problem {
	read := &meshv1alpha1.MeshConfig{}
	named, unknown, err := readProto(doc, read)
	if err != nil {
		return []diag.Problem{meshProblem(s.Values, diag.Error, diag.InvalidMeshConfig, "mesh", "cannot read it: "+yamlError(err))}
	}
	var problems []diag.Problem
	for _, name := range unknown {
		problems = append(problems, meshProblem(s.Values, diag.Warning, diag.UnsupportedField, "mesh."+name, "MeshConfig has no such field in this version: it has no effect"))
	}
	base := s.Mesh.GetDefaultConfig()
	overlay(s.Mesh.ProtoReflect(), read.ProtoReflect(), named)
	inner := named["defaultConfig"]
	if inner == nil {
		inner = named["default_config"]
	}
	merged := base
	if inner != nil {
		// Its errors and unknown fields were found above, in the whole.
		if over, _, err := parseProxyConfig(base, inner); err == nil {
			merged = over
		}
	}
	s.Mesh.DefaultConfig = proto.Clone(merged).(*meshv1alpha1.ProxyConfig)
	return problems
}

// yamlError is the message without the layers that the YAML library puts before it.
func yamlError(err error) string {
	s := err.Error()
	for _, prefix := range []string{"error converting YAML to JSON: ", "error unmarshaling JSON: ", "while decoding JSON: ", "yaml: ", "json: "} {
		s = strings.TrimPrefix(s, prefix)
	}
	return s
}
