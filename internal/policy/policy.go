// Package policy renders the admission policies by which the API server itself keeps the mesh's webhooks right and guards the mesh,
// without a call to anybody: objects of the kinds MutatingAdmissionPolicy and ValidatingAdmissionPolicy, their bindings, and the
// parameter objects that the control plane keeps current. It is pure; package install applies what it renders, package policy/live
// keeps the parameters.
//
// All that changes while a mesh runs (roots, revisions, who uses them) stands in parameters. A policy itself changes only with a
// release, and is written by whoever installs.
package policy

import (
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/revision"
)

const apiVersion = "admissionregistration.k8s.io/v1"

// Parameter is the kind of the parameter objects: outside of namespaces, so that nobody's rights in a namespace reach them, and of our
// own, because every API server watches all objects of a kind that policies have as parameter.
var (
	ParameterKind     = schema.GroupVersionKind{Group: "selvage.io", Version: "v1", Kind: "AdmissionParameter"}
	ParameterResource = ParameterKind.GroupVersion().WithResource("admissionparameters")
)

// Kinds of policies and bindings, as in their manifests.
const (
	Mutating          = "MutatingAdmissionPolicy"
	MutatingBinding   = "MutatingAdmissionPolicyBinding"
	Validating        = "ValidatingAdmissionPolicy"
	ValidatingBinding = "ValidatingAdmissionPolicyBinding"
)

// MutatingVersions are the versions of MutatingAdmissionPolicy that are used, the best first. Kubernetes serves v1 from 1.36 on, and
// v1beta1, where somebody has switched it on, from 1.34.
var MutatingVersions = []string{"v1", "v1beta1"}

// paramKind is ParameterKind as policies name it.
func paramKind() *admissionv1.ParamKind {
	version, kind := ParameterKind.ToAPIVersionAndKind()
	return &admissionv1.ParamKind{APIVersion: version, Kind: kind}
}

// byName leads to one parameter object. When it is missing the policy does nothing: none of them may ever stand in the way because
// something of ours was deleted.
func byName(name string) *admissionv1.ParamRef {
	allow := admissionv1.AllowAction
	return &admissionv1.ParamRef{Name: name, ParameterNotFoundAction: &allow}
}

// sharedMeta is that of an object of all revisions.
func sharedMeta(name string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Name: name, Labels: map[string]string{}}
	revision.Own(m.Labels)
	return m
}

// revisionMeta is that of an object of one revision; base-REV is its name, base for the default revision.
func revisionMeta(base, rev string) metav1.ObjectMeta {
	if rev == "" {
		rev = inject.DefaultRevision
	}
	m := sharedMeta(inject.ObjectName(base, rev))
	m.Labels[label.IoIstioRev.Name] = rev
	return m
}

// parameter is an empty one: what is in it belongs to the control plane, and an installation that applies it again takes nothing away.
func parameter(meta metav1.ObjectMeta) runtime.Object {
	version, kind := ParameterKind.ToAPIVersionAndKind()
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: kind}, ObjectMeta: meta}
}

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

// rule selects resources of one group, in every version that the API server has.
func rule(group string, operations []admissionv1.OperationType, resources ...string) admissionv1.NamedRuleWithOperations {
	return admissionv1.NamedRuleWithOperations{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: operations,
		Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"*"}, Resources: resources},
	}}
}

// quoted gives a CEL list of string literals. The strings are names of ours, of Kubernetes' or of Istio's: without quotes and
// backslashes, which inject and install have checked where they come from a user.
func quoted(names ...string) string { return "['" + strings.Join(names, "', '") + "']" }
