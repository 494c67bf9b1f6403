package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/policy"
)

// holdsWebhooks reports whether the webhooks are held by a policy.
func (o Options) holdsWebhooks() bool { return o.HeldWebhooks && o.MutatingPolicies != "" }

// policies are the admission policies with their bindings and parameter objects, the parameters first.
func (o Options) policies() (out []runtime.Object) {
	if o.holdsWebhooks() {
		out = append(out, policy.Held(o.revision())...)
	}
	if o.Injection == ByPolicy {
		out = append(out, policy.Injection(o.revision(), Namespace)...)
	}
	out = append(out, o.Guards.Shared(Namespace)...)
	return append(out, o.Guards.OfRevision(o.revision(), Namespace)...)
}

// callers counts the objects by which the API server calls the control plane. They are the last that are rendered and applied.
func (o Options) callers() int { return len(o.webhooks()) + 2 }

// served puts the version of MutatingAdmissionPolicy that the cluster has into an object. Both have the same fields.
func (o Options) served(u *unstructured.Unstructured) *unstructured.Unstructured {
	if k := u.GetKind(); k == policy.Mutating || k == policy.MutatingBinding {
		u.SetAPIVersion(mutatingPolicies(o.MutatingPolicies).GroupVersion().String())
	}
	return u
}

// policyAccess lets the control plane keep its parameters: these objects, which an installation makes where they are wanted, and no other.
// It can neither make one nor change what a policy does. Where no policy injects it may look for that parameter all the same: what may
// not be looked for cannot be told from what is not there.
func (o Options) policyAccess() []runtime.Object {
	names := []string{policy.HeldName(o.revision()), policy.MeshedName(o.revision()), policy.RevisionsName}
	if o.Injection == ByPolicy {
		names = append(names, policy.InjectionName(o.revision()), policy.TrialName(o.revision()))
	}
	grants := []grant{{"what the API server puts into webhooks and pods, and what the guards look at", policy.ParameterKind.Group, policy.ParameterResource.Resource,
		strings.Join(names, " "), "get watch patch"}}
	if o.Injection != ByPolicy {
		grants = append(grants, grant{"whether a policy injects", policy.ParameterKind.Group, policy.ParameterResource.Resource, policy.InjectionName(o.revision()), "get"})
	}
	name := o.clusterRole() + "-policies"
	return []runtime.Object{
		&rbacv1.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: o.clusterMeta(name), Rules: rules(grants)},
		&rbacv1.ClusterRoleBinding{TypeMeta: rbacType("ClusterRoleBinding"), ObjectMeta: o.clusterMeta(name),
			RoleRef: roleRef("ClusterRole", name), Subjects: subject(o.Name(appName))},
	}
}

// definitions are the custom resource definitions: Istio's, unless the cluster's are to be used, and that of the parameters.
func (o Options) definitions() (all []*unstructured.Unstructured, err error) {
	if !o.SkipCRDs {
		if all, err = crds(); err != nil {
			return nil, err
		}
	}
	if len(o.policies()) > 0 {
		all = append(all, policy.Definition())
	}
	return all, nil
}

// withServed takes the version of MutatingAdmissionPolicy that the API server has.
func (i *Installer) withServed(o Options) (Options, error) {
	version, err := i.mutatingVersion()
	if err != nil {
		return o, err
	}
	if version == "" && o.HeldWebhooks {
		i.say("this API server has no MutatingAdmissionPolicies (Kubernetes 1.36): the control plane alone keeps the webhooks right")
	}
	o.MutatingPolicies = version
	settings, err := o.settings()
	if err != nil {
		return o, err
	}
	o, why, err := o.settled(settings)
	if err == nil && why != "" {
		i.say("pods are injected by the webhook: %s", why)
	}
	return o, err
}

// mutatingVersion is the best version of MutatingAdmissionPolicy that the API server serves, "" for none.
func (i *Installer) mutatingVersion() (string, error) {
	for _, version := range policy.MutatingVersions {
		if served, err := i.serves(mutatingPolicies(version)); err != nil || served {
			return version, err
		}
	}
	return "", nil
}

// serves asks discovery for a kind.
func (i *Installer) serves(r kindRef) (bool, error) {
	list, err := i.kubernetes.Discovery().ServerResourcesForGroupVersion(r.GroupVersion().String())
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask what the API server serves: %w", err)
	}
	return slices.ContainsFunc(list.APIResources, func(l metav1.APIResource) bool { return l.Name == r.Resource }), nil
}

// removePolicies removes the policies that match the selector, with their parameters: those that narrow rights after the rights.
func (r *remover) removePolicies(ctx context.Context, selector string) error {
	version, err := r.mutatingVersion()
	if err != nil {
		return err
	}
	for _, kind := range policyKinds(version) {
		if served, err := r.serves(kind); err != nil || !served {
			if err != nil {
				return err
			}
			continue
		}
		if err := r.removeOwned(ctx, kind, selector); err != nil {
			return err
		}
	}
	return nil
}

// policyKinds are the kinds in the order in which they are removed: what guards a parameter goes after what acts on it. The version is
// that of MutatingAdmissionPolicy, "" where there is none.
func policyKinds(version string) []kindRef {
	if version == "" {
		return []kindRef{policyBindings, policies, parameters}
	}
	return []kindRef{mutatingPolicyBindings(version), policyBindings, mutatingPolicies(version), policies, parameters}
}

// prunePolicies removes the policies of this revision that an earlier installation had and this one has not, and those that all revisions
// share: the last installation decides about these.
func (i *Installer) prunePolicies(ctx context.Context, o Options, keep map[string]bool) error {
	version, err := i.mutatingVersion()
	if err != nil {
		return err
	}
	for _, kind := range policyKinds(version) {
		if served, err := i.serves(kind); err != nil || !served {
			if err != nil {
				return err
			}
			continue
		}
		old, err := i.owned(ctx, kind, "")
		if err != nil {
			return err
		}
		for _, u := range old {
			mine := revisionOf(&u) == o.revision() || slices.Contains(policy.SharedNames, u.GetName())
			if !mine || keep[describe(&u)] || keptByHelm(&u) != nil {
				continue
			}
			if err := i.remove(ctx, kind, &u); err != nil {
				return err
			}
			i.say("  %s removed: no longer part of this installation", describe(&u))
		}
	}
	return nil
}

// removeParameterDefinition removes the definition of the parameters, which nobody but Selvage has use for.
func (r *remover) removeParameterDefinition(ctx context.Context) error {
	crd, err := r.get(ctx, definitionsKind, "", policy.Definition().GetName())
	if err != nil || crd == nil || !isOurs(crd) {
		return err
	}
	return r.drop(ctx, definitionsKind, crd)
}
