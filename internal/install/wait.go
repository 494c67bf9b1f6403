package install

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// waitForDeployment waits until every replica of the new control plane is ready. What holds a pod back (an image that cannot
// be pulled, no node with room, a container that ends) is said while waiting and in the error.
func (i *Installer) waitForDeployment(ctx context.Context, o Options) error {
	name := o.Name(appName)
	return i.until(ctx, "Deployment "+Namespace+"/"+name, func(ctx context.Context) (bool, string, error) {
		d, err := i.kubernetes.AppsV1().Deployments(Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, "", fmt.Errorf("read Deployment %s: %w", name, err)
		}
		if rolledOut(d) {
			return true, "", nil
		}
		reason := fmt.Sprintf("%d of %d replicas ready", min(d.Status.UpdatedReplicas, d.Status.ReadyReplicas), *d.Spec.Replicas)
		list, err := i.kubernetes.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.FormatLabels(o.selector())})
		if err != nil {
			return false, "", fmt.Errorf("list pods of %s: %w", name, err)
		}
		for _, pod := range list.Items {
			if why := heldBack(&pod); why != "" {
				return false, reason + "; Pod " + pod.Name + " " + why + i.lastWords(ctx, &pod), nil
			}
		}
		for _, c := range d.Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
				return false, reason + "; " + c.Message, nil
			}
		}
		return false, reason, nil
	})
}

// rolledOut is the rule of `kubectl rollout status`.
func rolledOut(d *appsv1.Deployment) bool {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	return s.ObservedGeneration >= d.Generation && s.UpdatedReplicas >= want && s.Replicas == s.UpdatedReplicas &&
		s.AvailableReplicas >= s.UpdatedReplicas
}

// heldBack says in a few words why a pod does not run; "" while it is on its way.
func heldBack(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "cannot be scheduled: " + c.Message
		}
	}
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.State.Waiting != nil && strings.Contains(s.State.Waiting.Reason, "Image"):
			return fmt.Sprintf("cannot have its image %s: %s (nothing is published yet: --registry, --tag and --image name yours)",
				s.Image, s.State.Waiting.Reason)
		case s.State.Waiting != nil && s.State.Waiting.Reason != "ContainerCreating" && s.State.Waiting.Reason != "PodInitializing":
			return "waits: " + s.State.Waiting.Reason
		case s.State.Terminated != nil:
			return fmt.Sprintf("ended with exit code %d", s.State.Terminated.ExitCode)
		}
	}
	return ""
}

// lastWords is the last line that a container which has ended wrote: mostly the cause. "" when there is none.
func (i *Installer) lastWords(ctx context.Context, pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		ended, again := s.State.Terminated != nil, s.State.Waiting != nil && s.RestartCount > 0
		if !ended && !again {
			continue
		}
		one := int64(1)
		options := &corev1.PodLogOptions{Container: s.Name, Previous: again, TailLines: &one}
		line, err := i.kubernetes.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).DoRaw(ctx)
		if text := strings.TrimSpace(string(line)); err == nil && text != "" {
			return ": " + text
		}
		return fmt.Sprintf("; look with `kubectl logs -n %s %s`", pod.Namespace, pod.Name)
	}
	return ""
}
