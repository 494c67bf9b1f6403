package ads_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/ads"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

func TestConnect(t *testing.T) {
	c, w := start(t, nil), newWorld(1)
	c.Publish(w.model())
	p := c.connect("web-0", "shop/web")
	p.sync(w)
	c.await("everything acknowledged", synced(1))
	recorder := httptest.NewRecorder()
	c.SyncHandler("istiod-1", "dev").ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/debug/syncz", nil))
	var got struct {
		Replica, Version string
		Proxies          []ads.ProxyStatus
	}
	if err := json.Unmarshal(recorder.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Replica != "istiod-1" || got.Version != "dev" || len(got.Proxies) != 1 {
		t.Fatalf("syncz: %s", recorder.Body)
	}
	s := got.Proxies[0]
	if s.ID != "sidecar~10.1.0.1~web-0.shop~shop.svc.cluster.local" || s.Namespace != "shop" || s.Pod != "web-0" || s.ServiceAccount != "web" ||
		s.EnvoyVersion != "1.40.2" || s.ConnectedAt.IsZero() || len(s.Types) != 5 {
		t.Errorf("syncz: %s", recorder.Body)
	}
	if eds := s.Types["EDS"]; eds.State != "SYNCED" || eds.SentVersion == "" || eds.SentVersion != eds.AckedVersion {
		t.Errorf("EDS: %+v", eds)
	}
	c.awaitMetric(1, "pilot_xds", "version=1.2.3")
	p.cancel()
	c.await("the proxy is gone", func(ps []ads.ProxyStatus) bool { return len(ps) == 0 })
}

func TestPushes(t *testing.T) {
	t.Run("an endpoint that changes is all that is sent", func(t *testing.T) {
		c, w := start(t, nil), newWorld(1)
		c.Publish(w.model())
		p := c.connect("web-0", "shop/web")
		p.sync(w)
		c.await("everything acknowledged", synced(1))
		w.endpoints("db", "10.1.0.2", "10.1.0.3")
		c.Publish(w.model())
		r := p.next("EDS")
		if contents(r) != clusterOf("db") {
			t.Errorf("sent: %s", contents(r))
		}
		p.ack(r)
		c.await("everything acknowledged", synced(1))
		for kind, want := range map[string]float64{"cds": 1, "eds": 2, "lds": 1, "rds": 1} {
			c.awaitMetric(want, "pilot_xds_pushes", "type="+kind)
		}
		c.awaitMetric(1, "pilot_proxy_convergence_time")
	})
	t.Run("a new service comes with its endpoints before what routes to it", func(t *testing.T) {
		c, w := start(t, nil), newWorld(1)
		c.Publish(w.model())
		p := c.connect("web-0", "shop/web")
		p.sync(w)
		w.service("api", "10.96.0.3", mesh.HTTP)
		w.endpoints("api", "10.1.0.9")
		c.Publish(w.model())
		cds := p.next("CDS")
		if contents(cds) != clusterOf("api") {
			t.Errorf("clusters: %s", contents(cds))
		}
		p.ack(cds)
		p.subscribe("EDS", clusterOf("api"))
		eds := p.next("EDS")
		if contents(eds) != clusterOf("api") {
			t.Errorf("endpoints: %s", contents(eds))
		}
		p.ack(eds)
		if r := p.next("VHDS"); contents(r) != "80/api.shop.svc.cluster.local:80" {
			t.Errorf("virtual hosts: %s", contents(r))
		}
	})
	t.Run("a proxy that does not take virtual hosts apart is sent whole routes", func(t *testing.T) {
		c, w := start(t, nil), newWorld(1)
		c.Publish(w.model())
		p := c.connect("web-0", "shop/web")
		p.node.GetUserAgentBuildVersion().GetVersion().MinorNumber = 36
		p.subscribe("RDS", "80")
		p.ack(p.next("RDS"))
		w.service("api", "10.96.0.3", mesh.HTTP)
		c.Publish(w.model())
		r := p.next("RDS")
		if contents(r) != "80" || !strings.Contains(r.String(), "api.shop.svc.cluster.local:80") {
			t.Errorf("routes: %s", r)
		}
		p.ack(r)
		c.await("the proxy has acknowledged", func(ps []ads.ProxyStatus) bool {
			_, apart := ps[0].Types["VHDS"]
			return ps[0].Types["RDS"].State == "SYNCED" && !apart
		})
	})
	t.Run("replicas with one view cost one generation, however many connect at once", func(t *testing.T) {
		c, w := start(t, nil), newWorld(20)
		c.Publish(w.model())
		var ps []*proxy
		for i := range 20 {
			p := c.connect(fmt.Sprintf("web-%d", i), "shop/web")
			p.subscribe("CDS")
			ps = append(ps, p)
		}
		for _, p := range ps {
			p.ack(p.next("CDS"))
		}
		if misses, hits := c.metric("selvage_view_cache_misses_total"), c.metric("selvage_view_cache_hits_total"); misses != 1 || hits != 19 {
			t.Errorf("%v generations and %v hits, want 1 and 19", misses, hits)
		}
	})
	t.Run("a view that nobody has is dropped", func(t *testing.T) {
		c, w := start(t, nil), newWorld(2)
		c.Publish(w.model())
		a := c.connect("web-0", "shop/web")
		a.sync(w)
		c.await("everything acknowledged", synced(1))
		if n := c.metric("selvage_views"); n != 1 {
			t.Fatalf("%v views", n)
		}
		a.cancel()
		c.await("the proxy is gone", func(ps []ads.ProxyStatus) bool { return len(ps) == 0 })
		b := c.connect("web-1", "shop/web")
		b.sync(w)
		c.awaitMetric(1, "selvage_view_cache_misses_total")
		for i := range 5 {
			w.service("api", fmt.Sprintf("10.96.0.%d", 3+i), mesh.TCP)
			c.Publish(w.model())
			if i == 0 {
				b.ack(b.next("CDS"))
				b.subscribe("EDS", clusterOf("api"))
				b.ack(b.next("EDS"))
			}
			b.ack(b.next("LDS")) // the service has another address
		}
		c.await("everything acknowledged", synced(1))
		c.awaitMetric(1, "selvage_views")
	})
}

func TestRejection(t *testing.T) {
	c, w := start(t, nil), newWorld(1)
	c.Publish(w.model())
	p := c.connect("web-0", "shop/web")
	p.sync(w)
	w.endpoints("db", "10.1.0.9")
	c.Publish(w.model())
	p.nack(p.next("EDS"), "malformed address in "+clusterOf("db"))
	c.await("the rejection is known", func(ps []ads.ProxyStatus) bool { return len(ps) == 1 && ps[0].Types["EDS"].State == "REJECTED" })
	c.awaitMetric(1, "pilot_xds_eds_reject") // the last thing that the server does about it
	eds := c.Proxies()[0].Types["EDS"]
	if eds.LastError != "malformed address in "+clusterOf("db") || len(eds.RejectedRefs) != 1 || eds.RejectedRefs[0] != "Service/shop/db" || eds.SentVersion == eds.AckedVersion {
		t.Errorf("status: %+v", eds)
	}
	if log := c.log.String(); strings.Count(log, "proxy rejects configuration") != 1 || !strings.Contains(log, "Service/shop/db") || !strings.Contains(log, "malformed address") {
		t.Errorf("log:\n%s", log)
	}
	c.awaitMetric(1, "pilot_total_xds_rejects", "type=eds")

	t.Run("of a virtual host it is one of its routes", func(t *testing.T) {
		w.service("api", "10.96.0.3", mesh.HTTP)
		c.Publish(w.model())
		p.ack(p.next("CDS"))
		p.nack(p.next("VHDS"), "Only unique values for domains are permitted. Duplicate entry of domain api.shop in route 80")
		c.await("the rejection is known", func(ps []ads.ProxyStatus) bool { return ps[0].Types["RDS"].State == "REJECTED" })
		rds := c.Proxies()[0].Types["RDS"]
		if !strings.HasPrefix(rds.LastError, "Only unique values for domains") || !slices.Contains(rds.RejectedRefs, "Service/shop/api") {
			t.Errorf("status: %+v", rds)
		}
		w.service("api", "10.96.0.3", mesh.TCP)
		c.Publish(w.model())
		p.ack(p.next("CDS"))
		p.ack(p.next("LDS"))
		c.await("the rejection is over", func(ps []ads.ProxyStatus) bool { return ps[0].Types["RDS"].State == "SYNCED" })
	})
	t.Run("the proxy goes on with the rest", func(t *testing.T) {
		w.endpoints("web", "10.1.0.8")
		c.Publish(w.model())
		r := p.next("EDS")
		if contents(r) != clusterOf("web") {
			t.Fatalf("sent: %s", contents(r))
		}
		p.ack(r)
	})
	t.Run("a repaired object ends it", func(t *testing.T) {
		w.endpoints("db", "10.1.0.7")
		c.Publish(w.model())
		p.ack(p.next("EDS"))
		c.await("everything acknowledged", synced(1))
		c.awaitMetric(0, "pilot_xds_eds_reject")
	})
	t.Run("the same rejection after a reconnect is not logged again", func(t *testing.T) {
		before := strings.Count(c.log.String(), "proxy rejects configuration")
		for range 3 {
			q := c.connect("web-0", "shop/web")
			q.subscribe("CDS")
			q.nack(q.next("CDS"), "no")
			q.next("CDS") // half of it, to find the guilty
			q.cancel()
		}
		if n := strings.Count(c.log.String(), "proxy rejects configuration") - before; n != 1 {
			t.Errorf("logged %d times", n)
		}
	})
}
