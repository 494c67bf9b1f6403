package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/agent/status"
	"github.com/selvage-mesh/selvage/internal/pki"
)

// get asks the agent's own ports.
func (s *sidecar) get(port uint16, path string) (code int, body string) {
	answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, strings.TrimSpace(string(data))
}

// untilReady asks for readiness as a kubelet does, again and again, until the answer is as wanted.
func (s *sidecar) untilReady(code int, texts ...string) string {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		got, body := s.get(s.config.Ports.Readiness, "/healthz/ready")
		ok := got == code
		for _, text := range texts {
			ok = ok && strings.Contains(body, text)
		}
		if ok {
			return body
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("readiness is %d %q, want %d with %q", got, body, code, texts)
		}
		select {
		case err := <-s.ended:
			s.ended <- err
			s.t.Fatalf("the agent ended: %v; readiness was %d %q", err, got, body)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// untilNothingIsWrong waits until readiness has nothing to add. Envoy counts a push before its answer to it has passed the agent.
func (s *sidecar) untilNothingIsWrong() {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		body := s.untilReady(http.StatusOK)
		if body == "Envoy proxy is ready" {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("still %q", body)
		}
	}
}

// app is an application behind the proxy. GET /slow answers when release is closed.
func app(t testing.TB) (port uint16, release chan struct{}, entered chan struct{}) {
	t.Helper()
	release, entered = make(chan struct{}), make(chan struct{}, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- struct{}{}
			<-release
		}
		fmt.Fprint(w, "hello from the app")
	}))
	t.Cleanup(server.Close)
	return uint16(server.Listener.Addr().(*net.TCPAddr).Port), release, entered
}

// meshClient calls the sidecar with mutual TLS; h2 says over HTTP/2.
func meshClient(p *plane, h2 bool) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: p.client(), ForceAttemptHTTP2: h2}}
}

func call(client *http.Client, port uint16, path string) (closing bool, cert *tls.ConnectionState, err error) {
	answer, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d%s", port, path))
	if err != nil {
		return false, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || string(body) != "hello from the app") {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return answer.Close, answer.TLS, err
}

func TestASidecarComesUpWhenItsControlPlaneDoes(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	s := run(t, newConfig(t, p))
	port, _, _ := app(t)
	p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))

	body := s.untilReady(503, "control plane: "+p.addr+" refused the connection")
	const words = "Envoy proxy is NOT ready: config not received from XDS server (is Istiod running?): cds updates: 0 successful, 0 rejected; lds updates: 0 successful, 0 rejected; "
	if !strings.HasPrefix(body, words) {
		t.Errorf("readiness %q, want it to begin with %q", body, words)
	}
	p.start()
	s.untilNothingIsWrong()
	if code, body := s.get(s.config.Ports.Agent, "/healthz/ready"); code != 200 {
		t.Errorf("readiness on the agent's port: %d %s", code, body)
	}
	_, state, err := call(meshClient(p, true), s.config.Ports.Inbound, "/")
	if err != nil {
		t.Fatal(err)
	}
	if id, err := pki.CertificateIdentity(state.PeerCertificates[0]); err != nil || id != testIdentity {
		t.Errorf("the proxy shows %v, %v; want %s", id, err, testIdentity)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.signed[0] != "token" {
		t.Errorf("certificates asked for by %q, want the token", p.signed)
	}
	if p.node.GetId() != "sidecar~127.0.0.1~web-1.shop~shop.svc.cluster.local" {
		t.Errorf("node ID %q", p.node.GetId())
	}
	meta := p.node.GetMetadata().AsMap()
	labels, _ := meta["LABELS"].(map[string]any)
	proxyConfig, _ := meta["PROXY_CONFIG"].(map[string]any)
	if labels["app"] != "web" || labels["version"] != `v"1` || meta["ISTIO_REVISION"] != "canary" || proxyConfig["discoveryAddress"] != p.addr ||
		meta["NAMESPACE"] != "shop" || meta["WORKLOAD_NAME"] != "web" || meta["SERVICE_ACCOUNT"] != "web" {
		t.Errorf("node metadata %v", meta)
	}
}

// TestAnotherAuthorityIsAskedByItsOwnName: CA_ADDR leads to an authority beside the control plane, whose certificate has another name.
func TestAnotherAuthorityIsAskedByItsOwnName(t *testing.T) {
	p, other := newPlane(t), newPlane(t)
	other.issuer, other.names = p.issuer, []string{"127.0.0.1"}
	p.start()
	other.start()
	c := newConfig(t, p)
	c.CAAddress = other.addr
	run(t, c)
	p.until("the proxy connects", func() bool { return len(p.streams) >= 1 })
	p.mu.Lock()
	defer p.mu.Unlock()
	other.mu.Lock()
	defer other.mu.Unlock()
	if len(other.signed) == 0 || other.signed[0] != "token" || len(p.signed) != 0 || p.streams[0] != "certificate" {
		t.Errorf("certificates by %q of the authority and by %q of the control plane, streams by %q", other.signed, p.signed, p.streams)
	}
}

func TestATokenThatIsRefusedIsSaid(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.start()
	c := newConfig(t, p)
	write(t, c.Paths.Token, "stolen")
	s := run(t, c)
	s.untilReady(503, "does not believe who this pod is (token is not believed: 1 given)", "istio-ca")
	write(t, c.Paths.Token, goodToken) // the kubelet renews tokens
	port, _, _ := app(t)
	p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))
	s.untilReady(200)
	if n := s.log.count("level=WARN", "no configuration from the control plane"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
}

func TestAnotherMeshsRootIsSaid(t *testing.T) {
	t.Parallel()
	p, other := newPlane(t), newPlane(t)
	p.start()
	c := newConfig(t, p)
	write(t, c.Paths.Root, string(other.issuer.RootPEM()))
	s := run(t, c)
	s.untilReady(503, "certificate of an authority that this pod does not trust", "ConfigMap istio-ca-root-cert")
	if err := os.Remove(c.Paths.Root); err != nil {
		t.Fatal(err)
	}
	s.untilReady(503, "root certificate cannot be read", "no such file")
}

func TestARejectedPushIsSaidWhileTheProxyServesOn(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.start()
	s := run(t, newConfig(t, p))
	port, _, _ := app(t)
	bad := badListener(t, freePort(t))
	good := inboundListener(t, s.config.Ports.Inbound)
	bad2 := inboundListener(t, s.config.Ports.Inbound)
	bad2.Address.GetSocketAddress().Address = "192.0.2.77"

	p.set(appCluster(port), bad2)
	s.untilReady(503, "Envoy proxy is NOT ready: config received from XDS server, but was rejected: cds updates: 1 successful, 0 rejected; lds updates: 0 successful, 1 rejected",
		"; last rejection: LDS: ", "virtualInbound")
	p.set(appCluster(port), good)
	s.untilNothingIsWrong()
	p.set(appCluster(port), good, bad)
	s.untilReady(200, "but its newest configuration was rejected and the one before it is in force; last rejection: LDS: ", "no-such-address", "192.0.2.77")
	if _, _, err := call(meshClient(p, false), s.config.Ports.Inbound, "/"); err != nil {
		t.Errorf("the proxy does not serve on: %v", err)
	}
	_, metrics := s.get(s.config.Ports.Agent, "/stats/prometheus")
	if !strings.Contains(metrics, "\nistio_agent_xds_rejected_types 1\n") {
		t.Error("the rejection is not in the metrics")
	}
	p.set(appCluster(port), good)
	s.untilNothingIsWrong()
}

func TestTheControlPlaneMayGoAndComeBack(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.start()
	s := run(t, newConfig(t, p))
	port, _, _ := app(t)
	p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))
	s.untilReady(200)
	p.stop()
	s.untilReady(200, "control plane: "+p.addr+" refused the connection")
	if _, _, err := call(meshClient(p, false), s.config.Ports.Inbound, "/"); err != nil {
		t.Errorf("the data path stops with the control plane: %v", err)
	}
	p.start()
	p.until("the proxy is back", func() bool { return len(p.streams) >= 2 })
	if p.streams[0] != "certificate" || p.streams[1] != "certificate" {
		t.Errorf("streams by %q, want by the certificate", p.streams)
	}
	s.untilNothingIsWrong()
}

func TestCertificatesRotateUnderOpenConnections(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.lifetime = 6 * time.Second
	p.start()
	c := newConfig(t, p)
	s := run(t, c)
	port, _, _ := app(t)
	p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))
	s.untilReady(200)
	kept := meshClient(p, false)
	_, first, err := call(kept, s.config.Ports.Inbound, "/")
	if err != nil {
		t.Fatal(err)
	}
	p.until("the certificate is renewed", func() bool { return len(p.signed) >= 2 })
	var serial string
	for serial == "" {
		_, fresh, err := call(meshClient(p, false), s.config.Ports.Inbound, "/")
		if err != nil {
			t.Fatal(err)
		}
		if got := fresh.PeerCertificates[0].SerialNumber.String(); got != first.PeerCertificates[0].SerialNumber.String() {
			serial = got
		}
	}
	_, again, err := call(kept, s.config.Ports.Inbound, "/")
	if err != nil || again.PeerCertificates[0].SerialNumber.Cmp(first.PeerCertificates[0].SerialNumber) != 0 {
		t.Errorf("the open connection was not kept: %v", err)
	}
	p.mu.Lock()
	if p.signed[1] != "certificate" {
		t.Errorf("renewed by %s, want by the certificate", p.signed[1])
	}
	p.mu.Unlock()

	// The root is replaced: the pod's certificate is of the old one, so a new one is asked for at once, with the token.
	next := newPlane(t)
	p.stop()
	p.mu.Lock()
	p.issuer, p.lifetime, p.signed = next.issuer, time.Hour, nil
	p.mu.Unlock()
	write(t, c.Paths.Root, string(next.issuer.RootPEM()))
	p.start()
	p.until("a certificate of the new root", func() bool { return len(p.signed) >= 1 })
	if p.signed[0] != "token" {
		t.Errorf("asked for by %s, want by the token: the authority does not know the old root's certificates", p.signed[0])
	}
	for { // Envoy takes both secrets one after the other
		if _, _, err := call(meshClient(p, false), s.config.Ports.Inbound, "/"); err == nil {
			break
		}
	}
}

func TestACrashedProxyComesBack(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.start()
	s := run(t, newConfig(t, p))
	port, _, _ := app(t)
	p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))
	s.untilReady(200)
	pid := envoyPID(t, s.config.Paths.Bootstrap)
	if err := syscall.Kill(pid, syscall.SIGSEGV); err != nil {
		t.Fatal(err)
	}
	p.until("the new proxy connects", func() bool { return len(p.streams) >= 2 })
	s.untilReady(200)
	if _, _, err := call(meshClient(p, false), s.config.Ports.Inbound, "/"); err != nil {
		t.Error(err)
	}
	if s.log.count("the proxy ended by itself", "signal: segmentation fault") != 1 {
		t.Error("the crash is not in the log")
	}
}

// envoyPID finds the Envoy that runs with a bootstrap.
func envoyPID(t testing.TB, bootstrap string) int {
	t.Helper()
	procs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, proc := range procs {
		pid, err := strconv.Atoi(proc.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile("/proc/" + proc.Name() + "/cmdline")
		if err == nil && strings.Contains(string(cmdline), "\x00-c\x00"+bootstrap+"\x00") {
			return pid
		}
	}
	t.Fatal("no Envoy is running")
	return 0
}

func TestABrokenProxyIsGivenUpWithItsLastWords(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c := newConfig(t, p)
	c.Envoy.ComponentLogLevel, c.Envoy.MaxCrashes = "nosuchcomponent:debug", 3
	s := run(t, c)
	select {
	case err := <-s.ended:
		s.ended <- err
		if err == nil || !strings.Contains(err.Error(), "ended 3 times in a row") || !strings.Contains(err.Error(), "nosuchcomponent") {
			t.Errorf("Run = %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("does not give up")
	}
}

func TestNoRequestIsLostWhenThePodIsTakenAway(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP1", true: "HTTP2"}[h2], func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			p.start()
			c := newConfig(t, p)
			c.Proxy.TerminationDrainDuration = 8 * time.Second
			s := run(t, c)
			port, release, entered := app(t)
			p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))
			s.untilReady(200)
			kept := meshClient(p, h2)
			if _, _, err := call(kept, s.config.Ports.Inbound, "/"); err != nil {
				t.Fatal(err)
			}
			slow := make(chan error)
			go func() {
				_, _, err := call(meshClient(p, h2), s.config.Ports.Inbound, "/slow")
				slow <- err
			}()
			<-entered

			s.stop()
			s.untilReady(503, "server is not live, current state is: DRAINING")
			// Callers that have not heard of it yet still come, on old and new connections, and are told to go.
			var calls atomic.Int64
			saidGoodBye := false
			for range 40 {
				closing, _, err := call(kept, s.config.Ports.Inbound, "/")
				if err != nil {
					t.Fatalf("request %d while draining: %v", calls.Load(), err)
				}
				saidGoodBye = saidGoodBye || closing
				if _, _, err := call(meshClient(p, h2), s.config.Ports.Inbound, "/"); err != nil {
					t.Fatalf("new connection %d while draining: %v", calls.Load(), err)
				}
				calls.Add(1)
			}
			if !h2 && !saidGoodBye {
				t.Error("no response carries connection: close")
			}
			close(release)
			if err := <-slow; err != nil {
				t.Errorf("the request that was under way: %v", err)
			}
			if err := s.wait(); err != nil {
				t.Errorf("Run = %v", err)
			}
			t.Logf("%d calls while draining", calls.Load())
		})
	}
}

func TestANativeSidecarEndsWhenNothingIsLeft(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.start()
	c := newConfig(t, p)
	c.Proxy.TerminationDrainDuration = time.Hour
	s := run(t, c)
	port, release, entered := app(t)
	p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))
	s.untilReady(200)
	slow := make(chan error)
	go func() {
		_, _, err := call(meshClient(p, false), s.config.Ports.Inbound, "/slow")
		slow <- err
	}()
	<-entered
	// preStop
	answer, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/drain", s.config.Ports.Agent), "", nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatal(answer, err)
	}
	answer.Body.Close()
	s.stop() // SIGTERM
	s.untilReady(503, "DRAINING")
	close(release)
	if err := <-slow; err != nil {
		t.Errorf("the request that was under way: %v", err)
	}
	if err := s.wait(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if s.log.count("ending the proxy", "no inbound connection is left") != 1 {
		t.Error("it ended for another reason")
	}
}

func TestAJobsSidecarEndsAtOnce(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.start()
	c := newConfig(t, p)
	c.Proxy.TerminationDrainDuration = time.Hour
	s := run(t, c)
	port, _, _ := app(t)
	p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))
	s.untilReady(200)
	answer, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/drain", s.config.Ports.Agent), "", nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatal(answer, err)
	}
	answer.Body.Close()
	if answer, err = http.Post(fmt.Sprintf("http://127.0.0.1:%d/quitquitquit", s.config.Ports.Agent), "", nil); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatal(answer, err)
	}
	answer.Body.Close()
	if err := s.wait(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if s.log.count("ending the proxy", "nobody ever called the pod") != 1 {
		t.Error("it ended for another reason")
	}
}

func TestASecondSignalEndsItAtOnce(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c := newConfig(t, p)
	c.Proxy.TerminationDrainDuration = time.Hour
	s := run(t, c)
	s.untilReady(503)
	s.stop()
	s.agent.Kill()
	if err := s.wait(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestMetricsOfAllThreeComeAsOne(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.start()
	c := newConfig(t, p)
	appMetrics := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "# TYPE shop_orders_total counter\nshop_orders_total 7\n")
	}))
	defer appMetrics.Close()
	port := uint16(appMetrics.Listener.Addr().(*net.TCPAddr).Port)
	c.Scrape = []status.Scrape{{Port: port, Path: "/metrics"}}
	c.Ports.Status = freePort(t)
	s := run(t, c)
	p.set(appCluster(port), inboundListener(t, s.config.Ports.Inbound))
	s.untilReady(200)
	for _, at := range []uint16{s.config.Ports.Agent, s.config.Ports.Status} {
		code, body := s.get(at, "/stats/prometheus")
		for _, line := range []string{"shop_orders_total 7\n", "envoy_server_live{} 1", "istio_agent_xds_connected 1\n", "istio_agent_envoy_starts 1\n", "process_resident_memory_bytes"} {
			if !strings.Contains(body+"\n", line) {
				t.Errorf("%d lacks %q", code, line)
			}
		}
	}
}

// TestTheAgentDoesNotScrapeItself: it would ask itself for ever.
func TestTheAgentDoesNotScrapeItself(t *testing.T) {
	c := newConfig(t, newPlane(t))
	c.Ports.Status = freePort(t)
	for _, port := range []uint16{c.Ports.Agent, c.Ports.Status} {
		c.Scrape = []status.Scrape{{Port: port, Path: "/metrics"}}
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), "annotation prometheus.io/port") {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

func TestPortsThatAreTakenAreNamed(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c := newConfig(t, p)
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", c.Ports.Agent))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(context.Background()); err == nil || !strings.Contains(err.Error(), strconv.Itoa(int(c.Ports.Agent))) {
		t.Errorf("Run = %v", err)
	}
}
