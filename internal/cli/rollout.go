package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	toolswatch "k8s.io/client-go/tools/watch"

	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/revision/live"
)

// workload is one with what tells its pods.
type workload struct {
	revision.Workload
	selector *metav1.LabelSelector
}

// workloads gives those of the namespace that have pods with another sidecar than they should, in the order in which they are restarted
// (Deployments, StatefulSets, DaemonSets, each by name), and how many need not be.
func (m *migration) workloads(ctx context.Context) (todo []revision.Workload, ready int, err error) {
	all, err := m.all(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, w := range all {
		pods, err := m.pods(ctx, w.selector)
		if err != nil {
			return nil, 0, err
		}
		moves := false
		for i := range pods {
			has := live.SidecarOf(&pods[i])
			moves = moves || has != w.Wants(m.revision, has)
		}
		if moves {
			todo = append(todo, w.Workload)
		} else {
			ready++
		}
	}
	return todo, ready, nil
}

// all are the namespace's workloads.
func (m *migration) all(ctx context.Context) (all []workload, err error) {
	apps := m.c.kubernetes.AppsV1()
	deployments, err := apps.Deployments(m.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list deployments: %w", err)
	}
	for i := range deployments.Items {
		all = append(all, workload{revision.OfDeployment(&deployments.Items[i]), deployments.Items[i].Spec.Selector})
	}
	sets, err := apps.StatefulSets(m.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list statefulsets: %w", err)
	}
	for i := range sets.Items {
		all = append(all, workload{revision.OfStatefulSet(&sets.Items[i]), sets.Items[i].Spec.Selector})
	}
	daemons, err := apps.DaemonSets(m.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list daemonsets: %w", err)
	}
	for i := range daemons.Items {
		all = append(all, workload{revision.OfDaemonSet(&daemons.Items[i]), daemons.Items[i].Spec.Selector})
	}
	return all, nil
}

// pods of a workload that have not ended and are not on their way out.
func (m *migration) pods(ctx context.Context, selector *metav1.LabelSelector) (running []corev1.Pod, err error) {
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, fmt.Errorf("read selector: %w", err)
	}
	list, err := m.c.kubernetes.CoreV1().Pods(m.namespace).List(ctx, metav1.ListOptions{LabelSelector: s.String()})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	for _, pod := range list.Items {
		ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if pod.DeletionTimestamp == nil && !ended {
			running = append(running, pod)
		}
	}
	return running, nil
}

// restart rolls one workload and waits until its pods are ready, with the sidecar that they should have.
func (m *migration) restart(ctx context.Context, w revision.Workload, tell func(part float64, text string)) error {
	tell(0, "restarting "+w.String())
	selector, client, object, err := m.patch(ctx, w)
	if err != nil {
		return fmt.Errorf("restart it: %w", err)
	}
	waiting, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	last := ""
	isDone := func(event watch.Event) (bool, error) {
		if event.Type == watch.Deleted {
			return false, errors.New("it was deleted meanwhile")
		}
		r := rolloutOf(event.Object)
		last = fmt.Sprintf("%d of %d pods ready", r.Ready, r.Total)
		part := 0.0
		if r.Total > 0 {
			part = float64(r.Ready) / float64(r.Total)
		}
		tell(part, w.String()+": "+last)
		if r.Failed != "" {
			return false, errors.New(strings.TrimSuffix(r.Failed, "."))
		}
		return r.Done, nil
	}
	source := cache.NewListWatchFromClient(client, resourceOf[w.Kind], m.namespace, fields.OneTermEqualSelector(metav1.ObjectNameField, w.Name))
	_, err = toolswatch.UntilWithSync(waiting, source, object, nil, isDone)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if waiting.Err() != nil {
		err = fmt.Errorf("it is not ready within %s (%s)", m.timeout, last)
	}
	if err != nil {
		return fmt.Errorf("%w%s", err, m.why(ctx, selector))
	}
	return m.check(ctx, w, selector)
}

var resourceOf = map[string]string{"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}

// patch restarts a workload as kubectl does, and gives what it takes to follow it.
func (m *migration) patch(ctx context.Context, w revision.Workload) (*metav1.LabelSelector, rest.Interface, runtime.Object, error) {
	apps, patch := m.c.kubernetes.AppsV1(), revision.RestartPatch(time.Now())
	options := metav1.PatchOptions{FieldManager: "selvage"}
	switch w.Kind {
	case "Deployment":
		d, err := apps.Deployments(m.namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, options)
		if err != nil {
			return nil, nil, nil, err
		}
		return d.Spec.Selector, apps.RESTClient(), &appsv1.Deployment{}, nil
	case "StatefulSet":
		s, err := apps.StatefulSets(m.namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, options)
		if err != nil {
			return nil, nil, nil, err
		}
		return s.Spec.Selector, apps.RESTClient(), &appsv1.StatefulSet{}, nil
	case "DaemonSet":
		d, err := apps.DaemonSets(m.namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, options)
		if err != nil {
			return nil, nil, nil, err
		}
		return d.Spec.Selector, apps.RESTClient(), &appsv1.DaemonSet{}, nil
	}
	return nil, nil, nil, fmt.Errorf("kind %s cannot be restarted", w.Kind)
}

func rolloutOf(object runtime.Object) revision.Rollout {
	switch o := object.(type) {
	case *appsv1.Deployment:
		return revision.DeploymentRollout(o)
	case *appsv1.StatefulSet:
		return revision.StatefulSetRollout(o)
	case *appsv1.DaemonSet:
		return revision.DaemonSetRollout(o)
	}
	return revision.Rollout{Failed: fmt.Sprintf("it is a %T", object)}
}

// why says what holds the workload's pods back, as a part of a sentence.
func (m *migration) why(ctx context.Context, selector *metav1.LabelSelector) string {
	pods, err := m.pods(ctx, selector)
	if err != nil {
		return ""
	}
	for i := range pods {
		if why := revision.NotReady(&pods[i]); why != "" {
			return "; pod " + pods[i].Name + ": " + strings.TrimRight(printable(why), ". \n")
		}
	}
	return ""
}

// check reads the sidecars of the new pods: an API server that had not heard of the label yet may have let one through.
func (m *migration) check(ctx context.Context, w revision.Workload, selector *metav1.LabelSelector) error {
	pods, err := m.pods(ctx, selector)
	if err != nil {
		return err
	}
	for i := range pods {
		has := live.SidecarOf(&pods[i])
		wants := w.Wants(m.revision, has)
		if has == wants {
			continue
		}
		if has == "" {
			return fmt.Errorf("pod %s came up without a sidecar: `kubectl get events -n %s` says why", pods[i].Name, m.namespace)
		}
		return fmt.Errorf("pod %s came up with the sidecar of revision %q instead of %q", pods[i].Name, has, wants)
	}
	return nil
}

// proveWithin is how long API servers may take to hear of a namespace's new labels.
const proveWithin = 10 * time.Second

// prove asks the API server, as a dry run, whether a pod of the namespace gets the sidecar that it should.
func (m *migration) prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proveWithin)
	defer cancel()
	last := errors.New("no answer")
	for {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "selvage-probe-", Namespace: m.namespace}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "probe", Image: "selvage.invalid/probe"}}}}
		got, err := m.c.kubernetes.CoreV1().Pods(m.namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		switch {
		case err == nil && live.SidecarOf(got) == m.revision:
			return nil
		case err == nil && live.SidecarOf(got) == "":
			last = errors.New("a pod came back without a sidecar")
		case err == nil:
			last = fmt.Errorf("a pod came back with the sidecar of revision %s", live.SidecarOf(got))
		case apierrors.IsForbidden(err) && !strings.Contains(err.Error(), "webhook"):
			return nil // a policy or quota of the namespace refuses a bare pod: its own pods will show
		case ctx.Err() == nil:
			last = err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return last
		}
	}
}
