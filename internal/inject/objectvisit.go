package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/ref"
)

// object visits one object of the document; path leads to it from the document's root. An item of a list such as PodList has no
// kind of its own: then it is of kind.
func (p *parsed) object(asJSON []byte, path string, kind metav1.TypeMeta, depth int) error {
	t := kind
	if json.Unmarshal(asJSON, &t) != nil {
		return nil //nolint:nilerr // no Kubernetes object: a Helm values file
	}
	if strings.HasSuffix(t.Kind, "List") {
		return p.list(asJSON, path, t, depth)
	}
	at, has := templates[group(t.APIVersion)+"/"+t.Kind]
	if !has {
		if p.other != nil {
			p.other(t.Kind, asJSON)
		}
		return p.stranger(t.Kind)
	}
	h := header{TypeMeta: t}
	if err := json.Unmarshal(asJSON, &h); err != nil {
		return p.wrong(path, fmt.Errorf("read %s: %s", t.Kind, strings.TrimPrefix(err.Error(), "json: ")))
	}
	if h.Metadata.Namespace == "" {
		h.Metadata.Namespace = p.o.Namespace
	}
	subject := ref.Ref{Group: group(t.APIVersion), Kind: t.Kind, Namespace: h.Metadata.Namespace, Name: first(h.Metadata.Name, h.Metadata.GenerateName+"*")}
	pod, err := podOf(asJSON, h, at)
	if err != nil {
		if misfit := (*json.UnmarshalTypeError)(nil); errors.As(err, &misfit) {
			path += at + "/" + strings.ReplaceAll(misfit.Field, ".", "/")
			err = fmt.Errorf("%s takes %s, not %s", misfit.Field, inWords(misfit.Type), misfit.Value)
		}
		return p.wrong(path, fmt.Errorf("%s: %w", subject, err))
	}
	w := workload{apiVersion: t.APIVersion, kind: t.Kind, name: first(h.Metadata.Name, strings.TrimRight(h.Metadata.GenerateName, "-."))}
	if t.Kind == "Pod" || t.Kind == "ReplicaSet" || t.Kind == "Job" {
		w = owned(pod, h)
	}
	return p.visit(&podObject{path, at, subject, pod, w})
}

// inWords is what a field takes, as people say it who write YAML.
func inWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int32, reflect.Int64:
		return "a whole number of " + t.Kind().String()[len("int"):] + " bits"
	default:
		return t.String()
	}
}

// list visits a List's items.
func (p *parsed) list(asJSON []byte, path string, t metav1.TypeMeta, depth int) error {
	var l struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(asJSON, &l); err != nil {
		return p.wrong(path, fmt.Errorf("read %s: %s", t.Kind, strings.TrimPrefix(err.Error(), "json: ")))
	}
	if depth == deepestList {
		return p.wrong(path, fmt.Errorf("lists in lists, more than %d deep", deepestList))
	}
	item := metav1.TypeMeta{}
	if t.Kind != "List" {
		item = metav1.TypeMeta{APIVersion: t.APIVersion, Kind: strings.TrimSuffix(t.Kind, "List")}
	}
	for i, raw := range l.Items {
		if err := p.object(raw, fmt.Sprintf("%s/items/%d", path, i), item, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// stranger notes an object of a kind that has pods and is not known: its pods are the webhook's.
func (p *parsed) stranger(kind string) error {
	if !bytes.Contains(p.d.Before, []byte("containers")) || !bytes.Contains(p.d.Before, []byte("template")) {
		return nil
	}
	asJSON := p.asJSON
	if asJSON == nil {
		var err error
		if asJSON, err = yaml.YAMLToJSON(p.d.Before); err != nil {
			return p.unreadable(err)
		}
	}
	var o struct {
		Metadata struct{ Name, Namespace string }
		Spec     struct {
			Template struct {
				Spec struct{ Containers []json.RawMessage }
			}
		}
	}
	if json.Unmarshal(asJSON, &o) == nil && len(o.Spec.Template.Spec.Containers) > 0 {
		p.notes = append(p.notes, fmt.Sprintf("%s has a pod template and is of a kind that is not known here: it is passed on as it is, and its pods get their sidecars from the webhook",
			ref.Ref{Kind: kind, Namespace: first(o.Metadata.Namespace, p.o.Namespace), Name: o.Metadata.Name}))
	}
	return nil
}

// owned finds the workload of an object that may have been made by a controller and exported from a cluster.
func owned(pod *corev1.Pod, h header) workload {
	if h.Kind == "Pod" {
		return workloadOf(pod)
	}
	yes := true
	probe := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels,
		OwnerReferences: []metav1.OwnerReference{{APIVersion: h.APIVersion, Kind: h.Kind, Name: h.Metadata.Name, Controller: &yes}}}}
	if metav1.GetControllerOf(&h.Metadata) == nil {
		probe.Labels = nil // nobody made it
		if h.Kind == "Job" {
			return workload{apiVersion: h.APIVersion, kind: h.Kind, name: h.Metadata.Name}
		}
	}
	return workloadOf(&probe)
}

// templates are the kinds that have pods, and where.
var templates = map[string]string{
	"/Pod":                   "",
	"/ReplicationController": "/spec/template",
	"apps/Deployment":        "/spec/template",
	"apps/StatefulSet":       "/spec/template",
	"apps/DaemonSet":         "/spec/template",
	"apps/ReplicaSet":        "/spec/template",
	"batch/Job":              "/spec/template",
	"batch/CronJob":          "/spec/jobTemplate/spec/template",
	"extensions/Deployment":  "/spec/template",
	"extensions/DaemonSet":   "/spec/template",
	"extensions/ReplicaSet":  "/spec/template",

	"apps.openshift.io/DeploymentConfig": "/spec/template",
	"/DeploymentConfig":                  "/spec/template", // before OpenShift 3.7
}

// podKinds are the kinds of templates.
var podKinds = func() (kinds []string) {
	for key := range templates {
		if _, kind, _ := strings.Cut(key, "/"); !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}()

func group(apiVersion string) string {
	g, _, found := strings.Cut(apiVersion, "/")
	if !found {
		return ""
	}
	return g
}

// podOf reads the pod, or the pod that a controller would make of the template.
func podOf(asJSON []byte, h header, at string) (*corev1.Pod, error) {
	type template struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     *corev1.PodSpec   `json:"spec"`
	}
	var found template
	raw := json.RawMessage(asJSON)
	for step := range strings.SplitSeq(strings.TrimPrefix(at, "/"), "/") {
		if step == "" {
			break
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(raw, &fields); err != nil || fields[step] == nil {
			return nil, fmt.Errorf("it has no %s", strings.ReplaceAll(strings.TrimPrefix(at, "/"), "/", "."))
		}
		raw = fields[step]
	}
	if err := json.Unmarshal(raw, &found); err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	if found.Spec == nil {
		return nil, errors.New("its pod has no spec")
	}
	pod := &corev1.Pod{ObjectMeta: found.Metadata, Spec: *found.Spec}
	pod.Namespace = h.Metadata.Namespace
	if at != "" {
		pod.Name, pod.GenerateName = "", h.Metadata.Name+"-"
	}
	return pod, nil
}
