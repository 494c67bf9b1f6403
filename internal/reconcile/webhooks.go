package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/admissionregistration/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/admission"
)

// BundleManager is the field manager that owns caBundle, and no other field, of the revision's webhooks.
const BundleManager = "selvage-ca-bundle"

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// WebhooksConfig says whose webhooks are kept. Events and Registerer may be nil.
type WebhooksConfig struct {
	Kubernetes kubernetes.Interface
	Revision   string // "" is "default"
	Roots      RootSource
	Events     Events
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Webhooks keeps the caBundle of one revision's webhook configurations.
//
// It writes strategic-merge patches that name the drifted entries, their bundle and the object's UID. Such a patch merges into
// whatever is there at that moment, by entry name, so no other writer's change is lost. An entry that is gone, or another object
// of the same name, makes it invalid, so that it changes nothing. It is recorded in managedFields as BundleManager's, for
// caBundle alone. Server-side apply is not used, because an applier owns the list entry too, its name: an installer that
// applies (Helm 4, Flux, kubectl apply --server-side) could then no longer take an entry away, since what would be left of it, a
// name and a bundle, is invalid.
type Webhooks struct {
	config  WebhooksConfig
	metrics *webhookMetrics
}

// webhookMetrics have Istio's names and labels.
type webhookMetrics struct {
	attempts, retries, failures *prometheus.CounterVec
}

// webhookKey names one configuration.
type webhookKey struct {
	kind admission.Kind
	name string
}

// NewWebhooks gives a reconciler that does nothing yet.
func NewWebhooks(config WebhooksConfig) (*Webhooks, error) {
	if config.Kubernetes == nil || config.Roots == nil || config.Log == nil {
		return nil, errors.New("configure webhook reconciler: a Kubernetes client, a root source and a logger are needed")
	}
	if config.Revision == "" {
		config.Revision = "default"
	}
	m := &webhookMetrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "webhook_patch_attempts_total", Help: "Writes of the caBundle of a webhook configuration, by its name.",
		}, []string{"name"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "webhook_patch_retries_total", Help: "Writes of a caBundle that were, or are to be, repeated, by name and reason.",
		}, []string{"name", "reason"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "webhook_patch_failures_total", Help: "Writes of a caBundle that failed, by name and reason.",
		}, []string{"name", "reason"}),
	}
	if config.Registerer != nil {
		for _, c := range []prometheus.Collector{m.attempts, m.retries, m.failures} {
			if err := config.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("configure webhook reconciler: register metrics: %w", err)
			}
		}
	}
	return &Webhooks{config: config, metrics: m}, nil
}

// webhookLoop is one Run of Webhooks.
type webhookLoop struct {
	*Webhooks
	*loop[webhookKey]
	mutating   listers.MutatingWebhookConfigurationLister
	validating listers.ValidatingWebhookConfigurationLister
}

// Run repairs until ctx ends. It returns nil then; failures are retried, logged and counted.
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
	l := &webhookLoop{Webhooks: w,
		mutating: hooks.MutatingWebhookConfigurations().Lister(), validating: hooks.ValidatingWebhookConfigurations().Lister()}
	l.loop = newLoop(l.repair, l.failed)
	defer l.queue.ShutDown()
	for kind, informer := range map[admission.Kind]cache.SharedIndexInformer{
		admission.Mutating:   hooks.MutatingWebhookConfigurations().Informer(),
		admission.Validating: hooks.ValidatingWebhookConfigurations().Informer(),
	} {
		enqueue := func(object any) { l.queue.Add(webhookKey{kind, nameOf(object)}) }
		// Neither call can fail on an informer that is not started.
		_ = informer.SetWatchErrorHandlerWithContext(onWatchError(w.config.Log, string(kind)))
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    enqueue,
			UpdateFunc: func(_, object any) { enqueue(object) },
		})
	}
	factory.StartWithContext(ctx)
	go followRoots(ctx, w.config.Roots, l.enqueueAll)
	l.run(ctx, 4)
	return nil
}

func nameOf(object any) string {
	if m, ok := object.(metav1.Object); ok {
		return m.GetName()
	}
	return ""
}

func (l *webhookLoop) enqueueAll() {
	mutating, _ := l.mutating.List(labels.Everything()) // a lister of a cache cannot fail
	for _, c := range mutating {
		l.queue.Add(webhookKey{admission.Mutating, c.Name})
	}
	validating, _ := l.validating.List(labels.Everything())
	for _, c := range validating {
		l.queue.Add(webhookKey{admission.Validating, c.Name})
	}
}

// observe reads one configuration from the cache.
func (l *webhookLoop) observe(key webhookKey) (runtime.Object, []admission.Configuration) {
	if key.kind == admission.Mutating {
		if c, err := l.mutating.Get(key.name); err == nil {
			return c, []admission.Configuration{mutatingConfiguration(c)}
		}
	} else if c, err := l.validating.Get(key.name); err == nil {
		return c, []admission.Configuration{validatingConfiguration(c)}
	}
	return nil, nil
}

func mutatingConfiguration(c *admissionv1.MutatingWebhookConfiguration) admission.Configuration {
	out := configuration(admission.Mutating, c)
	for _, w := range c.Webhooks {
		out.Entries = append(out.Entries, admission.Entry{Name: w.Name, CABundle: w.ClientConfig.CABundle})
	}
	return out
}

func validatingConfiguration(c *admissionv1.ValidatingWebhookConfiguration) admission.Configuration {
	out := configuration(admission.Validating, c)
	for _, w := range c.Webhooks {
		out.Entries = append(out.Entries, admission.Entry{Name: w.Name, CABundle: w.ClientConfig.CABundle})
	}
	return out
}

func configuration(kind admission.Kind, m metav1.Object) admission.Configuration {
	return admission.Configuration{Kind: kind, Name: m.GetName(), UID: string(m.GetUID()), Generation: m.GetGeneration(), Labels: m.GetLabels()}
}

// repair brings one configuration to its plan.
func (l *webhookLoop) repair(ctx context.Context, key webhookKey) error {
	object, observed := l.observe(key)
	root, _ := l.config.Roots.Roots()
	patches := admission.Plan(observed, l.config.Revision, root)
	if len(patches) == 0 {
		return nil
	}
	if !l.mayWrite(key) {
		l.metrics.retries.WithLabelValues(key.name, "rate_limited").Inc()
		return errLater
	}
	started := time.Now()
	l.metrics.attempts.WithLabelValues(key.name).Inc()
	patch := patches[0] // of one configuration there is one
	if err := l.write(ctx, patch); err != nil {
		if apierrors.IsNotFound(err) || (apierrors.IsInvalid(err) || apierrors.IsConflict(err)) && l.replaced(key, patch) {
			return nil // deleted meanwhile: an object that comes after it has its own event
		}
		return fmt.Errorf("write caBundle of %s %s: %w", key.kind, key.name, err)
	}
	problem := patch.Problem()
	kind, reason, message := corev1.EventTypeWarning, "CABundleRepaired", "caBundle was put back: "+problem.Detail
	if patch.Installing() {
		kind, reason, message = corev1.EventTypeNormal, "CABundleSet", fmt.Sprintf("caBundle of %d entries was filled in", len(patch.Entries))
	}
	l.config.Log.Info("caBundle written", "kind", key.kind, "name", key.name, "entries", len(patch.Entries),
		"overwritten", !patch.Installing(), "took", time.Since(started).Round(time.Millisecond))
	if l.config.Events != nil {
		l.config.Events.Event(object, kind, reason, message)
	}
	return nil
}

// replaced reports whether the cache knows by now that the patch's object is gone. Until it does, the write is tried again.
func (l *webhookLoop) replaced(key webhookKey, patch admission.Patch) bool {
	_, now := l.observe(key)
	return len(now) == 0 || now[0].UID != patch.UID
}

// write applies one patch: see Webhooks for why it has this form.
func (w *Webhooks) write(ctx context.Context, patch admission.Patch) error {
	type clientConfig struct {
		CABundle []byte `json:"caBundle"`
	}
	type entry struct {
		Name         string       `json:"name"`
		ClientConfig clientConfig `json:"clientConfig"`
	}
	body := struct {
		Metadata map[string]string `json:"metadata"`
		Webhooks []entry           `json:"webhooks"`
	}{Metadata: map[string]string{"uid": patch.UID}}
	for _, d := range patch.Entries {
		body.Webhooks = append(body.Webhooks, entry{d.Name, clientConfig{patch.CABundle}})
	}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: BundleManager}
	hooks := w.config.Kubernetes.AdmissionregistrationV1()
	if patch.Kind == admission.Mutating {
		_, err = hooks.MutatingWebhookConfigurations().Patch(ctx, patch.Name, types.StrategicMergePatchType, data, options)
	} else {
		_, err = hooks.ValidatingWebhookConfigurations().Patch(ctx, patch.Name, types.StrategicMergePatchType, data, options)
	}
	return err
}

func (l *webhookLoop) failed(key webhookKey, err error) {
	reason := string(apierrors.ReasonForError(err))
	if reason == "" {
		reason = "unreachable"
	}
	l.metrics.retries.WithLabelValues(key.name, reason).Inc()
	if apierrors.IsConflict(err) || apierrors.IsInvalid(err) { // the object changed under the patch; the next try sees it
		l.config.Log.Debug("caBundle is tried again", "kind", key.kind, "name", key.name, "error", err)
		return
	}
	l.metrics.failures.WithLabelValues(key.name, reason).Inc()
	l.config.Log.Error("caBundle cannot be written, it is tried again", "kind", key.kind, "name", key.name, "error", err,
		"hint", hint(err, "patch", "mutatingwebhookconfigurations and validatingwebhookconfigurations"))
}
