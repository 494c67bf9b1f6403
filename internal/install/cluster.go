package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// Config is what an Installer needs.
type Config struct {
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface
	Progress   io.Writer     // a line for each step; never nil
	Timeout    time.Duration // for each thing that is waited for; 0 is 5 minutes
	Poll       time.Duration // between two looks at something that cannot be watched; 0 is 500 ms
}

// Installer changes one cluster.
type Installer struct {
	kubernetes kubernetes.Interface
	dynamic    dynamic.Interface
	timeout    time.Duration
	poll       time.Duration

	mu       sync.Mutex
	progress io.Writer
}

// New checks the configuration and touches nothing.
func New(c Config) (*Installer, error) {
	if c.Kubernetes == nil || c.Dynamic == nil || c.Progress == nil {
		return nil, fmt.Errorf("create installer: its clients and its progress writer may not be nil")
	}
	i := &Installer{kubernetes: c.Kubernetes, dynamic: c.Dynamic, progress: c.Progress, timeout: c.Timeout, poll: c.Poll}
	if i.timeout == 0 {
		i.timeout = 5 * time.Minute
	}
	if i.poll == 0 {
		i.poll = 500 * time.Millisecond
	}
	return i, nil
}

// say writes one line of progress.
func (i *Installer) say(format string, args ...any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	fmt.Fprintf(i.progress, format+"\n", args...)
}

// kindRef is how one kind is addressed.
type kindRef struct {
	schema.GroupVersionResource
	kind       string
	namespaced bool
}

func kindOf(group, version, plural, kind string, namespaced bool) kindRef {
	return kindRef{schema.GroupVersionResource{Group: group, Version: version, Resource: plural}, kind, namespaced}
}

// The kinds that an installation is made of. They are part of every API server that Selvage supports, so nothing has to be
// discovered.
var (
	mutatingWebhooks   = kindOf("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", false)
	validatingWebhooks = kindOf("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", false)
	deployments        = kindOf("apps", "v1", "deployments", "Deployment", true)
	disruptionBudgets  = kindOf("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", true)
	services           = kindOf("", "v1", "services", "Service", true)
	endpointSlices     = kindOf("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true)
	configMaps         = kindOf("", "v1", "configmaps", "ConfigMap", true)
	secrets            = kindOf("", "v1", "secrets", "Secret", true)
	pods               = kindOf("", "v1", "pods", "Pod", true)
	leases             = kindOf("coordination.k8s.io", "v1", "leases", "Lease", true)
	serviceAccounts    = kindOf("", "v1", "serviceaccounts", "ServiceAccount", true)
	roles              = kindOf("rbac.authorization.k8s.io", "v1", "roles", "Role", true)
	roleBindings       = kindOf("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", true)
	clusterRoles       = kindOf("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", false)
	clusterBindings    = kindOf("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", false)
	definitionsKind    = kindOf("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", false)
	namespaces         = kindOf("", "v1", "namespaces", "Namespace", false)
	policies           = kindOf("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", false)
	policyBindings     = kindOf("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", false)
	parameters         = kindRef{policy.ParameterResource, policy.ParameterKind.Kind, false}
)

// mutatingPolicies and mutatingPolicyBindings are served in one of several versions, or not at all: see Installer.mutatingVersion.
func mutatingPolicies(version string) kindRef {
	return kindOf("admissionregistration.k8s.io", version, "mutatingadmissionpolicies", policy.Mutating, false)
}

func mutatingPolicyBindings(version string) kindRef {
	return kindOf("admissionregistration.k8s.io", version, "mutatingadmissionpolicybindings", policy.MutatingBinding, false)
}

var kinds = []kindRef{mutatingWebhooks, validatingWebhooks, deployments, disruptionBudgets, services, endpointSlices, configMaps,
	secrets, pods, leases, serviceAccounts, roles, roleBindings, clusterRoles, clusterBindings, definitionsKind, namespaces, policies, policyBindings, parameters}

// resourceOf finds how an object that Render made is addressed.
func resourceOf(u *unstructured.Unstructured) (kindRef, error) {
	gvk := u.GroupVersionKind()
	known := append(slices.Clone(kinds), mutatingPolicies(gvk.Version), mutatingPolicyBindings(gvk.Version))
	for _, r := range known {
		if r.kind == gvk.Kind && r.Group == gvk.Group && r.Version == gvk.Version {
			return r, nil
		}
	}
	return kindRef{}, fmt.Errorf("address %s: kind %s is not one that an installation is made of", describe(u), gvk)
}

// at is the client for one kind in one namespace, which is ignored for kinds that have none.
func (i *Installer) at(r kindRef, namespace string) dynamic.ResourceInterface {
	if !r.namespaced {
		return i.dynamic.Resource(r.GroupVersionResource)
	}
	return i.dynamic.Resource(r.GroupVersionResource).Namespace(namespace)
}

// get reads an object; nil when there is none.
func (i *Installer) get(ctx context.Context, r kindRef, namespace, name string) (*unstructured.Unstructured, error) {
	u, err := i.at(r, namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", r.kind, name, err)
	}
	return u, nil
}

// owned lists the objects of one kind that carry one of our labels, in every namespace: a selector cannot say "or".
func (i *Installer) owned(ctx context.Context, r kindRef, selector string) (objects []unstructured.Unstructured, err error) {
	if selector != "" {
		selector = "," + selector
	}
	for _, ours := range []string{OwnerLabel + "=" + Owner, ManagedByLabel + "=" + Owner + "," + OwnerLabel + "!=" + Owner} {
		list, err := i.at(r, metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: ours + selector})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", r.Resource, err)
		}
		objects = append(objects, list.Items...)
	}
	for n := range objects { // a list's items carry no kind of their own
		objects[n].SetGroupVersionKind(r.GroupVersion().WithKind(r.kind))
	}
	return objects, nil
}

// isOurs reports whether the object is Selvage's.
func isOurs(u *unstructured.Unstructured) bool { return revision.IsOurs(u.GetLabels()) }

// revisionOf is the revision an object belongs to; "" for a shared one.
func revisionOf(u *unstructured.Unstructured) string { return u.GetLabels()[label.IoIstioRev.Name] }

// each calls f for every item, a few at a time, and gives the first error.
func each[T any](ctx context.Context, items []T, f func(context.Context, int, T) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for n, item := range items {
		group.Go(func() error { return f(ctx, n, item) })
	}
	return group.Wait()
}

// until calls done every poll interval until it reports true, fails, or the time for one thing is over; then it fails with
// the reason that done gave last.
func (i *Installer) until(ctx context.Context, what string, done func(context.Context) (ok bool, reason string, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	ticker := time.NewTicker(i.poll)
	defer ticker.Stop()
	last, said := "", map[string]bool{} // a pod that is restarted goes through the same states again and again
	for {
		ok, reason, err := done(ctx)
		if ok || (err != nil && ctx.Err() == nil) {
			return err
		}
		if reason != "" {
			last = reason
		}
		if reason != "" && !said[reason] {
			i.say("  waiting for %s: %s", what, reason)
			said[reason] = true
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return &TimeoutError{What: what, Reason: last, After: i.timeout}
			}
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		}
	}
}

// TimeoutError says that something did not happen in time, and what was seen last.
type TimeoutError struct {
	What, Reason string
	After        time.Duration
}

func (e *TimeoutError) Error() string {
	s := fmt.Sprintf("%s: not within %s", e.What, e.After)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// list joins names for a sentence.
func list(names []string) string { return strings.Join(names, ", ") }
