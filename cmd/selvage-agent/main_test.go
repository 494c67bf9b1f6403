package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/testneed"
)

// run executes a command line in this process.
func run(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	cmd := command(make(chan os.Signal))
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// build makes the binary, as an image has it.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "selvage-agent")
	cmd := exec.Command(filepath.Join(goroot(t), "bin", "go"), "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func goroot(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(filepath.Dir(path))
}

// TestTheAgentLinksNoClient looks at what this test links, which is the agent and little more: every pod pays for what its sidecar
// links. (A test that runs `go list` would pass from the cache when the tree has changed.)
func TestTheAgentLinksNoClient(t *testing.T) {
	info, ok := debug.ReadBuildInfo()
	if !ok || len(info.Deps) == 0 {
		t.Fatal("this binary does not say what it was built from")
	}
	for _, module := range info.Deps {
		for _, bad := range []string{"k8s.io/", "sigs.k8s.io/", "istio.io/client-go"} {
			if strings.HasPrefix(module.Path, bad) {
				t.Errorf("links %s", module.Path)
			}
		}
	}
}

func TestInitPrintsItsRules(t *testing.T) {
	out, err := run(t, "init", "--dry-run", "--exclude-inbound-ports", "15020,15021", "--outbound-ranges", "10.0.0.0/8", "--exclude-outbound-ports", "3306")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN\n", "-A ISTIO_OUTPUT -d 10.0.0.0/8 -p tcp -j ISTIO_REDIRECT\n",
		"-A ISTIO_OUTPUT -p tcp -m tcp --dport 3306 -j RETURN\n", "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("lacks %q:\n%s", line, out)
		}
	}
	// The sidecar's own ports are never captured, whatever is excluded besides them.
	for ports, args := range map[string][]string{"15020 15021 15090": nil, "16020 15021": {"--own-ports", "16020,15021"}} {
		out, err := run(t, append([]string{"init", "--dry-run"}, args...)...)
		for port := range strings.FieldsSeq(ports) {
			if !strings.Contains(out, "-A ISTIO_INBOUND -p tcp -m tcp --dport "+port+" -j RETURN\n") {
				t.Errorf("%v: port %s is captured:\n%s", err, port, out)
			}
		}
	}
	if out, err = run(t, "init", "--dry-run", "--backend", "nft"); err != nil || !strings.Contains(out, "table inet istio-proxy-nat {") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestArgumentsThatMeanNothingAreRefused(t *testing.T) {
	for want, args := range map[string][]string{
		"--exclude-inbound-ports: parse port \"80 -j ACCEPT\"": {"init", "--dry-run", "--exclude-inbound-ports", "80 -j ACCEPT"},
		"--outbound-ranges: parse address range":               {"init", "--dry-run", "--outbound-ranges", "10.0.0.0/40"},
		"--backend: parse backend":                             {"init", "--dry-run", "--backend", "ebpf"},
		"--own-ports: parse port":                              {"init", "--dry-run", "--own-ports", "http"},
		"this version intercepts by REDIRECT only":             {"init", "--dry-run", "--interception-mode", "TPROXY"},
		"queries would be sent to nobody":                      {"init", "--dry-run", "--capture-dns"},
		"bypass the mesh":                                      {"init", "--dry-run", "--proxy-uid", "0"},
		"this agent runs sidecars":                             {"proxy", "router"},
		"--log_output_level":                                   {"proxy", "sidecar", "--log_output_level", "default:loud"},
		"POD_NAME is not set":                                  {"proxy", "sidecar"},
		"unknown command":                                      {"nonsense"},
		"accepts 2 arg":                                        {"request", "GET"},
	} {
		if _, err := run(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}

func TestLogLevels(t *testing.T) {
	for text, want := range map[string]string{"": "INFO", "debug": "DEBUG", "default:warn": "WARN", "ads:debug": "INFO", "ads:debug,default:error": "ERROR", "all:none": "ERROR"} {
		if got, err := agentLevel(text); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestWaitEndsWhenTheProxyIsReady(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "Envoy proxy is NOT ready: workers have not yet started")
		}
	}))
	defer server.Close()
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, "wait", "--readiness-port", at.Port(), "--period", "1ms"); err != nil {
		t.Error(err)
	}
	asked.Store(-1 << 30)
	_, err = run(t, "wait", "--readiness-port", at.Port(), "--period", "1ms", "--timeout", "200ms")
	if err == nil || !strings.Contains(err.Error(), "workers have not yet started") {
		t.Errorf("%v", err)
	}
}

func TestRequestsAndDrain(t *testing.T) {
	var got atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r.Method + " " + r.URL.RequestURI())
		if r.URL.Path == "/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprint(w, "the answer\n")
	}))
	defer server.Close()
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "request", "get", "stats?filter=x", "--debug-port", at.Port()); err != nil || out != "the answer\n" || got.Load() != "GET /stats?filter=x" {
		t.Errorf("%q, %v, asked for %v", out, err, got.Load())
	}
	if out, err := run(t, "request", "GET", "/missing", "--debug-port", at.Port()); err == nil || out != "the answer\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := run(t, "drain", "--agent-port", at.Port()); err != nil || got.Load() != "POST /drain" {
		t.Errorf("%v, asked for %v", err, got.Load())
	}
}

// TestInitInAPod runs the binary in a network namespace, as root and with what an init container may lack.
func TestInitInAPod(t *testing.T) {
	testneed.Root(t)
	path := build(t)
	ns := "selvage-agent-" + strconv.Itoa(os.Getpid())
	do := func(name string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) {
		t.Helper()
		if out, err := do("ip", args...); err != nil {
			t.Fatalf("ip %q: %v\n%s", args, err, out)
		}
	}
	must("netns", "add", ns)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	must("-n", ns, "link", "set", "lo", "up")
	must("-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
	must("-n", ns, "addr", "add", "10.88.7.2/24", "dev", "eth0")
	must("-n", ns, "link", "set", "eth0", "up")
	must("-n", ns, "link", "set", "peer0", "up")
	must("-n", ns, "route", "add", "default", "via", "10.88.7.1")
	in := []string{"netns", "exec", ns}
	injected := []string{path, "init", "--proxy-port", "15001", "--inbound-port", "15006", "--proxy-uid", "1337", "--proxy-gid", "1337", "--inbound-ports", "*",
		"--exclude-inbound-ports", "15020,15021,15090", "--outbound-ranges", "*", "--exclude-outbound-ranges", "", "--exclude-outbound-ports", ""}
	// As istio-validation: an ordinary user without capabilities, the proxy's, before anything is installed and then again.
	validation := append(append(append([]string{}, in...), "setpriv", "--reuid=1337", "--regid=1337", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"), append(injected, "--verify-only")...)
	if out, err := do("ip", validation...); err == nil || !strings.Contains(out, "a connection to 10.88.7.2:15000 should have come to") {
		t.Errorf("without rules: %v: %q", err, out)
	}
	defer func() {
		if out, err := do("ip", validation...); err != nil || !strings.Contains(out, "interception is in place") || strings.Contains(out, "note:") {
			t.Errorf("with rules: %v: %q", err, out)
		}
	}()
	// The capabilities that injection gives, and no other.
	limited := append([]string{"setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all,+net_admin,+net_raw"}, injected...)
	for _, want := range []string{"interception rules installed with iptables-nft for IPv4 and IPv6, verified", "interception rules are in place already with iptables-nft for IPv4 and IPv6, verified"} {
		out, err := do("ip", append(append([]string{}, in...), limited...)...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: %q, want %q", err, out, want)
		}
	}
	// A node whose kernel has no iptables at all: nftables itself.
	broken := t.TempDir()
	for _, name := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		for _, end := range []string{"-save", "-restore"} {
			script := "#!/bin/sh\necho \"$0: can't initialize iptables table \\`nat': Table does not exist (do you need to insmod?)\" >&2\nexit 3\n"
			if err := os.WriteFile(filepath.Join(broken, name+end), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := do("ip", append(append([]string{}, in...), path, "init", "--remove")...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	withoutIPTables := append(append([]string{}, in...), "env", "PATH="+broken+":"+os.Getenv("PATH"))
	if out, err := do("ip", append(withoutIPTables, injected...)...); err != nil || !strings.Contains(out, "rules installed with nft for IPv4 and IPv6, verified") {
		t.Errorf("without iptables: %v\n%s", err, out)
	}
	out, err := do("ip", append(withoutIPTables, path, "init", "--backend", "iptables-legacy")...)
	if err == nil || !strings.Contains(out, "kernel lacks a module for interception: load iptable_nat") {
		t.Errorf("with a backend that does not work: %v\n%s", err, out)
	}
	out, err = do("ip", append(append([]string{}, in...), "setpriv", "--bounding-set=-net_admin", path, "init")...)
	if err == nil || !strings.Contains(out, "lacks the capability NET_ADMIN: add it to the init container") {
		t.Errorf("without NET_ADMIN: %v\n%s", err, out)
	}
	out, err = do("ip", append(append([]string{}, in...), "setpriv", "--reuid=1000", "--clear-groups", path, "init")...)
	if err == nil || !strings.Contains(out, "does not run as root") || strings.Count(strings.TrimSpace(out), "\n") != 0 {
		t.Errorf("as another user: %v\n%s", err, out)
	}
}
