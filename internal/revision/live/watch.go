package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// WatcherConfig says who looks. Events, Problems and Registerer may be nil.
type WatcherConfig struct {
	Kubernetes kubernetes.Interface
	Revision   string        // of the control plane that looks: it lives
	Replica    string        // for the record of what was removed
	Grace      time.Duration // 0 is revision.DefaultGrace
	Events     Events
	Problems   func([]diag.Problem) // what is wrong now, after each look
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Watcher finds stale webhook configurations of every revision, tells of them, and removes those that Selvage manages. It looks at
// intervals, because what makes a configuration stale is that nothing happens for a while; it only reads unless it removes something.
type Watcher struct {
	config   WatcherConfig
	keeper   Keeper
	interval time.Duration
	stale    *prometheus.GaugeVec
	removed  *prometheus.CounterVec
}

// NewWatcher gives a watcher that does nothing yet.
func NewWatcher(config WatcherConfig) (*Watcher, error) {
	if config.Kubernetes == nil || config.Log == nil || config.Revision == "" {
		return nil, errors.New("configure watcher of stale webhooks: a Kubernetes client, a revision and a logger are needed")
	}
	if config.Grace == 0 {
		config.Grace = revision.DefaultGrace
	}
	w := &Watcher{
		config: config, keeper: Keeper{Kubernetes: config.Kubernetes, By: config.Replica},
		interval: min(max(config.Grace/4, time.Second), time.Minute),
		stale: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "selvage_stale_webhooks",
			Help: "Webhook configurations that call a control plane which is gone, by kind, name and revision; 1 each."}, []string{"kind", "name", "revision"}),
		removed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "selvage_stale_webhooks_removed_total",
			Help: "Stale webhook configurations that were removed, by kind."}, []string{"kind"}),
	}
	if config.Registerer != nil {
		for _, c := range []prometheus.Collector{w.stale, w.removed} {
			if err := config.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("configure watcher of stale webhooks: register metrics: %w", err)
			}
		}
	}
	return w, nil
}

// Run looks until ctx ends. Only one replica of all revisions should: it is called while the lease of the cluster is held. It begins
// to count the grace period anew, so that a control plane that has just come up takes nothing on trust.
func (w *Watcher) Run(ctx context.Context) error {
	l := &look{Watcher: w, missing: map[string]time.Time{}, told: map[string]bool{}}
	ticker := time.NewTicker(w.interval)
	defer ticker.Stop()
	defer w.stale.Reset()
	for {
		l.once(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// look is one Run.
type look struct {
	*Watcher
	missing map[string]time.Time // by UID: when its control plane was first seen to be gone
	told    map[string]bool      // by UID: an Event says that it is stale
	failing bool                 // the last look could not read
}

// once looks, tells and removes.
func (l *look) once(ctx context.Context) {
	facts, err := ControlPlanes(ctx, l.config.Kubernetes)
	if err != nil {
		if ctx.Err() == nil && !l.failing {
			l.config.Log.Error("webhook configurations cannot be looked at for stale ones; it is tried again", "error", err)
		}
		l.failing = true
		return
	}
	l.failing = false
	l.stale.Reset()
	var problems []diag.Problem
	missing := map[string]time.Time{}
	for _, hook := range facts.Webhooks {
		if hook.Revision == l.config.Revision {
			continue
		}
		since, seen := l.missing[hook.UID]
		if !seen {
			since = facts.Now
		}
		switch j := facts.Judge(hook, since, l.config.Grace); j.Verdict {
		case revision.IsGone:
			missing[hook.UID] = since
		case revision.IsStale:
			missing[hook.UID] = since
			problems = append(problems, hook.Problem(j))
			l.act(ctx, hook, j)
		case revision.Unknown:
			problems = append(problems, hook.Problem(j))
		case revision.Live:
		}
	}
	l.missing = missing
	maps.DeleteFunc(l.told, func(uid string, _ bool) bool { _, still := missing[uid]; return !still })
	if l.config.Problems != nil {
		l.config.Problems(problems)
	}
}

// act tells of a stale configuration once, and removes it if that is Selvage's to do.
func (l *look) act(ctx context.Context, hook revision.Webhook, j revision.Judgement) {
	l.stale.WithLabelValues(hook.Kind, hook.Name, hook.Revision).Set(1)
	problem := hook.Problem(j)
	if !l.told[hook.UID] {
		l.told[hook.UID] = true
		l.event(hook, corev1.EventTypeWarning, "StaleWebhook", problem.Detail+"; "+problem.Hint)
	}
	if !hook.Ours || hook.Kept {
		return
	}
	if err := l.keeper.Remove(ctx, hook); err != nil {
		if ctx.Err() == nil {
			l.config.Log.Error("a stale webhook configuration cannot be removed; it is tried again", "kind", hook.Kind, "name", hook.Name, "error", err)
		}
		return
	}
	l.stale.DeleteLabelValues(hook.Kind, hook.Name, hook.Revision)
	l.removed.WithLabelValues(hook.Kind).Inc()
	l.config.Log.Warn("a stale webhook configuration was removed; `selvage revision prune --undo` brings it back",
		"kind", hook.Kind, "name", hook.Name, "hookRevision", hook.Revision, "because", j.Detail)
	l.event(hook, corev1.EventTypeNormal, "StaleWebhookRemoved", j.Detail+"; `selvage revision prune --undo "+hook.Name+"` brings it back")
}

func (l *look) event(hook revision.Webhook, kind, reason, message string) {
	if l.config.Events == nil {
		return
	}
	l.config.Events.Event(&corev1.ObjectReference{
		APIVersion: "admissionregistration.k8s.io/v1", Kind: hook.Kind, Name: hook.Name, UID: types.UID(hook.UID), ResourceVersion: hook.ResourceVersion,
	}, kind, reason, message)
}
