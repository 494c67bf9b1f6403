package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// Verdict is what an installation came to.
type Verdict struct {
	Revision string        `json:"revision"`
	Injects  bool          `json:"injects"` // a pod that asked for a sidecar got one
	Detail   string        `json:"detail"`  // the cause when not
	After    time.Duration `json:"-"`       // how long the probe took
}

// injectorSuffix ends the name of every injecting webhook, Istio's too.
const injectorSuffix = "sidecar-injector.istio.io"

// Probe asks the API server to create a pod that wants a sidecar, as a dry run: nothing is stored and nothing runs, but the
// whole path is real, from the API server through the Service, the network and TLS to the webhook. It tries until the pod
// comes back with a sidecar or the time is over; the Verdict then carries the last cause.
func (i *Installer) Probe(ctx context.Context, o Options) (*Verdict, error) {
	where, err := i.probeNamespace(ctx)
	if err != nil {
		return nil, err
	}
	i.say("probing: would a pod in namespace %s get its sidecar?", where)
	start := time.Now()
	err = i.until(ctx, "injection", func(ctx context.Context) (bool, string, error) {
		got, refused := i.kubernetes.CoreV1().Pods(where).Create(ctx, o.probePod(where), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if ctx.Err() != nil {
			return false, "", nil //nolint:nilerr // the time is over: what was seen before stands
		}
		reason, fatal := o.probeResult(got, refused)
		return reason == "", reason, fatal
	})
	var timeout *TimeoutError
	if errors.As(err, &timeout) {
		return &Verdict{Revision: o.revision(), Detail: timeout.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	return &Verdict{Revision: o.revision(), Injects: true, After: time.Since(start)}, nil
}

// probeResult reads one answer: "" when the pod was injected, otherwise the reason why not; an error when it is of no use to
// ask again.
func (o Options) probeResult(pod *corev1.Pod, err error) (reason string, fatal error) {
	switch {
	case err == nil && hasSidecar(pod):
		if by := pod.Annotations[label.IoIstioRev.Name]; by != o.revision() {
			return fmt.Sprintf("the pod got its sidecar from another control plane, of revision %q", by), nil
		}
		return "", nil
	case err == nil:
		return "the pod came back without a sidecar: no webhook was called for it", nil
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "violates PodSecurity") && strings.Contains(err.Error(), `"`+inject.InitContainer+`"`):
		return "", nil // injected, and refused for the rights of its init container: a matter of that namespace alone
	case apierrors.IsForbidden(err) && !strings.Contains(err.Error(), "webhook"):
		return "", fmt.Errorf("create pod as a dry run: %w", err)
	case apierrors.IsUnauthorized(err):
		return "", fmt.Errorf("create pod as a dry run: %w", err)
	}
	return classify(err.Error()), nil
}

// classify puts the cause of a failed webhook call first, in words that say what to do.
func classify(message string) string {
	for _, c := range []struct{ part, cause string }{
		{"no endpoints available", "the Service has no ready endpoint: is the control plane running?"},
		{"service \"" + appName, "the webhook's Service does not exist"},
		{"x509:", "the API server does not trust the webhook's certificate yet (caBundle)"},
		{"connection refused", "the webhook's port refuses connections"},
		{"context deadline exceeded", "the webhook does not answer in time: a firewall between the API server and port 15017?"},
		{"Client.Timeout", "the webhook does not answer in time: a firewall between the API server and port 15017?"},
		{"no route to host", "the API server has no route to the webhook"},
	} {
		if strings.Contains(message, c.part) {
			return c.cause + " [" + message + "]"
		}
	}
	return message
}

func hasSidecar(pod *corev1.Pod) bool {
	isSidecar := func(c corev1.Container) bool { return c.Name == inject.ProxyContainer }
	return slices.ContainsFunc(pod.Spec.Containers, isSidecar) || slices.ContainsFunc(pod.Spec.InitContainers, isSidecar)
}

// probePod is a pod that asks for a sidecar of this revision by its own labels.
func (o Options) probePod(namespace string) *corev1.Pod {
	no, yes, user := false, true, int64(65534)
	own := map[string]string{injectLabel: "true"}
	if o.revision() != DefaultRevision {
		own[label.IoIstioRev.Name] = o.revision()
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "selvage-probe-", Namespace: namespace, Labels: own},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{Name: "probe", Image: "selvage.invalid/probe", SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}}},
		},
	}
}

// probeNamespace finds a namespace whose own labels do not decide about injection, so that the pod's do: "default", or the
// first other one.
func (i *Installer) probeNamespace(ctx context.Context) (string, error) {
	list, err := i.kubernetes.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("list namespaces to probe in: %w", err)
	}
	first := ""
	for _, ns := range list.Items {
		_, decided := ns.Labels[inject.NamespaceInjection]
		_, pinned := ns.Labels[label.IoIstioRev.Name]
		if decided || pinned || ns.Name == Namespace || strings.HasPrefix(ns.Name, "kube-") || ns.DeletionTimestamp != nil {
			continue
		}
		if ns.Name == metav1.NamespaceDefault {
			return ns.Name, nil
		}
		if first == "" {
			first = ns.Name
		}
	}
	if first == "" {
		return metav1.NamespaceDefault, nil
	}
	return first, nil
}

// warnOfRivals names webhooks of others that inject the same pods as this revision's would. Both are harmless, the second
// one to be called finds the sidecar there, but which is the second nobody knows.
func (i *Installer) warnOfRivals(ctx context.Context, o Options) error {
	list, err := i.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list mutatingwebhookconfigurations: %w", err)
	}
	probe := metav1.LabelSelector{MatchLabels: map[string]string{inject.NamespaceInjection: "enabled"}}
	if o.revision() != DefaultRevision {
		probe.MatchLabels = map[string]string{label.IoIstioRev.Name: o.revision()}
	}
	for _, c := range list.Items {
		if c.Labels[OwnerLabel] == Owner {
			continue
		}
		if slices.ContainsFunc(c.Webhooks, func(w admissionv1.MutatingWebhook) bool {
			return strings.HasSuffix(w.Name, injectorSuffix) && selects(w.NamespaceSelector, probe.MatchLabels)
		}) {
			i.say("warning: MutatingWebhookConfiguration %s, which is not Selvage's, injects sidecars into the same namespaces", c.Name)
		}
	}
	return nil
}

// selects reports whether a namespace with these labels matches the selector.
func selects(s *metav1.LabelSelector, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(set))
}
