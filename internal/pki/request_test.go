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
	"encoding/pem"
	"net/url"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// requestFor makes a request as a client would, with a foreign identity and names in it.
func requestFor(t testing.TB, key crypto.Signer, alg x509.SignatureAlgorithm) []byte {
	t.Helper()
	template := &x509.CertificateRequest{
		Subject:            pkix.Name{CommonName: "admin"},
		DNSNames:           []string{"istiod.istio-system.svc"},
		URIs:               []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/istio-system/sa/istiod"}},
		SignatureAlgorithm: alg,
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeysThatEnvoyCanServeWithAreTaken(t *testing.T) {
	for name, key := range map[string]crypto.Signer{
		"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "RSA 2048": rsaKey(t, 2048),
	} {
		req, err := ParseRequest(requestFor(t, key, 0))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		root := newRoot(t)
		chain, err := root.SignWorkload(req, web, time.Hour, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		verifyChain(t, root, chain)
	}
	if _, err := ParseRequest(requestFor(t, rsaKey(t, 2048), x509.SHA256WithRSAPSS)); err != nil {
		t.Errorf("RSA PSS: %v", err)
	}
}

func TestParseRequestRefuses(t *testing.T) {
	good := requestFor(t, ecKey(t, elliptic.P256()), 0)
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	block, _ := pem.Decode(good)
	tampered := bytes.Clone(block.Bytes)
	tampered[len(tampered)-1] ^= 1
	for name, c := range map[string]struct {
		pem  []byte
		says string
	}{
		"nothing":              {nil, "not PEM"},
		"not PEM":              {[]byte("hello"), "not PEM"},
		"a certificate":        {newRoot(t).RootPEM(), `PEM block is "CERTIFICATE"`},
		"two requests":         {append(bytes.Clone(good), good...), "more after the first PEM block"},
		"an empty block":       {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST"}), "parse certificate request"},
		"too much":             {append(bytes.Clone(good), bytes.Repeat([]byte(" "), maxRequest)...), "at most"},
		"a signature of other": {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: tampered}), "signature does not fit"},
		"Ed25519":              {requestFor(t, edKey, 0), "Envoy cannot serve"},
		"P-224":                {requestFor(t, ecKey(t, elliptic.P224()), 0), "P-224"},
		"P-521":                {requestFor(t, ecKey(t, elliptic.P521()), 0), "P-521"},
		"RSA 1024":             {weakRSARequest, "1024 bits"},
		"SHA-1":                {sha1Request, "not allowed"},
	} {
		_, err := ParseRequest(c.pem)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
		}
	}
}

func TestNewRequestIsTakenByParseRequest(t *testing.T) {
	keyPEM, requestPEM, err := NewRequest(web)
	if err != nil {
		t.Fatal(err)
	}
	req, err := ParseRequest(requestPEM)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	if !key.Public().(*ecdsa.PublicKey).Equal(req.key) {
		t.Error("the request is for another key")
	}
}

// Whatever a request holds, a certificate made from it has the caller's identity and nothing of the request but the key.
func FuzzParseRequest(f *testing.F) {
	f.Add(requestFor(f, ecKey(f, elliptic.P256()), 0))
	f.Add(requestFor(f, ecKey(f, elliptic.P384()), x509.ECDSAWithSHA512))
	f.Add(weakRSARequest)
	f.Add(sha1Request)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	root := newRoot(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := ParseRequest(data)
		if err != nil {
			return
		}
		chain, err := root.SignWorkload(req, web, time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		leaf := verifyChain(t, root, chain)
		if id, err := CertificateIdentity(leaf); err != nil || id != web {
			t.Fatalf("identity %v, %v", id, err)
		}
		if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.IsCA || leaf.Subject.String() != "" {
			t.Fatalf("something of the request is in the certificate: %+v", leaf)
		}
	})
}
