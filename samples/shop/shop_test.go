package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// serveRole serves one of the shop's services as main does and gives its base URL.
func serveRole(t *testing.T, c serviceConfig) (base string) {
	t.Helper()
	registry := prometheus.NewRegistry()
	c.Registerer = registry
	s, err := newService(c)
	if err != nil {
		t.Fatal(err)
	}
	return listenAndServe(t, s.handler(registry))
}

func listenAndServe(t *testing.T, handler http.Handler) (base string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, listener, handler, 0) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "http://" + listener.Addr().String()
}

func chain(t *testing.T) (web string) {
	t.Helper()
	stock := serveRole(t, serviceConfig{Name: "stock", Pod: "stock-0"})
	cart := serveRole(t, serviceConfig{Name: "cart", Pod: "cart-0", Next: stock, NextHTTP2: true})
	return serveRole(t, serviceConfig{Name: "web", Pod: "web-0", Next: cart})
}

func get(t *testing.T, url string, header ...string) (code int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n+1 < len(header); n += 2 {
		request.Header.Set(header[n], header[n+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

const (
	webID  = "spiffe://cluster.local/ns/shop/sa/web"
	gateID = "spiffe://cluster.local/ns/istio-system/sa/gateway"
)

func TestTheChainAnswersWithEveryHop(t *testing.T) {
	web := chain(t)
	code, body := get(t, web+"/api", "X-Forwarded-Client-Cert", "By="+webID+";Hash=ab;Subject=\"CN=x,O=y\";URI="+gateID)
	var h hop
	if err := json.Unmarshal([]byte(body), &h); err != nil || code != http.StatusOK {
		t.Fatalf("%d %v: %s", code, err, body)
	}
	if h.Service != "web" || h.Next.Service != "cart" || h.Next.Next.Service != "stock" || h.Next.Next.Next != nil || len(h.Next.Next.Goods) == 0 {
		t.Errorf("the chain is not web, cart, stock with goods: %s", body)
	}
	if h.Next.Protocol != "HTTP/1.1" || h.Next.Next.Protocol != "HTTP/2.0" {
		t.Errorf("cart was called by %s and stock by %s", h.Next.Protocol, h.Next.Next.Protocol)
	}
	if h.Client != gateID || h.Server != webID || h.Next.Client != "" {
		t.Errorf("identities: %+v", h)
	}
	if h.Millis < h.Next.Millis {
		t.Errorf("web took %v ms, the later hops %v ms", h.Millis, h.Next.Millis)
	}
	_, page := get(t, web+"/", "X-Forwarded-Client-Cert", "By="+webID+";URI="+gateID)
	for _, want := range []string{"web-0", "cart-0", "stock-0", gateID, "istio-system/gateway", "linen", "1 of 3 hops came with mutual TLS", "HTTP/2.0"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "src=") || strings.Contains(page, "@import") || strings.Contains(page, "url(") {
		t.Error("the page loads something from elsewhere")
	}
}

func TestABrokenChainIsShownNotHidden(t *testing.T) {
	sidecar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "RBAC: access denied", http.StatusForbidden)
	}))
	defer sidecar.Close()
	web := serveRole(t, serviceConfig{Name: "web", Pod: "web-0", Next: sidecar.URL})
	code, body := get(t, web+"/api")
	if code != http.StatusBadGateway || !strings.Contains(body, "403 Forbidden: RBAC: access denied") {
		t.Errorf("%d: %s", code, body)
	}
	if code, page := get(t, web+"/"); code != http.StatusBadGateway || !strings.Contains(page, "RBAC: access denied") {
		t.Errorf("%d: %s", code, page)
	}
	if _, metrics := get(t, web+"/metrics"); !strings.Contains(metrics, `shop_requests_total{code="502"} 2`) {
		t.Errorf("metrics do not count the failures:\n%s", metrics)
	}
}

// TestEveryKindOfProbe: what Kubernetes can probe by is answered: gRPC on the port of everything else, and HTTPS.
func TestEveryKindOfProbe(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	plain, secure := unused(t), unused(t)
	ended := make(chan error, 1)
	go func() {
		ended <- runService(ctx, "stock", []string{"--addr", plain, "--tls-addr", secure, "--linger", "0s"})
	}()
	connection, err := grpc.NewClient(plain, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	answer, err := grpc_health_v1.NewHealthClient(connection).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil || answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("by gRPC: %v, %v", answer, err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: patiently}}
	response, err := client.Get("https://" + secure + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("by HTTPS: %s", response.Status)
	}
	client.CloseIdleConnections()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// unused is a loopback address that nobody listens on.
func unused(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// patiently connects to what will listen soon.
func patiently(ctx context.Context, network, address string) (net.Conn, error) {
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil || ctx.Err() != nil {
			return c, err
		}
	}
}

func TestPeersOfForwardedClientCert(t *testing.T) {
	for header, want := range map[string][2]string{
		"":                             {"", ""},
		"By=a;URI=b":                   {"b", "a"},
		"By=a;Hash=x;URI=b,By=c;URI=d": {"d", "c"},
		"By=a;URI=b,By=c;Hash=x":       {"", "c"}, // the last hop had no URI: the first hop's says nothing about it
		`By=a;Subject="CN=x;URI=evil,By=evil";URI=b`: {"b", "a"},
	} {
		if client, server := peers(header); client != want[0] || server != want[1] {
			t.Errorf("%s: client %q, server %q; want %q", header, client, server, want)
		}
	}
}

// TestEndLetsRequestsFinish: after the signal a request in flight is answered, and readiness is over.
func TestEndLetsRequestsFinish(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	arrived, release := make(chan struct{}), make(chan struct{})
	slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		_, _ = io.WriteString(w, "finished")
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, listener, slow, 500*time.Millisecond) }()
	base := "http://" + listener.Addr().String()
	answer := make(chan string, 1)
	go func() {
		response, err := http.Get(base + "/")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer response.Body.Close()
		data, _ := io.ReadAll(response.Body)
		answer <- string(data)
	}()
	<-arrived
	stop()
	if code, _ := get(t, base+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("ready after the signal: %d", code)
	}
	close(release)
	if got := <-answer; got != "finished" {
		t.Errorf("the request in flight got %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestLoadKeepsItsRateAndSaysWhatFailed(t *testing.T) {
	for _, version := range []string{"--http1", "--http2"} {
		var count atomic.Int64
		base := listenAndServe(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if want := map[string]int{"--http1": 1, "--http2": 2}[version]; r.ProtoMajor != want || r.Method != http.MethodGet || len(r.TransferEncoding) > 0 {
				t.Errorf("%s: got %s by %s, %v", version, r.Method, r.Proto, r.TransferEncoding)
			}
			if count.Add(1)%10 == 0 {
				http.Error(w, "no healthy upstream", http.StatusServiceUnavailable)
			}
		}))
		var out bytes.Buffer
		err := runLoad(t.Context(), []string{"--url", base + "/", version, "--rate", "200", "--duration", "500ms", "--report", "0"}, &out)
		if !errors.Is(err, errFailed) {
			t.Errorf("%s: error %v; want that requests failed", version, err)
		}
		text := out.String()
		// 100 where the machine has time; a generator that comes late sends what is left of its half second.
		n := count.Load()
		if n < 50 || n > 100 || !strings.HasPrefix(text, fmt.Sprintf("%d requests to ", n)) || !strings.Contains(text, fmt.Sprintf(", %d failed", n/10)) ||
			!strings.Contains(text, fmt.Sprintf("%7d  HTTP 503: no healthy upstream", n/10)) {
			t.Errorf("%s: the server saw %d requests; summary:\n%s", version, count.Load(), text)
		}
	}
}

// TestLoadNeverRepeatsARequest: the client library would by itself send a request again whose connection breaks.
func TestLoadNeverRepeatsARequest(t *testing.T) {
	var count atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if count.Add(1)%2 == 0 { // on a connection that has answered once
			panic(http.ErrAbortHandler)
		}
	}))
	server.Config.ErrorLog = nil
	defer server.Close()
	l, err := newLoad(loadConfig{URL: server.URL, Rate: 20, Duration: 500 * time.Millisecond, Timeout: 5 * time.Second}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	s := l.run(t.Context())
	if s.count() != 10 || count.Load() != 10 || s.failed() != 5 {
		t.Errorf("%d requests, %d failed, and the server saw %d; want 10, 5 and 10", s.count(), s.failed(), count.Load())
	}
}

func TestLoadOfNobody(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := runLoad(t.Context(), []string{"--url", url, "--rate", "50", "--duration", "100ms"}, &out); !errors.Is(err, errFailed) || !strings.Contains(out.String(), "connection refused") {
		t.Errorf("error %v: %s", err, out.String())
	}
	for _, args := range [][]string{{"--url", "web"}, {"--rate", "0"}, {"--http1", "--http2"}} {
		if err := runLoad(t.Context(), args, io.Discard); err == nil || errors.Is(err, errFailed) {
			t.Errorf("%v: error %v", args, err)
		}
	}
}

// TestManifest holds shop.yaml to what the mesh goes by: the namespace asks for sidecars, ports are named by protocol, every
// service has an account of its own.
func TestManifest(t *testing.T) {
	data, err := os.ReadFile("shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var object struct {
			Kind     string
			Metadata struct {
				Name   string
				Labels map[string]string
			}
			Spec struct {
				Ports    []corev1.ServicePort
				Template corev1.PodTemplateSpec
			}
		}
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatalf("%v:\n%s", err, doc)
		}
		seen[object.Kind]++
		name := object.Metadata.Name
		switch object.Kind {
		case "Namespace":
			if object.Metadata.Labels["istio-injection"] != "enabled" {
				t.Error("the namespace does not ask for sidecars")
			}
		case "Service":
			want := map[string]string{"web": "http", "cart": "http", "stock": "http2"}[name]
			if object.Spec.Ports[0].Name != want {
				t.Errorf("port of %s is named %s; want %s", name, object.Spec.Ports[0].Name, want)
			}
		case "Deployment":
			if object.Spec.Template.Spec.ServiceAccountName != name {
				t.Errorf("%s runs as %s", name, object.Spec.Template.Spec.ServiceAccountName)
			}
		}
	}
	if seen["Deployment"] != 4 || seen["Service"] != 3 || seen["ServiceAccount"] != 4 {
		t.Errorf("objects: %v", seen)
	}
}
