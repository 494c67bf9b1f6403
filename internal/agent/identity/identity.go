// Package identity keeps the workload's certificate: it makes keys, has them certified by the mesh's authority, renews in time, and
// tells everyone who waits when something has changed.
package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/selvage-mesh/selvage/internal/pki"
)

// Material is what the proxy proves itself with and believes others by. It is immutable.
type Material struct {
	ChainPEM []byte // the workload's certificate and what leads to the root, without the root; nil before there is one
	KeyPEM   []byte // its key, PKCS #8
	Leaf     *x509.Certificate
	RootsPEM []byte // the mesh's roots; nil while they are not known
	pair     tls.Certificate
}

// Config says whose certificate it is and how it is got.
type Config struct {
	Identity pki.Identity
	// Sign has a request (PEM) certified and returns the chain in PEM, the leaf first and the root last.
	Sign func(ctx context.Context, requestPEM []byte) (chain [][]byte, err error)
	// RootFile holds the mesh's roots (key root-cert.pem of ConfigMap istio-ca-root-cert). It is polled, because the kubelet
	// exchanges it under a symbolic link. While it does not exist, the root at the end of the chain stands in for it.
	RootFile string
	// GraceRatio is the part of a certificate's life that is left when it is renewed; 0 is 0.5. Istio calls it
	// SECRET_GRACE_PERIOD_RATIO.
	GraceRatio float64
	Key        pki.KeyKind // of the workload's key; ECDSA P-256
	Log        *slog.Logger
}

// The times of the loop.
const (
	rootPoll     = 2 * time.Second
	retryBase    = 500 * time.Millisecond
	retryMax     = 15 * time.Second
	renewJitter  = 0.05 // of the life: replicas that started together do not renew together
	minimumRenew = time.Second
	// preferSpread is over which time certificates are renewed when another root begins to sign, preferRetry how soon it is
	// tried again when the authority still signed by the former one; each time twice as long.
	preferSpread = 10 * time.Second
	preferRetry  = 15 * time.Second
)

// Source is where the rest of the agent gets the material from.
type Source struct {
	config Config

	mu      sync.Mutex
	current *Material
	changed chan struct{} // closed and replaced with every change
	failure error         // why the newest attempt failed, nil after a success
	tried   chan struct{} // closed after the first attempt
	renew   chan struct{} // asks the loop to renew now
	prefer  bool          // the roots want a certificate of another root than the present one's; the loop's alone
	misses  int           // how often that was asked for in vain; the loop's alone
}

// New checks the configuration and makes a source that has nothing yet.
func New(c Config) (*Source, error) {
	if err := c.Identity.Validate(); err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	if c.GraceRatio == 0 {
		c.GraceRatio = 0.5
	}
	if c.GraceRatio < 0 || c.GraceRatio >= 1 {
		return nil, fmt.Errorf("make identity: grace ratio %g is not between 0 and 1", c.GraceRatio)
	}
	return &Source{
		config: c, current: &Material{}, changed: make(chan struct{}), tried: make(chan struct{}), renew: make(chan struct{}, 1),
	}, nil
}

// Current gives the material, never nil, and a channel that is closed when there is newer one.
func (s *Source) Current() (*Material, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.changed
}

// Certificate gives the certificate for TLS, nil while there is none or when it is expired: an expired one only makes a server hang
// up, where a token would still do.
func (s *Source) Certificate() *tls.Certificate {
	m, _ := s.Current()
	if m.Leaf == nil || !time.Now().Before(m.Leaf.NotAfter) {
		return nil
	}
	return &m.pair
}

// Failure says why there is no certificate or why it could not be renewed; nil when the newest attempt succeeded or none ended yet.
func (s *Source) Failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// Tried is closed when the first attempt has ended, with or without success.
func (s *Source) Tried() <-chan struct{} { return s.tried }

// Run gets a certificate, renews it when GraceRatio of its life is left, and watches the roots, until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	roots := time.NewTicker(rootPoll)
	defer roots.Stop()
	due := time.NewTimer(0) // the next attempt
	defer due.Stop()
	failures := 0
	s.readRoots()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-roots.C:
			s.readRoots()
			if s.prefer {
				s.prefer = false
				due.Reset(rand.N(preferSpread))
			}
			continue
		case <-s.renew:
			failures = 0
		case <-due.C:
		}
		wait, err := s.attempt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			wait = backoff(failures)
			failures++
		} else {
			failures = 0
		}
		s.ended(err)
		due.Reset(wait)
	}
}

// backoff doubles from retryBase to retryMax, the last half of each at random.
func backoff(failures int) time.Duration {
	d := retryMax
	if failures < 16 {
		d = min(retryBase<<failures, retryMax)
	}
	return d/2 + rand.N(d/2+1)
}

// ended notes how an attempt ended and logs a failure once for each text.
func (s *Source) ended(err error) {
	s.mu.Lock()
	before := s.failure
	s.failure = err
	leaf := s.current.Leaf
	select {
	case <-s.tried:
	default:
		close(s.tried)
	}
	s.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		attrs := []any{"identity", s.config.Identity, "error", err}
		if leaf != nil {
			attrs = append(attrs, "expires", leaf.NotAfter)
		}
		s.config.Log.Warn("cannot get a workload certificate, will try again", attrs...)
	case err == nil && before != nil:
		s.config.Log.Info("got a workload certificate after failures", "identity", s.config.Identity)
	}
}

// attempt asks once and publishes the answer. It returns when to renew.
func (s *Source) attempt(ctx context.Context) (time.Duration, error) {
	key, request, err := pki.NewRequestOf(s.config.Key, s.config.Identity)
	if err != nil {
		return 0, err
	}
	chain, err := s.config.Sign(ctx, request)
	if err != nil {
		return 0, err
	}
	m, root, err := assemble(chain, key)
	if err != nil {
		return 0, fmt.Errorf("use the certificate that the authority sent: %w", err)
	}
	now := time.Now()
	if !now.Before(m.Leaf.NotAfter) {
		return 0, fmt.Errorf("use the certificate that the authority sent: it ended at %s, is a clock wrong?", m.Leaf.NotAfter.Format(time.RFC3339))
	}
	if id, err := pki.CertificateIdentity(m.Leaf); err != nil {
		return 0, fmt.Errorf("use the certificate that the authority sent: %w", err)
	} else if id != s.config.Identity {
		// The authority goes by the token, so this is a pod whose environment is not its own. Peers would refuse it in
		// ways that are hard to understand.
		s.config.Log.Warn("the certificate is for another identity than this pod's environment says", "certificate", id, "environment", s.config.Identity)
	}
	m.RootsPEM = s.roots(root)
	s.publish(m)
	life := m.Leaf.NotAfter.Sub(now)
	wait := renewAfter(life, s.config.GraceRatio, rand.Float64())
	if m.preferred() {
		s.misses = 0
	} else { // another replica of the authority may know of the change later
		wait = min(wait, preferRetry<<min(s.misses, 16))
		s.misses++
	}
	s.config.Log.Info("workload certificate", "identity", s.config.Identity, "serial", m.Leaf.SerialNumber.Text(16),
		"expires", m.Leaf.NotAfter, "renewal_in", wait.Round(time.Second))
	return wait, nil
}

// renewAfter is how long to wait with renewing a certificate that lives for another life. random is in [0, 1).
func renewAfter(life time.Duration, grace, random float64) time.Duration {
	part := 1 - grace + renewJitter*(2*random-1)
	return max(time.Duration(float64(life)*min(max(part, 0), 1)), minimumRenew)
}

// assemble checks that chain and key belong together, and takes the roots off the chain's end.
func assemble(chain [][]byte, keyPEM []byte) (m *Material, rootPEM []byte, err error) {
	if len(chain) == 0 {
		return nil, nil, errors.New("the chain is empty")
	}
	certs, err := pki.ParseCertificates(bytes.Join(chain, []byte("\n")))
	if err != nil {
		return nil, nil, err
	}
	for last := len(certs) - 1; last > 0 && certs[last].IsCA && bytes.Equal(certs[last].RawIssuer, certs[last].RawSubject); last-- {
		rootPEM = append(pki.EncodeCertificate(certs[last]), rootPEM...)
		certs = certs[:last]
	}
	m = &Material{Leaf: certs[0], KeyPEM: keyPEM}
	for _, c := range certs {
		m.ChainPEM = append(m.ChainPEM, pki.EncodeCertificate(c)...)
	}
	m.pair, err = tls.X509KeyPair(m.ChainPEM, keyPEM)
	return m, rootPEM, err
}

// roots are those of the file, or the one that came with the chain where there is no file. The file alone decides where it exists:
// a root that was taken away there must not come back with a certificate.
func (s *Source) roots(fromChain []byte) []byte {
	if data, err := readRoots(s.config.RootFile); err == nil {
		return data
	}
	if len(fromChain) > 0 {
		return fromChain
	}
	m, _ := s.Current()
	return m.RootsPEM
}

func readRoots(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	_, err = pki.ParseCertificates(data)
	return data, err
}

// readRoots publishes the roots when the file has other ones, and asks for a new certificate when the present one is not of them:
// peers have the new roots too and would refuse it.
func (s *Source) readRoots() {
	m, _ := s.Current()
	data, err := readRoots(s.config.RootFile)
	if err != nil || bytes.Equal(data, m.RootsPEM) {
		return
	}
	next := *m
	next.RootsPEM = data
	s.publish(&next)
	if len(m.RootsPEM) > 0 {
		s.config.Log.Info("the mesh's roots have changed", "file", s.config.RootFile)
	}
	switch {
	case next.Leaf == nil:
	case next.Root() == nil:
		select {
		case s.renew <- struct{}{}:
		default:
		}
	case !next.preferred():
		s.prefer, s.misses = true, 0
	}
}

// Root is the root that the certificate leads to, nil when it is none of the mesh's.
func (m *Material) Root() *x509.Certificate {
	roots, rest := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(m.RootsPEM)
	rest.AppendCertsFromPEM(m.ChainPEM)
	chains, err := m.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: rest, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil
	}
	return chains[0][len(chains[0])-1]
}

// preferred reports whether the certificate leads to the first of the roots: while the mesh's root changes, that is the one by which
// is signed, and those behind it will not be believed for long. Where the roots are not known, any certificate is.
func (m *Material) preferred() bool {
	root, certs := m.Root(), []*x509.Certificate(nil)
	if root != nil {
		certs, _ = pki.ParseCertificates(m.RootsPEM) // they were read before
	}
	return len(certs) == 0 || certs[0].Equal(root)
}

func (s *Source) publish(m *Material) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = m
	close(s.changed)
	s.changed = make(chan struct{})
}
