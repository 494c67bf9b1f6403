package ca

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// certificates are those of the authority and its own, for what can be said about their ends.
func (a *Authority) certificates() (list []trust.Certificate) {
	r := a.root.Load()
	if r == nil {
		return nil
	}
	a.mu.Lock()
	object := ref.Ref{Kind: "Secret", Namespace: a.config.Namespace, Name: a.state.secretName()}
	a.mu.Unlock()
	e := a.config.Elsewhere
	if e != nil {
		object = e.RootsAt
	}
	for n, cert := range r.path {
		use := trust.Intermediate
		if n == len(r.path)-1 {
			use = trust.Root
		}
		list = append(list, trust.Certificate{Use: use, Object: object, Subject: cert.Subject.String(), Begins: cert.NotBefore, Ends: cert.NotAfter, Elsewhere: e != nil})
	}
	a.serving.mu.Lock()
	defer a.serving.mu.Unlock()
	cert, holder := a.serving.cert, ref.Ref{Kind: "Service", Namespace: a.config.Namespace, Name: a.serviceName()}
	if e != nil {
		cert = r.serving
		if e.ServingSecret != "" {
			holder = ref.Ref{Kind: "Secret", Namespace: a.config.Namespace, Name: e.ServingSecret}
		}
	}
	if cert != nil {
		list = append(list, trust.Certificate{Use: trust.Serving, Object: holder, Begins: cert.Leaf.NotBefore, Ends: cert.Leaf.NotAfter,
			Elsewhere: e != nil && e.ServingSecret != ""})
	}
	return list
}

// expiry is the earliest end of the certificates of a use, the zero time when there is none. For Intermediate it is that of all
// that leads from what signs to its root.
func (a *Authority) expiry(use trust.Use) (end time.Time) {
	for _, c := range a.certificates() {
		counts := c.Use == use || use == trust.Intermediate && c.Use == trust.Root
		if counts && (end.IsZero() || c.Ends.Before(end)) {
			end = c.Ends
		}
	}
	return end
}

// tellExpiring logs, tells and counts what expires, each certificate once for a severity.
func (a *Authority) tellExpiring() {
	certs := a.certificates()
	if a.config.Workloads != nil {
		certs = append(certs, a.config.Workloads()...)
	}
	told := map[ref.Ref]diag.Severity{}
	counts := map[string]int{}
	for _, p := range trust.Expiring(certs, time.Now()) {
		counts[p.Severity.String()]++
		if told[p.Object] >= p.Severity {
			continue
		}
		told[p.Object] = p.Severity
		if a.told[p.Object] >= p.Severity {
			continue
		}
		a.log.Warn("a certificate expires", "problem", p.String())
		a.tellObject(p.Object, corev1.EventTypeWarning, "CertificateExpires", p.Detail+"; "+p.Hint)
	}
	for _, s := range []diag.Severity{diag.Warning, diag.Error} {
		a.metrics.expiring.WithLabelValues(s.String()).Set(float64(counts[s.String()]))
	}
	a.told = told
}
