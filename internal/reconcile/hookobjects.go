package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-mesh/selvage/internal/admission"
)

// observe reads every configuration of the revision from the cache.
func (l *webhookLoop) observe() (all []admission.Configuration) {
	mutating, _ := l.mutating.List(labels.Everything()) // a lister of a cache cannot fail
	for _, c := range mutating {
		all = append(all, mutatingConfiguration(c))
	}
	validating, _ := l.validating.List(labels.Everything())
	for _, c := range validating {
		all = append(all, validatingConfiguration(c))
	}
	return all
}

// get reads one configuration from the cache, nil when there is none.
func (l *webhookLoop) get(k admission.Key) hookObject {
	if k.Kind == admission.Mutating {
		if c, err := l.mutating.Get(k.Name); err == nil {
			return c
		}
	} else if c, err := l.validating.Get(k.Name); err == nil {
		return c
	}
	return nil
}

func mutatingConfiguration(c *admissionv1.MutatingWebhookConfiguration) admission.Configuration {
	out := configuration(admission.Mutating, c)
	for _, w := range c.Webhooks {
		out.Entries = append(out.Entries, entry(w.Name, w.ClientConfig, w.FailurePolicy))
	}
	return out
}

func validatingConfiguration(c *admissionv1.ValidatingWebhookConfiguration) admission.Configuration {
	out := configuration(admission.Validating, c)
	for _, w := range c.Webhooks {
		out.Entries = append(out.Entries, entry(w.Name, w.ClientConfig, w.FailurePolicy))
	}
	return out
}

func entry(name string, client admissionv1.WebhookClientConfig, policy *admissionv1.FailurePolicyType) admission.Entry {
	e := admission.Entry{Name: name, CABundle: client.CABundle, FailurePolicy: admission.Fail} // the API's default
	if policy != nil {
		e.FailurePolicy = admission.Policy(*policy)
	}
	return e
}

func configuration(kind admission.Kind, m metav1.Object) admission.Configuration {
	return admission.Configuration{
		Key: admission.Key{Kind: kind, Name: m.GetName()}, UID: string(m.GetUID()), Generation: m.GetGeneration(), Labels: m.GetLabels(),
		Hold: m.GetAnnotations()[admission.HoldAnnotation] == string(admission.Ignore), Managed: m.GetManagedFields(),
	}
}

// write applies one patch: see Webhooks for why it has this form.
func (w *Webhooks) write(ctx context.Context, patch admission.Patch) error {
	type clientConfig struct {
		CABundle []byte `json:"caBundle"`
	}
	type entry struct {
		Name          string           `json:"name"`
		ClientConfig  *clientConfig    `json:"clientConfig,omitempty"`
		FailurePolicy admission.Policy `json:"failurePolicy,omitempty"`
	}
	body := struct {
		Metadata map[string]string `json:"metadata"`
		Webhooks []entry           `json:"webhooks"`
	}{Metadata: map[string]string{"uid": patch.UID}}
	for _, d := range patch.Entries {
		e := entry{Name: d.Name, FailurePolicy: d.Policy}
		if d.Bundle != admission.Right {
			e.ClientConfig = &clientConfig{patch.CABundle}
		}
		body.Webhooks = append(body.Webhooks, e)
	}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: BundleManager}
	hooks := w.config.Kubernetes.AdmissionregistrationV1()
	var stored admission.Configuration
	if patch.Kind == admission.Mutating {
		var after *admissionv1.MutatingWebhookConfiguration
		if after, err = hooks.MutatingWebhookConfigurations().Patch(ctx, patch.Name, types.StrategicMergePatchType, data, options); err == nil {
			stored = mutatingConfiguration(after)
		}
	} else {
		var after *admissionv1.ValidatingWebhookConfiguration
		if after, err = hooks.ValidatingWebhookConfigurations().Patch(ctx, patch.Name, types.StrategicMergePatchType, data, options); err == nil {
			stored = validatingConfiguration(after)
		}
	}
	if err != nil {
		return err
	}
	return overruled(patch, stored)
}

// errOverruled is told when a policy has changed what was written.
var errOverruled = errors.New("the API server has stored another caBundle than was written: an admission policy overrules it " +
	"(kubectl get mutatingadmissionpolicies; SEL0046)")

// overruled is the error of a write that an admission policy has changed on its way: one of ours whose API server has not heard of a
// new bundle yet, or somebody else's. No event may follow, so the write has to be tried again.
func overruled(patch admission.Patch, stored admission.Configuration) error {
	for _, d := range patch.Entries {
		for _, e := range stored.Entries {
			if e.Name == d.Name && d.Bundle != admission.Right && !bytes.Equal(e.CABundle, patch.CABundle) {
				return fmt.Errorf("%w, entry %s", errOverruled, e.Name)
			}
		}
	}
	return nil
}
