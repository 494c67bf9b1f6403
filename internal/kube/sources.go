package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// source is one kind that is watched. It has no store of its own: what it reads goes into the index at once, which keeps a
// small part of it.
type source struct {
	kind     index.Kind
	group    string // API group, "" for core
	object   runtime.Object
	client   any     // that makes the requests
	selector string  // field selector
	place    string  // where it is read, for people
	role     ref.Ref // that should grant it
	// optional sources do not hold up the first snapshot when they are refused; without says what that costs.
	optional bool
	// guards is set for kinds that close something: being forbidden to read them does not count as there being none.
	guards  bool
	without string
	list    func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch   func(context.Context, metav1.ListOptions) (watch.Interface, error)

	// Guarded by the cluster's mutex.
	read   bool             // the kind was listed once
	failed map[string]error // the last failure of each verb since it last went well
	broken map[string]int   // how often each verb has failed in a row though the API server can answer
	gap    *gap             // nil while nothing is refused
}

// lister is how clients list one kind.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func newSource[L runtime.Object](kind index.Kind, object runtime.Object, l lister[L]) *source {
	return &source{
		kind: kind, object: object, failed: map[string]error{}, broken: map[string]int{}, place: "in the whole cluster",
		list:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return l.List(ctx, o) },
		watch: l.Watch,
	}
}

func sources(c Config, meshConfigMap string) []*source {
	k, suffix := c.Kubernetes, ""
	if c.Revision != "" && c.Revision != index.DefaultRevision {
		suffix = "-" + c.Revision
	}
	namespaces := newSource(index.Namespaces, &corev1.Namespace{}, k.CoreV1().Namespaces())
	services := newSource(index.Services, &corev1.Service{}, k.CoreV1().Services(""))
	slices := newSource(index.EndpointSlices, &discoveryv1.EndpointSlice{}, k.DiscoveryV1().EndpointSlices(""))
	slices.group = discoveryv1.GroupName

	pods := newSource(index.Pods, &corev1.Pod{}, k.CoreV1().Pods(""))
	pods.selector = "status.phase!=Succeeded,status.phase!=Failed" // a pod that has ended arrives as a deletion

	nodes := newSource(index.Nodes, &corev1.Node{}, k.CoreV1().Nodes())
	nodes.optional, nodes.without = true, "nothing is known of regions and zones"

	meshConfig := newSource(index.ConfigMaps, &corev1.ConfigMap{}, k.CoreV1().ConfigMaps(c.Namespace))
	meshConfig.selector = "metadata.name=" + meshConfigMap
	meshConfig.place = "in namespace " + c.Namespace
	meshConfig.role = ref.Ref{Group: rbacv1.GroupName, Kind: "Role", Namespace: c.Namespace, Name: "istiod" + suffix}

	all := []*source{namespaces, nodes, services, slices, pods, meshConfig}
	for _, k := range index.IstioKinds() {
		all = append(all, istioSource(c, k))
	}
	for _, s := range all {
		if s.client == nil {
			s.client = k
		}
		if s.role.IsZero() {
			s.role = ref.Ref{Group: rbacv1.GroupName, Kind: "ClusterRole", Name: "istiod-clusterrole" + suffix + "-" + c.Namespace}
		}
	}
	return all
}

// istioSource reads one kind of Istio's API, in the first of its versions that the API server has. It is read as it stands there, so
// that an object that makes no sense is that object's problem and not the list's.
func istioSource(c Config, k index.IstioKind) *source {
	s := &source{
		kind: k.Kind, group: k.Group, object: &unstructured.Unstructured{}, client: c.Dynamic, failed: map[string]error{}, broken: map[string]int{},
		place: "in the whole cluster", optional: true, guards: k.Guards, without: k.Without,
	}
	var version atomic.Int32 // that was served last
	at := func(i int32) dynamic.NamespaceableResourceInterface {
		return c.Dynamic.Resource(schema.GroupVersionResource{Group: k.Group, Version: k.Versions[i], Resource: string(k.Kind)})
	}
	s.list = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		list, err := at(version.Load()).List(ctx, o)
		for i := range k.Versions {
			if !apierrors.IsNotFound(err) {
				break
			}
			next, second := at(int32(i)).List(ctx, o)
			if list, err = next, second; err == nil {
				version.Store(int32(i))
			}
		}
		if err != nil {
			return nil, err
		}
		return list, nil
	}
	s.watch = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return at(version.Load()).Watch(ctx, o)
	}
	return s
}

// isDenied reports whether the API server says no to a kind, rather than that it cannot answer.
func isDenied(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err)
}

// isBroken reports whether the API server answers, and cannot give this one kind: a definition's conversion that fails, stored
// objects that cannot be read. That it is busy, or on its way up, is no such answer.
func isBroken(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && !isDenied(err) && !apierrors.IsServiceUnavailable(err) && !apierrors.IsTooManyRequests(err) &&
		!apierrors.IsServerTimeout(err) && !apierrors.IsTimeout(err) && !apierrors.IsUnauthorized(err) && !apierrors.IsResourceExpired(err)
}

// brokenAfter is how many failures in a row are no accident.
const brokenAfter = 3

// verbs are what is asked of the API server, in the order in which it happens.
var verbs = []string{"list", "watch"}

// denied says why the source cannot be read when the API server refuses it, or fails with it again and again, and is nil otherwise.
func (s *source) denied() error {
	_, err := s.deniedVerb()
	return err
}

func (s *source) deniedVerb() (verb string, err error) {
	for _, verb := range verbs {
		err := s.failed[verb]
		switch {
		case err == nil:
		case s.broken[verb] >= brokenAfter:
			return verb, fmt.Errorf("%s %s %s: the API server fails again and again: %w", verb, s.resource(), s.place, err)
		case !isDenied(err):
		case apierrors.IsForbidden(err):
			return verb, fmt.Errorf("%s %s %s: %s does not grant the verb %s: %w", verb, s.resource(), s.place, s.role, verb, err)
		default:
			return verb, fmt.Errorf("%s %s: the API server does not serve them, there may be no CustomResourceDefinition %s: %w",
				verb, s.resource(), s.resource(), err)
		}
	}
	return "", nil
}

// dispensable reports that the first snapshot need not wait for the source: it is optional, and the API server refuses it, or,
// where a missing right must not open the mesh, does not have it.
func (s *source) dispensable() bool {
	if !s.optional || s.denied() == nil {
		return false
	}
	if !s.guards {
		return true
	}
	for _, err := range s.failed {
		if !apierrors.IsNotFound(err) && !apierrors.IsMethodNotSupported(err) {
			return false
		}
	}
	return true
}

// failure says what the last requests failed with, nil when they did not.
func (s *source) failure() error {
	if err := s.denied(); err != nil {
		return err
	}
	for _, verb := range verbs {
		if err := s.failed[verb]; err != nil {
			return fmt.Errorf("%s %s: %w", verb, s.resource(), err)
		}
	}
	return nil
}

func (s *source) resource() string {
	if s.group == "" {
		return string(s.kind)
	}
	return string(s.kind) + "." + s.group
}

// custom reports whether a CustomResourceDefinition makes the kind.
func (s *source) custom() bool { return strings.HasSuffix(s.group, ".istio.io") }

// problem says what it means for the mesh that the source is refused, as denied says.
func (s *source) problem(denied error) diag.Problem {
	p := diag.Problem{
		Code: diag.SourceUnavailable, Severity: diag.Error, Object: s.role,
		Detail: denied.Error() + "; " + s.without, Hint: "`selvage install` grants it",
	}
	switch {
	case apierrors.IsForbidden(denied):
	case isBroken(denied):
		p.Object = ref.Ref{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition", Name: s.resource()}
		p.Hint = "`kubectl get " + s.resource() + " -A` shows the same failure; the definition's conversion and its stored objects are the places to look"
		if !s.custom() {
			p.Object = s.role
		}
	default:
		p.Object = ref.Ref{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition", Name: s.resource()}
		p.Hint, p.Severity = "`selvage install` creates it", diag.Warning // what is not defined, nobody misses
	}
	if s.read {
		p.Detail = denied.Error() + "; what was read before stays in force"
	}
	return p
}

// reflector reads the source for ever. It is client-go's machinery of informers without their store.
func (c *Cluster) reflector(s *source) *cache.Reflector {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = s.selector
			list, err := s.list(ctx, o)
			if ctx.Err() == nil && !apierrors.IsResourceExpired(err) {
				c.attempted(s, "list", err)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = s.selector
			w, err := s.watch(ctx, o)
			// Where a list cannot be had as a stream, it is asked for as a list at once, and that tells why.
			refused := o.SendInitialEvents != nil && (isDenied(err) || apierrors.IsInvalid(err))
			if ctx.Err() == nil && !refused && !apierrors.IsResourceExpired(err) {
				c.attempted(s, "watch", err)
			}
			return w, err
		},
	}
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, s.client), s.object, &sink{c, s}, cache.ReflectorOptions{
		Name: string(s.kind),
		// The proxies wait for nothing while the API server is away, but new pods do once it is back.
		Backoff: &wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Steps: 10, Jitter: 0.3},
	})
}

// sink is the store of a reflector: the cluster's index.
type sink struct {
	cluster *Cluster
	source  *source
}

func (k *sink) Add(obj any) error {
	return k.change(func(b *index.Builder) error { return b.Set(obj) })
}
func (k *sink) Update(obj any) error { return k.Add(obj) }
func (k *sink) Delete(obj any) error {
	if pod, ok := obj.(*corev1.Pod); ok {
		k.cluster.gone(pod.UID)
	}
	return k.change(func(b *index.Builder) error { return b.Delete(obj) })
}

// Replace takes in a complete list.
func (k *sink) Replace(list []any, _ string) error {
	if k.source.kind == index.Pods {
		k.cluster.gone("")
	}
	return k.change(func(b *index.Builder) error {
		if err := b.Replace(k.source.kind, list); err != nil {
			return err
		}
		k.source.read = true
		k.cluster.succeeded(k.source, "list") // also when it came as a stream
		return nil
	})
}

// Resync has nothing to do: no reflector of ours asks for it.
func (k *sink) Resync() error { return nil }

func (k *sink) change(do func(*index.Builder) error) error {
	k.cluster.mu.Lock()
	defer k.cluster.mu.Unlock()
	err := do(k.cluster.builder)
	k.cluster.poke()
	return err
}

// Transformer trims objects as they arrive in the first list, which would otherwise stand in memory as a whole.
func (k *sink) Transformer() cache.TransformFunc { return trim }

// trim drops what the index does not read. What it reads stays as it is, so it need not know of this.
func trim(obj any) (any, error) {
	meta, ok := obj.(metav1.Object)
	if !ok {
		return nil, errors.New("trim object: it has no metadata")
	}
	meta.SetManagedFields(nil)
	switch o := obj.(type) {
	case *corev1.Pod:
		o.Annotations = nil
		o.Spec = corev1.PodSpec{
			ServiceAccountName: o.Spec.ServiceAccountName, NodeName: o.Spec.NodeName,
			Containers: ports(o.Spec.Containers), InitContainers: ports(o.Spec.InitContainers),
		}
		o.Status = corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs, Conditions: o.Status.Conditions}
	case *corev1.Node:
		o.Annotations, o.Spec, o.Status = nil, corev1.NodeSpec{}, corev1.NodeStatus{}
	case *corev1.Namespace:
		o.Annotations = nil
	}
	return obj, nil
}

func ports(containers []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, 0, len(containers))
	for _, c := range containers {
		out = append(out, corev1.Container{Ports: c.Ports, RestartPolicy: c.RestartPolicy})
	}
	return out
}
