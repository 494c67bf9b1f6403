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
)

// pipe is the server's end of a stream without a network: what is measured is ours and not gRPC's.
type pipe struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	ctx      context.Context
	requests chan *discoveryv3.DeltaDiscoveryRequest
	// got is told the type and nonce of each response.
	got func(response)
}

type response struct{ url, nonce string }

func (p *pipe) Context() context.Context { return p.ctx }

func (p *pipe) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	select {
	case r := <-p.requests:
		return r, nil
	case <-p.ctx.Done():
		return nil, io.EOF
	}
}

func (p *pipe) SendMsg(m any) error {
	url, nonce := ads.Sent(m)
	p.got(response{url, nonce})
	p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: nonce}
	return nil
}

// fleet connects n proxies of one view, which acknowledge everything at once.
func fleet(b *testing.B, w *world, n int) (c *ads.Server, done func(), pushed func(int)) {
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
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{Node: nodeOf(fmt.Sprintf("web-%d", i), "shop"), TypeUrl: types["CDS"]}
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: types["EDS"], ResourceNamesSubscribe: names}
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: types["LDS"]}
		p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: types["RDS"], ResourceNamesSubscribe: []string{"80"}}
		work.Go(func() {
			if err := serve.DeltaAggregatedResources(p); status.Code(err) != codes.Canceled && err != nil {
				b.Errorf("a stream ended: %v", err)
				cancel()
			}
		})
	}
	pushed = func(n int) {
		for range n {
			select {
			case <-arrived:
			case <-ctx.Done():
				b.Fatal("a stream ended")
			}
		}
	}
	return server, func() { cancel(); work.Wait() }, pushed
}

// BenchmarkPush is one change of endpoints to 1,000 proxies, from Publish until the last has its response.
func BenchmarkPush(b *testing.B) {
	const proxies = 1000
	for _, services := range []int{10, 1000} {
		b.Run(fmt.Sprintf("proxies=%d,services=%d", proxies, services), func(b *testing.B) {
			w := large(services, proxies)
			server, done, pushed := fleet(b, w, proxies)
			defer done()
			pushed(4 * proxies)
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

// BenchmarkConnect is 1,000 proxies of one view that connect at once and are sent everything.
func BenchmarkConnect(b *testing.B) {
	const proxies = 1000
	for _, services := range []int{10, 1000} {
		b.Run(fmt.Sprintf("proxies=%d,services=%d", proxies, services), func(b *testing.B) {
			w := large(services, proxies)
			b.ReportAllocs()
			before := heap()
			for b.Loop() {
				_, done, pushed := fleet(b, w, proxies)
				pushed(4 * proxies)
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
