package inject

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Most of what templates give is new to the pod: containers, volumes, labels. Such a part is decoded and put into the pod, which need not
// become JSON values for that and back: the work is that of the part, however large the pod is. What changes something of the pod's own
// goes through Kubernetes' strategic merge (mergePart). Both give the same pod, which a fuzz test holds them to.

// addPart gives the pod with a part of which nothing is in the pod yet; ok is false when this is no such part. The pod and its lists
// are not changed, and are shared with the result as far as nobody may change them there.
func addPart(pod *corev1.Pod, part map[string]any) (out *corev1.Pod, ok bool) {
	if hasDirective(part) {
		return nil, false
	}
	copied := *pod
	out = &copied
	for key, value := range part {
		switch key {
		case "apiVersion", "kind":
			text, isText := value.(string)
			if !isText {
				return nil, false
			}
			if key == "kind" {
				out.Kind = text
			} else {
				out.APIVersion = text
			}
		case "metadata":
			if !addMeta(out, value) {
				return nil, false
			}
		case "spec":
			spec, isMap := value.(map[string]any)
			if !isMap || !addSpec(&out.Spec, spec) {
				return nil, false
			}
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
func addMeta(out *corev1.Pod, value any) bool {
	meta, ok := value.(map[string]any)
	if !ok {
		return false
	}
	for key, value := range meta {
		var into *map[string]string
		switch key {
		case "labels":
			into = &out.Labels
		case "annotations":
			into = &out.Annotations
		default:
			return false
		}
		more, ok := value.(map[string]any)
		if !ok {
			return false
		}
		all := make(map[string]string, len(*into)+len(more)+4) // there is room for what injection adds itself
		maps.Copy(all, *into)
		for name, value := range more {
			text, ok := value.(string)
			if !ok {
				return false
			}
			all[name] = text
		}
		*into = all
	}
	return true
}

// addSpec adds entries to the pod's lists, and fields that the pod does not have.
func addSpec(out *corev1.PodSpec, spec map[string]any) (ok bool) {
	var fields map[string]any
	for key, value := range spec {
		switch key {
		case "containers":
			out.Containers, ok = addEntries(out.Containers, value, func(c *corev1.Container) string { return c.Name })
		case "initContainers":
			out.InitContainers, ok = addEntries(out.InitContainers, value, func(c *corev1.Container) string { return c.Name })
		case "volumes":
			out.Volumes, ok = addEntries(out.Volumes, value, func(v *corev1.Volume) string { return v.Name })
		case "imagePullSecrets":
			out.ImagePullSecrets, ok = addEntries(out.ImagePullSecrets, value, func(r *corev1.LocalObjectReference) string { return r.Name })
		default:
			if fields == nil {
				fields = map[string]any{}
			}
			fields[key], ok = value, true
		}
		if !ok {
			return false
		}
	}
	return len(fields) == 0 || addFields(out, fields)
}

// addEntries puts the entries of a part before those of a list, as the strategic merge does; inOrderOf restores the pod's order later.
func addEntries[T any](list []T, value any, name func(*T) string) ([]T, bool) {
	entries, ok := value.([]any)
	if !ok || list != nil && len(list) == 0 {
		return nil, false
	}
	out := make([]T, len(entries), len(entries)+len(list))
	for i, entry := range entries {
		fields, ok := entry.(map[string]any)
		if !ok || runtime.DefaultUnstructuredConverter.FromUnstructured(fields, &out[i]) != nil {
			return nil, false
		}
		called := name(&out[i])
		same := func(other T) bool { return name(&other) == called }
		if called == "" || slices.ContainsFunc(out[:i], same) || slices.ContainsFunc(list, same) {
			return nil, false
		}
	}
	return append(out, list...), true
}

// addFields sets fields of the spec that are not set.
func addFields(out *corev1.PodSpec, fields map[string]any) bool {
	var parsed corev1.PodSpec
	if runtime.DefaultUnstructuredConverter.FromUnstructured(fields, &parsed) != nil {
		return false
	}
	into, from := reflect.ValueOf(out).Elem(), reflect.ValueOf(&parsed).Elem()
	known := fieldsOf(into.Type())
	for name := range fields {
		i, known := known[name]
		if !known {
			continue // as the strategic merge's result loses it
		}
		if !isUnset(into.Field(i)) {
			return false
		}
		into.Field(i).Set(from.Field(i))
	}
	return true
}

// isUnset reports whether a field has nothing that a merge could keep: the API server writes securityContext as {}.
func isUnset(v reflect.Value) bool {
	return v.IsZero() || v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct && v.Elem().IsZero()
}
