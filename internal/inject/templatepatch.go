package inject

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ofTypedPath reports whether after differs from before only as the typed path makes it: then the patch is made of what that one
// changes. Templates can change anything.
func ofTypedPath(before, after *corev1.Pod) bool {
	a, b := &before.Spec, &after.Spec
	late := injected(before)
	switch {
	case late && (len(a.Containers) != len(b.Containers) || len(a.InitContainers) != len(b.InitContainers)):
		return false
	case !keeps(before.Labels, after.Labels) || !keepsAnnotations(before.Annotations, after.Annotations):
		return false
	case !begins(b.Volumes, a.Volumes) || !begins(b.ImagePullSecrets, a.ImagePullSecrets):
		return false
	}
	return keepsContainers(a.Containers, b.Containers, late) && keepsContainers(a.InitContainers, b.InitContainers, late) &&
		shares(reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem(), changedInSpec) &&
		shares(reflect.ValueOf(&before.ObjectMeta).Elem(), reflect.ValueOf(&after.ObjectMeta).Elem(), changedInMeta)
}

// What the typed path changes itself, by the indexes of fields.
var (
	changedInMeta      = indexesOf[metav1.ObjectMeta]("Labels", "Annotations")
	changedInSpec      = indexesOf[corev1.PodSpec]("Containers", "InitContainers", "Volumes", "ImagePullSecrets")
	changedInContainer = indexesOf[corev1.Container]("ReadinessProbe", "LivenessProbe", "StartupProbe", "Lifecycle")
	changedInSidecar   = indexesOf[corev1.Container]("ReadinessProbe", "LivenessProbe", "StartupProbe", "Lifecycle", "Env")
)

func indexesOf[T any](names ...string) []bool {
	t := reflect.TypeFor[T]()
	out := make([]bool, t.NumField())
	for i := range out {
		out[i] = slices.Contains(names, t.Field(i).Name)
	}
	return out
}

// shares reports whether two structs are equal but for the fields of skip. It is quick where they share what they point to.
func shares(a, b reflect.Value, skip []bool) bool {
	for i := range a.NumField() {
		if skip != nil && skip[i] {
			continue
		}
		x, y := a.Field(i), b.Field(i)
		same := false
		switch x.Kind() {
		case reflect.Pointer, reflect.Map:
			same = x.UnsafePointer() == y.UnsafePointer()
		case reflect.Slice:
			same = x.UnsafePointer() == y.UnsafePointer() && x.Len() == y.Len()
		case reflect.String, reflect.Bool, reflect.Int64, reflect.Int32:
			same = x.Equal(y)
			if !same {
				return false
			}
		default: // compared below
		}
		if !same && !(x.IsZero() && y.IsZero()) && !reflect.DeepEqual(x.Addr().Interface(), y.Addr().Interface()) {
			return false
		}
	}
	return true
}

// keeps reports whether every key of before is in after.
func keeps(before, after map[string]string) bool {
	for key := range before {
		if _, has := after[key]; !has {
			return false
		}
	}
	return true
}

// keepsAnnotations is keeps for annotations: those about metrics, in whichever spelling, go when the agent merges them.
func keepsAnnotations(before, after map[string]string) bool {
	for name := range before {
		if _, has := after[name]; !has && !strings.HasPrefix(name, "prometheus") {
			return false
		}
	}
	return len(before) == 0 || len(after) > 0
}

// begins reports whether list begins with part.
func begins[T any](list, part []T) bool {
	return len(list) >= len(part) && (len(part) == 0 || &list[0] == &part[0] || reflect.DeepEqual(list[:len(part)], part))
}

// keepsContainers reports whether the application's containers stand in after as before, but for their probes and hooks; where the
// sidecar was there before (late), the sidecar too, but for its environment.
func keepsContainers(before, after []corev1.Container, late bool) bool {
	at := 0
	for i := range before {
		name := before[i].Name
		ours := isOurs(name)
		if ours && !late {
			continue
		}
		for at < len(after) && after[at].Name != name {
			at++
		}
		if at == len(after) {
			return false
		}
		x, y, changed := &before[i], &after[at], changedInContainer
		if ours {
			changed = changedInSidecar
		}
		if !probesToAgent(x, y) || ours && !keepsEnv(x.Env, y.Env) || !shares(reflect.ValueOf(x).Elem(), reflect.ValueOf(y).Elem(), changed) {
			return false
		}
		at++
	}
	return true
}

// probesToAgent reports whether probes and hooks are shared or go to the agent now.
func probesToAgent(before, after *corev1.Container) bool {
	for _, kind := range probeKinds {
		if old, now := *kind.of(before), *kind.of(after); old != now && (old == nil || now == nil || !rewritten(now, appHealth+after.Name+"/"+kind.path)) {
			return false
		}
	}
	if before.Lifecycle == after.Lifecycle {
		return true
	}
	if before.Lifecycle == nil || after.Lifecycle == nil {
		return false
	}
	for _, kind := range hookKinds {
		old, now := *kind.of(before.Lifecycle), *kind.of(after.Lifecycle)
		if old != now && (old == nil || now == nil || now.HTTPGet == nil || now.HTTPGet.Path != appLifecycle+after.Name+"/"+kind.path) {
			return false
		}
	}
	return true
}

// keepsEnv reports whether the variables of before stand in after, perhaps with other values.
func keepsEnv(before, after []corev1.EnvVar) bool {
	if len(before) > len(after) {
		return false
	}
	for i := range before {
		if before[i].Name != after[i].Name || !reflect.DeepEqual(before[i].ValueFrom, after[i].ValueFrom) {
			return false
		}
	}
	return true
}

// difference is the patch between two pods, whatever they differ in: field by field, so that those which this build does not know
// stay. Entries of lists with names are patched one by one as long as their order stays.
func difference(before, after *corev1.Pod) []Op {
	maps := [2]map[string]any{}
	for i, pod := range []*corev1.Pod{before, after} {
		copied := *pod
		copied.ManagedFields = nil // the API server's own
		m, err := podMap(&copied)
		if err != nil {
			panic("encode pod: " + err.Error()) // it was decoded before
		}
		maps[i] = m
	}
	var p patch
	p.fields("", maps[0], maps[1])
	return p.ops
}

func (p *patch) fields(path string, before, after map[string]any) {
	for _, key := range sortedKeys(before) {
		if _, has := after[key]; !has {
			p.add("remove", path+"/"+escape(key), nil)
		}
	}
	for _, key := range sortedKeys(after) {
		at := path + "/" + escape(key)
		// What is empty is perhaps not there at all: Kubernetes' types cannot tell.
		if old, has := before[key]; has && !isEmpty(old) {
			p.value(at, old, after[key])
		} else if !isEmpty(after[key]) {
			p.add("add", at, after[key])
		}
	}
}

func isEmpty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}

func (p *patch) value(path string, before, after any) {
	switch now := after.(type) {
	case map[string]any:
		if old, ok := before.(map[string]any); ok {
			p.fields(path, old, now)
			return
		}
	case []any:
		if old, ok := before.([]any); ok {
			p.list(path, old, now)
			return
		}
	}
	if !reflect.DeepEqual(before, after) {
		p.add("replace", path, after)
	}
}

func (p *patch) list(path string, before, after []any) {
	if reflect.DeepEqual(before, after) {
		return
	}
	old, ok := entryNames(before)
	now, ok2 := entryNames(after)
	if !ok || !ok2 {
		p.add("replace", path, after)
		return
	}
	kept := slices.DeleteFunc(slices.Clone(old), func(name string) bool { return !slices.Contains(now, name) })
	if still := slices.DeleteFunc(slices.Clone(now), func(name string) bool { return !slices.Contains(old, name) }); !slices.Equal(kept, still) {
		p.add("replace", path, after)
		return
	}
	for i := len(old) - 1; i >= 0; i-- {
		if !slices.Contains(now, old[i]) {
			p.add("remove", path+"/"+strconv.Itoa(i), nil)
		}
	}
	for i, name := range now {
		at := path + "/" + strconv.Itoa(i)
		if j := slices.Index(old, name); j >= 0 {
			p.value(at, before[j], after[i])
		} else {
			p.add("add", at, after[i])
		}
	}
}

// entryNames are the names of a list's entries; ok is false unless each has one of its own.
func entryNames(list []any) (names []string, ok bool) {
	for _, item := range list {
		entry, _ := item.(map[string]any)
		name, _ := entry["name"].(string)
		if name == "" || slices.Contains(names, name) {
			return nil, false
		}
		names = append(names, name)
	}
	return names, true
}
