package revision

import (
	"cmp"
	"fmt"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// DefaultValidator is the name of the validating configuration, Istio's, for objects that name no revision. It calls whichever revision
// is the default. Selvage needs none, because each of its revisions validates such objects by its own configuration; but one that is
// there, of an Istio beside or before it, has to follow the default tag, or it calls a control plane that is gone.
const DefaultValidator = "istiod-default-validator"

// Validator is what a change of the default tag comes to for objects that name no revision: one write of one object, none when both are
// nil.
type Validator struct {
	Before *admissionv1.ValidatingWebhookConfiguration // nil when After is new
	After  *admissionv1.ValidatingWebhookConfiguration // nil when Before goes
}

// Changes reports whether there is anything to write.
func (v Validator) Changes() bool { return v.Before != nil || v.After != nil }

// FollowDefault decides what to write so that the revision, which the default tag leads to now, validates objects that name none. A
// configuration that is there keeps its selectors, its failurePolicy and all else: what its entries call, and whom it names, become the
// revision's. One is made where the revision's own does not look at such objects. With revision "" there is no default any more: what
// Selvage made goes, and somebody else's stays as it is.
func FollowDefault(observed []admissionv1.ValidatingWebhookConfiguration, revision string) (Validator, error) {
	var before, own *admissionv1.ValidatingWebhookConfiguration
	for i := range observed {
		c := &observed[i]
		_, ok := OfValidating(c)
		switch {
		case c.Name == DefaultValidator:
			before = c
		case ok && cmp.Or(c.Labels[label.IoIstioRev.Name], inject.DefaultRevision) == revision && c.Labels[label.IoIstioTag.Name] == "":
			own = c
		}
	}
	if revision == "" {
		if before != nil && IsOurs(before.Labels) {
			return Validator{Before: before}, nil
		}
		return Validator{}, nil
	}
	if own == nil {
		if before == nil || before.Labels[label.IoIstioRev.Name] == revision {
			return Validator{}, nil // that revision validates nothing
		}
		return Validator{}, fmt.Errorf("ValidatingWebhookConfiguration %s calls revision %s still: revision %s has no validating configuration whose calls it could take over",
			DefaultValidator, cmp.Or(before.Labels[label.IoIstioRev.Name], inject.DefaultRevision), revision)
	}
	entry := entryOf(own)
	if before == nil {
		if looksAtUnlabelled(own) {
			return Validator{}, nil
		}
		return Validator{After: newDefaultValidator(entry, revision)}, nil
	}
	after := before.DeepCopy()
	if after.Labels == nil {
		after.Labels = map[string]string{}
	}
	after.Labels[label.IoIstioRev.Name], after.Labels[label.IoIstioTag.Name] = revision, inject.DefaultTag
	for i := range after.Webhooks {
		if isMesh(Validating, after.Webhooks[i].Name) {
			after.Webhooks[i].ClientConfig = *entry.ClientConfig.DeepCopy()
		}
	}
	if before.Labels[label.IoIstioRev.Name] == revision && sameCalls(before, after) {
		return Validator{}, nil
	}
	return Validator{Before: before, After: after}, nil
}

// entryOf is the first entry of a mesh; there is one.
func entryOf(c *admissionv1.ValidatingWebhookConfiguration) *admissionv1.ValidatingWebhook {
	for i := range c.Webhooks {
		if isMesh(Validating, c.Webhooks[i].Name) {
			return &c.Webhooks[i]
		}
	}
	return nil
}

// looksAtUnlabelled reports whether an entry of a mesh is called for objects that name no revision.
func looksAtUnlabelled(c *admissionv1.ValidatingWebhookConfiguration) bool {
	for _, w := range c.Webhooks {
		selector, err := metav1.LabelSelectorAsSelector(w.ObjectSelector)
		if isMesh(Validating, w.Name) && (w.ObjectSelector == nil || err == nil && selector.Matches(noLabels{})) {
			return true
		}
	}
	return false
}

// noLabels are an object's that has none.
type noLabels struct{}

func (noLabels) Has(string) bool              { return false }
func (noLabels) Get(string) string            { return "" }
func (noLabels) Lookup(string) (string, bool) { return "", false }

// sameCalls reports whether both call the same, bundles aside, which the control plane keeps.
func sameCalls(a, b *admissionv1.ValidatingWebhookConfiguration) bool {
	for i := range a.Webhooks {
		x, y := a.Webhooks[i].ClientConfig, b.Webhooks[i].ClientConfig
		if callOf(x) != callOf(y) {
			return false
		}
	}
	return true
}

func callOf(c admissionv1.WebhookClientConfig) string {
	switch {
	case c.Service != nil:
		path, port := "", int32(443)
		if c.Service.Path != nil {
			path = *c.Service.Path
		}
		if c.Service.Port != nil {
			port = *c.Service.Port
		}
		return fmt.Sprintf("%s/%s:%d%s", c.Service.Namespace, c.Service.Name, port, path)
	case c.URL != nil:
		return *c.URL
	}
	return ""
}

// newDefaultValidator makes one like the revision's own, for objects that name none. Its failurePolicy is Ignore until the revision's
// control plane says otherwise.
func newDefaultValidator(entry *admissionv1.ValidatingWebhook, revision string) *admissionv1.ValidatingWebhookConfiguration {
	w, ignore := *entry.DeepCopy(), admissionv1.Ignore
	w.Name, w.FailurePolicy = suffixes[Validating], &ignore
	w.ObjectSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: label.IoIstioRev.Name, Operator: metav1.LabelSelectorOpDoesNotExist}}}
	return &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: DefaultValidator, Labels: map[string]string{
			OwnerLabel: Owner, ManagedByLabel: Owner, "app": ControlPlaneApp, label.IoIstioRev.Name: revision, label.IoIstioTag.Name: inject.DefaultTag}},
		Webhooks: []admissionv1.ValidatingWebhook{w},
	}
}
