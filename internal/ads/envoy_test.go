package ads_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/ads"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/scope"
	"github.com/selvage-mesh/selvage/internal/testneed"
	"github.com/selvage-mesh/selvage/internal/xds"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// sidecar is a real Envoy that is configured by a control plane over a Unix socket.
type sidecar struct {
	t     testing.TB
	dir   string // xds.sock, sds.sock
	admin string
	// bad makes the generator add a listener that Envoy refuses.
	bad atomic.Bool
}

// control starts a control plane on the sidecar's socket, in place of any before.
func (s *sidecar) control(w *world) *control {
	s.t.Helper()
	c := &control{t: s.t, log: &buffer{}, metrics: prometheus.NewRegistry()}
	c.Server = must[*ads.Server](s.t)(ads.New(ads.Config{
		Authenticate: func(context.Context) (string, string, error) { return "shop", "web", nil },
		Generate:     s.generate, Registerer: c.metrics, Log: slog.New(slog.NewTextHandler(c.log, nil)),
		Debounce: time.Millisecond, DrainSpread: time.Millisecond,
	}))
	c.Publish(w.model())
	c.serve(s.listen("xds.sock"))
	return c
}

// generate leaves out the listeners that take connections on every address of the machine.
func (s *sidecar) generate(v scope.View) (*xds.Config, error) {
	c, err := xds.Generate(v)
	if err != nil {
		return nil, err
	}
	c.Listeners = slices.DeleteFunc(c.Listeners, func(r xds.Resource) bool { return strings.HasPrefix(r.Name, "virtual") })
	if s.bad.Load() {
		body, err := anypb.New(&listenerv3.Listener{Name: "bad"}) // has no address
		if err != nil {
			return nil, err
		}
		c.Listeners = append(c.Listeners, xds.Resource{Name: "bad", Version: "1", Body: body, Refs: []ref.Ref{{Kind: "EnvoyFilter", Namespace: "shop", Name: "breaks"}}})
	}
	return c, nil
}

func (s *sidecar) listen(name string) net.Listener {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	_ = os.Remove(path)
	return must[net.Listener](s.t)(net.Listen("unix", path))
}

// newSidecar prepares an Envoy, with the agent's part of it that gives certificates.
func newSidecar(t testing.TB) *sidecar {
	t.Helper()
	dir := must[string](t)(os.MkdirTemp("", "ads")) // short, for the sockets' sake
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &sidecar{t: t, dir: dir}
	server := grpc.NewServer()
	secretv3.RegisterSecretDiscoveryServiceServer(server, newSecrets(t))
	l := s.listen("sds.sock")
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return s
}

// run starts Envoy with a bootstrap that change may change, and ends it with the test.
func (s *sidecar) run(change func(*bootstrapv3.Bootstrap)) {
	s.t.Helper()
	b := must[*bootstrapv3.Bootstrap](s.t)(envoy.Bootstrap(envoy.BootstrapConfig{
		NodeID: "sidecar~10.1.0.1~web-0.shop~shop.svc.cluster.local", Cluster: "web.shop",
		XDSSocket: filepath.Join(s.dir, "xds.sock"), SDSSocket: filepath.Join(s.dir, "sds.sock"),
	}))
	b.StaticResources.Listeners = nil // would be on every address of the machine
	b.Admin.Address.GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{}
	if change != nil {
		change(b)
	}
	file, address := filepath.Join(s.dir, "envoy.json"), filepath.Join(s.dir, "admin")
	if err := os.WriteFile(file, must[[]byte](s.t)(protojson.Marshal(b)), 0o600); err != nil {
		s.t.Fatal(err)
	}
	log := must[*os.File](s.t)(os.Create(filepath.Join(s.dir, "envoy.log")))
	cmd := exec.Command(testneed.Envoy(s.t), "-c", file, "--disable-hot-restart", "--concurrency", "1", "--admin-address-path", address, "-l", "info")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if s.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			s.t.Logf("Envoy's log:\n%s", text)
		}
	})
	s.until("Envoy's admin interface", func() bool {
		text, err := os.ReadFile(address)
		s.admin = string(text)
		return err == nil && len(text) > 0
	})
}

func (s *sidecar) until(what string, ok func() bool) {
	s.t.Helper()
	for range 1500 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond) // Envoy has no event for it
	}
	s.t.Fatalf("%s did not come", what)
}

func (s *sidecar) get(path string) string {
	s.t.Helper()
	r, err := http.Get("http://" + s.admin + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	return string(must[[]byte](s.t)(io.ReadAll(r.Body)))
}

// has waits until the part of Envoy's configuration dump holds all words and none of the others, which begin with "!".
func (s *sidecar) has(part string, words ...string) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s with %q", part, words), func() bool {
		dump := s.get("/config_dump?include_eds&resource=" + part)
		return !slices.ContainsFunc(words, func(w string) bool {
			w, not := strings.CutPrefix(w, "!")
			return strings.Contains(dump, w) == not
		})
	})
}

// pushed are the responses that a control plane has sent.
func (c *control) pushed() map[string]float64 {
	sent := map[string]float64{}
	for _, k := range []string{"cds", "eds", "lds", "rds", "vhds"} {
		sent[k] = c.metric("pilot_xds_pushes", "type="+k)
	}
	return sent
}

// more are the responses since.
func (c *control) more(before map[string]float64) string {
	var words []string
	for _, k := range []string{"cds", "eds", "lds", "rds", "vhds"} {
		if n := c.metric("pilot_xds_pushes", "type="+k) - before[k]; n > 0 {
			words = append(words, fmt.Sprintf("%v %s", n, k))
		}
	}
	return strings.Join(words, ", ")
}

func TestRealEnvoy(t *testing.T) {
	for _, x := range []struct {
		variant string
		change  func(*bootstrapv3.Bootstrap)
		// service is what is sent for a new service, again on a reconnect with nothing new.
		service, again string
	}{
		{"delta", nil, "1 cds, 1 eds, 1 vhds", ""},
		{"state of the world", func(b *bootstrapv3.Bootstrap) {
			b.DynamicResources.AdsConfig.ApiType = corev3.ApiConfigSource_GRPC
		}, "1 cds, 1 eds, 1 rds", "1 eds, 1 rds"},
	} {
		t.Run(x.variant, func(t *testing.T) {
			t.Parallel()
			s, w := newSidecar(t), newWorld(1)
			c := s.control(w)
			s.run(x.change)
			c.await("Envoy has acknowledged everything", synced(1))
			s.has("dynamic_active_clusters", clusterOf("web"), clusterOf("db"))
			s.has("dynamic_route_configs", clusterOf("web"))

			s.endpointsOnly(c, w)
			before := c.pushed()
			s.newService(c, w)
			if sent := c.more(before); sent != x.service {
				t.Errorf("for a new service was sent: %s, want %s", sent, x.service)
			}
			s.changedClusters(c, w)
			s.rejection(c, w)

			c.stop()
			next := s.control(w)
			next.await("Envoy is back", synced(1))
			if sent := next.more(nil); sent != x.again {
				t.Errorf("on the reconnect was sent: %q, want %q", sent, x.again)
			}
			s.endpointsOnly(next, w)
		})
	}
}

// endpointsOnly: a change of endpoints reaches Envoy, and is all that does.
func (s *sidecar) endpointsOnly(c *control, w *world) {
	s.t.Helper()
	before := c.pushed()
	address := fmt.Sprintf("10.2.0.%d", time.Now().UnixNano()%250)
	w.endpoints("db", address)
	c.Publish(w.model())
	s.has("dynamic_endpoint_configs", address)
	c.await("Envoy has acknowledged everything", synced(1))
	if sent := c.more(before); sent != "1 eds" {
		s.t.Errorf("for a change of endpoints was sent: %s", sent)
	}
}

// newService: it becomes routable.
func (s *sidecar) newService(c *control, w *world) {
	s.t.Helper()
	w.service("api", "10.96.0.3", mesh.HTTP)
	w.endpoints("api", "10.1.0.9")
	c.Publish(w.model())
	s.has("dynamic_active_clusters", clusterOf("api"))
	s.has("dynamic_route_configs", clusterOf("api"))
	s.has("dynamic_endpoint_configs", "10.1.0.9")
	c.await("Envoy has acknowledged everything", synced(1))
}

// changedClusters: clusters that changed do not hang for want of their endpoints, which did not.
func (s *sidecar) changedClusters(c *control, w *world) {
	s.t.Helper()
	settings := *w.Settings
	settings.ConnectTimeoutMillis = 1234
	w.Settings = &settings
	c.Publish(w.model())
	s.has("dynamic_active_clusters", clusterOf("web"), "1.234s", "!1.111s")
	c.await("Envoy has acknowledged everything", synced(1))
	s.until("an end of warming", func() bool { return strings.Contains(s.get("/stats?filter=warming_clusters"), "warming_clusters: 0") })
}

// rejection: it is reported with its text and object, not sent again, and does not hold up anything else.
func (s *sidecar) rejection(c *control, w *world) {
	s.t.Helper()
	s.bad.Store(true)
	w.service("late", "10.96.0.77", mesh.TCP)
	w.endpoints("late", "10.1.0.77")
	c.Publish(w.model())
	c.await("the rejection is known", func(ps []ads.ProxyStatus) bool { return len(ps) == 1 && ps[0].Types["LDS"].State == "REJECTED" })
	lds := c.Proxies()[0].Types["LDS"]
	if !strings.Contains(lds.LastError, "Error adding/updating listener(s) bad") || !slices.Equal(lds.RejectedRefs, []string{"EnvoyFilter/shop/breaks"}) {
		s.t.Errorf("status: %+v", lds)
	}
	s.has("dynamic_listeners", "10.96.0.77_80")
	before := c.pushed()
	for i := range 3 {
		address := fmt.Sprintf("10.3.0.%d", i+1)
		w.endpoints("db", address)
		c.Publish(w.model())
		s.has("dynamic_endpoint_configs", address)
	}
	if sent := c.more(before); !strings.HasPrefix(sent, "3 eds") || strings.Contains(sent, "lds") {
		s.t.Errorf("after the rejection was sent: %s", sent)
	}
	if n := c.metric("pilot_total_xds_rejects"); n != 1 {
		s.t.Errorf("%v rejections", n)
	}
	s.bad.Store(false)
	settings := *w.Settings
	w.Settings = &settings
	c.Publish(w.model())
	c.await("Envoy has acknowledged everything", synced(1))
}

// secrets gives every client one certificate, which is its own root.
type secrets struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	byName map[string]*anypb.Any
}

func newSecrets(t testing.TB) secrets {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "web"}, NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/web"}}, IsCA: true, BasicConstraintsValid: true}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	inline := func(kind string, bytes []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes})}}
	}
	s := secrets{byName: map[string]*anypb.Any{}}
	for _, secret := range []*tlsv3.Secret{
		{Name: envoy.CertificateSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline("CERTIFICATE", der),
			PrivateKey:       inline("PRIVATE KEY", must[[]byte](t)(x509.MarshalPKCS8PrivateKey(key)))}}},
		{Name: envoy.RootSecret, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline("CERTIFICATE", der)}}},
	} {
		s.byName[secret.Name] = must[*anypb.Any](t)(anypb.New(secret))
	}
	return s
}

// StreamSecrets answers each first request.
func (s secrets) StreamSecrets(rpc secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	for {
		r, err := rpc.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" {
			continue
		}
		answer := &discoveryv3.DiscoveryResponse{TypeUrl: r.GetTypeUrl(), Nonce: "1", VersionInfo: "1"}
		for _, n := range r.GetResourceNames() {
			answer.Resources = append(answer.Resources, proto.CloneOf(s.byName[n]))
		}
		if err := rpc.Send(answer); err != nil {
			return err
		}
	}
}
