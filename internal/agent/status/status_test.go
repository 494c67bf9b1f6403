package status

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/selvage-mesh/selvage/internal/readiness"
)

// fixture is a server with everything around it.
type fixture struct {
	t          *testing.T
	ready, all string // base URLs
	second     string // of the second listener that serves all
	log        *strings.Builder
	quits      atomic.Int32
	status     atomic.Pointer[readiness.Status]
}

func serve(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{t: t, log: &strings.Builder{}}
	f.status.Store(&readiness.Status{})
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	c := Config{
		Ready:         func(context.Context) readiness.Status { return *f.status.Load() },
		ReadyListener: listen(), Listeners: []net.Listener{listen(), listen()}, App: netip.MustParseAddr("127.0.0.1"), Registry: prometheus.NewRegistry(),
		Quit: func() { f.quits.Add(1) }, Drain: func() { f.quits.Add(100) },
		Log: slog.New(slog.NewTextHandler(f.log, nil)),
	}
	f.ready, f.all = "http://"+c.ReadyListener.Addr().String(), "http://"+c.Listeners[0].Addr().String()
	f.second = "http://" + c.Listeners[1].Addr().String()
	if change != nil {
		change(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- New(c).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) do(method, url string, header http.Header) (code int, contentType, body string) {
	f.t.Helper()
	request, err := http.NewRequestWithContext(f.t.Context(), method, url, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	request.Header = header
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := client.Do(request)
	if err != nil {
		f.t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return answer.StatusCode, answer.Header.Get("Content-Type"), string(data)
}

func TestReadinessAnswersInTheSentence(t *testing.T) {
	f := serve(t, nil)
	live := readiness.Status{CDS: readiness.Updates{Successful: 1}, LDS: readiness.Updates{Successful: 1}, WorkersStarted: true}
	for _, tt := range []struct {
		given readiness.Status
		code  int
		body  string
	}{
		{readiness.Status{}, 503, "Envoy proxy is NOT ready: config not received from XDS server (is Istiod running?)"},
		{readiness.Status{}, 503, "Envoy proxy is NOT ready: config not received from XDS server (is Istiod running?)"},
		{live, 200, "Envoy proxy is ready\n"},
	} {
		f.status.Store(&tt.given)
		for _, base := range []string{f.ready, f.all} {
			if code, _, body := f.do("GET", base+"/healthz/ready", nil); code != tt.code || !strings.HasPrefix(body, tt.body) {
				t.Errorf("%d %q, want %d %q", code, body, tt.code, tt.body)
			}
		}
	}
	if n := strings.Count(f.log.String(), "Envoy proxy is NOT ready: "); n != 1 {
		t.Errorf("logged %d times, want once for each change:\n%s", n, f.log)
	}
	if code, _, _ := f.do("GET", f.ready+"/stats/prometheus", nil); code != 404 {
		t.Errorf("the readiness port serves metrics: %d", code)
	}
}

func TestOnlyThePodItselfMayEndIt(t *testing.T) {
	f := serve(t, nil)
	if code, _, _ := f.do("GET", f.all+"/quitquitquit", nil); code != 405 || f.quits.Load() != 0 {
		t.Errorf("GET: %d", code)
	}
	if code, _, _ := f.do("POST", f.all+"/quitquitquit", nil); code != 200 || f.quits.Load() != 1 {
		t.Errorf("POST: %d, quit %d times", code, f.quits.Load())
	}
	if code, _, _ := f.do("POST", f.all+"/drain", nil); code != 200 || f.quits.Load() != 101 {
		t.Errorf("drain: %d, %d", code, f.quits.Load())
	}
	s := New(Config{Registry: prometheus.NewRegistry(), Quit: func() { t.Error("quit by a stranger") }, Log: slog.New(slog.DiscardHandler)})
	for _, from := range []string{"10.1.2.3:4", "127.0.0.6:4", "[2001:db8::1]:4", "nonsense"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/quitquitquit", nil)
		r.RemoteAddr = from
		s.full.ServeHTTP(w, r)
		if w.Code != 403 {
			t.Errorf("from %s: %d, want 403", from, w.Code)
		}
	}
}

// probesFor gives the probes' configuration for applications on the ports.
func probesFor(t *testing.T, format string, args ...any) Probes {
	t.Helper()
	p, err := ParseProbes(fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func portOf(t *testing.T, addr net.Addr) int { return addr.(*net.TCPAddr).Port }

func TestHTTPProbesReachTheApplicationAsTheKubeletWould(t *testing.T) {
	var seen atomic.Pointer[http.Request]
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		switch r.URL.Path {
		case "/bad":
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, "database is down")
		case "/here":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/elsewhere":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		}
	}))
	defer app.Close()
	tls := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer tls.Close()
	port := portOf(t, app.Listener.Addr())
	f := serve(t, func(c *Config) {
		c.Probes = probesFor(t, `{
			"/app-health/web/readyz": {"httpGet":{"path":"/ok?x=1","port":%[1]d,"httpHeaders":[{"name":"Host","value":"shop.example"},{"name":"X-A","value":"b"}]},"timeoutSeconds":2},
			"/app-health/web/livez": {"httpGet":{"path":"bad","port":"%[1]d"}},
			"/app-health/here/livez": {"httpGet":{"path":"/here","port":%[1]d}},
			"/app-health/elsewhere/livez": {"httpGet":{"path":"/elsewhere","port":%[1]d}},
			"/app-health/loop/livez": {"httpGet":{"path":"/loop","port":%[1]d}},
			"/app-health/slow/livez": {"httpGet":{"path":"/slow","port":%[1]d}},
			"/app-health/tls/startupz": {"httpGet":{"path":"/","port":%[2]d,"scheme":"HTTPS"}}}`, port, portOf(t, tls.Listener.Addr()))
	})
	for path, want := range map[string]struct {
		code int
		says string
	}{
		"web/livez":       {503, "database is down"},
		"here/livez":      {200, ""},
		"elsewhere/livez": {302, ""},
		"loop/livez":      {500, "stopped after 10 redirects"},
		"slow/livez":      {500, "no answer within 1s"},
		"tls/startupz":    {200, ""},
		"other/readyz":    {404, "no probe /app-health/other/readyz"},
	} {
		if code, _, body := f.do("GET", f.all+"/app-health/"+path, nil); code != want.code || !strings.Contains(body, want.says) {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, want.code, want.says)
		}
	}
	f.do("GET", f.all+"/app-health/web/readyz", http.Header{"User-Agent": {"kube-probe/1.37"}, "Authorization": {"of the kubelet"}})
	r := seen.Load()
	if r.Host != "shop.example" || r.Header.Get("X-A") != "b" || r.URL.RawQuery != "x=1" || r.UserAgent() != "kube-probe/1.37" || r.Header.Get("Authorization") != "" {
		t.Errorf("the application saw %s %s %v", r.Host, r.URL, r.Header)
	}
	// From 127.0.0.6, which the interception lets through.
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err != nil || host != "127.0.0.6" {
		t.Errorf("the probe comes from %s", r.RemoteAddr)
	}
}

func TestTCPAndGRPCProbes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	checks := health.NewServer()
	checks.SetServingStatus("down", healthv1.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, checks)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := portOf(t, gone.Addr())
	gone.Close()
	f := serve(t, func(c *Config) {
		c.Probes = probesFor(t, `{
			"/app-health/open/readyz": {"tcpSocket":{"port":%[1]d}},
			"/app-health/closed/readyz": {"tcpSocket":{"port":%[2]d}},
			"/app-health/grpc/readyz": {"grpc":{"port":%[1]d,"service":null}},
			"/app-health/down/readyz": {"grpc":{"port":%[1]d,"service":"down"}},
			"/app-health/unknown/readyz": {"grpc":{"port":%[1]d,"service":"unknown"}},
			"/app-health/nogrpc/readyz": {"grpc":{"port":%[2]d}}}`, portOf(t, l.Addr()), closed)
	})
	for path, want := range map[string]struct {
		code int
		says string
	}{
		"open/readyz": {200, ""}, "closed/readyz": {500, "connection refused"}, "grpc/readyz": {200, ""},
		"down/readyz": {500, `service "down" is NOT_SERVING`}, "unknown/readyz": {500, "unknown service"}, "nogrpc/readyz": {500, "connection refused"},
	} {
		if code, _, body := f.do("GET", f.all+"/app-health/"+path, nil); code != want.code || !strings.Contains(body, want.says) {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, want.code, want.says)
		}
	}
}

func TestProbesThatCannotBeMeantAreRefused(t *testing.T) {
	for _, text := range []string{"[]", "{", `{"/x":{"tcpSocket":{"port":1}}}`, `{"/app-health/a/readyz":null}`, `{"/app-health/a/readyz":{"exec":{}}}`,
		`{"/app-health/a/readyz":{"tcpSocket":{"port":"http"}}}`, `{"/app-health/a/readyz":{"tcpSocket":{"port":70000}}}`, `{"/app-health/a/readyz":{"grpc":{}}}`} {
		if p, err := ParseProbes(text); err == nil {
			t.Errorf("%s: %v", text, p)
		}
	}
}

const envoyText = `# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{cluster_name="a"} 3

# TYPE envoy_istio_requests_total counter
envoy_istio_requests_total{response_code="200"} 5

# TYPE envoy_server_live gauge
envoy_server_live{} 1

# TYPE envoy_odd counter
envoy_odd{} 2

# TYPE envoy_istio_request_duration_milliseconds histogram
envoy_istio_request_duration_milliseconds_bucket{le="0.5"} 0
envoy_istio_request_duration_milliseconds_bucket{le="+Inf"} 1
envoy_istio_request_duration_milliseconds_sum{} 7.1
envoy_istio_request_duration_milliseconds_count{} 1
`

// scraped are an Envoy and an application that answers as the test says.
func scraped(t *testing.T, app http.HandlerFunc) *fixture {
	t.Helper()
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, envoyText) }))
	t.Cleanup(proxy.Close)
	return serve(t, func(c *Config) {
		c.ProxyMetrics = proxy.URL
		if app != nil {
			server := httptest.NewServer(app)
			t.Cleanup(server.Close)
			c.Scrape = []Scrape{{Port: uint16(portOf(t, server.Listener.Addr())), Path: "/metrics"}}
		}
	})
}

func TestMetricsInTheTextFormat(t *testing.T) {
	for name, app := range map[string]http.HandlerFunc{
		"with an application": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			fmt.Fprint(w, "# TYPE shop_orders gauge\nshop_orders 7") // no line feed at the end
		},
		"without one": nil,
	} {
		t.Run(name, func(t *testing.T) {
			f := scraped(t, app)
			// What Prometheus 3 sends.
			accept := http.Header{"Accept": {"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"}}
			code, contentType, body := f.do("GET", f.all+"/stats/prometheus", accept)
			if code != 200 || !strings.HasPrefix(contentType, "text/plain; version=0.0.4") {
				t.Fatalf("%d %s", code, contentType)
			}
			parser := expfmt.NewTextParser(model.LegacyValidation)
			families, err := parser.TextToMetricFamilies(strings.NewReader(body))
			if err != nil {
				t.Fatalf("not the text format: %v\n%s", err, body)
			}
			want := []string{"envoy_cluster_upstream_rq_total", "istio_requests_total", "istio_request_duration_milliseconds", "envoy_server_live", "istio_agent_scrapes_total"}
			if app != nil {
				want = append(want, "shop_orders")
			}
			for _, name := range want {
				if families[name] == nil {
					t.Errorf("lacks %s", name)
				}
			}
			if strings.Contains(body, "envoy_istio_") {
				t.Error("Istio's metrics have Envoy's prefix")
			}
			if got := families["istio_requests_total"].GetMetric()[0].GetCounter().GetValue(); got != 5 {
				t.Errorf("istio_requests_total = %g", got)
			}
		})
	}
}

func TestMetricsInOpenMetricsWhenTheApplicationSpeaksIt(t *testing.T) {
	var asked atomic.Value
	f := scraped(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Header.Get("Accept"))
		w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
		fmt.Fprint(w, "# TYPE shop_orders counter\nshop_orders_total 7 # {trace_id=\"abc\"} 1\n# EOF\n")
	})
	_, contentType, body := f.do("GET", f.all+"/stats/prometheus", http.Header{"Accept": {"application/vnd.google.protobuf;q=0.9,application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5"}})
	if !strings.HasPrefix(contentType, "application/openmetrics-text") {
		t.Errorf("content type %s", contentType)
	}
	if asked.Load() != "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5" {
		t.Errorf("the application was asked for %q", asked.Load())
	}
	lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
	if lines[len(lines)-1] != "# EOF" || strings.Count(body, "# EOF") != 1 {
		t.Errorf("one end is wanted, at the end:\n%s", body)
	}
	if slices.Contains(lines, "") {
		t.Error("OpenMetrics allows no empty line")
	}
	for _, line := range []string{"# TYPE istio_requests counter", `istio_requests_total{response_code="200"} 5`, "# TYPE envoy_odd unknown", "# TYPE envoy_server_live gauge",
		"# TYPE istio_request_duration_milliseconds histogram", `shop_orders_total 7 # {trace_id="abc"} 1`, "# TYPE istio_agent_scrapes counter"} {
		if !slices.Contains(lines, line) {
			t.Errorf("lacks %q", line)
		}
	}
}

func TestASourceThatFailsIsCountedAndLeftOut(t *testing.T) {
	f := scraped(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	f.do("GET", f.all+"/stats/prometheus", nil)
	code, _, body := f.do("GET", f.all+"/stats/prometheus", nil)
	if code != 200 || !strings.Contains(body, "istio_requests_total{") || !strings.Contains(body, `istio_agent_scrape_failures_total{type="application"} 2`) {
		t.Errorf("%d\n%s", code, body)
	}
	gone := serve(t, func(c *Config) { c.ProxyMetrics = "http://127.0.0.1:1/stats" })
	gone.do("GET", gone.all+"/stats/prometheus", nil)
	if _, _, body := gone.do("GET", gone.all+"/stats/prometheus", nil); !strings.Contains(body, `istio_agent_scrape_failures_total{type="envoy"} 1`) {
		t.Errorf("without Envoy:\n%s", body)
	}
}

func TestAnApplicationThatHangsDoesNotTakeTheRestAlong(t *testing.T) {
	f := scraped(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "shop_orders 7\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	code, _, body := f.do("GET", f.all+"/stats/prometheus", http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {"0.3"}})
	if code != 200 || !strings.Contains(body, "istio_requests_total{") || !strings.Contains(body, "shop_orders 7\n") {
		t.Errorf("%d\n%s", code, body)
	}
}

func TestScrapeTimes(t *testing.T) {
	for header, want := range map[string]time.Duration{"": 10 * time.Second, "20": 19 * time.Second, "-1": 10 * time.Second, "x": 10 * time.Second, "1e9": 10 * time.Second} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", header)
		if got := timeoutOf(r); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func TestScrapeSettings(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		`{"scrape":"false"}`:        "",
		`{"scrape":"True"}`:         "http://localhost:80/metrics",
		`{"scrape":"","port":"81"}`: "http://localhost:81/metrics",
		`{"scrape":"true","path":"m","port":"9090"}`:                                                 "http://localhost:9090/m",
		`{"scrape":"true","path":"/m","port":"1","targets":[{"port":"1","path":"/m"},{"port":"2"}]}`: "http://localhost:1/m http://localhost:2/metrics",
		`{"scrape":"false","targets":[{"port":"1"}]}`:                                                "",
	} {
		list, err := ParseScrape(text)
		var got []string
		for _, s := range list {
			got = append(got, s.url())
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"{", `{"scrape":"true","port":"http"}`, `{"scrape":"true","port":"0"}`, `{"targets":[{"port":"1"},{"port":"x"}]}`,
		`{"targets":[` + strings.Repeat(`{"port":"1"},`, 40) + `{"port":"1"}]}`} {
		if got, err := ParseScrape(text); err == nil {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// TestSeveralTargetsOfAnApplication: the metrics of all come as one answer in the plain format, on either of the agent's ports; one
// that fails, or that answers in a format which cannot be joined, is left out and counted.
func TestSeveralTargetsOfAnApplication(t *testing.T) {
	target := func(contentType, text string) Scrape {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept") != "text/plain;version=0.0.4" {
				t.Errorf("it is asked for %s", r.Header.Get("Accept"))
			}
			w.Header().Set("Content-Type", contentType)
			fmt.Fprint(w, text)
		}))
		t.Cleanup(server.Close)
		return Scrape{Port: uint16(portOf(t, server.Listener.Addr())), Path: "/metrics"}
	}
	plain := "text/plain; version=0.0.4; charset=utf-8"
	f := serve(t, func(c *Config) {
		c.ProxyMetrics = "http://127.0.0.1:1/stats"
		c.Scrape = []Scrape{target(plain, "# TYPE orders gauge\norders 7"), target(plain, "# TYPE carts gauge\ncarts 3\n"),
			target("application/openmetrics-text; version=1.0.0", "# TYPE odd gauge\nodd 1\n# EOF\n"), {Port: 1, Path: "/metrics"}}
	})
	for _, at := range []string{f.all, f.second} {
		code, contentType, body := f.do("GET", at+"/stats/prometheus", http.Header{"Accept": {"application/openmetrics-text;version=1.0.0"}})
		if code != 200 || !strings.HasPrefix(contentType, "text/plain; version=0.0.4") {
			t.Errorf("%d %s", code, contentType)
		}
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(body))
		if err != nil || families["orders"] == nil || families["carts"] == nil || families["odd"] != nil {
			t.Errorf("error %v:\n%s", err, body)
		}
	}
	if _, _, body := f.do("GET", f.all+"/stats/prometheus", nil); !strings.Contains(body, `istio_agent_scrape_failures_total{type="application"} 6`) {
		t.Errorf("failures are not counted:\n%s", body)
	}
}

// TestHooksOfTheApplication: a hook is called as a probe is, but may take as long as the pod has to end.
func TestHooksOfTheApplication(t *testing.T) {
	var asked atomic.Value
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Path)
		fmt.Fprint(w, "bye")
	}))
	defer app.Close()
	probes, err := ParseProbes(fmt.Sprintf(`{"/app-lifecycle/web/prestopz":{"httpGet":{"path":"/stop","port":%d}}, "/app-health/web/livez":{"tcpSocket":{"port":1}}}`, portOf(t, app.Listener.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	f := serve(t, func(c *Config) { c.Probes = probes })
	if code, _, body := f.do("GET", f.all+"/app-lifecycle/web/prestopz", nil); code != 200 || body != "bye" || asked.Load() != "/stop" {
		t.Errorf("%d %s, the application was asked for %v", code, body, asked.Load())
	}
	if code, _, _ := f.do("GET", f.all+"/app-lifecycle/web/poststartz", nil); code != 404 {
		t.Errorf("a hook that nobody has: %d", code)
	}
	for path, want := range map[string]time.Duration{"/app-lifecycle/web/prestopz": 0, "/app-health/web/livez": time.Second} {
		if got := probes[path].timeout(path); got != want {
			t.Errorf("%s may take %s, want %s", path, got, want)
		}
	}
}
