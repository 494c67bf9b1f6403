package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
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

// Issuer signs certificates. It is immutable and safe for use from many goroutines.
type Issuer struct {
	cert  *x509.Certificate
	key   crypto.Signer
	roots []byte   // PEM: what a peer needs, to believe the issuer
	chain [][]byte // PEM blocks that follow a leaf, the root last
	pool  *x509.CertPool
}

// NewRoot makes a self-signed root with a fresh ECDSA P-256 key, valid for RootLifetime. It may sign leaves but no other
// authority (path length 0). Its common name carries the time, so that two roots of one mesh can be told apart.
func NewRoot(trustDomain string, now time.Time) (*Issuer, error) {
	if err := ValidateTrustDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
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
	return newIssuer(cert, key), nil
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
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return nil, errors.New("read root: the certificate is not an authority (basic constraints CA:TRUE are missing)")
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("read root: the certificate's key usage does not allow to sign certificates")
	case !ok || !public.Equal(key.Public()):
		return nil, errors.New("read root: the key is not the certificate's key")
	case !bytes.Equal(cert.RawIssuer, cert.RawSubject) || cert.CheckSignatureFrom(cert) != nil:
		return nil, fmt.Errorf("read root: the certificate of %q is not self-signed, it was issued by %q", cert.Subject, cert.Issuer)
	}
	return newIssuer(cert, key), nil
}

func newIssuer(root *x509.Certificate, key crypto.Signer) *Issuer {
	rootPEM := EncodeCertificate(root)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return &Issuer{cert: root, key: key, roots: rootPEM, chain: [][]byte{rootPEM}, pool: pool}
}

// Encode gives the issuer's certificate and key (PKCS #8) in PEM, as ParseRoot reads them.
func (i *Issuer) Encode() (certPEM, keyPEM []byte, err error) {
	keyPEM, err = encodeKey(i.key)
	return EncodeCertificate(i.cert), keyPEM, err
}

// RootPEM is what a peer must trust: the roots in PEM. Callers must not change it.
func (i *Issuer) RootPEM() []byte { return i.roots }

// Pool is the roots, to verify peers with. Callers must not change it.
func (i *Issuer) Pool() *x509.CertPool { return i.pool }

// NotAfter is the last moment at which what the issuer signs is believed.
func (i *Issuer) NotAfter() time.Time { return i.cert.NotAfter }

// Subject is the issuer's name, for logs.
func (i *Issuer) Subject() string { return i.cert.Subject.String() }

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
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, req.key, i.key)
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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue serving certificate: generate key: %w", err)
	}
	template, err := i.leaf(key.Public(), lifetime, now)
	if err != nil {
		return nil, fmt.Errorf("issue serving certificate: %w", err)
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(addr.Unmap().AsSlice()))
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, key.Public(), i.key)
	if err != nil {
		return nil, fmt.Errorf("issue serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue serving certificate: %w", err)
	}
	// The root is sent too, as Istio does: a client that trusts by the root's hash finds it in the chain.
	return &tls.Certificate{Certificate: [][]byte{der, i.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// leaf is what every certificate that is no authority has in common. The subject stays empty, so the names become critical
// (RFC 5280 4.2.1.6); the library makes a random serial number.
func (i *Issuer) leaf(key crypto.PublicKey, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	if lifetime <= 0 {
		return nil, fmt.Errorf("lifetime %s is not positive", lifetime)
	}
	if !now.Before(i.cert.NotAfter) {
		return nil, fmt.Errorf("%w (it ended at %s)", ErrIssuerExpired, i.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	template := &x509.Certificate{
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if template.NotBefore.Before(i.cert.NotBefore) {
		template.NotBefore = i.cert.NotBefore
	}
	if template.NotAfter.After(i.cert.NotAfter) {
		template.NotAfter = i.cert.NotAfter
	}
	if _, isRSA := key.(*rsa.PublicKey); isRSA { // RFC 8017 keys may encipher; RFC 5480 forbids it to EC keys
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	return template, nil
}

// Fingerprint is the SHA-256 of the issuer's certificate in hexadecimal, as `openssl x509 -fingerprint -sha256` without colons.
func (i *Issuer) Fingerprint() string {
	sum := sha256.Sum256(i.cert.Raw)
	return hex.EncodeToString(sum[:])
}
