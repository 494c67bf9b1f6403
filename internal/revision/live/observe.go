// Package live reads the revisions of a mesh from an API server, removes stale webhook configurations so that they can be brought back,
// and watches for them. The decisions are package revision's.
package live

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"istio.io/api/annotation"
	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// pageSize bounds one answer about pods: 500 take some megabytes.
const pageSize = 500

// ControlPlanes reads the webhook configurations of every mesh and all that decides whether they are stale. It fails only when the
// webhook configurations cannot be read; what else cannot is in Unread.
func ControlPlanes(ctx context.Context, client kubernetes.Interface) (*revision.Facts, error) {
	f := &revision.Facts{Existing: map[revision.Service]bool{}, AskedProxies: map[string]bool{}, Unread: map[revision.Source]error{}}
	hooks := client.AdmissionregistrationV1()
	mutating, err := hooks.MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list mutatingwebhookconfigurations: %w", err)
	}
	validating, err := hooks.ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list validatingwebhookconfigurations: %w", err)
	}
	for i := range mutating.Items {
		if w, ok := revision.OfMutating(&mutating.Items[i]); ok {
			f.Webhooks = append(f.Webhooks, w)
		}
	}
	for i := range validating.Items {
		if w, ok := revision.OfValidating(&validating.Items[i]); ok {
			f.Webhooks = append(f.Webhooks, w)
		}
	}
	namespaces := map[string]bool{revision.MeshNamespace: true}
	for _, w := range f.Webhooks {
		for _, s := range w.Services {
			namespaces[s.Namespace] = true
			if _, seen := f.Existing[s]; seen {
				continue
			}
			_, err := client.CoreV1().Services(s.Namespace).Get(ctx, s.Name, metav1.GetOptions{})
			f.Existing[s] = err == nil
			if err != nil && !apierrors.IsNotFound(err) {
				f.Unread[revision.Source{Resource: revision.Services, Namespace: s.Namespace}] = err
			}
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(namespaces)) {
		readControlPlanes(ctx, client, namespace, f)
		readLeases(ctx, client, namespace, f)
	}
	f.Now = time.Now()
	return f, nil
}

// readControlPlanes reads the Deployments of a namespace, and the Services of Selvage's that lead out of the cluster.
func readControlPlanes(ctx context.Context, client kubernetes.Interface, namespace string, f *revision.Facts) {
	selector := metav1.ListOptions{LabelSelector: "app=" + revision.ControlPlaneApp}
	list, err := client.AppsV1().Deployments(namespace).List(ctx, selector)
	if err != nil {
		f.Unread[revision.Source{Resource: revision.Deployments, Namespace: namespace}] = err
	} else {
		for i := range list.Items {
			f.ControlPlanes = append(f.ControlPlanes, ofDeployment(&list.Items[i]))
		}
	}
	services, err := client.CoreV1().Services(namespace).List(ctx, selector)
	if err != nil {
		f.Unread[revision.Source{Resource: revision.Services, Namespace: namespace}] = err
		return
	}
	for _, s := range services.Items {
		if len(s.Spec.Selector) == 0 && revision.IsOurs(s.Labels) {
			f.ControlPlanes = append(f.ControlPlanes, revision.ControlPlane{
				Revision: revisionOf(&s), Namespace: s.Namespace, Name: s.Name, Outside: true, Ours: true})
		}
	}
}

func ofDeployment(d *appsv1.Deployment) revision.ControlPlane {
	c := revision.ControlPlane{
		Revision: revisionOf(d), Namespace: d.Namespace, Name: d.Name, Ready: d.Status.ReadyReplicas, Replicas: d.Status.Replicas,
		Ours: revision.IsOurs(d.Labels),
	}
	for _, container := range d.Spec.Template.Spec.Containers {
		if n := strings.LastIndex(container.Image, ":"); n > strings.LastIndex(container.Image, "/") && c.Version == "" {
			c.Version = container.Image[n+1:]
		}
	}
	return c
}

func revisionOf(m metav1.Object) string {
	if r := m.GetLabels()[label.IoIstioRev.Name]; r != "" {
		return r
	}
	return inject.DefaultRevision
}

func readLeases(ctx context.Context, client kubernetes.Interface, namespace string, f *revision.Facts) {
	list, err := client.CoordinationV1().Leases(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		f.Unread[revision.Source{Resource: revision.Leases, Namespace: namespace}] = err
		return
	}
	for _, l := range list.Items {
		one := revision.Lease{Namespace: l.Namespace, Name: l.Name}
		if l.Spec.HolderIdentity != nil {
			one.Holder = *l.Spec.HolderIdentity
		}
		if l.Spec.RenewTime != nil {
			one.Renewed = l.Spec.RenewTime.Time
		}
		f.Leases = append(f.Leases, one)
	}
}

// AddUsers reads who uses the revisions: the labels of namespaces, and the pods that have a sidecar and have not ended.
func AddUsers(ctx context.Context, client kubernetes.Interface, f *revision.Facts) error {
	err := eachPage(func(continued string) (string, error) {
		list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{Limit: pageSize, Continue: continued})
		if err != nil {
			return "", err
		}
		for _, ns := range list.Items {
			if one, uses := userOf(&ns); uses {
				f.Namespaces = append(f.Namespaces, one)
			}
		}
		return list.Continue, nil
	})
	if err != nil {
		f.Unread[revision.Source{Resource: revision.Namespaces}] = err
	}
	err = eachPage(func(continued string) (string, error) {
		list, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
			LabelSelector: meshedPods, FieldSelector: runningPods,
			Limit: pageSize, Continue: continued,
		})
		if err != nil {
			return "", err
		}
		for i := range list.Items {
			if r := SidecarOf(&list.Items[i]); r != "" {
				f.Pods = append(f.Pods, revision.Pod{Namespace: list.Items[i].Namespace, Name: list.Items[i].Name, Revision: r})
			}
		}
		return list.Continue, nil
	})
	if err != nil {
		f.Unread[revision.Source{Resource: revision.Pods}] = err
	}
	return errors.Join(f.Unread[revision.Source{Resource: revision.Namespaces}], f.Unread[revision.Source{Resource: revision.Pods}])
}

// SidecarOf is the revision whose sidecar a pod has, "" when it has none.
func SidecarOf(pod *corev1.Pod) string {
	if pod.Annotations[annotation.SidecarStatus.Name] == "" {
		return ""
	}
	if r := pod.Annotations[label.IoIstioRev.Name]; r != "" {
		return r
	}
	return inject.DefaultRevision
}

// eachPage calls read with what the call before it gave, until that is "".
func eachPage(read func(continued string) (string, error)) error {
	continued := ""
	for {
		next, err := read(continued)
		if err != nil || next == "" {
			return err
		}
		continued = next
	}
}
