package inject

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// A user changes what injection adds by writing a container of the same name into the pod, or by the annotation
// proxy.istio.io/overrides. What the user wrote wins, field by field; everything else is ours. The annotation is also written by
// injection, from the container, so that whoever injects the pod again knows what was the user's.

// autoImage stands for the image that injection would use: the API wants an image in every container.
const autoImage = "auto"

// overrides are containers of which only some fields are set. The JSON is that of Istio's annotation.
type overrides struct {
	Containers     []corev1.Container `json:"containers,omitempty"`
	InitContainers []corev1.Container `json:"initContainers,omitempty"`
}

// parseOverrides reads the annotation. A field that the API does not know is an error: the API server would drop it in silence.
func parseOverrides(value string) (*overrides, error) {
	o := &overrides{}
	if err := strictJSON([]byte(value), o); err != nil {
		return nil, fmt.Errorf("it is not the JSON of {\"containers\": […], \"initContainers\": […]}: %w", err)
	}
	seen := map[string]bool{}
	for _, list := range [][]corev1.Container{o.Containers, o.InitContainers} {
		for i := range list {
			switch name := list[i].Name; {
			case name == "":
				return nil, fmt.Errorf("a container has no name")
			case seen[name]:
				return nil, fmt.Errorf("container %s is there twice", name)
			default:
				seen[name] = true
			}
		}
	}
	return o, nil
}

// of finds the changes of one container, wherever the user has written them: a native sidecar is an init container, and people
// write it among the containers.
func (o *overrides) of(name string) *corev1.Container {
	if o == nil {
		return nil
	}
	for _, list := range [][]corev1.Container{o.Containers, o.InitContainers} {
		if i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	return nil
}

// takeOverrides takes the containers out of the pod whose names are among added and gives them as changes, together with those of
// the annotation, which win (as in Istio: a container may be the merged one of an earlier injection). The rest is the pod itself
// when there are none.
func takeOverrides(pod *corev1.Pod, annotated *overrides, added ...string) (rest *corev1.Pod, o *overrides) {
	all := &overrides{}
	if annotated != nil {
		*all = *annotated
	}
	take := func(list []corev1.Container, into *[]corev1.Container) []corev1.Container {
		if !slices.ContainsFunc(list, func(c corev1.Container) bool { return slices.Contains(added, c.Name) }) {
			return list
		}
		left := make([]corev1.Container, 0, len(list))
		for i := range list {
			switch {
			case !slices.Contains(added, list[i].Name):
				left = append(left, list[i])
			case all.of(list[i].Name) == nil:
				*into = append((*into)[:len(*into):len(*into)], list[i])
			}
		}
		return left
	}
	apps := take(pod.Spec.Containers, &all.Containers)
	inits := take(pod.Spec.InitContainers, &all.InitContainers)
	if len(all.Containers) == 0 && len(all.InitContainers) == 0 {
		return pod, nil
	}
	if len(apps) == len(pod.Spec.Containers) && len(inits) == len(pod.Spec.InitContainers) {
		return pod, all
	}
	copied := *pod
	copied.Spec.Containers, copied.Spec.InitContainers = apps, inits
	return &copied, all
}

// strangers warns of changes to containers that injection does not add.
func (o *overrides) strangers(subject ref.Ref, added ...string) (out []diag.Problem) {
	if o == nil {
		return nil
	}
	for _, list := range [][]corev1.Container{o.Containers, o.InitContainers} {
		for i := range list {
			if !slices.Contains(added, list[i].Name) {
				p := annotationProblem(subject, annotation.ProxyOverrides.Name, diag.InvalidAnnotation, diag.Warning)
				p.Detail = fmt.Sprintf("injection adds no container %q: its changes have no effect", list[i].Name)
				p.Hint = "it adds " + strings.Join(added, ", ")
				out = append(out, p)
			}
		}
	}
	return out
}

// apply gives the container with the user's changes.
func (o *overrides) apply(ours corev1.Container) corev1.Container {
	users := o.of(ours.Name)
	if users == nil {
		return ours
	}
	out := mergeContainer(ours, *users)
	if sc := users.SecurityContext; sc != nil && root(sc.RunAsUser) && sc.RunAsNonRoot == nil {
		no, copied := false, *out.SecurityContext
		copied.RunAsNonRoot = &no // ours is true, and the kubelet would never start it
		out.SecurityContext = &copied
	}
	return out
}

// annotationValue is the annotation for a pod whose containers had changes: inits names the init containers that injection adds, in their
// order. An image that stands for ours is left out.
func (o *overrides) annotationValue(inits ...string) string {
	var sorted overrides
	for _, list := range [][]corev1.Container{o.Containers, o.InitContainers} {
		for _, c := range list {
			c = wanted(c)
			if slices.Contains(inits, c.Name) {
				sorted.InitContainers = append(sorted.InitContainers, c)
			} else {
				sorted.Containers = append(sorted.Containers, c)
			}
		}
	}
	slices.SortStableFunc(sorted.InitContainers, func(a, b corev1.Container) int {
		return slices.Index(inits, a.Name) - slices.Index(inits, b.Name)
	})
	data, err := json.Marshal(sorted)
	if err != nil {
		panic("encode overrides: " + err.Error()) // came from JSON
	}
	return string(data)
}

// wanted is a user's container without what the API server filled in: it takes the image "auto" for one with the tag latest, which
// is pulled always.
func wanted(c corev1.Container) corev1.Container {
	if c.Image == autoImage {
		c.Image = ""
		if c.ImagePullPolicy == corev1.PullAlways {
			c.ImagePullPolicy = ""
		}
	}
	return c
}

// mergeContainer lays what users sets over ours. Lists with a key (env by name, ports by number, mounts by path) are merged by
// it, others (args, command, capabilities) are replaced, as Kubernetes' strategic merge does by the same tags of the API. Where the
// API wants one of several (the kind of a probe, a hook or a variable) the user's replaces ours: a strategic merge would give both, which
// the API server refuses.
func mergeContainer(ours, users corev1.Container) corev1.Container {
	users = wanted(users)
	out := ours
	mergeStruct(reflect.ValueOf(&out).Elem(), reflect.ValueOf(&users).Elem())
	out.Name, out.RestartPolicy = ours.Name, ours.RestartPolicy // which of the two kinds of sidecar it is, the pod says
	return out
}

// whole are the types that are replaced and never merged.
var whole = map[reflect.Type]bool{
	reflect.TypeFor[corev1.ProbeHandler]():     true,
	reflect.TypeFor[corev1.LifecycleHandler](): true,
	reflect.TypeFor[corev1.SeccompProfile]():   true,
	reflect.TypeFor[corev1.AppArmorProfile]():  true,
	reflect.TypeFor[corev1.EnvVar]():           true,
	reflect.TypeFor[resource.Quantity]():       true,
	reflect.TypeFor[intstr.IntOrString]():      true,
}

// mergeStruct sets in dst the fields that src has. dst's own pointers, lists and maps are not changed: they are shared.
func mergeStruct(dst, src reflect.Value) {
	for i := range src.NumField() {
		from, to, field := src.Field(i), dst.Field(i), src.Type().Field(i)
		if from.IsZero() {
			continue
		}
		key := field.Tag.Get("patchMergeKey")
		switch {
		case from.Kind() == reflect.Pointer && !to.IsNil() && from.Elem().Kind() == reflect.Struct && !whole[from.Type().Elem()]:
			copied := reflect.New(to.Type().Elem())
			copied.Elem().Set(to.Elem())
			mergeStruct(copied.Elem(), from.Elem())
			to.Set(copied)
		case from.Kind() == reflect.Struct && !whole[from.Type()]:
			mergeStruct(to, from)
		case from.Kind() == reflect.Map && !to.IsNil():
			merged := reflect.MakeMapWithSize(to.Type(), to.Len()+from.Len())
			for _, m := range []reflect.Value{to, from} {
				for entries := m.MapRange(); entries.Next(); {
					merged.SetMapIndex(entries.Key(), entries.Value())
				}
			}
			to.Set(merged)
		case from.Kind() == reflect.Slice && key != "" && strings.Contains(field.Tag.Get("patchStrategy"), "merge"):
			to.Set(mergeList(to, from, key))
		default:
			to.Set(from)
		}
	}
}

// mergeList merges the elements with equal keys, in ours' order, and puts the others after them. key is the JSON name of a field.
func mergeList(ours, users reflect.Value, key string) reflect.Value {
	element := ours.Type().Elem()
	field := -1
	for i := range element.NumField() {
		if name, _, _ := strings.Cut(element.Field(i).Tag.Get("json"), ","); name == key {
			field = i
		}
	}
	out := reflect.MakeSlice(ours.Type(), ours.Len(), ours.Len()+users.Len())
	reflect.Copy(out, ours)
next:
	for i := range users.Len() {
		user := users.Index(i)
		for j := range out.Len() {
			if field < 0 || !out.Index(j).Field(field).Equal(user.Field(field)) {
				continue
			}
			if !whole[element] {
				mergeStruct(out.Index(j), user)
			} else if !onlyKey(user, field) {
				out.Index(j).Set(user)
			}
			continue next
		}
		out = reflect.Append(out, user)
	}
	return out
}

// onlyKey reports whether nothing but the key is set: it changes nothing.
func onlyKey(v reflect.Value, key int) bool {
	for i := range v.NumField() {
		if i != key && !v.Field(i).IsZero() {
			return false
		}
	}
	return true
}

func setOverrides(s *podSettings, value string) (err error) {
	s.overrides, err = parseOverrides(value)
	return err
}

// useIDs takes over the user and group that the sidecar's container is to have. Envoy's own connections leave the pod by them, so
// the sidecar cannot be root in both: everything that root sends would bypass the mesh, or Envoy's connections would be captured.
func (s *podSettings) useIDs(changes *overrides, subject ref.Ref) error {
	users := changes.of(ProxyContainer)
	if users == nil || users.SecurityContext == nil {
		return nil
	}
	sc := users.SecurityContext
	for _, id := range []struct {
		users *int64
		into  *int64
	}{{sc.RunAsUser, &s.uid}, {sc.RunAsGroup, &s.gid}} {
		if id.users != nil && *id.users > 0 {
			*id.into = *id.users
		}
	}
	if root(sc.RunAsUser) && root(sc.RunAsGroup) {
		return &RefusedError{Problems: []diag.Problem{{Code: diag.InvalidField, Severity: diag.Error, Object: subject,
			Field:  "spec.containers[" + ProxyContainer + "].securityContext",
			Detail: "runAsUser and runAsGroup are both 0: the interception could not tell the sidecar's connections from root's",
			Hint:   "leave runAsGroup away: the sidecar then has group 1337"}}}
	}
	return nil
}

func root(id *int64) bool { return id != nil && *id == 0 }
