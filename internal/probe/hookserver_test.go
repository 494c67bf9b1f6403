//go:build apiserver

package probe_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hookServer is what the API server finds where the webhooks lead: on an address of the lab's own network, or of the machine where
// the lab has none.
type hookServer struct {
	testing.TB
	namespace string // network namespace; "" for the test's own
	host      string
	port      int
	root      []byte
	tls       *tls.Config
	stop      func()
}

func newHookServer(t testing.TB, kubeconfig string) *hookServer {
	t.Helper()
	h := &hookServer{TB: t, stop: func() {}}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(kubeconfig), "lab.json"))
	if err != nil {
		t.Fatalf("needs a lab, whose network it enters: %v", err)
	}
	var lab struct {
		NetworkNamespace, Host string
	}
	if err := json.Unmarshal(data, &lab); err != nil {
		t.Fatal(err)
	}
	h.namespace, h.host = lab.NetworkNamespace, labHost
	if h.namespace == "" {
		h.host = machineAddress(t)
	}
	root := newRoot(t)
	h.root = root.certPEM
	h.tls = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{root.issue(t, "istiod.istio-system.svc")}}
	l := h.listen(nil)
	h.port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	t.Cleanup(func() { h.stop() })
	return h
}

// labHost is the address of every lab in its own network.
const labHost = "10.244.255.1"

func machineAddress(t testing.TB) string {
	t.Helper()
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatal("needs an address of this machine that a Service may lead to: run it as root, where a lab has a network of its own")
	return ""
}

// listen opens the port inside the network.
func (h *hookServer) listen(control func(fd uintptr) error) (l net.Listener) {
	h.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if control != nil {
			_ = c.Control(func(fd uintptr) { err = control(fd) })
		}
		return err
	}}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if h.namespace != "" {
			fd, err := unix.Open("/run/netns/"+h.namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(fd, unix.CLONE_NEWNET)
			}
			if err != nil {
				done <- err
				return
			}
		}
		var err error
		l, err = config.Listen(context.Background(), "tcp4", (&net.TCPAddr{IP: net.ParseIP(h.host), Port: h.port}).String())
		done <- err
	}()
	if err := <-done; err != nil {
		h.Fatalf("listen in the lab's network: %v", err)
	}
	return l
}

// serve answers with the handler over TLS, in the place of what answered before, whose connections end.
func (h *hookServer) serve(handler http.Handler) { h.start(handler, h.tls) }

// servePlain answers without TLS.
func (h *hookServer) servePlain(handler http.Handler) { h.start(handler, nil) }

func (h *hookServer) start(handler http.Handler, config *tls.Config) {
	h.Helper()
	h.close()
	server := &http.Server{Handler: handler, TLSConfig: config, ReadHeaderTimeout: time.Minute}
	l := h.listen(nil)
	go func() {
		if config == nil {
			_ = server.Serve(l)
		} else {
			_ = server.ServeTLS(l, "", "")
		}
	}()
	h.stop = func() { _ = server.Close() }
}

// close leaves the port closed: connections are refused.
func (h *hookServer) close() {
	h.stop()
	h.stop = func() {}
}

// drop makes the port swallow what is sent to it, as a firewall does: a filter in the kernel drops every packet before TCP sees it.
func (h *hookServer) drop() {
	h.Helper()
	h.close()
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	l := h.listen(func(fd uintptr) error {
		return unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]})
	})
	h.stop = func() { _ = l.Close() }
}

// root is a certificate authority of the test's own.
type root struct {
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	certPEM []byte
}

func newRoot(t testing.TB) *root {
	t.Helper()
	r := &root{cert: &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root of a test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}}
	var err error
	if r.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, r.cert, r.cert, r.key.Public(), r.key)
	if err != nil {
		t.Fatal(err)
	}
	r.certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return r
}

func (r *root) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: r.cert.NotBefore, NotAfter: r.cert.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, r.cert, key.Public(), r.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
