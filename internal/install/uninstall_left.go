package install

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/annotation"
	"istio.io/api/label"
)

// removeRootSecret removes the CA's key, and the former one of a root that is being changed, only when asked: every certificate in
// the mesh hangs on them.
func (r *remover) removeRootSecret(ctx context.Context, purge bool) error {
	for _, name := range []string{rotationName, rootSecret} {
		secret, err := r.get(ctx, secrets, Namespace, name)
		if err != nil {
			return err
		}
		switch {
		case secret == nil:
			continue
		case !isOurs(secret):
			r.out.Kept = append(r.out.Kept, describe(secret)+": Selvage did not make it")
			continue
		case !purge:
			r.out.Kept = append(r.out.Kept, describe(secret)+": the mesh's signing key, so that a new installation trusts the same certificates; --purge removes it")
			continue
		}
		if err := r.drop(ctx, secrets, secret); err != nil {
			return err
		}
	}
	return nil
}

// injectedPods counts the running pods that have a sidecar of this revision.
func (r *remover) injectedPods(ctx context.Context) (int, error) {
	list, err := r.kubernetes.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: label.SecurityTlsMode.Name})
	if err != nil {
		return 0, fmt.Errorf("list pods with a sidecar: %w", err)
	}
	count := 0
	for _, pod := range list.Items {
		if pod.Annotations[annotation.SidecarStatus.Name] != "" && pod.Annotations[label.IoIstioRev.Name] == r.options.revision() {
			count++
		}
	}
	return count, nil
}
