package verdict

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// Registered are the webhook configurations of a revision that the API server has; nil for one that is not there.
type Registered struct {
	Injector *admissionv1.MutatingWebhookConfiguration // the revision's own
	Probe    *admissionv1.MutatingWebhookConfiguration // of Mutating
}

// OfInjection reads the answer to a dry run of Pod.
func (n Names) OfInjection(got *corev1.Pod, err error, r Registered) Finding {
	switch {
	case err != nil && refusedForInit(err):
		return Finding{Verdict: OK} // injected, and refused for the rights of its init container: a matter of that namespace alone
	case err != nil:
		return Classify(err)
	case !hasSidecar(got):
		return n.notCalled(got, r)
	}
	if by := got.Annotations[label.IoIstioRev.Name]; by != n.revision() {
		return Finding{Verdict: WebhookMissing, Cause: oneLine(fmt.Sprintf("the pod got its sidecar from another control plane, of revision %q", by))}
	}
	return Finding{Verdict: OK}
}

// refusedForInit reports whether PodSecurity refused a pod because of what injection gave it.
func refusedForInit(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "violates PodSecurity") && strings.Contains(err.Error(), `"`+inject.InitContainer+`"`)
}

func hasSidecar(pod *corev1.Pod) bool {
	isSidecar := func(c corev1.Container) bool { return c.Name == inject.ProxyContainer }
	return slices.ContainsFunc(pod.Spec.Containers, isSidecar) || slices.ContainsFunc(pod.Spec.InitContainers, isSidecar)
}

// notCalled finds out why a pod came back without a sidecar though nothing failed.
func (n Names) notCalled(got *corev1.Pod, r Registered) Finding {
	name := n.Configuration(Injection).Name
	missing := func(format string, args ...any) Finding {
		return Finding{Verdict: WebhookMissing, Cause: fmt.Sprintf(format, args...)}
	}
	if r.Injector == nil {
		return missing("MutatingWebhookConfiguration %s does not exist", name)
	}
	i := slices.IndexFunc(r.Injector.Webhooks, func(w admissionv1.MutatingWebhook) bool { return w.Name == inject.RevisionObjectWebhook })
	if i < 0 {
		return missing("MutatingWebhookConfiguration %s has no entry %s", name, inject.RevisionObjectWebhook)
	}
	entry := &r.Injector.Webhooks[i]
	hidden := entry.FailurePolicy != nil && *entry.FailurePolicy == admissionv1.Ignore
	if hidden && got.Annotations[Annotation] == Answered && r.Probe != nil && len(r.Probe.Webhooks) == 1 {
		return n.hiddenCause(entry, &r.Probe.Webhooks[0])
	}
	if hidden {
		return missing("entry %s of MutatingWebhookConfiguration %s has failurePolicy Ignore, which hides the cause", entry.Name, name)
	}
	return missing("entry %s of MutatingWebhookConfiguration %s exists and was not called: its rules, selectors or matchConditions are not those of an installation, or the API server has not read it yet", entry.Name, name)
}

// hiddenCause is for an injector that fails open, while the probe's own webhook works: what differs between the two is the cause.
func (n Names) hiddenCause(injector, own *admissionv1.MutatingWebhook) Finding {
	where := fmt.Sprintf("entry %s of MutatingWebhookConfiguration %s, which has failurePolicy Ignore,", injector.Name, n.Configuration(Injection).Name)
	a, b := injector.ClientConfig, own.ClientConfig
	switch {
	case !bytes.Equal(a.CABundle, b.CABundle):
		return Finding{Verdict: X509, Webhook: injector.Name, Cause: where + " has another caBundle than the one with which the control plane is reached"}
	case (a.Service == nil) != (b.Service == nil), a.Service != nil && (a.Service.Name != b.Service.Name || a.Service.Namespace != b.Service.Namespace):
		return Finding{Verdict: ServiceMissing, Webhook: injector.Name, Cause: where + " leads elsewhere than to the control plane"}
	}
	return Finding{Verdict: WebhookMissing, Webhook: injector.Name, Cause: where + " was not called, or its failure was hidden"}
}
