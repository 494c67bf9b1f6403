package xds_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/scope"
	"github.com/selvage-mesh/selvage/internal/testneed"
	"github.com/selvage-mesh/selvage/internal/xds"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// sidecar is a real Envoy in a network namespace, started with the product's bootstrap. The test is its agent: it serves
// configuration and secrets on the two Unix sockets, and keeps what Envoy refuses.
type sidecar struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	secretv3.UnimplementedSecretDiscoveryServiceServer

	t       testing.TB
	netns   *netns
	dir     string
	secrets []*anypb.Any
	process *os.Process

	mu      sync.Mutex
	current map[string]map[string]xds.Resource // by type URL and name
	changed chan struct{}                      // closed when current changes
	nacks   []string
	server  *grpc.Server
}

// xdsOrder is the order in which changes are sent: new clusters before what points to them.
var xdsOrder = []string{xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType}

// startSidecar gives a running Envoy whose certificate shows id. It has no configuration until set.
func startSidecar(t testing.TB, n *netns, ca *authority, id string) *sidecar {
	t.Helper()
	dir, err := os.MkdirTemp("", "selxds") // not t.TempDir: Envoy runs as another user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &sidecar{t: t, netns: n, dir: dir, secrets: ca.secrets(t, id), changed: make(chan struct{})}
	s.serveXDS()
	t.Cleanup(func() { s.stopXDS() })
	secrets := grpc.NewServer()
	secretv3.RegisterSecretDiscoveryServiceServer(secrets, s)
	s.serve(secrets, "socket")
	t.Cleanup(secrets.Stop)

	b, err := envoy.Bootstrap(envoy.BootstrapConfig{
		NodeID: "sidecar~10.77.0.2~pod.shop~shop.svc.cluster.local", Cluster: "pod.shop", Metadata: map[string]any{"NAMESPACE": "shop"},
		XDSSocket: filepath.Join(dir, "XDS"), SDSSocket: filepath.Join(dir, "socket"), IPv6: n.ipv6,
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	out := s.file("stdout", nil)
	s.file("envoy.json", text).Close()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testneed.Envoy(t), "-c", filepath.Join(dir, "envoy.json"), "--use-dynamic-base-id", "--concurrency", "2", "-l", "warning",
		"--drain-strategy", "immediate", "--drain-time-s", "10", "--file-flush-interval-msec", "20")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1337, Gid: 1337}}
	n.inside(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	s.process = cmd.Process
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Envoy of %s wrote, besides of what went well:\n%s", id, s.trouble())
		}
	})
	return s
}

// file makes a file that Envoy's user may read and write.
func (s *sidecar) file(name string, content []byte) *os.File {
	s.t.Helper()
	f, err := os.Create(filepath.Join(s.dir, name))
	if err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = f.Chmod(0o666)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

// log is the access log and whatever else Envoy said.
func (s *sidecar) log() string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "stdout"))
	return string(text)
}

// trouble is the last of the log that does not tell of success.
func (s *sidecar) trouble() string {
	lines := slices.DeleteFunc(strings.Split(s.log(), "\n"), func(l string) bool { return strings.Contains(l, "1.1\" 200 - ") || strings.Contains(l, "2\" 200 - ") })
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

func (s *sidecar) serve(server *grpc.Server, socket string) {
	s.t.Helper()
	path := filepath.Join(s.dir, socket)
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o777)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
}

func (s *sidecar) serveXDS() {
	s.t.Helper()
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, s)
	s.serve(server, "XDS")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = server
}

func (s *sidecar) stopXDS() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.Stop()
}

// set gives the proxy the configuration that the view generates, and the endpoints of the view's services.
func (s *sidecar) set(m *mesh.Model, pod string) {
	s.t.Helper()
	v, err := scope.For(m, scope.Proxy{Namespace: "shop", Name: pod, ServiceAccount: m.Workloads[mesh.WorkloadKey{Namespace: "shop", Name: pod}].ServiceAccount})
	if err != nil {
		s.t.Fatal(err)
	}
	config, err := xds.Generate(v)
	if err != nil {
		s.t.Fatal(err)
	}
	next := map[string]map[string]xds.Resource{
		xds.ClusterType: named(config.Clusters), xds.ListenerType: named(config.Listeners), xds.RouteType: named(config.Routes), xds.EndpointType: {},
	}
	for key, set := range m.Endpoints {
		if v.Endpoints(key) != set {
			continue // that of other clients
		}
		r, err := xds.LoadAssignment(set, v.ByLocality(key), v.Traits.Locality)
		if err != nil {
			s.t.Fatal(err)
		}
		next[xds.EndpointType][r.Name] = r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = next
	close(s.changed)
	s.changed = make(chan struct{})
}

func named(rs []xds.Resource) map[string]xds.Resource {
	m := make(map[string]xds.Resource, len(rs))
	for _, r := range rs {
		m[r.Name] = r
	}
	return m
}

// refused fails the test when Envoy has refused anything.
func (s *sidecar) refused() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nacks {
		s.t.Errorf("Envoy refuses: %s", n)
	}
}

// DeltaAggregatedResources is the delta protocol at its simplest: whoever is subscribed is sent what differs from what it has.
func (s *sidecar) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	requests, gone := make(chan *discoveryv3.DeltaDiscoveryRequest), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	d := &deltaStream{stream: stream, sent: map[string]map[string]string{}, wanted: map[string]map[string]bool{}}
	for {
		s.mu.Lock()
		current, changed := s.current, s.changed
		s.mu.Unlock()
		if err := d.send(current); err != nil {
			return err
		}
		select {
		case <-gone:
			return nil
		case <-changed:
		case r := <-requests:
			d.receive(r)
			if detail := r.GetErrorDetail(); detail != nil {
				s.mu.Lock()
				s.nacks = append(s.nacks, detail.GetMessage())
				s.mu.Unlock()
			}
		}
	}
}

type deltaStream struct {
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	sent   map[string]map[string]string // versions by type and name
	wanted map[string]map[string]bool   // by type; "*" for all
	nonce  int
}

func (d *deltaStream) receive(r *discoveryv3.DeltaDiscoveryRequest) {
	wanted := d.wanted[r.GetTypeUrl()]
	if wanted == nil {
		wanted = map[string]bool{}
		d.wanted[r.GetTypeUrl()], d.sent[r.GetTypeUrl()] = wanted, r.GetInitialResourceVersions()
		if d.sent[r.GetTypeUrl()] == nil {
			d.sent[r.GetTypeUrl()] = map[string]string{}
		}
		if len(r.GetResourceNamesSubscribe()) == 0 {
			wanted["*"] = true
		}
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		wanted[name] = true
		delete(d.sent[r.GetTypeUrl()], name)
	}
	for _, name := range r.GetResourceNamesUnsubscribe() {
		delete(wanted, name)
		delete(d.sent[r.GetTypeUrl()], name)
	}
}

func (d *deltaStream) send(current map[string]map[string]xds.Resource) error {
	for _, url := range xdsOrder {
		wanted, sent := d.wanted[url], d.sent[url]
		if wanted == nil || current == nil {
			continue
		}
		response := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: url}
		for name, r := range current[url] {
			if (wanted[name] || wanted["*"]) && sent[name] != r.Version {
				sent[name] = r.Version
				response.Resources = append(response.Resources, &discoveryv3.Resource{Name: name, Version: r.Version, Resource: r.Body})
				if url == xds.ClusterType {
					delete(d.sent[xds.EndpointType], name) // a changed cluster waits for its endpoints anew
				}
			}
		}
		for name := range sent {
			if _, ok := current[url][name]; !ok {
				delete(sent, name)
				response.RemovedResources = append(response.RemovedResources, name)
			}
		}
		if len(response.GetResources())+len(response.GetRemovedResources()) == 0 {
			continue
		}
		d.nonce++
		response.Nonce = fmt.Sprint(d.nonce)
		if err := d.stream.Send(response); err != nil {
			return err
		}
	}
	return nil
}

// StreamSecrets serves the certificate and the roots.
func (s *sidecar) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" { // an ACK
			continue
		}
		response := &discoveryv3.DiscoveryResponse{TypeUrl: r.GetTypeUrl(), VersionInfo: "1", Nonce: "1"}
		for _, secret := range s.secrets {
			if slices.Contains(r.GetResourceNames(), secretName(s.t, secret)) {
				response.Resources = append(response.Resources, secret)
			}
		}
		if len(response.GetResources()) == 0 {
			return errors.New("no such secret: " + strings.Join(r.GetResourceNames(), ", "))
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

// eventually tries until f gives nil; what Envoy takes over, it takes over soon, but says nothing when it has.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after 30 s: %v", what, err)
		}
		<-tick.C
	}
}
