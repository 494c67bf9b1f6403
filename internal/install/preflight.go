package install

import (
	"context"
	"errors"
	"fmt"
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
		case live.GetKind() == namespaces.kind && live.GetName() == Namespace:
			s.namespaced, s.hasOwnNS = true, isOurs(live)
		case keptByHelm(live) != nil:
			return nil, keptByHelm(live)
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

// oneAnswer refuses a second answer to the same labels: the API server would call both, and which sidecar a pod gets would hang on the
// names of two configurations. Such an answer is another default revision, or a tag of this revision's name.
func (i *Installer) oneAnswer(ctx context.Context, o Options) error {
	hooks := i.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations()
	var rivals []string
	if slices.Contains(o.Tags, inject.DefaultTag) {
		rivals = append(rivals, inject.Registration{}.Name())
	}
	rivals = append(rivals, inject.Registration{Tag: o.revision()}.Name())
	if o.revision() == DefaultRevision {
		rivals = append(rivals, inject.Registration{}.Name()) // its own, which a tag may have taken over
	}
	for _, rival := range rivals {
		c, err := hooks.Get(ctx, rival, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read MutatingWebhookConfiguration %s: %w", rival, err)
		}
		other, tag := c.Labels[label.IoIstioRev.Name], c.Labels[label.IoIstioTag.Name]
		if other == o.revision() && tag == inject.DefaultTag && slices.Contains(o.Tags, tag) && rival != (inject.Registration{Tag: tag}).Name() {
			return fmt.Errorf("revision %s is the default one already, by MutatingWebhookConfiguration %s: leave out --set-default. Nothing was changed", other, rival)
		}
		if other == o.revision() || !answersLabels(c, o.revision()) {
			continue // its own, or put out of use, as istioctl does
		}
		if tag != "" && tag == o.revision() {
			return fmt.Errorf("the tag %q leads to revision %s (MutatingWebhookConfiguration %s), and two cannot answer to one name: "+
				"remove the tag first (selvage revision tag remove %s). Nothing was changed", tag, other, rival, tag)
		}
		return fmt.Errorf("MutatingWebhookConfiguration %s makes revision %q the default one already, and two cannot be: "+
			"move the tag instead (selvage revision tag set default --revision %s, once it is installed without --set-default), or uninstall that revision. Nothing was changed",
			rival, other, o.revision())
	}
	return nil
}

// answersLabels reports whether a configuration is called for namespaces that name the revision, or that ask for the default one.
func answersLabels(c *admissionv1.MutatingWebhookConfiguration, name string) bool {
	return slices.ContainsFunc(c.Webhooks, func(w admissionv1.MutatingWebhook) bool {
		return selects(w.NamespaceSelector, map[string]string{inject.NamespaceInjection: "enabled"}) ||
			selects(w.NamespaceSelector, map[string]string{label.IoIstioRev.Name: name})
	})
}

// DeniedError lists the rights that the user lacks, as in "create and patch services, configmaps in namespace istio-system".
type DeniedError struct{ Missing []string }

func (e *DeniedError) Error() string {
	return "you may not " + strings.Join(e.Missing, "; nor ") + ". Use a kubeconfig context whose user may, such as a cluster administrator's. Nothing was changed"
}

// mayRead fails when the user may not read what an installation is made of. A user who lacks that mostly lacks more, so the error
// names all that an installation takes.
func (i *Installer) mayRead(ctx context.Context, objects []*unstructured.Unstructured) error {
	if err := i.may(ctx, objects, "get"); err == nil || !errors.As(err, new(*DeniedError)) {
		return err
	}
	return i.may(ctx, objects, "get", "create", "patch")
}

// mayApply asks the API server, before anything is changed, whether the user may create and patch every kind of object.
func (i *Installer) mayApply(ctx context.Context, objects []*unstructured.Unstructured) error {
	return i.may(ctx, objects, "create", "patch")
}

// may fails with a DeniedError that names the verbs that the user lacks on the objects' kinds.
func (i *Installer) may(ctx context.Context, objects []*unstructured.Unstructured, verbs ...string) error {
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
	return i.mayAll(ctx, wanted, verbs)
}

// mayRemove fails when the user lacks a right that an uninstallation takes, and names all.
func (i *Installer) mayRemove(ctx context.Context, dryRun bool) error {
	wanted := []kindRef{mutatingWebhooks, validatingWebhooks, deployments, disruptionBudgets, services, endpointSlices, configMaps,
		serviceAccounts, roles, roleBindings, clusterRoles, clusterBindings, definitionsKind, leases}
	verbs := []string{"list", "delete"}
	if dryRun {
		verbs = verbs[:1]
	}
	return i.mayAll(ctx, wanted, verbs)
}

// mayAll fails with a DeniedError that names all that the user lacks of the verbs on the kinds.
func (i *Installer) mayAll(ctx context.Context, wanted []kindRef, verbs []string) error {
	lacks := make([]bool, len(wanted)*len(verbs))
	err := each(ctx, lacks, func(ctx context.Context, n int, _ bool) (err error) {
		lacks[n], err = i.denied(ctx, wanted[n/len(verbs)], verbs[n%len(verbs)])
		return err
	})
	if err != nil {
		return err
	}
	if missing := describeRights(wanted, verbs, lacks); len(missing) > 0 {
		return &DeniedError{Missing: missing}
	}
	return nil
}

// denied reports whether the user may not use a verb on a kind, where an installation has it.
func (i *Installer) denied(ctx context.Context, r kindRef, verb string) (bool, error) {
	ask := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Group: r.Group, Version: r.Version, Resource: r.Resource},
	}}
	if r.namespaced {
		ask.Spec.ResourceAttributes.Namespace = Namespace
	}
	answer, err := i.kubernetes.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, ask, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask whether you may %s %s: %w", verb, r.Resource, err)
	}
	return !answer.Status.Allowed, nil
}

// describeRights puts what is lacking into few words: kinds of which the same verbs are lacking stand together, those of a
// namespace apart. lacks has the verbs of the first kind, then those of the second, and so on.
func describeRights(wanted []kindRef, verbs []string, lacks []bool) (missing []string) {
	type group struct {
		verbs      string
		namespaced bool
	}
	var order []group
	resources := map[group][]string{}
	for k, r := range wanted {
		var lacking []string
		for v, verb := range verbs {
			if lacks[k*len(verbs)+v] {
				lacking = append(lacking, verb)
			}
		}
		if len(lacking) == 0 {
			continue
		}
		g := group{and(lacking), r.namespaced}
		if !slices.Contains(order, g) {
			order = append(order, g)
		}
		resources[g] = append(resources[g], r.GroupResource().String())
	}
	for _, g := range order {
		text := g.verbs + " " + list(resources[g])
		if g.namespaced {
			text += " in namespace " + Namespace
		}
		missing = append(missing, text)
	}
	return missing
}

// and joins words as a sentence does.
func and(words []string) string {
	if n := len(words) - 1; n > 0 {
		return list(words[:n]) + " and " + words[n]
	}
	return list(words)
}
