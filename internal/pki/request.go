package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	// maxRequest is the size of a certificate request in bytes of PEM: an RSA 4096 request with names has under 3 KiB.
	maxRequest = 16 << 10

	minRSABits = 2048
	maxRSABits = 4096

	requestBlock = "CERTIFICATE REQUEST"
)

// Request is a certificate request whose key is of an allowed kind and whose signature proves that the sender holds it. Names
// and extensions that it asks for are dropped on purpose, where this package signs; for those who sign by the request itself see Only.
type Request struct {
	key crypto.PublicKey
	csr *x509.CertificateRequest
}

// requestAlgorithms are the signatures that a request may carry: nothing older than SHA-256.
var requestAlgorithms = map[x509.SignatureAlgorithm]bool{
	x509.ECDSAWithSHA256: true, x509.ECDSAWithSHA384: true, x509.ECDSAWithSHA512: true,
	x509.SHA256WithRSA: true, x509.SHA384WithRSA: true, x509.SHA512WithRSA: true,
	x509.SHA256WithRSAPSS: true, x509.SHA384WithRSAPSS: true, x509.SHA512WithRSAPSS: true,
}

// ParseRequest reads one PEM-encoded PKCS #10 request. Sizes are checked before any cryptography, so that a hostile request
// costs little.
func ParseRequest(requestPEM []byte) (*Request, error) {
	if len(requestPEM) > maxRequest {
		return nil, fmt.Errorf("parse certificate request: %d bytes, at most %d are allowed", len(requestPEM), maxRequest)
	}
	block, rest := pem.Decode(requestPEM)
	if block == nil {
		return nil, errors.New("parse certificate request: not PEM")
	}
	if block.Type != requestBlock {
		return nil, fmt.Errorf("parse certificate request: PEM block is %q, want %q", block.Type, requestBlock)
	}
	if len(trimSpace(rest)) > 0 {
		return nil, errors.New("parse certificate request: there is more after the first PEM block")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if !requestAlgorithms[csr.SignatureAlgorithm] {
		return nil, fmt.Errorf("parse certificate request: signature algorithm %s is not allowed, use SHA-256 or better", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("parse certificate request: its signature does not fit its key: %w", err)
	}
	return &Request{key: csr.PublicKey, csr: csr}, nil
}

// subjectAltName is the extension that holds names (RFC 5280 4.2.1.6).
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// uriName is the tag of a URI among the kinds of names (RFC 5280 4.2.1.6).
const uriName = 6

// Only says what a request asks for besides the identity of who sent it; nil when that is all. It is for authorities that sign what
// stands in a request: whatever they may copy from it is looked at. Of the subject, an organization may be the trust domain or empty,
// as sidecars send it: Kubernetes takes organizations and common names of client certificates for groups and users.
func (r *Request) Only(id Identity) error {
	c, names := r.csr, 0
	// The bytes are compared, since the library passes over kinds of names that it does not know.
	want, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: uriName, Bytes: []byte(id.String())}})
	if err != nil {
		return err
	}
	for _, e := range c.Extensions {
		switch {
		case !e.Id.Equal(subjectAltName):
			return fmt.Errorf("the request asks for the extension %s: only names are allowed", e.Id)
		case !bytes.Equal(e.Value, want):
			return fmt.Errorf("the request asks for the names %v %v %v %v or more: it may ask for %s alone, who sent it",
				c.URIs, c.DNSNames, c.IPAddresses, c.EmailAddresses, id)
		}
		names++
	}
	if names != 1 {
		return fmt.Errorf("the request asks for no name: it must ask for %s, who sent it", id)
	}
	for _, name := range c.Subject.Names {
		if value, ok := name.Value.(string); !ok || !name.Type.Equal(organization) || value != "" && value != id.TrustDomain {
			return fmt.Errorf("the request asks for the subject %q: leave it empty", c.Subject)
		}
	}
	return nil
}

// organization is the attribute O of a subject.
var organization = asn1.ObjectIdentifier{2, 5, 4, 10}

// checkKey holds the list of keys that a workload may have: those that Envoy can serve with.
func checkKey(key crypto.PublicKey) error {
	const allowed = "use ECDSA P-256 or P-384, or RSA of 2048 to 4096 bits"
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("ECDSA curve %s is not allowed: %s", k.Curve.Params().Name, allowed)
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("RSA key of %d bits is not allowed: %s", bits, allowed)
		}
		if k.E < 65537 || k.E%2 == 0 {
			return fmt.Errorf("RSA exponent %d is not allowed: use 65537", k.E)
		}
		return nil
	case ed25519.PublicKey:
		return fmt.Errorf("Ed25519 keys are not allowed, because Envoy cannot serve with them: %s", allowed)
	}
	return fmt.Errorf("key type %T is not allowed: %s", key, allowed)
}

// NewRequest makes a fresh ECDSA P-256 key and a request for it: see NewRequestOf.
func NewRequest(id Identity) (keyPEM, requestPEM []byte, err error) { return NewRequestOf(ECDSA, id) }

// NewRequestOf makes a fresh key and a request for it, both in PEM (PKCS #8 and PKCS #10). The identity is only a hint for an
// authority that goes by who is asking, as ours does; a signer of Kubernetes goes by the request.
func NewRequestOf(kind KeyKind, id Identity) (keyPEM, requestPEM []byte, err error) {
	if err := id.Validate(); err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	key, err := kind.generate()
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: generate key: %w", err)
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{id.TrustDomain}}}
	template.URIs = append(template.URIs, id.uri())
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}), nil
}
