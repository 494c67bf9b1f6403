package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

const (
	// rootsConfigMap is where every namespace has what it trusts; the name is Istio's, rootsKey its key.
	rootsConfigMap = "istio-ca-root-cert"
	// maxFormer is how many former roots are trusted at most when their keys are lost.
	maxFormer = 10
)

// createRoot writes Secret istio-ca-secret where there is none. The root is the one in memory when somebody deleted the Secret from
// under a running mesh; else one that a change under way has stored; else a new one. What workloads were told to trust before stays
// trusted beside a new one until none of them has a certificate of it: the key is lost, so the new root has to sign at once.
func (a *Authority) createRoot(ctx context.Context) (*pki.Issuer, error) {
	if held := a.heldRoot(); held != nil {
		return held, a.storeRoot(ctx, held, "RootPutBack", "the Secret was deleted, and has been written again from memory: nothing changes")
	}
	record, err := a.readRotation(ctx)
	var broken *recordError
	if err != nil && !errors.As(err, &broken) {
		return nil, err
	}
	if record != nil {
		for _, known := range []*pki.Issuer{record.next, record.from} {
			if known == nil || !known.IsRoot() {
				continue
			}
			if _, err := a.usable(known); err == nil {
				return known, a.storeRoot(ctx, known, "RootPutBack", fmt.Sprintf("the Secret was lost while the root changed: %s, which Secret %s holds, has been written into it", rootName(known.Root()), rotationName))
			}
		}
	}
	// Before a key is made, which takes time: another replica's first root, distributed meanwhile, is no former one.
	former, err := a.formerRoots(ctx)
	if err != nil {
		return nil, err
	}
	issuer, err := pki.NewRootOf(a.config.Key, a.config.TrustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	issuer = issuer.ServingWith(a.config.Key)
	if broken != nil || len(former) == 0 { // a record that nobody can read is not written over: what is in it, and former, are trusted at a start
		return issuer, a.storeRoot(ctx, issuer, "RootMade", "the mesh has a root: "+rootName(issuer.Root()))
	}
	lost := begin(trust.Sign, nil, issuer, time.Now())
	lost.next = issuer
	for _, cert := range former {
		lost.others = append(lost.others, pki.EncodeCertificate(cert)...)
	}
	if record != nil {
		lost.version = record.version
		lost.others, _ = pki.MergeRoots(lost.others, record.fromRoots(), record.toRoots, record.others) // all were read before
	}
	// The record first: whoever comes after a process that ends here makes no second root, but stores this one.
	if err := a.writeRotation(ctx, lost); err != nil {
		return nil, err
	}
	p := a.lostProblem(lost)
	a.log.Warn("the root of the mesh was lost", "problem", p.String())
	a.tell(secretName, corev1.EventTypeWarning, "RootLost", p.Detail+"; "+p.Hint)
	return issuer, a.storeRoot(ctx, issuer, "", "")
}

// storeRoot makes Secret istio-ca-secret and tells why, unless reason is empty.
func (a *Authority) storeRoot(ctx context.Context, issuer *pki.Issuer, reason, message string) error {
	secret, err := a.rootSecret(issuer)
	if err != nil {
		return err
	}
	if _, err := a.config.Kubernetes.CoreV1().Secrets(a.config.Namespace).Create(ctx, secret, metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
		return err
	}
	a.log.Info("root Secret written", "secret", a.config.Namespace+"/"+secretName, "root", rootOf(issuer), "why", message)
	if reason != "" {
		a.tell(secretName, corev1.EventTypeNormal, reason, message)
	}
	return nil
}

// formerRoots are the roots that workloads were told to trust before, by the ConfigMap in the control plane's own namespace: who may
// write one elsewhere has no say in what the mesh trusts. Those that have ended are of no use.
func (a *Authority) formerRoots(ctx context.Context) (former []*x509.Certificate, err error) {
	cm, err := a.config.Kubernetes.CoreV1().ConfigMaps(a.config.Namespace).Get(ctx, rootsConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case apierrors.IsForbidden(err): // rights of an earlier release's installation
		a.log.Warn("cannot tell whether there was a root before; a new one is made", "error", err,
			"hint", "let the control plane get ConfigMap "+rootsConfigMap+" in its namespace: `selvage install` grants it")
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read the roots that were trusted before: %w", err)
	}
	for _, cert := range readable([]byte(cm.Data[rootsKey])) {
		if time.Now().Before(cert.NotAfter) && len(former) < maxFormer {
			former = append(former, cert)
		}
	}
	return former, nil
}

// readable gives the authorities' certificates among what may be garbage.
func readable(data []byte) (certs []*x509.Certificate) {
	for _, block := range pki.Blocks(data) {
		if cert, err := pki.ParseCertificates(block); err == nil && cert[0].IsCA {
			certs = append(certs, cert[0])
		}
	}
	return certs
}

// keyLost reports whether a former root is trusted whose key nobody has any more.
func (r *rotation) keyLost() bool { return r.stage == trust.Sign && r.from == nil && len(r.others) > 0 }

// lostProblem is what to know while a root is trusted whose key is lost.
func (a *Authority) lostProblem(r *rotation) *diag.Problem {
	p := a.secretProblem(diag.RootLost, secretName)
	p.Severity = diag.Warning
	p.Detail = fmt.Sprintf("the key of %s was lost while no control plane ran: a new root (sha256 %s) signs since %s, and both are trusted until every sidecar has a certificate of the new one",
		strings.Join(rootNames(readable(r.others)), ", "), brief(r.to), r.since.UTC().Format(time.RFC3339))
	p.Hint = "a sidecar that has not heard of the new root refuses those that have a certificate of it: within about a minute all have, and a restarted pod has at once. " +
		"A backup of the Secret, put back, takes over in stages"
	return p
}

func rootNames(certs []*x509.Certificate) (names []string) {
	for _, cert := range certs {
		names = append(names, rootName(cert))
	}
	return names
}

// rootName is a root for people.
func rootName(cert *x509.Certificate) string {
	return fmt.Sprintf("root %s (sha256 %s)", cert.Subject, brief(pki.Fingerprint(cert)))
}

// brief is the beginning of a fingerprint, as `selvage ca status` shows it.
func brief(fingerprint string) string { return fingerprint[:min(16, len(fingerprint))] }
