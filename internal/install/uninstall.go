package install

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"istio.io/api/label"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/revision"
)

const sliceMaker = discoveryv1.LabelManagedBy

// Names of what the control plane itself keeps in the cluster.
const (
	rootSecret = "istio-ca-secret" // the signing key, in Namespace
	// pluggedSecret is a signing key that somebody else has made.
	pluggedSecret = "cacerts"
	// rotationName is the former signing key's Secret while the root changes, and the ConfigMap that shows how far that is.
	rotationName = "selvage-root-rotation"
	rootConfig   = "istio-ca-root-cert" // the root certificate, in every namespace

	webhooksLease = "selvage-webhooks" // with -REV: who keeps the webhooks of a revision right
	rootsLease    = RootsLease

	removedWebhooks = "selvage-removed-webhooks" // ConfigMap: stale webhooks that were removed, for undo
)

// RootsLease is the Lease, in Namespace, of who keeps and distributes the root of all revisions.
const RootsLease = "selvage-roots"

// Removal is what Uninstall takes and what it leaves.
type Removal struct {
	Removed []string `json:"removed"` // as in "Deployment istio-system/istiod", in the order of their removal
	Kept    []string `json:"kept"`    // with the reason
	// Injected counts the pods that still run a sidecar of this revision.
	Injected int `json:"injectedPods"`
	// Outside is the holder of a lease of this revision that was renewed a moment ago although no pod of it is left: a control
	// plane outside the cluster, which makes its objects again until it is ended, or one that has just ended. "" when there is none.
	Outside string `json:"outside,omitempty"`
	// OutsideRenewed is how long ago that was.
	OutsideRenewed time.Duration `json:"-"`
}

// RemoveOptions say what to uninstall.
type RemoveOptions struct {
	Revision string // "" for the default one
	// Purge also takes the custom resources with their definitions, the CA's key, and the namespace.
	Purge  bool
	DryRun bool // only say what would go
}

// revisionSelector matches what belongs to one revision alone.
func revisionSelector(o Options) string { return label.IoIstioRev.Name + "=" + o.revision() }

// Uninstall removes one revision, and with the last one what the revisions share. The order is such that nothing waits for
// what is gone: webhooks first, so that pods can be created again; then the control plane, and its rights, so that it cannot
// put back what goes after it. It does not need the control plane, and what is gone already is not missed.
func (i *Installer) Uninstall(ctx context.Context, ro RemoveOptions) (*Removal, error) {
	r := &remover{Installer: i, options: Options{Revision: ro.Revision}, dryRun: ro.DryRun, out: &Removal{}}
	if err := i.mayRemove(ctx, ro.DryRun); err != nil {
		return nil, err
	}
	if err := i.notHelms(ctx, r.options); err != nil {
		return nil, err
	}
	others, err := r.otherRevisions(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.giveBackDefault(ctx, others); err != nil {
		return nil, err
	}
	if err := r.releaseValidator(ctx, others); err != nil {
		return nil, err
	}
	mine := revisionSelector(r.options)
	for _, kind := range []kindRef{mutatingWebhooks, validatingWebhooks, deployments, disruptionBudgets} {
		if err := r.removeOwned(ctx, kind, mine); err != nil {
			return nil, err
		}
	}
	if err := r.waitForPods(ctx); err != nil {
		return nil, err
	}
	for _, kind := range []kindRef{clusterBindings, roleBindings, clusterRoles, roles, services, endpointSlices, configMaps, serviceAccounts} {
		if err := r.removeOwned(ctx, kind, mine); err != nil {
			return nil, err
		}
	}
	if err := r.removePolicies(ctx, mine); err != nil {
		return nil, err
	}
	if err := r.removeLeases(ctx, r.options.Name(webhooksLease), mine); err != nil {
		return nil, err
	}
	if len(others) > 0 {
		r.out.Kept = append(r.out.Kept, "what all revisions share: still installed: "+list(others))
	} else if err := r.removeShared(ctx, ro.Purge); err != nil {
		return nil, err
	}
	r.out.Injected, err = r.injectedPods(ctx)
	return r.out, err
}

// remover is one run of Uninstall.
type remover struct {
	*Installer
	options Options
	dryRun  bool
	out     *Removal

	givenBack string // the injector that is another revision's again, and stays
}

// otherRevisions are those that Selvage has installed beside the one that goes.
func (r *remover) otherRevisions(ctx context.Context) ([]string, error) {
	var names []string
	for _, kind := range []kindRef{services, mutatingWebhooks} {
		objects, err := r.owned(ctx, kind, label.IoIstioRev.Name+","+label.IoIstioRev.Name+"!="+r.options.revision())
		if err != nil {
			return nil, err
		}
		for _, u := range objects {
			names = append(names, revisionOf(&u))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// removeOwned removes the objects of one kind that carry our label and match the selector. It looks again until there is none: a
// control plane outside the cluster may have put one back before its rights were gone.
func (r *remover) removeOwned(ctx context.Context, kind kindRef, selector string) error {
	for range mostRounds {
		objects, err := r.owned(ctx, kind, selector)
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(objects, func(u unstructured.Unstructured) bool {
			return copied(&u) || u.GetDeletionTimestamp() != nil // it goes by itself, or with what it was copied from
		})
		left = slices.DeleteFunc(left, func(u unstructured.Unstructured) bool {
			return r.leaveToHelm(&u) || kind == mutatingWebhooks && u.GetName() == r.givenBack
		})
		for _, u := range left {
			if err := r.drop(ctx, kind, &u); err != nil {
				return err
			}
		}
		if len(left) == 0 || r.dryRun {
			return nil
		}
	}
	return fmt.Errorf("remove %s: they are made again and again: end the control plane outside the cluster, and repeat", kind.Resource)
}

// mostRounds bounds how often objects that come back are removed.
const mostRounds = 10

// giveBackDefault gives the revision "default" its own webhooks back when this revision has them by the tag "default" and that one stays.
func (r *remover) giveBackDefault(ctx context.Context, others []string) error {
	if !slices.Contains(others, DefaultRevision) {
		return nil
	}
	hooks := r.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations()
	observed, err := hooks.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list mutatingwebhookconfigurations: %w", err)
	}
	tag, err := revision.RemoveTag(observed.Items, inject.DefaultTag, func(string) bool { return true })
	if err != nil || tag.After == nil || tag.From != r.options.revision() {
		return nil //nolint:nilerr // there is no such tag
	}
	if !r.dryRun {
		if _, err := hooks.Update(ctx, tag.After, metav1.UpdateOptions{FieldManager: FieldManager}); err != nil {
			return fmt.Errorf("give MutatingWebhookConfiguration %s back to revision %s: %w", tag.After.Name, DefaultRevision, err)
		}
	}
	r.givenBack = tag.After.Name
	if r.dryRun {
		r.say("  MutatingWebhookConfiguration %s would be revision %s's again", tag.After.Name, DefaultRevision)
	} else {
		r.say("  MutatingWebhookConfiguration %s is revision %s's again", tag.After.Name, DefaultRevision)
	}
	return nil
}

// drop removes one object and writes it down.
func (r *remover) drop(ctx context.Context, kind kindRef, u *unstructured.Unstructured) error {
	if !r.dryRun {
		if err := r.remove(ctx, kind, u); err != nil {
			return err
		}
	}
	r.out.Removed = append(r.out.Removed, describe(u))
	if kind == definitionsKind {
		return nil // all of them are one line
	}
	if r.dryRun {
		r.say("  %s would be removed", describe(u))
	} else {
		r.say("  %s removed", describe(u))
	}
	return nil
}

// remove deletes the very object that was seen; that it is gone already is fine.
func (i *Installer) remove(ctx context.Context, kind kindRef, u *unstructured.Unstructured) error {
	how, uid := metav1.DeletePropagationForeground, u.GetUID()
	if kind == parameters || strings.Contains(kind.kind, "AdmissionPolic") {
		// Nothing hangs on one, and who waits for the garbage collector may apply it again meanwhile, to see it go after all.
		how = metav1.DeletePropagationBackground
	}
	options := metav1.DeleteOptions{PropagationPolicy: &how}
	if uid != "" {
		options.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	err := i.at(kind, u.GetNamespace()).Delete(ctx, u.GetName(), options)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // a conflict: another object of that name by now
		return nil
	}
	return fmt.Errorf("delete %s: %w", describe(u), err)
}

// waitForPods waits until the control plane has ended: a running one would put its objects back.
func (r *remover) waitForPods(ctx context.Context) error {
	if r.dryRun {
		return nil
	}
	selector := appLabel + "=" + appName + "," + revisionSelector(r.options)
	return r.until(ctx, "the control plane's pods to end", func(ctx context.Context) (bool, string, error) {
		list, err := r.kubernetes.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return false, "", fmt.Errorf("list pods of the control plane: %w", err)
		}
		owned := slices.DeleteFunc(list.Items, ownerless)
		return len(owned) == 0, fmt.Sprintf("%d left", len(owned)), nil
	})
}

// removeShared removes what the last revision leaves. The mesh's state, which is the user's, stays unless it is purged.
func (r *remover) removeShared(ctx context.Context, purge bool) error {
	for _, kind := range []kindRef{mutatingWebhooks, validatingWebhooks, clusterBindings, clusterRoles, roleBindings, roles, serviceAccounts, configMaps} {
		if err := r.removeOwned(ctx, kind, "!"+label.IoIstioRev.Name); err != nil {
			return err
		}
	}
	if err := r.removeLeases(ctx, rootsLease, "!"+label.IoIstioRev.Name); err != nil {
		return err
	}
	if err := r.removeProbe(ctx); err != nil {
		return err
	}
	if err := r.forgetMigrations(ctx); err != nil {
		return err
	}
	if err := r.removeParameterDefinition(ctx); err != nil {
		return err
	}
	if err := r.removeDefinitions(ctx, purge); err != nil {
		return err
	}
	if err := r.removeRootSecret(ctx, purge); err != nil {
		return err
	}
	return r.removeNamespace(ctx)
}

// removeLeases removes the leases of the control plane's that match the selector, and the one of that name, which an earlier release
// made without labels.
func (r *remover) removeLeases(ctx context.Context, name, selector string) error {
	owned, err := r.owned(ctx, leases, selector)
	if err != nil {
		return err
	}
	named, err := r.get(ctx, leases, Namespace, name)
	if err != nil {
		return err
	}
	if named != nil && !slices.ContainsFunc(owned, func(u unstructured.Unstructured) bool { return u.GetUID() == named.GetUID() }) {
		owned = append(owned, *named)
	}
	for n := range owned {
		if err := r.removeLease(ctx, &owned[n]); err != nil {
			return err
		}
	}
	return nil
}

func (r *remover) removeLease(ctx context.Context, lease *unstructured.Unstructured) error {
	holder, _, _ := unstructured.NestedString(lease.Object, "spec", "holderIdentity")
	renewed, _, _ := unstructured.NestedString(lease.Object, "spec", "renewTime")
	at, err := time.Parse(time.RFC3339Nano, renewed)
	if err == nil && holder != "" && time.Since(at) < leaseFresh && !r.hadDeployment() {
		r.out.Outside, r.out.OutsideRenewed = holder, time.Since(at).Round(time.Second)
	}
	return r.drop(ctx, leases, lease)
}

// leaseFresh is how old the renewal of a lease may be for its holder to count as running.
const leaseFresh = 15 * time.Second

// hadDeployment reports whether the control plane ran in the cluster: its pods have ended by now.
func (r *remover) hadDeployment() bool {
	return slices.Contains(r.out.Removed, deployments.kind+" "+Namespace+"/"+r.options.Name(appName))
}

// removeDefinitions removes the custom resource definitions, and with them every custom resource: so only those of which none
// exists, unless all may go.
func (r *remover) removeDefinitions(ctx context.Context, purge bool) error {
	definitions, err := r.owned(ctx, definitionsKind, "")
	if err != nil {
		return err
	}
	definitions = slices.DeleteFunc(definitions, func(crd unstructured.Unstructured) bool { return crd.GetDeletionTimestamp() != nil }) // it goes
	used := make([]bool, len(definitions))
	if err := each(ctx, definitions, func(ctx context.Context, n int, crd unstructured.Unstructured) error {
		has, err := r.hasResources(ctx, &crd)
		used[n] = has
		return err
	}); err != nil {
		return err
	}
	if !purge && slices.Contains(used, true) {
		others := 0
		for n, crd := range definitions {
			if used[n] {
				r.out.Kept = append(r.out.Kept, describe(&crd)+": resources of this kind exist; --purge removes both")
			} else {
				others++
			}
		}
		if others > 0 {
			r.out.Kept = append(r.out.Kept, fmt.Sprintf("the %d other custom resource definitions, for the same reason", others))
		}
		return nil
	}
	for _, crd := range definitions {
		if err := r.drop(ctx, definitionsKind, &crd); err != nil {
			return err
		}
	}
	if len(definitions) > 0 {
		r.say("  %d CustomResourceDefinitions", len(definitions))
	}
	if r.dryRun {
		return nil
	}
	return r.until(ctx, "custom resource definitions to go", func(ctx context.Context) (bool, string, error) {
		left, err := r.owned(ctx, definitionsKind, "")
		return err == nil && len(left) == 0, fmt.Sprintf("%d left", len(left)), err
	})
}

// hasResources reports whether any custom resource of the definition's kind exists.
func (r *remover) hasResources(ctx context.Context, crd *unstructured.Unstructured) (bool, error) {
	group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
	kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	for _, v := range versions {
		version, _ := v.(map[string]any)
		if name, _ := version["name"].(string); version["served"] == true {
			one := kindOf(group, name, plural, kind, true)
			list, err := r.at(one, metav1.NamespaceAll).List(ctx, metav1.ListOptions{Limit: 1})
			if apierrors.IsNotFound(err) {
				return false, nil // the definition is on its way out, or was never served
			}
			if err != nil {
				return false, fmt.Errorf("list %s: %w", plural, err)
			}
			return len(list.Items) > 0, nil
		}
	}
	return false, nil
}
