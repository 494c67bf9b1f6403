package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// hop is what one service saw of one request, and what the next one saw.
type hop struct {
	Service  string `json:"service"`
	Pod      string `json:"pod"`
	Protocol string `json:"protocol"` // as it arrived here, from this pod's sidecar
	// Client and Server are the identities of the two sides of the TLS connection to this service, as its sidecar has verified
	// them; "" when the request came without mutual TLS.
	Client    string  `json:"client,omitempty"`
	Server    string  `json:"server,omitempty"`
	Millis    float64 `json:"ms"` // until the answer was complete here, the later hops included
	Goods     []item  `json:"goods,omitempty"`
	Next      *hop    `json:"next,omitempty"`
	NextError string  `json:"nextError,omitempty"`
}

// item is one article.
type item struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

// shelves are what stock has.
var shelves = []item{{"linen, natural", 12}, {"wool, indigo", 7}, {"silk thread", 40}}

type serviceConfig struct {
	Name       string
	Pod        string
	Next       string // base URL; "" ends the chain
	NextHTTP2  bool
	Registerer prometheus.Registerer
}

// service is one of the shop's.
type service struct {
	config   serviceConfig
	client   *http.Client
	requests *prometheus.CounterVec
	seconds  prometheus.Histogram
}

func newService(c serviceConfig) (*service, error) {
	s := &service{
		config: c,
		client: &http.Client{Transport: newTransport(c.NextHTTP2), Timeout: 10 * time.Second},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shop_requests_total", Help: "Requests answered, by status code.",
		}, []string{"code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "shop_request_seconds", Help: "Time until the answer was complete, the later hops included.", Buckets: prometheus.DefBuckets,
		}),
	}
	for _, c := range []prometheus.Collector{s.requests, s.seconds} {
		if err := s.config.Registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

// newTransport keeps connections open, as services do, and speaks one version of HTTP only.
func newTransport(http2 bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	return &http.Transport{Protocols: protocols, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute}
}

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"short": shortIdentity}).Parse(pageText))

// handler serves the role: every service answers with its hop at /api, web also with the page at /.
func (s *service) handler(gatherer prometheus.Gatherer) http.Handler {
	mux := health(gatherer)
	mux.HandleFunc("GET /api", func(w http.ResponseWriter, r *http.Request) {
		h := s.answer(r)
		s.write(w, h, "application/json", func(w io.Writer) error {
			encoder := json.NewEncoder(w)
			encoder.SetIndent("", "  ")
			return encoder.Encode(h)
		})
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		h := s.answer(r)
		s.write(w, h, "text/html; charset=utf-8", func(w io.Writer) error { return page.Execute(w, newView(h)) })
	})
	return mux
}

// answer asks the rest of the chain.
func (s *service) answer(r *http.Request) *hop {
	start := time.Now()
	h := &hop{Service: s.config.Name, Pod: s.config.Pod, Protocol: r.Proto}
	h.Client, h.Server = peers(r.Header.Get("X-Forwarded-Client-Cert"))
	if s.config.Name == "stock" {
		h.Goods = shelves
	}
	if s.config.Next != "" {
		next, err := s.ask(r.Context())
		if err != nil {
			h.NextError = err.Error()
		}
		h.Next = next
	}
	h.Millis = float64(time.Since(start).Microseconds()) / 1000
	return h
}

// ask calls the next service.
func (s *service) ask(ctx context.Context) (*hop, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.config.Next+"/api", nil)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", s.config.Next, err)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", s.config.Next, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read answer of %s: %w", s.config.Next, err)
	}
	var next hop
	if json.Unmarshal(body, &next) != nil || next.Service == "" { // a sidecar's own answer: text
		return nil, fmt.Errorf("call %s: %s: %s", s.config.Next, response.Status, strings.TrimSpace(string(body)))
	}
	return &next, nil
}

// write sends the answer: 502 when any hop of the chain is missing.
func (s *service) write(w http.ResponseWriter, h *hop, contentType string, body func(io.Writer) error) {
	code := http.StatusOK
	for at := h; at != nil; at = at.Next {
		if at.NextError != "" {
			code = http.StatusBadGateway
		}
	}
	s.requests.WithLabelValues(fmt.Sprint(code)).Inc()
	s.seconds.Observe(h.Millis / 1000)
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	if err := body(w); err != nil {
		slog.Debug("answer was not sent", "error", err) // the caller has gone
	}
}

// peers reads the identities out of Envoy's X-Forwarded-Client-Cert: By is the server's, URI the client's. Of several
// elements, one for each proxy on the way, the last one is of the sidecar next to us. Values may be quoted.
// See https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert
func peers(header string) (client, server string) {
	quoted := false
	fields := strings.FieldsFunc(header, func(r rune) bool {
		quoted = quoted != (r == '"')
		return !quoted && (r == ';' || r == ',')
	})
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "uri":
			client = strings.Trim(value, `"`)
		case "by":
			client, server = "", strings.Trim(value, `"`) // By begins an element
		}
	}
	return client, server
}

// shortIdentity is spiffe://cluster.local/ns/shop/sa/web as shop/web.
func shortIdentity(id string) string {
	parts := strings.Split(id, "/")
	if len(parts) == 7 && parts[3] == "ns" && parts[5] == "sa" {
		return parts[4] + "/" + parts[6]
	}
	return id
}
