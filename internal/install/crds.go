package install

import (
	_ "embed" // the generated definitions
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

//go:generate go run ./gen
//go:generate go run ./chart

// definitions holds one custom resource definition a line, after a comment.
//
//go:embed crds.gen.jsonl
var definitions string

// crds gives Istio's custom resource definitions, sorted by name.
func crds() ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for line := range strings.Lines(definitions) {
		if strings.HasPrefix(line, "//") {
			continue
		}
		crd := &unstructured.Unstructured{}
		if err := json.Unmarshal([]byte(line), &crd.Object); err != nil {
			return nil, fmt.Errorf("parse embedded definition: %w", err)
		}
		crd.SetLabels(sharedLabels())
		out = append(out, crd)
	}
	return out, nil
}
