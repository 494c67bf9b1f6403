// Package pki makes the certificates of a lab's Kubernetes: two authorities, the serving and client certificates they sign
// and the key of ServiceAccount tokens. Keys are ECDSA P-256, so that a whole set takes milliseconds.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

const (
	// lifetime is that of every certificate here; a lab does not live longer than that.
	lifetime = 365 * 24 * time.Hour
	// backdate is how long before its making a certificate is valid, for machines whose clock is set back a little.
	backdate = time.Hour
)

// Pair is a certificate and its private key, each PEM.
type Pair struct {
	Cert, Key []byte
}

// Authority signs certificates.
type Authority struct {
	pair Pair
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

// Leaf says what a certificate is for. Client and Server are its extended key usages; a client's user is CommonName, its
// groups are Organizations, as Kubernetes reads client certificates.
type Leaf struct {
	CommonName     string
	Organizations  []string
	DNSNames       []string
	IPs            []net.IP
	Client, Server bool
}

// NewAuthority makes a self-signed authority.
func NewAuthority(commonName string, now func() time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", commonName, err)
	}
	tmpl, err := template(commonName, now())
	if err != nil {
		return nil, err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", commonName, err)
	}
	pair, err := encode(der, key)
	if err != nil {
		return nil, err
	}
	return ParseAuthority(pair, now)
}

// ParseAuthority reads back what Pair returned.
func ParseAuthority(pair Pair, now func() time.Time) (*Authority, error) {
	block, _ := pem.Decode(pair.Cert)
	if block == nil {
		return nil, errors.New("parse authority: its certificate is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse authority: %w", err)
	}
	block, _ = pem.Decode(pair.Key)
	if block == nil {
		return nil, errors.New("parse authority: its key is not PEM")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse authority: %w", err)
	}
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("parse authority %s: certificate and key do not belong together", cert.Subject.CommonName)
	}
	return &Authority{pair: pair, cert: cert, key: key, now: now}, nil
}

// Pair returns the authority's own certificate and key.
func (a *Authority) Pair() Pair { return a.pair }

// Issue signs a certificate for a new key.
func (a *Authority) Issue(l Leaf) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make key of %s: %w", l.CommonName, err)
	}
	tmpl, err := template(l.CommonName, a.now())
	if err != nil {
		return Pair{}, err
	}
	tmpl.Subject.Organization = l.Organizations
	tmpl.DNSNames, tmpl.IPAddresses = l.DNSNames, l.IPs
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	if l.Client {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if l.Server {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate of %s: %w", l.CommonName, err)
	}
	return encode(der, key)
}

// TokenKey makes the key that signs ServiceAccount tokens: private as "EC PRIVATE KEY", public as "PUBLIC KEY".
func TokenKey() (private, public []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make token key: %w", err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("encode token key: %w", err)
	}
	pair, err := encode(nil, key)
	if err != nil {
		return nil, nil, err
	}
	return pair.Key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), nil
}

func template(commonName string, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(lifetime),
	}, nil
}

func encode(der []byte, key *ecdsa.PrivateKey) (Pair, error) {
	k, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("encode key: %w", err)
	}
	p := Pair{Key: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: k})}
	if der != nil {
		p.Cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return p, nil
}
