package inject

import (
	"encoding/json"
	"regexp"
	"strings"

	"istio.io/api/annotation"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// sidecarTemplate is the one template of this version, compiled into this package.
const sidecarTemplate = "sidecar"

// Config is everything that injection knows of a mesh, compiled: whatever does not depend on the pod is computed once.
// It is immutable; each setting was checked, so that Pod can only fail because of the pod.
type Config struct {
	settings      Settings
	enabled       bool
	never, always []labels.Selector
	native        nativeMode
	nativeMissing bool // the cluster does not have native sidecars

	pod       podSettings // of a pod without annotations
	initImage string
	baseImage image // of the sidecar, without a type
	baseInit  image
	overlays  []ProxyConfigResource
	clusterID string
	network   string
	volumes   []corev1.Volume
	// volumesJSON is the JSON of each of volumes.
	volumesJSON [][]byte
	podPolicy   corev1.PullPolicy
	secrets     []corev1.LocalObjectReference
	seccomp     *corev1.SeccompProfile
	privileged  bool // the containers that are added
	cni         cni

	templates *templateSet
	document  map[string]any // the values as templates read them; shared, not to be changed
	proxyJSON string         // what protoToJSON gives templates for the mesh's ProxyConfig
	stop      func() error   // of Until, or nil
	variant   string         // global.variant: the type of proxy images of Istio's
}

// nativeMode is the operator's wish about native sidecars: init containers with restartPolicy Always.
type nativeMode uint8

const (
	nativeAuto nativeMode = iota // where the cluster has them
	nativeOn
	nativeOff
)

// Revision is the revision whose control plane the sidecars connect to; "default" for the default one.
func (c *Config) Revision() string { return c.settings.Values.Revision }

// Namespace is the mesh's own.
func (c *Config) Namespace() string { return c.settings.Values.Global.Namespace }

// TrustDomain is the mesh's trust domain.
func (c *Config) TrustDomain() string { return c.settings.Mesh.GetTrustDomain() }

// Mesh is the whole mesh configuration. It must not be changed.
func (c *Config) Mesh() *meshv1alpha1.MeshConfig { return c.settings.Mesh }

// ForKubernetes is c for a cluster of that version: native sidecars need 1.29. Without this call the cluster is taken to have
// them, as every supported Kubernetes does.
func (c *Config) ForKubernetes(major, minor int) *Config {
	missing := major < 1 || major == 1 && minor < 29
	if missing == c.nativeMissing {
		return c
	}
	copied := *c
	copied.nativeMissing = missing
	return &copied
}

// DefaultCluster is the name of a cluster that nobody has named, as Istio's.
const DefaultCluster = "Kubernetes"

// clusterName has no character that an environment variable or a gRPC header does not take.
var clusterName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)

// IsClusterName reports whether a cluster or a network may be called so: letters, digits and inner dots, dashes and underscores.
func IsClusterName(name string) bool { return clusterName.MatchString(name) }

// ClusterID is the cluster that the values name, "" when they name none.
func (c *Config) ClusterID() string { return c.settings.Values.Global.MultiCluster.ClusterName }

// ForCluster is c for pods of another cluster: the webhook paths /inject/cluster/CLUSTER/net/NETWORK of Istio. "" leaves
// what c has.
func (c *Config) ForCluster(cluster, network string) *Config {
	if (cluster == "" || cluster == c.clusterID) && (network == "" || network == c.network) {
		return c
	}
	copied := *c
	if cluster != "" {
		copied.clusterID = cluster
	}
	if network != "" {
		copied.network = network
	}
	return &copied
}

// Compile checks the settings and computes what does not depend on a pod. With a problem of severity Error the Config is nil:
// the settings cannot be used, and whoever has an older Config keeps it.
func (s Settings) Compile() (*Config, []diag.Problem) {
	c := &compiler{settings: s, config: &Config{settings: s}}
	c.decision()
	c.templateSet()
	c.images()
	c.sidecar()
	if c.config.templates.forAgent() { // what another template does with the values is its own affair
		c.unsupported()
	}
	c.values()
	c.tryTemplates()
	for _, p := range c.problems {
		if p.Severity == diag.Error {
			return nil, c.problems
		}
	}
	return c.config, c.problems
}

// compiler collects the problems of one Compile.
type compiler struct {
	settings Settings
	config   *Config
	problems []diag.Problem
}

// report notes a problem of the injector's ConfigMap; field is a path such as values.global.tag.
func (c *compiler) report(severity diag.Severity, field, detail, hint string) {
	c.problems = append(c.problems, injectorProblem(c.settings.Values, severity, field, detail, hint))
}

// injectorProblem is a problem of the ConfigMap istio-sidecar-injector[-REV].
func injectorProblem(v Values, severity diag.Severity, field, detail, hint string) diag.Problem {
	return diag.Problem{Code: diag.InvalidInjectConfig, Severity: severity, Object: configMapRef("istio-sidecar-injector", v), Field: "data." + field, Detail: detail, Hint: hint}
}

// meshProblem is a problem of the ConfigMap istio[-REV].
func meshProblem(v Values, severity diag.Severity, code diag.Code, field, detail string) diag.Problem {
	return diag.Problem{Code: code, Severity: severity, Object: configMapRef("istio", v), Field: "data." + field, Detail: detail}
}

func configMapRef(base string, v Values) ref.Ref {
	return ref.Ref{Kind: "ConfigMap", Namespace: v.Global.Namespace, Name: ObjectName(base, v.Revision)}
}

// decision compiles what Decide asks.
func (c *compiler) decision() {
	in := c.settings.Injector
	switch in.Policy {
	case "enabled":
		c.config.enabled = true
	case "disabled":
	default:
		c.report(diag.Error, "config.policy", "it is \""+in.Policy+"\"", "use enabled or disabled")
	}
	c.config.never = c.selectors("neverInjectSelector", in.NeverInjectSelector)
	c.config.always = c.selectors("alwaysInjectSelector", in.AlwaysInjectSelector)
	for name := range in.InjectedAnnotations {
		if _, ours := rules[name]; ours || strings.HasSuffix(prefixOf(name), "istio.io") {
			c.report(diag.Error, "config.injectedAnnotations", name+" is read by injection itself and would come too late", "set it on the pods, or the matching key of values")
		}
	}
	switch mode := string(c.settings.Values.Pilot.Env[nativeSidecarsEnv]); strings.ToLower(mode) {
	case "", "auto":
		c.config.native = nativeAuto
	case "true":
		c.config.native = nativeOn
	case "false":
		c.config.native = nativeOff
	default:
		c.report(diag.Error, "values.pilot.env."+nativeSidecarsEnv, "it is \""+mode+"\"", "use true, false or auto")
	}
}

// selectors compiles label selectors. An empty one is left out, as Istio does: it would match every pod.
func (c *compiler) selectors(field string, list []metav1.LabelSelector) (out []labels.Selector) {
	for i := range list {
		s, err := metav1.LabelSelectorAsSelector(&list[i])
		if err != nil {
			c.report(diag.Error, indexed("config."+field, i), "it is no label selector: "+err.Error(), "")
			continue
		}
		if !s.Empty() {
			out = append(out, s)
		}
	}
	return out
}

// statusJSON is the annotation sidecar.istio.io/status: what was added, so that tools (and a person) can tell.
type statusJSON struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
}

func (s statusJSON) annotation() (name, value string) {
	data, err := json.Marshal(s)
	if err != nil {
		panic("encode injection status: " + err.Error()) // strings only
	}
	return annotation.SidecarStatus.Name, string(data)
}

// prefixOf is the domain of a label or annotation name, "" without one.
func prefixOf(name string) string {
	prefix, _, found := strings.Cut(name, "/")
	if !found {
		return ""
	}
	return prefix
}
