package agent

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/agent/status"
)

// injected is the environment of a sidecar container.
var injected = []string{
	"POD_NAME=web-1", "POD_NAMESPACE=shop", "INSTANCE_IP=10.1.2.3", "HOST_IP=10.0.0.1", "SERVICE_ACCOUNT=web",
	`PROXY_CONFIG={"discoveryAddress":"istiod.istio-system.svc:15012","concurrency":3,"terminationDrainDuration":"7s","drainDuration":"30s","statusPort":15020}`,
	"CA_ADDR=istiod.istio-system.svc:15012", "TRUST_DOMAIN=example.org", "ISTIO_META_CLUSTER_ID=east", "ISTIO_META_WORKLOAD_NAME=web",
	`ISTIO_META_POD_PORTS=[{"name":"http","containerPort":8080}]`, `ISTIO_METAJSON_STATS={"a":[1]}`,
	`ISTIO_KUBE_APP_PROBERS={"/app-health/web/readyz":{"httpGet":{"path":"/ok","port":8080},"timeoutSeconds":1}}`,
	`ISTIO_PROMETHEUS_ANNOTATIONS={"scrape":"true","path":"/m","port":"9090"}`,
	"EXIT_ON_ZERO_ACTIVE_CONNECTIONS=true", "MINIMUM_DRAIN_DURATION=2s", "SECRET_TTL=1h0m0s", "SECRET_GRACE_PERIOD_RATIO=0.4", "PATH=/bin",
}

func TestTheEnvironmentOfAnInjectedPod(t *testing.T) {
	c, err := FromEnvironment(injected)
	if err != nil {
		t.Fatal(err)
	}
	if c.Pod.Name != "web-1" || c.Pod.IP.String() != "10.1.2.3" || c.Pod.HostIP != "10.0.0.1" || c.TrustDomain != "example.org" || c.ClusterID != "east" {
		t.Errorf("pod %+v, trust domain %s, cluster %s", c.Pod, c.TrustDomain, c.ClusterID)
	}
	if c.Proxy.DiscoveryAddress != "istiod.istio-system.svc:15012" || *c.Proxy.Concurrency != 3 || c.workers() != 3 ||
		c.Proxy.TerminationDrainDuration != 7*time.Second || c.Proxy.DrainDuration != 30*time.Second {
		t.Errorf("proxy config %+v", c.Proxy)
	}
	if !c.Drain.ExitOnZeroActiveConnections || c.Drain.Minimum != 2*time.Second || c.CertificateLifetime != time.Hour || c.GraceRatio != 0.4 {
		t.Errorf("drain %+v, lifetime %s, ratio %g", c.Drain, c.CertificateLifetime, c.GraceRatio)
	}
	if len(c.Probes) != 1 || len(c.Scrape) != 1 || c.Scrape[0] != (status.Scrape{Port: 9090, Path: "/m"}) {
		t.Errorf("probes %v, scrape %v", c.Probes, c.Scrape)
	}
	c.Paths.PodInfo = t.TempDir()
	meta, err := c.nodeMetadata()
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"NAME": "web-1", "NAMESPACE": "shop", "CLUSTER_ID": "east", "WORKLOAD_NAME": "web", "SERVICE_ACCOUNT": "web",
		"POD_PORTS": `[{"name":"http","containerPort":8080}]`, "HOST_IP": "10.0.0.1"} {
		if meta[key] != want {
			t.Errorf("%s = %v, want %v", key, meta[key], want)
		}
	}
	if _, ok := meta["STATS"].(map[string]any); !ok {
		t.Errorf("STATS = %v", meta["STATS"])
	}
	args, err := c.envoyArgs()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{{"--concurrency", "3"}, {"--drain-time-s", "30"}, {"--drain-strategy", "immediate"}, {"--log-level", "warning"},
		{"--local-address-ip-version", "v4"}, {"--file-flush-interval-msec", "1000"}} {
		if i := slices.Index(args, want[0]); i < 0 || args[i+1] != want[1] {
			t.Errorf("Envoy's arguments %q lack %q", args, want)
		}
	}
}

// TestStatisticsOfAPod: the pod's annotations win over ProxyConfig, kind by kind.
func TestStatisticsOfAPod(t *testing.T) {
	c, err := FromEnvironment(append(slices.Clone(injected), `PROXY_CONFIG={"discoveryAddress":"a:1","proxyStatsMatcher":{"inclusionPrefixes":["a."],"inclusionSuffixes":[".s"]},"runtimeValues":{"x.y":"7"},"fileFlushInterval":"3s","fileFlushMinSizeKb":8}`, "ISTIO_CPU_LIMIT=1"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.stats(map[string]any{statsPrefixes: "b., http.{pod_ip}_", statsRegexps: "x.*", statsEviction: "10s", statsBuckets: `{"cluster":[1,2.5]}`})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Prefixes, []string{"b.", "http.10.1.2.3_"}) && len(c.addresses()) == 1 || !slices.Equal(s.Suffixes, []string{".s"}) || !slices.Equal(s.Regexps, []string{"x.*"}) ||
		s.EvictionInterval != 10*time.Second || s.FlushInterval != 5*time.Second || len(s.Buckets["cluster"]) != 2 {
		t.Errorf("statistics %+v", s)
	}
	for name, value := range map[string]string{statsFlush: "soon", statsEviction: "-1s", statsBuckets: "[]"} {
		if _, err := c.stats(map[string]any{name: value}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c.workers() != 1 || c.Proxy.RuntimeValues["x.y"] != "7" {
		t.Errorf("%d workers, runtime %v", c.workers(), c.Proxy.RuntimeValues)
	}
	args, err := c.envoyArgs()
	for _, want := range [][]string{{"--file-flush-interval-msec", "3000"}, {"--file-flush-min-size-kb", "8"}, {"--concurrency", "1"}} {
		if i := slices.Index(args, want[0]); err != nil || i < 0 || args[i+1] != want[1] {
			t.Errorf("Envoy's arguments %q lack %q", args, want)
		}
	}
}

// TestBootstrapOverride: what the pod wants changed is given to Envoy, which merges it; what cannot be read is named.
func TestBootstrapOverride(t *testing.T) {
	file := filepath.Join(t.TempDir(), "custom_bootstrap.json")
	c, err := FromEnvironment(append(slices.Clone(injected), "ISTIO_BOOTSTRAP_OVERRIDE="+file))
	if err != nil {
		t.Fatal(err)
	}
	for want, text := range map[string]string{"is no text": "\x00", "the most is": strings.Repeat("a", 200<<10)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.envoyArgs(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	const over = `{"stats_flush_interval":"1s"}`
	if err := os.WriteFile(file, []byte(over), 0o600); err != nil {
		t.Fatal(err)
	}
	args, err := c.envoyArgs()
	if i := slices.Index(args, "--config-yaml"); err != nil || i < 0 || args[i+1] != over {
		t.Errorf("Envoy's arguments %q (error %v)", args, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := c.envoyArgs(); err == nil || !strings.Contains(err.Error(), "sidecar.istio.io/bootstrapOverride names needs the key custom_bootstrap.json") {
		t.Errorf("without the file: %v", err)
	}
}

func TestEveryVariableThatIsWrongIsNamed(t *testing.T) {
	_, err := FromEnvironment([]string{"POD_NAME=web-1", "INSTANCE_IP=nonsense", "PROXY_CONFIG={\"drainDuration\":\"soon\"}", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS=perhaps",
		"ISTIO_KUBE_APP_PROBERS={\"/app-health/x/readyz\":{}}", "ISTIO_METAJSON_X={", "SECRET_GRACE_PERIOD_RATIO=2", "MINIMUM_DRAIN_DURATION=-1s"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{"POD_NAMESPACE is not set", "SERVICE_ACCOUNT is not set", `INSTANCE_IP="nonsense"`, "drainDuration", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
		"none of httpGet, tcpSocket and grpc", "ISTIO_METAJSON_X", "SECRET_GRACE_PERIOD_RATIO", "MINIMUM_DRAIN_DURATION"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name %q", err, name)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %v", err)
	}
}

func TestProxyConfigHasDefaults(t *testing.T) {
	c, err := ParseProxyConfig("{}")
	if err != nil || c.TerminationDrainDuration != 5*time.Second || c.DrainDuration != 45*time.Second || c.Concurrency != nil {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := ParseProxyConfig(`{"concurrency":"0"}`); err != nil || *c.Concurrency != 0 { // protojson takes numbers in quotes
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []string{"", "[]", `{"concurrency":-1}`, `{"concurrency":1.5}`, `{"terminationDrainDuration":"-5s"}`, `{"discoveryAddress":7}`} {
		if _, err := ParseProxyConfig(bad); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	if n := (Config{}).workers(); n < 1 || n > runtime.NumCPU() {
		t.Errorf("%d workers", n)
	}
}

func TestDownwardFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "annotations")
	if err := os.WriteFile(path, []byte("a=\"1\"\nb.c/d=\"x=y\\n\\\"z\\\"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readDownward(path)
	if err != nil || got["a"] != "1" || got["b.c/d"] != "x=y\n\"z\"" || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("no quotes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readDownward(path); err == nil {
		t.Error("no error")
	}
}

func TestWhatKeepsTheAgentFromRunning(t *testing.T) {
	good, err := FromEnvironment(injected)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	good.Paths = Paths{Bootstrap: dir + "/b", XDSSocket: dir + "/x", SDSSocket: dir + "/s"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"discoveryAddress":  func(c *Config) { c.Proxy.DiscoveryAddress = "" },
		"service account":   func(c *Config) { c.Pod.ServiceAccount = "a/b" },
		"emptyDir":          func(c *Config) { c.Paths.SDSSocket = "/nowhere/socket" },
		"INSTANCE_IP":       func(c *Config) { c.Pod.IP = (Pod{}).IP },
		"trust domain":      func(c *Config) { c.TrustDomain = "" },
		"folder for the xD": func(c *Config) { c.Paths.XDSSocket = "/nowhere/XDS" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
