package inject

import (
	"strings"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// HasRule reports whether injection knows one thing to do with an annotation, and one only.
func HasRule(name string) bool {
	r, n := rules[name], 0
	for _, has := range []bool{r.set != nil, r.missing != "", r.ignored != ""} {
		if has {
			n++
		}
	}
	return n == 1
}

// MergeContainer is how a user's part of a container is merged.
var MergeContainer = mergeContainer

// AgentVariables are the variables that proxyMetadata may set with an effect.
var AgentVariables = agentVariables

// AddPart and MergePart are the two ways of a template's output into a pod: what is new to it is added, anything else is merged.
func AddPart(pod *corev1.Pod, part map[string]any) (*corev1.Pod, bool) {
	return newOutput(part).add(pod)
}

// MergePart gives an error where the part cannot be merged.
func MergePart(pod *corev1.Pod, part map[string]any) (*corev1.Pod, error) {
	m, err := podMap(pod)
	if err == nil {
		m, err = mergePart(m, part)
	}
	if err != nil {
		return nil, err
	}
	return podFromMap(m)
}

// ReadYAML is how a template's output is read.
var ReadYAML = readYAML

// Parsers are those of annotations' values, each with the text of what it read.
var Parsers = map[string]func(string) (string, error){
	"ports":      parsePortsOrAll,
	"ranges":     parseRangesOrAll,
	"interfaces": parseInterfaces,
	"quantity": func(value string) (string, error) {
		q, err := parseQuantity(value)
		return q.String(), err
	},
	"targets": func(value string) (string, error) {
		list, err := parseTargets(value, nil)
		var ports []string
		for _, target := range list {
			ports = append(ports, target.Port)
		}
		return strings.Join(ports, ","), err
	},
	"config": func(value string) (string, error) {
		pc, _, err := parseProxyConfig(&meshv1alpha1.ProxyConfig{}, []byte(value))
		if err != nil {
			return "", err
		}
		return compactProto(pc), nil
	},
}
