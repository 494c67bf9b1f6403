package index

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshapi "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// MeshKey is the key of the mesh configuration in its ConfigMap.
const MeshKey = "mesh"

// MeshConfig is the mesh configuration in force.
type MeshConfig struct {
	Ref    ref.Ref             // of the ConfigMap; zero for the built-in defaults
	Values *meshapi.MeshConfig // as written; a default stands where a field is unset. Never nil, never to be modified
}

// ParseMeshConfig reads an istio.mesh.v1alpha1.MeshConfig from YAML or JSON. Fields that this version of the API does not
// have are left out and named by ignored; err says that nothing can be used of it.
func ParseMeshConfig(text string) (values *meshapi.MeshConfig, ignored, err error) {
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return nil, nil, fmt.Errorf("parse mesh configuration: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, nil, errors.New("parse mesh configuration: it is not a mapping of fields to values")
	}
	if fields == nil { // an empty document
		return &meshapi.MeshConfig{}, nil, nil
	}
	values = &meshapi.MeshConfig{}
	if err := protojson.Unmarshal(raw, values); err != nil {
		values, ignored, err = parseByField(fields)
		if err != nil {
			return nil, nil, fmt.Errorf("parse mesh configuration: %w", err)
		}
	}
	// The zero value of the mode is not its default, and cannot be told from an unset one once it is parsed.
	if policy := values.GetOutboundTrafficPolicy(); policy != nil && !hasMode(fields) {
		policy.Mode = meshapi.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY
	}
	return values, ignored, nil
}

// parseByField reads what has an error somewhere: it names the field of each, and leaves out what is only unknown. An
// unknown value of an enum is an error: to read it as the first one would turn what was meant into something else.
func parseByField(fields map[string]json.RawMessage) (values *meshapi.MeshConfig, ignored, err error) {
	values = &meshapi.MeshConfig{}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		alone, err := json.Marshal(map[string]json.RawMessage{name: fields[name]})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		var field meshapi.MeshConfig
		if strict := protojson.Unmarshal(alone, &field); strict != nil {
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(alone, &field); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", name, plain(err))
			}
			if strings.Contains(strict.Error(), "invalid value for enum") {
				return nil, nil, fmt.Errorf("%s: %w", name, plain(strict))
			}
			ignored = errors.Join(ignored, plain(strict))
		}
		proto.Merge(values, &field)
	}
	return values, ignored, nil
}

// hasMode reports whether outboundTrafficPolicy has a mode that is known.
func hasMode(fields map[string]json.RawMessage) bool {
	for _, name := range []string{"outboundTrafficPolicy", "outbound_traffic_policy"} {
		var policy struct {
			Mode any `json:"mode"`
		}
		if json.Unmarshal(fields[name], &policy) != nil {
			continue
		}
		if text, ok := policy.Mode.(string); ok {
			_, known := meshapi.MeshConfig_OutboundTrafficPolicy_Mode_value[text]
			return known
		}
		if policy.Mode != nil {
			return true
		}
	}
	return false
}

// prefix is how protojson begins an error. It has a space that is sometimes a no-break space, so that nobody compares the
// text; and the place is one in a JSON that nobody wrote.
var prefix = regexp.MustCompile(`^proto:[\s\x{a0}]*(syntax error )?(\(line \d+:\d+\):\s*)?`)

// plain gives an error of protojson as a sentence that is the same on every run.
func plain(err error) error { return errors.New(prefix.ReplaceAllString(err.Error(), "")) }

// setMesh takes the ConfigMap in, nil when it is gone. What cannot be used leaves the last good configuration in force.
func (b *Builder) setMesh(c *corev1.ConfigMap) {
	if c == nil {
		b.meshText = nil
		if b.mesh.Ref.IsZero() {
			b.meshProblems()
			return
		}
		b.meshProblems(meshProblem(b.mesh.Ref, diag.Warning, "",
			"the ConfigMap is gone; the last mesh configuration stays in force until the control plane restarts",
			"apply it again; `selvage install` writes the default one"))
		return
	}
	text, ok := c.Data[MeshKey]
	if b.meshText != nil && ok && text == *b.meshText {
		return
	}
	r := ref.Ref{Kind: "ConfigMap", Namespace: c.Namespace, Name: c.Name}
	hint := fmt.Sprintf("kubectl -n %s edit configmap %s", c.Namespace, c.Name)
	inForce := "; the last good mesh configuration stays in force"
	if b.mesh.Ref.IsZero() {
		inForce = "; the built-in defaults are in force"
	}
	if !ok {
		b.meshText = nil
		b.meshProblems(meshProblem(r, diag.Error, "data", "there is no key "+MeshKey+inForce, hint))
		return
	}
	b.meshText = &text
	values, ignored, err := ParseMeshConfig(text)
	if err != nil {
		b.meshProblems(meshProblem(r, diag.Error, "data."+MeshKey, err.Error()+inForce, hint))
		return
	}
	b.mesh, b.changed = &MeshConfig{Ref: r, Values: values}, true
	if ignored != nil {
		b.meshProblems(meshProblem(r, diag.Warning, "data."+MeshKey,
			"parse mesh configuration: "+strings.ReplaceAll(ignored.Error(), "\n", ", ")+"; the rest is in force", "mend the spelling, or take the field out: "+hint))
		return
	}
	b.meshProblems()
}

func meshProblem(r ref.Ref, severity diag.Severity, field, detail, hint string) diag.Problem {
	return diag.Problem{Code: diag.InvalidMeshConfig, Severity: severity, Object: r, Field: field, Detail: detail, Hint: hint}
}
