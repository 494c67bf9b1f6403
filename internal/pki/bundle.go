package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
)

// Fingerprint is the SHA-256 of a certificate in hexadecimal, as `openssl x509 -fingerprint -sha256` without colons.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// BundleHash names a set of roots: 32 hexadecimal digits that do not depend on the roots' order, on repetitions or on the text
// around them. Who trusts the same roots has the same hash.
func BundleHash(rootsPEM []byte) (string, error) {
	certs, err := ParseCertificates(rootsPEM)
	if err != nil {
		return "", err
	}
	sums := make([][]byte, 0, len(certs))
	for _, cert := range certs {
		sum := sha256.Sum256(cert.Raw)
		sums = append(sums, sum[:])
	}
	slices.SortFunc(sums, bytes.Compare)
	sums = slices.CompactFunc(sums, bytes.Equal)
	whole := sha256.Sum256(bytes.Join(sums, nil))
	return hex.EncodeToString(whole[:16]), nil
}

// MergeRoots gives the roots of several bundles, each once, in the order in which they come. Empty bundles are passed over.
func MergeRoots(bundles ...[]byte) ([]byte, error) {
	var all []*x509.Certificate
	for _, bundle := range bundles {
		if len(trimSpace(bundle)) == 0 {
			continue
		}
		certs, err := ParseCertificates(bundle)
		if err != nil {
			return nil, err
		}
		all = append(all, certs...)
	}
	var merged []byte
	for _, cert := range distinct(all) {
		merged = append(merged, EncodeCertificate(cert)...)
	}
	return merged, nil
}

// Trusts reports whether a bundle of roots holds the certificate. A bundle that cannot be read holds none.
func Trusts(rootsPEM []byte, root *x509.Certificate) bool {
	certs, err := ParseCertificates(rootsPEM)
	return err == nil && slices.ContainsFunc(certs, root.Equal)
}

// distinct gives each certificate once, in the order of first mention.
func distinct(certs []*x509.Certificate) []*x509.Certificate {
	out := make([]*x509.Certificate, 0, len(certs))
	for _, cert := range certs {
		if !slices.ContainsFunc(out, cert.Equal) {
			out = append(out, cert)
		}
	}
	return out
}
