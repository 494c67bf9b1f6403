package revision

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestDeploymentRollout(t *testing.T) {
	for sentence, c := range map[string]struct {
		status appsv1.DeploymentStatus
		done   bool
		failed bool
		ready  int32
	}{
		"not seen by its controller yet":  {appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, false, false, 0},
		"old pods are left":               {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 2, AvailableReplicas: 2}, false, false, 1},
		"only old pods are available":     {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 1, AvailableReplicas: 2}, false, false, 0},
		"new pods are not available":      {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1}, false, false, 1},
		"done":                            {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, true, false, 2},
		"Kubernetes has given up waiting": {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 1, AvailableReplicas: 2, Conditions: []appsv1.DeploymentCondition{{Type: appsv1.DeploymentProgressing, Reason: "ProgressDeadlineExceeded", Message: "too long"}}}, false, true, 0},
	} {
		r := DeploymentRollout(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](2)}, Status: c.status})
		if r.Done != c.done || (r.Failed != "") != c.failed || r.Ready != c.ready {
			t.Errorf("%s: %+v", sentence, r)
		}
	}
}

func TestOtherRollouts(t *testing.T) {
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Spec: appsv1.StatefulSetSpec{Replicas: ptr.To[int32](2)},
		Status: appsv1.StatefulSetStatus{ObservedGeneration: 2, UpdatedReplicas: 2, ReadyReplicas: 2, CurrentRevision: "a", UpdateRevision: "b"}}
	if StatefulSetRollout(set).Done {
		t.Error("a StatefulSet whose controller has not closed its revision counts as done")
	}
	set.Status.CurrentRevision = "b"
	if !StatefulSetRollout(set).Done {
		t.Error("a StatefulSet that is done is not")
	}
	daemon := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Status: appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 2}}
	if DaemonSetRollout(daemon).Done {
		t.Error("a DaemonSet with a pod that is not available counts as done")
	}
	daemon.Status.NumberAvailable = 3
	if !DaemonSetRollout(daemon).Done {
		t.Error("a DaemonSet that is done is not")
	}
}

func TestWhatWouldNotRollOutIsSaidBefore(t *testing.T) {
	if w := OfDeployment(&appsv1.Deployment{Spec: appsv1.DeploymentSpec{Paused: true}}); w.Stuck == "" {
		t.Error("a paused Deployment")
	}
	if w := OfStatefulSet(&appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}}}); w.Stuck == "" {
		t.Error("a StatefulSet that is updated on delete")
	}
	partition := &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To[int32](1)}
	if w := OfStatefulSet(&appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{UpdateStrategy: appsv1.StatefulSetUpdateStrategy{RollingUpdate: partition}}}); w.Stuck == "" {
		t.Error("a StatefulSet with a partition")
	}
	if w := OfDaemonSet(&appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}}}); w.Stuck == "" {
		t.Error("a DaemonSet that is updated on delete")
	}
}

func TestWants(t *testing.T) {
	w := Workload{}
	if got := w.Wants("asm-1", ""); got != "asm-1" {
		t.Errorf("a plain workload wants %q", got)
	}
	w.Template.Labels = map[string]string{"sidecar.istio.io/inject": "false"}
	if got := w.Wants("asm-1", "asm-1"); got != "" {
		t.Errorf("one that opts out wants %q", got)
	}
	w.Template.Labels = map[string]string{"sidecar.istio.io/inject": "true"}
	if got := w.Wants("", "asm-1"); got != "asm-1" {
		t.Errorf("one that asks itself, where the namespace says nothing, wants %q", got)
	}
	w.Template.Labels = nil
	if got := w.Wants("", "asm-1"); got != "" {
		t.Errorf("one that does not ask, where the namespace says nothing, wants %q", got)
	}
}
