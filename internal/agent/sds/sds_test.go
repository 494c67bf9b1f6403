package sds

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/agent/identity"
)

// feed is material that the test changes.
type feed struct {
	mu      sync.Mutex
	now     *identity.Material
	changed chan struct{}
}

func (f *feed) current() (*identity.Material, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now, f.changed
}

func (f *feed) set(m *identity.Material) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = m
	close(f.changed)
	f.changed = make(chan struct{})
}

func material(chain, roots string) *identity.Material {
	m := &identity.Material{RootsPEM: []byte(roots)}
	if chain != "" {
		m.ChainPEM, m.KeyPEM, m.Leaf = []byte(chain), []byte("key of "+chain), &x509.Certificate{}
	}
	return m
}

func dial(t *testing.T) (secretv3.SecretDiscoveryServiceClient, *feed, *strings.Builder) {
	t.Helper()
	f := &feed{now: &identity.Material{}, changed: make(chan struct{})}
	var log strings.Builder
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	New(Config{Current: f.current, Log: slog.New(slog.NewTextHandler(&log, nil))}).Register(server)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return secretv3.NewSecretDiscoveryServiceClient(conn), f, &log
}

func read(t *testing.T, body *anypb.Any) string {
	t.Helper()
	var s tlsv3.Secret
	if err := body.UnmarshalTo(&s); err != nil {
		t.Fatal(err)
	}
	if c := s.GetTlsCertificate(); c != nil {
		return s.GetName() + "=" + string(c.GetCertificateChain().GetInlineBytes()) + "/" + string(c.GetPrivateKey().GetInlineBytes())
	}
	return s.GetName() + "=" + string(s.GetValidationContext().GetTrustedCa().GetInlineBytes())
}

func TestDeltaClientsGetWhatTheyNameAndWhatChangesOfIt(t *testing.T) {
	client, f, log := dial(t)
	stream, err := client.DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *discoveryv3.DeltaDiscoveryRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	recv := func() (texts []string, answer *discoveryv3.DeltaDiscoveryResponse) {
		t.Helper()
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range answer.GetResources() {
			texts = append(texts, read(t, r.GetResource()))
		}
		return texts, answer
	}
	want := func(list ...string) *discoveryv3.DeltaDiscoveryResponse {
		t.Helper()
		got, answer := recv()
		if strings.Join(got, " ") != strings.Join(list, " ") {
			t.Errorf("got %q, want %q", got, list)
		}
		return answer
	}
	// Nothing is there yet: the answer comes with the certificate.
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: SecretType, ResourceNamesSubscribe: []string{"default", "another"}})
	f.set(material("", "r1"))
	f.set(material("c1", "r1"))
	first := want("default=c1/key of c1")
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: SecretType, ResponseNonce: first.GetNonce(), ResourceNamesSubscribe: []string{"ROOTCA"}})
	want("ROOTCA=r1")
	f.set(material("c1", "r2")) // only what changed
	second := want("ROOTCA=r2")
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: SecretType, ResponseNonce: second.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "bad root"}})
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: SecretType, ResourceNamesUnsubscribe: []string{"ROOTCA"}, ResourceNamesSubscribe: []string{"default"}})
	want("default=c1/key of c1") // named again: the client has forgotten it
	f.set(material("c2", "r3"))
	want("default=c2/key of c2") // not ROOTCA: it is unsubscribed
	if !strings.Contains(log.String(), "bad root") {
		t.Error("a refusal is not logged")
	}
}

func TestStateOfTheWorldClientsGetRotations(t *testing.T) {
	client, f, _ := dial(t)
	f.set(material("c1", "r1"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"default"}
	nonce, version := "", ""
	for _, want := range []string{"c1", "c2", "c3"} {
		if want != "c1" {
			f.set(material(want, "r1"))
		}
		if err := stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: SecretType, ResourceNames: names, ResponseNonce: nonce, VersionInfo: version}); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(answer.GetResources()) != 1 || read(t, answer.GetResources()[0]) != "default="+want+"/key of "+want {
			t.Errorf("got %v, want %s", answer, want)
		}
		nonce, version = answer.GetNonce(), answer.GetVersionInfo()
	}
}
