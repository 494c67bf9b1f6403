package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"unique"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	applyv1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/trust"
)

const (
	// RootConfigMap is where workloads find the mesh's root; the name is Istio's.
	RootConfigMap = "istio-ca-root-cert"
	// RootKey is the key in it; the name is Istio's too.
	RootKey = "root-cert.pem"

	rootManager = "selvage-root-cert"
	rootWorkers = 16
)

// rootLabels are on every ConfigMap: Istio's mark of mesh configuration, and whose it is.
var rootLabels = map[string]string{"istio.io/config": "true", "app.kubernetes.io/managed-by": "selvage"}

// systemNamespaces have no workloads of the mesh, as with Istio.
var systemNamespaces = []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, "local-path-storage"}

// RootsConfig says what is distributed. Events and Registerer may be nil.
type RootsConfig struct {
	Kubernetes kubernetes.Interface
	Roots      RootSource
	Events     Events
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Roots keeps the ConfigMap with the mesh's root in every namespace: made when the namespace is, put back when it is changed or
// deleted, rewritten when the root changes. What is right is not written. It owns the one key and two labels; other keys in the
// ConfigMap stay.
type Roots struct {
	config  RootsConfig
	running atomic.Pointer[rootLoop] // nil outside of Run
	failing failures
}

// Count counts the namespaces that have the roots, and names some that have not. Outside of Run, and while the cluster is read,
// nothing is known.
func (r *Roots) Count() trust.Count {
	l := r.running.Load()
	if l == nil {
		return trust.Counted(1, []string{"the list of namespaces"})
	}
	root, _ := r.config.Roots.Roots()
	namespaces, _ := l.namespaces.List(labels.Everything()) // a lister of a cache cannot fail
	total, waiting := 0, []string(nil)
	for _, ns := range namespaces {
		if !takesRoots(ns) {
			continue
		}
		total++
		if cm, err := l.configMaps.ConfigMaps(ns.Name).Get(RootConfigMap); err != nil || !right(cm, root) {
			waiting = append(waiting, ns.Name)
		}
	}
	return trust.Counted(total, waiting)
}

// takesRoots reports whether a namespace is to have the roots: it has workloads of the mesh, or may have, and is not on its way out.
func takesRoots(ns *corev1.Namespace) bool {
	return !slices.Contains(systemNamespaces, ns.Name) && ns.DeletionTimestamp == nil && ns.Status.Phase != corev1.NamespaceTerminating
}

// NewRoots gives a reconciler that does nothing yet.
func NewRoots(config RootsConfig) (*Roots, error) {
	if config.Kubernetes == nil || config.Roots == nil || config.Log == nil {
		return nil, errors.New("configure root distribution: a Kubernetes client, a root source and a logger are needed")
	}
	r := &Roots{config: config}
	r.failing.changed = make(chan struct{})
	if config.Registerer != nil {
		if err := config.Registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "selvage_root_not_distributed", Help: "Namespaces whose ConfigMap istio-ca-root-cert cannot be put right, at the replica that distributes.",
		}, r.failing.count)); err != nil {
			return nil, fmt.Errorf("configure root distribution: register metrics: %w", err)
		}
	}
	return r, nil
}

// rootLoop is one Run of Roots. Its keys are namespaces.
type rootLoop struct {
	*Roots
	*loop[string]
	namespaces listers.NamespaceLister
	configMaps listers.ConfigMapLister
}

// Run distributes until ctx ends. It returns nil then; failures are retried and logged.
func (r *Roots) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	namespaces := informers.NewSharedInformerFactoryWithOptions(r.config.Kubernetes, 0, informers.WithTransform(slimNamespace))
	// Only the ConfigMaps of this name are watched: the others are most of a cluster's memory.
	configMaps := informers.NewSharedInformerFactoryWithOptions(r.config.Kubernetes, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, RootConfigMap).String()
		}),
		informers.WithTransform(slimConfigMap))
	defer configMaps.Shutdown()
	defer namespaces.Shutdown()
	defer cancel()
	l := &rootLoop{Roots: r, namespaces: namespaces.Core().V1().Namespaces().Lister(), configMaps: configMaps.Core().V1().ConfigMaps().Lister()}
	l.loop = newLoop(l.repair, l.failed)
	defer l.queue.ShutDown()

	namespaceInformer, configMapInformer := namespaces.Core().V1().Namespaces().Informer(), configMaps.Core().V1().ConfigMaps().Informer()
	// None of these calls can fail on an informer that is not started.
	_ = namespaceInformer.SetWatchErrorHandlerWithContext(onWatchError(r.config.Log, "namespaces"))
	_ = configMapInformer.SetWatchErrorHandlerWithContext(onWatchError(r.config.Log, "configmaps"))
	namespacesTold, _ := namespaceInformer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { l.queue.Add(nameOf(object)) },
		UpdateFunc: func(_, object any) { l.queue.Add(nameOf(object)) },
	})
	changed := func(object any) {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		if m, ok := object.(metav1.Object); ok && m.GetName() == RootConfigMap {
			l.queue.Add(m.GetNamespace())
		}
	}
	configMapsTold, _ := configMapInformer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, UpdateFunc: func(_, object any) { changed(object) }, DeleteFunc: changed,
	})
	// First what is there, then where it should be: else a start would write to every namespace.
	configMaps.StartWithContext(ctx)
	select {
	case <-configMapsTold.HasSyncedChecker().Done():
	case <-ctx.Done():
		return nil
	}
	namespaces.StartWithContext(ctx)
	select {
	case <-namespacesTold.HasSyncedChecker().Done():
	case <-ctx.Done():
		return nil
	}
	r.running.Store(l)
	defer r.running.Store(nil)
	defer r.failing.clear()
	followRoots(ctx, r.config.Roots, l.enqueueAll)
	l.run(ctx, rootWorkers)
	return nil
}

// slimNamespace keeps of a namespace what is used here.
func slimNamespace(object any) (any, error) {
	ns, ok := object.(*corev1.Namespace)
	if !ok {
		return object, nil
	}
	return &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: ns.Name, UID: ns.UID, ResourceVersion: ns.ResourceVersion, DeletionTimestamp: ns.DeletionTimestamp},
		Status:     corev1.NamespaceStatus{Phase: ns.Status.Phase},
	}, nil
}

// slimConfigMap keeps of a ConfigMap what is used here.
func slimConfigMap(object any) (any, error) {
	cm, ok := object.(*corev1.ConfigMap)
	if !ok {
		return object, nil
	}
	return &corev1.ConfigMap{
		Immutable:  cm.Immutable,
		ObjectMeta: metav1.ObjectMeta{Name: cm.Name, Namespace: cm.Namespace, UID: cm.UID, ResourceVersion: cm.ResourceVersion, Labels: cm.Labels},
		// One copy for all namespaces: of thousands nearly all have the same roots.
		Data: map[string]string{RootKey: unique.Make(cm.Data[RootKey]).Value()},
	}, nil
}

func (l *rootLoop) enqueueAll() {
	namespaces, _ := l.namespaces.List(labels.Everything()) // a lister of a cache cannot fail
	for _, ns := range namespaces {
		l.queue.Add(ns.Name)
	}
}

// repair brings one namespace's ConfigMap to what it should be.
func (l *rootLoop) repair(ctx context.Context, namespace string) error {
	root, _ := l.config.Roots.Roots()
	if len(root) == 0 {
		return nil // a missing root never empties a ConfigMap
	}
	ns, err := l.namespaces.Get(namespace)
	if err != nil || !takesRoots(ns) {
		l.failing.set(namespace, nil)
		return nil //nolint:nilerr // gone, or going, or not ours
	}
	if cm, err := l.configMaps.ConfigMaps(namespace).Get(RootConfigMap); err == nil && right(cm, root) {
		l.failing.set(namespace, nil)
		return nil
	}
	if !l.mayWrite(namespace) {
		return errLater
	}
	// Applied also where there is none: a right to create by name holds for an apply, whose request has the name, and not for a create.
	apply := applyv1.ConfigMap(RootConfigMap, namespace).WithLabels(rootLabels).WithData(map[string]string{RootKey: string(root)})
	_, err = l.config.Kubernetes.CoreV1().ConfigMaps(namespace).Apply(ctx, apply, metav1.ApplyOptions{FieldManager: rootManager, Force: true})
	switch {
	case apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // the namespace went meanwhile
	case err != nil:
		return fmt.Errorf("write ConfigMap %s/%s: %w", namespace, RootConfigMap, err)
	}
	l.failing.set(namespace, nil)
	l.config.Log.Debug("root certificate written", "namespace", namespace)
	return nil
}

func right(cm *corev1.ConfigMap, root []byte) bool {
	if !bytes.Equal([]byte(cm.Data[RootKey]), root) {
		return false
	}
	for key, value := range rootLabels {
		if cm.Labels[key] != value {
			return false
		}
	}
	return true
}
