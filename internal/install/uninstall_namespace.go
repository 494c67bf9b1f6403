package install

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// kubernetesOwn are objects that Kubernetes itself puts into every namespace.
var kubernetesOwn = []string{"ConfigMap kube-root-ca.crt", "ServiceAccount default"}

// removeNamespace removes the control plane's namespace if Selvage made it and nothing is left in it.
func (r *remover) removeNamespace(ctx context.Context) error {
	ns, err := r.get(ctx, namespaces, "", Namespace)
	if err != nil || ns == nil {
		return err
	}
	if !isOurs(ns) {
		r.out.Kept = append(r.out.Kept, describe(ns)+": Selvage did not make it")
		return nil
	}
	left, err := r.leftInNamespace(ctx)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		r.out.Kept = append(r.out.Kept, describe(ns)+": it still holds "+list(left))
		return nil
	}
	if err := r.drop(ctx, namespaces, ns); err != nil || r.dryRun {
		return err
	}
	return r.until(ctx, describe(ns)+" to go", func(ctx context.Context) (bool, string, error) {
		ns, err := r.get(ctx, namespaces, "", Namespace)
		return err == nil && ns == nil, "", err
	})
}

// MigratedAnnotation on a namespace holds, as JSON, the labels that it had before `selvage revision migrate`.
const MigratedAnnotation = "selvage/migrated-from"

// forgetMigrations takes the way back away from namespaces that were moved to another revision: there is none any more.
func (r *remover) forgetMigrations(ctx context.Context) error {
	list, err := r.kubernetes.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, ns := range list.Items {
		if _, moved := ns.Annotations[MigratedAnnotation]; !moved || ns.DeletionTimestamp != nil {
			continue
		}
		what := fmt.Sprintf("annotation %s of Namespace %s", MigratedAnnotation, ns.Name)
		if r.dryRun {
			r.say("  %s would be removed", what)
			continue
		}
		patch := []byte(`{"metadata":{"annotations":{"` + MigratedAnnotation + `":null}}}`)
		_, err := r.kubernetes.CoreV1().Namespaces().Patch(ctx, ns.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
		switch {
		case apierrors.IsNotFound(err):
		case apierrors.IsForbidden(err): // it harms nobody
			r.out.Kept = append(r.out.Kept, what+": you may not patch namespaces")
		case err != nil:
			return fmt.Errorf("remove %s: %w", what, err)
		default:
			r.say("  %s removed", what)
		}
	}
	return nil
}

// leftInNamespace names what somebody else keeps in the control plane's namespace, a few of it.
func (r *remover) leftInNamespace(ctx context.Context) ([]string, error) {
	var left []string
	claims := kindOf("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true)
	daemons := kindOf("apps", "v1", "daemonsets", "DaemonSet", true)
	stateful := kindOf("apps", "v1", "statefulsets", "StatefulSet", true)
	for _, kind := range []kindRef{deployments, daemons, stateful, pods, services, secrets, configMaps, claims, serviceAccounts, leases} {
		list, err := r.at(kind, Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list %s in namespace %s: %w", kind.Resource, Namespace, err)
		}
		for _, u := range list.Items {
			name := kind.kind + " " + u.GetName()
			if u.GetDeletionTimestamp() != nil || slices.Contains(kubernetesOwn, name) || r.willGo(name, &u) {
				continue
			}
			left = append(left, name)
		}
	}
	if len(left) > 3 {
		left = append(left[:3:3], fmt.Sprintf("and %d more", len(left)-3))
	}
	return left, nil
}

// willGo reports whether a dry run has counted the object among the removed.
func (r *remover) willGo(name string, u *unstructured.Unstructured) bool {
	kind := u.GetKind()
	if kind == "" {
		kind = name[:len(name)-len(u.GetName())-1]
	}
	return r.dryRun && slices.Contains(r.out.Removed, kind+" "+u.GetNamespace()+"/"+u.GetName())
}

// ownerless reports whether nothing will remove the pod: no controller has made it.
func ownerless(pod corev1.Pod) bool { return metav1.GetControllerOf(&pod) == nil }
