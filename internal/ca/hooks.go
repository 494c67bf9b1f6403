package ca

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"slices"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/admission"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// hook is one entry of a webhook configuration.
type hook struct {
	kind     admission.Kind
	config   string
	revision string // of the configuration's label
	ours     bool   // Selvage made the configuration
	entry    string
	bundle   []byte
}

// hookNames are how a kind is called in front of a configuration's name.
var hookNames = map[admission.Kind]string{admission.Mutating: "mutating/", admission.Validating: "validating/"}

// webhooks counts the entries of webhook configurations that must have the roots, whatever revision or tag they are of.
func (r *Rotation) webhooks(ctx context.Context, s state, w trust.Wanted) (trust.Count, error) {
	roots, err := pki.MergeRoots(s.record.fromRoots(), s.record.toRoots, s.record.others, r.authority.RootPEM())
	if err != nil {
		return trust.Count{}, err
	}
	known, err := pki.ParseCertificates(roots)
	if err != nil {
		return trust.Count{}, err
	}
	hooks, err := r.authority.hooks(ctx)
	if err != nil {
		return trust.Count{}, err
	}
	return acknowledgedHooks(hooks, r.authority.config.Revision, known, w), nil
}

// hooks reads all entries.
func (a *Authority) hooks(ctx context.Context) (hooks []hook, err error) {
	add := func(kind admission.Kind, c metav1.Object, entry string, client admissionv1.WebhookClientConfig) {
		labels := c.GetLabels()
		hooks = append(hooks, hook{kind: kind, config: c.GetName(), revision: labels[label.IoIstioRev.Name], ours: labels[markLabel] == owner || labels[ownerLabel] == owner,
			entry: entry, bundle: client.CABundle})
	}
	client := a.config.Kubernetes.AdmissionregistrationV1()
	mutating, err := client.MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list mutating webhook configurations: %w", err)
	}
	for i := range mutating.Items {
		c := &mutating.Items[i]
		for _, h := range c.Webhooks {
			add(admission.Mutating, c, h.Name, h.ClientConfig)
		}
	}
	validating, err := client.ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list validating webhook configurations: %w", err)
	}
	for i := range validating.Items {
		c := &validating.Items[i]
		for _, h := range c.Webhooks {
			add(admission.Validating, c, h.Name, h.ClientConfig)
		}
	}
	return hooks, nil
}

// acknowledgedHooks counts the entries that must have the roots: those that a control plane of Selvage keeps, whatever they hold now
// (nothing and garbage are mended by the replica that has the lease, which may be one that has not heard of the roots yet), and those
// of others that trust a root of ours, such as an Istio's that shares cacerts. revision is this control plane's.
func acknowledgedHooks(hooks []hook, revision string, known []*x509.Certificate, w trust.Wanted) trust.Count {
	revisions := map[string]bool{cmp.Or(revision, "default"): true}
	for _, h := range hooks {
		if h.ours && h.revision != "" {
			revisions[h.revision] = true
		}
	}
	total, waiting := 0, []string(nil)
	for _, h := range hooks {
		certs, err := pki.ParseCertificates(h.bundle)
		kept := revisions[h.revision] && admission.Keeps(h.kind, h.entry)
		trusts := err == nil && slices.ContainsFunc(known, func(c *x509.Certificate) bool { return slices.ContainsFunc(certs, c.Equal) })
		if !kept && !trusts {
			continue
		}
		total++
		if hash, err := pki.BundleHash(h.bundle); err != nil || hash != w.Roots {
			waiting = append(waiting, hookNames[h.kind]+h.config)
		}
	}
	return trust.Counted(total, waiting)
}
