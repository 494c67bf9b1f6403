package inject

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	yamlv2 "go.yaml.in/yaml/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

// podSchema knows by which key the lists of a pod are merged.
var podSchema = sync.OnceValue(func() strategicpatch.LookupPatchMeta {
	schema, err := strategicpatch.NewPatchMetaFromStruct(corev1.Pod{})
	if err != nil {
		panic("read the pod's merge keys: " + err.Error())
	}
	return schema
})

// readOutput reads what a template gave: a part of a pod, as YAML. Numbers come as int64 and float64, as a pod's own do.
func readOutput(text []byte) (map[string]any, error) {
	part, err := readYAML(text)
	if err != nil {
		return nil, fmt.Errorf("what it gives is no YAML: %s", withLine(yamlError(err), text))
	}
	for key := range part {
		switch key {
		case "metadata", "spec", "apiVersion", "kind":
		default:
			return nil, fmt.Errorf("what it gives has the field %q, and a pod has metadata and spec", key)
		}
	}
	return part, quantitiesIn(part, false)
}

// quantitiesIn is CheckQuantities for what a template gave: it may have it from an annotation of the pod.
func quantitiesIn(v any, quantities bool) error {
	switch v := v.(type) {
	case map[string]any:
		for key, item := range v {
			if err := quantitiesIn(item, quantities || isQuantity(key)); err != nil {
				return err
			}
		}
	case []any:
		for _, item := range v {
			if err := quantitiesIn(item, false); err != nil {
				return err
			}
		}
	case string:
		if quantities && longExponent.MatchString(v) {
			return fmt.Errorf("what it gives has the quantity %q, which has too many digits", v)
		}
	}
	return nil
}

// readYAML gives the same as sigs.k8s.io/yaml, which is how Kubernetes reads YAML, without its way through the text of a JSON document.
func readYAML(text []byte) (map[string]any, error) {
	var tree any
	if err := yamlv2.Unmarshal(text, &tree); err == nil {
		if v, ok := plainJSON(tree); ok {
			switch v := v.(type) {
			case map[string]any:
				return v, nil
			case nil:
				return nil, nil
			}
		}
	}
	var part map[string]any // what is odd or wrong
	if err := yaml.Unmarshal(text, &part); err != nil {
		return nil, err
	}
	return whole64(part).(map[string]any), nil
}

// plainJSON makes JSON values of YAML's; ok is false when there is something that has no such value or not the same one.
func plainJSON(v any) (out any, ok bool) {
	switch v := v.(type) {
	case nil, bool:
		return v, true
	case string:
		return v, utf8.ValidString(v)
	case int:
		if v > -1<<53 && v < 1<<53 {
			return int64(v), true
		}
	case float64:
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			return whole64(v), true
		}
	case map[any]any:
		out := make(map[string]any, len(v))
		for key, item := range v {
			name, isText := key.(string)
			if !isText || !utf8.ValidString(name) {
				return nil, false
			}
			if out[name], ok = plainJSON(item); !ok {
				return nil, false
			}
		}
		return out, true
	case []any:
		for i := range v {
			if v[i], ok = plainJSON(v[i]); !ok {
				return nil, false
			}
		}
		return v, true
	}
	return nil, false
}

// whole64 makes integers of the numbers that are whole. It changes the maps and lists themselves.
func whole64(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, item := range v {
			v[key] = whole64(item)
		}
	case []any:
		for i := range v {
			v[i] = whole64(v[i])
		}
	case float64:
		if n := int64(v); float64(n) == v && math.Abs(v) < 1<<53 {
			return n
		}
	}
	return v
}

var yamlLine = regexp.MustCompile(`\bline (\d+)`)

// withLine adds the line that a message of the YAML library names.
func withLine(message string, text []byte) string {
	m := yamlLine.FindStringSubmatch(message)
	if m == nil {
		return message
	}
	n, err := strconv.Atoi(m[1])
	lines := strings.Split(string(text), "\n")
	if err != nil || n < 1 || n > len(lines) {
		return message
	}
	line := strings.TrimSpace(lines[n-1])
	if len(line) > 100 {
		line = strings.ToValidUTF8(line[:100], "") + "…"
	}
	return message + ": " + strconv.Quote(line) + " (line " + m[1] + " is that of the output)"
}

// mergedPod is a pod with what a template gave. The pod is not changed, and shares with the result.
func mergedPod(pod *corev1.Pod, gave *output) (*corev1.Pod, error) {
	if out, ok := gave.add(pod); ok {
		return out, nil
	}
	managed := pod.ManagedFields
	rest := *pod
	rest.ManagedFields = nil // they can be most of a pod, and no template changes them
	merged, err := podMap(&rest)
	if err != nil {
		return nil, err
	}
	if merged, err = mergePart(merged, gave.part); err != nil {
		return nil, err
	}
	out, err := podFromMap(merged)
	if err != nil {
		return nil, err
	}
	out.ManagedFields = managed
	return out, nil
}

// podMap is a pod as JSON values.
func podMap(pod *corev1.Pod) (map[string]any, error) {
	return runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
}

// mergePart merges what a template gave into a pod, by Kubernetes' strategic merge. into is changed; part is not.
func mergePart(into, part map[string]any) (merged map[string]any, err error) {
	defer func() {
		if p := recover(); p != nil { // lists of the wrong kind
			merged, err = nil, fmt.Errorf("what it gives cannot be merged into a pod: %v", p)
		}
	}()
	merged, err = strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(into, copyJSON(part).(map[string]any), podSchema())
	if err != nil {
		return nil, fmt.Errorf("what it gives cannot be merged into a pod: %s", strings.TrimSpace(err.Error()))
	}
	return merged, nil
}

// podFromMap is the inverse of podMap.
func podFromMap(m map[string]any) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(m, pod); err != nil {
		return nil, fmt.Errorf("what it gives does not fit into a pod: %w", err)
	}
	return pod, nil
}

// namesOf are the names of the entries of one of the lists of spec that templates gave, in their order. Those that a part wants to
// be deleted are none.
func namesOf(parts []*output, list string) (names []string, err error) {
	for _, gave := range parts {
		spec, _ := gave.part["spec"].(map[string]any)
		if spec == nil || spec[list] == nil {
			continue
		}
		entries, ok := spec[list].([]any)
		if !ok {
			return nil, fmt.Errorf("what it gives has spec.%s, which is no list", list)
		}
		for _, e := range entries {
			entry, _ := e.(map[string]any)
			name, _ := entry["name"].(string)
			switch {
			case entry["$patch"] != nil:
			case name == "":
				return nil, errors.New("what it gives has an entry of spec." + list + " without a name")
			case !slices.Contains(names, name):
				names = append(names, name)
			}
		}
	}
	return names, nil
}
