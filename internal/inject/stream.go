package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// StreamOptions say how Stream injects.
type StreamOptions struct {
	Config *Config
	// Namespace is that of objects that name none; "" is "default".
	Namespace string
}

// Outcome is what Stream did with one object that has pods.
type Outcome struct {
	Document int     // counted from 1
	Object   ref.Ref // the object that has the pods: a Deployment rather than a Pod
	Verdict  Verdict
	Warnings []diag.Problem
}

// Stream reads a stream of YAML or JSON documents and writes it with sidecars: Pods, Deployments, StatefulSets, DaemonSets,
// ReplicaSets, ReplicationControllers, Jobs, CronJobs, and Lists of them. A document in which nothing changes is written byte
// for byte as it was read; a changed one keeps the order of its fields and, where YAML's rules let it, its comments. On an
// error nothing more is written; it names the document and the object.
func Stream(in io.Reader, out io.Writer, o StreamOptions) ([]Outcome, error) {
	if o.Namespace == "" {
		o.Namespace = metav1.NamespaceDefault
	}
	all, err := io.ReadAll(in)
	if err != nil {
		return nil, fmt.Errorf("read stream: %w", err)
	}
	var outcomes []Outcome
	for i, doc := range splitDocuments(all) {
		changed, done, err := o.document(i+1, doc.body)
		if err != nil {
			return outcomes, fmt.Errorf("document %d: %w", i+1, err)
		}
		outcomes = append(outcomes, done...)
		for _, part := range [][]byte{doc.head, changed} {
			if _, err := out.Write(part); err != nil {
				return outcomes, fmt.Errorf("write stream: %w", err)
			}
		}
	}
	return outcomes, nil
}

// document is one YAML document; head is the separator line before it, "" for the first.
type document struct{ head, body []byte }

// splitDocuments cuts at the lines that begin with "---" (YAML 1.2.2, 9.1.2: they separate documents wherever they stand at
// the beginning of a line). Nothing is lost: heads and bodies together are the input.
func splitDocuments(all []byte) (docs []document) {
	var cur document
	start := 0
	for at := 0; at < len(all); {
		end := len(all)
		if n := bytes.IndexByte(all[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		if line := all[at:end]; separates(line) {
			cur.body = all[start:at]
			if at > 0 {
				docs = append(docs, cur)
			}
			// What follows "--- " on the line is part of the document, unless it is a comment.
			cur = document{head: line}
			if rest := bytes.TrimSpace(line[3:]); len(rest) > 0 && rest[0] != '#' {
				cur.head = line[:4]
				end = at + 4
			}
			start = end
		}
		at = end
	}
	cur.body = all[start:]
	return append(docs, cur)
}

func separates(line []byte) bool {
	return bytes.HasPrefix(line, []byte("---")) && (len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0)
}

// onlyComments reports whether the document has nothing but comments and directives (%YAML 1.1), which alone are no document.
func onlyComments(body []byte) bool {
	for line := range bytes.Lines(body) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// header is what every object has.
type header struct {
	metav1.TypeMeta
	Metadata metav1.ObjectMeta `json:"metadata"`
}

func (o StreamOptions) document(number int, body []byte) ([]byte, []Outcome, error) {
	if onlyComments(body) {
		return body, nil, nil
	}
	asJSON, err := yaml.YAMLToJSON(body)
	if err != nil {
		return nil, nil, errors.New(yamlError(err))
	}
	ops, outcomes, err := o.object(asJSON, "")
	if err != nil {
		return nil, nil, err
	}
	for i := range outcomes {
		outcomes[i].Document = number
	}
	if len(ops) == 0 {
		return body, outcomes, nil
	}
	changed, err := applyToYAML(body, asJSON, ops)
	if err != nil {
		return nil, nil, err
	}
	return changed, outcomes, nil
}

// object gives the patch of one object of a document; path leads to it from the document's root.
func (o StreamOptions) object(asJSON []byte, path string) ([]Op, []Outcome, error) {
	var t metav1.TypeMeta
	if json.Unmarshal(asJSON, &t) != nil {
		return nil, nil, nil //nolint:nilerr // no Kubernetes object: a Helm values file, a plain list
	}
	if t.Kind == "List" && t.APIVersion == "v1" {
		return o.list(asJSON, path)
	}
	at, has := templates[group(t.APIVersion)+"/"+t.Kind]
	if !has {
		return nil, nil, nil
	}
	h := header{TypeMeta: t}
	if err := json.Unmarshal(asJSON, &h); err != nil {
		return nil, nil, fmt.Errorf("read %s: %s", t.Kind, strings.TrimPrefix(err.Error(), "json: "))
	}
	if h.Metadata.Namespace == "" {
		h.Metadata.Namespace = o.Namespace
	}
	pod, err := podOf(asJSON, h, at)
	subject := ref.Ref{Group: group(h.APIVersion), Kind: h.Kind, Namespace: h.Metadata.Namespace, Name: first(h.Metadata.Name, h.Metadata.GenerateName+"*")}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", subject, err)
	}
	outcome := Outcome{Object: subject, Verdict: Decide(pod, o.Config)}
	if !outcome.Verdict.Inject {
		return nil, []Outcome{outcome}, nil
	}
	w := workload{apiVersion: h.APIVersion, kind: h.Kind, name: first(h.Metadata.Name, strings.TrimRight(h.Metadata.GenerateName, "-."))}
	if h.Kind == "Pod" || h.Kind == "ReplicaSet" || h.Kind == "Job" {
		w = o.owned(pod, h)
	}
	after, warnings, err := o.Config.inject(pod, w, subject)
	if err != nil {
		return nil, nil, err
	}
	outcome.Warnings = warnings
	return prefixed(Patch(pod, after), path+at), []Outcome{outcome}, nil
}

// list gives the patches of a List's items as one.
func (o StreamOptions) list(asJSON []byte, path string) (ops []Op, outcomes []Outcome, err error) {
	var l struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(asJSON, &l); err != nil {
		return nil, nil, fmt.Errorf("read List: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	for i, item := range l.Items {
		more, done, err := o.object(item, fmt.Sprintf("%s/items/%d", path, i))
		if err != nil {
			return nil, nil, fmt.Errorf("items[%d]: %w", i, err)
		}
		ops, outcomes = append(ops, more...), append(outcomes, done...)
	}
	return ops, outcomes, nil
}

// owned finds the workload of an object that may have been made by a controller and exported from a cluster.
func (o StreamOptions) owned(pod *corev1.Pod, h header) workload {
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
}

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
		return nil, fmt.Errorf("read pod: %s", strings.TrimPrefix(err.Error(), "json: "))
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
