package ads_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/client_golang/prometheus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/selvage-mesh/selvage/internal/ads"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// control is a control plane with a real gRPC server.
type control struct {
	*ads.Server
	t       testing.TB
	plain   bool // it believes what proxies say
	dial    func(context.Context, string) (net.Conn, error)
	log     *buffer
	metrics *prometheus.Registry
	stop    func() // ends Run, and waits for it
}

// buffer is a log that several goroutines write to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// byMetadata takes the identity from the metadata "identity: NAMESPACE/ACCOUNT".
func byMetadata(ctx context.Context) (namespace, account string, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md["identity"]) == 0 {
		return "", "", errors.New("no certificate and no token were shown")
	}
	namespace, account, _ = strings.Cut(md["identity"][0], "/")
	return namespace, account, nil
}

// start runs a control plane until the test ends.
func start(t testing.TB, change func(*ads.Config)) *control {
	t.Helper()
	return startAs(t, false, change)
}

func startAs(t testing.TB, plain bool, change func(*ads.Config)) *control {
	t.Helper()
	c := &control{t: t, plain: plain, log: &buffer{}, metrics: prometheus.NewRegistry()}
	config := ads.Config{Authenticate: byMetadata, Registerer: c.metrics, Log: slog.New(slog.NewTextHandler(c.log, nil)),
		Debounce: time.Millisecond, EndpointDebounce: time.Microsecond, DrainSpread: time.Millisecond}
	if change != nil {
		change(&config)
	}
	c.Server = must[*ads.Server](t)(ads.New(config))
	l := bufconn.Listen(1 << 20)
	c.dial = func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }
	c.serve(l)
	return c
}

func (c *control) serve(l net.Listener) {
	server := grpc.NewServer(ads.Codec())
	if c.plain {
		c.RegisterPlain(server)
	} else {
		c.Register(server)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { _ = c.Run(ctx) })
	work.Go(func() { _ = server.Serve(l) })
	c.stop = sync.OnceFunc(func() {
		cancel()
		server.GracefulStop()
		work.Wait()
	})
	c.t.Cleanup(func() {
		cancel()
		server.Stop()
		work.Wait()
	})
}

// metric gives the value of a counter or gauge, or the count of a histogram, summed over what has the labels "name=value".
func (c *control) metric(name string, labels ...string) (sum float64) {
	c.t.Helper()
	families, err := c.metrics.Gather()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
			for _, l := range labels {
				if !strings.Contains(" "+strings.Join(have, " ")+" ", " "+l+" ") {
					continue next
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// proxy is a client of the delta variant that does as it is told.
type proxy struct {
	t      testing.TB
	rpc    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node   *corev3.Node
	cancel func()
}

func nodeOf(pod, namespace string) *corev3.Node {
	return &corev3.Node{
		Id: fmt.Sprintf("sidecar~10.1.0.1~%s.%s~%s.svc.cluster.local", pod, namespace, namespace),
		UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
			Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 40, Patch: 2}}},
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"ISTIO_VERSION": structpb.NewStringValue("1.2.3")}},
	}
}

// channel opens a connection that the test closes.
func (c *control) channel() *grpc.ClientConn {
	c.t.Helper()
	conn := must[*grpc.ClientConn](c.t)(grpc.NewClient("passthrough:///control", grpc.WithContextDialer(c.dial), grpc.WithTransportCredentials(insecure.NewCredentials())))
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// connect opens a stream for a pod of namespace shop with the identity NAMESPACE/ACCOUNT.
func (c *control) connect(pod, identity string) *proxy {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if identity != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "identity", identity)
	}
	conn := c.channel()
	rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	p := &proxy{t: c.t, rpc: rpc, node: nodeOf(pod, "shop"), cancel: func() { cancel(); conn.Close() }}
	c.t.Cleanup(p.cancel)
	return p
}

var types = map[string]string{"CDS": xds.ClusterType, "EDS": xds.EndpointType, "LDS": xds.ListenerType, "RDS": xds.RouteType,
	"VHDS": xds.VirtualHostType}

func (p *proxy) send(r *discoveryv3.DeltaDiscoveryRequest) {
	p.t.Helper()
	if p.node != nil {
		r.Node, p.node = p.node, nil
	}
	if err := p.rpc.Send(r); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proxy) subscribe(kind string, names ...string) {
	p.t.Helper()
	p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types[kind], ResourceNamesSubscribe: names})
}

// next wants the next response to be of that type.
func (p *proxy) next(kind string) *discoveryv3.DeltaDiscoveryResponse {
	p.t.Helper()
	r, err := p.rpc.Recv()
	if err != nil {
		p.t.Fatalf("waiting for %s: %v", kind, err)
	}
	if r.GetTypeUrl() != types[kind] {
		p.t.Fatalf("got a response of %s with %s, want %s", r.GetTypeUrl(), contents(r), kind)
	}
	return r
}

// fails gives the error that ends the stream.
func (p *proxy) fails() error {
	p.t.Helper()
	for {
		if _, err := p.rpc.Recv(); err != nil {
			return err
		}
	}
}

func (p *proxy) ack(r *discoveryv3.DeltaDiscoveryResponse) {
	p.t.Helper()
	p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

func (p *proxy) nack(r *discoveryv3.DeltaDiscoveryResponse, text string) {
	p.t.Helper()
	p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Code: 13, Message: text}})
}

func contents(r *discoveryv3.DeltaDiscoveryResponse) string {
	var words []string
	for _, a := range r.GetResources() {
		words = append(words, a.GetName())
	}
	for _, n := range r.GetRemovedResources() {
		words = append(words, "-"+n)
	}
	return strings.Join(words, " ")
}

// sync subscribes to everything and acknowledges it, as Envoy does when it starts.
func (p *proxy) sync(w *world) {
	p.t.Helper()
	p.subscribe("CDS")
	p.ack(p.next("CDS"))
	var names []string
	for _, s := range w.Outbound.Services {
		names = append(names, clusterOf(s.Name))
	}
	p.subscribe("EDS", names...)
	p.ack(p.next("EDS"))
	p.subscribe("LDS")
	p.ack(p.next("LDS"))
	p.subscribe("RDS", "80")
	p.ack(p.next("RDS"))
	p.subscribe("VHDS")
	p.ack(p.next("VHDS"))
}

// await waits until the status of all proxies is as wanted.
func (c *control) await(what string, ok func([]ads.ProxyStatus) bool) {
	c.t.Helper()
	for range 2000 {
		if ok(c.Proxies()) {
			return
		}
		time.Sleep(5 * time.Millisecond) // there is no event for "the server has read an acknowledgement"
	}
	c.t.Fatalf("%s did not come true; proxies: %+v\n%s", what, c.Proxies(), c.log)
}

// awaitMetric waits for a metric that the server writes after the status that await sees.
func (c *control) awaitMetric(want float64, name string, labels ...string) {
	c.t.Helper()
	for range 2000 {
		if c.metric(name, labels...) == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.t.Fatalf("%s = %v, want %v", name, c.metric(name, labels...), want)
}

func synced(n int) func([]ads.ProxyStatus) bool {
	return func(ps []ads.ProxyStatus) bool {
		for _, p := range ps {
			for _, t := range p.Types {
				if t.State != "SYNCED" {
					return false
				}
			}
		}
		return len(ps) == n
	}
}
