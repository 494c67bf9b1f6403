package install

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// rehearse lets the API server check every object without storing it, so that a refusal (by a policy, a quota, an escalation
// of rights) comes before the first change, and what would change is known. Objects of a namespace that does not exist yet cannot be
// tried.
func (i *Installer) rehearse(ctx context.Context, objects []*unstructured.Unstructured, s *state, o Options) ([]Change, error) {
	changes := make([]Change, len(objects))
	err := each(ctx, objects, func(ctx context.Context, n int, u *unstructured.Unstructured) (err error) {
		if changes[n], err = i.try(ctx, u, s, o); err != nil {
			return fmt.Errorf("try %s: %w", describe(u), err)
		}
		return nil
	})
	return changes, err
}

// try is one object's part of rehearse.
func (i *Installer) try(ctx context.Context, u *unstructured.Unstructured, s *state, o Options) (Change, error) {
	live := s.live[describe(u)]
	c := Change{Object: describe(u), Action: Created}
	if live != nil {
		c.Action = Unchanged
	}
	if ns := u.GetNamespace(); ns != "" && s.live[namespaces.kind+" "+ns] == nil {
		return c, nil
	}
	after, err := i.serverSide(ctx, u, applyOptions{dryRun: true})
	if c.Conflicts = conflictsOf(err); c.Conflicts != nil {
		if o.keepsEdited(u) {
			c.Kept = true
			return c, nil
		}
		after, err = i.serverSide(ctx, u, applyOptions{dryRun: true, force: true})
	}
	if apierrors.IsNotFound(err) && (u.GetKind() == roleBindings.kind || u.GetKind() == clusterBindings.kind) {
		return c, nil // its role is not there before it is really applied
	}
	if apierrors.IsNotFound(err) && u.GetKind() == parameters.kind {
		return c, nil // nor is its definition
	}
	if err != nil || live == nil {
		return c, err
	}
	if c.Fields = differences(live, after); len(c.Fields) > 0 {
		c.Action = Configured
	}
	return c, nil
}

// keepsEdited reports whether the object stays as it is when somebody has edited it: the mesh configuration, unless a new one was given.
func (o Options) keepsEdited(u *unstructured.Unstructured) bool {
	return u.GetKind() == configMaps.kind && u.GetName() == o.Name(inject.MeshConfigMap) && o.MeshConfig == nil
}

// tell says in short what will change, before anything does.
func (i *Installer) tell(changes []Change) {
	i.say("%s", Summary(changes))
	for _, c := range changes {
		switch {
		case c.Kept:
			i.say("  %s was edited and stays as it is: %s", c.Object, list(c.Conflicts))
			continue
		case c.Action != Configured:
			continue
		case len(c.Fields) == 1:
			i.say("  %s: %s", c.Object, c.Fields[0])
		default:
			i.say("  %s: %d fields, of which the first is %s (--dry-run shows all)", c.Object, len(c.Fields), c.Fields[0])
		}
		if len(c.Conflicts) > 0 {
			i.say("    set back what others had changed: %s", list(c.Conflicts))
		}
	}
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
