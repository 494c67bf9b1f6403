package xds_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/testneed"
)

// town is two pods with sidecars and one machine without, in network namespaces with the interception rules of a real pod.
//
//	client 10.77.0.2 ── 10.77.0.3, 10.77.0.4 server 10.78.0.3 ── 10.78.0.2 stranger
type town struct {
	t                        testing.TB
	clientNet, serverNet     *netns
	strangerNet              *netns
	client, server           *sidecar
	http                     *http.Client
	mode                     mesh.Mode
	change                   func(*mesh.Model)
	serverIdentity, identity string
	app                      application
	appCA                    *authority // of the server's own TLS
}

// application is what the server's pod runs, as the requests ask it to behave: X-Status says how to answer, X-Fail-At at which address to
// answer with 500, X-Block to wait until released.
type application struct {
	mu      sync.Mutex
	seen    []reply
	release chan struct{} // closed to let go what blocks
}

// handle reports whether it has answered.
func (a *application) handle(rw http.ResponseWriter, r *http.Request, local string) bool {
	a.mu.Lock()
	a.seen = append(a.seen, reply{Host: r.Host, Path: r.URL.Path, Local: local, Header: r.Header})
	release := a.release
	a.mu.Unlock()
	if r.Header.Get("X-Block") != "" && release != nil {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	status, _ := strconv.Atoi(r.Header.Get("X-Status"))
	if at := r.Header.Get("X-Fail-At"); at != "" && strings.HasPrefix(local, at+":") {
		status = http.StatusInternalServerError
	}
	if status != 0 {
		rw.WriteHeader(status)
	}
	return status != 0
}

// requests are those whose path is given, since the test began.
func (a *application) requests(path string) (found []reply) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.seen {
		if r.Path == path {
			found = append(found, r)
		}
	}
	return found
}

// block makes requests with X-Block wait until the function that it gives is called.
func (a *application) block() (release func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	gate := make(chan struct{})
	a.release = gate
	return sync.OnceFunc(func() { close(gate) })
}

const greeting = "220 server speaks first\n"

func newTown(t testing.TB) *town {
	t.Helper()
	testneed.Root(t)
	w := &town{t: t, clientNet: newNetns(t), serverNet: newNetns(t), strangerNet: newNetns(t)}
	connect(w.clientNet, "10.77.0.2/24", w.serverNet, "10.77.0.3/24")
	connect(w.strangerNet, "10.78.0.2/24", w.serverNet, "10.78.0.3/24")
	w.serverNet.ip("addr add 10.77.0.4/32 dev lo")
	w.clientNet.ip("route add default via 10.77.0.3")
	w.strangerNet.ip("route add default via 10.78.0.3")
	w.serverNet.ip("route add default via 10.77.0.2")
	w.clientNet.intercept()
	w.serverNet.intercept()
	w.serveApps("0.0.0.0")

	w.identity, w.serverIdentity = identity("shop", "client"), identity("shop", "server")
	ca := newAuthority(t)
	w.client, w.server = startSidecar(t, w.clientNet, ca, w.identity), startSidecar(t, w.serverNet, ca, w.serverIdentity)
	w.http = w.httpClient(w.clientNet, false)
	w.publish()
	eventually(t, "first request", func() error { return w.get("http://10.96.0.10/").err() })
	return w
}

// serveApps starts what runs in the server's pod, on an address that is all of one family ("[::]": of both): HTTP on 8080 and on 7070, which no service names, HTTPS on 8443, and TCP on
// 3306, 3307 and 5432 where the server speaks first.
func (w *town) serveApps(host string) {
	w.t.Helper()
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	echo := &http.Server{Protocols: &both, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			upgrade(rw, r)
			return
		}
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if w.app.handle(rw, r, local.String()) {
			return
		}
		seen := reply{Proto: r.Proto, Host: r.Host, Path: r.URL.Path, Local: local.String(), Remote: r.RemoteAddr, Header: r.Header}
		if r.TLS != nil {
			seen.TLS = r.TLS.ServerName
			for _, c := range r.TLS.PeerCertificates {
				seen.ClientName = c.URIs[0].String()
			}
		}
		_ = json.NewEncoder(rw).Encode(seen)
	})}
	for _, address := range []string{":8080", ":7070"} {
		l := w.serverNet.listen(host + address)
		go func() { _ = echo.Serve(l) }()
	}
	w.appCA = newAuthority(w.t)
	certificate, key := w.appCA.sign(w.t, "https://the.application")
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		w.t.Fatal(err)
	}
	secure := tls.NewListener(w.serverNet.listen(host+":8443"), &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert})
	go func() { _ = echo.Serve(secure) }()
	for _, address := range []string{":3306", ":5432", ":3307"} {
		l := w.serverNet.listen(host + address)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					if _, err := io.WriteString(c, greeting); err == nil {
						_, _ = io.Copy(c, c)
					}
				}()
			}
		}()
	}
}

// reply is what the application saw of a request.
type reply struct {
	Proto, Host, Path, Local, Remote string
	TLS, ClientName                  string // what the client said, where the connection is TLS of the application's own
	Header                           http.Header
}

type result struct {
	reply
	status int
	header http.Header
	error
}

func (r result) err() error {
	if r.error == nil && r.status != http.StatusOK {
		return fmt.Errorf("status %d", r.status)
	}
	return r.error
}

func (w *town) httpClient(n *netns, h2c bool) *http.Client {
	transport := &http.Transport{DialContext: n.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	if h2c {
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		transport.Protocols = &p
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// get asks from the client's pod. The URL has an address, as a resolver would have given it; host, if any, is the name that
// the client would have used.
func (w *town) get(url string, host ...string) result { return get(w.http, url, nil, host...) }

func get(c *http.Client, url string, header http.Header, host ...string) (r result) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return result{error: err}
	}
	if header != nil {
		request.Header = header
	}
	if len(host) > 0 {
		request.Host = host[0]
	}
	response, err := c.Do(request)
	if err != nil {
		return result{error: err}
	}
	defer response.Body.Close()
	r.status, r.header = response.StatusCode, response.Header
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return result{error: err}
	}
	_ = json.Unmarshal(body, &r.reply)
	return r
}

// hear connects and gives the first line that the server says.
func hear(n *netns, address string) (string, error) {
	c, err := n.dial(context.Background(), "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return line, err
	}
	if _, err := io.WriteString(c, "ping"); err != nil {
		return line, err
	}
	back := make([]byte, 4)
	if _, err := io.ReadFull(c, back); err != nil {
		return line, err
	}
	return line + string(back), nil
}

// model is the mesh as both proxies see it; change, if any, has the last word.
func (w *town) model() *mesh.Model {
	id := identity("shop", "server")
	endpoint := func(address string, number uint32) mesh.Endpoint {
		return mesh.Endpoint{Address: netip.MustParseAddr(address), Port: number, MTLS: true, Identity: id}
	}
	pods, db := service("pods", "shop", "", port(8080, mesh.HTTP, id)), service("db", "shop", "", port(5432, mesh.TCP, id))
	db.Ports[0].Instances = []netip.AddrPort{netip.MustParseAddrPort("10.77.0.3:5432"), netip.MustParseAddrPort("10.77.0.4:5432")}
	mode := w.mode
	client, server := mesh.WorkloadKey{Namespace: "shop", Name: "client"}, mesh.WorkloadKey{Namespace: "shop", Name: "server"}
	m := &mesh.Model{
		Settings: settings(),
		Outbound: &mesh.Outbound{Services: []*mesh.Service{
			externalName("alias", "shop", "web.shop.svc.cluster.local"),
			service("bank", "shop", "10.96.0.12", port(80, mesh.HTTP, identity("shop", "bank"))),
			db, pods,
			service("tcp", "shop", "10.96.0.11", port(3306, mesh.TCP, id)),
			service("web", "shop", "10.96.0.10", port(80, mesh.HTTP, id), port(9090, mesh.HTTP2, id)),
		}},
		Workloads: map[mesh.WorkloadKey]*mesh.Workload{
			client: {Key: client, ServiceAccount: "client", Inbound: &mesh.Inbound{Namespace: "shop"}},
			server: {Key: server, ServiceAccount: "server", Inbound: &mesh.Inbound{Namespace: "shop", MTLS: mode, Ports: []mesh.InboundPort{
				{Number: 3306, Protocol: mesh.TCP, MTLS: mode},
				{Number: 3307, Protocol: mesh.TCP, MTLS: mesh.Disabled},
				{Number: 5432, Protocol: mesh.TCP, MTLS: mode},
				{Number: 8080, Protocol: mesh.HTTP, MTLS: mode},
				{Number: 8443, Protocol: mesh.TCP, MTLS: mode},
			}}},
		},
		Endpoints: map[mesh.EndpointKey]*mesh.EndpointSet{},
	}
	m.Settings.AccessLogFile = "/dev/stdout"
	for _, e := range []struct {
		name   string
		number uint32
		at     []mesh.Endpoint
	}{
		{"bank", 80, []mesh.Endpoint{endpoint("10.77.0.3", 8080)}}, // run by someone who is not the bank
		{"pods", 8080, []mesh.Endpoint{endpoint("10.77.0.3", 8080), endpoint("10.77.0.4", 8080)}},
		{"tcp", 3306, []mesh.Endpoint{endpoint("10.77.0.3", 3306)}},
		{"web", 80, []mesh.Endpoint{endpoint("10.77.0.3", 8080)}},
		{"web", 9090, []mesh.Endpoint{endpoint("10.77.0.3", 8080)}},
	} {
		key := mesh.EndpointKey{Host: mesh.Host(e.name + ".shop.svc.cluster.local"), Port: e.number}
		m.Endpoints[key] = &mesh.EndpointSet{Key: key, Endpoints: e.at}
	}
	if w.change != nil {
		w.change(m)
	}
	return m
}

func (w *town) publish() {
	w.t.Helper()
	m := w.model()
	w.client.set(m, "client")
	w.server.set(m, "server")
}

// with changes the mesh for one subtest.
func (w *town) with(t *testing.T, mode mesh.Mode, change func(*mesh.Model)) {
	t.Helper()
	w.mode, w.change = mode, change
	w.publish()
	t.Cleanup(func() {
		w.mode, w.change = mesh.Permissive, nil
		w.publish()
	})
}

func endpointsOf(m *mesh.Model, name string, number uint32) *mesh.EndpointSet {
	return m.Endpoints[mesh.EndpointKey{Host: mesh.Host(name + ".shop.svc.cluster.local"), Port: number}]
}
