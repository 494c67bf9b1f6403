package ads_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/selvage-mesh/selvage/internal/ads"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

// pipe is the server's end of a stream without a network: what is measured is ours and not gRPC's.
type pipe struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	ctx      context.Context
	requests chan *discoveryv3.DeltaDiscoveryRequest
	// got is told the type and nonce of each response.
	got func(response)
}

type response struct {
	url, nonce string
	size       int // bytes
}

func (p *pipe) Context() context.Context { return p.ctx }

// SetHeader is where the server says what it wants to be told besides.
func (p *pipe) SetHeader(metadata.MD) error { return nil }

func (p *pipe) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	select {
	case r := <-p.requests:
		return r, nil
	case <-p.ctx.Done():
		return nil, io.EOF
	}
}

func (p *pipe) SendMsg(m any) error {
	url, nonce, size := ads.Sent(m)
	p.got(response{url, nonce, size})
	p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: nonce}
	return nil
}

// fleet connects n proxies of one view, of the minor release of Envoy, which acknowledge everything at once.
func fleet(b *testing.B, w *world, n int, minor uint32) (c *ads.Server, done func(), pushed func(int) (size int)) {
	b.Helper()
	server, err := ads.New(ads.Config{Authenticate: byMetadata, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		Debounce: time.Nanosecond, EndpointDebounce: time.Nanosecond, DrainSpread: time.Nanosecond, ConnectRate: 1e9, ConnectBurst: 1e9})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(metadata.NewIncomingContext(context.Background(), metadata.Pairs("identity", "shop/web")))
	var work sync.WaitGroup
	work.Go(func() { _ = server.Run(ctx) })
	server.Publish(w.model())
	arrived := make(chan response, n)
	var names []string
	for _, s := range w.Outbound.Services {
		names = append(names, clusterOf(s.Name))
	}
	serve := ads.Service(server)
	for i := range n {
		p := &pipe{ctx: ctx, requests: make(chan *discoveryv3.DeltaDiscoveryRequest, 16), got: func(r response) { arrived <- r }}
		node := nodeOf(fmt.Sprintf("web-%d", i), "shop")
		node.GetUserAgentBuildVersion().GetVersion().MinorNumber = minor
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: types["CDS"]}
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: types["EDS"], ResourceNamesSubscribe: names}
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: types["LDS"]}
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: types["RDS"], ResourceNamesSubscribe: []string{"80"}}
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: types["VHDS"]}
		work.Go(func() {
			if err := serve.DeltaAggregatedResources(p); status.Code(err) != codes.Canceled && err != nil {
				b.Errorf("a stream ended: %v", err)
				cancel()
			}
		})
	}
	pushed = func(n int) (size int) {
		for range n {
			select {
			case r := <-arrived:
				size += r.size
			case <-ctx.Done():
				b.Fatal("a stream ended")
			}
		}
		return size
	}
	return server, func() { cancel(); work.Wait() }, pushed
}

// BenchmarkPush is one change of endpoints to 1,000 proxies, from Publish until the last has its response.
func BenchmarkPush(b *testing.B) {
	const proxies = 1000
	for _, services := range []int{10, 1000} {
		b.Run(fmt.Sprintf("proxies=%d,services=%d", proxies, services), func(b *testing.B) {
			w := large(services, proxies)
			server, done, pushed := fleet(b, w, proxies, 40)
			defer done()
			pushed(5 * proxies)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				w.endpoints("s0001", fmt.Sprintf("10.2.%d.%d", i/250%250, i%250))
				server.Publish(w.model())
				pushed(proxies)
			}
		})
	}
}

// BenchmarkChangeRoute is one virtual host that changes, of a proxy's own service among others: 100 proxies, with the bytes that
// each is sent when virtual hosts are resources of their own, and when they stand in their route configuration.
func BenchmarkChangeRoute(b *testing.B) {
	const proxies, services = 100, 1000
	for _, c := range []struct {
		name  string
		minor uint32
	}{{"apart", 40}, {"inline", 36}} {
		b.Run(c.name, func(b *testing.B) {
			w := large(services, proxies)
			server, done, pushed := fleet(b, w, proxies, c.minor)
			defer done()
			pushed(5 * proxies) // a type that is not served is answered with nothing
			sent, i := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				w.service("s0500", fmt.Sprintf("10.98.%d.%d", i/250%250, i%250), mesh.HTTP)
				server.Publish(w.model())
				sent = pushed(proxies)
			}
			b.ReportMetric(float64(sent)/proxies, "B/proxy")
		})
	}
}

// BenchmarkConnect is 1,000 proxies of one view that connect at once and are sent everything.
func BenchmarkConnect(b *testing.B) {
	const proxies = 1000
	for _, services := range []int{10, 1000} {
		b.Run(fmt.Sprintf("proxies=%d,services=%d", proxies, services), func(b *testing.B) {
			w := large(services, proxies)
			b.ReportAllocs()
			before := heap()
			for b.Loop() {
				_, done, pushed := fleet(b, w, proxies, 40)
				pushed(5 * proxies)
				b.StopTimer()
				b.ReportMetric(float64(heap()-before)/proxies, "retained-B/proxy")
				done()
				b.StartTimer()
			}
		})
	}
}

// heap is what is in use after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
