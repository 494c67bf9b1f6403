//go:build apiserver

// This test changes the cluster of SELVAGE_TEST_KUBECONFIG, a real API server with Kubernetes' controllers; it needs no node.
package restart_test

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/restart"
)

const namespace = "selvage-test-restart"

type cluster struct {
	*testing.T
	admin, limited kubernetes.Interface
}

// connect gives the API server, with the ClusterRoles of an installation, and a client that has nothing but the right to write Events.
func connect(t *testing.T) *cluster {
	t.Helper()
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("SELVAGE_TEST_KUBECONFIG is not set: it names the kubeconfig of an API server for tests, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	account := rest.CopyConfig(config)
	account.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:istio-system:istiod", Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	c := &cluster{T: t, admin: kubernetes.NewForConfigOrDie(config), limited: kubernetes.NewForConfigOrDie(account)}
	objects, err := install.Render(install.Default("1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	role := &rbacv1.ClusterRole{}
	for _, u := range objects {
		if u.GetKind() == "ClusterRole" && u.GetName() == restart.Role {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, role); err != nil {
				t.Fatal(err)
			}
		}
	}
	drop := func() {
		ctx := context.Background()
		_ = c.admin.RbacV1().ClusterRoles().Delete(ctx, restart.Role, metav1.DeleteOptions{})
		_ = c.admin.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})
	}
	drop()
	t.Cleanup(drop)
	if _, err := c.admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// deploy makes a Deployment and, in the place of a node, makes its pods ready.
func (c *cluster) deploy(name string, replicas int32) {
	c.Helper()
	set, one := map[string]string{"app": name}, intstr.FromInt32(1)
	_, err := c.admin.AppsV1().Deployments(namespace).Create(c.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: set},
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &one}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: set}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.com/app"}}}},
	}}, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
	pods := c.watch(c.admin.CoreV1().Pods(namespace).Watch(c.Context(), metav1.ListOptions{LabelSelector: "app=" + name}))
	ready := corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	for n := int32(0); n < replicas; {
		pod, ok := (<-pods).Object.(*corev1.Pod)
		if !ok {
			c.Fatal("the watch of pods has ended")
		}
		if pod.Status.Phase == corev1.PodRunning {
			continue
		}
		pod.Status = ready
		switch _, err := c.admin.CoreV1().Pods(namespace).UpdateStatus(c.Context(), pod, metav1.UpdateOptions{}); {
		case err == nil:
			n++
		case !apierrors.IsConflict(err):
			c.Fatal(err)
		}
	}
}

func (c *cluster) watch(w watch.Interface, err error) <-chan watch.Event {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(w.Stop)
	return w.ResultChan()
}

// TestANamespaceGrantsTheRestart: nothing happens without its grant but that it is told the command; nothing while its budget forbids
// it; then what was asked for is restarted, and nothing else.
func TestANamespaceGrantsTheRestart(t *testing.T) {
	c := connect(t)
	c.deploy("web", 2)
	c.deploy("other", 1)
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "all-of-web"}, Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: func() *intstr.IntOrString { all := intstr.FromString("100%"); return &all }(), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
	budgets := c.admin.PolicyV1().PodDisruptionBudgets(namespace)
	if _, err := budgets.Create(t.Context(), budget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	events := c.watch(c.admin.CoreV1().Events(metav1.NamespaceAll).Watch(t.Context(), metav1.ListOptions{}))
	deployments := c.watch(c.admin.AppsV1().Deployments(namespace).Watch(t.Context(), metav1.ListOptions{}))

	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: c.admin.CoreV1().Events("")})
	t.Cleanup(broadcaster.Shutdown)
	waits := make(chan string, 100)
	r, err := restart.New(restart.Config{Kubernetes: c.limited, Account: "istio-system:istiod", Works: func() bool { return true },
		Events: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "restart-test"}), Log: slog.New(&whys{waits: waits})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	r.Want([]restart.Workload{{Namespace: namespace, Kind: "Deployment", Name: "web"}})

	event := c.event(events)
	if event.InvolvedObject.Kind != "Namespace" || event.Reason != "RestartForbidden" || !strings.Contains(event.Message, "create rolebinding selvage-restarter") {
		t.Fatalf("the first Event is %s of %s: %s", event.Reason, event.InvolvedObject.Kind, event.Message)
	}
	// What the command does.
	_, err = c.admin.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: restart.Role},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: restart.Role},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "istio-system", Name: "istiod"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	late := time.After(time.Minute)
	for why := ""; !strings.Contains(why, "all-of-web allows 0 disruptions"); {
		select {
		case why = <-waits:
		case <-late:
			t.Fatal("it does not wait for the budget")
		}
	}
	if err := budgets.Delete(t.Context(), "all-of-web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	event = c.event(events)
	if event.InvolvedObject.Kind+"/"+event.InvolvedObject.Name != "Deployment/web" || event.Reason != "RestartedForSidecar" || event.InvolvedObject.UID == "" {
		t.Fatalf("the second Event is %s of %s/%s: %s", event.Reason, event.InvolvedObject.Kind, event.InvolvedObject.Name, event.Message)
	}
	late = time.After(time.Minute)
	for {
		select {
		case e := <-deployments:
			d, ok := e.Object.(*appsv1.Deployment)
			restarted := ok && d.Spec.Template.Annotations[restart.Annotation] != ""
			if restarted && d.Name != "web" {
				t.Fatalf("Deployment %s was restarted too", d.Name)
			}
			if restarted && d.Status.ObservedGeneration == d.Generation { // its controller has taken it up
				return
			}
		case <-late:
			t.Fatal("web was not restarted")
		}
	}
}

// event is the next Event of the restarter's.
func (c *cluster) event(events <-chan watch.Event) *corev1.Event {
	c.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case e := <-events:
			if event, ok := e.Object.(*corev1.Event); ok && event.Source.Component == "restart-test" && e.Type == watch.Added && strings.HasPrefix(event.InvolvedObject.Namespace, namespace) {
				return event
			}
		case <-late:
			c.Fatal("there came no Event")
		}
	}
}

// whys is a log that hands on why a restart waits.
type whys struct {
	slog.Handler
	waits chan<- string
}

func (*whys) Enabled(context.Context, slog.Level) bool { return true }
func (w *whys) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "why" {
			select {
			case w.waits <- a.Value.String():
			default: // nobody reads any more
			}
		}
		return true
	})
	return nil
}
