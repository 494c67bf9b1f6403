package xds_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

func TestMesh(t *testing.T) {
	w := newTown(t)
	t.Run("HTTP goes from sidecar to sidecar over mutual TLS", w.testHTTP)
	t.Run("requests share connections", w.testReuse)
	t.Run("HTTP/2 reaches the application as HTTP/2", w.testHTTP2)
	t.Run("a service is known by all its names", w.testNames)
	t.Run("a WebSocket goes through", w.testWebSocket)
	t.Run("a server that speaks first is heard at once", w.testTCP)
	t.Run("a name of one pod reaches that pod", w.testPodNames)
	t.Run("a server with a wrong identity is not talked to", w.testWrongIdentity)
	t.Run("PERMISSIVE takes plain text, and believes nothing that it says", w.testPermissive)
	t.Run("STRICT refuses plain text", w.testStrict)
	t.Run("the capture ports lead nowhere when called themselves", w.testDirectDial)
	t.Run("REGISTRY_ONLY refuses what is no service", w.testRegistryOnly)
	t.Run("a draining endpoint serves only when no other is left", w.testDraining)
	t.Run("changes lose no request", w.testChangesUnderLoad)
	t.Run("traffic goes on without the control plane, which is found again soon", w.testControlPlaneAway)
	w.client.refused()
	w.server.refused()
}

func (w *town) testHTTP(t *testing.T) {
	r := w.get("http://10.96.0.10/a/../b?q=1", "web")
	if err := r.err(); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("By=%s;", w.serverIdentity)
	if got := r.Header.Get("X-Forwarded-Client-Cert"); !strings.Contains(got, want) || !strings.Contains(got, "URI="+w.identity) {
		t.Errorf("the application is told %q of its peer, want both identities", got)
	}
	if r.Path != "/b" || r.Host != "web" || r.Proto != "HTTP/1.1" {
		t.Errorf("the application sees path %q, host %q, %s", r.Path, r.Host, r.Proto)
	}
	if !strings.HasPrefix(r.Remote, "127.0.0.6:") {
		t.Errorf("the sidecar calls the application from %s, want 127.0.0.6", r.Remote)
	}
	eventually(t, "both logs name both identities", func() error {
		for _, line := range []struct {
			of   *sidecar
			want string
		}{{w.client, "upstream_id=" + w.serverIdentity}, {w.server, "client_id=" + w.identity}} {
			if !strings.Contains(line.of.log(), line.want) {
				return errors.New("no line has " + line.want)
			}
		}
		return nil
	})
	for _, s := range []struct {
		of   *netns
		want string
	}{
		{w.serverNet, `envoy_listener_ssl_handshake{listener_address="0.0.0.0_15006"}`},
		{w.clientNet, `envoy_cluster_ssl_handshake{cluster_name="outbound|80||web.shop.svc.cluster.local"}`},
		{w.clientNet, `envoy_cluster_upstream_rq{response_code_class="2xx",cluster_name="outbound|80||web.shop.svc.cluster.local"}`},
	} {
		stats := prometheus(t, s.of)
		if !strings.Contains(stats, s.want) {
			t.Errorf("the statistics have no %s", s.want)
		}
	}
}

// testReuse asks for as many connections and handshakes after many requests as after the first: a handshake costs as much as
// several requests.
func (w *town) testReuse(t *testing.T) {
	counted := regexp.MustCompile(`(?m)^envoy_(?:cluster_upstream_cx_total|cluster_ssl_handshake)\{cluster_name="outbound\|(?:80|9090)\|\|web.*$`)
	opened := regexp.MustCompile(`(?m)^envoy_listener_ssl_handshake\{listener_address="0.0.0.0_15006"\}.*$`)
	for name, client := range map[string]*http.Client{"HTTP/1.1": w.http, "HTTP/2": w.httpClient(w.clientNet, true)} {
		ask := func() {
			t.Helper()
			for _, url := range []string{"http://10.96.0.10/", "http://10.96.0.10:9090/"} {
				if err := get(client, url, nil, "web").err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		count := func() string {
			all := append(counted.FindAllString(prometheus(t, w.clientNet), -1), opened.FindAllString(prometheus(t, w.serverNet), -1)...)
			if len(all) != 5 {
				t.Fatalf("the statistics have %d of 5 counters: %v", len(all), all)
			}
			return strings.Join(all, "\n")
		}
		ask()
		first := count()
		for range 20 {
			ask()
		}
		if now := count(); now != first {
			t.Errorf("%s: after the first requests\n%s\nafter 20 more\n%s", name, first, now)
		}
	}
}

func (w *town) testWebSocket(t *testing.T) {
	c, err := w.clientNet.dial(t.Context(), "tcp", "10.96.0.10:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	response, err := http.ReadResponse(r, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the answer is %v, %v", response, err)
	}
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("the echo is %q, %v", line, err)
	}
}

// upgrade echoes lines on what was an HTTP connection.
func upgrade(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Connection", "Upgrade")
	rw.Header().Set("Upgrade", r.Header.Get("Upgrade"))
	rw.WriteHeader(http.StatusSwitchingProtocols)
	c, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.Copy(c, buffered)
}

func prometheus(t *testing.T, n *netns) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: n.dial, DisableKeepAlives: true}}
	response, err := c.Get("http://127.0.0.1:15090/stats/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (w *town) testHTTP2(t *testing.T) {
	h2 := w.httpClient(w.clientNet, true)
	r := get(h2, "http://10.96.0.10:9090/", nil, "web:9090")
	if err := r.err(); err != nil || r.Proto != "HTTP/2.0" {
		t.Errorf("port 9090 (HTTP2): the application sees %s, %v", r.Proto, err)
	}
	if r.Header.Get("X-Forwarded-Client-Cert") == "" {
		t.Error("port 9090 (HTTP2): not over mutual TLS")
	}
	r = get(h2, "http://10.96.0.10/", nil, "web")
	if err := r.err(); err != nil || r.Proto != "HTTP/1.1" {
		t.Errorf("port 80 (HTTP): the application sees %s, %v", r.Proto, err)
	}
}

func (w *town) testNames(t *testing.T) {
	for _, host := range []string{
		"web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.svc.cluster.local.", "WEB.Shop", "web.shop:80", "web:8000",
		"10.96.0.10", "10.96.0.10:80", "alias", "alias.shop.svc.cluster.local",
	} {
		r := w.get("http://10.96.0.10/", host)
		if err := r.err(); err != nil || r.Header.Get("X-Forwarded-Client-Cert") == "" {
			t.Errorf("host %s: %v, peer %q", host, err, r.Header.Get("X-Forwarded-Client-Cert"))
		}
	}
}

func (w *town) testTCP(t *testing.T) {
	for _, address := range []string{"10.96.0.11:3306", "10.77.0.3:5432", "10.77.0.4:5432"} {
		if got, err := hear(w.clientNet, address); err != nil || got != greeting+"ping" {
			t.Errorf("%s says %q, %v", address, got, err)
		}
	}
	eventually(t, "mutual TLS in the server's log", func() error {
		for _, cluster := range []string{"inbound|3306||", "inbound|5432||"} {
			if !hasLine(w.server.log(), "client_id="+w.identity, "cluster="+cluster) {
				return fmt.Errorf("no line about %s with the client's identity", cluster)
			}
		}
		return nil
	})
}

func hasLine(log string, parts ...string) bool {
	for line := range strings.Lines(log) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}

func (w *town) testPodNames(t *testing.T) {
	for range 4 {
		for host, ip := range map[string]string{"pods-0.pods": "10.77.0.3", "pods-1.pods.shop.svc.cluster.local": "10.77.0.4"} {
			r := w.get("http://"+ip+":8080/", host+":8080")
			if err := r.err(); err != nil || r.Local != ip+":8080" {
				t.Errorf("%s is answered by %s, want %s: %v", host, r.Local, ip, err)
			}
			if r.Header.Get("X-Forwarded-Client-Cert") == "" || r.Header.Get("X-Selvage-Pod") != "" {
				t.Errorf("%s: the application sees %v", host, r.Header)
			}
		}
	}
	if r := w.get("http://10.77.0.9:8080/", "pods-9.pods:8080"); r.status != http.StatusServiceUnavailable {
		t.Errorf("the name of a pod that is no endpoint: status %d, %v, answered by %q; want 503", r.status, r.error, r.Local)
	}
	seen := map[string]bool{}
	for range 40 {
		r := w.get("http://10.77.0.3:8080/", "pods:8080")
		if err := r.err(); err != nil {
			t.Fatal(err)
		}
		seen[r.Local] = true
	}
	if len(seen) != 2 {
		t.Errorf("the service's own name reaches %v, want both pods", seen)
	}
}

func (w *town) testWrongIdentity(t *testing.T) {
	r := w.get("http://10.96.0.12/", "bank")
	if r.status != http.StatusServiceUnavailable {
		t.Errorf("a service whose endpoint shows another identity answers %d, %v; want 503", r.status, r.error)
	}
	eventually(t, "the log names the cause", func() error {
		if !hasLine(w.client.log(), "bank.shop", "CERTIFICATE_VERIFY_FAILED") {
			return errors.New("no line")
		}
		return nil
	})
}

func (w *town) testPermissive(t *testing.T) {
	stranger := w.httpClient(w.strangerNet, false)
	forged := http.Header{
		"X-Forwarded-Client-Cert": {"By=spiffe://cluster.local/ns/shop/sa/server;URI=spiffe://cluster.local/ns/istio-system/sa/admin"},
		"X-Envoy-Max-Retries":     {"1000"}, "X-Envoy-Retry-On": {"5xx"}, "X-Envoy-Upstream-Alt-Stat-Name": {"endless"},
		"X-Envoy-Decorator-Operation": {"forged"},
	}
	r := get(stranger, "http://10.77.0.3:8080/", forged, "web")
	if err := r.err(); err != nil {
		t.Fatal(err)
	}
	for name := range forged {
		if got := r.Header.Get(name); got != "" {
			t.Errorf("the application sees %s: %s", name, got)
		}
	}
	if got := r.header.Get("Server"); got != "istio-envoy" {
		t.Errorf("the response's server is %q", got)
	}
	if r := get(w.httpClient(w.strangerNet, true), "http://10.77.0.3:8080/", nil, "web"); r.err() != nil || r.Proto != "HTTP/2.0" {
		t.Errorf("HTTP/2 in plain text arrives as %s, %v", r.Proto, r.err())
	}
	if err := get(stranger, "http://10.77.0.3:7070/", nil).err(); err != nil {
		t.Errorf("a port of no service: %v", err)
	}
	if err := get(stranger, "https://10.77.0.3:8443/", nil).err(); err != nil {
		t.Errorf("TLS of the application's own: %v", err)
	}
	w.testServerFirst(t)
}

// testServerFirst has a client without a sidecar wait for what servers say first. On a PERMISSIVE port that takes until the
// sidecar stops waiting for a ClientHello, on a port with DISABLE it does not.
func (w *town) testServerFirst(t *testing.T) {
	type heard struct {
		words string
		err   error
	}
	permissive := make(chan heard, 1)
	go func() {
		words, err := hear(w.strangerNet, "10.77.0.3:3306")
		permissive <- heard{words, err}
	}()
	if words, err := hear(w.strangerNet, "10.77.0.3:3307"); err != nil || words != greeting+"ping" {
		t.Errorf("DISABLE: the client hears %q, %v", words, err)
	}
	if len(permissive) > 0 {
		t.Error("a PERMISSIVE port answers before one with DISABLE: is that waited for?")
	}
	if got := <-permissive; got.err != nil || got.words != greeting+"ping" {
		t.Errorf("PERMISSIVE: the client hears %q, %v", got.words, got.err)
	}
}

func (w *town) testStrict(t *testing.T) {
	w.with(t, mesh.Strict, nil)
	stranger := w.httpClient(w.strangerNet, false)
	stranger.Transport.(*http.Transport).DisableKeepAlives = true
	eventually(t, "plain HTTP is refused", func() error {
		if r := get(stranger, "http://10.77.0.3:8080/", nil, "web"); r.error == nil {
			return fmt.Errorf("it is answered with %d", r.status)
		}
		return nil
	})
	if r := get(stranger, "http://10.77.0.3:7070/", nil); r.error == nil {
		t.Errorf("a port of no service answers plain text with %d", r.status)
	}
	if r := get(stranger, "https://10.77.0.3:8080/", nil); r.error == nil {
		t.Errorf("TLS without a certificate is answered with %d", r.status)
	}
	if r := w.get("http://10.96.0.10/", "web"); r.err() != nil {
		t.Errorf("HTTP between sidecars: %v", r.err())
	}
	for _, address := range []string{"10.96.0.11:3306", "10.77.0.4:5432"} {
		if got, err := hear(w.clientNet, address); err != nil || got != greeting+"ping" {
			t.Errorf("TCP between sidecars, %s: %q, %v", address, got, err)
		}
	}
	eventually(t, "the log tells of the refusal", func() error {
		if !hasLine(w.server.log(), " NR ", "client=10.78.0.2") {
			return errors.New("no line")
		}
		return nil
	})
}

func (w *town) testDirectDial(t *testing.T) {
	for _, address := range []string{"10.77.0.3:15006", "10.77.0.3:15001"} {
		if r := get(w.httpClient(w.strangerNet, false), "http://"+address+"/", nil); r.error == nil {
			t.Errorf("%s answers with %d", address, r.status)
		}
	}
	if r := w.get("http://127.0.0.1:15001/"); r.error == nil {
		t.Errorf("127.0.0.1:15001 answers with %d", r.status)
	}
}

func (w *town) testRegistryOnly(t *testing.T) {
	eventually(t, "ALLOW_ANY lets an unknown address pass", func() error { return w.get("http://10.78.0.3:7070/", "example.com").err() })
	w.with(t, mesh.Permissive, func(m *mesh.Model) { m.Settings.BlackHoleUnknown = true })
	eventually(t, "an unknown host is answered with 502", func() error {
		if r := w.get("http://10.96.0.10/", "example.com"); r.status != http.StatusBadGateway {
			return fmt.Errorf("status %d, %w", r.status, r.error)
		}
		return nil
	})
	eventually(t, "an unknown address is refused", func() error {
		c := w.httpClient(w.clientNet, false)
		defer c.CloseIdleConnections()
		if r := get(c, "http://10.78.0.3:7070/", nil); r.error == nil {
			return fmt.Errorf("status %d", r.status)
		}
		return nil
	})
	if r := w.get("http://10.96.0.10/", "web"); r.err() != nil {
		t.Errorf("a service: %v", r.err())
	}
}
