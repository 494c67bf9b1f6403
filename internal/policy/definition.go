package policy

import "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

// bundlePattern is base64 of PEM that begins with a certificate: "-----BEGIN CERTIFICATE-----" is 27 bytes, so 36 characters.
const bundlePattern = "^LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t[A-Za-z0-9+/]*={0,2}$"

// Limits of what a parameter holds, because all of it has to go into one object of etcd's, which ends at 1.5 MB.
const (
	maxBundle = 256 << 10 // characters of base64
	maxItems  = 1000
	maxText   = 512
)

// schema objects, which are shorter than their typed form.
type object = map[string]any

// Definition is the custom resource definition of ParameterKind.
func Definition() *unstructured.Unstructured {
	spec := object{"type": "object", "properties": object{
		"caBundle": object{"type": "string", "format": "byte", "maxLength": int64(maxBundle), "pattern": bundlePattern,
			"description": "what every webhook of the revision is to trust: certificates in PEM, base64"},
		"names":          list("values of istio.io/rev that lead to the revision; default stands for istio-injection=enabled too", text("")),
		"everyNamespace": object{"type": "boolean", "description": "whether namespaces without a label get sidecars too"},
		"enabled":        object{"type": "boolean", "description": "whether a pod gets a sidecar that says nothing itself (policy of the injector configuration)"},
		"never":          list("neverInjectSelector of the injector configuration", requirements()),
		"always":         list("alwaysInjectSelector of the injector configuration", requirements()),
		"injection": object{"type": "object", "x-kubernetes-preserve-unknown-fields": true,
			"description": "the sidecar of a pod that says nothing about it, and where the pod's own wishes go: made by the control plane of its template"},
		"revisions": list("values of istio.io/rev that a webhook of this cluster answers", text("")),
		"asOf":      text("when users were counted, as RFC 3339"),
		"users": list("who uses which revision; absent when nobody keeps it", object{"type": "object", "required": []any{"name", "revision"}, "properties": object{
			"name":       text("the value of istio.io/rev: a revision or a tag"),
			"revision":   text("the revision that it leads to"),
			"namespaces": number("namespaces that ask for sidecars by this name"),
			"pods":       number("pods that run a sidecar of the revision; with the revision's own name"),
		}}),
	}}
	u := &unstructured.Unstructured{Object: object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": object{"name": ParameterResource.Resource + "." + ParameterKind.Group},
		"spec": object{
			"group": ParameterKind.Group, "scope": "Cluster",
			"names": object{"kind": ParameterKind.Kind, "listKind": ParameterKind.Kind + "List", "plural": ParameterResource.Resource, "singular": "admissionparameter"},
			"versions": []any{object{
				"name": ParameterKind.Version, "served": true, "storage": true,
				"schema": object{"openAPIV3Schema": object{"type": "object", "properties": object{"spec": spec},
					"description": "What Selvage's admission policies are given. The control plane keeps it; whoever may write it decides what they do."}},
			}},
		},
	}}
	u.SetLabels(sharedMeta("").Labels)
	return u
}

func text(description string) object {
	return object{"type": "string", "maxLength": int64(maxText), "description": description}
}

func number(description string) object {
	return object{"type": "integer", "minimum": int64(0), "description": description}
}

func list(description string, items object) object {
	return object{"type": "array", "maxItems": int64(maxItems), "description": description, "items": items}
}

// requirements are a label selector, as a list of what all must hold.
func requirements() object {
	return object{"type": "object", "required": []any{"all"}, "properties": object{
		"all": list("what must hold", object{"type": "object", "required": []any{"key", "operator"}, "properties": object{
			"key": text("of a label"), "operator": object{"type": "string", "enum": []any{"In", "NotIn", "Exists", "DoesNotExist"}}, "values": list("", text("")),
		}}),
	}}
}
