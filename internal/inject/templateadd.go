package inject

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Most of what templates give is new to the pod: containers, volumes, labels. Such a part is decoded and put into the pod, which need not
// become JSON values for that and back: the work is that of the part, however large the pod is. What changes something of the pod's own
// goes through Kubernetes' strategic merge (mergePart). Both give the same pod, which a fuzz test holds them to.

// newOutput decodes a part.
func newOutput(part map[string]any) *output {
	out := &output{part: part}
	pod := &corev1.Pod{}
	if !hasDirective(part) && runtime.DefaultUnstructuredConverter.FromUnstructured(part, pod) == nil {
		out.pod = pod
	}
	return out
}

// add gives the pod with what a template gave; ok is false when some of that is in the pod already. The pod and its lists are not
// changed, and are shared with the result, as what the template gave is.
func (o *output) add(pod *corev1.Pod) (out *corev1.Pod, ok bool) {
	if o.pod == nil {
		return nil, false
	}
	copied := *pod
	out = &copied
	for key, value := range o.part {
		fields, isMap := value.(map[string]any)
		switch {
		case key == "apiVersion":
			out.APIVersion = o.pod.APIVersion
		case key == "kind":
			out.Kind = o.pod.Kind
		case !isMap, // null takes the pod's away
			key == "metadata" && !o.addMeta(&out.ObjectMeta, fields),
			key == "spec" && !o.addSpec(&out.Spec, fields):
			return nil, false
		}
	}
	return out, true
}

// hasDirective reports whether there is a key of the strategic merge's own in a part, such as $patch.
func hasDirective(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for key, item := range v {
			if strings.HasPrefix(key, "$") || hasDirective(item) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, hasDirective)
	}
	return false
}

// addMeta adds labels and annotations.
func (o *output) addMeta(out *metav1.ObjectMeta, fields map[string]any) bool {
	for key, value := range fields {
		values, isMap := value.(map[string]any)
		if !isMap || slices.ContainsFunc(slices.Collect(maps.Values(values)), func(v any) bool { return v == nil }) {
			return false
		}
		switch key {
		case "labels":
			out.Labels = with(out.Labels, o.pod.Labels)
		case "annotations":
			out.Annotations = with(out.Annotations, o.pod.Annotations)
		default:
			return false
		}
	}
	return true
}

// addSpec adds entries to the pod's lists, and fields that the pod does not have.
func (o *output) addSpec(out *corev1.PodSpec, fields map[string]any) (ok bool) {
	gave := &o.pod.Spec
	into, from := reflect.ValueOf(out).Elem(), reflect.ValueOf(gave).Elem()
	known := fieldsOf(into.Type())
	for key, value := range fields {
		_, isList := value.([]any)
		switch key {
		case "containers":
			out.Containers, ok = addEntries(out.Containers, gave.Containers, func(c *corev1.Container) string { return c.Name })
		case "initContainers":
			out.InitContainers, ok = addEntries(out.InitContainers, gave.InitContainers, func(c *corev1.Container) string { return c.Name })
		case "volumes":
			out.Volumes, ok = addEntries(out.Volumes, gave.Volumes, func(v *corev1.Volume) string { return v.Name })
		case "imagePullSecrets":
			out.ImagePullSecrets, ok = addEntries(out.ImagePullSecrets, gave.ImagePullSecrets, func(r *corev1.LocalObjectReference) string { return r.Name })
		default:
			i, has := known[key]
			if ok, isList = !has || isUnset(into.Field(i)), true; has && ok { // what no pod has is lost in any case
				into.Field(i).Set(from.Field(i))
			}
		}
		if !ok || !isList {
			return false
		}
	}
	return true
}

// addEntries puts the entries of a part before those of a list, as the strategic merge does; inOrderOf restores the pod's order later.
func addEntries[T any](list, more []T, name func(*T) string) ([]T, bool) {
	if list != nil && len(list) == 0 {
		return nil, false
	}
	out := append(make([]T, 0, len(more)+len(list)), more...)
	out = append(out, list...)
	for i := range more {
		called := name(&more[i])
		for j := i + 1; j < len(out); j++ {
			if name(&out[j]) == called {
				return nil, false
			}
		}
		if called == "" {
			return nil, false
		}
	}
	return out, true
}

// isUnset reports whether a field has nothing that a merge could keep: the API server writes securityContext as {}.
func isUnset(v reflect.Value) bool {
	return v.IsZero() || v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct && v.Elem().IsZero()
}
