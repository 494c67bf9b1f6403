package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
	"github.com/selvage-mesh/selvage/internal/revision"
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
	i.say("probing: would a pod get its sidecar?")
	names := verdict.Names{Revision: o.revision(), Namespace: Namespace}
	start := time.Now()
	var last verdict.Finding
	err := i.until(ctx, "injection", func(ctx context.Context) (bool, string, error) {
		f, fatal := i.dryRun(ctx, names)
		if fatal != nil || ctx.Err() != nil {
			return false, "", fatal // when the time is over what was seen before stands
		}
		last = f
		p, wrong := names.Problem(verdict.Injection, f)
		return !wrong, p.Detail, nil
	})
	var timeout *TimeoutError
	if errors.As(err, &timeout) {
		p, _ := names.Problem(verdict.Injection, last)
		return &Verdict{Revision: o.revision(), Detail: fmt.Sprintf("%s [%s]. Next: %s", timeout.Error(), p.Code, p.Hint)}, nil
	}
	if err != nil {
		return nil, err
	}
	return &Verdict{Revision: o.revision(), Injects: true, After: time.Since(start)}, nil
}

// dryRun asks once. It fails when it is of no use to ask again.
func (i *Installer) dryRun(ctx context.Context, names verdict.Names) (verdict.Finding, error) {
	got, err := i.kubernetes.CoreV1().Pods(verdict.Namespace).Create(ctx, verdict.Pod(names.Revision, verdict.Namespace), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	var known verdict.Registered
	if err == nil { // without a sidecar, the configurations say why
		known.Injector = i.hook(ctx, names.Configuration(verdict.Injection).Name)
		known.Probe = i.hook(ctx, verdict.ConfigurationName(names.Revision))
	}
	f := names.OfInjection(got, err, known)
	if f.Verdict == verdict.RBAC || apierrors.IsUnauthorized(err) {
		return f, fmt.Errorf("create pod as a dry run: %w", err)
	}
	return f, nil
}

// hook reads a configuration; nil when there is none, or it cannot be read.
func (i *Installer) hook(ctx context.Context, name string) *admissionv1.MutatingWebhookConfiguration {
	c, err := i.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return c
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
		if revision.IsOurs(c.Labels) {
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
