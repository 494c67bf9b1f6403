package ca

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// Elsewhere is an authority outside of this process: it signs, its owner says what is trusted, and nothing here knows its key. Either
// Address or Signer is set.
type Elsewhere struct {
	// Address (HOST:PORT) is where sidecars have their certificates signed, by Istio's protocol, as istio-csr serves it.
	Address string
	// Signer is a signer of Kubernetes (certificates.k8s.io), such as example.com/mesh: requests of sidecars are put before it.
	Signer string

	// Roots follows what peers of the mesh are to trust: it calls use at the beginning and after every change, with the roots in PEM or
	// with why there are none, and blocks until ctx ends.
	Roots func(ctx context.Context, use func(rootsPEM []byte, err error)) error
	// RootsAt is where the roots stand, for people.
	RootsAt ref.Ref
	// ServingSecret is the Secret (keys tls.crt, tls.key) of the control plane's own certificate. Where it is "", Signer is asked for one.
	ServingSecret string
	// Answer is how long Signer may take for a certificate; 15 s, so that a sidecar, which waits for 20 s, hears why there is none.
	Answer time.Duration
}

// String is Status.Source.
func (e *Elsewhere) String() string {
	if e.Signer != "" {
		return trust.External + " (Kubernetes signer " + e.Signer + ")"
	}
	return trust.External + " (" + e.Address + ")"
}

func (e *Elsewhere) validate() error {
	switch {
	case (e.Address == "") == (e.Signer == ""):
		return errors.New("an authority elsewhere has either an address or a signer's name")
	case e.Roots == nil:
		return errors.New("the roots of an authority elsewhere must come from somewhere")
	case e.Address != "" && e.ServingSecret == "":
		return errors.New("an authority at an address needs a Secret with the control plane's own certificate")
	}
	return nil
}

// The keys of Authority.problems for what comes from elsewhere, beside the Secret's name.
const (
	rootsProblem  = "roots"
	signerProblem = "signer"
)

// elsewhere is one run with an authority elsewhere.
type elsewhere struct {
	*Authority
	*Elsewhere
	roots chan rootsRead // holds the newest that was not taken yet

	anchors *pki.Anchors     // the newest roots that can be used
	cert    *tls.Certificate // the newest serving certificate of the signer, not of the Secret
	renew   time.Time        // when another one is to be asked for
}

type rootsRead struct {
	pem []byte
	err error
}

// runElsewhere follows roots and serving certificate until ctx ends.
func (a *Authority) runElsewhere(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	e := &elsewhere{Authority: a, Elsewhere: a.config.Elsewhere, roots: make(chan rootsRead, 1)}
	secret, stop := a.watchSecrets(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- a.config.Elsewhere.Roots(ctx, e.read) }()
	if a.signer != nil {
		stopped := a.signer.run(ctx)
		defer func() { <-stopped }()
	}
	defer cancel()
	const first, longest = time.Second, time.Minute
	delay, known := first, false
	for {
		wait := 10 * time.Minute
		if known {
			if e.step(ctx) {
				delay = first
			} else {
				wait, delay = delay, min(2*delay, longest)
			}
			a.tellExpiring()
			if !e.renew.IsZero() {
				wait = min(wait, max(time.Until(e.renew), time.Second))
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			<-ended //nolint:errcheck // it ended because ctx has
			return nil
		case err := <-ended:
			timer.Stop()
			if ctx.Err() == nil && err != nil {
				return fmt.Errorf("follow the roots of the mesh: %w", err)
			}
			return nil
		case r := <-e.roots:
			e.take(r)
			known = true
		case <-secret:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// read leaves what was read for the loop.
func (e *elsewhere) read(rootsPEM []byte, err error) {
	r := rootsRead{bytes.Clone(rootsPEM), err}
	for {
		select {
		case e.roots <- r:
			return
		case <-e.roots: // older, and not taken
		}
	}
}

// take keeps roots that can be used. Others never replace them.
func (e *elsewhere) take(r rootsRead) {
	err := r.err
	if err == nil {
		var anchors *pki.Anchors
		if anchors, err = pki.ParseAnchors(r.pem); err == nil {
			e.anchors = anchors
			e.setProblem(rootsProblem, nil)
			return
		}
	}
	p := &diag.Problem{Code: diag.InvalidRoot, Severity: diag.Error, Object: e.RootsAt, Detail: "the roots of the mesh cannot be read: " + err.Error(),
		Hint: "whoever signs (" + e.String() + ") must put its root certificates there in PEM; docs/certificates.md says where they are looked for"}
	if e.root.Load() != nil {
		p.Hint = "the former roots stay in force while this control plane runs; " + p.Hint
	}
	e.setProblem(rootsProblem, p)
}

// step brings a serving certificate and roots that belong together into force. It reports whether nothing is left to try again.
func (e *elsewhere) step(ctx context.Context) bool {
	if e.anchors == nil {
		return true // take has told, and the next roots come by themselves
	}
	if e.ServingSecret != "" {
		return e.fromSecret(ctx)
	}
	return e.fromSigner(ctx)
}

// fromSecret takes the certificate that the Secret holds.
func (e *elsewhere) fromSecret(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	secret, err := e.secret(ctx, e.ServingSecret)
	if ctx.Err() != nil && err != nil {
		return false
	}
	var p *diag.Problem
	if err != nil {
		p = e.unavailable(&unavailableError{e.ServingSecret, "get", err})
		if apierrors.IsNotFound(err) {
			p.Code, p.Detail = diag.InvalidRoot, "it does not exist, and holds the control plane's own certificate"
			p.Hint = e.servingHint()
		}
	} else if err = e.useSecret(secret); err != nil {
		p = e.secretProblem(diag.InvalidRoot, e.ServingSecret)
		p.Detail, p.Hint = err.Error(), e.servingHint()
		e.nameMissing(p, secret.Data, []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey})
	}
	e.setProblem(e.ServingSecret, p)
	return p == nil || p.Code == diag.InvalidRoot // of which the watch tells the end
}

func (e *elsewhere) servingHint() string {
	hint := fmt.Sprintf("it needs a certificate in %s and its key in %s, signed by an authority of the roots in %s, for the name %s: cert-manager makes one by a Certificate; docs/certificates.md has an example",
		corev1.TLSCertKey, corev1.TLSPrivateKeyKey, e.RootsAt, e.neededNames()[0])
	if e.root.Load() != nil {
		hint = "the former certificate and roots stay in force while this control plane runs; " + hint
	}
	return hint
}

func (e *elsewhere) useSecret(secret *corev1.Secret) error {
	cert, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return fmt.Errorf("read the control plane's own certificate: %w", err)
	}
	return e.useServing(&cert)
}

// neededNames are what the API server and sidecars call the control plane by.
func (a *Authority) neededNames() []string {
	return []string{a.serviceName() + "." + a.config.Namespace + ".svc"}
}

// useServing takes a certificate and the roots into force when callers will believe it by them.
func (e *elsewhere) useServing(cert *tls.Certificate) error {
	path, err := e.anchors.Serving(cert, e.neededNames(), time.Now())
	if err != nil {
		return err
	}
	hash, err := pki.BundleHash(e.anchors.PEM())
	if err != nil {
		return err
	}
	e.install(&root{pem: e.anchors.PEM(), pool: e.anchors.Pool(), anchors: e.anchors, path: path, hash: hash, stage: trust.Stable, serving: cert})
	return nil
}

// fromSigner asks the signer for a certificate when there is none that will do.
func (e *elsewhere) fromSigner(ctx context.Context) bool {
	if e.cert != nil && time.Now().Before(e.renew) && e.useServing(e.cert) == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cert, name, err := e.askServing(ctx)
	if ctx.Err() != nil && err == nil {
		return false
	}
	e.tellSigner(err)
	if err != nil {
		e.renew = time.Time{}
		return false
	}
	e.cert = cert
	e.renew = time.Now().Add(time.Until(cert.Leaf.NotAfter) / 2)
	e.log.Info("serving certificate signed", "signer", e.Signer, "request", name, "notAfter", cert.Leaf.NotAfter.UTC())
	return true
}

// askServing brings a certificate for the control plane's own names into force; it gives it and the request's name.
func (e *elsewhere) askServing(ctx context.Context) (*tls.Certificate, string, error) {
	names := e.ServingNames()
	key, requestPEM, err := pki.NewServingRequest(e.config.Key, names)
	if err != nil {
		return nil, "", err
	}
	var cert *tls.Certificate
	name, err := e.signer.certify(ctx, question{request: requestPEM, lifetime: e.config.ServingLifetime, usages: servingUsages,
		of: "Service " + e.config.Namespace + "/" + e.serviceName(),
		check: func(chain []byte) (err error) {
			if cert, err = pki.ServingCertificate(chain, key); err != nil {
				return err
			}
			return e.useServing(cert)
		}})
	return cert, name, err
}

// signElsewhere has the request of a caller signed, where that is for the control plane to do.
func (s *certificateService) signElsewhere(ctx context.Context, request *pki.Request, requestPEM []byte, caller Caller, lifetime time.Duration) ([][]byte, error) {
	e := s.config.Elsewhere
	if e.Address != "" {
		s.metrics.signErrors.WithLabelValues("elsewhere").Inc()
		return nil, status.Errorf(codes.FailedPrecondition, "certificates of this mesh are signed at %s, not here: the sidecar's CA_ADDR must be that address; "+
			"set the injector's value global.caAddress (`selvage install --ca-address` does) and restart the workload", e.Address)
	}
	if err := request.Only(caller.Identity); err != nil {
		s.metrics.parseErrors.Inc()
		return nil, status.Errorf(codes.InvalidArgument, "signer %s signs what a request asks for: %v", e.Signer, err)
	}
	r, err := s.current()
	if err != nil {
		s.metrics.signErrors.WithLabelValues("no_root").Inc()
		return nil, status.Errorf(codes.Unavailable, "cannot sign: %v", err)
	}
	var blocks [][]byte
	_, err = s.signer.certify(ctx, question{request: requestPEM, lifetime: lifetime, usages: workloadUsages, of: caller.Identity.String(),
		check: func(chain []byte) (err error) {
			blocks, err = r.anchors.Workload(chain, request, caller.Identity, time.Now())
			return err
		}})
	if ctx.Err() == nil || err == nil {
		s.tellSigner(err)
	}
	if err != nil {
		s.metrics.signErrors.WithLabelValues("signer").Inc()
		return nil, signerStatus(err)
	}
	return blocks, nil
}

// signerStatus is what a sidecar is told.
func signerStatus(err error) error {
	code := codes.Unavailable
	var r *refusal
	if errors.As(err, &r) && (r.kind == denied || r.kind == wrongAnswer) {
		code = codes.FailedPrecondition
	}
	return status.Errorf(code, "cannot sign: %v", err)
}

// tellSigner notes how the signer answered; nil when it did well. What is wrong is told once for each kind of fault, with the first request.
func (a *Authority) tellSigner(err error) {
	if err == nil {
		a.setProblem(signerProblem, nil)
		return
	}
	p := &diag.Problem{Code: diag.SignerFailed, Severity: diag.Error, Detail: err.Error(),
		Object: ref.Ref{Group: certificatesv1.GroupName, Kind: "CertificateSigningRequest"}, Hint: "docs/codes/SEL0052.md says what to look at"}
	var r *refusal
	if errors.As(err, &r) {
		p.Object.Name, p.Hint = r.request, r.hint()
	}
	a.mu.Lock()
	before := a.problems[signerProblem]
	same := before != nil && r != nil && a.signerFault == r.kind
	if r != nil {
		a.signerFault = r.kind
	}
	a.mu.Unlock()
	if !same {
		a.setProblem(signerProblem, p)
	}
}
