package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"github.com/selvage-mesh/selvage/internal/admission"
	"github.com/selvage-mesh/selvage/internal/diag"
)

// hookObject is a webhook configuration of either kind.
type hookObject interface {
	runtime.Object
	metav1.Object
}

// history is what one configuration went through while this process watched. Only the worker that handles its key uses it.
type history struct {
	object hookObject // as last seen; nil while it was never seen
	gone   time.Time  // since when it is missing
	told   string     // the reason of the Event that told its absence, "" while nothing was told

	right   string // the want under which it was last as it should be: when it then is not, somebody else changed it
	written struct {
		object hookObject // as the cache had it: while it has the same one, it has not heard of the write
		want   string
	}
	fought hookObject // as it was when a fight was counted last
	feud   admission.Feud
}

// wantKey is what makes one want differ from another for a configuration.
func wantKey(w admission.Want) string { return string(w.Validators) + "\n" + string(w.Root) }

// awaits reports whether the same was written already, and the cache has not heard of it yet.
func (h *history) awaits(object hookObject, want admission.Want) bool {
	return h.written.object == object && h.written.want == wantKey(want)
}

func (h *history) wrote(object hookObject, want admission.Want) {
	h.written.object, h.written.want = object, wantKey(want)
	h.right = wantKey(want)
}

// of gives the history of a configuration, a new one at first.
func (l *webhookLoop) of(k admission.Key) *history {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.known[k]
	if h == nil {
		h = &history{}
		l.known[k] = h
	}
	return h
}

// present notes that a configuration is there.
func (l *webhookLoop) present(k admission.Key, object hookObject) *history {
	h := l.of(k)
	if h.told != "" {
		l.config.Log.Info("webhook configuration is there again", "kind", k.Kind, "name", k.Name)
	}
	if slices.Contains(l.config.Expected, k) {
		l.metrics.missing.WithLabelValues(string(k.Kind), k.Name).Set(0)
	}
	h.object, h.gone, h.told = object, time.Time{}, ""
	return h
}

// absent tells, after a while, that a configuration is missing. Nothing makes it again: people must be able to delete it.
func (l *webhookLoop) absent(ctx context.Context, k admission.Key, missing bool) {
	l.metrics.forget(k)
	h := l.of(k)
	if !missing {
		if h.object != nil {
			l.config.Log.Info("webhook configuration was deleted", "kind", k.Kind, "name", k.Name)
		}
		l.mu.Lock()
		delete(l.known, k)
		l.mu.Unlock()
		return
	}
	if h.told == tellDeleted {
		return
	}
	if h.gone.IsZero() {
		h.gone = time.Now()
	}
	if left := missingGrace - time.Since(h.gone); left > 0 {
		l.queue.AddAfter(k, left)
		return
	}
	other := readHook(ctx, l.config.Kubernetes, k) // the watch knows only this revision's
	if other != nil && admission.TakenByTag(other.GetLabels(), l.config.Revision) {
		h.gone = time.Time{}
		l.metrics.missing.WithLabelValues(string(k.Kind), k.Name).Set(0)
		l.queue.AddAfter(k, takenAgain)
		return
	}
	l.metrics.missing.WithLabelValues(string(k.Kind), k.Name).Set(1)
	reason, p, about := tellDeleted, admission.MissingProblem(k, l.config.Revision), h.object
	if other != nil {
		reason, p, about = tellUnlabelled, admission.UnlabelledProblem(k, l.config.Revision, other, h.gone), other
		l.queue.AddAfter(k, takenAgain) // its deletion has no event here
	}
	if h.told == reason {
		return
	}
	h.told = reason
	l.problem(p)
	if about != nil {
		l.event(about, corev1.EventTypeWarning, reason, fmt.Sprintf("%s: %s; %s", p.Code, p.Detail, p.Hint))
	}
}

// The reasons of Events about a configuration that this revision has no more.
const (
	tellDeleted    = "WebhookDeleted"
	tellUnlabelled = "WebhookLabelLost"
)

// readHook reads a configuration from the API server, whatever its labels; nil when there is none or it cannot be read.
func readHook(ctx context.Context, client kubernetes.Interface, k admission.Key) hookObject {
	hooks := client.AdmissionregistrationV1()
	if k.Kind == admission.Mutating {
		if c, err := hooks.MutatingWebhookConfigurations().Get(ctx, k.Name, metav1.GetOptions{}); err == nil {
			return c
		}
	} else if c, err := hooks.ValidatingWebhookConfigurations().Get(ctx, k.Name, metav1.GetOptions{}); err == nil {
		return c
	}
	return nil
}

// TakenByTag asks whether the MutatingWebhookConfiguration of that name answers for a tag that leads to another revision. What cannot be
// read counts as no.
func TakenByTag(ctx context.Context, client kubernetes.Interface, name, revision string) bool {
	c := readHook(ctx, client, admission.Key{Kind: admission.Mutating, Name: name})
	return c != nil && admission.TakenByTag(c.GetLabels(), revision)
}

// settled notes that a configuration is as it should be, and the end of a feud.
func (l *webhookLoop) settled(k admission.Key, h *history, want admission.Want) {
	if len(want.Root) == 0 {
		return // nobody knows what is right
	}
	h.right = wantKey(want)
	by, _, _ := h.feud.Rival()
	ended, again := h.feud.Over(time.Now())
	if again > 0 {
		l.queue.AddAfter(k, again)
		return
	}
	if ended {
		l.metrics.pause.WithLabelValues(string(k.Kind), k.Name).Set(0)
		l.config.Log.Info("problem mended", "code", diag.WebhookRival, "kind", k.Kind, "name", k.Name, "rival", by.String())
		l.event(h.object, corev1.EventTypeNormal, "RivalStopped", by.String()+" does not overwrite the control plane's fields any more")
	}
}

// fought counts the change of what was right, once for each repair, and names a rival that goes on.
func (l *webhookLoop) fought(k admission.Key, h *history, patch admission.Patch, want admission.Want) {
	if h.right != wantKey(want) || h.written.object == h.object || h.fought == h.object {
		return
	}
	h.fought, h.right = h.object, "" // until the next repair: further changes of what is wrong are no fights
	told := h.feud.Lost(time.Now(), patch.Rival)
	_, name, n := h.feud.Rival()
	l.metrics.overwritten.WithLabelValues(string(k.Kind), k.Name, name).Inc()
	l.metrics.pause.WithLabelValues(string(k.Kind), k.Name).Set(h.feud.Pause().Seconds())
	p, ok := h.feud.Problem(k)
	if !ok || told != admission.Named && told != admission.Weary {
		return
	}
	reason := "RivalWriter"
	if told == admission.Weary {
		reason = "RivalWriterPersists"
	}
	l.config.Log.Warn("rival writer", "kind", k.Kind, "name", k.Name, "rival", patch.Rival.String(), "overwritten", n)
	l.problem(p)
	l.event(h.object, corev1.EventTypeWarning, reason, fmt.Sprintf("%s: %s; %s", p.Code, p.Detail, p.Hint))
}

// repaired tells of a write. Of a rival that has been named, single repairs are not told: Events are writes too.
func (l *webhookLoop) repaired(h *history, patch admission.Patch, took time.Duration) {
	named := h.feud.Named()
	l.config.Log.Info("webhook configuration written", "kind", patch.Kind, "name", patch.Name, "entries", len(patch.Entries),
		"bundle", patch.Bundle(), "overwritten", !patch.Installing(), "rival", named, "took", took.Round(time.Millisecond))
	for _, d := range patch.Entries {
		if d.Policy != "" {
			l.metrics.policies.WithLabelValues(patch.Name, string(d.Policy)).Inc()
		}
	}
	switch {
	case named:
	case !patch.Bundle():
		l.event(h.object, corev1.EventTypeNormal, "FailurePolicySet", policyMessage(patch))
	case patch.Installing():
		l.event(h.object, corev1.EventTypeNormal, "CABundleSet", fmt.Sprintf("caBundle of %d entries was filled in", len(patch.Entries)))
	default:
		by := ""
		if patch.Rival.Manager != "" {
			by = "; it had been changed by " + patch.Rival.String()
		}
		l.event(h.object, corev1.EventTypeWarning, "CABundleRepaired", "caBundle was put back: "+patch.Problem().Detail+by)
	}
}

func policyMessage(patch admission.Patch) string {
	if patch.Entries[0].Policy == admission.Fail {
		return "failurePolicy is Fail now: validation is proven to work through the API server"
	}
	return "failurePolicy is Ignore now: validation does not work through the API server, and objects are let through unchecked until it does"
}

// event tells people about the configuration; only the replica that writes does.
func (l *webhookLoop) event(object hookObject, eventtype, reason, message string) {
	if l.config.Events != nil && l.leads() {
		l.config.Events.Event(object, eventtype, reason, message)
	}
}

// problem logs a problem as every part of the control plane does.
func (l *webhookLoop) problem(p diag.Problem) {
	l.config.Log.Warn("problem", "code", p.Code, "object", p.Object.String(), "field", p.Field, "detail", p.Detail, "hint", p.Hint)
}
