package restart

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// deployment has all of its replicas.
func deployment(name string, replicas int32) *appsv1.Deployment {
	one := intstr.FromInt32(1)
	set := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Generation: 1},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: set},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: set}},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &one}}},
		Status: appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: replicas, UpdatedReplicas: replicas, AvailableReplicas: replicas},
	}
}

func budget(app string, allowed int32) policyv1.PodDisruptionBudget {
	return policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: app + "-pdb"},
		Spec:   policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
		Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed}}
}

// TestWhatKeepsAWorkloadFromBeingRestarted goes through the rules, one at a time.
func TestWhatKeepsAWorkloadFromBeingRestarted(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	half, all := intstr.FromString("50%"), intstr.FromString("100%")
	stale := budget("web", 1)
	stale.Generation = 2
	changed := func(change func(*appsv1.Deployment)) *state {
		d := deployment("web", 4)
		change(d)
		return ofDeployment(d)
	}
	one, two := int32(1), int32(2)
	stateful := &appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{Replicas: &two}, Status: appsv1.StatefulSetStatus{Replicas: 2, AvailableReplicas: 2}}
	partitioned, byHand := stateful.DeepCopy(), stateful.DeepCopy()
	partitioned.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: &one}
	byHand.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType
	rolling := stateful.DeepCopy()
	rolling.Status.UpdateRevision = "2"
	daemons := &appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{UpdateStrategy: appsv1.DaemonSetUpdateStrategy{RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &half}}},
		Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 3}}
	for name, c := range map[string]struct {
		state   *state
		budgets []policyv1.PodDisruptionBudget
		want    string // "" for nothing
	}{
		"nothing":                       {state: changed(func(*appsv1.Deployment) {})},
		"a budget that allows":          {state: changed(func(*appsv1.Deployment) {}), budgets: []policyv1.PodDisruptionBudget{budget("web", 1)}},
		"a budget that does not":        {state: changed(func(*appsv1.Deployment) {}), budgets: []policyv1.PodDisruptionBudget{budget("web", 0)}, want: "web-pdb allows 0 disruptions"},
		"another's budget":              {state: changed(func(*appsv1.Deployment) {}), budgets: []policyv1.PodDisruptionBudget{budget("db", 0)}},
		"one of two budgets":            {state: changed(func(*appsv1.Deployment) {}), budgets: []policyv1.PodDisruptionBudget{budget("web", 9), budget("web", 0)}, want: "allows 0"},
		"a budget nobody has looked at": {state: changed(func(*appsv1.Deployment) {}), budgets: []policyv1.PodDisruptionBudget{stale}, want: "just changed"},
		"more at once than allowed": {state: changed(func(d *appsv1.Deployment) { d.Spec.Strategy.RollingUpdate.MaxUnavailable = &half }),
			budgets: []policyv1.PodDisruptionBudget{budget("web", 1)}, want: "takes away 2 pods"},
		"all at once": {state: changed(func(d *appsv1.Deployment) { d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType }),
			budgets: []policyv1.PodDisruptionBudget{budget("web", 3)}, want: "takes away 4 pods"},
		"new ones first": {state: changed(func(d *appsv1.Deployment) {
			zero := intstr.FromInt32(0)
			d.Spec.Strategy.RollingUpdate.MaxUnavailable = &zero
		}), budgets: []policyv1.PodDisruptionBudget{budget("web", 0)}},
		"paused":              {state: changed(func(d *appsv1.Deployment) { d.Spec.Paused = true }), want: "paused"},
		"a pod not available": {state: changed(func(d *appsv1.Deployment) { d.Status.AvailableReplicas = 3 }), want: "not all of its pods"},
		"a rollout under way": {state: changed(func(d *appsv1.Deployment) { d.Generation = 2 }), want: "rolling out"},
		"restarted a moment ago": {state: changed(func(d *appsv1.Deployment) {
			d.Spec.Template.Annotations = map[string]string{Annotation: now.Add(-time.Minute).Format(time.RFC3339)}
		}), want: "restarted at 11:59:00"},
		"restarted long ago": {state: changed(func(d *appsv1.Deployment) {
			d.Spec.Template.Annotations = map[string]string{Annotation: now.Add(-time.Hour).Format(time.RFC3339)}
		})},
		"a stateful set":             {state: ofStatefulSet(stateful)},
		"a stateful set in rollout":  {state: ofStatefulSet(rolling), want: "rolling out"},
		"a stateful set's partition": {state: ofStatefulSet(partitioned), want: "partition"},
		"a stateful set by hand":     {state: ofStatefulSet(byHand), want: "OnDelete"},
		"a daemon set": {state: ofDaemonSet(daemons), budgets: []policyv1.PodDisruptionBudget{{
			ObjectMeta: metav1.ObjectMeta{Name: "all"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{}},
			Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1}}}, want: "takes away 2 pods"},
	} {
		got := c.state.held
		if got == "" {
			got = c.state.wait(c.budgets, now)
		}
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q; want %q", name, got, c.want)
		}
	}
	if s := changed(func(d *appsv1.Deployment) { d.Spec.Strategy.RollingUpdate.MaxUnavailable = &all }); s.taken != 4 {
		t.Errorf("100%% of 4 pods are %d", s.taken)
	}
}

// events are told Events as REASON KIND/NAME: MESSAGE.
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) Event(object runtime.Object, _, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	o := object.(*corev1.ObjectReference)
	e.list = append(e.list, fmt.Sprintf("%s %s/%s: %s", reason, o.Kind, o.Name, message))
}

func (e *events) of(reason string) (names []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, line := range e.list {
		if rest, ok := strings.CutPrefix(line, reason+" "); ok {
			name, _, _ := strings.Cut(rest, ":")
			names = append(names, name)
		}
	}
	return names
}

// restarter runs in the bubble of the caller, against a client that holds the objects.
func restarter(t *testing.T, works *bool, objects ...runtime.Object) (*Restarter, *fake.Clientset, *events) {
	t.Helper()
	client, told := fake.NewClientset(objects...), &events{}
	r, err := New(Config{Kubernetes: client, Account: "istio-system:istiod", Works: func() bool { return *works }, Events: told, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r, client, told
}

func restartedAt(t *testing.T, client *fake.Clientset, name string) string {
	t.Helper()
	d, err := client.AppsV1().Deployments("shop").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d.Spec.Template.Annotations[Annotation]
}

// TestOneAfterTheOther: of a namespace's workloads the next begins when the one before is ready, and none while injection is not
// proven to work.
func TestOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		works := false
		r, client, told := restarter(t, &works, deployment("api", 2), deployment("web", 2))
		r.Want([]Workload{{"shop", "Deployment", "web"}, {"shop", "Deployment", "api"}, {"shop", "Deployment", "gone"}, {"shop", "Job", "once"}})
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := told.of("RestartedForSidecar"); len(got) > 0 {
			t.Fatalf("restarted while injection does not work: %v", got)
		}
		works = true
		time.Sleep(pause)
		synctest.Wait()
		if got := told.of("RestartedForSidecar"); !slices.Equal(got, []string{"Deployment/api"}) {
			t.Fatalf("restarted: %v", got)
		}
		// Its rollout is under way: the controller has not looked at it yet.
		d, err := client.AppsV1().Deployments("shop").Get(t.Context(), "api", metav1.GetOptions{})
		if err != nil || d.Spec.Template.Annotations[Annotation] == "" {
			t.Fatalf("the template has %v (%v)", d.Spec.Template.Annotations, err)
		}
		d.Generation, d.Status.UpdatedReplicas = 2, 1
		if _, err := client.AppsV1().Deployments("shop").Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := restartedAt(t, client, "web"); got != "" {
			t.Fatalf("web was restarted at %s, while api rolls out", got)
		}
		d.Status.ObservedGeneration, d.Status.UpdatedReplicas = 2, 2
		if _, err := client.AppsV1().Deployments("shop").Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		first := restartedAt(t, client, "api")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := told.of("RestartedForSidecar"); !slices.Equal(got, []string{"Deployment/api", "Deployment/web"}) {
			t.Errorf("restarted: %v", got)
		}
		// That its pods still have no sidecar is no reason to restart it again and again.
		time.Sleep(again / 2)
		synctest.Wait()
		if got := restartedAt(t, client, "api"); got != first {
			t.Errorf("api was restarted again after %s", again/2)
		}
	})
}

// TestWithoutTheGrantTheNamespaceIsTold, once, by which command it is given.
func TestWithoutTheGrantTheNamespaceIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		works := true
		r, client, told := restarter(t, &works, deployment("web", 2), deployment("api", 2))
		client.PrependReactor("get", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(appsv1.Resource("deployments"), "web", fmt.Errorf("no"))
		})
		r.Want([]Workload{{"shop", "Deployment", "web"}, {"shop", "Deployment", "api"}})
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(told.list) != 1 || !strings.Contains(told.list[0], "RestartForbidden Namespace/shop") ||
			!strings.Contains(told.list[0], "kubectl -n shop create rolebinding selvage-restarter --clusterrole=selvage-restarter --serviceaccount=istio-system:istiod") {
			t.Errorf("told: %v", told.list)
		}
	})
}
