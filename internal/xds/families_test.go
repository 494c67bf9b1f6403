package xds_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/testneed"
)

// plan is where things are in a town, in one family. What is to be in a URL or a dialled address has brackets.
type plan struct {
	client, server, second, stranger string // pods; second is another address of the server
	toStranger                       string // the server, as the stranger sees it
	bits                             int    // of a cable's network
	web, tcp                         string // services
	nobody                           string // no address of anyone
	source                           string // from which a sidecar calls its own workload
}

var plan4 = plan{
	client: "10.77.0.2", server: "10.77.0.3", second: "10.77.0.4", stranger: "10.78.0.2", toStranger: "10.78.0.3", bits: 24,
	web: "10.96.0.10", tcp: "10.96.0.11", nobody: "10.77.0.9", source: "127.0.0.6",
}

var plan6 = plan{
	client: "fd00:77::2", server: "fd00:77::3", second: "fd00:77::4", stranger: "fd00:78::2", toStranger: "fd00:78::3", bits: 64,
	web: "fd00:96::10", tcp: "fd00:96::11", nobody: "fd00:77::9", source: "::6",
}

// TestFamilies has the traffic of pods that have no IPv4 address, and of those that have one of each family.
func TestFamilies(t *testing.T) {
	for _, c := range []struct {
		name  string
		plans []plan
	}{{"IPv6 only", []plan{plan6}}, {"dual stack", []plan{plan4, plan6}}} {
		t.Run(c.name, func(t *testing.T) {
			w := newTownOf(t, c.plans)
			for _, p := range c.plans {
				t.Run("to "+p.server, func(t *testing.T) { w.testFamily(t, p) })
			}
			if len(c.plans) == 2 {
				t.Run("an address of the other family behind a service", func(t *testing.T) { w.testAcross(t, c.plans) })
			}
			for _, p := range c.plans {
				t.Run("STRICT on "+p.server, func(t *testing.T) { w.testStrictFamily(t, c.plans, p) })
			}
			w.client.refused()
			w.server.refused()
		})
	}
}

// newTownOf is newTown with other addresses.
func newTownOf(t *testing.T, plans []plan) *town {
	t.Helper()
	testneed.Root(t)
	w := &town{t: t, clientNet: newNetns(t), serverNet: newNetns(t), strangerNet: newNetns(t)}
	at := func(of func(plan) []string) string {
		var all []string
		for _, p := range plans {
			for _, address := range of(p) {
				all = append(all, fmt.Sprintf("%s/%d", address, p.bits))
			}
		}
		return strings.Join(all, " ")
	}
	connect(w.clientNet, at(func(p plan) []string { return []string{p.client} }),
		w.serverNet, at(func(p plan) []string { return []string{p.server, p.second} }))
	connect(w.strangerNet, at(func(p plan) []string { return []string{p.stranger} }),
		w.serverNet, at(func(p plan) []string { return []string{p.toStranger} }))
	for _, p := range plans {
		intercept, ip := (*netns).intercept, ""
		if p.server == plan6.server {
			intercept, ip = (*netns).intercept6, "-6 "
		}
		w.clientNet.ip(ip + "route add default via " + p.server)
		w.strangerNet.ip(ip + "route add default via " + p.toStranger)
		w.serverNet.ip(ip + "route add default via " + p.client)
		intercept(w.clientNet)
		intercept(w.serverNet)
	}
	w.serveApps("[::]")
	w.identity, w.serverIdentity = identity("shop", "client"), identity("shop", "server")
	ca := newAuthority(t)
	w.client, w.server = startSidecar(t, w.clientNet, ca, w.identity), startSidecar(t, w.serverNet, ca, w.serverIdentity)
	w.http = w.httpClient(w.clientNet, false)
	w.show(w.modelOf(plans))
	for _, p := range plans {
		eventually(t, "first request", func() error { return w.get("http://" + on(p.web, 80) + "/").err() })
	}
	return w
}

func (w *town) show(m *mesh.Model) {
	w.t.Helper()
	w.client.set(m, "client")
	w.server.set(m, "server")
}

// on is an address and port as it is written in a URL and by those who log.
func on(address string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(address), port).String()
}

// modelOf is the model of newTown with those addresses.
func (w *town) modelOf(plans []plan) *mesh.Model {
	m := w.model()
	addressed := func(of func(plan) string) (all []netip.Addr) {
		for _, p := range plans {
			all = append(all, netip.MustParseAddr(of(p)))
		}
		return all
	}
	for _, s := range m.Outbound.Services {
		switch s.Name {
		case "web":
			s.Addresses = addressed(func(p plan) string { return p.web })
		case "tcp":
			s.Addresses = addressed(func(p plan) string { return p.tcp })
		case "bank":
			s.Addresses = nil
		case "db":
			s.Ports[0].Instances = nil
			for _, p := range plans {
				s.Ports[0].Instances = append(s.Ports[0].Instances, netip.MustParseAddrPort(on(p.server, 5432)), netip.MustParseAddrPort(on(p.second, 5432)))
			}
		}
	}
	m.Workloads[mesh.WorkloadKey{Namespace: "shop", Name: "client"}].Addresses = addressed(func(p plan) string { return p.client })
	m.Workloads[mesh.WorkloadKey{Namespace: "shop", Name: "server"}].Addresses = addressed(func(p plan) string { return p.server })
	for key, set := range m.Endpoints {
		like := set.Endpoints[0]
		set.Endpoints = nil
		for _, p := range plans {
			like.Address = netip.MustParseAddr(p.server)
			set.Endpoints = append(set.Endpoints, like)
			if key.Host == "pods.shop.svc.cluster.local" {
				like.Address = netip.MustParseAddr(p.second)
				set.Endpoints = append(set.Endpoints, like)
			}
		}
	}
	return m
}

func (w *town) testFamily(t *testing.T, p plan) {
	for _, host := range []string{"web", on(p.web, 80)} {
		r := w.get("http://"+on(p.web, 80)+"/", host)
		if err := r.err(); err != nil {
			t.Fatalf("a service, host %s: %v", host, err)
		}
		if peer := r.Header.Get("X-Forwarded-Client-Cert"); !strings.Contains(peer, "By="+w.serverIdentity) || !strings.Contains(peer, "URI="+w.identity) {
			t.Errorf("a service, host %s: the application is told %q of its peer", host, peer)
		}
	}
	for _, pod := range []string{p.server, p.second} {
		r := w.get("http://"+on(pod, 8080)+"/", "pods-0.pods:8080")
		if err := r.err(); err != nil || r.Local != on(pod, 8080) {
			t.Errorf("the name of the pod at %s is answered by %s, %v", pod, r.Local, err)
		}
		if r.Header.Get("X-Forwarded-Client-Cert") == "" || netip.MustParseAddrPort(r.Remote).Addr() != netip.MustParseAddr(p.source) {
			t.Errorf("the pod at %s is called from %s, with headers %v; want mutual TLS and the sidecar's address %s", pod, r.Remote, r.Header, p.source)
		}
	}
	if r := w.get("http://"+on(p.nobody, 8080)+"/", "pods-9.pods:8080"); r.status != http.StatusServiceUnavailable {
		t.Errorf("the name of a pod that is no endpoint: status %d, %v; want 503", r.status, r.error)
	}
	for _, address := range []string{on(p.tcp, 3306), on(p.server, 5432), on(p.second, 5432)} {
		if got, err := hear(w.clientNet, address); err != nil || got != greeting+"ping" {
			t.Errorf("TCP: %s says %q, %v", address, got, err)
		}
	}
	eventually(t, "mutual TLS of TCP in the server's log", func() error {
		for _, local := range []string{on(p.server, 5432), on(p.second, 5432)} {
			if !hasLine(w.server.log(), "client_id="+w.identity, "local="+local, "cluster=inbound|5432||") {
				return fmt.Errorf("no line about %s with the client's identity", local)
			}
		}
		return nil
	})
	if err := w.get("http://"+on(p.server, 7070)+"/", "unknown").err(); err != nil {
		t.Errorf("a port of no service: %v", err)
	}
	w.testOutsider(t, p)
}

// testOutsider calls without a sidecar.
func (w *town) testOutsider(t *testing.T, p plan) {
	stranger := w.httpClient(w.strangerNet, false)
	for _, port := range []uint16{8080, 7070} {
		if err := get(stranger, "http://"+on(p.server, port)+"/", nil, "web").err(); err != nil {
			t.Errorf("plain text to port %d: %v", port, err)
		}
	}
	for _, port := range []uint16{15001, 15006} {
		if r := get(stranger, "http://"+on(p.server, port)+"/", nil); r.error == nil {
			t.Errorf("the capture port %d answers with %d", port, r.status)
		}
	}
	if err := get(stranger, "http://"+on(p.server, 15090)+"/stats/prometheus", nil).err(); err != nil {
		t.Errorf("the sidecar's statistics: %v", err)
	}
}

// testAcross calls a service by its address of each family when its endpoint has one of the other.
func (w *town) testAcross(t *testing.T, plans []plan) {
	t.Cleanup(func() { w.show(w.modelOf(plans)) })
	for i, p := range plans {
		m, other := w.modelOf(plans), plans[1-i]
		set := endpointsOf(m, "web", 80)
		set.Endpoints = set.Endpoints[:1]
		set.Endpoints[0].Address = netip.MustParseAddr(other.server)
		w.show(m)
		eventually(t, p.web+" is served by "+other.server, func() error {
			r := w.get("http://"+on(p.web, 80)+"/", "web")
			if err := r.err(); err != nil {
				return err
			}
			if r.Local != on(other.server, 8080) {
				return errors.New("it is answered by " + r.Local)
			}
			return nil
		})
	}
}

func (w *town) testStrictFamily(t *testing.T, plans []plan, p plan) {
	w.mode = mesh.Strict
	w.show(w.modelOf(plans))
	t.Cleanup(func() {
		w.mode = mesh.Permissive
		w.show(w.modelOf(plans))
	})
	stranger := w.httpClient(w.strangerNet, false)
	stranger.Transport.(*http.Transport).DisableKeepAlives = true
	eventually(t, "plain text is refused", func() error {
		if r := get(stranger, "http://"+on(p.server, 8080)+"/", nil, "web"); r.error == nil {
			return fmt.Errorf("it is answered with %d", r.status)
		}
		return nil
	})
	if err := w.get("http://"+on(p.web, 80)+"/", "web").err(); err != nil {
		t.Errorf("HTTP between sidecars: %v", err)
	}
	if got, err := hear(w.clientNet, on(p.second, 5432)); err != nil || got != greeting+"ping" {
		t.Errorf("headless TCP between sidecars: %q, %v", got, err)
	}
}
