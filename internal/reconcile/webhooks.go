package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"istio.io/api/label"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/admissionregistration/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/admission"
)

// BundleManager is the field manager that owns caBundle, of validators failurePolicy too, and no other field.
const BundleManager = admission.FieldManager

// missingGrace is how long a configuration may be away before that is told: replacing one deletes it first, and an uninstallation
// ends the control plane right after it.
const missingGrace = 15 * time.Second

// A write that an admission policy overrules has no event by which it could be known when to try again, and succeeds as soon as the
// policy's parameter is right: it is tried every two seconds after some quicker tries.
const (
	overruledRetry = 2 * time.Second
	quickRetries   = 5
)

// takenAgain is how often is looked whether a configuration that a tag has taken is still there: its deletion has no event here.
const takenAgain = 5 * time.Minute

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// ValidationSource tells whether validation works through the API server, and since when that is so; since is zero while it was
// never tried. The channel is closed when the answer changes.
type ValidationSource interface {
	Validation() (working bool, since time.Time, changed <-chan struct{})
}

// WebhooksConfig says whose webhooks are kept. Validation, Events and Registerer may be nil; without Validation failurePolicy is
// left alone.
type WebhooksConfig struct {
	Kubernetes kubernetes.Interface
	Revision   string // "" is "default"
	Roots      RootSource
	Validation ValidationSource
	Expected   []admission.Key // configurations whose absence is told
	Events     Events
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Webhooks keeps the caBundle of one revision's webhook configurations, and the failurePolicy of its validators. Every replica
// observes (Run); the one that leads writes (Lead).
//
// It writes strategic-merge patches that name the drifted entries, their fields and the object's UID. Such a patch merges into
// whatever is there at that moment, by entry name, so no other writer's change is lost. An entry that is gone, or another object
// of the same name, makes it invalid, so that it changes nothing. It is recorded in managedFields as BundleManager's, for
// these fields alone. Server-side apply is not used, because an applier owns the list entry too, its name: an installer that
// applies (Helm 4, Flux, kubectl apply --server-side) could then no longer take an entry away, since what would be left of it, a
// name and a bundle, is invalid.
type Webhooks struct {
	config  WebhooksConfig
	metrics *webhookMetrics

	mu      sync.Mutex
	leading context.Context // nil while another replica writes
	wake    func()          // looks at everything again; nil while nothing runs
}

// NewWebhooks gives a reconciler that does nothing yet.
func NewWebhooks(config WebhooksConfig) (*Webhooks, error) {
	if config.Kubernetes == nil || config.Roots == nil || config.Log == nil {
		return nil, errors.New("configure webhook reconciler: a Kubernetes client, a root source and a logger are needed")
	}
	if config.Revision == "" {
		config.Revision = "default"
	}
	m, err := newWebhookMetrics(config.Registerer)
	if err != nil {
		return nil, fmt.Errorf("configure webhook reconciler: register metrics: %w", err)
	}
	return &Webhooks{config: config, metrics: m}, nil
}

// Lead makes this replica the one that writes, until ctx ends.
func (w *Webhooks) Lead(ctx context.Context) error {
	w.mu.Lock()
	w.leading = ctx
	wake := w.wake
	w.mu.Unlock()
	if wake != nil {
		wake()
	}
	<-ctx.Done()
	w.mu.Lock()
	w.leading = nil
	w.mu.Unlock()
	return nil
}

func (w *Webhooks) leads() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leading != nil && w.leading.Err() == nil
}

// writing gives the context of writes, or ok is false: another replica writes.
func (w *Webhooks) writing(ctx context.Context) (_ context.Context, stop func(), ok bool) {
	w.mu.Lock()
	leading := w.leading
	w.mu.Unlock()
	if leading == nil || leading.Err() != nil {
		return nil, nil, false
	}
	writing, cancel := context.WithCancel(ctx)
	release := context.AfterFunc(leading, cancel)
	return writing, func() { release(); cancel() }, true
}

// webhookLoop is one Run of Webhooks.
type webhookLoop struct {
	*Webhooks
	*loop[admission.Key]
	mutating   listers.MutatingWebhookConfigurationLister
	validating listers.ValidatingWebhookConfigurationLister

	mu     sync.Mutex
	known  map[admission.Key]*history
	synced func() bool
}

// Run observes, and repairs while this replica leads, until ctx ends. It returns nil then; failures are retried, logged and counted.
func (w *Webhooks) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	factory := informers.NewSharedInformerFactoryWithOptions(w.config.Kubernetes, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = labels.Set{label.IoIstioRev.Name: w.config.Revision}.String()
		}))
	defer factory.Shutdown()
	defer cancel()
	hooks := factory.Admissionregistration().V1()
	l := &webhookLoop{Webhooks: w, known: map[admission.Key]*history{},
		mutating: hooks.MutatingWebhookConfigurations().Lister(), validating: hooks.ValidatingWebhookConfigurations().Lister()}
	l.loop = newLoop(l.repair, l.failed)
	defer l.queue.ShutDown()
	both := map[admission.Kind]cache.SharedIndexInformer{
		admission.Mutating:   hooks.MutatingWebhookConfigurations().Informer(),
		admission.Validating: hooks.ValidatingWebhookConfigurations().Informer(),
	}
	l.synced = func() bool { return both[admission.Mutating].HasSynced() && both[admission.Validating].HasSynced() }
	for kind, informer := range both {
		enqueue := func(object any) { l.queue.Add(admission.Key{Kind: kind, Name: nameOf(object)}) }
		// Neither call can fail on an informer that is not started.
		_ = informer.SetWatchErrorHandlerWithContext(onWatchError(w.config.Log, string(kind)))
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    enqueue,
			UpdateFunc: func(_, object any) { enqueue(object) },
			DeleteFunc: func(object any) {
				if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
					object = gone.Obj
				}
				enqueue(object)
			},
		})
	}
	w.setWake(l.enqueueAll)
	defer w.setWake(nil)
	factory.StartWithContext(ctx)
	go func() {
		factory.WaitForCacheSync(ctx.Done())
		l.enqueueAll() // also what is missing
	}()
	followRoots(ctx, w.config.Roots, l.enqueueAll)
	if w.config.Validation != nil {
		go followValidation(ctx, w.config.Validation, l.enqueueAll)
	}
	l.run(ctx, 4)
	return nil
}

func (w *Webhooks) setWake(wake func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake = wake
}

// followValidation calls each whenever what is known about validation changes, or has stood for long enough to count.
func followValidation(ctx context.Context, source ValidationSource, each func()) {
	for {
		working, since, changed := source.Validation()
		each()
		var ripe <-chan time.Time
		if _, again := (admission.Validation{Working: working, Since: since}).Policy(time.Now()); again > 0 {
			ripe = time.After(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-ripe:
		}
	}
}

func nameOf(object any) string {
	if m, ok := object.(metav1.Object); ok {
		return m.GetName()
	}
	return ""
}

// enqueueAll looks at every configuration again, at those that are missing too.
func (l *webhookLoop) enqueueAll() {
	for _, c := range l.observe() {
		l.queue.Add(c.Key)
	}
	for _, k := range l.config.Expected {
		l.queue.Add(k)
	}
}

// want is what the configurations are to be now.
func (l *webhookLoop) want() admission.Want {
	root, _ := l.config.Roots.Roots()
	want := admission.Want{Revision: l.config.Revision, Root: root, Expected: l.config.Expected}
	if l.config.Validation != nil {
		working, since, _ := l.config.Validation.Validation()
		want.Validators, _ = admission.Validation{Working: working, Since: since}.Policy(time.Now())
	}
	return want
}

// repair brings one configuration to the plan.
func (l *webhookLoop) repair(ctx context.Context, key admission.Key) error {
	if !l.synced() {
		return nil // what is there comes, and then everything is looked at
	}
	object := l.get(key)
	want := l.want()
	plan := admission.Plan(l.observe(), want)
	if object == nil {
		l.absent(ctx, key, slices.Contains(plan.Missing, key))
		return nil
	}
	h := l.present(key, object)
	patch, wrong := plan.Of(key)
	l.metrics.wrong.WithLabelValues(string(key.Kind), key.Name).Set(float64(len(patch.Entries)))
	if !wrong {
		l.settled(key, h, want)
		return nil
	}
	ctx, stop, leads := l.writing(ctx)
	if !leads {
		return nil
	}
	defer stop()
	l.fought(key, h, patch, want)
	if h.awaits(object, want) {
		return nil
	}
	if wait := h.feud.Wait(time.Now()); wait > 0 {
		l.queue.AddAfter(key, wait)
		return l.later(key, "rival")
	}
	if !l.mayWrite(key) {
		return l.later(key, "rate_limited")
	}
	started := time.Now()
	l.metrics.attempts.WithLabelValues(key.Name).Inc()
	if err := l.write(ctx, patch); err != nil {
		if apierrors.IsNotFound(err) || (apierrors.IsInvalid(err) || apierrors.IsConflict(err)) && l.replaced(patch) {
			return nil // deleted meanwhile: an object that comes after it has its own event
		}
		err = fmt.Errorf("write caBundle of %s %s: %w", key.Kind, key.Name, err)
		if errors.Is(err, errOverruled) && l.queue.NumRequeues(key) > quickRetries {
			l.failed(key, err)
			l.queue.AddAfter(key, overruledRetry)
			return errLater
		}
		return err
	}
	h.wrote(object, want)
	l.repaired(h, patch, time.Since(started))
	return nil
}

func (l *webhookLoop) later(key admission.Key, reason string) error {
	l.metrics.retries.WithLabelValues(key.Name, reason).Inc()
	return errLater
}

// replaced reports whether the cache knows by now that the patch's object is gone. Until it does, the write is tried again.
func (l *webhookLoop) replaced(patch admission.Patch) bool {
	now := l.get(patch.Key)
	return now == nil || string(now.GetUID()) != patch.UID
}

func (l *webhookLoop) failed(key admission.Key, err error) {
	reason := string(apierrors.ReasonForError(err))
	switch {
	case errors.Is(err, errOverruled):
		reason = "overruled"
	case reason == "":
		reason = "unreachable"
	}
	l.metrics.retries.WithLabelValues(key.Name, reason).Inc()
	if apierrors.IsConflict(err) || apierrors.IsInvalid(err) { // the object changed under the patch; the next try sees it
		l.config.Log.Debug("caBundle is tried again", "kind", key.Kind, "name", key.Name, "error", err)
		return
	}
	l.metrics.failures.WithLabelValues(key.Name, reason).Inc()
	l.config.Log.Error("caBundle cannot be written, it is tried again", "kind", key.Kind, "name", key.Name, "error", err,
		"hint", hint(err, "patch", "mutatingwebhookconfigurations and validatingwebhookconfigurations"))
}
