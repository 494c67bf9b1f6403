// Package agent runs a proxy: it gets the workload's certificate, writes Envoy's bootstrap, starts Envoy and keeps it alive, stands
// between it and the control plane, answers the kubelet, and takes it out of service without losing a request.
//
// Its parts do not know each other: upstream (dialing the control plane), identity (the certificate), sds, relay (xDS), process
// (Envoy's life) and status (HTTP). This package puts them together.
package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/internal/agent/status"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// Config is all that the agent knows about where it runs.
type Config struct {
	Pod         Pod
	TrustDomain string // "cluster.local"
	ClusterID   string // "Kubernetes"
	// Domain ends the node ID: "NAMESPACE.svc.cluster.local".
	Domain string
	// Metadata is what ISTIO_META_NAME and ISTIO_METAJSON_NAME say, by NAME.
	Metadata map[string]any

	Proxy      ProxyConfig
	CAAddress  string // HOST:PORT; "" is the control plane's
	ServerName string // in the control plane's certificate; "" is the host of its address
	// CertificateLifetime is asked for (SECRET_TTL); 0 leaves it to the authority. GraceRatio is the part of it that is left at
	// renewal; 0 is a half.
	CertificateLifetime time.Duration
	GraceRatio          float64
	// Key is the kind of the workload's key (WORKLOAD_RSA_KEY_SIZE, in bits, for RSA); ECDSA P-256.
	Key pki.KeyKind

	Probes status.Probes
	Scrape []status.Scrape

	// BootstrapOverride is a file whose JSON or YAML Envoy merges over its bootstrap (ISTIO_BOOTSTRAP_OVERRIDE); "" is none.
	BootstrapOverride string
	// CPULimit is the container's limit in whole CPUs, rounded up (ISTIO_CPU_LIMIT); 0 is not known.
	CPULimit int

	Envoy Envoy
	Drain Drain
	Paths Paths
	Ports Ports

	Stdout *os.File  // Envoy's access log
	Stderr io.Writer // Envoy's log
	Log    *slog.Logger
}

// Pod is the pod that the agent is in.
type Pod struct {
	Name, Namespace, ServiceAccount string
	IP                              netip.Addr
	HostIP                          string
}

// Envoy says how Envoy is started.
type Envoy struct {
	Path              string
	LogLevel          string // "warning"
	ComponentLogLevel string // "misc:error,http:debug"
	Concurrency       *int   // worker threads; nil is by ProxyConfig or the CPU limit, 0 is one for each CPU
	MaxCrashes        int    // in a row, before the agent gives up; 0 is 10
}

// Drain says how the proxy is taken out of service.
type Drain struct {
	// ExitOnZeroActiveConnections waits until no inbound connection is left (EXIT_ON_ZERO_ACTIVE_CONNECTIONS), at least Minimum
	// (MINIMUM_DRAIN_DURATION), in place of ProxyConfig's TerminationDrainDuration.
	ExitOnZeroActiveConnections bool
	Minimum                     time.Duration
}

// Paths are the files and sockets that the agent shares with the kubelet and Envoy.
type Paths struct {
	Bootstrap string
	XDSSocket string
	SDSSocket string
	Token     string
	Root      string
	PodInfo   string // folder of the downward API's labels and annotations
}

// Ports are what the agent and Envoy listen on besides the interception's.
type Ports struct {
	Admin, EnvoyPrometheus uint16
	Readiness, Agent       uint16
	Status                 uint16 // serves what Agent does, too; 0 is none
	Inbound                uint16 // of the listener that the control plane sends, whose connections are counted when draining
}

// DefaultPaths are where an injected container has its volumes.
func DefaultPaths() Paths {
	return Paths{
		Bootstrap: "/etc/istio/proxy/envoy.json",
		XDSSocket: "/etc/istio/proxy/XDS",
		SDSSocket: "/var/run/secrets/workload-spiffe-uds/socket",
		Token:     "/var/run/secrets/tokens/istio-token",
		Root:      "/var/run/secrets/istio/root-cert.pem",
		PodInfo:   "/etc/istio/pod",
	}
}

// DefaultPorts are those that injection, the control plane and Istio's documents know.
func DefaultPorts() Ports {
	return Ports{Admin: envoy.AdminPort, EnvoyPrometheus: envoy.PrometheusPort, Readiness: 15021, Agent: 15020, Inbound: envoy.InboundPort}
}

// The prefixes of environment variables that become node metadata.
const (
	metaPrefix     = "ISTIO_META_"
	metaJSONPrefix = "ISTIO_METAJSON_"
)

// FromEnvironment reads the variables that injection sets (see docs and injection's sidecar) and a few of Istio's that people know.
// environ is KEY=VALUE, as os.Environ. The error names every variable that is missing or wrong.
func FromEnvironment(environ []string) (Config, error) {
	vars := map[string]string{}
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		vars[name] = value
	}
	return read(&reader{vars: vars})
}

// Reads reports whether FromEnvironment looks at the variable. Injection sets no other.
func Reads(name string) bool {
	r := &reader{}
	_, _ = read(r) // of an empty environment, for the names that it asks for
	return slices.Contains(r.asked, name) || strings.HasPrefix(name, metaPrefix) || strings.HasPrefix(name, metaJSONPrefix)
}

func read(r *reader) (Config, error) {
	c := Config{
		Pod: Pod{
			Name: r.required("POD_NAME"), Namespace: r.required("POD_NAMESPACE"), ServiceAccount: r.required("SERVICE_ACCOUNT"),
			HostIP: r.or("HOST_IP", ""),
		},
		TrustDomain: r.or("TRUST_DOMAIN", "cluster.local"),
		ClusterID:   r.or(metaPrefix+"CLUSTER_ID", "Kubernetes"),
		CAAddress:   r.or("CA_ADDR", ""),
		ServerName:  r.or("ISTIOD_SAN", ""),
		Metadata:    map[string]any{},
		Envoy:       Envoy{Path: "/usr/local/bin/envoy", LogLevel: "warning"},
		Drain:       Drain{ExitOnZeroActiveConnections: r.bool("EXIT_ON_ZERO_ACTIVE_CONNECTIONS"), Minimum: r.duration("MINIMUM_DRAIN_DURATION", 5*time.Second)},
		Paths:       DefaultPaths(),
		Ports:       DefaultPorts(),
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,

		CertificateLifetime: r.duration("SECRET_TTL", 0),
		GraceRatio:          r.ratio("SECRET_GRACE_PERIOD_RATIO"),
		BootstrapOverride:   r.or("ISTIO_BOOTSTRAP_OVERRIDE", ""),
	}
	r.parse("ISTIO_CPU_LIMIT", false, func(s string) (err error) {
		if c.CPULimit, err = strconv.Atoi(s); err != nil || c.CPULimit < 0 {
			return errors.New("want a whole number of CPUs")
		}
		return nil
	})
	r.parse("WORKLOAD_RSA_KEY_SIZE", false, func(s string) (err error) { c.Key, err = pki.ParseKeyKind(s); return err })
	c.Domain = c.Pod.Namespace + ".svc.cluster.local"
	r.parse("INSTANCE_IP", true, func(s string) (err error) {
		if c.Pod.IP, err = netip.ParseAddr(s); err != nil {
			return errors.New("want an IP address")
		}
		return nil
	})
	r.parse("PROXY_CONFIG", false, func(s string) (err error) { c.Proxy, err = ParseProxyConfig(s); return err })
	r.parse("ISTIO_KUBE_APP_PROBERS", false, func(s string) (err error) { c.Probes, err = status.ParseProbes(s); return err })
	r.parse("ISTIO_PROMETHEUS_ANNOTATIONS", false, func(s string) (err error) {
		c.Scrape, err = status.ParseScrape(s)
		return err
	})
	r.metadata(c.Metadata)
	if err := errors.Join(r.errs...); err != nil {
		return Config{}, fmt.Errorf("read the environment: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return c, nil
}

// Validate says what keeps the agent from running with the configuration.
func (c Config) Validate() error {
	if c.Proxy.DiscoveryAddress == "" {
		return errors.New("no control plane address: set discoveryAddress in PROXY_CONFIG (mesh.defaultConfig of the mesh configuration)")
	}
	if !c.Pod.IP.IsValid() {
		return errors.New("no pod address: set INSTANCE_IP from status.podIP")
	}
	if err := c.identity().Validate(); err != nil {
		return fmt.Errorf("identity of the workload: %w", err)
	}
	for _, s := range c.Scrape {
		if s.Port == c.Ports.Agent || s.Port == c.Ports.Status {
			return fmt.Errorf("scrape the application on port %d: it is the agent's own (annotation prometheus.io/port)", s.Port)
		}
	}
	for what, path := range map[string]string{"bootstrap": c.Paths.Bootstrap, "xDS socket": c.Paths.XDSSocket, "SDS socket": c.Paths.SDSSocket} {
		if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
			return fmt.Errorf("no folder for the %s: %s must exist and be writable (an emptyDir volume of the pod)", what, filepath.Dir(path))
		}
	}
	return nil
}

func (c Config) identity() pki.Identity {
	return pki.Identity{TrustDomain: c.TrustDomain, Namespace: c.Pod.Namespace, ServiceAccount: c.Pod.ServiceAccount}
}

// reader reads variables and collects what is wrong with them.
type reader struct {
	vars  map[string]string
	asked []string // names, in the order in which they were looked up
	errs  []error
}

func (r *reader) get(name string) string {
	r.asked = append(r.asked, name)
	return r.vars[name]
}

func (r *reader) required(name string) string {
	v := r.get(name)
	if v == "" {
		r.errs = append(r.errs, fmt.Errorf("%s is not set", name))
	}
	return v
}

func (r *reader) or(name, otherwise string) string {
	if v := r.get(name); v != "" {
		return v
	}
	return otherwise
}

func (r *reader) parse(name string, required bool, parse func(string) error) {
	v := r.get(name)
	if v == "" {
		if required {
			r.required(name)
		}
		return
	}
	if err := parse(v); err != nil {
		r.errs = append(r.errs, fmt.Errorf("%s=%q: %w", name, v, err))
	}
}

func (r *reader) bool(name string) (v bool) {
	r.parse(name, false, func(s string) (err error) {
		if v, err = strconv.ParseBool(s); err != nil {
			return errors.New("want true or false")
		}
		return nil
	})
	return v
}

func (r *reader) duration(name string, otherwise time.Duration) time.Duration {
	r.parse(name, false, func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return errors.New("want a duration such as 5s")
		}
		otherwise = d
		return nil
	})
	return otherwise
}

func (r *reader) ratio(name string) (v float64) {
	r.parse(name, false, func(s string) (err error) {
		if v, err = strconv.ParseFloat(s, 64); err != nil || v <= 0 || v >= 1 {
			return errors.New("want a number between 0 and 1")
		}
		return nil
	})
	return v
}
