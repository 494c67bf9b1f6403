package install

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Plan says what Install would do, having asked the API server to check every object. It changes nothing.
func (i *Installer) Plan(ctx context.Context, o Options) ([]Change, error) {
	_, changes, err := i.prepare(ctx, o)
	return changes, err
}

// prepared is an installation that nothing speaks against.
type prepared struct {
	objects []*unstructured.Unstructured
	state   *state
}

// prepare does all that may refuse.
func (i *Installer) prepare(ctx context.Context, o Options) (*prepared, []Change, error) {
	o, err := i.withServed(o)
	if err != nil {
		return nil, nil, err
	}
	objects, err := Render(o)
	if err != nil {
		return nil, nil, err
	}
	if err := i.mayRead(ctx, objects); err != nil {
		return nil, nil, err
	}
	s, err := i.survey(ctx, objects)
	if err != nil {
		return nil, nil, err
	}
	keepPolicies(objects, s.live)
	if s.namespaced && !s.hasOwnNS {
		i.say("namespace %s exists and is not Selvage's: it is used as it is", Namespace)
		objects = objects[1:]
	}
	if objects, err = i.withoutPolicies(objects); err != nil {
		return nil, nil, err
	}
	if err := i.oneAnswer(ctx, o); err != nil {
		return nil, nil, err
	}
	if err := i.mayApply(ctx, objects); err != nil {
		return nil, nil, err
	}
	changes, err := i.rehearse(ctx, objects, s, o)
	if err != nil {
		return nil, nil, err
	}
	return &prepared{objects, s}, changes, nil
}

// Install applies everything in order and waits until it works. It may be repeated at any time, also after it failed half
// way: what is right already stays as it is.
func (i *Installer) Install(ctx context.Context, o Options) (*Verdict, error) {
	if err := i.apply(ctx, o, true); err != nil {
		return nil, err
	}
	return i.Probe(ctx, o)
}

// Apply is Install without waiting for the control plane and without the probe: for one that is started afterwards.
func (i *Installer) Apply(ctx context.Context, o Options) error { return i.apply(ctx, o, false) }

func (i *Installer) apply(ctx context.Context, o Options, wait bool) error {
	i.say("checking what the cluster has")
	p, changes, err := i.prepare(ctx, o)
	if err != nil {
		return err
	}
	if err := i.warnOfRivals(ctx, o); err != nil {
		return err
	}
	i.tell(changes)
	last := len(p.objects) - o.callers()
	i.say("applying %d objects of revision %s", len(p.objects), o.revision())
	if err := i.applyAll(ctx, p.objects[:last], changes, o); err != nil {
		return err
	}
	if err := i.prune(ctx, o, p.objects); err != nil {
		return err
	}
	if wait && o.inCluster() {
		if err := i.waitForDeployment(ctx, o); err != nil {
			return err
		}
	}
	// Only now: from here on, pods of the mesh wait for the control plane.
	return i.applyAll(ctx, p.objects[last:], changes[last:], o)
}

// applyAll applies objects in order; after the definitions it waits until the API server serves them.
func (i *Installer) applyAll(ctx context.Context, objects []*unstructured.Unstructured, changes []Change, o Options) error {
	definitions := 0
	for n, u := range objects {
		isDefinition := u.GetKind() == definitionsKind.kind
		if changes[n].Action != Unchanged {
			applied, err := i.applyOne(ctx, u, o)
			switch {
			case err != nil:
				return err
			case isDefinition:
				definitions++ // all of them are one line
			case applied:
				i.say("  %s %s", describe(u), changes[n].Action)
			}
		}
		if isLast := n+1 == len(objects) || objects[n+1].GetKind() != definitionsKind.kind; isDefinition && isLast {
			if definitions > 0 {
				i.say("  %d CustomResourceDefinitions applied", definitions)
			}
			if err := i.waitForDefinitions(ctx, objects[:n+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// applyOne applies one object. Where somebody else has set a field, the installation wins, as was said before, with one exception:
// a mesh configuration that was edited in the cluster stays unless a new one was given; applied is false then.
func (i *Installer) applyOne(ctx context.Context, u *unstructured.Unstructured, o Options) (applied bool, err error) {
	_, err = i.serverSide(ctx, u, applyOptions{})
	if conflictsOf(err) != nil {
		if o.keepsEdited(u) {
			return false, nil
		}
		_, err = i.serverSide(ctx, u, applyOptions{force: true})
	}
	if err != nil {
		return false, fmt.Errorf("apply %s: %w", describe(u), err)
	}
	return true, nil
}

type applyOptions struct{ dryRun, force bool }

func (i *Installer) serverSide(ctx context.Context, u *unstructured.Unstructured, how applyOptions) (*unstructured.Unstructured, error) {
	r, err := resourceOf(u)
	if err != nil {
		return nil, err
	}
	options := metav1.ApplyOptions{FieldManager: FieldManager, Force: how.force}
	if how.dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	return i.at(r, u.GetNamespace()).Apply(ctx, u.GetName(), u, options)
}

// prune removes what an earlier installation of this revision had and this one has not: a Deployment, when the control plane
// now runs outside the cluster, or the endpoints of one that did.
func (i *Installer) prune(ctx context.Context, o Options, wanted []*unstructured.Unstructured) error {
	keep := map[string]bool{}
	for _, u := range wanted {
		keep[describe(u)] = true
	}
	for _, r := range []kindRef{deployments, disruptionBudgets, endpointSlices} {
		old, err := i.owned(ctx, r, revisionSelector(o))
		if err != nil {
			return err
		}
		for _, u := range old {
			if keep[describe(&u)] || copied(&u) {
				continue
			}
			if err := i.remove(ctx, r, &u); err != nil {
				return err
			}
			i.say("  %s removed: no longer part of this installation", describe(&u))
		}
	}
	return i.prunePolicies(ctx, o, keep)
}

// copied reports whether a controller of Kubernetes made the object and only copied our labels onto it.
func copied(u *unstructured.Unstructured) bool {
	maker, isSlice := u.GetLabels()[sliceMaker]
	return len(u.GetOwnerReferences()) > 0 || isSlice && maker != Owner
}

// waitForDefinitions waits until the API server serves the kinds.
func (i *Installer) waitForDefinitions(ctx context.Context, objects []*unstructured.Unstructured) error {
	return i.until(ctx, "custom resource definitions", func(ctx context.Context) (bool, string, error) {
		live, err := i.owned(ctx, definitionsKind, "")
		if err != nil {
			return false, "", err
		}
		served := map[string]bool{}
		for _, crd := range live {
			served[crd.GetName()] = condition(&crd, "Established") == "True"
		}
		wanted, ready := 0, 0
		for _, u := range objects {
			if u.GetKind() != definitionsKind.kind {
				continue
			}
			wanted++
			if served[u.GetName()] {
				ready++
			}
		}
		return ready == wanted, fmt.Sprintf("%d of %d are served", ready, wanted), nil
	})
}

// condition is the status of an object's condition, "" when it has none of that type.
func condition(u *unstructured.Unstructured, conditionType string) string {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, item := range list {
		c, _ := item.(map[string]any)
		if c["type"] == conditionType {
			status, _ := c["status"].(string)
			return status
		}
	}
	return ""
}
