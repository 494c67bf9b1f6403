package install

import (
	"context"
	"fmt"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/revision"
)

// releaseValidator sees to somebody else's validator of objects that name no revision, which the default tag has led to the revision
// that goes: it would refuse every write afterwards. The revision "default" takes it over when that stays; otherwise it goes.
func (r *remover) releaseValidator(ctx context.Context, others []string) error {
	hooks := r.kubernetes.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	list, err := hooks.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list validatingwebhookconfigurations: %w", err)
	}
	n := slices.IndexFunc(list.Items, func(c admissionv1.ValidatingWebhookConfiguration) bool { return c.Name == revision.DefaultValidator })
	if n < 0 {
		return nil
	}
	c := &list.Items[n]
	w, ok := revision.OfValidating(c)
	calls := len(w.Services) == 1 && w.Services[0] == revision.Service{Namespace: Namespace, Name: r.options.Name(appName)}
	if !ok || w.Ours || w.Revision != r.options.revision() || !calls {
		return nil
	}
	if slices.Contains(others, DefaultRevision) {
		v, err := revision.FollowDefault(list.Items, DefaultRevision)
		if err == nil && v.After != nil {
			r.say("  %s %s calls revision %s", validatingWebhooks.kind, c.Name, DefaultRevision)
			if r.dryRun {
				return nil
			}
			if _, err := hooks.Update(ctx, v.After, metav1.UpdateOptions{FieldManager: FieldManager}); err != nil {
				return fmt.Errorf("give %s %s to revision %s: %w", validatingWebhooks.kind, c.Name, DefaultRevision, err)
			}
			return nil
		}
	}
	u, err := r.get(ctx, validatingWebhooks, "", c.Name)
	if err != nil || u == nil {
		return err
	}
	return r.drop(ctx, validatingWebhooks, u)
}
