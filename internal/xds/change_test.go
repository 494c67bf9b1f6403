package xds_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

func (w *town) testDraining(t *testing.T) {
	at := func(address string, health mesh.Health) mesh.Endpoint {
		return mesh.Endpoint{Address: netip.MustParseAddr(address), Port: 8080, MTLS: true, Health: health}
	}
	show := func(endpoints ...mesh.Endpoint) {
		w.change = func(m *mesh.Model) { endpointsOf(m, "web", 80).Endpoints = endpoints }
		w.publish()
	}
	t.Cleanup(func() { w.change = nil; w.publish() })
	answeredBy := func() map[string]int {
		seen := map[string]int{}
		for range 20 {
			r := w.get("http://10.96.0.10/", "web")
			if err := r.err(); err != nil {
				t.Fatal(err)
			}
			seen[r.Local]++
		}
		return seen
	}
	only := func(address string) func() error {
		return func() error {
			if seen := answeredBy(); seen[address] != 20 {
				return fmt.Errorf("requests went to %v", seen)
			}
			return nil
		}
	}
	show(at("10.77.0.3", mesh.Draining), at("10.77.0.4", mesh.Healthy))
	eventually(t, "one of two drains", only("10.77.0.4:8080"))
	show(at("10.77.0.3", mesh.Draining))
	eventually(t, "the only one drains", only("10.77.0.3:8080"))
}

// testChangesUnderLoad changes everything that changes in a mesh's day while requests go on that nobody repeats.
func (w *town) testChangesUnderLoad(t *testing.T) {
	stop, failed, done := make(chan struct{}), make(chan error, 100), atomic.Int64{}
	var users sync.WaitGroup
	for i := range 6 {
		c, url := w.httpClient(w.clientNet, i%2 == 1), "http://10.96.0.10/"
		if i%3 == 0 {
			url = "http://10.96.0.10:9090/"
		}
		users.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := get(c, url, nil, "web").err(); err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	more := func(n int64) { // waits until n more requests are done
		until := done.Load() + n
		eventually(t, "requests go on", func() error {
			if len(failed) == 0 && done.Load() < until {
				return errors.New("not yet")
			}
			return nil
		})
	}
	for i := range 8 {
		w.mode = []mesh.Mode{mesh.Strict, mesh.Permissive}[i%2]
		w.change = func(m *mesh.Model) {
			m.Settings.ConnectTimeoutMillis += int64(i)                                                                                          // changes every cluster
			m.Outbound.Services = append(m.Outbound.Services, service("extra", "shop", "10.96.0.99", port(80, mesh.HTTP), port(3306, mesh.TCP))) // a listener and a route
			if i%2 == 0 {
				m.Settings.AccessLogFile = "" // changes every listener
			}
			set := endpointsOf(m, "web", 80)
			other := set.Endpoints[0]
			other.Address = netip.MustParseAddr("10.77.0.4")
			switch i % 4 {
			case 0:
				set.Endpoints = append(set.Endpoints, other)
			case 1:
				set.Endpoints[0].Health = mesh.Draining
				set.Endpoints = append(set.Endpoints, other)
			case 2:
				set.Endpoints[0] = other
			}
		}
		w.publish()
		more(60)
	}
	close(stop)
	users.Wait()
	w.mode, w.change = mesh.Permissive, nil
	w.publish()
	close(failed)
	for err := range failed {
		t.Errorf("a request failed: %v", err)
	}
	t.Logf("%d requests", done.Load())
}

func (w *town) testControlPlaneAway(t *testing.T) {
	w.client.stopXDS()
	for range 20 {
		if err := w.get("http://10.96.0.10/", "web").err(); err != nil {
			t.Fatal(err)
		}
	}
	w.change = func(m *mesh.Model) {
		m.Outbound.Services = append(m.Outbound.Services, externalName("zalias", "shop", "web.shop.svc.cluster.local"))
	}
	t.Cleanup(func() { w.change = nil; w.publish() })
	w.publish()
	w.client.serveXDS()
	eventually(t, "the new name is known", func() error {
		r := w.get("http://10.96.0.10/", "zalias")
		if err := r.err(); err != nil {
			return err
		}
		if r.Header.Get("X-Forwarded-Client-Cert") == "" {
			return errors.New("not over mutual TLS yet")
		}
		return nil
	})
}
