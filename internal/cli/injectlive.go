package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// checkTarget is what an argument of --check names. A kind of "" is any, a namespace of "" the current one.
type checkTarget struct{ typed, kind, namespace, name string }

// checkKinds are the kinds that arguments may name, as kubectl's users write them.
var checkKinds = map[string]string{
	"pod": "Pod", "pods": "Pod", "po": "Pod",
	"deployment": "Deployment", "deployments": "Deployment", "deploy": "Deployment",
	"statefulset": "StatefulSet", "statefulsets": "StatefulSet", "sts": "StatefulSet",
	"daemonset": "DaemonSet", "daemonsets": "DaemonSet", "ds": "DaemonSet",
	"replicaset": "ReplicaSet", "replicasets": "ReplicaSet", "rs": "ReplicaSet",
	"replicationcontroller": "ReplicationController", "replicationcontrollers": "ReplicationController", "rc": "ReplicationController",
	"job": "Job", "jobs": "Job", "cronjob": "CronJob", "cronjobs": "CronJob", "cj": "CronJob",
	"namespace": "Namespace", "namespaces": "Namespace", "ns": "Namespace",
}

// parseTarget reads NAME, KIND/NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME.
func parseTarget(arg string) (checkTarget, error) {
	parts := strings.Split(arg, "/")
	t := checkTarget{typed: arg, name: parts[len(parts)-1]}
	kind := checkKinds[strings.ToLower(parts[0])]
	switch {
	case slices.Contains(parts, ""):
		return t, fmt.Errorf("%q names no object: write KIND/NAME, POD or NAMESPACE", arg)
	case len(parts) == 2 && kind != "":
		t.kind = kind
	case len(parts) == 2:
		t.namespace = parts[0]
	case len(parts) == 3 && kind != "":
		t.kind, t.namespace = kind, parts[1]
	case len(parts) > 1:
		return t, fmt.Errorf("%q names no object that has pods: the kinds are Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job, CronJob and Namespace", arg)
	}
	return t, nil
}

// checkCluster asks about what runs in the cluster; of what the policies do to it speaks explain, unless it is nil.
func (a *app) checkCluster(ctx context.Context, args []string, explain *explainer) ([]checked, error) {
	targets := make([]checkTarget, len(args))
	for i, arg := range args {
		var err error
		if targets[i], err = parseTarget(arg); err != nil {
			return nil, &usageError{a.name() + " inject", err}
		}
	}
	conn, err := a.connect()
	if err != nil {
		return nil, err
	}
	c := &checker{namespaces: map[string]*corev1.Namespace{}, unknown: map[string]bool{}, policies: explain}
	admission, configs, webhooks, err := a.liveAdmission(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("list webhook configurations: %w", err)
	}
	c.admission, c.webhooks = admission, webhooks
	c.config = func(revision string) *inject.Config { return configs[revision] }
	if err := explain.live(ctx, conn, configs); err != nil {
		return nil, err
	}
	if len(targets) == 0 {
		return a.checkAll(ctx, conn, c)
	}
	current := a.manifestNamespace()
	if current == "" {
		current = metav1.NamespaceDefault
	}
	var list []checked
	for _, t := range targets {
		found, err := c.checkOne(ctx, conn, t, current)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// checkAll is for all namespaces, or the one of -n.
func (a *app) checkAll(ctx context.Context, conn *connection, c *checker) ([]checked, error) {
	if a.namespace != "" {
		return c.checkNamespace(ctx, conn, a.namespace)
	}
	namespaces, err := conn.kubernetes.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	for i := range namespaces.Items {
		c.namespaces[namespaces.Items[i].Name] = &namespaces.Items[i]
	}
	all, err := gatherLive(ctx, conn, metav1.NamespaceAll)
	if err != nil {
		return nil, err
	}
	list := []checked{}
	for _, w := range all {
		if !slices.Contains(inject.SystemNamespaces, w.workload.Object.Namespace) {
			list = append(list, c.check(w.workload, true, w.pods))
		}
	}
	return list, nil
}

func (c *checker) fetch(ctx context.Context, conn *connection, namespace string) error {
	ns, err := conn.kubernetes.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return err
	}
	c.namespaces[namespace] = ns
	return nil
}

func (c *checker) checkNamespace(ctx context.Context, conn *connection, namespace string) ([]checked, error) {
	if err := c.fetch(ctx, conn, namespace); err != nil {
		return nil, fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	all, err := gatherLive(ctx, conn, namespace)
	if err != nil {
		return nil, err
	}
	list := []checked{}
	for _, w := range all {
		list = append(list, c.check(w.workload, true, w.pods))
	}
	return list, nil
}

// checkOne finds what an argument names: workloads and pods of the name first, then a namespace.
func (c *checker) checkOne(ctx context.Context, conn *connection, t checkTarget, current string) ([]checked, error) {
	if t.kind == "Namespace" {
		return c.checkNamespace(ctx, conn, t.name)
	}
	namespace := t.namespace
	if namespace == "" {
		namespace = current
	}
	err := c.fetch(ctx, conn, namespace)
	var list []checked
	if err == nil {
		all, err := gatherLive(ctx, conn, namespace)
		if err != nil {
			return nil, err
		}
		for _, w := range all {
			if w.workload.Object.Name == t.name && (t.kind == "" || t.kind == w.workload.Object.Kind) {
				list = append(list, c.check(w.workload, true, w.pods))
			}
			for _, pod := range w.pods {
				if pod.Name == t.name && (t.kind == "" || t.kind == "Pod") && w.workload.Object.Kind != "Pod" {
					one, err := workloadsOf(pod)
					if err != nil {
						return nil, err
					}
					found := c.check(one[0], true, []*corev1.Pod{pod})
					if found.Next != "" && len(found.Missing) > 0 {
						found.Next = restart(w.workload.Object)
					}
					list = append(list, found)
				}
			}
		}
	} else if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	if len(list) == 0 && t.kind == "" && t.namespace == "" {
		found, err := c.checkNamespace(ctx, conn, t.name)
		if err == nil || !apierrors.IsNotFound(err) {
			return found, err
		}
		return nil, fmt.Errorf("there is no workload or pod %s in namespace %s, and no namespace of that name; -n chooses another", t.name, namespace)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("there is no %s in namespace %s; -n chooses another", t.typed, namespace)
	}
	return list, nil
}

// liveWorkload is an object of the cluster that nobody owns, and its pods that run.
type liveWorkload struct {
	workload inject.Workload
	pods     []*corev1.Pod
}

// object is any object of the API.
type object interface {
	metav1.Object
	runtime.Object
}

// gatherLive lists the workloads of a namespace, or of all.
func gatherLive(ctx context.Context, c *connection, namespace string) ([]liveWorkload, error) {
	objects, pods, err := listLive(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	known := map[types.UID]object{}
	for _, o := range objects {
		known[o.GetUID()] = o
	}
	top := func(o object) object {
		for range 4 { // Pod, ReplicaSet or Job, Deployment or CronJob
			owner := metav1.GetControllerOf(o)
			if owner == nil || known[owner.UID] == nil {
				break
			}
			o = known[owner.UID]
		}
		return o
	}
	running := map[types.UID][]*corev1.Pod{}
	for _, pod := range pods {
		runs := pod.DeletionTimestamp == nil && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
		at := top(pod)
		if runs {
			running[at.GetUID()] = append(running[at.GetUID()], pod)
		}
		if at == object(pod) && runs {
			objects = append(objects, pod)
		}
	}
	var list []liveWorkload
	for _, o := range objects {
		if top(o) != o {
			continue
		}
		found, err := workloadsOf(o)
		if err != nil {
			return nil, err
		}
		for _, w := range found {
			list = append(list, liveWorkload{w, running[o.GetUID()]})
		}
	}
	return list, nil
}

// workloadsOf is an object of the cluster as package inject sees objects.
func workloadsOf(o object) ([]inject.Workload, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", o.GetName(), err)
	}
	list, err := inject.StreamOptions{}.Workloads(data, nil)
	var where *inject.DocumentError
	if errors.As(err, &where) {
		return nil, where.Err
	}
	return list, err
}

// listLive lists what may own pods, and the pods.
func listLive(ctx context.Context, c *connection, namespace string) (objects []object, pods []*corev1.Pod, err error) {
	apps, batch, core := c.kubernetes.AppsV1(), c.kubernetes.BatchV1(), c.kubernetes.CoreV1()
	for _, k := range []struct {
		resource string
		kind     schema.GroupVersionKind
		list     func(metav1.ListOptions) (runtime.Object, error)
	}{
		{"deployments", appsv1.SchemeGroupVersion.WithKind("Deployment"), func(o metav1.ListOptions) (runtime.Object, error) { return apps.Deployments(namespace).List(ctx, o) }},
		{"statefulsets", appsv1.SchemeGroupVersion.WithKind("StatefulSet"), func(o metav1.ListOptions) (runtime.Object, error) { return apps.StatefulSets(namespace).List(ctx, o) }},
		{"daemonsets", appsv1.SchemeGroupVersion.WithKind("DaemonSet"), func(o metav1.ListOptions) (runtime.Object, error) { return apps.DaemonSets(namespace).List(ctx, o) }},
		{"replicasets", appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), func(o metav1.ListOptions) (runtime.Object, error) { return apps.ReplicaSets(namespace).List(ctx, o) }},
		{"replicationcontrollers", corev1.SchemeGroupVersion.WithKind("ReplicationController"), func(o metav1.ListOptions) (runtime.Object, error) {
			return core.ReplicationControllers(namespace).List(ctx, o)
		}},
		{"cronjobs", batchv1.SchemeGroupVersion.WithKind("CronJob"), func(o metav1.ListOptions) (runtime.Object, error) { return batch.CronJobs(namespace).List(ctx, o) }},
		{"jobs", batchv1.SchemeGroupVersion.WithKind("Job"), func(o metav1.ListOptions) (runtime.Object, error) { return batch.Jobs(namespace).List(ctx, o) }},
		{"pods", corev1.SchemeGroupVersion.WithKind("Pod"), func(o metav1.ListOptions) (runtime.Object, error) { return core.Pods(namespace).List(ctx, o) }},
	} {
		found, err := k.list(metav1.ListOptions{})
		if err != nil {
			return nil, nil, fmt.Errorf("list %s: %w", k.resource, err)
		}
		items, err := meta.ExtractList(found)
		if err != nil {
			return nil, nil, fmt.Errorf("list %s: %w", k.resource, err)
		}
		for _, item := range items {
			item.GetObjectKind().SetGroupVersionKind(k.kind) // lists leave it out
			switch o := item.(type) {
			case *corev1.Pod:
				pods = append(pods, o)
			case *batchv1.Job:
				if o.Status.CompletionTime == nil { // one that has ended makes no pods
					objects = append(objects, o)
				}
			case object:
				objects = append(objects, o)
			}
		}
	}
	return objects, pods, nil
}

// completeChecked offers what --check takes: namespaces, and the workloads of -n.
func (a *app) completeChecked(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	if check, err := cmd.Flags().GetBool("check"); err != nil || !check {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.ask(cmd, func(ctx context.Context, c *connection) (names []string) {
		if list, err := c.kubernetes.CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); err == nil {
			for _, ns := range list.Items {
				names = append(names, "namespace/"+ns.Name)
			}
		}
		namespace := a.manifestNamespace()
		if list, err := c.kubernetes.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{}); err == nil {
			for _, d := range list.Items {
				names = append(names, "deployment/"+d.Name)
			}
		}
		if list, err := c.kubernetes.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{}); err == nil {
			for _, p := range list.Items {
				names = append(names, "pod/"+p.Name)
			}
		}
		return names
	})
}
