package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	systemNamespace = "istio-system"
	account         = "bench" // the service account of every pod
	// perNamespace is how many services share a namespace.
	perNamespace = 20
	writers      = 32
)

// world is the cluster that both servers see: services with endpoints, and a pod behind each endpoint.
type world struct {
	core      kubernetes.Interface
	any       dynamic.Interface
	services  int
	endpoints int
	changes   int // so far, so that no two are alike
}

func newWorld(kubeconfig string, services, endpoints int) (*world, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	w := &world{services: services, endpoints: endpoints}
	if w.any, err = dynamic.NewForConfig(config); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.ContentType = runtime.ContentTypeProtobuf
	w.core, err = kubernetes.NewForConfig(config)
	return w, err
}

// workload is a pod.
type workload struct{ namespace, service, pod, address string }

func namespaceOf(service int) string { return fmt.Sprintf("bench-%03d", service/perNamespace) }
func nameOf(service int) string      { return fmt.Sprintf("svc-%04d", service) }

// workload gives the pod behind an endpoint; the endpoints of all services are counted through.
func (w *world) workload(i int) workload {
	service := i / w.endpoints
	first := netip.AddrFrom4([4]byte{10, byte(100 + i/62500), byte(i / 250 % 250), byte(1 + i%250)})
	return workload{namespaceOf(service), nameOf(service), fmt.Sprintf("%s-%d", nameOf(service), i%w.endpoints), first.String()}
}

// build writes everything that is not there yet.
func (w *world) build(ctx context.Context, selvage, kubeconfig string) error {
	if err := w.install(ctx, selvage, kubeconfig); err != nil {
		return err
	}
	for s := 0; s < w.services; s += perNamespace {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespaceOf(s)}}
		if _, err := w.core.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
		bench := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}
		if _, err := w.core.CoreV1().ServiceAccounts(namespaceOf(s)).Create(ctx, bench, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(writers)
	for s := range w.services {
		work.Go(func() error { return w.buildService(ctx, s) })
	}
	if err := work.Wait(); err != nil {
		return fmt.Errorf("write the world: %w", err)
	}
	return nil
}

// install takes what both servers read from what `selvage install` would write: the CRDs and the configuration.
func (w *world) install(ctx context.Context, selvage, kubeconfig string) error {
	cmd := exec.CommandContext(ctx, selvage, "install", "--dry-run", "-o", "yaml", "--kubeconfig", kubeconfig)
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("render the installation: %w", err)
	}
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(string(text)), 1<<20)
	for {
		var object unstructured.Unstructured
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		resource, ok := installed[object.GetKind()]
		if !ok {
			continue
		}
		body, err := json.Marshal(object.Object)
		if err != nil {
			return err
		}
		_, err = w.any.Resource(resource).Namespace(object.GetNamespace()).Patch(ctx, object.GetName(), types.ApplyPatchType, body,
			metav1.PatchOptions{FieldManager: "bench"})
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

var installed = map[string]schema.GroupVersionResource{
	"CustomResourceDefinition": {Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	"Namespace":                {Version: "v1", Resource: "namespaces"},
	"ConfigMap":                {Version: "v1", Resource: "configmaps"},
}

func (w *world) buildService(ctx context.Context, s int) error {
	namespace := namespaceOf(s)
	_, err := w.core.CoreV1().Services(namespace).Create(ctx, service(nameOf(s)), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil // the pods were written first
	}
	for i := s * w.endpoints; err == nil && i < (s+1)*w.endpoints; i++ {
		err = w.buildPod(ctx, w.workload(i))
	}
	if err == nil {
		_, err = w.core.DiscoveryV1().EndpointSlices(namespace).Create(ctx, w.slice(s), metav1.CreateOptions{})
	}
	return err
}

func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}
}

func (w *world) buildPod(ctx context.Context, p workload) error {
	no := false
	pods := w.core.CoreV1().Pods(p.namespace)
	_, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.pod, Labels: map[string]string{"app": p.service, "security.istio.io/tlsMode": "istio"}},
		Spec: corev1.PodSpec{
			ServiceAccountName: account, AutomountServiceAccountToken: &no, SchedulerName: "none",
			Containers: []corev1.Container{{Name: "app", Image: "none", Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	status := fmt.Sprintf(`{"status":{"phase":"Running","podIP":%q,"podIPs":[{"ip":%[1]q}],"conditions":[{"type":"Ready","status":"True"}]}}`, p.address)
	_, err = pods.Patch(ctx, p.pod, types.StrategicMergePatchType, []byte(status), metav1.PatchOptions{}, "status")
	return err
}

// slice is what Kubernetes' controller would write if a node ran the pods.
func (w *world) slice(s int) *discoveryv1.EndpointSlice {
	out := newSlice(nameOf(s), nameOf(s))
	for i := s * w.endpoints; i < (s+1)*w.endpoints; i++ {
		p := w.workload(i)
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{p.address}, Conditions: ready(),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.namespace, Name: p.pod},
		})
	}
	return out
}

func newSlice(service, name string) *discoveryv1.EndpointSlice {
	port, number := "http", int32(8080)
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &port, Port: &number}},
	}
}

func ready() discoveryv1.EndpointConditions {
	yes := true
	return discoveryv1.EndpointConditions{Ready: &yes}
}

// extraLabel marks the slices that changes make.
const extraLabel = "bench-extra"

func extraSlice(service, address string) *discoveryv1.EndpointSlice {
	out := newSlice(service, service+"-extra")
	out.Labels[extraLabel] = ""
	out.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: ready()}}
	return out
}

// A change is written by do, and every sidecar that was told of it has had a response of each of the types with the marker.
type change struct {
	marker string
	types  []string
	do     func(context.Context) error
}

// changeEndpoint gives one service another endpoint, as a scale-up does.
func (w *world) changeEndpoint() change {
	w.changes++
	s, address := w.changes%w.services, fmt.Sprintf("10.250.%d.%d", 100+w.changes/100%100, 100+w.changes%100)
	return change{address, []string{endpointType}, func(ctx context.Context) error {
		_, err := w.core.DiscoveryV1().EndpointSlices(namespaceOf(s)).Create(ctx, extraSlice(nameOf(s), address), metav1.CreateOptions{})
		return err
	}}
}

// addService makes a Service without endpoints.
func (w *world) addService() change {
	w.changes++
	name := fmt.Sprintf("added-%05d", w.changes)
	return change{name, []string{clusterType, routeType}, func(ctx context.Context) error {
		_, err := w.core.CoreV1().Services(namespaceOf(0)).Create(ctx, service(name), metav1.CreateOptions{})
		return err
	}}
}

// changeVirtualService changes a header that the routes to one service set.
func (w *world) changeVirtualService() change {
	w.changes++
	marker := fmt.Sprintf("marker-%05d", w.changes)
	return change{marker, []string{routeType}, func(ctx context.Context) error { return w.virtualService(ctx, marker) }}
}

func (w *world) virtualService(ctx context.Context, marker string) error {
	text := fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"bench"},"spec":{"hosts":[%q],
		"http":[{"route":[{"destination":{"host":%[1]q}}],"headers":{"request":{"set":{"x-bench":%q}}}}]}}`,
		nameOf(0)+"."+namespaceOf(0)+".svc.cluster.local", marker)
	virtualServices := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	var err error
	for range 50 { // a CRD that was just made is served a moment later
		_, err = w.any.Resource(virtualServices).Namespace(namespaceOf(0)).Patch(ctx, "bench", types.ApplyPatchType, []byte(text),
			metav1.PatchOptions{FieldManager: "bench"})
		if !apierrors.IsNotFound(err) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
	return err
}

// restore takes the changes back, so that the next run begins with the same world.
func (w *world) restore(ctx context.Context) error {
	added, err := w.core.CoreV1().Services(namespaceOf(0)).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range added.Items {
		if strings.HasPrefix(s.Name, "added-") {
			if err := w.core.CoreV1().Services(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil {
				return err
			}
		}
	}
	extra, err := w.core.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{LabelSelector: extraLabel})
	if err != nil {
		return err
	}
	for _, e := range extra.Items {
		if err := w.core.DiscoveryV1().EndpointSlices(e.Namespace).Delete(ctx, e.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return w.virtualService(ctx, "none")
}
