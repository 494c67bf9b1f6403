package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"
)

// link is a certificate of a chain that somebody else has made.
type link struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// under makes an authority signed by parent, nil for itself.
func under(t testing.TB, parent *link, name string, change func(*x509.Certificate)) *link {
	t.Helper()
	key, err := ECDSA.generate()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if change != nil {
		change(template)
	}
	issuer, issuerKey := template, key
	if parent != nil {
		issuer, issuerKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &link{cert, key}
}

func (l *link) pem() []byte { return EncodeCertificate(l.cert) }
func (l *link) keyPEM(t testing.TB) []byte {
	t.Helper()
	pem, err := encodeKey(l.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem
}

func join(blocks ...[]byte) []byte { return bytes.Join(blocks, nil) }

var names = []string{"istiod.istio-system.svc"}

func TestAnIntermediateSignsWhatPeersBelieve(t *testing.T) {
	root, other := under(t, nil, "root", nil), under(t, nil, "other root", nil)
	middle := under(t, root, "middle", nil)
	own := under(t, middle, "own", nil)
	key := own.keyPEM(t)
	for name, p := range map[string]Plugged{
		"Istio's keys":               {Cert: own.pem(), Key: key, Chain: join(own.pem(), middle.pem(), root.pem()), Roots: root.pem()},
		"a chain without the ends":   {Cert: own.pem(), Key: key, Chain: middle.pem(), Roots: root.pem()},
		"cert-manager's keys":        {Cert: join(own.pem(), middle.pem()), Key: key, Roots: root.pem()},
		"two roots, the other first": {Cert: own.pem(), Key: key, Chain: middle.pem(), Roots: join(other.pem(), root.pem())},
	} {
		issuer, err := ParsePlugged(p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := issuer.Check("cluster.local", names, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		chain, err := issuer.SignWorkload(request(t), web, time.Hour, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		certs, err := ParseCertificates(join(chain...))
		if err != nil || len(certs) < 4 || !certs[1].Equal(own.cert) || !certs[2].Equal(middle.cert) || !certs[3].Equal(root.cert) {
			t.Errorf("%s: the chain has %d certificates, %v", name, len(certs), err)
		}
		if issuer.IsRoot() || !issuer.Root().Equal(root.cert) || !bytes.HasPrefix(issuer.RootPEM(), root.pem()) {
			t.Errorf("%s: the root that the chain leads to is not the first", name)
		}
		encoded, err := issuer.EncodePlugged()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParsePlugged(encoded); err != nil || !again.Equal(issuer) {
			t.Errorf("%s: it is not what it was after it was stored: %v", name, err)
		}
	}
}

func TestNothingOutlivesAnyOfItsIssuers(t *testing.T) {
	end := now.Add(30 * time.Minute)
	root := under(t, nil, "root", func(c *x509.Certificate) { c.NotAfter = end })
	own := under(t, root, "own", nil)
	issuer, err := ParsePlugged(Plugged{Cert: own.pem(), Key: own.keyPEM(t), Roots: root.pem()})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := issuer.SignWorkload(request(t), web, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := ParseCertificates(chain[0])
	if !leaf[0].NotAfter.Equal(end.Truncate(time.Second)) {
		t.Errorf("the leaf ends at %s, its root at %s", leaf[0].NotAfter, end)
	}
}

func TestParsePluggedSaysWhatIsWrong(t *testing.T) {
	root := under(t, nil, "root", nil)
	middle := under(t, root, "middle", nil)
	own := under(t, middle, "own", nil)
	good := Plugged{Cert: own.pem(), Key: own.keyPEM(t), Chain: middle.pem(), Roots: root.pem()}
	for name, c := range map[string]struct {
		change func(*Plugged)
		says   string
	}{
		"no certificate":        {func(p *Plugged) { p.Cert = nil }, "signing certificate"},
		"no key":                {func(p *Plugged) { p.Key = nil }, "signing key"},
		"another's key":         {func(p *Plugged) { p.Key = root.keyPEM(t) }, "not the certificate's key"},
		"no roots":              {func(p *Plugged) { p.Roots = nil }, "read roots"},
		"a root that is none":   {func(p *Plugged) { p.Roots = middle.pem() }, "not a self-signed authority"},
		"the middle is missing": {func(p *Plugged) { p.Chain = nil }, `issued by "CN=middle", leads to none of the 1 roots`},
		"another root":          {func(p *Plugged) { p.Roots = under(t, nil, "root", nil).pem() }, "leads to none"},
		"a cut chain":           {func(p *Plugged) { p.Chain = p.Chain[:50] }, "read chain"},
	} {
		p := good
		c.change(&p)
		if _, err := ParsePlugged(p); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
		}
	}
}

func TestCheckFindsWhatNoFieldShows(t *testing.T) {
	root := under(t, nil, "root", nil)
	for name, c := range map[string]struct {
		parent func(*x509.Certificate)
		own    func(*x509.Certificate)
		says   string
	}{
		"no room in the path": {func(c *x509.Certificate) { c.MaxPathLenZero = true }, nil, "too many intermediates"},
		"another trust domain only": {nil, func(c *x509.Certificate) {
			c.PermittedURIDomains = []string{"elsewhere"}
		}, "not permitted"},
		"servers only": {nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "key usage"},
		"over":         {nil, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, "expired"},
		"not begun":    {nil, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }, "not yet valid"},
	} {
		middle := under(t, root, "middle", c.parent)
		own := under(t, middle, "own", c.own)
		issuer, err := ParsePlugged(Plugged{Cert: own.pem(), Key: own.keyPEM(t), Chain: middle.pem(), Roots: root.pem()})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := issuer.Check("cluster.local", names, now); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
		}
	}
}

func TestBundleHashNamesTheSet(t *testing.T) {
	a, b := newRoot(t).RootPEM(), newRoot(t).RootPEM()
	hash := func(bundle []byte) string {
		t.Helper()
		h, err := BundleHash(bundle)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	if hash(join(a, b)) != hash(join([]byte("# comment\n"), b, a, a)) {
		t.Error("order, repetition or text around changes the hash")
	}
	if hash(a) == hash(b) || hash(a) == hash(join(a, b)) {
		t.Error("two sets have one hash")
	}
	merged, err := MergeRoots(a, nil, join(b, a))
	if err != nil || !bytes.Equal(merged, join(a, b)) {
		t.Errorf("merged wrongly: %v", err)
	}
}

func TestTrustingMoreKeepsTheOwnRootFirst(t *testing.T) {
	own, other := newRoot(t), newRoot(t)
	both, err := own.Trusting(join(other.RootPEM(), own.RootPEM()))
	if err != nil || !bytes.Equal(both.RootPEM(), join(own.RootPEM(), other.RootPEM())) {
		t.Fatalf("roots: %v", err)
	}
	chain, err := both.SignWorkload(request(t), web, time.Hour, now)
	if err != nil || !bytes.Equal(chain[len(chain)-1], both.RootPEM()) {
		t.Errorf("what is signed does not carry both roots: %v", err)
	}
	if !Trusts(both.RootPEM(), other.Root()) || Trusts(own.RootPEM(), other.Root()) {
		t.Error("who trusts whom?")
	}
}

func TestKeysOfEachKindAreMade(t *testing.T) {
	for text, want := range map[string]x509.PublicKeyAlgorithm{"ecdsa": x509.ECDSA, "": x509.ECDSA, "rsa": x509.RSA, "3072": x509.RSA} {
		kind, err := ParseKeyKind(text)
		if err != nil {
			t.Fatal(err)
		}
		root, err := NewRootOf(kind, "cluster.local", now)
		if err != nil {
			t.Fatal(err)
		}
		serving, err := root.ServingWith(kind).IssueServing(names, time.Hour, now)
		if err != nil || root.Certificate().PublicKeyAlgorithm != want || serving.Leaf.PublicKeyAlgorithm != want {
			t.Errorf("%s: %v %v", text, root.Certificate().PublicKeyAlgorithm, err)
		}
	}
	for _, text := range []string{"dsa", "1024", "8192", "-1"} {
		if _, err := ParseKeyKind(text); err == nil {
			t.Errorf("%q is a kind of key", text)
		}
	}
}

// ParsePlugged takes any bytes without crashing, and what it takes leads to its first root.
func FuzzParsePlugged(f *testing.F) {
	root := under(f, nil, "root", nil)
	own := under(f, root, "own", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} })
	f.Add(own.pem(), own.keyPEM(f), root.pem(), root.pem())
	f.Add(root.pem(), root.keyPEM(f), []byte(nil), root.pem())
	f.Fuzz(func(t *testing.T, cert, key, chain, roots []byte) {
		issuer, err := ParsePlugged(Plugged{Cert: cert, Key: key, Chain: chain, Roots: roots})
		if err == nil && !bytes.HasPrefix(issuer.RootPEM(), EncodeCertificate(issuer.Root())) {
			t.Fatal("the first root is another")
		}
	})
}
