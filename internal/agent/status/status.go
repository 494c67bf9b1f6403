// Package status is what the agent serves over HTTP: readiness for the kubelet, the application's probes in its place, the merged
// metrics, and the two commands that a pod may give its own sidecar.
package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/selvage-mesh/selvage/internal/readiness"
)

// Config says what is served from where.
type Config struct {
	// Ready gives what the proxy lacks. It is called for every request of readiness.
	Ready func(ctx context.Context) readiness.Status
	// ReadyListener serves /healthz/ready only (15021), Listeners everything (15020).
	ReadyListener net.Listener
	Listeners     []net.Listener
	Probes        Probes
	App           netip.Addr // where the application listens: the pod's address
	ProxyMetrics  string     // URL of Envoy's metrics in the text format
	Scrape        []Scrape   // of the application
	Registry      *prometheus.Registry
	// Quit ends the agent, Drain begins to drain the proxy and keeps it running. Both return at once.
	Quit, Drain func()
	Log         *slog.Logger
}

// Server serves.
type Server struct {
	config    Config
	full      http.Handler
	readyOnly http.Handler
	lastText  chan string // holds the newest readiness text: it is logged when it changes
}

var handedOver = netip.MustParseAddr("127.0.0.6")

// The server's own limits against clients that are slow on purpose.
const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	shutdownGrace = time.Second
)

// New makes a server that does not serve yet.
func New(c Config) *Server {
	s := &Server{config: c, lastText: make(chan string, 1)}
	s.lastText <- ""
	readyOnly := http.NewServeMux()
	readyOnly.HandleFunc("GET /healthz/ready", s.ready)
	full := http.NewServeMux()
	full.HandleFunc("GET /healthz/ready", s.ready)
	full.Handle("GET /stats/prometheus", newMerger(c.ProxyMetrics, c.Scrape, c.Registry))
	app := newProber(c.Probes, c.App)
	full.Handle("GET "+appHealth, app)
	full.Handle("GET "+appLifecycle, app)
	full.HandleFunc("POST /quitquitquit", s.local("quit", c.Quit))
	full.HandleFunc("POST /drain", s.local("drain", c.Drain))
	s.readyOnly, s.full = readyOnly, full
	return s
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	listeners := append([]net.Listener{s.config.ReadyListener}, s.config.Listeners...)
	ended := make(chan error, len(listeners))
	servers := make([]*http.Server, len(listeners))
	for i, l := range listeners {
		servers[i] = &http.Server{Handler: s.full, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
		if l == s.config.ReadyListener {
			servers[i].Handler = s.readyOnly
		}
		go func() {
			err := servers[i].Serve(l)
			if errors.Is(err, http.ErrServerClosed) {
				err = nil
			}
			ended <- err
		}()
	}
	var err error
	left := len(servers)
	select {
	case <-ctx.Done():
	case err = <-ended:
		left--
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	for _, server := range servers {
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	}
	for range left {
		err = errors.Join(err, <-ended)
	}
	if err != nil {
		return fmt.Errorf("serve the agent's status: %w", err)
	}
	return nil
}

// ready answers 200 or 503, and in either case the sentence.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	st := s.config.Ready(r.Context())
	text := st.String()
	if before := <-s.lastText; text != before {
		level := slog.LevelInfo
		if !st.Ready() {
			level = slog.LevelWarn
		}
		s.config.Log.Log(r.Context(), level, text) // the sentence itself, which people search logs for
	}
	s.lastText <- text
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if !st.Ready() {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, text)
}

// local lets only the pod itself do something.
func (s *Server) local(name string, do func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		// 127.0.0.6 is how the proxy hands over what came from outside.
		if addr := from.Addr().Unmap(); err != nil || !addr.IsLoopback() || addr == handedOver {
			http.Error(w, "only from inside the pod, on localhost", http.StatusForbidden)
			return
		}
		s.config.Log.Info("asked from inside the pod to "+name, "from", r.RemoteAddr)
		do()
		fmt.Fprintln(w, "OK")
	}
}
