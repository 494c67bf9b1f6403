package ads_test

import (
	"context"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/selvage-mesh/selvage/internal/ads"
)

// refused wants an error with a code whose text has all the words.
func refused(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("got %v, want %s", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestWhoIsRefused(t *testing.T) {
	c := start(t, nil)
	c.Publish(newWorld(1).model())
	for _, x := range []struct {
		name, identity string
		node           *corev3.Node
		code           codes.Code
		words          []string
	}{
		{"without an identity", "", nodeOf("web-0", "shop"), codes.Unauthenticated, []string{"no certificate and no token"}},
		{"of another namespace", "prod/web", nodeOf("web-0", "shop"), codes.PermissionDenied, []string{"namespace shop", "namespace prod"}},
		{"of another service account", "shop/other", nodeOf("web-0", "shop"), codes.PermissionDenied, []string{"shop/other", "runs as web"}},
		{"without a node", "shop/web", nil, codes.InvalidArgument, []string{"must carry the node"}},
		{"with a short node id", "shop/web", &corev3.Node{Id: "web-0"}, codes.InvalidArgument, []string{`"web-0"`, "1 parts", "sidecar~IP~POD.NAMESPACE"}},
		{"of another type", "shop/web", &corev3.Node{Id: "router~10.1.0.1~a.b~b.svc"}, codes.InvalidArgument, []string{"router"}},
		{"without an address", "shop/web", &corev3.Node{Id: "sidecar~x~a.b~b.svc"}, codes.InvalidArgument, []string{`"x" is no IP address`}},
		{"without a pod", "shop/web", &corev3.Node{Id: "sidecar~10.1.0.1~shop~b.svc"}, codes.InvalidArgument, []string{"does not name a pod"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			p := c.connect("web-0", x.identity)
			p.node = x.node
			_ = p.rpc.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types["CDS"], Node: x.node}) // may be refused before
			refused(t, p.fails(), x.code, x.words...)
		})
	}
	c.awaitMetric(5, "selvage_xds_refused_streams_total", "code=InvalidArgument")
	t.Run("that subscribes without end", func(t *testing.T) {
		p := c.connect("web-0", "shop/web")
		p.subscribe("CDS")
		p.next("CDS")
		for i := range 40 {
			_ = p.rpc.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: strings.Repeat("x", i+1)})
		}
		refused(t, p.fails(), codes.InvalidArgument, "not served")
	})
	t.Run("when too many are there", func(t *testing.T) {
		c := start(t, func(c *ads.Config) { c.MaxStreams = 1 })
		c.Publish(newWorld(1).model())
		p := c.connect("web-0", "shop/web")
		p.subscribe("CDS")
		p.next("CDS")
		refused(t, c.connect("web-0", "shop/web").fails(), codes.ResourceExhausted, "1 streams")
		p.cancel()
		c.await("the place to be free", func(all []ads.ProxyStatus) bool { return len(all) == 0 })
		again := c.connect("web-0", "shop/web") // a refusal took no place for good
		again.subscribe("CDS")
		again.next("CDS")
	})
}

// bubble runs a test with a fake clock.
func bubble(t *testing.T, change func(*ads.Config), test func(t *testing.T, c *control)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := start(t, change)
		test(t, c)
		c.stop()
	})
}

func TestWaitingForAPod(t *testing.T) {
	t.Run("a proxy that is faster than its pod waits for it", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *control) {
			w := newWorld(0)
			p := c.connect("web-0", "shop/web")
			p.subscribe("CDS")
			time.Sleep(3 * time.Second)
			c.Publish(w.model())
			time.Sleep(3 * time.Second)
			full := newWorld(1)
			w.Workloads = full.Workloads
			c.Publish(w.model())
			p.next("CDS")
			p.cancel()
		})
	})
	t.Run("a pod that does not come is named", func(t *testing.T) {
		bubble(t, func(c *ads.Config) { c.PodWait = 7 * time.Second }, func(t *testing.T, c *control) {
			c.Publish(newWorld(1).model())
			began := time.Now()
			p := c.connect("web-7", "shop/web")
			p.subscribe("CDS")
			refused(t, p.fails(), codes.NotFound, "no pod shop/web-7", "7s")
			if took := time.Since(began); took != 7*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	})
	t.Run("a control plane without a cluster says so", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *control) {
			p := c.connect("web-0", "shop/web")
			p.subscribe("CDS")
			refused(t, p.fails(), codes.Unavailable, "has not read the cluster")
		})
	})
	t.Run("a client that says nothing is not waited for", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *control) {
			refused(t, c.connect("web-0", "shop/web").fails(), codes.DeadlineExceeded, "no request")
		})
	})
	t.Run("a proxy keeps what it has when its pod is gone, and is served again when it is back", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *control) {
			w := newWorld(1)
			c.Publish(w.model())
			p := c.connect("web-0", "shop/web")
			p.sync(w)
			pods := w.Workloads
			w.Workloads = nil
			w.endpoints("web", "10.1.0.7")
			c.Publish(w.model())
			time.Sleep(time.Second)
			w.Workloads = pods
			w.service("api", "10.96.0.3", 0)
			c.Publish(w.model())
			p.ack(p.next("CDS"))
			p.ack(p.next("EDS")) // changed meanwhile
			p.cancel()
		})
	})
	t.Run("a pod that comes back under another account ends the stream", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *control) {
			w := newWorld(1)
			c.Publish(w.model())
			p := c.connect("web-0", "shop/web")
			p.sync(w)
			w.pod("web-0", "admin", w.Workloads[workload("web-0")].Inbound)
			c.Publish(w.model())
			refused(t, p.fails(), codes.PermissionDenied, "runs as admin")
		})
	})
}

func TestDebounce(t *testing.T) {
	usual := func(c *ads.Config) { c.Debounce, c.EndpointDebounce = 0, 0 }
	// changes publishes a change every 30 ms until so many were, and gives the times from the first to each response.
	changes := func(t *testing.T, c *control, n int, kind string, change func(w *world, i int)) (after []time.Duration) {
		w := newWorld(1)
		c.Publish(w.model())
		p := c.connect("web-0", "shop/web")
		p.sync(w)
		time.Sleep(time.Minute)
		began := time.Now()
		got := make(chan time.Duration, 100)
		go func() {
			for {
				r, err := p.rpc.Recv()
				if err != nil {
					return
				}
				if r.GetTypeUrl() == types[kind] {
					got <- time.Since(began)
				}
				_ = p.rpc.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
			}
		}()
		for i := range n {
			if i > 0 {
				time.Sleep(30 * time.Millisecond)
			}
			change(w, i)
			c.Publish(w.model())
		}
		time.Sleep(10 * time.Second)
		p.cancel()
		synctest.Wait()
		for len(got) > 0 {
			after = append(after, <-got)
		}
		return after
	}
	address := func(i int) string { return "10.96.1." + string(rune('0'+i%10)) }
	for _, x := range []struct {
		name   string
		n      int
		kind   string
		change func(w *world, i int)
		want   func(after []time.Duration) bool
	}{
		{"a change after quiet is pushed at once", 1, "LDS", func(w *world, i int) { w.service("db", address(i+3), 0) },
			func(a []time.Duration) bool { return len(a) == 1 && a[0] == 0 }},
		{"those that follow closely are one push, when it was quiet for 100 ms", 5, "LDS", func(w *world, i int) { w.service("db", address(i+3), 0) },
			func(a []time.Duration) bool { return len(a) == 2 && a[1] == 220*time.Millisecond }},
		{"changes without end are pushed every second", 60, "LDS", func(w *world, i int) { w.service("db", address(i), 0) },
			func(a []time.Duration) bool { return len(a) == 3 && a[1] == 1030*time.Millisecond }},
		{"a change of endpoints is pushed at once", 1, "EDS", func(w *world, i int) { w.endpoints("db", address(i)) },
			func(a []time.Duration) bool { return len(a) == 1 && a[0] == 0 }},
		{"changes of endpoints do not wait for each other", 10, "EDS", func(w *world, i int) { w.endpoints("db", address(i)) },
			func(a []time.Duration) bool { return len(a) == 10 }},
		{"a new pod is not a reason to wait", 1, "EDS", func(w *world, i int) {
			w.pod("web-9", "web", w.Workloads[workload("web-0")].Inbound)
			w.endpoints("web", address(i))
		}, func(a []time.Duration) bool { return len(a) == 1 && a[0] == 0 }},
	} {
		t.Run(x.name, func(t *testing.T) {
			bubble(t, usual, func(t *testing.T, c *control) {
				if after := changes(t, c, x.n, x.kind, x.change); !x.want(after) {
					t.Errorf("responses came after %v", after)
				}
			})
		})
	}
}

func TestTimeouts(t *testing.T) {
	t.Run("a proxy that does not answer is reset", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *control) {
			c.Publish(newWorld(1).model())
			p := c.connect("web-0", "shop/web")
			p.subscribe("CDS")
			p.next("CDS")
			began := time.Now()
			refused(t, p.fails(), codes.DeadlineExceeded, "cds", "unanswered for 2m0s", "web-0.shop")
			if took := time.Since(began); took != 2*time.Minute {
				t.Errorf("it took %s", took)
			}
			c.awaitMetric(1, "selvage_xds_answer_timeouts_total")
		})
	})
	t.Run("a proxy that answers is not", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *control) {
			w := newWorld(1)
			c.Publish(w.model())
			p := c.connect("web-0", "shop/web")
			p.sync(w)
			time.Sleep(time.Hour)
			w.endpoints("db", "10.1.0.7")
			c.Publish(w.model())
			p.ack(p.next("EDS"))
			p.cancel()
		})
	})
	t.Run("listeners do not wait for ever for the endpoints of a new cluster", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *control) {
			w := newWorld(1)
			c.Publish(w.model())
			p := c.connect("web-0", "shop/web")
			p.sync(w)
			w.service("api", "10.96.0.3", 0)
			c.Publish(w.model())
			p.ack(p.next("CDS"))
			began := time.Now()
			p.ack(p.next("LDS"))
			if took := time.Since(began); took != 5*time.Second {
				t.Errorf("it took %s", took)
			}
			p.cancel()
		})
	})
}

func TestShutdown(t *testing.T) {
	bubble(t, func(c *ads.Config) { c.DrainSpread = 2 * time.Second }, func(t *testing.T, c *control) {
		w := newWorld(10)
		c.Publish(w.model())
		var ps []*proxy
		for i := range 10 {
			p := c.connect("web-"+string(rune('0'+i)), "shop/web")
			p.sync(w)
			ps = append(ps, p)
		}
		synctest.Wait()
		began := time.Now()
		ends := make(chan time.Duration, 10)
		for _, p := range ps {
			go func() {
				refused(t, p.fails(), codes.Unavailable, "shutting down")
				ends <- time.Since(began)
			}()
		}
		go c.stop()
		different := map[time.Duration]bool{}
		for range 10 {
			d := <-ends
			if different[d] = true; d > 2*time.Second {
				t.Errorf("a stream ended after %s", d)
			}
		}
		if len(different) < 5 {
			t.Errorf("the streams ended at %d different moments", len(different))
		}
		c.stop()
	})
}

func TestStuckProxy(t *testing.T) {
	c := start(t, func(c *ads.Config) { c.SendTimeout = 50 * time.Millisecond })
	w := large(1000, 1)
	c.Publish(w.model())
	p := c.connect("web-0", "shop/web")
	p.subscribe("CDS") // and never read: what is sent fills the windows of HTTP/2
	p.subscribe("LDS")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for c.metric("pilot_xds_write_timeout") == 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("the stream was not reset; proxies: %+v", c.Proxies())
		case <-time.After(10 * time.Millisecond):
		}
	}
	c.await("the proxy is gone", func(ps []ads.ProxyStatus) bool { return len(ps) == 0 })
	if log := c.log.String(); !strings.Contains(log, "proxy does not read") {
		t.Errorf("log:\n%s", log)
	}
}

// TestFamiliesBeforeThePodsStatus has a proxy connect whose pod's status has no address yet. It says itself which it has, so
// that its listeners need not change once the status says so too.
func TestFamiliesBeforeThePodsStatus(t *testing.T) {
	c, w := start(t, nil), newWorld(1)
	publish := func(addresses ...netip.Addr) {
		pod := *w.Workloads[workload("web-0")]
		pod.Addresses = addresses
		w.Workloads = maps.Clone(w.Workloads)
		w.Workloads[pod.Key] = &pod
		c.Publish(w.model())
	}
	publish()
	p := c.connect("web-0", "shop/web")
	p.node.Metadata.Fields["INSTANCE_IPS"] = structpb.NewStringValue("10.1.0.1,no address,fd00::1")
	p.subscribe("CDS")
	p.ack(p.next("CDS"))
	p.subscribe("EDS", clusterOf("db"))
	p.ack(p.next("EDS"))
	p.subscribe("LDS")
	r := p.next("LDS")
	p.ack(r)
	families := map[string]int{}
	for _, listener := range r.GetResources() {
		var l listenerv3.Listener
		if err := listener.GetResource().UnmarshalTo(&l); err != nil {
			t.Fatal(err)
		}
		families[l.GetName()] = 1 + len(l.GetAdditionalAddresses())
	}
	for _, name := range []string{"virtualOutbound", "virtualInbound", "0.0.0.0_80"} {
		if families[name] != 2 {
			t.Errorf("listener %s has addresses of %d families, want 2", name, families[name])
		}
	}
	w.endpoints("db", "10.1.0.2", "10.1.0.3")
	publish(netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1"))
	if got := contents(p.next("EDS")); got != clusterOf("db") {
		t.Errorf("once the pod's status has the addresses, the proxy is sent %s", got)
	}
}

// TestPlainListener: without TLS a proxy is who it says it is, but it must be somebody: the pod that it names decides about its
// service account.
func TestPlainListener(t *testing.T) {
	c := startAs(t, true, nil)
	c.Publish(newWorld(1).model())
	as := func(pod, account string) *proxy {
		p := c.connect(pod, "")
		if account != "" {
			p.node.Metadata.Fields["SERVICE_ACCOUNT"] = structpb.NewStringValue(account)
		}
		p.subscribe("CDS")
		return p
	}
	as("web-0", "web").next("CDS")
	refused(t, as("web-0", "other").fails(), codes.PermissionDenied, "shop/other", "runs as web")
	refused(t, as("web-0", "").fails(), codes.PermissionDenied, "shop/default", "runs as web")
}
