package cli

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// validatorRequest asks that objects which name no revision be validated by the one that the tag leads to now; revision is "" when the
// tag leads nowhere any more.
type validatorRequest struct {
	tag, revision string
	dryRun        bool
}

// followDefault lets the validator of objects that name no revision follow the default tag; other tags do not concern it.
func (a *app) followDefault(ctx context.Context, c *connection, r validatorRequest) error {
	if r.tag != inject.DefaultTag {
		return nil
	}
	var done revision.Validator
	err := retry.OnError(retry.DefaultBackoff, overtaken, func() (err error) {
		done, err = c.followDefault(ctx, r)
		return err
	})
	if err != nil {
		return fmt.Errorf("let objects that name no revision be validated by the new default: %w. The tag itself is as said above; the same command again goes on from here", err)
	}
	if !done.Changes() {
		return nil
	}
	change := "calls revision " + r.revision + " now"
	switch {
	case done.After == nil:
		change = "went with the tag"
	case r.dryRun:
		change = "would call revision " + r.revision
	}
	fmt.Fprintf(a.Stdout, "ValidatingWebhookConfiguration %s, for objects that name no revision, %s.\n", revision.DefaultValidator, change)
	return nil
}

// followDefault decides on what the cluster has now, and writes it.
func (c *connection) followDefault(ctx context.Context, r validatorRequest) (revision.Validator, error) {
	hooks := c.kubernetes.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	list, err := hooks.List(ctx, metav1.ListOptions{})
	if err != nil {
		return revision.Validator{}, fmt.Errorf("list validatingwebhookconfigurations: %w", err)
	}
	v, err := revision.FollowDefault(list.Items, r.revision)
	if err != nil || r.dryRun || !v.Changes() {
		return v, err
	}
	switch {
	case v.Before == nil:
		_, err = hooks.Create(ctx, v.After, metav1.CreateOptions{FieldManager: install.FieldManager})
	case v.After == nil:
		err = hooks.Delete(ctx, v.Before.Name, exactlyThis(v.Before))
	default: // carries the resource version that was read
		_, err = hooks.Update(ctx, v.After, metav1.UpdateOptions{FieldManager: install.FieldManager})
	}
	return v, err
}
