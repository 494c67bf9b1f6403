package install

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What Helm puts on the objects of a release, to know them again. It takes over the label, whoever has set it.
const (
	helm          = "Helm" // the value of ManagedByLabel
	helmRelease   = "meta.helm.sh/release-name"
	helmNamespace = "meta.helm.sh/release-namespace"
)

// HelmError says that Helm installed what an installation or uninstallation would change. Nothing was changed.
type HelmError struct {
	Release, Namespace string
	Object             string // one of them
}

func (e *HelmError) Error() string {
	return fmt.Sprintf("Helm keeps this installation, as release %s in namespace %s (%s among others): change it with `helm upgrade %s CHART -n %s`, or remove it with "+
		"`helm uninstall %s -n %s` first. Nothing was changed", e.Release, e.Namespace, e.Object, e.Release, e.Namespace, e.Release, e.Namespace)
}

// keptByHelm is nil unless the object is Selvage's, Helm has installed it, and it is not on its way out.
func keptByHelm(u *unstructured.Unstructured) *HelmError {
	if !isOurs(u) || u.GetLabels()[ManagedByLabel] != helm || u.GetDeletionTimestamp() != nil {
		return nil
	}
	return &HelmError{Release: u.GetAnnotations()[helmRelease], Namespace: u.GetAnnotations()[helmNamespace], Object: describe(u)}
}

// notHelms fails when Helm has installed the revision.
func (i *Installer) notHelms(ctx context.Context, o Options) error {
	for _, kind := range []kindRef{services, clusterRoles, mutatingWebhooks} {
		objects, err := i.owned(ctx, kind, revisionSelector(o))
		if err != nil {
			return err
		}
		for n := range objects {
			if err := keptByHelm(&objects[n]); err != nil {
				return err
			}
		}
	}
	return nil
}

// leaveToHelm reports whether Helm has installed the object, which another release of its chart then needs, and writes that down.
func (r *remover) leaveToHelm(u *unstructured.Unstructured) bool {
	by := keptByHelm(u)
	if by == nil {
		return false
	}
	if kept := fmt.Sprintf("%s: Helm's release %s keeps it", describe(u), by.Release); !slices.Contains(r.out.Kept, kept) {
		r.out.Kept = append(r.out.Kept, kept)
	}
	return true
}
