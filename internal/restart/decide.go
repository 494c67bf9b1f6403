package restart

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Annotation on a pod template makes its controller create the pods anew when it changes. It is the one of `kubectl rollout restart`,
// which people and GitOps tools know.
const Annotation = "kubectl.kubernetes.io/restartedAt"

// again is how soon a workload is restarted a second time: pods that have no sidecar after a restart will have none after another,
// until somebody has mended the cause.
const again = 15 * time.Minute

// state is what decides about a restart.
type state struct {
	kind            string
	object          metav1.Object
	template        *corev1.PodTemplateSpec
	held            string // why its controller would not create pods anew: paused, OnDelete; "" when it would
	settled         bool   // nothing rolls out, and every pod is available
	replicas, taken int32  // how many pods it has, and how many a restart takes away at once at most
}

// wait says why a workload cannot be restarted now, "" when it can. It changes with the cluster; what never changes by itself is in
// state.held.
func (s *state) wait(budgets []policyv1.PodDisruptionBudget, now time.Time) string {
	if !s.settled {
		return "it is rolling out, or not all of its pods are available"
	}
	if at, err := time.Parse(time.RFC3339, s.template.Annotations[Annotation]); err == nil && now.Sub(at) < again {
		return "it was restarted at " + at.UTC().Format(time.TimeOnly) + " UTC"
	}
	for i := range budgets {
		b := &budgets[i]
		if !covers(b, s.template.Labels) {
			continue
		}
		if b.Status.ObservedGeneration < b.Generation {
			return "PodDisruptionBudget " + b.Name + " has just changed"
		}
		if allowed := b.Status.DisruptionsAllowed; allowed < s.taken {
			return fmt.Sprintf("PodDisruptionBudget %s allows %d disruptions, and a restart takes away %d pods at once", b.Name, allowed, s.taken)
		}
	}
	return ""
}

// covers reports whether a budget is about pods with these labels.
func covers(b *policyv1.PodDisruptionBudget, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	return err == nil && selector.Matches(labels.Set(set))
}

func ofDeployment(d *appsv1.Deployment) *state {
	s := &state{kind: "Deployment", object: d, template: &d.Spec.Template, replicas: count(d.Spec.Replicas)}
	n := d.Status
	s.settled = n.ObservedGeneration >= d.Generation && n.UpdatedReplicas == s.replicas && n.Replicas == s.replicas && n.AvailableReplicas == s.replicas
	switch {
	case d.Spec.Paused:
		s.held = "spec.paused is true"
	case d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		s.taken = s.replicas
	case d.Spec.Strategy.RollingUpdate != nil:
		// Rounded down, as the Deployment controller does. With 0 the new pod comes before an old one goes.
		s.taken = scaled(d.Spec.Strategy.RollingUpdate.MaxUnavailable, s.replicas, false)
	}
	return s
}

func ofStatefulSet(d *appsv1.StatefulSet) *state {
	s := &state{kind: "StatefulSet", object: d, template: &d.Spec.Template, replicas: count(d.Spec.Replicas), taken: 1}
	n := d.Status
	s.settled = n.ObservedGeneration >= d.Generation && n.UpdateRevision == n.CurrentRevision && n.Replicas == s.replicas && n.AvailableReplicas == s.replicas
	switch u := d.Spec.UpdateStrategy; {
	case u.Type == appsv1.OnDeleteStatefulSetStrategyType:
		s.held = "spec.updateStrategy is OnDelete"
	case u.RollingUpdate != nil && u.RollingUpdate.Partition != nil && *u.RollingUpdate.Partition > 0:
		s.held = "spec.updateStrategy.rollingUpdate.partition keeps old pods"
	case u.RollingUpdate != nil && u.RollingUpdate.MaxUnavailable != nil:
		s.taken = scaled(u.RollingUpdate.MaxUnavailable, s.replicas, true)
	}
	return s
}

func ofDaemonSet(d *appsv1.DaemonSet) *state {
	n := d.Status
	s := &state{kind: "DaemonSet", object: d, template: &d.Spec.Template, replicas: n.DesiredNumberScheduled, taken: 1}
	s.settled = n.ObservedGeneration >= d.Generation && n.UpdatedNumberScheduled == s.replicas && n.NumberAvailable == s.replicas
	switch u := d.Spec.UpdateStrategy; {
	case u.Type == appsv1.OnDeleteDaemonSetStrategyType:
		s.held = "spec.updateStrategy is OnDelete"
	case u.RollingUpdate != nil:
		s.taken = scaled(u.RollingUpdate.MaxUnavailable, s.replicas, true)
	}
	return s
}

// count is a number of replicas; Kubernetes' default is 1.
func count(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

// scaled is a number or percentage of replicas.
func scaled(v *intstr.IntOrString, replicas int32, up bool) int32 {
	if v == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, int(replicas), up)
	if err != nil {
		return replicas // not a percentage: the API server has let it through, and nobody knows what it means
	}
	return int32(min(max(n, 0), int(replicas))) //nolint:gosec // between 0 and an int32
}
