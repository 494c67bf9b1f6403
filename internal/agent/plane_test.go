package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/testneed"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// plane is a small control plane: an authority, and an ADS server (delta) that sends what the test says.
type plane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	t        testing.TB
	issuer   *pki.Issuer
	lifetime time.Duration
	addr     string
	names    []string // in its certificate
	server   *grpc.Server

	mu      sync.Mutex
	sets    map[string]map[string]proto.Message // type URL → name → resource
	changed chan struct{}
	signed  []string // how each certificate was asked for: token, certificate
	streams []string // how each stream came
	node    *corev3.Node
	event   chan struct{} // closed and replaced with everything that happens
}

const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	goodToken    = "a-token-of-the-pod"
)

var testIdentity = pki.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

// newPlane reserves an address; start makes it answer.
func newPlane(t testing.TB) *plane {
	t.Helper()
	issuer, err := pki.NewRoot("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &plane{
		t: t, issuer: issuer, lifetime: time.Hour, addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), names: []string{"istiod.istio-system.svc"},
		sets:    map[string]map[string]proto.Message{clusterType: {}, listenerType: {}},
		changed: make(chan struct{}), event: make(chan struct{}),
	}
}

func (p *plane) start() {
	p.t.Helper()
	serving, err := p.issuer.IssueServing(p.names, time.Hour, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{*serving}, ClientCAs: p.issuer.Pool(), ClientAuth: tls.VerifyClientCertIfGiven,
	})))
	securityv1alpha1.RegisterIstioCertificateServiceServer(p.server, p)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(p.server, p)
	go func() { _ = p.server.Serve(l) }()
	p.t.Cleanup(p.server.Stop)
}

func (p *plane) stop() { p.server.Stop() }

// happened wakes until. The lock is held.
func (p *plane) happened() {
	close(p.event)
	p.event = make(chan struct{})
}

// until waits for a condition, which is looked at under the lock after everything that happens.
func (p *plane) until(what string, cond func() bool) {
	p.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		ok, event := cond(), p.event
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-event:
		case <-deadline:
			p.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// caller authenticates as the real authority does: the certificate first, then the token.
func caller(ctx context.Context) (how string, err error) {
	if pr, ok := peer.FromContext(ctx); ok {
		if info, ok := pr.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
			return "certificate", nil
		}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+goodToken {
		return "", status.Errorf(codes.Unauthenticated, "token is not believed: %d given", len(got))
	}
	return "token", nil
}

// CreateCertificate signs.
func (p *plane) CreateCertificate(ctx context.Context, in *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	how, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	issuer, lifetime := p.issuer, p.lifetime
	p.mu.Unlock()
	request, err := pki.ParseRequest([]byte(in.GetCsr()))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	chain, err := issuer.SignWorkload(request, testIdentity, lifetime, time.Now())
	if err != nil {
		return nil, err
	}
	answer := &securityv1alpha1.IstioCertificateResponse{}
	for _, block := range chain {
		answer.CertChain = append(answer.CertChain, string(block))
	}
	p.mu.Lock()
	p.signed = append(p.signed, how)
	p.happened()
	p.mu.Unlock()
	return answer, nil
}

// set replaces what is sent.
func (p *plane) set(resources ...proto.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sets = map[string]map[string]proto.Message{clusterType: {}, listenerType: {}}
	for _, r := range resources {
		p.sets[envoy.TypeURL(r)][r.(interface{ GetName() string }).GetName()] = r
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// DeltaAggregatedResources sends clusters and listeners, and what changes of them.
func (p *plane) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	how, err := caller(stream.Context())
	if err != nil {
		return err
	}
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			in, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- in:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	sent := map[string]map[string]string{} // type → name → bytes
	nonce := 0
	for first := true; ; {
		p.mu.Lock()
		changed := p.changed
		answers := p.answers(sent)
		p.mu.Unlock()
		for _, answer := range answers {
			nonce++
			answer.Nonce = strconv.Itoa(nonce)
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case in, ok := <-requests:
			if !ok {
				return nil
			}
			p.mu.Lock()
			if first {
				first = false
				p.streams, p.node = append(p.streams, how), in.GetNode()
			}
			if in.GetResponseNonce() == "" && p.sets[in.GetTypeUrl()] != nil {
				sent[in.GetTypeUrl()] = map[string]string{}
			}
			p.happened()
			p.mu.Unlock()
		}
	}
}

// answers are the differences between what a client was sent and what it should have. The lock is held.
func (p *plane) answers(sent map[string]map[string]string) (list []*discoveryv3.DeltaDiscoveryResponse) {
	for _, typeURL := range []string{clusterType, listenerType} {
		had, subscribed := sent[typeURL]
		if !subscribed {
			continue
		}
		_, answered := had[""]
		delete(had, "")
		answer := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, SystemVersionInfo: "1"}
		for name, r := range p.sets[typeURL] {
			body, err := envoy.Marshal(r)
			if err != nil {
				p.t.Error(err)
			}
			if had[name] != string(body) {
				had[name] = string(body)
				answer.Resources = append(answer.Resources, &discoveryv3.Resource{Name: name, Version: strconv.Itoa(len(body)), Resource: pack(p.t, r)})
			}
		}
		for name := range had {
			if _, is := p.sets[typeURL][name]; !is {
				delete(had, name)
				answer.RemovedResources = append(answer.RemovedResources, name)
			}
		}
		if !answered || len(answer.Resources)+len(answer.RemovedResources) > 0 {
			list = append(list, answer)
		}
		had[""] = "answered"
	}
	return list
}

// sidecar is an agent that runs in this process with a real Envoy.
type sidecar struct {
	t      testing.TB
	config Config
	agent  *Agent
	log    *logBuffer
	stop   context.CancelFunc
	ended  chan error
}

// newConfig is a pod of its own: folders, ports, token and root.
func newConfig(t testing.TB, p *plane) Config {
	t.Helper()
	// Not t.TempDir: the path of a Unix socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "sel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := Config{
		Pod: Pod{Name: "web-1", Namespace: "shop", ServiceAccount: "web", IP: netip.MustParseAddr("127.0.0.1")}, TrustDomain: "cluster.local",
		ClusterID: "Kubernetes", Domain: "shop.svc.cluster.local", ServerName: "istiod.istio-system.svc",
		Metadata: map[string]any{"WORKLOAD_NAME": "web"},
		Envoy:    Envoy{Path: testneed.Envoy(t), LogLevel: "warning", Concurrency: new(int)},
		Paths: Paths{
			Bootstrap: filepath.Join(dir, "envoy.json"), XDSSocket: filepath.Join(dir, "XDS"), SDSSocket: filepath.Join(dir, "SDS"),
			Token: filepath.Join(dir, "token"), Root: filepath.Join(dir, "root-cert.pem"), PodInfo: dir,
		},
		Ports: Ports{Admin: freePort(t), EnvoyPrometheus: freePort(t), Readiness: freePort(t), Agent: freePort(t), Inbound: freePort(t)},
	}
	*c.Envoy.Concurrency = 1
	if c.Proxy, err = ParseProxyConfig(`{"discoveryAddress":"` + p.addr + `","terminationDrainDuration":"1s"}`); err != nil {
		t.Fatal(err)
	}
	write(t, c.Paths.Token, goodToken)
	write(t, c.Paths.Root, string(p.issuer.RootPEM()))
	write(t, filepath.Join(dir, "labels"), "app=\"web\"\nversion=\"v\\\"1\"")
	write(t, filepath.Join(dir, "annotations"), "istio.io/rev=\"canary\"\n")
	return c
}

func write(t testing.TB, path, text string) {
	t.Helper()
	// As the kubelet does it: readers see the old or the new file.
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, c Config) *sidecar {
	t.Helper()
	s := &sidecar{t: t, log: &logBuffer{}, ended: make(chan error, 1)}
	c.Log, c.Stderr = slog.New(slog.NewTextHandler(s.log, nil)), s.log
	s.config = c
	var err error
	if s.agent, err = New(c); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	go func() { s.ended <- s.agent.Run(ctx) }()
	t.Cleanup(func() {
		s.stop()
		s.agent.Kill()
		if err := s.wait(); err != nil {
			t.Logf("the agent ended with: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the agent and Envoy:\n%s", s.log)
		}
	})
	return s
}

// wait gives what Run returned.
func (s *sidecar) wait() error {
	s.t.Helper()
	select {
	case err := <-s.ended:
		s.ended <- err
		return err
	case <-time.After(20 * time.Second):
		s.t.Fatal("the agent does not end")
		return nil
	}
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(data)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// count says how many lines have all the texts.
func (b *logBuffer) count(texts ...string) (n int) {
	for line := range strings.Lines(b.String()) {
		has := true
		for _, text := range texts {
			has = has && strings.Contains(line, text)
		}
		if has {
			n++
		}
	}
	return n
}

var (
	portMu   sync.Mutex
	portUsed = map[int]bool{}
)

// freePort gives a port that nobody listens on and that no other test of this process was given. It is below those that the kernel
// gives to outgoing connections (ip_local_port_range), one of which could take it before the test does.
func freePort(t testing.TB) uint16 {
	t.Helper()
	portMu.Lock()
	defer portMu.Unlock()
	for {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		l.Close()
		if !portUsed[port] {
			portUsed[port] = true
			return uint16(port)
		}
	}
}

// client is a peer in the mesh with a certificate of its own.
func (p *plane) client() *tls.Config {
	p.t.Helper()
	id := pki.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "client"}
	key, requestPEM, err := pki.NewRequest(id)
	if err != nil {
		p.t.Fatal(err)
	}
	request, err := pki.ParseRequest(requestPEM)
	if err != nil {
		p.t.Fatal(err)
	}
	chain, err := p.issuer.SignWorkload(request, id, time.Hour, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain[0], key)
	if err != nil {
		p.t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error { // SPIFFE certificates have no DNS name
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: p.issuer.Pool()})
			return err
		},
	}
}
