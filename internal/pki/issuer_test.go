package pki

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"
)

var web = Identity{"cluster.local", "shop", "web"}

func newRoot(t testing.TB) *Issuer {
	t.Helper()
	root, err := NewRoot("cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func request(t testing.TB) *Request {
	t.Helper()
	_, requestPEM, err := NewRequest(Identity{"cluster.local", "other", "other"})
	if err != nil {
		t.Fatal(err)
	}
	req, err := ParseRequest(requestPEM)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// verifyChain checks a workload's chain as a peer would, at `now`, and returns its leaf.
func verifyChain(t testing.TB, root *Issuer, chain [][]byte) *x509.Certificate {
	t.Helper()
	if len(chain) < 2 || !bytes.Equal(chain[len(chain)-1], root.RootPEM()) {
		t.Fatalf("the chain of %d does not end with the root", len(chain))
	}
	certs, err := ParseCertificates(bytes.Join(chain, nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		opts := x509.VerifyOptions{Roots: root.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
		if _, err := certs[0].Verify(opts); err != nil {
			t.Fatal(err)
		}
	}
	return certs[0]
}

func TestWorkloadCertificateCarriesTheCallersIdentityOnly(t *testing.T) {
	root := newRoot(t)
	req, err := ParseRequest(requestFor(t, ecKey(t, elliptic.P256()), 0)) // asks to be istiod
	if err != nil {
		t.Fatal(err)
	}
	chain, err := root.SignWorkload(req, web, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf := verifyChain(t, root, chain)
	if id, err := CertificateIdentity(leaf); err != nil || id != web {
		t.Errorf("identity %v, %v; want %v", id, err, web)
	}
	if len(leaf.DNSNames) > 0 || leaf.Subject.String() != "" || leaf.IsCA {
		t.Errorf("names of the request were taken over: %v %v", leaf.DNSNames, leaf.Subject)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("key usage %v", leaf.KeyUsage)
	}
}

func TestLifetimeOfALeaf(t *testing.T) {
	root := newRoot(t)
	for name, c := range map[string]struct {
		lifetime   time.Duration
		now        time.Time
		start, end time.Time
	}{
		"begins before now, for late clocks": {time.Hour, now.Add(time.Hour), now.Add(time.Hour - Backdate), now.Add(2 * time.Hour)},
		"never begins before its issuer":     {time.Hour, now.Add(-time.Minute), now.Add(-Backdate), now.Add(59 * time.Minute)},
		"never outlives its issuer":          {20 * RootLifetime / 2, now.Add(time.Hour), now.Add(time.Hour - Backdate), root.NotAfter()},
	} {
		chain, err := root.SignWorkload(request(t), web, c.lifetime, c.now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		certs, _ := ParseCertificates(chain[0])
		if !certs[0].NotBefore.Equal(c.start) || !certs[0].NotAfter.Equal(c.end) {
			t.Errorf("%s: valid from %s to %s, want %s to %s", name, certs[0].NotBefore, certs[0].NotAfter, c.start, c.end)
		}
	}
	if _, err := root.SignWorkload(request(t), web, time.Hour, root.NotAfter()); !errors.Is(err, ErrIssuerExpired) {
		t.Errorf("an expired root signed: %v", err)
	}
	if _, err := root.SignWorkload(request(t), web, 0, now); err == nil {
		t.Error("a certificate of no lifetime was signed")
	}
	if _, err := root.SignWorkload(request(t), Identity{"cluster.local", "a/b", "c"}, time.Hour, now); err == nil {
		t.Error("an identity that is no SPIFFE ID was signed")
	}
}

func TestRootIsReadBack(t *testing.T) {
	root := newRoot(t)
	certPEM, keyPEM, err := root.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseRoot(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := again.SignWorkload(request(t), web, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	verifyChain(t, root, chain)
	c := root.Certificate()
	if !c.IsCA || c.MaxPathLen != 0 || !c.MaxPathLenZero || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("root: CA %v, path length %d, key usage %v", c.IsCA, c.MaxPathLen, c.KeyUsage)
	}
	if got := c.NotAfter.Sub(now); got != RootLifetime {
		t.Errorf("root lives %s", got)
	}
}

func TestRootOfOtherToolsIsRead(t *testing.T) {
	key := rsaKey(t, 2048)
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{Organization: []string{"cluster.local"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	root, err := ParseRoot(encodeCertificate(der), keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := root.SignWorkload(request(t), web, time.Minute, now)
	if err != nil {
		t.Fatal(err)
	}
	verifyChain(t, root, chain)
}

func TestParseRootSaysWhatIsWrong(t *testing.T) {
	certPEM, keyPEM, _ := newRoot(t).Encode()
	otherCert, otherKey, _ := newRoot(t).Encode()
	serving, err := newRoot(t).IssueServing([]string{"x"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cert, key []byte
		says      string
	}{
		"no certificate":       {nil, keyPEM, "empty"},
		"garbage certificate":  {[]byte("garbage"), keyPEM, "not PEM"},
		"truncated":            {certPEM[:len(certPEM)/2], keyPEM, "cut or damaged"},
		"two certificates":     {append(bytes.Clone(certPEM), otherCert...), keyPEM, "2 certificates"},
		"a key as certificate": {keyPEM, keyPEM, `"PRIVATE KEY", want "CERTIFICATE"`},
		"no key":               {certPEM, nil, "no private key"},
		"garbage key":          {certPEM, []byte("garbage"), "no private key"},
		"another's key":        {certPEM, otherKey, "not the certificate's key"},
		"a leaf":               {encodeCertificate(serving.Certificate[0]), keyPEM, "not an authority"},
	} {
		_, err := ParseRoot(c.cert, c.key)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
		}
		if err != nil && bytes.Contains([]byte(err.Error()), []byte("BEGIN")) {
			t.Errorf("%s: the error quotes key material: %v", name, err)
		}
	}
}

func TestServingCertificateServesItsNamesAndIsNoClient(t *testing.T) {
	root := newRoot(t)
	cert, err := root.IssueServing([]string{"istiod.istio-system.svc", "127.0.0.1", "::1"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"istiod.istio-system.svc", "127.0.0.1", "::1"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: root.Pool(), CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: root.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("the serving certificate can be used as a client's")
	}
	if _, err := CertificateIdentity(cert.Leaf); err == nil {
		t.Error("the serving certificate is an identity")
	}
	if _, err := root.IssueServing(nil, time.Hour, now); err == nil {
		t.Error("a certificate for no name was issued")
	}
}

func TestParseCertificatesTakesABundleWithComments(t *testing.T) {
	a, b := string(newRoot(t).RootPEM()), string(newRoot(t).RootPEM())
	for name, bundle := range map[string]string{
		"two":           a + b,
		"empty lines":   a + "\n\n" + b + "\n",
		"with comments": "subject=CN = a\n" + a + "# the second\n" + b + "# end\n",
	} {
		if certs, err := ParseCertificates([]byte(bundle)); err != nil || len(certs) != 2 {
			t.Errorf("%s: %d certificates, %v", name, len(certs), err)
		}
	}
	for name, bundle := range map[string]string{
		"second is cut":        a + b[:len(b)-30],
		"second lost its head": a + b[30:],
		"only space":           " \n",
		"only text":            "hello",
		"too much":             a + strings.Repeat("\n", maxBundle),
	} {
		if certs, err := ParseCertificates([]byte(bundle)); err == nil {
			t.Errorf("%s: %d certificates and no error", name, len(certs))
		}
	}
}

// A bundle that parses holds exactly the certificates that its encoding gives back.
func FuzzParseCertificates(f *testing.F) {
	root := newRoot(f).RootPEM()
	f.Add(root)
	f.Add(append(bytes.Clone(root), root...))
	f.Add(root[:len(root)-5])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ParseCertificates(data)
		if err != nil {
			return
		}
		var again []byte
		for _, c := range certs {
			again = append(again, EncodeCertificate(c)...)
		}
		back, err := ParseCertificates(again)
		if err != nil || len(back) != len(certs) {
			t.Fatalf("%d certificates became %d, %v", len(certs), len(back), err)
		}
	})
}

// parseKey and ParseRoot take any bytes without crashing.
func FuzzParseRoot(f *testing.F) {
	certPEM, keyPEM, _ := newRoot(f).Encode()
	f.Add(certPEM, keyPEM)
	f.Add(certPEM, []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"))
	f.Fuzz(func(t *testing.T, certPEM, keyPEM []byte) {
		if root, err := ParseRoot(certPEM, keyPEM); err == nil && len(root.RootPEM()) == 0 {
			t.Fatal("a root without a certificate")
		}
	})
}
