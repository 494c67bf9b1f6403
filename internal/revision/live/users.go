package live

import (
	"context"
	"errors"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// Users watches who uses the revisions: what AddUsers reads once. It keeps the name and the revision of each, some hundred bytes.
type Users struct {
	client     kubernetes.Interface
	changed    chan struct{} // holds one
	namespaces watched[revision.Namespace]
	pods       watched[revision.Pod]
}

// NewUsers gives one that knows nothing yet.
func NewUsers(client kubernetes.Interface) *Users {
	u := &Users{client: client, changed: make(chan struct{}, 1)}
	u.namespaces = watched[revision.Namespace]{wake: u.wake, of: func(object any) (revision.Namespace, bool) {
		ns, ok := object.(*corev1.Namespace)
		if !ok {
			return revision.Namespace{}, false
		}
		return userOf(ns)
	}}
	u.pods = watched[revision.Pod]{wake: u.wake, of: func(object any) (revision.Pod, bool) {
		pod, ok := object.(*corev1.Pod)
		if !ok {
			return revision.Pod{}, false
		}
		rev := SidecarOf(pod)
		return revision.Pod{Namespace: pod.Namespace, Name: pod.Name, Revision: rev}, rev != ""
	}}
	return u
}

// Changed tells that somebody came, went or moved; a status that changed is nothing. It holds one.
func (u *Users) Changed() <-chan struct{} { return u.changed }

func (u *Users) wake() {
	select {
	case u.changed <- struct{}{}:
	default: // one is waiting already
	}
}

// Run watches until ctx ends, and forgets everything then.
func (u *Users) Run(ctx context.Context) error {
	core := u.client.CoreV1()
	namespaces := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Namespaces().List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return core.Namespaces().Watch(ctx, o)
		},
	}
	pods := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector = meshedPods, runningPods
			return core.Pods(metav1.NamespaceAll).List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.FieldSelector = meshedPods, runningPods
			return core.Pods(metav1.NamespaceAll).Watch(ctx, o)
		},
	}
	var running sync.WaitGroup
	for _, r := range []*cache.Reflector{
		cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(namespaces, u.client), &corev1.Namespace{}, &u.namespaces, cache.ReflectorOptions{Name: "users-namespaces"}),
		cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(pods, u.client), &corev1.Pod{}, &u.pods, cache.ReflectorOptions{Name: "users-pods"}),
	} {
		running.Go(func() { r.RunWithContext(ctx) })
	}
	running.Wait()
	u.namespaces.forget()
	u.pods.forget()
	return nil
}

// ErrUsersUnknown is that not everybody has been read yet.
var ErrUsersUnknown = errors.New("the users of revisions are not known yet")

// Add puts who uses the revisions into facts, as AddUsers does. The error is ErrUsersUnknown, and nothing is added then.
func (u *Users) Add(f *revision.Facts) error {
	namespaces, known := u.namespaces.list()
	pods, knownToo := u.pods.list()
	if !known || !knownToo {
		return ErrUsersUnknown
	}
	f.Namespaces, f.Pods = append(f.Namespaces, namespaces...), append(f.Pods, pods...)
	return nil
}

// meshedPods and runningPods select the pods that may have a sidecar and have not ended.
const (
	runningPods = "status.phase!=Succeeded,status.phase!=Failed"
)

var meshedPods = label.SecurityTlsMode.Name

// userOf is a namespace that asks for sidecars, or not.
func userOf(ns *corev1.Namespace) (revision.Namespace, bool) {
	one := revision.Namespace{Name: ns.Name, Injection: ns.Labels[inject.NamespaceInjection], Rev: ns.Labels[label.IoIstioRev.Name]}
	return one, ns.DeletionTimestamp == nil && (one.Injection != "" || one.Rev != "")
}

// watched is the store of a reflector that keeps of objects what of gives.
type watched[T comparable] struct {
	of   func(object any) (T, bool)
	wake func()

	mu    sync.Mutex
	items map[string]T // nil until the first list has come
}

var _ cache.ReflectorStore = &watched[int]{}

func (w *watched[T]) list() (out []T, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, item := range w.items {
		out = append(out, item)
	}
	return out, w.items != nil
}

func (w *watched[T]) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.items = nil
}

// set takes what is to be kept of an object, or that nothing is.
func (w *watched[T]) set(object any, there bool) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object)
	if err != nil {
		return err
	}
	item, keep := w.of(object)
	w.mu.Lock()
	defer w.mu.Unlock()
	old, had := w.items[key]
	switch {
	case keep && there:
		if had && old == item {
			return nil
		}
		if w.items == nil {
			w.items = map[string]T{}
		}
		w.items[key] = item
	case !had:
		return nil
	default:
		delete(w.items, key)
	}
	w.wake()
	return nil
}

func (w *watched[T]) Add(object any) error    { return w.set(object, true) }
func (w *watched[T]) Update(object any) error { return w.set(object, true) }
func (w *watched[T]) Delete(object any) error { return w.set(object, false) }
func (w *watched[T]) Resync() error           { return nil }

// Replace takes all that there are.
func (w *watched[T]) Replace(list []any, _ string) error {
	items := make(map[string]T, len(list))
	for _, object := range list {
		m, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		if item, keep := w.of(object); keep {
			items[cache.NewObjectName(m.GetNamespace(), m.GetName()).String()] = item
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.items = items
	w.wake()
	return nil
}
