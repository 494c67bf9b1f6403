package inject

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// The ConfigMaps and their keys: Istio's, so that people's runbooks and tools find them.
const (
	MeshConfigMap     = "istio" // with -REV
	MeshKey           = "mesh"
	InjectorConfigMap = "istio-sidecar-injector" // with -REV
	InjectorKey       = "config"
	ValuesKey         = "values"
)

// Documents are the settings as text: mesh and config YAML, values indented JSON; the same bytes for the same settings.
// ParseSettings reads them back.
func (s Settings) Documents() (mesh, config, values []byte, err error) {
	asJSON, err := protojson.Marshal(s.Mesh)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("render mesh configuration: %w", err)
	}
	if mesh, err = yaml.JSONToYAML(asJSON); err != nil {
		return nil, nil, nil, fmt.Errorf("render mesh configuration: %w", err)
	}
	in := s.Injector
	if in.NeverInjectSelector == nil { // [] and {} invite an operator to write there; null does not
		in.NeverInjectSelector = []metav1.LabelSelector{}
	}
	if in.AlwaysInjectSelector == nil {
		in.AlwaysInjectSelector = []metav1.LabelSelector{}
	}
	if in.InjectedAnnotations == nil {
		in.InjectedAnnotations = map[string]string{}
	}
	if config, err = yaml.Marshal(in); err != nil {
		return nil, nil, nil, fmt.Errorf("render injector configuration: %w", err)
	}
	if values, err = json.MarshalIndent(s.Values, "", "  "); err != nil {
		return nil, nil, nil, fmt.Errorf("render values: %w", err)
	}
	return mesh, config, append(values, '\n'), nil
}

// ConfigMaps are the two objects to install. They carry no labels: those are the installer's.
func (s Settings) ConfigMaps() ([]*corev1.ConfigMap, error) {
	mesh, config, values, err := s.Documents()
	if err != nil {
		return nil, err
	}
	object := func(base string, data map[string]string) *corev1.ConfigMap {
		return &corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Namespace: s.Values.Global.Namespace, Name: ObjectName(base, s.Values.Revision)},
			Data:       data,
		}
	}
	return []*corev1.ConfigMap{
		object(MeshConfigMap, map[string]string{MeshKey: string(mesh)}),
		object(InjectorConfigMap, map[string]string{InjectorKey: string(config), ValuesKey: string(values)}),
	}, nil
}
