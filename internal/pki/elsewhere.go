package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Anchors are the roots that peers trust of a mesh whose authority is elsewhere. They are immutable and safe for use from many
// goroutines.
type Anchors struct {
	certs []*x509.Certificate
	pem   []byte
	pool  *x509.CertPool
}

// ParseAnchors reads roots from PEM. They need not be self-signed, since an authority elsewhere may give out what it pleases as its
// root, but they must be authorities.
func ParseAnchors(rootsPEM []byte) (*Anchors, error) {
	certs, err := ParseCertificates(rootsPEM)
	if err != nil {
		return nil, err
	}
	a := &Anchors{certs: distinct(certs), pool: x509.NewCertPool()}
	for _, cert := range a.certs {
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return nil, fmt.Errorf("read roots: the certificate of %q is not an authority (basic constraints CA:TRUE are missing)", cert.Subject)
		}
		a.pem = append(a.pem, EncodeCertificate(cert)...)
		a.pool.AddCert(cert)
	}
	return a, nil
}

// PEM is the roots, each once. Callers must not change it.
func (a *Anchors) PEM() []byte { return a.pem }

// Pool is the roots, to verify peers with. Callers must not change it.
func (a *Anchors) Pool() *x509.CertPool { return a.pool }

// Certificates are the roots. Callers must not change them.
func (a *Anchors) Certificates() []*x509.Certificate { return a.certs }

// subjects names the roots for a message.
func (a *Anchors) subjects() string {
	var b bytes.Buffer
	for n, cert := range a.certs {
		if n > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", cert.Subject)
	}
	return b.String()
}

// Workload checks a chain that an authority elsewhere has made for a request of a caller, as peers will: it leads to a root, is of the
// caller's identity and of the request's key, can serve and call, and is no authority. It gives PEM blocks as SignWorkload does: the
// leaf, what leads from it to the root, the roots.
func (a *Anchors) Workload(chainPEM []byte, request *Request, caller Identity, now time.Time) ([][]byte, error) {
	certs, err := ParseCertificates(chainPEM)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	id, err := CertificateIdentity(leaf)
	public, comparable := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case err != nil:
		return nil, err
	case id != caller:
		return nil, fmt.Errorf("the certificate is of %s, not of %s who asks", id, caller)
	case !comparable || !public.Equal(request.key):
		return nil, errors.New("the certificate is for another key than the request's")
	case leaf.IsCA:
		return nil, errors.New("the certificate is an authority's")
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := a.path(certs, usage, now); err != nil {
			return nil, err
		}
	}
	blocks := [][]byte{EncodeCertificate(leaf)}
	for _, cert := range certs[1:] {
		if !bytes.Equal(cert.RawIssuer, cert.RawSubject) { // a root of the answer counts for nothing
			blocks = append(blocks, EncodeCertificate(cert))
		}
	}
	return append(blocks, a.pem), nil
}

// Serving checks the certificate of a server as its callers will and gives the authorities from the one that signed it to a root.
func (a *Anchors) Serving(cert *tls.Certificate, names []string, now time.Time) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, 0, len(cert.Certificate))
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse serving certificate: %w", err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("the serving certificate is empty")
	}
	for _, name := range names {
		if err := certs[0].VerifyHostname(name); err != nil {
			return nil, fmt.Errorf("the serving certificate is not good for the name %s, only for %v", name, certs[0].DNSNames)
		}
	}
	path, err := a.path(certs, x509.ExtKeyUsageServerAuth, now)
	if err != nil {
		return nil, err
	}
	return path[1:], nil
}

// path leads from the first certificate to a root.
func (a *Anchors) path(certs []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) ([]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	chains, err := certs[0].Verify(x509.VerifyOptions{Roots: a.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		last := certs[len(certs)-1]
		return nil, fmt.Errorf("the certificate leads to %q, which is none of the roots that the mesh trusts: %s", last.Issuer, a.subjects())
	}
	if err != nil {
		return nil, err
	}
	return chains[0], nil
}

// NewServingRequest makes a key for a server and a request for its certificate. Each name is a DNS name or an IP address.
func NewServingRequest(kind KeyKind, names []string) (key crypto.Signer, requestPEM []byte, err error) {
	if key, err = kind.generate(); err != nil {
		return nil, nil, fmt.Errorf("make serving request: generate key: %w", err)
	}
	template := &x509.CertificateRequest{}
	template.DNSNames, template.IPAddresses = splitNames(names)
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make serving request: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}), nil
}

// ServingCertificate puts a chain, the leaf first, and its key together.
func ServingCertificate(chainPEM []byte, key crypto.Signer) (*tls.Certificate, error) {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(chainPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("use serving certificate: %w", err)
	}
	return &cert, nil
}

// splitNames tells addresses from DNS names.
func splitNames(names []string) (dns []string, addresses []net.IP) {
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			addresses = append(addresses, net.IP(addr.Unmap().AsSlice()))
		} else {
			dns = append(dns, name)
		}
	}
	return dns, addresses
}
