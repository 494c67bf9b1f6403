// Package podwatch finds pods without a sidecar that should have one, and tells why: as an Event on the pod's owner, as a log
// line and as metrics. The webhook cannot tell it, for it has no side effects and is not called for most of these pods; a watch
// sees every way into the cluster. What should be is package inject's to say.
package podwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	admissionlisters "k8s.io/client-go/listers/admissionregistration/v1"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// EventReason is that of every Event of this package.
const EventReason = "SidecarNotInjected"

const (
	// settle is how long after a pod its Event waits: the namespace's label, which is another watch, may come later than the pod
	// although it was written before.
	settle = time.Second
	// eventBurst and eventsPerSecond bound the Events on owners. What is beyond becomes a part of its namespace's summary.
	eventBurst      = 50
	eventsPerSecond = 5
	// maxTold bounds what is remembered of owners that were told. When it is full half of it is forgotten: those may be told again.
	maxTold = 10000
	// requestTimeout is for one look at an owner.
	requestTimeout = 5 * time.Second
)

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// Config is what a Watcher needs. All fields but Registerer and Report must be set.
type Config struct {
	Kubernetes kubernetes.Interface
	Revision   string // of this control plane; "" is the default one
	// Injector gives the configuration in force of this revision, nil while there is none. After a change call Recheck.
	Injector func() *inject.Config
	// Report is given all workloads whose pods have no sidecar and should have one, sorted, whenever that changes. It must not block.
	// It may be nil.
	Report     func([]Workload)
	Events     Events
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Watcher watches the pods of the cluster that this revision answers for. It keeps some hundred bytes for each workload whose
// pods have no sidecar and some for each such pod, and nothing of pods that have theirs.
type Watcher struct {
	config  Config
	metrics *metrics
	wake    chan struct{} // holds one: everything is to be looked at again

	mu      sync.Mutex
	current *round // of the Run that is under way, nil when none is
}

// New registers the metrics; it starts nothing.
func New(c Config) (*Watcher, error) {
	if c.Kubernetes == nil || c.Injector == nil || c.Events == nil || c.Log == nil {
		return nil, errors.New("make watcher of pods: Kubernetes, Injector, Events and Log must be set")
	}
	if c.Revision == "" {
		c.Revision = inject.DefaultRevision
	}
	w := &Watcher{config: c, wake: make(chan struct{}, 1)}
	w.metrics = newMetrics(w)
	if c.Registerer != nil {
		if err := c.Registerer.Register(w.metrics); err != nil {
			return nil, fmt.Errorf("register metrics of the watcher of pods: %w", err)
		}
	}
	return w, nil
}

// Recheck makes a running Watcher look at everything again, because the injector's configuration has changed.
func (w *Watcher) Recheck() {
	select {
	case w.wake <- struct{}{}:
	default: // one is waiting already, and will see this change too
	}
}

// round is one Run.
type round struct {
	*Watcher
	webhooks   admissionlisters.MutatingWebhookConfigurationLister
	namespaces listers.NamespaceLister
	limiter    *rate.Limiter
	told       map[tale]bool // goroutine of Run alone
	reported   *[]Workload   // goroutine of Run alone
	fresh      chan struct{} // holds one: a pod has come

	mu    sync.Mutex
	pods  *pods
	admit *inject.Admission // of what the listers had last
	stale bool              // admit is to be made anew
}

// Run watches until ctx ends, and returns nil then. It is to be called while this replica holds the lease of its revision, and
// may be called again after it has returned.
func (w *Watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	r := &round{Watcher: w, limiter: rate.NewLimiter(eventsPerSecond, eventBurst), told: map[tale]bool{}, fresh: make(chan struct{}, 1), pods: newPods(), stale: true}
	synced, stop := r.start(ctx)
	defer stop()
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil // ctx ended first
	}
	w.set(r)
	defer w.set(nil)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { r.reflector().RunWithContext(ctx) })
	r.loop(ctx)
	return nil
}

func (w *Watcher) set(r *round) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = r
}

// start begins to follow webhook configurations and namespaces. A change of either makes everything be looked at again.
func (r *round) start(ctx context.Context) (synced []cache.InformerSynced, stop func()) {
	factory := informers.NewSharedInformerFactoryWithOptions(r.config.Kubernetes, 0, informers.WithTransform(slim))
	webhooks, namespaces := factory.Admissionregistration().V1().MutatingWebhookConfigurations(), factory.Core().V1().Namespaces()
	r.webhooks, r.namespaces = webhooks.Lister(), namespaces.Lister()
	for resource, informer := range map[string]cache.SharedIndexInformer{
		"mutatingwebhookconfigurations": webhooks.Informer(), "namespaces": namespaces.Informer(),
	} {
		changed := func() {
			r.mu.Lock()
			r.stale = true
			r.mu.Unlock()
			r.Recheck()
		}
		// Neither call can fail on an informer that is not started.
		_ = informer.SetWatchErrorHandlerWithContext(r.onWatchError(resource))
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { changed() }, UpdateFunc: func(before, after any) {
				if !sameForUs(before, after) {
					changed()
				}
			}, DeleteFunc: func(any) { changed() },
		})
		synced = append(synced, informer.HasSynced)
	}
	factory.StartWithContext(ctx)
	return synced, factory.Shutdown
}

// reflector reads the pods that have not ended. It is client-go's machinery of informers with pods as its store.
func (r *round) reflector() *cache.Reflector {
	running := fields.AndSelectors(fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed))).String()
	client := r.config.Kubernetes.CoreV1().Pods(metav1.NamespaceAll)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = running
			list, err := client.List(ctx, o)
			if err != nil {
				r.onWatchError("pods")(ctx, nil, err)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watchInterface, error) {
			o.FieldSelector = running
			return client.Watch(ctx, o)
		},
	}
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, r.config.Kubernetes), &corev1.Pod{}, &store{r},
		cache.ReflectorOptions{Name: "podwatch"})
}

func (r *round) onWatchError(resource string) cache.WatchErrorHandlerWithContext {
	return func(ctx context.Context, _ *cache.Reflector, err error) {
		switch {
		case ctx.Err() != nil:
		case apierrors.IsForbidden(err):
			r.config.Log.Error("watch is forbidden: let the control plane list and watch it (`selvage install` grants it)", "resource", resource, "error", err)
		default:
			r.config.Log.Debug("watch was interrupted", "resource", resource, "error", err)
		}
	}
}

// loop looks at what came, and at everything when what decides has changed.
func (r *round) loop(ctx context.Context) {
	for {
		all := false
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
			all = true
		case <-r.fresh:
		}
		timer := time.NewTimer(settle)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		select { // what came meanwhile is looked at now
		case <-r.wake:
			all = true
		default:
		}
		found := r.look(all)
		r.report()
		r.tell(ctx, found)
	}
}

// look compares what is with what should be, for all workloads or for those that have a pod nobody has looked at.
func (r *round) look(all bool) []finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stale || all {
		r.admit, r.stale = r.admission(), false
	}
	leads := r.leads()
	var found []finding
	for _, g := range r.pods.groups {
		if !all && g.unseen == 0 {
			continue
		}
		if f, ok := r.judge(g, leads); ok {
			found = append(found, f)
		}
	}
	slices.SortFunc(found, func(a, b finding) int { return a.compare(b) })
	return found
}

// judge says what is to be told of one workload's pods, if anything. r.mu is held.
func (r *round) judge(g *group, leads bool) (finding, bool) {
	ns, err := r.namespaces.Get(g.sample.Namespace)
	if err != nil {
		return finding{}, false // it comes, and then everything is looked at
	}
	e := r.admit.Expect(ns, g.sample)
	before := g.reason
	g.reason = ""
	unseen := g.unseen
	g.unseen = 0
	mine := e.Revision == r.config.Revision || e.Revision == "" && leads
	switch {
	case !mine:
		return finding{}, false
	case e.Inject:
		g.reason = inject.Missed
	case e.Surprising:
		g.reason = e.Reason
	default:
		return finding{}, false
	}
	f := finding{sample: g.sample, reason: g.reason, why: e, pods: len(g.pods), fresh: unseen > 0 && !g.old}
	g.note(f)
	switch {
	case g.reason != before:
		r.metrics.seen.WithLabelValues(string(g.reason)).Add(float64(len(g.pods)))
	case unseen == 0:
		return finding{}, false // told before
	default:
		r.metrics.seen.WithLabelValues(string(g.reason)).Add(float64(unseen))
	}
	return f, true
}

// admission compiles what the cluster has now.
func (r *round) admission() *inject.Admission {
	list, _ := r.webhooks.List(labels.Everything()) // a lister of a cache cannot fail
	webhooks := make([]admissionv1.MutatingWebhookConfiguration, 0, len(list))
	for _, c := range list {
		webhooks = append(webhooks, *c)
	}
	configs := map[string]*inject.Config{}
	if c := r.config.Injector(); c != nil {
		configs[r.config.Revision] = c
	}
	return inject.NewAdmission(webhooks, configs)
}

// leads reports whether this revision speaks for pods that no revision answers for: the default one does, or the first by name
// of those that Selvage has installed; when none is, any that runs.
func (r *round) leads() bool {
	list, _ := r.webhooks.List(labels.Everything()) // a lister of a cache cannot fail
	first := ""
	for _, c := range list {
		if !revision.IsOurs(c.Labels) {
			continue
		}
		switch rev := c.Labels[label.IoIstioRev.Name]; {
		case rev == inject.DefaultRevision:
			return r.config.Revision == rev
		case rev != "" && (first == "" || rev < first):
			first = rev
		}
	}
	return first == "" || first == r.config.Revision
}
