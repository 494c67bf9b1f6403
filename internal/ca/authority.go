// Package ca is the mesh's certificate authority: it keeps the root in a Secret, signs workloads' certificates over gRPC for
// callers that it has authenticated, and hands out the control plane's own serving certificates.
//
// Every replica signs with the same root. The Secret is the only state: replicas race to create it and the API server lets one
// win, so no lease is needed. A Secret that cannot be read as a root is never overwritten, because the key in it may be the only
// copy of what every workload trusts.
package ca

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// Config says whose authority this is. Only Kubernetes, TrustDomain and Log are needed; a zero value elsewhere is the default
// that its comment names.
type Config struct {
	Kubernetes    kubernetes.Interface
	Reviews       authenticationclient.TokenReviewsGetter // asks about tokens; Kubernetes
	Namespace     string                                  // where the control plane and its Secret are; "istio-system"
	TrustDomain   string                                  // of every identity, such as "cluster.local"
	ClusterID     string                                  // of the cluster whose API server reviews tokens; "Kubernetes"
	Revision      string                                  // "" or "default": the revision whose names have no suffix
	ClusterDomain string                                  // suffix of service names; "cluster.local"
	// ExtraNames are further DNS names and IP addresses in the serving certificate, for a control plane outside the cluster.
	ExtraNames []string

	WorkloadLifetime    time.Duration // of a certificate when the caller asks for none; 24 h
	MaxWorkloadLifetime time.Duration // longest that a caller may ask for; 90 days
	ServingLifetime     time.Duration // of the control plane's own certificates, renewed at half of it; 24 h

	// CertificatesPerSecond and CertificateBurst limit what one identity may have signed; 200 and 2,000. A deployment's replicas
	// share an identity, so a burst covers a restart of a big one.
	CertificatesPerSecond float64
	CertificateBurst      int

	// Key is of the self-signed root and of serving certificates; ECDSA.
	Key pki.KeyKind

	Elsewhere *Elsewhere // an authority outside of this process; nil for the one of the Secrets

	Events Events // nil: nothing is told by Events
	// Workloads gives the certificates of the proxies that are connected, so that those that end are told; nil for none.
	Workloads func() []trust.Certificate

	Registerer prometheus.Registerer // nil: metrics are kept but not shown
	Log        *slog.Logger
}

func (c Config) withDefaults() Config {
	defaultTo(&c.Namespace, "istio-system")
	defaultTo(&c.ClusterID, "Kubernetes")
	defaultTo(&c.ClusterDomain, "cluster.local")
	defaultTo(&c.WorkloadLifetime, 24*time.Hour)
	defaultTo(&c.MaxWorkloadLifetime, 90*24*time.Hour)
	defaultTo(&c.ServingLifetime, 24*time.Hour)
	defaultTo(&c.CertificatesPerSecond, 200)
	defaultTo(&c.CertificateBurst, 2000)
	return c
}

func defaultTo[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Authority signs for the mesh. All methods are safe for concurrent use. Until Run has loaded the root, handshakes and requests
// fail with what it is waiting for.
type Authority struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	tokens  *reviewer
	limits  *limits
	serving serving
	signer  *signer // nil where no signer of Kubernetes is asked

	root atomic.Pointer[root]
	told map[ref.Ref]diag.Severity // which ends of certificates were told; Run's alone

	mu         sync.Mutex
	changed    chan struct{}            // closed and replaced when root changes
	problems   map[string]*diag.Problem // what keeps a Secret from being used, by its name
	state      state
	stated     chan struct{} // closed and replaced when state changes
	selfSigned *pki.Issuer   // the self-signed root that was read last
	plugged    bool          // what signs came from Secret cacerts

	signerFault refusalKind // of the problem signerProblem
}

// root is who signs, with what is derived from it. Immutable.
type root struct {
	issuer *pki.Issuer         // nil where the authority is elsewhere
	pem    []byte              // what is trusted
	pool   *x509.CertPool      // the same
	path   []*x509.Certificate // from what signs to its root
	hash   string              // of what is trusted: pki.BundleHash
	stage  trust.Stage
	tls    *tls.Config // of 15012, with client certificates checked against the roots

	// Of an authority elsewhere: the roots, and the control plane's own certificate.
	anchors *pki.Anchors
	serving *tls.Certificate
}

// signs is the certificate that signs, leadsTo the root behind it.
func (r *root) signs() *x509.Certificate   { return r.path[0] }
func (r *root) leadsTo() *x509.Certificate { return r.path[len(r.path)-1] }

// same reports whether nothing distinguishes two.
func (r *root) same(other *root) bool {
	return other != nil && r.stage == other.stage && r.issuer.Equal(other.issuer) && bytes.Equal(r.pem, other.pem) &&
		slices.EqualFunc(r.path, other.path, (*x509.Certificate).Equal) && sameServing(r.serving, other.serving)
}

func sameServing(a, b *tls.Certificate) bool {
	return (a == nil) == (b == nil) && (a == nil || slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal))
}

// New checks the configuration and gives an authority that does nothing yet.
func New(config Config) (*Authority, error) {
	config = config.withDefaults()
	if config.Kubernetes == nil || config.Log == nil {
		return nil, errors.New("configure CA: a Kubernetes client and a logger are needed")
	}
	if err := pki.ValidateTrustDomain(config.TrustDomain); err != nil {
		return nil, fmt.Errorf("configure CA: %w", err)
	}
	if config.WorkloadLifetime > config.MaxWorkloadLifetime {
		return nil, fmt.Errorf("configure CA: the default lifetime of a certificate, %s, is above the longest allowed, %s",
			config.WorkloadLifetime, config.MaxWorkloadLifetime)
	}
	if config.Elsewhere != nil {
		if err := config.Elsewhere.validate(); err != nil {
			return nil, fmt.Errorf("configure CA: %w", err)
		}
	}
	a := &Authority{config: config, log: config.Log, changed: make(chan struct{}), stated: make(chan struct{}), problems: map[string]*diag.Problem{}}
	var err error
	if a.metrics, err = newMetrics(config.Registerer, a); err != nil {
		return nil, fmt.Errorf("configure CA: register metrics: %w", err)
	}
	if config.Reviews == nil {
		config.Reviews = config.Kubernetes.AuthenticationV1()
	}
	a.tokens = newReviewer(config.Reviews, tokenAudience, a.metrics.reviews)
	a.limits = newLimits(config.CertificatesPerSecond, config.CertificateBurst)
	if e := config.Elsewhere; e != nil && e.Signer != "" {
		a.signer = newSigner(config.Kubernetes, e.Signer, "selvaged "+config.Namespace+"/"+a.serviceName(), cmp.Or(e.Answer, 15*time.Second), config.Log)
	}
	return a, nil
}

// Ready is nil when the authority can sign, else it says what it waits for and what to do about it.
func (a *Authority) Ready() error {
	_, err := a.current()
	return err
}

// current is the root to sign with.
func (a *Authority) current() (*root, error) {
	if r := a.root.Load(); r != nil {
		return r, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	names := []string{pluggedName, secretName, rotationName}
	if e := a.config.Elsewhere; e != nil {
		names = []string{rootsProblem, e.ServingSecret, signerProblem}
	}
	for _, name := range names {
		if p := a.problems[name]; p != nil {
			return nil, problemError{*p}
		}
	}
	if e := a.config.Elsewhere; e != nil {
		return nil, fmt.Errorf("the roots of the mesh in %s, or the control plane's own certificate, are not there yet; who signs is %s", e.RootsAt, e)
	}
	return nil, fmt.Errorf("the root in Secret %s/%s is not loaded yet", a.config.Namespace, secretName)
}

// Problems is what is wrong with the Secrets of the CA and with the certificates in them now. There may be problems while Ready is
// nil: a Secret that was broken later does not stop an authority that holds a good one.
func (a *Authority) Problems() (list []diag.Problem) {
	a.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(a.problems)) {
		list = append(list, *a.problems[name])
	}
	if r := a.state.record; r != nil && r.keyLost() {
		list = append(list, *a.lostProblem(r))
	}
	a.mu.Unlock()
	return append(list, trust.Expiring(a.certificates(), time.Now())...)
}

// RootPEM is what every peer of the mesh must trust, in PEM; nil before the root is loaded. Callers must not change it.
func (a *Authority) RootPEM() []byte {
	pem, _ := a.Roots()
	return pem
}

// Roots is RootPEM together with a channel that is closed when it is no longer so.
func (a *Authority) Roots() (rootPEM []byte, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.root.Load(); r != nil {
		rootPEM = r.pem
	}
	return rootPEM, a.changed
}

// adopt makes issuer the one to sign with, at a stage of a change of the root, unless it is already.
func (a *Authority) adopt(issuer *pki.Issuer, stage trust.Stage) {
	hash, _ := pki.BundleHash(issuer.RootPEM()) // they were written here
	a.install(&root{issuer: issuer, pem: issuer.RootPEM(), pool: issuer.Pool(), path: issuer.Path(), hash: hash, stage: stage})
}

// install brings who signs and what is trusted into force, unless it is already.
func (a *Authority) install(next *root) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.root.Load()
	if next.same(before) {
		return
	}
	next.tls = a.clientVerifyingTLS(next.pool)
	a.root.Store(next)
	close(a.changed)
	a.changed = make(chan struct{})
	if a.config.Elsewhere != nil {
		a.restate()
	}

	by := next.signs()
	attrs := []any{"subject", by.Subject.String(), "sha256", pki.Fingerprint(by), "root", pki.Fingerprint(next.leadsTo()), "notAfter", by.NotAfter.UTC(), "stage", next.stage}
	if before == nil {
		a.log.Info("root certificate loaded", attrs...)
	} else {
		a.log.Info("authority of the mesh changed", append(attrs, "former", pki.Fingerprint(before.signs()))...)
	}
}

// Run loads the root, or creates it, and follows the Secret until ctx ends; of an authority elsewhere, its roots and the control plane's
// own certificate. It returns nil then; everything else it retries.
func (a *Authority) Run(ctx context.Context) error {
	if a.config.Elsewhere != nil {
		return a.runElsewhere(ctx)
	}
	dirty, stop := a.watchSecrets(ctx)
	defer stop()
	// Of what the API server refuses no event tells that it is allowed again, or that the server is back.
	const first, longest, refused = 100 * time.Millisecond, 30 * time.Second, 2 * time.Second
	look := 10 * time.Minute // at what expires, at the least
	delay := first
	for {
		problem := a.sync(ctx)
		if ctx.Err() != nil {
			return nil
		}
		a.tellExpiring()
		wait := look
		if problem == nil {
			delay = first
		} else {
			wait = delay
			delay = min(2*delay, longest)
			if problem.Code == diag.SourceUnavailable {
				wait = min(wait, refused)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-dirty:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}
