package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/selvage-mesh/selvage/internal/admission"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/validate"
	_ "github.com/selvage-mesh/selvage/internal/validate/envoytypes" // what EnvoyFilters name is looked into
)

// options are the flags of selvaged. Each is also an environment variable: --xds-addr is SELVAGE_XDS_ADDR.
type options struct {
	kubeconfig   string
	namespace    string
	revision     string
	xdsAddr      string
	xdsPlainAddr string
	// allowPlaintext lets xdsPlainAddr be another than a loopback address.
	allowPlaintext bool
	webhookAddr    string
	httpAddr       string
	clusterID      string
	trustDomain    string
	caKey          keyKind
	caAddress      string
	caSigner       string
	caRoots        string
	caTLSSecret    string
	logLevel       string
	probeAll       bool
	staleGrace     time.Duration
}

// keyKind is pki.KeyKind as a flag.
type keyKind struct{ pki.KeyKind }

func (k *keyKind) Set(s string) (err error) { k.KeyKind, err = pki.ParseKeyKind(s); return err }
func (k *keyKind) Type() string             { return "kind" }
func (k *keyKind) String() string {
	if k.KeyKind == pki.ECDSA {
		return "ecdsa"
	}
	return strconv.Itoa(int(k.KeyKind))
}

func (o *options) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig; in-cluster configuration when empty")
	f.StringVar(&o.namespace, "namespace", "istio-system", "namespace of the control plane, and the mesh's root namespace")
	f.StringVar(&o.revision, "revision", inject.DefaultRevision, "revision of this control plane")
	f.StringVar(&o.xdsAddr, "xds-addr", ":15012", "address of xDS and the CA, mutual TLS")
	f.StringVar(&o.xdsPlainAddr, "xds-plain-addr", "", "address of xDS without TLS, such as 127.0.0.1:15010: whoever reaches it is believed (off when empty)")
	f.BoolVar(&o.allowPlaintext, "allow-plaintext-xds", false, "let --xds-plain-addr be an address that others than this machine reach")
	f.StringVar(&o.webhookAddr, "webhook-addr", ":15017", "address of the webhooks")
	f.StringVar(&o.httpAddr, "http-addr", ":15014", "address of metrics, health and debug")
	f.StringVar(&o.clusterID, "cluster-id", inject.DefaultCluster, "name of this cluster: of pods whose injection names none, and of the tokens that are taken")
	f.StringVar(&o.trustDomain, "trust-domain", "cluster.local", "SPIFFE trust domain of the workloads' identities")
	f.BoolVar(&o.probeAll, "probe-all", false, "prove by dry runs that the webhooks of every revision work, not only this one's")
	f.Var(&o.caKey, "ca-key", "key of a self-signed root and of the control plane's own certificates: ecdsa (P-256), rsa (2048), or bits of RSA")
	f.StringVar(&o.caAddress, "ca-address", "", "HOST:PORT of another authority that signs for workloads by Istio's protocol, such as istio-csr's; none is kept here then")
	f.StringVar(&o.caSigner, "ca-signer", "", "signer of Kubernetes (certificates.k8s.io) that signs for workloads and this control plane, such as example.com/mesh")
	f.StringVar(&o.caRoots, "ca-roots", "", "roots of an authority elsewhere: a ConfigMap's name or a file (default: istio-ca-root-cert with --ca-address, meshConfig.caCertificates with --ca-signer)")
	f.StringVar(&o.caTLSSecret, "ca-tls-secret", "", "Secret (tls.crt, tls.key) of this control plane's own certificate (default: istiod-tls with --ca-address, made by --ca-signer)")
	f.DurationVar(&o.staleGrace, "stale-grace", revision.DefaultGrace, "for how long another revision's control plane must be gone before its webhooks are stale")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
}

// fromEnvironment sets every flag that the command line left alone from its SELVAGE_* variable.
func fromEnvironment(cmd *cobra.Command, lookup func(string) (string, bool)) error {
	for _, name := range flagNames(cmd) {
		variable := "SELVAGE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		value, ok := lookup(variable)
		if !ok || cmd.Flags().Changed(name) {
			continue
		}
		if err := cmd.Flags().Set(name, value); err != nil {
			return fmt.Errorf("read %s: %w", variable, err)
		}
	}
	return nil
}

// extraNames are what else the serving certificates must be good for: outside of a cluster the webhooks are called by
// address, and tests by localhost.
func (o *options) extraNames() []string {
	if o.kubeconfig == "" {
		return nil
	}
	names := []string{"localhost", "127.0.0.1"}
	for _, address := range []string{o.xdsAddr, o.webhookAddr} {
		if host, _, err := net.SplitHostPort(address); err == nil && host != "" {
			names = append(names, host)
		}
	}
	return names
}

// expectedWebhooks are the configurations by which the API server calls this revision.
func (o *options) expectedWebhooks() []admission.Key {
	return []admission.Key{
		{Kind: admission.Mutating, Name: inject.Registration{Revision: o.revision}.Name()},
		{Kind: admission.Validating, Name: validate.ConfigurationName(o.revision, o.namespace)},
	}
}

func (o *options) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("read --log-level %q: use debug, info, warn or error", o.logLevel)
	}
	return newLogger(os.Stderr, level), nil
}

// newLogger writes a line of JSON for each thing that is told, those of the Kubernetes client's and of net/http's own logs too. Durations are as people
// write them: a number would not say its unit.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	log := slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration {
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}}))
	slog.SetDefault(log) // that of package log too, by which net/http tells of handshakes that fail
	klog.SetSlogLogger(log.With("component", "kubernetes client"))
	return log
}
