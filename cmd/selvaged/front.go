package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/selvage-mesh/selvage/internal/ads"
	"github.com/selvage-mesh/selvage/internal/ca"
	"github.com/selvage-mesh/selvage/internal/version"
)

// front is everything that listens: 15012 (xDS and CA), 15017 (webhooks), 15014 (metrics, health, debug).
type front struct {
	options    options
	log        *slog.Logger
	metrics    *prometheus.Registry
	authority  *ca.Authority
	proxies    *ads.Server
	admission  http.Handler
	authorizer *ca.Authorizer
	replica    string
	ready      map[string]func() error // what must be so before traffic is sent here
	gaps       func() []string         // what cannot be read at present, a sentence for each

	stopping atomic.Bool
}

const (
	// lameDuck is how long requests are still taken after the signal to stop: so long the API server and the sidecars may not
	// have heard yet that this replica goes. A webhook that refuses a connection fails the creation of a pod.
	lameDuck = 3 * time.Second
	// shutdownGrace is how long requests in flight may take after that.
	shutdownGrace = 5 * time.Second
)

// run opens all ports before it serves any, so that a port in use is one clear error and nothing half started.
func (f *front) run(ctx context.Context) error {
	plain, err := f.listenPlain(ctx)
	if err != nil {
		return err
	}
	xds, err := listen(ctx, "--xds-addr", f.options.xdsAddr)
	if err != nil {
		return err
	}
	webhooks, err := listen(ctx, "--webhook-addr", f.options.webhookAddr)
	if err != nil {
		return err
	}
	status, err := listen(ctx, "--http-addr", f.options.httpAddr)
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error {
		<-ctx.Done()
		f.stopping.Store(true)
		time.AfterFunc(lameDuck, stop)
		return nil
	})
	serveGRPC(serving, work, f.grpcServer(), xds)
	if plain != nil {
		serveGRPC(serving, work, f.plainServer(), plain)
		f.log.Warn("xDS is served without TLS too: whoever reaches this address is believed, and is told what the proxy is told that it claims to be",
			"address", plain.Addr().String())
	}
	serveHTTP(serving, work, &http.Server{Handler: f.admission, TLSConfig: f.authority.ServingTLSConfig()}, webhooks)
	serveHTTP(serving, work, &http.Server{Handler: f.statusHandler()}, status)
	f.log.Info("listening", "xds", xds.Addr().String(), "webhook", webhooks.Addr().String(), "http", status.Addr().String())
	return work.Wait()
}

// listenPlain gives the listener of xDS without TLS, nil when it is off. There nobody proves anything, so it is for this machine
// alone unless the operator says otherwise: a second flag, because a typing error in an address must not open the mesh.
func (f *front) listenPlain(ctx context.Context) (net.Listener, error) {
	address := f.options.xdsPlainAddr
	if address == "" {
		return nil, nil
	}
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s (--xds-plain-addr): %w", address, err)
	}
	if !resolved.IP.IsLoopback() && !f.options.allowPlaintext {
		return nil, fmt.Errorf("listen on %s (--xds-plain-addr): others than this machine may reach it, and without TLS whoever does is believed; "+
			"choose a loopback address such as 127.0.0.1:15010, or give --allow-plaintext-xds where another secure transport stands before it", address)
	}
	return listen(ctx, "--xds-plain-addr", resolved.String())
}

func listen(ctx context.Context, flag, address string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: another program does already; choose another address with %s", address, flag)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s (%s): %w", address, flag, err)
	}
	return l, nil
}

// grpcServer has the limits of a port that strangers can reach: see ads and ca for those of a caller.
func (f *front) grpcServer() *grpc.Server {
	server := grpc.NewServer(append(limits(), grpc.Creds(credentials.NewTLS(f.authority.TLSConfig())))...)
	f.proxies.Register(server)
	f.authority.Register(server)
	return server
}

// plainServer serves xDS and nothing else: a certificate is for who has proven something.
func (f *front) plainServer() *grpc.Server {
	server := grpc.NewServer(limits()...)
	f.proxies.RegisterPlain(server)
	return server
}

func limits() []grpc.ServerOption {
	return []grpc.ServerOption{
		ads.Codec(),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionAge: 30 * time.Minute, MaxConnectionAgeGrace: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(8 << 20), grpc.MaxConcurrentStreams(100), // a reconnecting proxy names all that it holds, some 50 bytes each
		grpc.ConnectionTimeout(15 * time.Second),
		grpc.ReadBufferSize(4 << 10),
	}
}

func serveGRPC(ctx context.Context, work *errgroup.Group, server *grpc.Server, l net.Listener) {
	work.Go(func() error { return server.Serve(l) })
	work.Go(func() error {
		<-ctx.Done()
		late := time.AfterFunc(shutdownGrace, server.Stop)
		defer late.Stop()
		server.GracefulStop()
		return nil
	})
}

// serveHTTP serves until ctx ends, over TLS where the server has a configuration for it.
func serveHTTP(ctx context.Context, work *errgroup.Group, server *http.Server, l net.Listener) {
	server.ReadHeaderTimeout, server.IdleTimeout, server.MaxHeaderBytes = 10*time.Second, 2*time.Minute, 64<<10
	server.ReadTimeout, server.WriteTimeout = 30*time.Second, time.Minute
	work.Go(func() error {
		serve := func() error { return server.Serve(l) }
		if server.TLSConfig != nil {
			serve = func() error { return server.ServeTLS(l, "", "") }
		}
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	work.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		return server.Shutdown(grace)
	})
}

func (f *front) statusHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(f.metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /ready", f.serveReady)
	mux.Handle("GET /debug/syncz", f.authorizer.Require(f.proxies.SyncHandler(f.replica, version.Version)))
	mux.Handle("GET /debug/pprof/", f.authorizer.Require(http.HandlerFunc(pprof.Index)))
	mux.Handle("GET /debug/pprof/profile", f.authorizer.Require(http.HandlerFunc(pprof.Profile)))
	return http.TimeoutHandler(mux, 30*time.Second, "timed out\n")
}

// serveReady answers 200 when this replica can do its work, with a line for each kind that it cannot read, else 503 with a line
// for each thing that is missing.
func (f *front) serveReady(w http.ResponseWriter, _ *http.Request) {
	var missing []string
	if f.stopping.Load() {
		missing = append(missing, "stopping")
	}
	for part, ready := range f.ready {
		if err := ready(); err != nil {
			missing = append(missing, part+": "+err.Error())
		}
	}
	if len(missing) == 0 {
		fmt.Fprintln(w, "ready")
		for _, gap := range f.gaps() {
			fmt.Fprintln(w, "cluster: "+gap)
		}
		return
	}
	slices.Sort(missing)
	http.Error(w, strings.Join(missing, "\n"), http.StatusServiceUnavailable)
}
