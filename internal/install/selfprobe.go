package install

import (
	"context"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// StatusConfigMap is where the control plane says what works and what does not; with -REV.
const StatusConfigMap = "selvage-status"

// dryRunsOnly names the policy that holds everybody in the probe's namespace to dry runs.
const dryRunsOnly = "selvage-probe-dry-run-only"

// probeGrants hold in the probe's namespace. They are given only where dryRunsOnly is enforced: the right to create pods is the right
// to run anything, and RBAC cannot narrow it to dry runs.
var probeGrants = []grant{
	{"prove by dry runs that pods get sidecars", "core", "pods", "", "create"},
	{"prove by dry runs that an invalid object is refused", "networking.istio.io", "gateways", "", "create"},
}

// probeNamespace is where the control plane makes its dry runs, shared by all revisions. Nothing is ever created in it, so PodSecurity
// has nothing to protect there, and would refuse the init container that a sidecar brings.
func probeNamespace() *corev1.Namespace {
	ns := &corev1.Namespace{TypeMeta: typeMeta("v1", "Namespace"), ObjectMeta: sharedMeta(verdict.Namespace, "")}
	ns.Labels["pod-security.kubernetes.io/enforce"] = "privileged"
	return ns
}

// dryRunPolicy refuses, in the probe's namespace, everything that the control plane may create there, unless it is a dry run.
func dryRunPolicy() []runtime.Object {
	fail, equivalent, namespaced := admissionv1.Fail, admissionv1.Equivalent, admissionv1.NamespacedScope
	v1 := admissionv1.SchemeGroupVersion.String()
	return []runtime.Object{
		&admissionv1.ValidatingAdmissionPolicy{
			TypeMeta: typeMeta(v1, policies.kind), ObjectMeta: sharedMeta(dryRunsOnly, ""),
			Spec: admissionv1.ValidatingAdmissionPolicySpec{
				FailurePolicy: &fail,
				MatchConstraints: &admissionv1.MatchResources{
					MatchPolicy:       &equivalent,
					NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: verdict.Namespace}},
					ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
						Operations: []admissionv1.OperationType{admissionv1.Create},
						Rule:       admissionv1.Rule{APIGroups: []string{"", "networking.istio.io"}, APIVersions: []string{"*"}, Resources: []string{"pods", "gateways"}, Scope: &namespaced},
					}}},
				},
				Validations: []admissionv1.Validation{{
					Expression: "has(request.dryRun) && request.dryRun",
					Message:    "namespace " + verdict.Namespace + " is for dry runs, by which Selvage proves that injection works: nothing is created in it",
				}},
			},
		},
		&admissionv1.ValidatingAdmissionPolicyBinding{
			TypeMeta: typeMeta(v1, policyBindings.kind), ObjectMeta: sharedMeta(dryRunsOnly, ""),
			Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
				PolicyName: dryRunsOnly, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
			},
		},
	}
}

// probeAccess lets this revision's control plane make its dry runs.
func (o Options) probeAccess() []runtime.Object {
	account := o.Name(appName)
	meta := o.meta(o.Name("selvage-probe"))
	meta.Namespace = verdict.Namespace
	return []runtime.Object{
		&rbacv1.Role{TypeMeta: rbacType("Role"), ObjectMeta: meta, Rules: rules(probeGrants)},
		&rbacv1.RoleBinding{TypeMeta: rbacType("RoleBinding"), ObjectMeta: meta, RoleRef: roleRef("Role", meta.Name), Subjects: subject(account)},
	}
}

// probeValidator is the probe's own validating webhook.
func (o Options) probeValidator() *admissionv1.ValidatingWebhookConfiguration {
	c := verdict.Validating(o.revision(), inject.Endpoint{Namespace: Namespace, Service: o.Name(appName), URL: strings.TrimSuffix(o.WebhookURL, "/")})
	c.Labels[OwnerLabel] = Owner
	return c
}

// withoutPolicies leaves out the ValidatingAdmissionPolicies where the API server has none (before Kubernetes 1.30), and with them the
// right to create pods: the control plane does not probe itself there, and RBAC alone narrows its other rights.
func (i *Installer) withoutPolicies(objects []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	served, err := i.servesPolicies()
	if err != nil || served {
		return objects, err
	}
	i.say("this API server has no ValidatingAdmissionPolicies (Kubernetes 1.30): without them the control plane gets no right to probe itself, and RBAC alone narrows its other rights")
	return slices.DeleteFunc(slices.Clone(objects), func(u *unstructured.Unstructured) bool {
		return u.GetKind() == policies.kind || u.GetKind() == policyBindings.kind || u.GetNamespace() == verdict.Namespace
	}), nil
}

func (i *Installer) servesPolicies() (bool, error) { return i.serves(policies) }

// removeProbe removes what all revisions share for the probe.
func (r *remover) removeProbe(ctx context.Context) error {
	if err := r.removePolicies(ctx, "!"+label.IoIstioRev.Name); err != nil {
		return err
	}
	ns, err := r.get(ctx, namespaces, "", verdict.Namespace)
	if err != nil || ns == nil || !isOurs(ns) || r.leaveToHelm(ns) {
		return err
	}
	if err := r.drop(ctx, namespaces, ns); err != nil || r.dryRun {
		return err
	}
	return r.until(ctx, describe(ns)+" to go", func(ctx context.Context) (bool, string, error) {
		ns, err := r.get(ctx, namespaces, "", verdict.Namespace)
		return err == nil && ns == nil, "", err
	})
}
