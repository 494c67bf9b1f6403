package pki

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Plugged is an authority that somebody else has made for the mesh, in PEM.
type Plugged struct {
	Cert  []byte // the signing certificate; more of its chain may follow
	Key   []byte
	Chain []byte // from the signing certificate up; may repeat it and the root, may be empty
	Roots []byte // what peers trust: one or more self-signed certificates
}

// maxPath is how many certificates may lead from an issuer to its root, both counted.
const maxPath = 8

// ParsePlugged reads an authority and says what is wrong with it: what ParseRoot finds, a chain that leads to none of the roots, a
// root that is not self-signed. Of several roots the one that the chain leads to becomes the first. What has expired parses; it
// only signs nothing.
func ParsePlugged(p Plugged) (*Issuer, error) {
	own, err := ParseCertificates(p.Cert)
	if err != nil {
		return nil, fmt.Errorf("read signing certificate: %w", err)
	}
	key, err := parseKey(p.Key)
	if err != nil {
		return nil, fmt.Errorf("read signing key: %w", err)
	}
	if err := checkAuthority(own[0], key); err != nil {
		return nil, fmt.Errorf("read signing certificate: %w", err)
	}
	roots, err := ParseCertificates(p.Roots)
	if err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	for _, root := range roots {
		if !root.IsCA || !isSelfSigned(root) {
			return nil, fmt.Errorf("read roots: the certificate of %q is not a self-signed authority, it was issued by %q", root.Subject, root.Issuer)
		}
	}
	between := own[1:]
	if len(trimSpace(p.Chain)) > 0 {
		chain, err := ParseCertificates(p.Chain)
		if err != nil {
			return nil, fmt.Errorf("read chain: %w", err)
		}
		between = append(slices.Clone(between), chain...)
	}
	path := findPath(own[0], between, roots)
	if path == nil {
		return nil, fmt.Errorf("the signing certificate of %q, issued by %q, leads to none of the %d roots: is a certificate of the chain missing?",
			own[0].Subject, own[0].Issuer, len(roots))
	}
	return newIssuer(path, roots, key), nil
}

// findPath leads from a certificate to one of the roots, over certificates in between. Validity in time is not looked at.
func findPath(from *x509.Certificate, between, roots []*x509.Certificate) []*x509.Certificate {
	if slices.ContainsFunc(roots, from.Equal) {
		return []*x509.Certificate{from}
	}
	path := []*x509.Certificate{from}
	for len(path) < maxPath {
		last := path[len(path)-1]
		if n := slices.IndexFunc(roots, func(c *x509.Certificate) bool { return last.CheckSignatureFrom(c) == nil }); n >= 0 {
			return append(path, roots[n])
		}
		n := slices.IndexFunc(between, func(c *x509.Certificate) bool {
			return !slices.ContainsFunc(path, c.Equal) && last.CheckSignatureFrom(c) == nil
		})
		if n < 0 {
			return nil
		}
		path = append(path, between[n])
	}
	return nil
}

// Check signs as the mesh will and believes it as peers will: a workload's certificate of the trust domain and a serving certificate
// of the names. It finds what no single field shows: a path length that leaves no room, name constraints, extended key usages of an
// authority above, an end that has come.
func (i *Issuer) Check(trustDomain string, names []string, now time.Time) error {
	id := Identity{TrustDomain: trustDomain, Namespace: "istio-system", ServiceAccount: "istiod"}
	_, requestPEM, err := NewRequest(id)
	if err != nil {
		return err
	}
	request, err := ParseRequest(requestPEM)
	if err != nil {
		return err
	}
	chain, err := i.SignWorkload(request, id, time.Hour, now)
	if err != nil {
		return err
	}
	leaf, err := ParseCertificates(chain[0])
	if err != nil {
		return err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := i.believe(leaf[0], usage, now); err != nil {
			return fmt.Errorf("peers would not believe a workload's certificate: %w", err)
		}
	}
	serving, err := i.IssueServing(names, time.Hour, now)
	if err != nil {
		return err
	}
	if err := i.believe(serving.Leaf, x509.ExtKeyUsageServerAuth, now); err != nil {
		return fmt.Errorf("the API server would not believe the control plane's certificate: %w", err)
	}
	return nil
}

func (i *Issuer) believe(leaf *x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	between := x509.NewCertPool()
	for _, cert := range i.path[:len(i.path)-1] {
		between.AddCert(cert)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: i.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

// EncodePlugged gives the issuer as ParsePlugged reads it.
func (i *Issuer) EncodePlugged() (p Plugged, err error) {
	if p.Cert, p.Key, err = i.Encode(); err != nil {
		return Plugged{}, err
	}
	for _, cert := range i.path {
		p.Chain = append(p.Chain, EncodeCertificate(cert)...)
	}
	p.Roots = i.roots
	return p, nil
}
