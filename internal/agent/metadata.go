package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/selvage-mesh/selvage/internal/version"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// ProxyConfig is what the agent reads of istio.mesh.v1alpha1.ProxyConfig. The proto itself would link Istio's whole networking API.
type ProxyConfig struct {
	DiscoveryAddress         string
	Concurrency              *int
	DrainDuration            time.Duration // how long Envoy's own gradual drain would take: the listeners stay open at least this long
	TerminationDrainDuration time.Duration // how long the proxy serves on after SIGTERM
	FileFlushInterval        time.Duration // how long an access log may wait in memory; 0 is a second
	FileFlushMinSizeKB       int           // and how much of it; 0 is Envoy's 64
	// StatsMatcher adds to the statistics that are kept. Annotations of the pod win, kind by kind.
	StatsMatcher struct{ Prefixes, Suffixes, Regexps []string }
	// RuntimeValues are Envoy's runtime features and values, by name.
	RuntimeValues map[string]string
	raw           map[string]any
}

// Istio's defaults (mesh/v1alpha1/proxy.proto).
const (
	defaultDrain            = 45 * time.Second
	defaultTerminationDrain = 5 * time.Second
)

// ParseProxyConfig reads PROXY_CONFIG, the message's JSON form. Fields that the agent does not read are passed over.
func ParseProxyConfig(text string) (ProxyConfig, error) {
	c := ProxyConfig{DrainDuration: defaultDrain, TerminationDrainDuration: defaultTerminationDrain}
	var in struct {
		DiscoveryAddress         string          `json:"discoveryAddress"`
		Concurrency              json.RawMessage `json:"concurrency"`
		DrainDuration            string          `json:"drainDuration"`
		TerminationDrainDuration string          `json:"terminationDrainDuration"`
		FileFlushInterval        string          `json:"fileFlushInterval"`
		FileFlushMinSizeKB       uint16          `json:"fileFlushMinSizeKb"`
		StatsMatcher             struct {
			Prefixes []string `json:"inclusionPrefixes"`
			Suffixes []string `json:"inclusionSuffixes"`
			Regexps  []string `json:"inclusionRegexps"`
		} `json:"proxyStatsMatcher"`
		RuntimeValues map[string]string `json:"runtimeValues"`
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	if err := decoder.Decode(&in); err != nil {
		return c, fmt.Errorf("want the JSON of a ProxyConfig: %w", err)
	}
	if err := json.Unmarshal([]byte(text), &c.raw); err != nil {
		return c, fmt.Errorf("want the JSON of a ProxyConfig: %w", err)
	}
	c.DiscoveryAddress, c.RuntimeValues, c.FileFlushMinSizeKB = in.DiscoveryAddress, in.RuntimeValues, int(in.FileFlushMinSizeKB)
	c.StatsMatcher.Prefixes, c.StatsMatcher.Suffixes, c.StatsMatcher.Regexps = in.StatsMatcher.Prefixes, in.StatsMatcher.Suffixes, in.StatsMatcher.Regexps
	if text := strings.Trim(string(in.Concurrency), `"`); text != "" && text != "null" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return c, fmt.Errorf("concurrency %s: want a number of threads", in.Concurrency)
		}
		threads := int(n)
		c.Concurrency = &threads
	}
	for _, d := range []struct {
		name, text string
		into       *time.Duration
	}{{"drainDuration", in.DrainDuration, &c.DrainDuration}, {"terminationDrainDuration", in.TerminationDrainDuration, &c.TerminationDrainDuration},
		{"fileFlushInterval", in.FileFlushInterval, &c.FileFlushInterval}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil || v < 0 || v.Seconds() > math.MaxInt32 {
			return c, fmt.Errorf("%s %q: want seconds, such as 5s", d.name, d.text)
		}
		*d.into = v
	}
	return c, nil
}

// metadata takes ISTIO_META_NAME as text and ISTIO_METAJSON_NAME as JSON.
func (r *reader) metadata(into map[string]any) {
	for name, value := range r.vars {
		if key, ok := strings.CutPrefix(name, metaPrefix); ok {
			into[key] = value
		} else if key, ok := strings.CutPrefix(name, metaJSONPrefix); ok {
			var v any
			if err := json.Unmarshal([]byte(value), &v); err != nil {
				r.errs = append(r.errs, fmt.Errorf("%s: %w", name, err))
				continue
			}
			into[key] = v
		}
	}
}

// nodeMetadata is what the control plane is told about the pod, under Istio's names.
func (c Config) nodeMetadata() (map[string]any, error) {
	m := map[string]any{}
	for key, value := range c.Metadata {
		m[key] = value
	}
	for key, value := range map[string]string{
		"NAME": c.Pod.Name, "NAMESPACE": c.Pod.Namespace, "SERVICE_ACCOUNT": c.Pod.ServiceAccount, "CLUSTER_ID": c.ClusterID,
		"INSTANCE_IPS": strings.Join(c.addresses(), ","), "ISTIO_VERSION": version.Version, "HOST_IP": c.Pod.HostIP,
	} {
		if value != "" {
			m[key] = value
		}
	}
	if len(c.Proxy.raw) > 0 {
		m["PROXY_CONFIG"] = c.Proxy.raw
	}
	for key, file := range map[string]string{"LABELS": "labels", "ANNOTATIONS": "annotations"} {
		values, err := readDownward(filepath.Join(c.Paths.PodInfo, file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(values) > 0 {
			m[key] = values
		}
		if rev, ok := values["istio.io/rev"]; ok && key == "ANNOTATIONS" {
			m["ISTIO_REVISION"] = rev
		}
	}
	return m, nil
}

// readDownward reads a file of the downward API: a line KEY="VALUE" for each entry, the value quoted as in Go.
func readDownward(path string) (map[string]any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			continue
		}
		key, quoted, ok := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if !ok || err != nil {
			return nil, fmt.Errorf("read %s: line %q is not KEY=\"VALUE\"", path, line)
		}
		values[key] = value
	}
	return values, nil
}

// addresses are the pod's, INSTANCE_IP first.
func (c Config) addresses() []string {
	list := []string{c.Pod.IP.String()}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return list
	}
	for _, a := range own {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().IsGlobalUnicast() || p.Addr() == c.Pod.IP || p.Addr().Is6() == c.Pod.IP.Is6() || p.Addr() == handedOver6 {
			continue // of the other family only: Kubernetes gives a pod at most one of each
		}
		return append(list, p.Addr().String())
	}
	return list
}

// handedOver6 is put on the loopback device by the interception.
var handedOver6 = netip.MustParseAddr("::6")

// writeBootstrap writes Envoy's configuration. Memory-backed emptyDir volumes have no room problem, so it is written in one go, and
// under another name first: Envoy must not start with half of it.
func (c Config) writeBootstrap() error {
	metadata, err := c.nodeMetadata()
	if err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	workload, _ := c.Metadata["WORKLOAD_NAME"].(string)
	if workload == "" {
		workload = c.Pod.Name
	}
	ipv6 := c.Pod.IP.Is6() || len(c.addresses()) > 1
	annotations, _ := metadata["ANNOTATIONS"].(map[string]any)
	stats, err := c.stats(annotations)
	if err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	b, err := envoy.Bootstrap(envoy.BootstrapConfig{
		NodeID:         fmt.Sprintf("sidecar~%s~%s.%s~%s", c.Pod.IP, c.Pod.Name, c.Pod.Namespace, c.Domain),
		Cluster:        workload + "." + c.Pod.Namespace,
		Metadata:       metadata,
		XDSSocket:      c.Paths.XDSSocket,
		SDSSocket:      c.Paths.SDSSocket,
		AdminPort:      uint32(c.Ports.Admin),
		PrometheusPort: uint32(c.Ports.EnvoyPrometheus),
		IPv6:           ipv6,
		Stats:          stats,
		Runtime:        c.Proxy.RuntimeValues,
	})
	if err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	data, err := protojson.Marshal(b)
	if err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	var pretty bytes.Buffer // people read it
	if err := json.Indent(&pretty, data, "", "  "); err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	part := c.Paths.Bootstrap + ".part"
	if err := os.WriteFile(part, pretty.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	if err := os.Rename(part, c.Paths.Bootstrap); err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	return nil
}
