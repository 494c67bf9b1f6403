package inject

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Op is one operation of a JSON patch (RFC 6902).
type Op struct {
	Op    string `json:"op"` // add, replace or remove
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Patch is the difference between a pod and what Pod made of it: what injection changes and nothing else, so that fields which
// this build's API does not know stay as they are. Whole lists are only given where the pod has none.
func Patch(before, after *corev1.Pod) []Op {
	if before == after {
		return nil
	}
	if !ofTypedPath(before, after) {
		return difference(before, after)
	}
	var p patch
	p.strings("/metadata/labels", before.Labels, after.Labels)
	p.strings("/metadata/annotations", before.Annotations, after.Annotations)
	appended(&p, "/spec/volumes", before.Spec.Volumes, after.Spec.Volumes)
	appended(&p, "/spec/imagePullSecrets", before.Spec.ImagePullSecrets, after.Spec.ImagePullSecrets)
	inits, apps := before.Spec.InitContainers, before.Spec.Containers
	if !injected(before) { // a container of one of our names is a user's part of it: it comes back merged
		inits = p.taken("/spec/initContainers", inits)
		apps = p.taken("/spec/containers", apps)
	}
	p.containers("/spec/initContainers", inits, after.Spec.InitContainers)
	p.containers("/spec/containers", apps, after.Spec.Containers)
	return p.ops
}

type patch struct{ ops []Op }

func (p *patch) add(op, path string, value any) { p.ops = append(p.ops, Op{op, path, value}) }

// strings adds what is new or different in a map, and takes away what is gone.
func (p *patch) strings(path string, before, after map[string]string) {
	if len(before) == 0 {
		if len(after) > 0 {
			p.add("add", path, after)
		}
		return
	}
	for _, key := range sortedKeys(after) {
		if old, has := before[key]; !has || old != after[key] {
			p.add("add", path+"/"+escape(key), after[key])
		}
	}
	for _, key := range sortedKeys(before) {
		if _, has := after[key]; !has {
			p.add("remove", path+"/"+escape(key), nil)
		}
	}
}

// escape is for a key in a JSON pointer (RFC 6901).
func escape(key string) string {
	return strings.ReplaceAll(strings.ReplaceAll(key, "~", "~0"), "/", "~1")
}

// appended adds what stands after the end of the old list.
func appended[T any](p *patch, path string, before, after []T) {
	switch {
	case len(after) == len(before):
	case len(before) == 0:
		p.add("add", path, after)
	default:
		for i := len(before); i < len(after); i++ {
			p.add("add", path+"/-", &after[i])
		}
	}
}

// taken removes the containers that injection adds itself, and returns the others.
func (p *patch) taken(path string, list []corev1.Container) []corev1.Container {
	ours := func(c corev1.Container) bool { return isOurs(c.Name) }
	if !slices.ContainsFunc(list, ours) {
		return list
	}
	for i := len(list) - 1; i >= 0; i-- {
		if ours(list[i]) {
			p.add("remove", path+"/"+strconv.Itoa(i), nil)
		}
	}
	return slices.DeleteFunc(slices.Clone(list), ours)
}

// containers walks the new list, which is the old one in its order with new ones in between, in ascending order, so that each
// index is right when its turn comes.
func (p *patch) containers(path string, before, after []corev1.Container) {
	if len(before) == 0 {
		if len(after) > 0 {
			p.add("add", path, after)
		}
		return
	}
	old := 0
	for i := range after {
		at := path + "/" + strconv.Itoa(i)
		if old < len(before) && before[old].Name == after[i].Name {
			p.container(at, &before[old], &after[i])
			old++
		} else {
			p.add("add", at, &after[i])
		}
	}
}

// container changes probes and hooks, and the environment of a sidecar that is there already.
func (p *patch) container(path string, before, after *corev1.Container) {
	for _, kind := range probeKinds {
		old, new := *kind.of(before), *kind.of(after)
		if old == new {
			continue
		}
		at := path + "/" + kind.field
		if old.TCPSocket != nil {
			p.add("remove", at+"/tcpSocket", nil)
		}
		if old.GRPC != nil {
			p.add("remove", at+"/grpc", nil)
		}
		p.add("add", at+"/httpGet", new.HTTPGet)
	}
	if before.Lifecycle != after.Lifecycle {
		for _, kind := range hookKinds {
			old, new := *kind.of(before.Lifecycle), *kind.of(after.Lifecycle)
			if old == new {
				continue
			}
			at := path + "/" + strings.ReplaceAll(kind.field, ".", "/")
			if old.TCPSocket != nil {
				p.add("remove", at+"/tcpSocket", nil)
			}
			p.add("add", at+"/httpGet", new.HTTPGet)
		}
	}
	for i := range after.Env {
		switch {
		case len(before.Env) == 0:
			p.add("add", path+"/env", after.Env)
			return
		case i >= len(before.Env):
			p.add("add", path+"/env/-", &after.Env[i])
		case before.Env[i].Value != after.Env[i].Value:
			p.add("replace", fmt.Sprintf("%s/env/%d/value", path, i), after.Env[i].Value)
		}
	}
}

// prefixed is ops for a pod that stands somewhere inside an object, such as /spec/template.
func prefixed(ops []Op, prefix string) []Op {
	ops = slices.Clone(ops)
	for i := range ops {
		ops[i].Path = prefix + ops[i].Path
	}
	return ops
}
