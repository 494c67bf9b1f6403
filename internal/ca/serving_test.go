package ca

import (
	"crypto/tls"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes/fake"
)

func TestServingNames(t *testing.T) {
	a := newAuthority(t, fake.NewClientset(), func(c *Config) {
		c.Revision, c.ClusterDomain, c.ExtraNames = "asm-1234-1", "example.org", []string{"10.0.0.1", "localhost"}
	})
	want := []string{
		"istiod.istio-system", "istiod.istio-system.svc", "istiod.istio-system.svc.example.org",
		"istiod-asm-1234-1.istio-system", "istiod-asm-1234-1.istio-system.svc", "istiod-asm-1234-1.istio-system.svc.example.org",
		"10.0.0.1", "localhost",
	}
	if got := a.ServingNames(); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestServingCertificateIsRenewedAtHalfOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := loaded(t, nil)
		first, err := a.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(12*time.Hour - time.Second)
		if same, _ := a.GetCertificate(nil); same != first {
			t.Error("renewed too early")
		}
		time.Sleep(time.Second)
		if next, _ := a.GetCertificate(nil); next == first || time.Until(next.Leaf.NotAfter) != 24*time.Hour {
			t.Error("not renewed")
		}
		time.Sleep(30 * 24 * time.Hour) // a machine that slept
		if next, err := a.GetCertificate(nil); err != nil || time.Until(next.Leaf.NotAfter) != 24*time.Hour {
			t.Errorf("after a long time: %v", err)
		}
	})
}

// A connection that is open during the renewal stays, and the next one gets the new certificate.
func TestRenewalDropsNoConnection(t *testing.T) {
	a, _ := loaded(t, nil)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", a.TLSConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) { defer c.Close(); _, _ = io.Copy(c, c) }(conn)
		}
	}()
	dial := func() *tls.Conn {
		conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{
			RootCAs: a.root.Load().issuer.Pool(), ServerName: "istiod.istio-system.svc", NextProtos: []string{"h2"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	echo := func(c *tls.Conn) {
		t.Helper()
		buf := make([]byte, 4)
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
	}
	before := dial()
	echo(before)
	a.serving.mu.Lock()
	a.serving.renew = time.Time{} // as if half of its life were over
	a.serving.mu.Unlock()
	after := dial()
	echo(after)
	echo(before)
	if before.ConnectionState().PeerCertificates[0].Equal(after.ConnectionState().PeerCertificates[0]) {
		t.Error("the certificate was not renewed")
	}
}
