package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// plane is a control plane of a revision of its own: a selvaged process that has the rights of its ServiceAccount and nothing more,
// and whose requests to the API server are counted on their way.
type plane struct {
	lab      *lab
	revision string
	args     []string
	http     string // HOST:PORT of its status port
	command  *exec.Cmd

	mu     sync.Mutex
	writes map[string]int // by verb and resource, dry runs and leases apart
}

// bare starts a lab without the mesh, on the machine's own network, where its API server can call a process of this test.
func bare(t testing.TB) *lab {
	t.Helper()
	return startLab(t, 1, "--mesh=false", "--sample=false", "--machine-network")
}

// startPlane installs a revision and runs its control plane until the test ends.
func (l *lab) startPlane(t testing.TB, revision string, install ...string) *plane {
	t.Helper()
	return l.startPlaneWith(t, revision, nil, install...)
}

// startPlaneWith does that with flags for the control plane, which an installation would give it by its Deployment.
func (l *lab) startPlaneWith(t testing.TB, revision string, flags []string, install ...string) *plane {
	t.Helper()
	p := &plane{lab: l, revision: revision, writes: map[string]int{}, http: freeAddress(t)}
	webhooks := freeAddress(t)
	args := append([]string{"install", "--revision", revision, "--webhook-url", "https://" + webhooks, "--wait=false"}, install...)
	if stdout, stderr, code := l.selvage(t, args...); code != 0 {
		t.Fatalf("selvage %s: exit %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	p.args = []string{"--kubeconfig", p.proxy(t), "--revision", revision, "--xds-addr", freeAddress(t), "--webhook-addr", webhooks, "--http-addr", p.http}
	p.args = append(p.args, flags...)
	t.Cleanup(func() { p.kill() })
	p.start(t)
	return p
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// proxy listens for the control plane's requests, gives them a token of its ServiceAccount and counts them. It returns a kubeconfig that
// leads to it.
func (p *plane) proxy(t testing.TB) string {
	t.Helper()
	day := int64(24 * 60 * 60)
	token, err := p.lab.Client.CoreV1().ServiceAccounts("istio-system").CreateToken(t.Context(), p.account(),
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &day}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(p.lab.Config)
	config.BearerToken = token.Status.Token
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&httputil.ReverseProxy{
		FlushInterval: -1, Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			p.count(r.In)
		},
	})
	t.Cleanup(server.CloseClientConnections)
	path := filepath.Join(p.lab.Dir, "kubeconfig-"+p.revision)
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: %q}}]\ncontexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n", server.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// account is the control plane's ServiceAccount.
func (p *plane) account() string { return "istiod-" + p.revision }

// count notes a request that writes. Reviews of tokens and rights store nothing.
func (p *plane) count(r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	i := slices.Index(parts, "namespaces") // …/namespaces/NAME/RESOURCE/NAME, or …/VERSION/RESOURCE/NAME
	switch {
	case i >= 0 && i+2 < len(parts):
		i += 2
	case parts[0] == "api":
		i = 2
	default:
		i = 3
	}
	if r.Method == http.MethodGet || i >= len(parts) || parts[i] == "leases" || strings.HasSuffix(parts[i], "reviews") || r.URL.Query().Get("dryRun") != "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes[r.Method+" "+parts[i]]++
}

// written gives how often each kind of write was made so far.
func (p *plane) written() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]int{}
	for k, n := range p.writes {
		out[k] = n
	}
	return out
}

// since gives the writes that were made after before.
func (p *plane) since(before map[string]int) map[string]int {
	out := p.written()
	for k, n := range before {
		if out[k] -= n; out[k] == 0 {
			delete(out, k)
		}
	}
	return out
}

func (p *plane) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(p.lab.Dir, "selvaged-"+p.revision+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.command = exec.Command(bin("selvaged"), p.args...)
	p.command.Stderr = log
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill ends the process as a node that fails does.
func (p *plane) kill() {
	if p.command != nil {
		_ = p.command.Process.Kill()
		_ = p.command.Wait()
		p.command = nil
	}
}

// ready waits until the control plane serves.
func (p *plane) ready(t testing.TB) {
	t.Helper()
	eventually(t, "selvaged of revision "+p.revision+" ready", func(ctx context.Context) string {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.http+"/ready", nil)
		if err != nil {
			return err.Error()
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return response.Status
		}
		return ""
	})
}

// percentile of sorted durations.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}
