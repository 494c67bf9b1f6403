package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// RootLifetime is how long a root that NewRoot makes is valid, as Istio's.
	RootLifetime = 10 * 365 * 24 * time.Hour
	// Backdate is how much before `now` a certificate begins, so that a peer whose clock is late takes it.
	Backdate = 2 * time.Minute
)

// ErrIssuerExpired says that the issuer's own certificate is over, so that nothing it signs would be believed.
var ErrIssuerExpired = errors.New("the issuer's certificate is expired")

// Issuer signs certificates: a self-signed root, or an intermediate that a root has signed. It is immutable and safe for use from
// many goroutines.
type Issuer struct {
	path    []*x509.Certificate // the issuer's own certificate first, its root last; a self-signed root is one
	key     crypto.Signer
	roots   []byte   // PEM: what a peer needs, to believe the issuer; the root of path first
	chain   [][]byte // PEM blocks that follow a leaf: intermediates, then roots
	pool    *x509.CertPool
	serving KeyKind
}

// NewRoot makes a self-signed root with a fresh ECDSA P-256 key: see NewRootOf.
func NewRoot(trustDomain string, now time.Time) (*Issuer, error) {
	return NewRootOf(ECDSA, trustDomain, now)
}

// NewRootOf makes a self-signed root with a fresh key, valid for RootLifetime. It may sign leaves but no other authority (path
// length 0). Its common name carries the time, so that two roots of one mesh can be told apart.
func NewRootOf(kind KeyKind, trustDomain string, now time.Time) (*Issuer, error) {
	if err := ValidateTrustDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	key, err := kind.generate()
	if err != nil {
		return nil, fmt.Errorf("make root: generate key: %w", err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{
			Organization: []string{trustDomain},
			CommonName:   "Selvage root " + now.UTC().Format("20060102T150405Z"),
		},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(RootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	return newIssuer([]*x509.Certificate{cert}, nil, key), nil
}

// ParseRoot reads a self-signed root and its key from PEM, and says what is wrong with them: not a certificate, not an authority,
// another's key, not self-signed. An expired root parses; it only signs nothing.
func ParseRoot(certPEM, keyPEM []byte) (*Issuer, error) {
	certs, err := ParseCertificates(certPEM)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("read root: %d certificates, a self-signed root is exactly one", len(certs))
	}
	cert := certs[0]
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if err := checkAuthority(cert, key); err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	if !isSelfSigned(cert) {
		return nil, fmt.Errorf("read root: the certificate of %q is not self-signed, it was issued by %q", cert.Subject, cert.Issuer)
	}
	return newIssuer(certs, nil, key), nil
}

// checkAuthority says what keeps cert from signing with key.
func checkAuthority(cert *x509.Certificate, key crypto.Signer) error {
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return errors.New("the certificate is not an authority (basic constraints CA:TRUE are missing)")
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("the certificate's key usage does not allow to sign certificates")
	case !ok || !public.Equal(key.Public()):
		return errors.New("the key is not the certificate's key")
	}
	return nil
}

func isSelfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil
}

// newIssuer makes an issuer of a path, whose last certificate is its root, and of the roots that peers trust besides that one.
func newIssuer(path, others []*x509.Certificate, key crypto.Signer) *Issuer {
	i := &Issuer{path: path, key: key}
	i.trust(append([]*x509.Certificate{path[len(path)-1]}, others...))
	return i
}

// trust sets what peers are to trust.
func (i *Issuer) trust(roots []*x509.Certificate) {
	i.roots, i.pool, i.chain = nil, x509.NewCertPool(), nil
	for _, root := range distinct(roots) {
		i.roots = append(i.roots, EncodeCertificate(root)...)
		i.pool.AddCert(root)
	}
	for _, cert := range i.path[:len(i.path)-1] {
		i.chain = append(i.chain, EncodeCertificate(cert))
	}
	i.chain = append(i.chain, i.roots)
}

// Trusting is the same issuer for peers that are to trust these roots as well. Its own root stays the first.
func (i *Issuer) Trusting(rootsPEM []byte) (*Issuer, error) {
	more, err := ParseCertificates(rootsPEM)
	if err != nil {
		return nil, err
	}
	own, err := ParseCertificates(i.roots)
	if err != nil {
		return nil, err
	}
	other := &Issuer{path: i.path, key: i.key, serving: i.serving}
	other.trust(append(own, more...))
	return other, nil
}

// ServingWith is the same issuer, whose serving certificates have keys of that kind.
func (i *Issuer) ServingWith(kind KeyKind) *Issuer {
	other := *i
	other.serving = kind
	return &other
}

func (i *Issuer) cert() *x509.Certificate { return i.path[0] }

// Certificate is the issuer's own: the intermediate's, or the root's.
func (i *Issuer) Certificate() *x509.Certificate { return i.path[0] }

// Root is the root that the issuer leads to; the issuer's own certificate when it is self-signed.
func (i *Issuer) Root() *x509.Certificate { return i.path[len(i.path)-1] }

// Path leads from the issuer's own certificate to its root. Callers must not change it.
func (i *Issuer) Path() []*x509.Certificate { return i.path }

// IsRoot reports whether the issuer is self-signed.
func (i *Issuer) IsRoot() bool { return len(i.path) == 1 }

// Equal reports whether two issuers sign alike: the same certificates, to the same roots. Nil equals nil alone.
func (i *Issuer) Equal(other *Issuer) bool {
	if i == nil || other == nil {
		return i == other
	}
	return bytes.Equal(i.roots, other.roots) && i.serving == other.serving &&
		slices.EqualFunc(i.path, other.path, func(a, b *x509.Certificate) bool { return a.Equal(b) })
}

// Encode gives the issuer's certificate and key (PKCS #8) in PEM, as ParseRoot reads them.
func (i *Issuer) Encode() (certPEM, keyPEM []byte, err error) {
	keyPEM, err = encodeKey(i.key)
	return EncodeCertificate(i.cert()), keyPEM, err
}

// RootPEM is what a peer must trust: the roots in PEM, the issuer's own first. Callers must not change it.
func (i *Issuer) RootPEM() []byte { return i.roots }

// Pool is the roots, to verify peers with. Callers must not change it.
func (i *Issuer) Pool() *x509.CertPool { return i.pool }

// NotAfter is the last moment at which what the issuer signs is believed.
func (i *Issuer) NotAfter() time.Time {
	end := i.path[0].NotAfter
	for _, cert := range i.path[1:] {
		if cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	return end
}

func (i *Issuer) notBefore() time.Time {
	begin := i.path[0].NotBefore
	for _, cert := range i.path[1:] {
		if cert.NotBefore.After(begin) {
			begin = cert.NotBefore
		}
	}
	return begin
}

// Subject is the issuer's name, for logs.
func (i *Issuer) Subject() string { return i.cert().Subject.String() }

// SignWorkload gives a certificate for the request's key and the caller's identity, as a chain of PEM blocks with the leaf first
// and the root last. It begins Backdate before now and ends after lifetime, but never after the issuer.
func (i *Issuer) SignWorkload(req *Request, caller Identity, lifetime time.Duration, now time.Time) ([][]byte, error) {
	if err := caller.Validate(); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	template, err := i.leaf(req.key, lifetime, now)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", caller, err)
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.URIs = append(template.URIs, caller.uri())
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert(), req.key, i.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", caller, err)
	}
	return append([][]byte{encodeCertificate(der)}, i.chain...), nil
}

// IssueServing makes a key and a certificate for a server. Each name is a DNS name or an IP address. The certificate can serve but
// is no identity: it cannot be used as a client's.
func (i *Issuer) IssueServing(names []string, lifetime time.Duration, now time.Time) (*tls.Certificate, error) {
	if len(names) == 0 {
		return nil, errors.New("issue serving certificate: no names")
	}
	key, err := i.serving.generate()
	if err != nil {
		return nil, fmt.Errorf("issue serving certificate: generate key: %w", err)
	}
	template, err := i.leaf(key.Public(), lifetime, now)
	if err != nil {
		return nil, fmt.Errorf("issue serving certificate: %w", err)
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	template.DNSNames, template.IPAddresses = splitNames(names)
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert(), key.Public(), i.key)
	if err != nil {
		return nil, fmt.Errorf("issue serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue serving certificate: %w", err)
	}
	// The root is sent too, as Istio does: a client that trusts by the root's hash finds it in the chain.
	chain := [][]byte{der}
	for _, cert := range i.path {
		chain = append(chain, cert.Raw)
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}

// leaf is what every certificate that is no authority has in common. The subject stays empty, so the names become critical
// (RFC 5280 4.2.1.6); the library makes a random serial number.
func (i *Issuer) leaf(key crypto.PublicKey, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	if lifetime <= 0 {
		return nil, fmt.Errorf("lifetime %s is not positive", lifetime)
	}
	end := i.NotAfter()
	if !now.Before(end) {
		return nil, fmt.Errorf("%w (it ended at %s)", ErrIssuerExpired, end.UTC().Format(time.RFC3339))
	}
	template := &x509.Certificate{
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if begin := i.notBefore(); template.NotBefore.Before(begin) {
		template.NotBefore = begin
	}
	if template.NotAfter.After(end) {
		template.NotAfter = end
	}
	if _, isRSA := key.(*rsa.PublicKey); isRSA { // RFC 8017 keys may encipher; RFC 5480 forbids it to EC keys
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	return template, nil
}

// Fingerprint is that of the issuer's own certificate.
func (i *Issuer) Fingerprint() string { return Fingerprint(i.cert()) }
