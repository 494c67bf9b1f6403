package podwatch

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// finding is a workload whose pods are without a sidecar and should not be, or should hear why.
type finding struct {
	sample *corev1.Pod // one of them
	reason inject.Reason
	why    inject.Expectation
	pods   int
	fresh  bool // a pod of it was created while this was watching
}

// compare orders findings by namespace, reason and name.
func (f finding) compare(g finding) int {
	return cmp.Or(cmp.Compare(f.sample.Namespace, g.sample.Namespace), cmp.Compare(f.reason, g.reason), cmp.Compare(f.sample.Name, g.sample.Name))
}

// tale is what was told once and is not told again while this Run lasts.
type tale struct {
	object types.UID // the owner's; "" for the namespace's summary
	where  string    // namespace
	reason inject.Reason
}

// tell makes Events and log lines of what was found. A workload that came while this was watching gets an Event of its own;
// those that were there before, or that have become wrong by a change of a label or a webhook, share one for their namespace and
// reason, as there may be thousands.
func (r *round) tell(ctx context.Context, found []finding) {
	var together []finding
	for _, f := range found {
		if !f.fresh || !r.tellOwner(ctx, f) {
			together = append(together, f)
		}
	}
	for len(together) > 0 {
		first, n := together[0], 1
		for n < len(together) && together[n].sample.Namespace == first.sample.Namespace && together[n].reason == first.reason {
			n++
		}
		r.tellNamespace(ctx, together[:n])
		together = together[n:]
	}
}

// tellOwner tells the owner of the pods, once for each reason. It reports false when too much is told already.
func (r *round) tellOwner(ctx context.Context, f finding) bool {
	direct := tale{f.owner().UID, f.sample.Namespace, f.reason}
	if r.told[direct] {
		return true
	}
	if !r.limiter.Allow() {
		return false
	}
	r.remember(direct)
	owner := r.topOwner(ctx, f)
	if top := (tale{owner.UID, f.sample.Namespace, f.reason}); top != direct {
		if r.told[top] {
			return true
		}
		r.remember(top)
	}
	r.config.Log.Log(ctx, f.level(), "pod has no sidecar", "namespace", owner.Namespace, "owner", owner.Kind+"/"+owner.Name, "pod", f.sample.Name,
		"reason", f.reason, "detail", f.detail())
	r.config.Events.Event(&owner, f.eventType(), EventReason, fmt.Sprintf("pod %s has no sidecar (%s): %s. %s", f.sample.Name, f.reason, f.detail(), f.reason.Advice()))
	return true
}

// tellNamespace tells of several workloads of one namespace and reason.
func (r *round) tellNamespace(ctx context.Context, found []finding) {
	first := found[0]
	summary := tale{where: first.sample.Namespace, reason: first.reason}
	if r.told[summary] {
		return
	}
	r.remember(summary)
	const most = 5
	pods := 0
	var names []string
	for i, f := range found {
		pods += f.pods
		if i < most {
			names = append(names, f.owner().Kind+"/"+f.owner().Name)
		}
	}
	if more := len(found) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	r.config.Log.Log(ctx, first.level(), "pods have no sidecar", "namespace", first.sample.Namespace, "reason", first.reason, "pods", pods,
		"workloads", len(found), "owners", strings.Join(names, ", "), "detail", first.detail())
	namespace := &corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Namespace: first.sample.Namespace, Name: first.sample.Namespace}
	r.config.Events.Event(namespace, first.eventType(), EventReason, fmt.Sprintf("%d pods of %d workloads have no sidecar (%s), %s: %s. %s",
		pods, len(found), first.reason, strings.Join(names, ", "), first.detail(), first.reason.Advice()))
}

// remember notes what is told.
func (r *round) remember(t tale) {
	if len(r.told) >= maxTold {
		n := 0
		for old := range r.told { // in no order: some are told twice at worst
			if n++; n > maxTold/2 {
				break
			}
			delete(r.told, old)
		}
	}
	r.told[t] = true
}

// detail is why, in a sentence.
func (f finding) detail() string {
	if f.reason != inject.Missed {
		return f.why.Detail
	}
	asks := f.why.Asks
	if asks == "" {
		asks = f.why.Detail
	}
	return asks + ", and it was created without"
}

// eventType is Normal for what is as it should be, though a label of the namespace says otherwise.
func (f finding) eventType() string {
	switch f.reason {
	case inject.HostNetwork, inject.OtherSystem, inject.NeverSelector, inject.PolicyDisabled, inject.IgnoredNamespace:
		if !f.why.AsksItself {
			return corev1.EventTypeNormal
		}
	default:
	}
	return corev1.EventTypeWarning
}

func (f finding) level() slog.Level {
	if f.eventType() == corev1.EventTypeNormal {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// owner is the pods' controller, or the pod itself.
func (f finding) owner() corev1.ObjectReference {
	if c := metav1.GetControllerOf(f.sample); c != nil {
		return corev1.ObjectReference{APIVersion: c.APIVersion, Kind: c.Kind, Namespace: f.sample.Namespace, Name: c.Name, UID: c.UID}
	}
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: f.sample.Namespace, Name: f.sample.Name, UID: f.sample.UID}
}

// topOwner is what a person made: the Deployment over a ReplicaSet, the CronJob over a Job. Where that cannot be read it is the
// controller, which is near enough to be found.
func (r *round) topOwner(ctx context.Context, f finding) corev1.ObjectReference {
	owner := f.owner()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var over metav1.Object
	var err error
	switch {
	case owner.Kind == "ReplicaSet" && strings.HasPrefix(owner.APIVersion, "apps/"):
		over, err = r.config.Kubernetes.AppsV1().ReplicaSets(owner.Namespace).Get(ctx, owner.Name, metav1.GetOptions{})
	case owner.Kind == "Job" && strings.HasPrefix(owner.APIVersion, "batch/"):
		over, err = r.config.Kubernetes.BatchV1().Jobs(owner.Namespace).Get(ctx, owner.Name, metav1.GetOptions{})
	default:
		return owner
	}
	if err != nil {
		r.config.Log.Debug("owner cannot be read, its Event goes to the controller", "owner", owner.Kind+"/"+owner.Name, "namespace", owner.Namespace, "error", err)
		return owner
	}
	if c := metav1.GetControllerOf(over); c != nil {
		return corev1.ObjectReference{APIVersion: c.APIVersion, Kind: c.Kind, Namespace: owner.Namespace, Name: c.Name, UID: c.UID}
	}
	return owner
}
