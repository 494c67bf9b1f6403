package revision

import (
	"fmt"
	"time"

	"istio.io/api/label"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// Workload is what a rolling restart concerns.
type Workload struct {
	Kind, Name string
	Template   corev1.PodTemplateSpec
	Replicas   int32  // wanted
	Stuck      string // why a restart would not roll out, such as that it is paused; "" when it would
	Generation int64
}

func (w Workload) String() string { return w.Kind + " " + w.Name }

// Wants is the revision whose sidecar pods of the workload are to have when the namespace's label leads to this one; has is what a pod
// has now, which stays right where the namespace says nothing and the pod speaks for itself.
func (w Workload) Wants(revision, has string) string {
	own := label.SidecarInject.Name
	value, labelled := w.Template.Labels[own]
	if !labelled {
		value = w.Template.Annotations[own]
	}
	_, names := w.Template.Labels[label.IoIstioRev.Name]
	switch {
	case value == "false" || w.Template.Spec.HostNetwork:
		return ""
	case revision == "" && (names || value == "true"):
		return has
	}
	return revision
}

// OfDeployment reads a Deployment.
func OfDeployment(d *appsv1.Deployment) Workload {
	w := Workload{Kind: "Deployment", Name: d.Name, Template: d.Spec.Template, Replicas: wanted(d.Spec.Replicas), Generation: d.Generation}
	if d.Spec.Paused {
		w.Stuck = "it is paused: kubectl rollout resume deployment/" + d.Name
	}
	return w
}

// OfStatefulSet reads a StatefulSet.
func OfStatefulSet(s *appsv1.StatefulSet) Workload {
	w := Workload{Kind: "StatefulSet", Name: s.Name, Template: s.Spec.Template, Replicas: wanted(s.Spec.Replicas), Generation: s.Generation}
	rolling := s.Spec.UpdateStrategy.RollingUpdate
	switch {
	case s.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType:
		w.Stuck = "its updateStrategy is OnDelete: delete its pods yourself"
	case rolling != nil && rolling.Partition != nil && *rolling.Partition > 0:
		w.Stuck = fmt.Sprintf("its updateStrategy leaves pods below partition %d alone", *rolling.Partition)
	}
	return w
}

// OfDaemonSet reads a DaemonSet.
func OfDaemonSet(d *appsv1.DaemonSet) Workload {
	w := Workload{Kind: "DaemonSet", Name: d.Name, Template: d.Spec.Template, Replicas: d.Status.DesiredNumberScheduled, Generation: d.Generation}
	if d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
		w.Stuck = "its updateStrategy is OnDelete: delete its pods yourself"
	}
	return w
}

func wanted(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

// Rollout is how far one is.
type Rollout struct {
	Done   bool
	Ready  int32  // of the new pods
	Total  int32  // wanted
	Failed string // that it will not come to an end by itself; "" while it may
}

// DeploymentRollout follows the rule of `kubectl rollout status`.
func DeploymentRollout(d *appsv1.Deployment) Rollout {
	s, total := d.Status, wanted(d.Spec.Replicas)
	old := s.Replicas - s.UpdatedReplicas // all of which may be among the available ones
	r := Rollout{Total: total, Ready: min(s.UpdatedReplicas, max(0, s.AvailableReplicas-old))}
	if s.ObservedGeneration < d.Generation {
		r.Ready = 0
		return r
	}
	for _, c := range s.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded" {
			r.Failed = c.Message
		}
	}
	r.Done = s.UpdatedReplicas >= total && s.Replicas == s.UpdatedReplicas && s.AvailableReplicas >= s.UpdatedReplicas
	return r
}

// StatefulSetRollout follows the rule of `kubectl rollout status`, and waits for all pods to be ready.
func StatefulSetRollout(s *appsv1.StatefulSet) Rollout {
	total := wanted(s.Spec.Replicas)
	r := Rollout{Total: total, Ready: min(s.Status.UpdatedReplicas, s.Status.ReadyReplicas)}
	if s.Status.ObservedGeneration < s.Generation {
		r.Ready = 0
		return r
	}
	r.Done = s.Status.UpdatedReplicas >= total && s.Status.ReadyReplicas >= total && s.Status.UpdateRevision == s.Status.CurrentRevision
	return r
}

// DaemonSetRollout follows the rule of `kubectl rollout status`.
func DaemonSetRollout(d *appsv1.DaemonSet) Rollout {
	total := d.Status.DesiredNumberScheduled
	r := Rollout{Total: total, Ready: min(d.Status.UpdatedNumberScheduled, d.Status.NumberAvailable)}
	if d.Status.ObservedGeneration < d.Generation {
		r.Ready = 0
		return r
	}
	r.Done = d.Status.UpdatedNumberScheduled >= total && d.Status.NumberAvailable >= total
	return r
}

// RestartedAt is the annotation of a pod template that kubectl restarts a workload by.
const RestartedAt = "kubectl.kubernetes.io/restartedAt"

// RestartPatch is the merge patch that restarts a workload.
func RestartPatch(at time.Time) []byte {
	return fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{%q:%q}}}}}`, RestartedAt, at.UTC().Format(time.RFC3339Nano))
}

// NotReady says in a few words why a pod is not ready; "" while it is on its way, and when it is.
func NotReady(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "cannot be scheduled: " + c.Message
		}
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, s := range list {
			waiting := s.State.Waiting
			switch {
			case waiting != nil && waiting.Reason != "ContainerCreating" && waiting.Reason != "PodInitializing":
				return fmt.Sprintf("container %s waits: %s %s", s.Name, waiting.Reason, waiting.Message)
			case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
				return fmt.Sprintf("container %s ended with exit code %d", s.Name, s.State.Terminated.ExitCode)
			}
		}
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Running != nil && !s.Ready {
			return fmt.Sprintf("container %s runs and is not ready", s.Name)
		}
	}
	return ""
}
