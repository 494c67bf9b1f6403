package install

import (
	"bytes"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"istio.io/api/label"
)

// injectLabel opts a pod in ("true") or out ("false").
var injectLabel = label.SidecarInject.Name

// Render gives every object of an installation in the order in which they are applied: what others need comes first, and
// the webhooks, which make pods wait for the control plane, come last. Equal options give equal objects.
func Render(o Options) ([]*unstructured.Unstructured, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	settings, err := o.settings()
	if err != nil {
		return nil, err
	}
	if o, _, err = o.settled(settings); err != nil {
		return nil, err
	}
	o.TrustDomain = settings.Mesh.GetTrustDomain() // the control plane and the sidecars agree
	configMaps, err := settings.ConfigMaps()
	if err != nil {
		return nil, err
	}
	typed := []runtime.Object{namespace(), probeNamespace()}
	typed = append(typed, dryRunPolicy()...) // before the rights that they narrow
	typed = append(typed, o.restraint()...)
	typed = append(typed, o.access()...)
	typed = append(typed, o.probeAccess()...)
	typed = append(typed, o.policyAccess()...)
	for _, c := range configMaps {
		c.Labels = o.labels()
		typed = append(typed, c)
	}
	typed = append(typed, o.service())
	switch {
	case o.Endpoint != nil:
		typed = append(typed, o.endpoints())
	case o.inCluster():
		typed = append(typed, o.disruptionBudget(), o.deployment())
	}
	typed = append(typed, o.policies()...) // which want to be in force when the webhooks come
	for _, c := range o.webhooks() {
		typed = append(typed, c)
	}
	typed = append(typed, o.probeValidator(), o.validator())

	objects := make([]*unstructured.Unstructured, 0, len(typed)+16)
	for _, object := range typed {
		u, err := plain(object)
		if err != nil {
			return nil, err
		}
		objects = append(objects, o.served(u))
	}
	definitions, err := o.definitions()
	if err != nil {
		return nil, err
	}
	return append(objects[:1:1], append(definitions, objects[1:]...)...), nil
}

// YAML renders objects as one stream of documents.
func YAML(objects []*unstructured.Unstructured) ([]byte, error) {
	var b bytes.Buffer
	for _, object := range objects {
		doc, err := yaml.Marshal(object.Object)
		if err != nil {
			return nil, fmt.Errorf("render %s: %w", describe(object), err)
		}
		b.WriteString("---\n")
		b.Write(doc)
	}
	return b.Bytes(), nil
}

// namespace is the control plane's. It never carries the revision's label, which would ask for injection.
func namespace() *corev1.Namespace {
	ns := &corev1.Namespace{TypeMeta: typeMeta("v1", "Namespace"), ObjectMeta: sharedMeta(Namespace, "")}
	ns.Labels["pod-security.kubernetes.io/enforce"] = "restricted"
	return ns
}

// plain turns a typed object into what is applied: without the empty fields that the Go types always write, because
// applying a field means owning it.
func plain(object runtime.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", object.GetObjectKind().GroupVersionKind().Kind, err)
	}
	delete(content, "status")
	dropNulls(content)
	return &unstructured.Unstructured{Object: content}, nil
}

// dropNulls removes null fields, and structs that the Go types write even when they are empty, at any depth.
func dropNulls(node any) {
	switch n := node.(type) {
	case []any:
		for _, item := range n {
			dropNulls(item)
		}
	case map[string]any:
		for key, value := range n {
			m, isMap := value.(map[string]any)
			if value == nil || isMap && len(m) == 0 && (key == "resources" || key == "strategy" || key == "spec") {
				delete(n, key)
				continue
			}
			dropNulls(value)
		}
	}
}

func typeMeta(apiVersion, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

// meta is that of an object of this revision in the control plane's namespace.
func (o Options) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: Namespace, Labels: o.labels()}
}

// clusterMeta is that of an object of this revision outside any namespace.
func (o Options) clusterMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: o.labels()}
}

// sharedMeta is that of an object that all revisions share.
func sharedMeta(name, namespace string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: sharedLabels()}
}

// describe names an object as people type it: Kind NAMESPACE/NAME.
func describe(u *unstructured.Unstructured) string {
	if u.GetNamespace() == "" {
		return u.GetKind() + " " + u.GetName()
	}
	return u.GetKind() + " " + u.GetNamespace() + "/" + u.GetName()
}
