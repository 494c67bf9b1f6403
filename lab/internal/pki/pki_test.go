package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"testing"
	"time"
)

func parse(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	if _, err := tls.X509KeyPair(p.Cert, p.Key); err != nil {
		t.Fatalf("certificate and key do not belong together: %v", err)
	}
	block, _ := pem.Decode(p.Cert)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAClusterTrustsWhatItsAuthorityIssued(t *testing.T) {
	set := Set{Dir: t.TempDir()}
	host := net.IPv4(10, 244, 255, 1)
	if err := set.Ensure(Params{Node: "lab", Addresses: []net.IP{host}}); err != nil {
		t.Fatal(err)
	}
	roots := map[string]*x509.CertPool{}
	for _, name := range []string{CA, FrontProxyCA} {
		pair, err := set.Pair(name)
		if err != nil {
			t.Fatal(err)
		}
		roots[name] = x509.NewCertPool()
		roots[name].AddCert(parse(t, pair))
	}
	for _, c := range []struct {
		name, by string
		usage    x509.ExtKeyUsage
		host     string
	}{
		{APIServer, CA, x509.ExtKeyUsageServerAuth, "127.0.0.1"},
		{APIServer, CA, x509.ExtKeyUsageServerAuth, "10.96.0.1"},
		{APIServer, CA, x509.ExtKeyUsageServerAuth, "10.244.255.1"},
		{APIServer, CA, x509.ExtKeyUsageServerAuth, "kubernetes.default.svc"},
		{KubeletServer, CA, x509.ExtKeyUsageServerAuth, "10.244.255.1"},
		{EtcdServer, CA, x509.ExtKeyUsageServerAuth, "127.0.0.1"},
		{EtcdServer, CA, x509.ExtKeyUsageClientAuth, ""}, // as its own peer
		{Admin, CA, x509.ExtKeyUsageClientAuth, ""},
		{Kubelet, CA, x509.ExtKeyUsageClientAuth, ""},
		{FrontProxyClient, FrontProxyCA, x509.ExtKeyUsageClientAuth, ""},
	} {
		pair, err := set.Pair(c.name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = parse(t, pair).Verify(x509.VerifyOptions{Roots: roots[c.by], DNSName: c.host, KeyUsages: []x509.ExtKeyUsage{c.usage}})
		if err != nil {
			t.Errorf("%s for %q: %v", c.name, c.host, err)
		}
	}
	pair, _ := set.Pair(FrontProxyClient)
	if _, err := parse(t, pair).Verify(x509.VerifyOptions{Roots: roots[CA], KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("the cluster's authority signed the front proxy's certificate: whoever has it could be any user")
	}
}

func TestACompleteSetIsKept(t *testing.T) {
	set := Set{Dir: t.TempDir()}
	if err := set.Ensure(Params{Node: "lab"}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(set.Cert(CA))
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Ensure(Params{Node: "lab"}); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(set.Cert(CA))
	if string(before) != string(after) {
		t.Error("a second Ensure made a new authority: running programs would not be trusted any more")
	}
}

func TestAKeyOfAnotherAuthorityIsRefused(t *testing.T) {
	a, err := NewAuthority("a", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewAuthority("b", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseAuthority(Pair{Cert: a.Pair().Cert, Key: b.Pair().Key}, time.Now); err == nil {
		t.Error("a certificate with a foreign key was taken")
	}
}
