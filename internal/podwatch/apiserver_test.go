//go:build apiserver

package podwatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/podwatch"
)

// cluster is the API server of SELVAGE_TEST_KUBECONFIG, which needs no node, and a Watcher that has the rights that an
// installation grants and no others.
type cluster struct {
	*testing.T
	ctx      context.Context
	client   kubernetes.Interface
	limited  kubernetes.Interface
	events   watch.Interface
	registry *prometheus.Registry
}

func connect(t *testing.T) *cluster {
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("SELVAGE_TEST_KUBECONFIG is not set: it names the kubeconfig of an API server for tests, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 500, 1000
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	c := &cluster{T: t, ctx: ctx, registry: prometheus.NewRegistry()}
	if c.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	as := rest.CopyConfig(config)
	as.Impersonate.UserName = "selvage-test-podwatch"
	if c.limited, err = kubernetes.NewForConfig(as); err != nil {
		t.Fatal(err)
	}
	c.grant(as.Impersonate.UserName)
	if c.events, err = c.client.CoreV1().Events("").Watch(ctx, metav1.ListOptions{FieldSelector: "reason=" + podwatch.EventReason}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.events.Stop)
	return c
}

// grant gives a user the cluster role that `selvage install` makes.
func (c *cluster) grant(user string) {
	c.Helper()
	objects, err := install.Render(install.Default("1.0.0"))
	if err != nil {
		c.Fatal(err)
	}
	role := &rbacv1.ClusterRole{}
	for _, u := range objects {
		if u.GetKind() == "ClusterRole" && u.GetName() == "istiod-clusterrole-"+install.Namespace {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, role); err != nil {
				c.Fatal(err)
			}
		}
	}
	role.ObjectMeta = metav1.ObjectMeta{Name: user}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}}}
	drop := func() {
		_ = c.client.RbacV1().ClusterRoles().Delete(context.Background(), user, metav1.DeleteOptions{})
		_ = c.client.RbacV1().ClusterRoleBindings().Delete(context.Background(), user, metav1.DeleteOptions{})
	}
	drop()
	c.Cleanup(drop)
	if _, err := c.client.RbacV1().ClusterRoles().Create(c.ctx, role, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	if _, err := c.client.RbacV1().ClusterRoleBindings().Create(c.ctx, binding, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

// watch runs a Watcher of the default revision until the test ends.
func (c *cluster) watch() {
	c.Helper()
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: c.limited.CoreV1().Events("")})
	c.Cleanup(broadcaster.Shutdown)
	config, problems := inject.Default("").Compile()
	if config == nil {
		c.Fatal(problems)
	}
	w, err := podwatch.New(podwatch.Config{
		Kubernetes: c.limited, Injector: func() *inject.Config { return config }, Registerer: c.registry,
		Events: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "istiod"}), Log: slog.New(slog.NewTextHandler(c.Output(), nil)),
	})
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	c.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.Errorf("Run: %v", err)
		}
	})
}

func (c *cluster) namespace(prefix string, labels map[string]string) string {
	c.Helper()
	name := fmt.Sprintf("%s-%x", prefix, time.Now().UnixNano())
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := c.client.CoreV1().Namespaces().Create(c.ctx, ns, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() {
		_ = c.client.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	// A pod wants the account that a controller makes.
	if _, err := c.client.CoreV1().ServiceAccounts(name).Create(c.ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		c.Fatal(err)
	}
	return name
}

func (c *cluster) pod(namespace, name string, labels map[string]string, change func(*corev1.PodSpec)) {
	c.Helper()
	no := false
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{AutomountServiceAccountToken: &no, Containers: []corev1.Container{{Name: "app", Image: "example.com/app"}}}}
	if change != nil {
		change(&pod.Spec)
	}
	if _, err := c.client.CoreV1().Pods(namespace).Create(c.ctx, pod, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

// next is the next Event that this test's namespaces get.
func (c *cluster) next() *corev1.Event {
	c.Helper()
	for {
		select {
		case e, open := <-c.events.ResultChan():
			if !open {
				c.Fatal("there came no Event")
			}
			if event, ok := e.Object.(*corev1.Event); ok && e.Type == watch.Added {
				return event
			}
		case <-c.ctx.Done():
			c.Fatal("there came no Event")
		}
	}
}

// want reads the next Event and compares.
func (c *cluster) want(eventType, object string, parts ...string) {
	c.Helper()
	e := c.next()
	if got := e.InvolvedObject.Namespace + " " + e.InvolvedObject.Kind + "/" + e.InvolvedObject.Name; got != object || e.Type != eventType {
		c.Errorf("the Event is %s, of %s: %s\nwant %s, of %s", e.Type, got, e.Message, eventType, object)
	}
	for _, part := range parts {
		if !strings.Contains(e.Message, part) {
			c.Errorf("the Event says %q, want %q in it", e.Message, part)
		}
	}
}

func (c *cluster) gauge() map[string]float64 {
	c.Helper()
	families, err := c.registry.Gather()
	if err != nil {
		c.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "selvage_pods_without_sidecar" {
			for _, m := range f.GetMetric() {
				out[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	return out
}

// TestWhoHasNoSidecarIsTold goes through what leaves a pod without its sidecar: no webhook, the node's network, an unknown
// value, a revision that is not installed, a label that comes too late; and what is none of our business.
func TestWhoHasNoSidecarIsTold(t *testing.T) {
	c := connect(t)
	asks := map[string]string{"sidecar.istio.io/inject": "true"}
	before := c.namespace("before", map[string]string{"istio-injection": "enabled"})
	for n := range 3 {
		c.pod(before, fmt.Sprintf("old-%d", n), nil, nil)
	}
	quiet := c.namespace("quiet", nil)
	c.pod(quiet, "plain", nil, nil)
	c.pod(before, "out", map[string]string{"sidecar.istio.io/inject": "false"}, nil)
	c.pod(before, "meshed", nil, func(s *corev1.PodSpec) { s.Containers[0].Name = inject.ProxyContainer })

	c.watch()
	c.want("Warning", before+" Namespace/"+before, "3 pods of 3 workloads", "no_injector", "Pod/old-0", "selvage install")

	// A Deployment, while no webhook is registered. Its pods are told of once, on it.
	shop, replicas := c.namespace("shop", map[string]string{"istio-injection": "enabled"}), int32(2)
	labels := map[string]string{"app": "web"}
	_, err := c.client.AppsV1().Deployments(shop).Create(c.ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.com/app"}}}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.want("Warning", shop+" Deployment/web", "no_injector", "label istio-injection of namespace "+shop+` is "enabled"`)

	// The webhooks come: now these pods would get their sidecar, if they were created anew.
	hooks := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	r := inject.Registration{Endpoint: inject.Endpoint{Namespace: "istio-system", URL: "https://127.0.0.1:1"}}
	_ = hooks.Delete(c.ctx, r.Name(), metav1.DeleteOptions{})
	if _, err := hooks.Create(c.ctx, r.Configuration(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hooks.Delete(context.Background(), r.Name(), metav1.DeleteOptions{}) })
	c.want("Warning", before+" Namespace/"+before, "missed", "rollout restart")
	c.want("Warning", shop+" Namespace/"+shop, "2 pods of 1 workloads", "missed", "ReplicaSet/web-")

	other := c.namespace("other", nil)
	for _, test := range []struct {
		name, eventType string
		labels          map[string]string
		change          func(*corev1.PodSpec)
		reason, detail  string
	}{
		{"host", "Warning", asks, func(s *corev1.PodSpec) { s.HostNetwork = true }, "host_network", "spec.hostNetwork is true"},
		{"word", "Warning", map[string]string{"sidecar.istio.io/inject": "yes"}, nil, "unknown_opt_value", `"yes", which is neither`},
		{"gone", "Warning", map[string]string{"istio.io/rev": "v9"}, nil, "unknown_revision", "(there is default)"},
	} {
		c.pod(other, test.name, test.labels, test.change)
		c.want(test.eventType, other+" Pod/"+test.name, "("+test.reason+")", test.detail)
	}
	// By design, though the namespace asks.
	c.pod(shop, "agent", nil, func(s *corev1.PodSpec) { s.HostNetwork = true })
	c.want("Normal", shop+" Pod/agent", "host_network")

	// A label that comes after the pods.
	if _, err := c.client.CoreV1().Namespaces().Patch(c.ctx, quiet, "application/merge-patch+json",
		[]byte(`{"metadata":{"labels":{"istio-injection":"enabled"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.want("Warning", quiet+" Namespace/"+quiet, "1 pods of 1 workloads", "missed", "Pod/plain")

	got, want := c.gauge(), map[string]float64{"missed": 6, "host_network": 2, "unknown_opt_value": 1, "unknown_revision": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the gauge is %v, want %v", got, want)
	}
	select { // what was not told cannot be waited for; but what comes by now is one too many
	case e := <-c.events.ResultChan():
		if event, ok := e.Object.(*corev1.Event); ok && e.Type == watch.Added {
			t.Errorf("another Event: %s %s", event.InvolvedObject.Name, event.Message)
		}
	default:
	}
}
