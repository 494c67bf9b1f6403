package cli_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kubeconfigOf leads to a server. trusted is its certificate, nil to check none.
func kubeconfigOf(t *testing.T, server, name string, trusted *x509.Certificate) string {
	t.Helper()
	trust := "insecure-skip-tls-verify: true"
	if !strings.HasPrefix(server, "https:") {
		trust = "insecure-skip-tls-verify: false"
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if trusted != nil {
		ca := path + ".crt"
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: trusted.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		trust = fmt.Sprintf("certificate-authority: %q", ca)
	}
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, %s}}]\nusers: [{name: u, user: {token: t}}]\n"+
		"contexts: [{name: %s, context: {cluster: c, user: u}}]\ncurrent-context: %s\n", server, trust, name, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// listen takes connections and gives every connection to handle, which need not close it.
func listen(t *testing.T, handle func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

// server answers every request over TLS with a status and a body.
func server(t *testing.T, code int, body string, change func(*httptest.Server)) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if strings.HasPrefix(body, "{") {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if change != nil {
		change(s)
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func status(code int, reason, message string) string {
	return fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":%q}`, code, reason, message)
}

// expired is a certificate of 127.0.0.1 that ended yesterday.
func expired(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestWhyAnAPIServerCannotBeUsed holds each way in which a connection or a request fails, at a real listener, to one line that
// names the server, the cause and the next step, and to exit code 2.
func TestWhyAnAPIServerCannotBeUsed(t *testing.T) {
	closes := listen(t, func(net.Conn) {})
	resets := listen(t, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) })
	halfway := listen(t, func(c net.Conn) { _, _ = io.ReadFull(c, make([]byte, 20)) }) // part of the handshake
	noTLS := listen(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 mail.example.com ESMTP\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	gone := listen(t, func(net.Conn) {})
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		gone = l.Addr().String()
		l.Close()
	}
	stranger := server(t, 200, "{}", nil)
	old := expired(t)
	ended := server(t, 200, "{}", func(s *httptest.Server) { s.TLS = &tls.Config{Certificates: []tls.Certificate{old}} })
	mutual := server(t, 200, "{}", func(s *httptest.Server) { s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert} })
	ok := server(t, 200, "{}", nil).Certificate()
	answers := func(code int, body string) string { return server(t, code, body, nil).URL }

	for name, c := range map[string]struct {
		server  string
		trusted *x509.Certificate
		context string // "" is "c"
		says    []string
	}{
		"nobody listens":       {server: "https://" + gone, says: []string{"cannot reach the API server at https://" + gone + ": connection refused; is it running?", "--context"}},
		"in a lab":             {server: "https://" + gone, context: "selvage-lab", says: []string{"connection refused", "`selvage up`, with the --dir that made it, mends it"}},
		"dead behind a lab's":  {server: "https://" + closes, context: "selvage-lab", says: []string{"closed the connection without an answer", "`selvage up`"}},
		"dead behind another":  {server: "https://" + closes, says: []string{"closed the connection without an answer", "is it running?"}},
		"dead, plain":          {server: "http://" + closes, says: []string{"closed the connection without an answer", "is it running?"}},
		"resets":               {server: "https://" + resets, says: []string{"closed the connection without an answer", "is it running?"}},
		"ends in a handshake":  {server: "https://" + halfway, says: []string{"closed the connection without an answer", "is it running?"}},
		"no such name":         {server: "https://api.invalid", says: []string{"cannot reach the API server at https://api.invalid: ", "--context"}},
		"HTTP on that port":    {server: strings.Replace(plain.URL, "http:", "https:", 1), says: []string{"does not speak TLS", "is its address in the kubeconfig right?"}},
		"mail on that port":    {server: "https://" + noTLS, says: []string{"does not speak TLS", "is its address in the kubeconfig right?"}},
		"another's kubeconfig": {server: stranger.URL, trusted: old.Leaf, says: []string{"shows a certificate that the kubeconfig does not trust", "is it the kubeconfig of this cluster?"}},
		"certificate ended":    {server: ended.URL, trusted: old.Leaf, says: []string{"shows a certificate that is not valid now", "compare the clocks"}},
		"wrong name":           {server: strings.Replace(stranger.URL, "127.0.0.1", "localhost", 1), trusted: ok, says: []string{"does not trust", "is it the kubeconfig of this cluster?"}},
		"wants a certificate":  {server: mutual.URL, says: []string{"does not accept the client certificate of the kubeconfig", "log in again"}},
		"unauthorized":         {server: answers(401, status(401, "Unauthorized", "Unauthorized")), says: []string{"does not accept the credentials of the kubeconfig: log in again"}},
		"forbidden": {server: answers(403, status(403, "Forbidden", `pods is forbidden: User "jane" cannot list resource "pods"`)),
			says: []string{`User "jane" cannot list resource "pods"`, "use a context whose user may (--context), or ask a cluster administrator"}},
		"starting":            {server: answers(503, status(503, "ServiceUnavailable", "etcd is\n\x1b[31mnot ready")), says: []string{"cannot serve at present", "try again in a minute"}},
		"no API server":       {server: answers(404, "<html>\nnothing here</html>"), says: []string{"is no Kubernetes API server", "is its address in the kubeconfig right?"}},
		"a balancer in front": {server: answers(502, "<html>\nBad Gateway</html>"), says: []string{"is no Kubernetes API server, or something in front of one", "is its address in the kubeconfig right?"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.context == "" {
				c.context = "c"
			}
			got := run(t, t.TempDir(), "", "status", "--kubeconfig", kubeconfigOf(t, c.server, c.context, c.trusted))
			if got.code != 2 || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 || !strings.HasPrefix(got.stderr, "selvage: ") {
				t.Errorf("exit code %d, stdout %q, want 2 and one line on stderr:\n%s", got.code, got.stdout, got.stderr)
			}
			for _, want := range c.says {
				if !strings.Contains(got.stderr, want) {
					t.Errorf("it does not say %q:\n%s", want, got.stderr)
				}
			}
			if strings.ContainsRune(got.stderr, '\x1b') || strings.HasSuffix(got.stderr, "EOF\n") {
				t.Errorf("it shows what the server sent as it is: %q", got.stderr)
			}
		})
	}
}
