package probe

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	listers "k8s.io/client-go/listers/admissionregistration/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// requestTimeout is longer than the API server gives all webhooks of a request together.
const requestTimeout = 35 * time.Second

// target is one thing that is proven.
type target struct {
	revision string
	check    verdict.Check
}

// compare puts targets of one revision together.
func (t target) compare(o target) int {
	return cmp.Or(strings.Compare(t.revision, o.revision), strings.Compare(string(t.check), string(o.check)))
}

// round is one Run.
type round struct {
	*Prober
	hooks      listers.MutatingWebhookConfigurationLister
	validators listers.ValidatingWebhookConfigurationLister
	// targets are what is to be proven now, and ask proves one: parts of their own for tests.
	targets func(context.Context) []target
	ask     func(context.Context, target) verdict.Finding
	states  map[target]*state
	pace    pace
}

// Run probes until ctx ends, and returns nil then. It is to be called while this replica holds the lease of its revision, and may
// be called again after it has returned.
func (p *Prober) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &round{Prober: p}
	r.targets, r.ask = r.registered, r.dryRun
	synced, stop := r.follow(ctx)
	defer stop()
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil // ctx ended first
	}
	r.loop(ctx)
	return nil
}

// follow watches the webhook configurations of this revision, or of all.
func (r *round) follow(ctx context.Context) (synced []cache.InformerSynced, stop func()) {
	selector := label.IoIstioRev.Name
	if !r.config.All {
		selector += "=" + r.config.Revision
	}
	factory := informers.NewSharedInformerFactoryWithOptions(r.config.Kubernetes, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = selector }))
	hooks, validators := factory.Admissionregistration().V1().MutatingWebhookConfigurations(), factory.Admissionregistration().V1().ValidatingWebhookConfigurations()
	r.hooks, r.validators = hooks.Lister(), validators.Lister()
	for resource, informer := range map[string]cache.SharedIndexInformer{
		"mutatingwebhookconfigurations": hooks.Informer(), "validatingwebhookconfigurations": validators.Informer(),
	} {
		// Neither call can fail on an informer that is not started.
		_ = informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
			if apierrors.IsForbidden(err) {
				r.config.Log.Error("watch is forbidden: let the control plane list and watch it (`selvage install` grants it)", "resource", resource, "error", err)
			} else if ctx.Err() == nil {
				r.config.Log.Debug("watch was interrupted", "resource", resource, "error", err)
			}
		})
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { r.Wake() },
			UpdateFunc: func(before, after any) {
				b, _ := before.(metav1.Object)
				a, _ := after.(metav1.Object)
				if b == nil || a == nil || a.GetGeneration() != b.GetGeneration() {
					r.Wake()
				}
			},
			DeleteFunc: func(any) { r.Wake() },
		})
		synced = append(synced, informer.HasSynced)
	}
	factory.StartWithContext(ctx)
	return synced, factory.Shutdown
}

// registered are this revision's checks, and with All the injection of every revision that has an injector.
func (r *round) registered(ctx context.Context) (targets []target) {
	own := (inject.Registration{Revision: r.config.Revision}).Name()
	if r.hook(own) != nil || r.config.Taken == nil || !r.config.Taken(ctx, own) { // no pod can come to it by its name
		targets = append(targets, target{r.config.Revision, verdict.Injection})
	}
	if r.config.Istio != nil {
		targets = append(targets, target{r.config.Revision, verdict.Validation})
	}
	if !r.config.All {
		return targets
	}
	list, _ := r.hooks.List(labels.Everything()) // a lister of a cache cannot fail
	for _, c := range list {
		rev := c.Labels[label.IoIstioRev.Name]
		if rev == "" || c.Name != (inject.Registration{Revision: rev}).Name() {
			continue // a tag's, or none of ours
		}
		if t := (target{rev, verdict.Injection}); !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
	}
	slices.SortFunc(targets, target.compare)
	return targets
}

// dryRun asks the API server.
func (r *round) dryRun(ctx context.Context, t target) verdict.Finding {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	if t.check == verdict.Validation {
		_, err := r.config.Istio.NetworkingV1().Gateways(verdict.Namespace).Create(ctx, verdict.Gateway(t.revision), options)
		validator, _ := r.validators.Get(r.names(t).Configuration(t.check).Name) // nil when there is none
		return r.names(t).OfValidation(err, validator)
	}
	got, err := r.config.Kubernetes.CoreV1().Pods(verdict.Namespace).Create(ctx, verdict.Pod(t.revision, verdict.Namespace), options)
	return r.names(t).OfInjection(got, err, verdict.Registered{
		Injector: r.hook(inject.Registration{Revision: t.revision}.Name()), Probe: r.hook(verdict.ConfigurationName(t.revision)),
	})
}

// hook reads a configuration from the cache; nil when there is none.
func (r *round) hook(name string) *admissionv1.MutatingWebhookConfiguration {
	c, err := r.hooks.Get(name)
	if err != nil {
		return nil
	}
	return c
}

func (r *round) names(t target) verdict.Names {
	return verdict.Names{Revision: t.revision, Namespace: r.config.Namespace}
}

// loop asks, tells, and pauses, until ctx ends.
func (r *round) loop(ctx context.Context) {
	defer r.end()
	r.recall(ctx)
	for ctx.Err() == nil {
		restless, bad := r.once(ctx)
		if !r.pause(ctx, r.pace.after(restless, bad)) {
			return
		}
	}
}

// pause waits; a wake-up ends it soon. It is false when ctx has ended.
func (r *round) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-r.wake:
			r.pace.reset()
			timer.Reset(settle)
		}
	}
}

// once asks for every target.
func (r *round) once(ctx context.Context) (restless, bad bool) {
	targets := r.targets(ctx)
	for t := range r.states {
		if !slices.Contains(targets, t) {
			r.metrics.gone(t)
			delete(r.states, t)
			restless = true
		}
	}
	for _, t := range targets {
		start := time.Now()
		f := r.ask(ctx, t)
		if ctx.Err() != nil {
			return false, false
		}
		now := time.Now()
		r.metrics.ran(t, f, now.Sub(start), now)
		s := r.states[t]
		if s == nil {
			s = &state{}
			r.states[t] = s
		}
		news, waits := s.take(f, now)
		restless = restless || news || waits
		bad = bad || f.Verdict != verdict.OK
		if s.known {
			r.metrics.holds(t, s.finding.Verdict)
		}
		if t.revision == r.config.Revision && s.known {
			r.prove(t.check, s, f, now)
		}
		if news {
			r.tell(ctx, t, s)
		}
	}
	if restless {
		r.publish()
	}
	return restless, bad
}

// end takes back what only the leader shows.
func (r *round) end() {
	for t := range r.states {
		r.metrics.gone(t)
	}
	r.forget()
}

// state is what is known of one target.
type state struct {
	known   bool // finding holds
	finding verdict.Finding
	since   time.Time // since when its verdict holds
	doubted time.Time // since when the answers are bad without being believed; zero when the last one is
	message string    // of the condition that was taken over; "" for that of finding
}

// grace is how long nothing but bad answers must come before the first is believed: an installation makes the webhooks last, when
// the control plane is there.
const grace = 15 * time.Second

// take takes an answer in. A good one holds at once; a bad one when the next is bad too, as a replica that ends or a webhook that the
// API server has not read yet are no news. news says that another verdict holds now, waits that this one wants to be confirmed.
func (s *state) take(f verdict.Finding, now time.Time) (news, waits bool) {
	switch {
	case s.known && f.Verdict == s.finding.Verdict:
		s.doubted = time.Time{}
		return false, false
	case f.Verdict != verdict.OK && s.doubted.IsZero():
		s.doubted = now
		return false, true
	case f.Verdict != verdict.OK && !s.known && now.Sub(s.doubted) < grace:
		return false, true
	}
	s.known, s.finding, s.since, s.doubted, s.message = true, f, now, time.Time{}, ""
	return true, false
}
