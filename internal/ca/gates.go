package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// wanted is what everybody is to acknowledge at a stage.
func wanted(record *rotation, held *root) trust.Wanted {
	return trust.Wanted{Stage: record.stage, Since: record.since, Roots: held.hash, Root: record.to}
}

// gates looks at what stands before the next stage.
func (r *Rotation) gates(ctx context.Context, s state, held *root) ([]trust.Gate, error) {
	w := wanted(s.record, held)
	hooks, err := r.webhooks(ctx, s, w)
	if err != nil {
		return nil, err
	}
	replicas, proxies, err := r.board.replicas(ctx, w)
	if err != nil {
		return nil, err
	}
	return []trust.Gate{
		{Name: trust.NamespacesGate, Count: r.config.Namespaces()},
		{Name: trust.WebhooksGate, Count: hooks},
		{Name: trust.ReplicasGate, Count: replicas},
		{Name: trust.ProxiesGate, Count: proxies},
	}, nil
}

// webhooks counts the entries of webhook configurations that trust this mesh's authority, old or new: whatever revision or tag they
// are of.
func (r *Rotation) webhooks(ctx context.Context, s state, w trust.Wanted) (trust.Count, error) {
	ours, err := pki.MergeRoots(s.record.fromRoots(), s.record.toRoots, s.record.others, r.authority.RootPEM())
	if err != nil {
		return trust.Count{}, err
	}
	known, err := pki.ParseCertificates(ours)
	if err != nil {
		return trust.Count{}, err
	}
	total, waiting := 0, []string(nil)
	look := func(kind, name string, client admissionv1.WebhookClientConfig) {
		certs, err := pki.ParseCertificates(client.CABundle)
		isOurs := err == nil && slices.ContainsFunc(known, func(c *x509.Certificate) bool { return slices.ContainsFunc(certs, c.Equal) })
		if !isOurs {
			return // somebody else's, or one that does not work anyway: whoever mends it puts the new roots in
		}
		total++
		if hash, err := pki.BundleHash(client.CABundle); err != nil || hash != w.Roots {
			waiting = append(waiting, kind+"/"+name)
		}
	}
	hooks := r.authority.config.Kubernetes.AdmissionregistrationV1()
	mutating, err := hooks.MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return trust.Count{}, fmt.Errorf("list mutating webhook configurations: %w", err)
	}
	for _, c := range mutating.Items {
		for _, h := range c.Webhooks {
			look("mutating", c.Name, h.ClientConfig)
		}
	}
	validating, err := hooks.ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return trust.Count{}, fmt.Errorf("list validating webhook configurations: %w", err)
	}
	for _, c := range validating.Items {
		for _, h := range c.Webhooks {
			look("validating", c.Name, h.ClientConfig)
		}
	}
	return trust.Counted(total, waiting), nil
}

// report shows how far it is.
func (r *Rotation) report(ctx context.Context, s state, held *root, gates []trust.Gate) error {
	status := trust.Status{Source: s.describe(), Signing: identify(held.issuer.Certificate()), Hash: held.hash, Stage: held.stage, Gates: gates}
	roots, err := pki.ParseCertificates(held.issuer.RootPEM())
	if err != nil {
		return err
	}
	for _, root := range roots {
		id := identify(root)
		id.Signs = root.Equal(held.issuer.Root())
		status.Roots = append(status.Roots, id)
	}
	if s.record != nil {
		since := s.record.since.UTC()
		status.Since = &since
	}
	for _, p := range r.authority.Problems() {
		status.Problems = append(status.Problems, p.String())
	}
	r.stages.Reset()
	r.stages.WithLabelValues(string(held.stage)).Set(1)
	r.waiting.Reset()
	for _, g := range gates {
		r.waiting.WithLabelValues(g.Name).Set(float64(g.Total - g.Done))
	}
	return r.board.show(ctx, status)
}

func (s state) describe() string {
	if s.plugged {
		return "plugged in (Secret " + pluggedName + ")"
	}
	return trust.SelfSigned + " (Secret " + secretName + ")"
}

func identify(c *x509.Certificate) trust.Identification {
	return trust.Identification{Subject: c.Subject.String(), Fingerprint: pki.Fingerprint(c), NotAfter: c.NotAfter.UTC()}
}

// blockedProblem is that of a stage whose gates stay closed.
func (r *Rotation) blockedProblem(s state, closed []string) diag.Problem {
	return diag.Problem{Code: diag.RotationBlocked, Severity: diag.Warning,
		Object: ref.Ref{Kind: "Secret", Namespace: r.authority.config.Namespace, Name: s.secretName()},
		Detail: fmt.Sprintf("the change of the root is at %q since %s: %s", s.record.stage, s.record.since.UTC().Format(time.RFC3339), strings.Join(closed, "; ")),
		Hint:   "`selvage ca status` shows who is waited for; restart or remove those pods: a new one begins with the new roots",
	}
}
