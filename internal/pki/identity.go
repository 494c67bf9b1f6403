// Package pki turns certificate requests into certificates. It is pure: it does no I/O and knows no clock (`now` is always an
// argument), so what it signs depends only on what it is given, besides randomness for keys and serial numbers.
//
// The identity inside a workload's certificate is always the authenticated caller's. A certificate request contributes its
// public key and nothing else.
package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// Identity is a workload's name in the mesh: the service account that it runs as.
type Identity struct {
	TrustDomain    string // "cluster.local"
	Namespace      string
	ServiceAccount string
}

const (
	scheme = "spiffe://"
	// maxID is the length, in bytes, that every SPIFFE implementation must support and none should exceed (SPIFFE-ID 2.3).
	maxID = 2048
	// maxTrustDomain is the length of the host component of a URI in bytes (SPIFFE-ID 2.1).
	maxTrustDomain = 255
	// maxNamespace and maxServiceAccount are Kubernetes' limits for names: a DNS label and a DNS subdomain.
	maxNamespace      = 63
	maxServiceAccount = 253
)

// String gives the SPIFFE ID: spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT.
func (id Identity) String() string {
	return scheme + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// IsZero reports whether id names nobody.
func (id Identity) IsZero() bool { return id == Identity{} }

// Validate says what keeps id from being a SPIFFE ID; nil when String is one that ParseIdentity takes back unchanged.
func (id Identity) Validate() error {
	if err := ValidateTrustDomain(id.TrustDomain); err != nil {
		return err
	}
	if err := validateSegment("namespace", id.Namespace, maxNamespace); err != nil {
		return err
	}
	return validateSegment("service account", id.ServiceAccount, maxServiceAccount)
}

// ParseIdentity reads a SPIFFE ID of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT and of no other: no upper
// case in the trust domain, no port, user, query, fragment, percent-encoding, empty or dot segment, no trailing slash.
func ParseIdentity(s string) (Identity, error) {
	if len(s) > maxID {
		return Identity{}, fmt.Errorf("parse SPIFFE ID: %d bytes, at most %d are allowed", len(s), maxID)
	}
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return Identity{}, fmt.Errorf("parse SPIFFE ID %q: does not begin with %s", s, scheme)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("parse SPIFFE ID %q: want %sTRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT", s, scheme)
	}
	id := Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if err := id.Validate(); err != nil {
		return Identity{}, fmt.Errorf("parse SPIFFE ID %q: %w", s, err)
	}
	return id, nil
}

// ValidateTrustDomain says what keeps s from being a trust domain: lower-case letters, digits, dots, dashes and underscores,
// at most 255 bytes (SPIFFE-ID 2.1), and no empty label, because Go's and other libraries refuse certificates with one.
func ValidateTrustDomain(s string) error {
	if s == "" {
		return fmt.Errorf("trust domain is empty")
	}
	if len(s) > maxTrustDomain {
		return fmt.Errorf("trust domain has %d bytes, at most %d are allowed", len(s), maxTrustDomain)
	}
	for i := range len(s) {
		if c := s[i]; !isLower(c) && !isDigit(c) && c != '.' && c != '-' && c != '_' {
			return fmt.Errorf("trust domain %q: %q is not allowed, only a-z, 0-9, '.', '-' and '_' are", s, c)
		}
	}
	if s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return fmt.Errorf("trust domain %q: it has an empty label", s)
	}
	return nil
}

// validateSegment checks one path segment by SPIFFE-ID 2.2.
func validateSegment(what, s string, max int) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is empty", what)
	case len(s) > max:
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", what, len(s), max)
	case s == "." || s == "..":
		return fmt.Errorf("%s is %q, which a path may not contain", what, s)
	}
	for i := range len(s) {
		c := s[i]
		if !isLower(c) && !isDigit(c) && !(c >= 'A' && c <= 'Z') && c != '.' && c != '-' && c != '_' {
			return fmt.Errorf("%s %q: %q is not allowed, only letters, digits, '.', '-' and '_' are", what, s, c)
		}
	}
	return nil
}

func isLower(c byte) bool { return c >= 'a' && c <= 'z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// CertificateIdentity returns the identity in a certificate. There must be exactly one URI name, as the X.509-SVID standard
// asks; it does not check who signed the certificate nor whether it is expired.
func CertificateIdentity(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 {
		return Identity{}, fmt.Errorf("read identity of certificate %q: it has %d URI names, a SPIFFE certificate has exactly one",
			cert.Subject, len(cert.URIs))
	}
	return ParseIdentity(cert.URIs[0].String())
}

// uri is id as the certificate library wants it. id must be valid: then nothing in it needs escaping.
func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}
}
