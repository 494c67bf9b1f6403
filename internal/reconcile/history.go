package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
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
	told   bool       // its absence was told

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
	if h.told {
		l.config.Log.Info("webhook configuration is there again", "kind", k.Kind, "name", k.Name)
	}
	if slices.Contains(l.config.Expected, k) {
		l.metrics.missing.WithLabelValues(string(k.Kind), k.Name).Set(0)
	}
	h.object, h.gone, h.told = object, time.Time{}, false
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
	if h.told {
		return
	}
	if h.gone.IsZero() {
		h.gone = time.Now()
	}
	if left := missingGrace - time.Since(h.gone); left > 0 {
		l.queue.AddAfter(k, left)
		return
	}
	if k.Kind == admission.Mutating && TakenByTag(ctx, l.config.Kubernetes, k.Name, l.config.Revision) { // the watch knows only this revision's
		h.gone = time.Time{}
		l.metrics.missing.WithLabelValues(string(k.Kind), k.Name).Set(0)
		l.queue.AddAfter(k, takenAgain)
		return
	}
	h.told = true
	l.metrics.missing.WithLabelValues(string(k.Kind), k.Name).Set(1)
	p := admission.MissingProblem(k, l.config.Revision)
	l.problem(p)
	if h.object != nil {
		l.event(h.object, corev1.EventTypeWarning, "WebhookDeleted", fmt.Sprintf("%s: %s; %s", p.Code, p.Detail, p.Hint))
	}
}

// TakenByTag asks whether the MutatingWebhookConfiguration of that name answers for a tag that leads to another revision. What cannot be
// read counts as no.
func TakenByTag(ctx context.Context, client kubernetes.Interface, name, revision string) bool {
	list, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()})
	if err != nil {
		return false
	}
	return slices.ContainsFunc(list.Items, func(c admissionv1.MutatingWebhookConfiguration) bool {
		return c.Name == name && admission.TakenByTag(c.Labels, revision)
	})
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
