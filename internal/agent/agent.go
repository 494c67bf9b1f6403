package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/selvage-mesh/selvage/internal/agent/identity"
	"github.com/selvage-mesh/selvage/internal/agent/process"
	"github.com/selvage-mesh/selvage/internal/agent/relay"
	"github.com/selvage-mesh/selvage/internal/agent/sds"
	"github.com/selvage-mesh/selvage/internal/agent/status"
	"github.com/selvage-mesh/selvage/internal/agent/upstream"
)

// certificateWait is how long the xDS stream waits for the first certificate at most, before it goes with the token.
const certificateWait = 5 * time.Second

// Agent is one sidecar's agent.
type Agent struct {
	config   Config
	admin    *admin
	identity *identity.Source
	relay    *relay.Relay
	sds      *sds.Server
	proxy    *process.Process
	registry *prometheus.Registry
	started  time.Time

	quit     chan struct{} // asked to end from inside the pod
	quitOnce sync.Once
	kill     chan struct{} // asked to end at once
	killOnce sync.Once
	drains   drains
}

// New checks the configuration and puts the parts together. Nothing is started, dialed or written.
func New(c Config) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{config: c, admin: newAdmin(c.Ports.Admin), quit: make(chan struct{}), kill: make(chan struct{}), started: time.Now()}
	a.drains.begun = make(chan struct{})
	target, ca, err := a.targets()
	if err != nil {
		return nil, err
	}
	authority := &identity.Authority{Target: ca, ClusterID: c.ClusterID, Lifetime: c.CertificateLifetime}
	a.identity, err = identity.New(identity.Config{
		Identity: c.identity(), Sign: authority.Sign, RootFile: c.Paths.Root, GraceRatio: c.GraceRatio, Key: c.Key, Log: c.Log,
	})
	if err != nil {
		return nil, err
	}
	a.sds = sds.New(sds.Config{Current: a.identity.Current, Log: c.Log})
	a.relay = relay.New(relay.Config{Target: target, Wait: a.identity.Tried(), WaitAtMost: certificateWait, Report: a.trusted, Log: c.Log})
	args, err := c.envoyArgs()
	if err != nil {
		return nil, err
	}
	a.proxy, err = process.New(process.Config{
		Path: c.Envoy.Path, Args: args, Stdout: c.Stdout, Stderr: c.Stderr, Log: c.Log, MaxCrashes: c.Envoy.MaxCrashes,
	})
	if err != nil {
		return nil, err
	}
	a.registry = prometheus.NewRegistry()
	a.register()
	return a, nil
}

// targets are the control plane and the authority. Both learn the pod by its certificate as soon as there is one.
func (a *Agent) targets() (xds, ca *upstream.Target, err error) {
	c := a.config
	common := upstream.Config{
		ServerName: c.ServerName, RootFile: c.Paths.Root, TokenFile: c.Paths.Token,
		Certificate: func() *tls.Certificate { return a.identity.Certificate() },
	}
	common.Address = c.Proxy.DiscoveryAddress
	if xds, err = upstream.New(common); err != nil {
		return nil, nil, err
	}
	if c.CAAddress != "" && c.CAAddress != c.Proxy.DiscoveryAddress {
		common.Address, common.ServerName = c.CAAddress, "" // it has a name of its own
	}
	ca, err = upstream.New(common)
	return xds, ca, err
}

// maxOverride is how much one argument of a program may have: 128 KiB on Linux (MAX_ARG_STRLEN), with its end.
const maxOverride = 128<<10 - 1

// override reads what a pod wants changed in Envoy's bootstrap.
func (c Config) override() (string, error) {
	data, err := os.ReadFile(c.BootstrapOverride)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("no bootstrap override in %s: the ConfigMap that the annotation sidecar.istio.io/bootstrapOverride names needs the key %s", c.BootstrapOverride, filepath.Base(c.BootstrapOverride))
	case err != nil:
		return "", fmt.Errorf("read the bootstrap override: %w", err)
	case len(data) > maxOverride:
		return "", fmt.Errorf("the bootstrap override %s has %d bytes: the most is %d", c.BootstrapOverride, len(data), maxOverride)
	case bytes.IndexByte(data, 0) >= 0:
		return "", fmt.Errorf("the bootstrap override %s is no text", c.BootstrapOverride)
	}
	return string(data), nil
}

// envoyArgs is Envoy's command line.
func (c Config) envoyArgs() ([]string, error) {
	// Immediate: a draining proxy says good-bye with every response, not with a chance that grows over drain-time.
	args := []string{
		"-c", c.Paths.Bootstrap,
		"--log-level", c.Envoy.LogLevel,
		"--log-format", "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n\t%v",
		"--drain-strategy", "immediate",
		"--drain-time-s", strconv.Itoa(int(c.Proxy.DrainDuration.Seconds())),
		"--disable-hot-restart",
		"--file-flush-interval-msec", strconv.FormatInt(cmp.Or(c.Proxy.FileFlushInterval, time.Second).Milliseconds(), 10),
	}
	if c.Proxy.FileFlushMinSizeKB > 0 {
		args = append(args, "--file-flush-min-size-kb", strconv.Itoa(c.Proxy.FileFlushMinSizeKB))
	}
	if c.BootstrapOverride != "" {
		over, err := c.override()
		if err != nil {
			return nil, err
		}
		args = append(args, "--config-yaml", over)
	}
	if c.Envoy.ComponentLogLevel != "" {
		args = append(args, "--component-log-level", c.Envoy.ComponentLogLevel)
	}
	version := "v4"
	if c.Pod.IP.Is6() {
		version = "v6"
	}
	args = append(args, "--local-address-ip-version", version)
	if n := c.workers(); n > 0 {
		args = append(args, "--concurrency", strconv.Itoa(n))
	}
	return args, nil
}

// defaultWorkers is Istio's default where there is no CPU limit: each worker costs memory for every cluster.
const defaultWorkers = 2

// workers is how many worker threads Envoy gets; 0 leaves it to Envoy, which takes one for each CPU.
func (c Config) workers() int {
	switch {
	case c.Envoy.Concurrency != nil:
		return *c.Envoy.Concurrency
	case c.Proxy.Concurrency != nil:
		return *c.Proxy.Concurrency
	case c.CPULimit > 0: // where there is no limit the kubelet gives the node's CPUs
		return min(c.CPULimit, runtime.NumCPU())
	}
	// Go reads the container's CPU limit, rounded up.
	if limit := runtime.GOMAXPROCS(0); limit < runtime.NumCPU() {
		return limit
	}
	return min(defaultWorkers, runtime.NumCPU())
}

// Run runs the sidecar until ctx ends or the pod asks it to end, and then takes it out of service as Drain says. The error says what
// failed: a port in use, a proxy that cannot be kept running.
func (a *Agent) Run(ctx context.Context) error {
	listeners, err := a.listen(ctx)
	if err != nil {
		return err
	}
	defer listeners.close()
	if err := a.config.writeBootstrap(); err != nil {
		return err
	}
	// The parts outlive ctx: they are needed while the proxy drains.
	work, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	parts, work := errgroup.WithContext(work)
	parts.Go(func() error { return a.identity.Run(work) })
	parts.Go(func() error { return serveGRPC(work, listeners.sds, a.sds.Register) })
	parts.Go(func() error {
		return serveGRPC(work, listeners.xds, func(grpc.ServiceRegistrar) {}, a.relay.ServerOptions()...)
	})
	parts.Go(func() error {
		return status.New(status.Config{
			Ready: a.ready, ReadyListener: listeners.ready, Listeners: listeners.full(),
			Probes: a.config.Probes, App: a.config.Pod.IP, ProxyMetrics: a.admin.url("/stats/prometheus"), Scrape: a.config.Scrape,
			Registry: a.registry, Quit: a.Quit, Drain: func() { a.beginDrain(work) }, Log: a.config.Log,
		}).Run(work)
	})
	errAllDone := errors.New("done")
	parts.Go(func() error {
		if err := a.proxy.Run(work); err != nil {
			return err
		}
		return errAllDone // asked to: the others have nothing left to do
	})
	a.config.Log.Info("started", "pod", a.config.Pod.Namespace+"/"+a.config.Pod.Name, "identity", a.config.identity(),
		"control_plane", a.config.Proxy.DiscoveryAddress, "workers", a.config.workers())
	select {
	case <-work.Done(): // a part failed
	case <-ctx.Done():
		a.terminate(work)
	case <-a.quit:
		a.terminate(work)
	}
	if err := parts.Wait(); err != nil && !errors.Is(err, errAllDone) {
		return err
	}
	return nil
}

// Quit asks Run to take the proxy out of service and return.
func (a *Agent) Quit() { a.quitOnce.Do(func() { close(a.quit) }) }

// Kill makes a termination that is under way end at once.
func (a *Agent) Kill() { a.killOnce.Do(func() { close(a.kill) }) }

// listeners are opened before anything starts, so that a port or path that is taken is said at once.
type listeners struct{ sds, xds, ready, agent, status net.Listener }

// full are those that serve all of the agent's paths.
func (l *listeners) full() []net.Listener {
	if l.status == nil {
		return []net.Listener{l.agent}
	}
	return []net.Listener{l.agent, l.status}
}

func (l *listeners) close() {
	for _, one := range []net.Listener{l.sds, l.xds, l.ready, l.agent, l.status} {
		if one != nil {
			one.Close()
		}
	}
}

func (a *Agent) listen(ctx context.Context) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.sds, err = listenUnix(ctx, a.config.Paths.SDSSocket); err != nil {
		return nil, err
	}
	if l.xds, err = listenUnix(ctx, a.config.Paths.XDSSocket); err != nil {
		return nil, err
	}
	for _, p := range []struct {
		port uint16
		into *net.Listener
	}{{a.config.Ports.Readiness, &l.ready}, {a.config.Ports.Agent, &l.agent}, {a.config.Ports.Status, &l.status}} {
		if p.port == 0 && p.into == &l.status {
			continue
		}
		if *p.into, err = new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(int(p.port)))); err != nil {
			return nil, fmt.Errorf("listen on the agent's port %d: %w; does the application use it?", p.port, err)
		}
	}
	return l, nil
}

// listenUnix takes over a socket that an agent before this one left. Only this user may connect: what is served is a private key.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// serveGRPC serves until ctx ends.
func serveGRPC(ctx context.Context, l net.Listener, register func(grpc.ServiceRegistrar), options ...grpc.ServerOption) error {
	server := grpc.NewServer(options...)
	register(server)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
