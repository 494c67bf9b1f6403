package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

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

// report shows how far it is.
func (r *Rotation) report(ctx context.Context, s state, held *root, gates []trust.Gate) error {
	status := trust.Status{Source: r.authority.describe(s), Signing: identify(held.signs()), Hash: held.hash, Stage: held.stage, Gates: gates}
	roots, err := pki.ParseCertificates(held.pem)
	if err != nil {
		return err
	}
	for _, root := range roots {
		id := identify(root)
		id.Signs = root.Equal(held.leadsTo())
		status.Roots = append(status.Roots, id)
	}
	if s.record != nil {
		since := s.record.since.UTC()
		status.Since, status.KeyLost = &since, s.record.keyLost()
	}
	namespaces, _ := r.config.Distribution()
	for _, p := range append(r.authority.Problems(), namespaces...) {
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

// reportNothing shows why nothing signs: what a process that has ended said of its own root is of no use then. A first root that is on its
// way is no reason.
func (r *Rotation) reportNothing(ctx context.Context, s state) error {
	status := trust.Status{Source: r.authority.describe(s), Stage: trust.Stable}
	for _, p := range r.authority.Problems() {
		status.Problems = append(status.Problems, p.String())
	}
	if len(status.Problems) == 0 {
		return nil
	}
	return r.board.show(ctx, status)
}

func (a *Authority) describe(s state) string {
	if a.config.Elsewhere != nil {
		return a.config.Elsewhere.String()
	}
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
		Hint: "`selvage ca status` shows who is waited for; restart or remove those pods: a new one begins with the new roots. " +
			"Webhooks whose control plane is gone: `selvage revision prune`",
	}
}
