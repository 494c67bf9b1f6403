package agent

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

var buildDir string // of the binary, to be removed in the end

// build makes the agent's binary, once for all tests.
var build = sync.OnceValues(func() (path string, err error) {
	dir, err := os.MkdirTemp("", "selvage-agent")
	if err != nil {
		return "", err
	}
	buildDir = dir
	path = filepath.Join(dir, "selvage-agent")
	cmd := exec.Command("go", "build", "-o", path, "../../cmd/selvage-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

func program(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs the binary with the environment and flags of a pod like c's. It gives the command and what it has logged.
func start(t *testing.T, path string, c Config, flags ...string) (*exec.Cmd, *logBuffer) {
	t.Helper()
	port := func(p uint16) string { return strconv.Itoa(int(p)) }
	cmd := exec.Command(path, append([]string{"proxy", "sidecar", "--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info",
		"--concurrency", "1", "--envoy", c.Envoy.Path, "--bootstrap", c.Paths.Bootstrap, "--xds-socket", c.Paths.XDSSocket, "--sds-socket", c.Paths.SDSSocket,
		"--token", c.Paths.Token, "--root-cert", c.Paths.Root, "--podinfo", c.Paths.PodInfo, "--admin-port", port(c.Ports.Admin),
		"--prometheus-port", port(c.Ports.EnvoyPrometheus), "--readiness-port", port(c.Ports.Readiness), "--agent-port", port(c.Ports.Agent),
		"--inbound-port", port(c.Ports.Inbound)}, flags...)...)
	cmd.Env = []string{"POD_NAME=web-1", "POD_NAMESPACE=shop", "INSTANCE_IP=127.0.0.1", "HOST_IP=127.0.0.1", "SERVICE_ACCOUNT=web", "TRUST_DOMAIN=cluster.local",
		`PROXY_CONFIG={"discoveryAddress":"` + c.Proxy.DiscoveryAddress + `","terminationDrainDuration":"0.3s"}`, "CA_ADDR=" + c.Proxy.DiscoveryAddress,
		"ISTIOD_SAN=istiod.istio-system.svc", "ISTIO_META_WORKLOAD_NAME=web"}
	log := &logBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	return cmd, log
}

func TestTheProgramAsInjectionStartsIt(t *testing.T) {
	t.Parallel()
	path := program(t)
	p := newPlane(t)
	p.start()
	c := newConfig(t, p)
	port, _, _ := app(t)
	p.set(appCluster(port), inboundListener(t, c.Ports.Inbound))
	cmd, _ := start(t, path, c)
	s := &sidecar{t: t, config: c, ended: make(chan error, 1)}
	s.untilReady(http.StatusOK)
	if _, _, err := call(meshClient(p, true), c.Ports.Inbound, "/"); err != nil {
		t.Error(err)
	}
	t.Logf("the agent's memory: %s; Envoy's: %s", resident(t, cmd.Process.Pid), resident(t, envoyPID(t, c.Paths.Bootstrap)))
	pid := envoyPID(t, c.Paths.Bootstrap)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit status 0", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("Envoy is still there: %v", err)
	}
}

func TestEnvoyDoesNotOutliveItsAgent(t *testing.T) {
	t.Parallel()
	path := program(t)
	p := newPlane(t)
	p.start()
	c := newConfig(t, p)
	cmd, _ := start(t, path, c)
	s := &sidecar{t: t, config: c, ended: make(chan error, 1)}
	s.untilReady(http.StatusOK)
	pid := envoyPID(t, c.Paths.Bootstrap)
	// Its parent is gone with it, so nobody but the kernel can tell when it has ended.
	poll, err := pidfdOpen(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := poll(); err != nil {
		t.Errorf("Envoy runs on: %v", err)
	}
}

func TestAProgramThatCannotRunSaysWhyAndExitsWith2(t *testing.T) {
	t.Parallel()
	path := program(t)
	p := newPlane(t)
	c := newConfig(t, p)
	c.Envoy.Path = "/nowhere/envoy"
	cmd, log := start(t, path, c)
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(log.String(), "selvage-agent: find the proxy: ") || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%v\n%s", err, log)
	}
}

func resident(t *testing.T, pid int) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if size, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(size)
		}
	}
	return "?"
}
