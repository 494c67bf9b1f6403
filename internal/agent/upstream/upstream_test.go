package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/selvage-mesh/selvage/internal/pki"
)

const serverName = "istiod.istio-system.svc"

func newRoot(t *testing.T) *pki.Issuer {
	t.Helper()
	root, err := pki.NewRoot("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// controlPlane answers every call with err, over TLS with a certificate for the names.
func controlPlane(t *testing.T, root *pki.Issuer, answer func(ctx context.Context) error, names ...string) (addr string) {
	t.Helper()
	cert, err := root.IssueServing(names, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, ClientCAs: root.Pool(), ClientAuth: tls.VerifyClientCertIfGiven})),
		grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error { return answer(s.Context()) }))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

// config is a pod that trusts root.
func config(t *testing.T, root *pki.Issuer, addr string) Config {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"root": string(root.RootPEM()), "token": "a token\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Config{Address: addr, ServerName: serverName, RootFile: filepath.Join(dir, "root"), TokenFile: filepath.Join(dir, "token"), Timeout: 5 * time.Second}
}

// failure opens a stream as the relay does and gives why it ended.
func failure(t *testing.T, c Config) *Failure {
	t.Helper()
	target, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	fail := func(err error) *Failure {
		var f *Failure
		if !errors.As(err, &f) {
			t.Fatalf("%v is no *Failure", err)
		}
		return f
	}
	conn, err := target.Connect(false)
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	ctx, err := conn.Context(t.Context())
	if err != nil {
		return fail(err)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/x/y")
	if err == nil {
		err = stream.RecvMsg(&struct{}{})
	}
	return conn.Explain(err)
}

func answering(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

func TestFailuresNameTheirCause(t *testing.T) {
	root, other := newRoot(t), newRoot(t)
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := nobody.Addr().String()
	nobody.Close()
	good := func(err error) string { return controlPlane(t, root, answering(err), serverName) }
	for _, tt := range []struct {
		name   string
		change func(*Config)
		addr   string
		reason Reason
		says   []string
	}{
		{"nothing listens", nil, closed, Refused, []string{closed + " refused the connection", "is istiod running"}},
		// A label of more than 63 letters is no name, which the resolver knows without asking anyone.
		{"no such name", nil, strings.Repeat("x", 64) + ".svc:15012", DNS, []string{"does not resolve (no such host)", "is discoveryAddress right"}},
		{"a firewall drops packets", nil, fullQueue(t), Timeout, []string{"did not answer (within 300ms)", "firewall or NetworkPolicy block port"}},
		{"something accepts and says nothing", nil, silent(t), Handshake, []string{"TLS failed (the handshake did not end within 300ms)"}},
		{"something else than TLS", nil, plain(t), Handshake, []string{"TLS failed", "the control plane's xDS port?"}},
		{"another mesh's certificate", nil, controlPlane(t, other, answering(nil), serverName), UnknownRoot, []string{"authority that this pod does not trust", "ConfigMap istio-ca-root-cert"}},
		{"another revision's certificate", nil, controlPlane(t, root, answering(nil), "istiod-blue.istio-system.svc"), WrongName, []string{"certificate for another name", "istiod-blue"}},
		{"the token is refused", nil, good(status.Error(codes.Unauthenticated, "token has expired")), Unauthorized, []string{"does not believe who this pod is (token has expired)", "audience istio-ca"}},
		{"the pod is refused", nil, good(status.Error(codes.PermissionDenied, "not for you")), Forbidden, []string{"refused this pod (not for you)"}},
		{"not ready yet", nil, good(status.Error(codes.Unavailable, "server is not ready")), Unavailable, []string{"is not available (server is not ready)", "kubectl logs"}},
		{"another service", nil, good(status.Error(codes.Unimplemented, "unknown service")), Unimplemented, []string{"does not serve the mesh's protocol"}},
		{"the stream ends well", nil, good(nil), Ended, []string{"ended the connection"}},
		{"an odd answer", nil, good(status.Error(codes.DataLoss, "line one\nline two")), Other, []string{"failed (line one line two)"}},
		{"no root", func(c *Config) { c.RootFile = "/nowhere/root-cert.pem" }, closed, NoRoot, []string{"root certificate cannot be read", "no such file", "istio-ca-root-cert exist"}},
		{"no token", func(c *Config) { c.TokenFile = "/nowhere/istio-token" }, good(nil), NoToken, []string{"token cannot be read", "volume istio-token"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config(t, root, tt.addr)
			if tt.reason == Timeout || strings.Contains(tt.name, "says nothing") {
				c.Timeout = 300 * time.Millisecond
			}
			if tt.change != nil {
				tt.change(&c)
			}
			f := failure(t, c)
			if f.Reason != tt.reason {
				t.Errorf("reason %s, want %s: %v", f.Reason, tt.reason, f)
			}
			for _, text := range tt.says {
				if !strings.Contains(f.Error(), text) {
					t.Errorf("%q lacks %q", f, text)
				}
			}
			if strings.ContainsAny(f.Error(), "\r\n") {
				t.Errorf("more than one line: %q", f)
			}
			t.Log(f)
		})
	}
}

// fullQueue is an address whose connections are never accepted and whose queue is full: the kernel drops packets, as a firewall does.
func fullQueue(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
	for {
		c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
}

// silent accepts connections and says nothing.
func silent(t *testing.T) string { return accepting(t, func(net.Conn) {}) }

// plain speaks, but not TLS.
func plain(t *testing.T) string {
	return accepting(t, func(c net.Conn) {
		fmt.Fprint(c, "SSH-2.0-nothing\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
}

func accepting(t *testing.T, serve func(net.Conn)) string {
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
			t.Cleanup(func() { c.Close() })
			go serve(c)
		}
	}()
	return l.Addr().String()
}

func TestThePodShowsItsCertificateAndNotItsToken(t *testing.T) {
	root := newRoot(t)
	got := make(chan metadata.MD, 1)
	addr := controlPlane(t, root, func(ctx context.Context) error {
		md, _ := metadata.FromIncomingContext(ctx)
		got <- md
		return nil
	}, serverName)
	c := config(t, root, addr)
	if f := failure(t, c); f.Reason != Ended {
		t.Fatal(f)
	}
	if md := <-got; len(md["authorization"]) != 1 || md["authorization"][0] != "Bearer a token" {
		t.Errorf("without a certificate: metadata %v", md)
	}
	id := pki.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	pair := workload(t, root, id)
	c.Certificate = func() *tls.Certificate { return &pair }
	if f := failure(t, c); f.Reason != Ended {
		t.Fatal(f)
	}
	if md := <-got; len(md["authorization"]) != 0 {
		t.Error("the token is sent besides the certificate")
	}
	// A certificate that the server does not take is told as such, also where TLS 1.3 lets the handshake end first.
	wrong := workload(t, newRoot(t), id)
	c.Certificate = func() *tls.Certificate { return &wrong }
	if f := failure(t, c); f.Reason != Unauthorized {
		t.Errorf("another root's certificate: %s, %v", f.Reason, f)
	}
}

func workload(t *testing.T, root *pki.Issuer, id pki.Identity) tls.Certificate {
	t.Helper()
	key, requestPEM, err := pki.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	request, err := pki.ParseRequest(requestPEM)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := root.SignWorkload(request, id, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain[0], key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestTheSameCauseHasTheSameText(t *testing.T) {
	// Our own port is another one with each attempt; a text that differs would be logged each time.
	reset := func(port int) error {
		return &net.OpError{Op: "read", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: port}, Addr: &net.TCPAddr{IP: net.IPv4(10, 9, 9, 9), Port: 15012}, Err: syscall.ECONNRESET}
	}
	if a, b := detail(reset(1)), detail(reset(2)); a != b || !strings.Contains(a, "10.9.9.9:15012: connection reset") {
		t.Errorf("%q and %q", a, b)
	}
	long := detail(errors.New(strings.Repeat("é", 1000)))
	if len(long) > maxDetail+len("…") || !strings.HasSuffix(long, "é…") {
		t.Errorf("cut to %d bytes: %q", len(long), long)
	}
}

func TestAddressesAreChecked(t *testing.T) {
	for _, addr := range []string{"", "istiod", ":15012", "istiod:"} {
		if _, err := New(Config{Address: addr}); err == nil || !strings.Contains(err.Error(), "HOST:PORT") {
			t.Errorf("New(%q) = %v", addr, err)
		}
	}
}
