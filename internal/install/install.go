// Package install knows every object that makes up a control plane in a cluster: it renders them (Render, pure), applies
// them in the order in which they can work (Installer.Install), and takes them away again (Installer.Uninstall).
//
// Everything it makes carries the label selvage/owner=selvage, and app.kubernetes.io/managed-by=selvage, which Helm makes its own
// where the chart is used. What exists under one of its names with neither belongs to somebody else, and nothing is changed then;
// nor is anything that Helm keeps.
package install

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// Names and labels that other parts of Selvage, and people's runbooks, rely on.
const (
	Namespace       = "istio-system"
	DefaultRevision = "default" // the revision that "" stands for; its objects carry no suffix

	OwnerLabel     = revision.OwnerLabel
	ManagedByLabel = revision.ManagedByLabel
	Owner          = revision.Owner

	// FieldManager owns what the installer applies. The caBundle of webhooks is never among it: the control plane's own
	// manager keeps that, so that installing again cannot wipe it.
	FieldManager = "selvage-install"

	// ReaderAccount is the service account whose tokens may read the control plane's debug pages.
	ReaderAccount = "selvage-reader"
	// ReaderAudience is the audience of such a token.
	ReaderAudience = "selvage"
	// DebugPath is what ReaderAccount may GET.
	DebugPath = "/debug/syncz"

	// StatusAddressAnnotation on the Service carries Options.StatusAddress.
	StatusAddressAnnotation = "selvage/status-address"

	appLabel = "app"
	appName  = "istiod"
)

// Ports of the control plane.
const (
	XDSPort     = 15012
	WebhookPort = 15017
	HTTPPort    = 15014
)

// Options say what to install. The zero value is not usable: call Default.
type Options struct {
	Revision    string // "" or "default" for the default revision
	Version     string // the release, for a human to read
	Image       string // selvaged, in full: docker.io/selvage/selvaged:1.0.0
	ProxyImage  string // the sidecar and its init container
	PullPolicy  string // of the control plane's image; "" leaves it to Kubernetes
	Replicas    int32
	ClusterID   string
	TrustDomain string // "" for the mesh configuration's, which is cluster.local when that says nothing
	LogLevel    string // of selvaged; "" for its default

	// Resources are those of a replica; the zero value asks for what a small mesh takes and limits nothing.
	Resources corev1.ResourceRequirements
	// NativeSidecars is "true", "false" or "auto": whether sidecars are init containers that go on running; "" is auto.
	NativeSidecars string

	// Endpoint leads the control plane's Service to a selvaged that runs outside the cluster, instead of a Deployment.
	Endpoint *Endpoint
	// WebhookURL, such as https://127.0.0.1:15017, makes the API server call the webhook there instead of by the Service.
	WebhookURL string

	// StatusAddress, HOST:PORT, is where an operator's machine reaches the status port of a control plane outside the cluster,
	// when that is not where the cluster reaches it. It is written onto the Service.
	StatusAddress string

	// Tags are other names of this revision, for the label istio.io/rev. The tag inject.DefaultTag makes it the default
	// revision: the one that istio-injection=enabled leads to.
	Tags []string
	// EnableNamespacesByDefault gives sidecars also to pods of namespaces that no label speaks of. It takes effect on the default
	// revision.
	EnableNamespacesByDefault bool

	Authority Authority // who signs certificates

	MeshConfig []byte // YAML of a MeshConfig that replaces the built-in one; nil for that
	SkipCRDs   bool   // use the custom resource definitions of Istio's API that the cluster has

	// HeldWebhooks lets the API server put the right caBundle into every write of the revision's webhooks, by an admission policy.
	HeldWebhooks bool
	// Guards are the admission policies that look for what harms a mesh.
	Guards policy.Guards
	// Injection is who injects: ByWebhook ("" too), ByPolicy, or AutoInjection for the policy where the API server and the templates allow it.
	Injection string
	// MutatingPolicies is the version of MutatingAdmissionPolicy that is rendered: v1, v1beta1, or "" for a cluster that has none. An
	// Installer takes what the API server serves.
	MutatingPolicies string
}

// Default gives the options of a plain installation of one release.
func Default(version string) Options {
	o := Options{Version: version, Replicas: 2, ClusterID: "Kubernetes", PullPolicy: "IfNotPresent",
		HeldWebhooks: true, Guards: policy.DefaultGuards(), MutatingPolicies: policy.MutatingVersions[0]}
	return o.WithImages("docker.io/selvage", version)
}

// WithImages gives o with both images from one registry and of one tag.
func (o Options) WithImages(registry, tag string) Options {
	registry = strings.TrimSuffix(registry, "/")
	o.Image = registry + "/selvaged:" + tag
	o.ProxyImage = registry + "/proxy:" + tag
	return o
}

// revision is the name that labels carry.
func (o Options) revision() string {
	if o.Revision == "" {
		return DefaultRevision
	}
	return o.Revision
}

// Name is base for the default revision and base-REV for any other.
func (o Options) Name(base string) string {
	if o.revision() == DefaultRevision {
		return base
	}
	return base + "-" + o.Revision
}

// inCluster reports whether selvaged runs as a Deployment.
func (o Options) inCluster() bool { return o.Endpoint == nil && o.WebhookURL == "" }

// labels are those of an object that belongs to this revision alone.
func (o Options) labels() map[string]string {
	labels := map[string]string{label.IoIstioRev.Name: o.revision(), appLabel: appName}
	revision.Own(labels)
	return labels
}

// selector matches this revision's control plane pods.
func (o Options) selector() map[string]string {
	return map[string]string{appLabel: appName, label.IoIstioRev.Name: o.revision()}
}

// sharedLabels are those of an object that all revisions share.
func sharedLabels() map[string]string {
	labels := map[string]string{}
	revision.Own(labels)
	return labels
}

var imageReference = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$`)

// Validate reports the first option that cannot be used.
func (o Options) Validate() error {
	// The longest name made of it is a Service's, which is a DNS label.
	if problems := validation.IsDNS1123Label(o.Name(appName)); len(problems) > 0 {
		return fmt.Errorf("revision %q cannot be used in names such as %s: %s", o.Revision, o.Name(appName), problems[0])
	}
	for _, image := range []string{o.Image, o.ProxyImage} {
		if !imageReference.MatchString(image) {
			return fmt.Errorf("image %q is not a reference such as docker.io/selvage/selvaged:1.0.0", image)
		}
	}
	if o.inCluster() && o.Replicas < 1 {
		return fmt.Errorf("replicas is %d: a control plane needs at least 1", o.Replicas)
	}
	if !slices.Contains([]string{"", "auto", "true", "false"}, o.NativeSidecars) {
		return fmt.Errorf("native sidecars %q: it is true, false or auto", o.NativeSidecars)
	}
	if err := o.Authority.validate(); err != nil {
		return err
	}
	if o.ClusterID == "" {
		return fmt.Errorf("the cluster's id may not be empty")
	}
	if o.StatusAddress != "" {
		if _, _, err := net.SplitHostPort(o.StatusAddress); err != nil || o.inCluster() {
			return fmt.Errorf("status address %q: it is HOST:PORT, of a control plane outside the cluster (--endpoint or --webhook-url)", o.StatusAddress)
		}
	}
	for _, tag := range o.Tags {
		if problems := validation.IsDNS1123Label(tag); len(problems) > 0 {
			return fmt.Errorf("tag %q cannot be used: %s", tag, problems[0])
		}
		if tag == o.revision() {
			return fmt.Errorf("tag %q is the revision's own name: a tag is another name for it", tag)
		}
	}
	if o.EnableNamespacesByDefault && o.revision() != DefaultRevision && !slices.Contains(o.Tags, inject.DefaultTag) {
		return fmt.Errorf("namespaces without a label get sidecars from the default revision: make revision %s that one (--set-default)", o.revision())
	}
	if !slices.Contains([]string{"", AutoInjection, ByPolicy, ByWebhook}, o.Injection) {
		return fmt.Errorf("injection %q: it is auto, policy or webhook", o.Injection)
	}
	if o.MutatingPolicies != "" && !slices.Contains(policy.MutatingVersions, o.MutatingPolicies) {
		return fmt.Errorf("version %q of MutatingAdmissionPolicy is not known: %s are, and none", o.MutatingPolicies, list(policy.MutatingVersions))
	}
	if o.WebhookURL == "" {
		return nil
	}
	u, err := url.Parse(o.WebhookURL)
	if err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("webhook URL %q is not of the form https://HOST:PORT", o.WebhookURL)
	}
	return nil
}

// Endpoint is a selvaged that runs outside the cluster, as the API server and the nodes reach it.
type Endpoint struct {
	Address            netip.Addr
	XDS, Webhook, HTTP int32
}

// ParseEndpoint reads ADDRESS[:xds=PORT,webhook=PORT,http=PORT]; IPv6 addresses with ports go in brackets.
func ParseEndpoint(s string) (*Endpoint, error) {
	host, ports := s, ""
	if rest, ok := strings.CutPrefix(s, "["); ok {
		var after string
		if host, after, ok = strings.Cut(rest, "]"); !ok {
			return nil, fmt.Errorf("endpoint %q: the bracket is not closed", s)
		}
		ports = strings.TrimPrefix(after, ":")
	} else if _, err := netip.ParseAddr(s); err != nil {
		host, ports, _ = strings.Cut(s, ":")
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %q is not an IP address", s, host)
	}
	if address.IsLoopback() || address.IsUnspecified() || address.IsLinkLocalUnicast() || address.IsMulticast() {
		return nil, fmt.Errorf("endpoint %q: Kubernetes refuses loopback, link-local and multicast addresses in a Service; "+
			"use an address of a network interface, or --webhook-url https://%s", s, netip.AddrPortFrom(address, WebhookPort))
	}
	e := &Endpoint{Address: address, XDS: XDSPort, Webhook: WebhookPort, HTTP: HTTPPort}
	if ports == "" {
		return e, nil
	}
	for pair := range strings.SplitSeq(ports, ",") {
		name, value, _ := strings.Cut(pair, "=")
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil || port == 0 {
			return nil, fmt.Errorf("endpoint %q: %q is not NAME=PORT", s, pair)
		}
		switch name {
		case "xds":
			e.XDS = int32(port)
		case "webhook":
			e.Webhook = int32(port)
		case "http":
			e.HTTP = int32(port)
		default:
			return nil, fmt.Errorf("endpoint %q: there is no port %q: xds, webhook and http are", s, name)
		}
	}
	return e, nil
}
