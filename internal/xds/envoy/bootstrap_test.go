package envoy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/selvage-mesh/selvage/internal/testneed"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

func config() envoy.BootstrapConfig {
	return envoy.BootstrapConfig{
		NodeID: "sidecar~10.1.0.5~web-0.shop~shop.svc.cluster.local", Cluster: "web.shop",
		Metadata:  map[string]any{"NAMESPACE": "shop", "LABELS": map[string]any{"app": "web"}},
		XDSSocket: "/etc/istio/proxy/XDS", SDSSocket: "/var/run/secrets/workload-spiffe-uds/socket",
	}
}

func TestEnvoyTakesTheBootstrap(t *testing.T) {
	for name, change := range map[string]func(*envoy.BootstrapConfig){
		"default":   func(*envoy.BootstrapConfig) {},
		"IPv6":      func(c *envoy.BootstrapConfig) { c.IPv6 = true },
		"locality":  func(c *envoy.BootstrapConfig) { c.Locality = envoy.Locality{Region: "eu", Zone: "a"} },
		"bounded":   func(c *envoy.BootstrapConfig) { c.MaxConnections = 1000 },
		"own ports": func(c *envoy.BootstrapConfig) { c.AdminPort, c.PrometheusPort = 25000, 25090 },
		"statistics": func(c *envoy.BootstrapConfig) {
			c.Stats = envoy.StatsConfig{Prefixes: []string{"dns."}, Suffixes: []string{".upstream_rq_time"}, Regexps: []string{`listener\..*`}}
		},
		"intervals and buckets": func(c *envoy.BootstrapConfig) {
			c.Stats = envoy.StatsConfig{FlushInterval: 5 * time.Second, EvictionInterval: time.Minute, Buckets: map[string][]float64{"cluster": {1, 2.5}, "http": {10}}}
		},
		"runtime": func(c *envoy.BootstrapConfig) {
			c.Runtime = map[string]string{"overload.global_downstream_max_connections": "1000", "envoy.reloadable_features.no_extension_lookup_by_name": "true", "a.b": "text"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := config()
			change(&c)
			b, err := envoy.Bootstrap(c)
			if err != nil {
				t.Fatal(err)
			}
			text, err := protojson.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "envoy.json")
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(testneed.Envoy(t), "--mode", "validate", "-c", file, "-l", "warning").CombinedOutput()
			if err != nil || strings.Contains(string(out), "[warning]") {
				t.Errorf("Envoy says: %v\n%s", err, out)
			}
		})
	}
}

func TestAFaultyBootstrapIsNamed(t *testing.T) {
	for want, change := range map[string]func(*envoy.BootstrapConfig){
		"NodeID is empty":                  func(c *envoy.BootstrapConfig) { c.NodeID = "" },
		"Cluster is empty":                 func(c *envoy.BootstrapConfig) { c.Cluster = "" },
		"SDSSocket is empty":               func(c *envoy.BootstrapConfig) { c.SDSSocket = "" },
		"a Unix socket's path has at most": func(c *envoy.BootstrapConfig) { c.XDSSocket = "/" + strings.Repeat("x", 107) },
		"a port is at most 65535":          func(c *envoy.BootstrapConfig) { c.AdminPort = 70000 },
		"are the same":                     func(c *envoy.BootstrapConfig) { c.PrometheusPort = 15000 },
		"no multiple of the flush":         func(c *envoy.BootstrapConfig) { c.Stats.FlushInterval, c.Stats.EvictionInterval = 5e9, 7e9 },
		"want whole milliseconds":          func(c *envoy.BootstrapConfig) { c.Stats.FlushInterval = time.Hour },
		"MaxConnections is -1":             func(c *envoy.BootstrapConfig) { c.MaxConnections = -1 },
		"node metadata":                    func(c *envoy.BootstrapConfig) { c.Metadata = map[string]any{"X": make(chan int)} },
	} {
		c := config()
		change(&c)
		if _, err := envoy.Bootstrap(c); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "build bootstrap: ") {
			t.Errorf("want an error that says %q: %v", want, err)
		}
	}
}

// TestControlPlaneIsFoundAgainSoon: the wait before the stream is opened again must stay far below Envoy's default of 30 s.
func TestControlPlaneIsFoundAgainSoon(t *testing.T) {
	b, err := envoy.Bootstrap(config())
	if err != nil {
		t.Fatal(err)
	}
	backOff := b.GetDynamicResources().GetAdsConfig().GetGrpcServices()[0].GetEnvoyGrpc().GetRetryPolicy().GetRetryBackOff()
	base, most := backOff.GetBaseInterval().AsDuration(), backOff.GetMaxInterval().AsDuration()
	if base.Milliseconds() < 100 || base.Milliseconds() > 200 || most.Seconds() != 5 {
		t.Errorf("it grows from %v to %v, want 100-200 ms to 5 s", base, most)
	}
}
