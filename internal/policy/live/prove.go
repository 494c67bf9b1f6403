package live

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/policy"
)

// dryRun wipes a caBundle of the revision's, as a dry run, and gives what would be stored: the bundle where the policy is in force, and
// nothing where it is not. asked names the configuration, "" when the revision has none.
func (h *Held) dryRun(ctx context.Context) (stored []byte, asked string, err error) {
	hooks := h.config.Kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations()
	rev := h.config.Revision
	if rev == "" {
		rev = inject.DefaultRevision
	}
	list, err := hooks.List(ctx, metav1.ListOptions{LabelSelector: label.IoIstioRev.Name + "=" + rev})
	if err != nil {
		return nil, "", fmt.Errorf("list mutatingwebhookconfigurations: %w", err)
	}
	for _, c := range list.Items {
		for _, w := range c.Webhooks {
			if !slices.Contains(policy.Entries(), w.Name) {
				continue
			}
			body, err := json.Marshal(map[string]any{
				"metadata": map[string]any{"uid": c.UID},
				"webhooks": []any{map[string]any{"name": w.Name, "clientConfig": map[string]any{"caBundle": nil}}},
			})
			if err != nil {
				return nil, "", err
			}
			after, err := hooks.Patch(ctx, c.Name, types.StrategicMergePatchType, body,
				metav1.PatchOptions{FieldManager: h.config.Manager, DryRun: []string{metav1.DryRunAll}})
			if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
				break // it was deleted or replaced meanwhile
			}
			if err != nil {
				return nil, "", fmt.Errorf("wipe a caBundle of %s as a dry run: %w", c.Name, err)
			}
			for _, a := range after.Webhooks {
				if a.Name == w.Name {
					return a.ClientConfig.CABundle, c.Name, nil
				}
			}
		}
	}
	return nil, "", nil
}

// follow gives a channel that is closed when the parameter is another one than that, or the watch ends, which is as good a reason to
// look again.
func follow(ctx context.Context, client dynamic.Interface, parameter *unstructured.Unstructured) <-chan struct{} {
	events, err := client.Resource(policy.ParameterResource).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", parameter.GetName()).String(), ResourceVersion: parameter.GetResourceVersion(),
	})
	if err != nil {
		return nil
	}
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		defer events.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case e, more := <-events.ResultChan():
				u, ok := e.Object.(*unstructured.Unstructured)
				if !more || e.Type != watch.Bookmark && !(ok && e.Type != watch.Deleted && reflect.DeepEqual(u.Object["spec"], parameter.Object["spec"])) {
					return
				}
			}
		}
	}()
	return changed
}

// tell reports a state that is another one than before.
func (h *Held) tell(s policy.State) {
	h.gauge.Set(0)
	if s.Held {
		h.gauge.Set(1)
	}
	before, fresh := h.note(s, time.Now())
	if before == s || fresh {
		return
	}
	if h.config.Report != nil {
		h.config.Report(s)
	}
	subject := &corev1.ObjectReference{APIVersion: "admissionregistration.k8s.io/v1", Kind: policy.Mutating, Name: policy.HeldName(h.config.Revision)}
	if !s.Wrong() && (!before.Held || s.Reason != policy.NotInstalled) {
		h.config.Log.Info("held webhooks", "held", s.Held, "reason", s.Reason, "message", s.Message)
		if s.Held && before.Wrong() {
			h.event(subject, corev1.EventTypeNormal, "WebhooksHeld", s.Message)
		}
		return
	}
	p := s.Problem(h.config.Revision)
	h.config.Log.Warn("problem", "code", p.Code, "object", p.Object.String(), "detail", p.Detail, "hint", p.Hint)
	if before.Reason != s.Reason {
		h.event(subject, corev1.EventTypeWarning, "WebhooksNotHeld", fmt.Sprintf("%s: %s; %s", p.Code, p.Detail, p.Hint))
	}
}

// note takes in a state and gives the one before. fresh says that it is wrong for so short a time that it is not told yet.
func (h *Held) note(s policy.State, now time.Time) (before policy.State, fresh bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before = h.state
	switch {
	case !s.Wrong():
		h.wrong = time.Time{}
	case h.wrong.IsZero():
		h.wrong = now
	}
	if s.Wrong() && now.Sub(h.wrong) < grace {
		return before, true
	}
	h.state = s
	return before, false
}

func (h *Held) event(subject *corev1.ObjectReference, eventtype, reason, message string) {
	if h.config.Events != nil {
		h.config.Events.Event(subject, eventtype, reason, message)
	}
}
