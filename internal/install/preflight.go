package install

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// ForeignError says that objects of an installation's names belong to somebody else. Nothing was changed.
type ForeignError struct {
	Objects []string // as in "Deployment istio-system/istiod", sorted
	OnlyCRD bool     // all of them are custom resource definitions
}

func (e *ForeignError) Error() string {
	var b strings.Builder
	b.WriteString("these exist already and Selvage did not make them (no label " + OwnerLabel + "=" + Owner + "):\n")
	for _, o := range e.Objects {
		b.WriteString("  " + o + "\n")
	}
	if e.OnlyCRD {
		b.WriteString("Istio's definitions are installed. Use them as they are with --skip-crds. Nothing was changed.")
		return b.String()
	}
	b.WriteString("Istio itself may be installed; look with:\n" +
		"  kubectl get deployments,services,configmaps -n " + Namespace + " --show-labels\n" +
		"Install Selvage beside it with --revision NAME --skip-crds, or remove the other mesh first. Nothing was changed.")
	return b.String()
}

// state is what the cluster has of an installation before it is changed.
type state struct {
	live       map[string]*unstructured.Unstructured // by describe
	hasOwnNS   bool                                  // the namespace is ours
	namespaced bool                                  // the namespace exists
}

// survey reads every object that will be applied and refuses when one belongs to somebody else. A namespace of somebody
// else's is no obstacle: it is used, and neither changed nor, later, deleted.
func (i *Installer) survey(ctx context.Context, objects []*unstructured.Unstructured) (*state, error) {
	found := make([]*unstructured.Unstructured, len(objects))
	err := each(ctx, objects, func(ctx context.Context, n int, u *unstructured.Unstructured) error {
		r, err := resourceOf(u)
		if err != nil {
			return err
		}
		found[n], err = i.get(ctx, r, u.GetNamespace(), u.GetName())
		return err
	})
	if err != nil {
		return nil, err
	}
	s := &state{live: map[string]*unstructured.Unstructured{}}
	foreign := &ForeignError{OnlyCRD: true}
	for n, live := range found {
		if live == nil {
			continue
		}
		name := describe(objects[n])
		s.live[name] = live
		switch {
		case live.GetKind() == namespaces.kind:
			s.namespaced, s.hasOwnNS = true, isOurs(live)
		case !isOurs(live):
			foreign.Objects = append(foreign.Objects, name)
			foreign.OnlyCRD = foreign.OnlyCRD && live.GetKind() == definitionsKind.kind
		}
	}
	if len(foreign.Objects) > 0 {
		slices.Sort(foreign.Objects)
		return nil, foreign
	}
	return s, nil
}

// oneDefault refuses a second answer to the labels that name no revision: the API server would call both, and which sidecar a
// pod gets would hang on the names of two configurations.
func (i *Installer) oneDefault(ctx context.Context, o Options) error {
	rival := ""
	switch {
	case o.revision() == DefaultRevision:
		rival = inject.Registration{Tag: inject.DefaultTag}.Name()
	case slices.Contains(o.Tags, inject.DefaultTag):
		rival = inject.Registration{}.Name()
	default:
		return nil
	}
	c, err := i.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, rival, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read MutatingWebhookConfiguration %s: %w", rival, err)
	}
	asks := map[string]string{inject.NamespaceInjection: "enabled"}
	if !slices.ContainsFunc(c.Webhooks, func(w admissionv1.MutatingWebhook) bool { return selects(w.NamespaceSelector, asks) }) {
		return nil // put out of use, as istioctl does
	}
	return fmt.Errorf("MutatingWebhookConfiguration %s makes revision %q the default one already, and two cannot be: "+
		"remove it (kubectl delete mutatingwebhookconfiguration %s) or uninstall that revision. Nothing was changed",
		rival, c.Labels[label.IoIstioRev.Name], rival)
}

// DeniedError lists the rights that the user lacks.
type DeniedError struct{ Missing []string }

func (e *DeniedError) Error() string {
	return "you may not " + strings.Join(e.Missing, "; nor ") + ". Use a kubeconfig context whose user may, such as a cluster administrator's. Nothing was changed"
}

// mayApply asks the API server, before anything is changed, whether the user may create and patch every kind of object.
func (i *Installer) mayApply(ctx context.Context, objects []*unstructured.Unstructured) error {
	var wanted []kindRef
	for _, u := range objects {
		r, err := resourceOf(u)
		if err != nil {
			return err
		}
		if !slices.Contains(wanted, r) {
			wanted = append(wanted, r)
		}
	}
	return i.may(ctx, wanted, "create", "patch")
}

// may fails with a DeniedError that names each verb that the user lacks on the kinds.
func (i *Installer) may(ctx context.Context, wanted []kindRef, verbs ...string) error {
	missing := make([]string, len(wanted)*len(verbs))
	err := each(ctx, missing, func(ctx context.Context, n int, _ string) error {
		r, verb := wanted[n/len(verbs)], verbs[n%len(verbs)]
		ask := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Group: r.Group, Version: r.Version, Resource: r.Resource},
		}}
		where := ""
		if r.namespaced {
			ask.Spec.ResourceAttributes.Namespace = Namespace
			where = " in namespace " + Namespace
		}
		answer, err := i.kubernetes.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, ask, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("ask whether you may %s %s: %w", verb, r.Resource, err)
		}
		if !answer.Status.Allowed {
			missing[n] = verb + " " + r.GroupResource().String() + where
		}
		return nil
	})
	if err != nil {
		return err
	}
	missing = slices.DeleteFunc(missing, func(s string) bool { return s == "" })
	if len(missing) > 0 {
		return &DeniedError{Missing: missing}
	}
	return nil
}

// rehearse lets the API server check every object without storing it, so that a refusal (by a policy, a quota, an escalation
// of rights) comes before the first change. Objects of a namespace that does not exist yet cannot be tried.
func (i *Installer) rehearse(ctx context.Context, objects []*unstructured.Unstructured, s *state) ([]Change, error) {
	changes := make([]Change, len(objects))
	err := each(ctx, objects, func(ctx context.Context, n int, u *unstructured.Unstructured) error {
		changes[n] = Change{Object: describe(u), Action: Created}
		if live := s.live[describe(u)]; live != nil {
			changes[n].Action = Unchanged
		}
		if u.GetNamespace() != "" && !s.namespaced {
			return nil
		}
		after, err := i.serverSide(ctx, u, applyOptions{dryRun: true, force: true})
		if apierrors.IsNotFound(err) && (u.GetKind() == roleBindings.kind || u.GetKind() == clusterBindings.kind) {
			return nil // its role is not there before it is really applied
		}
		if err != nil {
			return fmt.Errorf("try %s: %w", describe(u), err)
		}
		if live := s.live[describe(u)]; live != nil && !same(live, after) {
			changes[n].Action = Configured
		}
		return nil
	})
	return changes, err
}

// Action is what happens to an object.
type Action string

// The actions, in the words of kubectl.
const (
	Created    Action = "created"
	Configured Action = "configured"
	Unchanged  Action = "unchanged"
)

// Change is one object and what happens to it.
type Change struct {
	Object string `json:"object"`
	Action Action `json:"action"`
}

// same reports whether two states of an object differ in nothing but bookkeeping.
func same(a, b *unstructured.Unstructured) bool {
	return reflect.DeepEqual(trimmed(a), trimmed(b))
}

func trimmed(u *unstructured.Unstructured) map[string]any {
	c := u.DeepCopy()
	c.SetManagedFields(nil)
	c.SetResourceVersion("")
	c.SetGeneration(0)
	delete(c.Object, "status")
	return c.Object
}

// conflictsOf names who else owns fields that an apply wants; nil when err is no such conflict.
func conflictsOf(err error) []string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || !apierrors.IsConflict(err) || status.Status().Details == nil {
		return nil
	}
	var fields []string
	for _, cause := range status.Status().Details.Causes {
		if cause.Type == metav1.CauseTypeFieldManagerConflict {
			fields = append(fields, cause.Field+" ("+cause.Message+")")
		}
	}
	return fields
}
