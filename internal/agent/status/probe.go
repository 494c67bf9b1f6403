package status

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// probe is what the agent reads of a corev1.Probe; Kubernetes' own types would link half of its API machinery.
type probe struct {
	HTTPGet *struct {
		Path        string     `json:"path"`
		Port        portNumber `json:"port"`
		Host        string     `json:"host"`
		Scheme      string     `json:"scheme"`
		HTTPHeaders []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"httpHeaders"`
	} `json:"httpGet"`
	TCPSocket *struct {
		Port portNumber `json:"port"`
		Host string     `json:"host"`
	} `json:"tcpSocket"`
	GRPC *struct {
		Port    portNumber `json:"port"`
		Service string     `json:"service"`
	} `json:"grpc"`
	TimeoutSeconds int32 `json:"timeoutSeconds"`
}

// portNumber is a port as a number, or as a number in quotes. Names are resolved by the injector.
type portNumber uint16

// UnmarshalJSON reads either.
func (p *portNumber) UnmarshalJSON(data []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(data), `"`), 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("port %s: want a number from 1 to 65535", data)
	}
	*p = portNumber(n)
	return nil
}

// Probes are the application's own probes, by the path under which the kubelet asks the agent for them.
type Probes map[string]*probe

// appHealth begins the paths of probes, appLifecycle those of hooks.
const (
	appHealth    = "/app-health/"
	appLifecycle = "/app-lifecycle/"
)

// ParseProbes reads ISTIO_KUBE_APP_PROBERS, a JSON object of "/app-health/CONTAINER/{readyz,livez,startupz}" and
// "/app-lifecycle/CONTAINER/{poststartz,prestopz}" → corev1.Probe with an httpGet, tcpSocket or grpc part; "" is no probes.
func ParseProbes(text string) (Probes, error) {
	if text == "" {
		return nil, nil
	}
	probes := Probes{}
	if err := json.Unmarshal([]byte(text), &probes); err != nil {
		return nil, fmt.Errorf("parse probes: %w", err)
	}
	for _, path := range slices.Sorted(maps.Keys(probes)) {
		p := probes[path]
		switch {
		case !strings.HasPrefix(path, appHealth) && !strings.HasPrefix(path, appLifecycle):
			return nil, fmt.Errorf("parse probes: path %q does not begin with %s or %s", path, appHealth, appLifecycle)
		case p == nil || p.HTTPGet == nil && p.TCPSocket == nil && p.GRPC == nil:
			return nil, fmt.Errorf("parse probes: %s has none of httpGet, tcpSocket and grpc", path)
		case p.HTTPGet != nil && p.HTTPGet.Port == 0, p.TCPSocket != nil && p.TCPSocket.Port == 0, p.GRPC != nil && p.GRPC.Port == 0:
			return nil, fmt.Errorf("parse probes: %s has no port", path)
		}
	}
	return probes, nil
}

// The limits of a probe, as the kubelet's.
const (
	defaultProbeTimeout = time.Second
	maxProbeBody        = 10 << 10 // bytes of an answer that are passed on
	maxRedirects        = 10
)

// prober asks the application in the kubelet's place.
type prober struct {
	probes Probes
	// app is where the application listens: the pod's address, as for the kubelet.
	app netip.Addr
	// source is the address that the connection comes from, which the interception lets through: with another one, the rules
	// would take it for a call of the proxy to its own pod, and Envoy would ask for a client certificate.
	source netip.Addr
}

func newProber(probes Probes, app netip.Addr) *prober {
	p := &prober{probes: probes, app: app, source: netip.MustParseAddr("127.0.0.6")}
	if app.Is6() {
		p.source = netip.MustParseAddr("::6")
	}
	return p
}

func (p *prober) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.source, 0))}
	c, err := d.DialContext(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRNOTAVAIL) { // no ::6 here: the pod's rules are not ours, or there are none
		c, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	return c, err
}

// ServeHTTP answers 200 when the application is well, its own status for HTTP, and 500 with the reason otherwise.
func (p *prober) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	probe, ok := p.probes[r.URL.Path]
	if !ok {
		http.Error(w, fmt.Sprintf("no probe %s: the pod's injection knows none of this path", r.URL.Path), http.StatusNotFound)
		return
	}
	ctx, timeout := r.Context(), probe.timeout(r.URL.Path)
	if timeout > 0 {
		bounded, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		ctx = bounded
	}
	var err error
	switch {
	case probe.HTTPGet != nil:
		err = p.http(ctx, w, r, probe)
	case probe.TCPSocket != nil:
		err = p.tcp(ctx, probe)
	default:
		err = p.grpc(ctx, probe)
	}
	if err != nil {
		if timeout > 0 && ctx.Err() != nil {
			err = fmt.Errorf("no answer within %s", timeout)
		}
		http.Error(w, "probe of the application: "+err.Error(), http.StatusInternalServerError)
	}
}

// timeout is how long the application may take to answer; 0 is as long as whoever asks waits. A hook has the pod's grace period,
// which the kubelet keeps.
func (p *probe) timeout(path string) time.Duration {
	switch {
	case p.TimeoutSeconds > 0:
		return time.Duration(p.TimeoutSeconds) * time.Second
	case strings.HasPrefix(path, appLifecycle):
		return 0
	}
	return defaultProbeTimeout
}

func (p *prober) address(port portNumber) string {
	return net.JoinHostPort(p.app.String(), strconv.Itoa(int(port)))
}

// http passes the application's status and the beginning of its body on.
func (p *prober) http(ctx context.Context, w http.ResponseWriter, from *http.Request, probe *probe) error {
	get := probe.HTTPGet
	target, err := url.Parse("/" + strings.TrimPrefix(get.Path, "/"))
	if err != nil {
		target = &url.URL{Path: get.Path}
	}
	target.Scheme, target.Host = strings.ToLower(cmp.Or(get.Scheme, "http")), p.address(get.Port)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	for _, name := range []string{"User-Agent", "Accept"} { // the kubelet's
		if value, has := from.Header[name]; has {
			request.Header[name] = value
		}
	}
	for _, h := range get.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			request.Host = h.Value
		} else {
			request.Header.Set(h.Name, h.Value)
		}
	}
	if request.Host == target.Host && get.Host != "" {
		request.Host = net.JoinHostPort(get.Host, strconv.Itoa(int(get.Port)))
	}
	client := &http.Client{
		Transport: &http.Transport{
			DialContext: p.dial, DisableKeepAlives: true, DisableCompression: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as the kubelet: probes check life, not identity
		},
		CheckRedirect: sameHost,
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxProbeBody))
	if err != nil && ctx.Err() != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(answer.StatusCode)
	_, _ = w.Write(bytes.ToValidUTF8(body, nil)) // the kubelet may have gone
	return nil
}

// sameHost follows redirects inside the pod only; another one is an answer by itself, and a good one, as for the kubelet.
func sameHost(next *http.Request, via []*http.Request) error {
	if next.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	return nil
}

func (p *prober) tcp(ctx context.Context, probe *probe) error {
	c, err := p.dial(ctx, "tcp", p.address(probe.TCPSocket.Port))
	if err != nil {
		return err
	}
	return c.Close()
}

// grpc asks by grpc.health.v1, without TLS, as the kubelet does.
func (p *prober) grpc(ctx context.Context, probe *probe) error {
	conn, err := grpc.NewClient("passthrough:///"+p.address(probe.GRPC.Port),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/selvage-agent"),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.dial(ctx, "tcp", addr) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: probe.GRPC.Service})
	if err != nil {
		return err
	}
	if got := answer.GetStatus(); got != healthv1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service %q is %s", probe.GRPC.Service, got)
	}
	return nil
}
