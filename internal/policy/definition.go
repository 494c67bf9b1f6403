package policy

import "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

// bundlePattern is base64 of PEM that begins with a certificate: "-----BEGIN CERTIFICATE-----" is 27 bytes, so 36 characters.
const bundlePattern = "^LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t[A-Za-z0-9+/]*={0,2}$"

// maxBundle is in characters of base64: all of a parameter has to go into one object of etcd's, which ends at 1.5 MB.
const maxBundle = 256 << 10

// schema objects, which are shorter than their typed form.
type object = map[string]any

// Definition is the custom resource definition of ParameterKind.
func Definition() *unstructured.Unstructured {
	spec := object{"type": "object", "properties": object{
		"caBundle": object{"type": "string", "format": "byte", "maxLength": int64(maxBundle), "pattern": bundlePattern,
			"description": "what every webhook of the revision is to trust: certificates in PEM, base64"},
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
