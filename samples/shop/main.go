// Command sample is a small shop to try the mesh with: three services that call one another in a chain, and a load generator.
//
//	web ──HTTP/1.1──▶ cart ──HTTP/2──▶ stock
//
// Each hop answers with what it saw: which pod answered, how long it took, and the SPIFFE identity that the sidecar in front
// of it has verified. web shows that as a page, and as JSON at /api.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

const usage = `sample is a small shop to try a service mesh with.

  sample web   [--addr :8080] [--next http://cart]    the page; JSON at /api
  sample cart  [--addr :8080] [--next http://stock]   what is in the basket
  sample stock [--addr :8080]                         what is on the shelves
  sample load  [--url URL] [--rate N] [--duration D]  constant load, without retries
  sample get   URL                                    one request; prints the answer

Every role takes --help.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// run is one role until ctx ends. It gives the exit code: 0 fine, 1 requests of the load failed, 2 could not do it.
func run(ctx context.Context, args []string) int {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	role := ""
	if len(args) > 0 {
		role = args[0]
	}
	var err error
	switch role {
	case "web", "cart", "stock":
		err = runService(ctx, role, args[1:])
	case "load":
		err = runLoad(ctx, args[1:], os.Stdout)
	case "get":
		err = runGet(ctx, args[1:], os.Stdout)
	case "help", "-h", "--help":
		fmt.Print(usage)
		return 0
	default:
		fmt.Fprintf(os.Stderr, "sample: there is no role %q\n\n%s", role, usage)
		return 2
	}
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errFailed):
		return 1
	}
	fmt.Fprintf(os.Stderr, "sample: %v\n", err)
	return 2
}

// runService serves one of the shop's services until ctx ends.
func runService(ctx context.Context, role string, args []string) error {
	flags := flag.NewFlagSet("sample "+role, flag.ContinueOnError)
	addr := flags.String("addr", ":8080", "address to serve on; HTTP/1.1 and HTTP/2 without TLS")
	next := flags.String("next", defaultNext[role], "base URL of the next service in the chain; none when empty")
	http2 := flags.Bool("next-http2", role == "cart", "call the next service by HTTP/2 without TLS")
	linger := flags.Duration("linger", 3*time.Second, "at the end, serve so long on while the news of it spreads")
	tlsAddr := flags.String("tls-addr", "", "address to serve on by HTTPS too, with a certificate of its own making; none when empty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	s, err := newService(serviceConfig{
		Name: role, Pod: podName(), Next: strings.TrimSuffix(*next, "/"), NextHTTP2: *http2, Registerer: registry,
	})
	if err != nil {
		return err
	}
	handler := withGRPCHealth(s.handler(registry))
	listener, err := listen(ctx, *addr)
	if err != nil {
		return fmt.Errorf("serve %s: %w", role, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, listener, handler, *linger) })
	if *tlsAddr != "" {
		group.Go(func() error {
			plain, err := listen(ctx, *tlsAddr)
			if err != nil {
				return fmt.Errorf("serve %s by HTTPS: %w", role, err)
			}
			secure, err := withTLS(plain, role)
			if err != nil {
				return err
			}
			return serve(ctx, secure, handler, *linger)
		})
	}
	return group.Wait()
}

// listen opens a TCP port.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var config net.ListenConfig
	return config.Listen(ctx, "tcp", addr)
}

// defaultNext are the names of the chain's services in the cluster.
var defaultNext = map[string]string{"web": "http://cart", "cart": "http://stock"}

// podName is the name of the pod, which is its host name.
func podName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

// health is what every role serves: whether it lives, and its metrics.
func health(gatherer prometheus.Gatherer) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	return mux
}

// longestDrain bounds the wait for requests in flight at the end; Kubernetes kills after 30 s.
const longestDrain = 20 * time.Second

// serve answers until ctx ends. Then it is not ready any more, but goes on to serve for a while, because callers learn only
// bit by bit that it goes; at last it takes no new requests and finishes those in flight.
func serve(ctx context.Context, listener net.Listener, handler http.Handler, linger time.Duration) error {
	outer := http.NewServeMux()
	outer.Handle("/", handler)
	outer.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if ctx.Err() != nil {
			http.Error(w, "ending", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ready\n")
	})
	server := &http.Server{Handler: outer, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	slog.Info("serving", "address", listener.Addr().String())
	select {
	case err := <-ended:
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	slog.Info("ending", "linger", linger.String())
	time.Sleep(linger)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), longestDrain)
	defer cancel()
	if err := server.Shutdown(bounded); err != nil {
		return fmt.Errorf("finish requests in flight: %w", err)
	}
	return nil
}
