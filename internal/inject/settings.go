package inject

import (
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/selvage-mesh/selvage/internal/version"
)

// DefaultRevision is the name of the revision that is installed when none is asked for. The names of its objects carry no
// suffix.
const DefaultRevision = "default"

// DefaultNamespace is where the mesh's own objects are.
const DefaultNamespace = "istio-system"

// Settings is what an operator writes: the three documents of the ConfigMaps `istio[-REV]` (key mesh) and
// `istio-sidecar-injector[-REV]` (keys config and values). They are plain data and may be changed before Compile or
// ConfigMaps.
type Settings struct {
	Mesh     *meshv1alpha1.MeshConfig
	Injector Injector
	Values   Values
	// Document is `values` as it was written, with the keys that only templates read. Values come before it.
	Document map[string]any
	// Serves is what the mesh's agent and control plane can serve. No document says it.
	Serves Serves
}

// Injector is the key `config` of `istio-sidecar-injector`: the rules of the decision. Field names are Istio's.
type Injector struct {
	// Policy is what happens to a pod that says nothing itself: "enabled" or "disabled".
	Policy string `json:"policy"`
	// DefaultTemplates are the templates of a pod that selects none, in the order in which they apply.
	DefaultTemplates []string `json:"defaultTemplates"`
	// NeverInjectSelector is asked before AlwaysInjectSelector, both only for pods without a label or annotation of their own.
	NeverInjectSelector  []metav1.LabelSelector `json:"neverInjectSelector"`
	AlwaysInjectSelector []metav1.LabelSelector `json:"alwaysInjectSelector"`
	// InjectedAnnotations are added to every injected pod that does not have them.
	InjectedAnnotations map[string]string `json:"injectedAnnotations"`
	// Templates are templates by name, in the language of Istio's; one of the name of a built-in template takes its place.
	Templates map[string]string `json:"templates,omitempty"`
	// Aliases are names that stand for several templates.
	Aliases map[string][]string `json:"aliases,omitempty"`
}

// Values is the key `values` of `istio-sidecar-injector`, as far as injection reads it: keys and meaning are those of Istio's
// Helm charts, so that a values document that was written for Istio keeps its effect. Keys that are not listed here do not
// concern injection.
type Values struct {
	Revision string         `json:"revision"`
	Global   Global         `json:"global"`
	Webhook  InjectorValues `json:"sidecarInjectorWebhook"`
	Pilot    Pilot          `json:"pilot"`
}

// Global is `global` of the values.
type Global struct {
	Hub              text         `json:"hub"`
	Tag              text         `json:"tag"`
	ImagePullPolicy  string       `json:"imagePullPolicy"`
	ImagePullSecrets []string     `json:"imagePullSecrets"`
	Namespace        string       `json:"istioNamespace"`
	MeshID           string       `json:"meshID"`
	Network          string       `json:"network"`
	CAAddress        string       `json:"caAddress"`
	CertProvider     string       `json:"pilotCertProvider"`
	LogAsJSON        bool         `json:"logAsJson"`
	MountMTLSCerts   bool         `json:"mountMtlsCerts,omitempty"`
	Logging          Logging      `json:"logging"`
	MultiCluster     MultiCluster `json:"multiCluster"`
	Proxy            Proxy        `json:"proxy"`
	ProxyInit        ProxyInit    `json:"proxy_init"`
}

// Logging is `global.logging`: Level is the agent's, such as "default:info".
type Logging struct {
	Level string `json:"level"`
}

// MultiCluster is `global.multiCluster`. Without a ClusterName pods are of the control plane's own cluster.
type MultiCluster struct {
	ClusterName string `json:"clusterName"`
}

// ProxyInit is `global.proxy_init`: the image of istio-init.
type ProxyInit struct {
	Image string `json:"image"`
}

// Proxy is `global.proxy`. Image may be a name, to which hub and tag are added, or a full reference.
type Proxy struct {
	Image                           string       `json:"image"`
	Resources                       *Resources   `json:"resources"`
	LogLevel                        string       `json:"logLevel"`
	ComponentLogLevel               string       `json:"componentLogLevel"`
	IncludeIPRanges                 text         `json:"includeIPRanges"`
	ExcludeIPRanges                 text         `json:"excludeIPRanges"`
	IncludeInboundPorts             text         `json:"includeInboundPorts"`
	ExcludeInboundPorts             text         `json:"excludeInboundPorts"`
	IncludeOutboundPorts            text         `json:"includeOutboundPorts"`
	ExcludeOutboundPorts            text         `json:"excludeOutboundPorts"`
	Privileged                      bool         `json:"privileged"`
	StatusPort                      *int32       `json:"statusPort"`
	ReadinessInitialDelaySeconds    int32        `json:"readinessInitialDelaySeconds"`
	ReadinessPeriodSeconds          int32        `json:"readinessPeriodSeconds"`
	ReadinessFailureThreshold       int32        `json:"readinessFailureThreshold"`
	StartupProbe                    StartupProbe `json:"startupProbe"`
	HoldApplicationUntilProxyStarts bool         `json:"holdApplicationUntilProxyStarts"`
	Seccomp                         Seccomp      `json:"seccompProfile"`
}

// StartupProbe is `global.proxy.startupProbe`: it holds readiness checks, and with a native sidecar the start of the
// application, until the proxy has its configuration. One try a second.
type StartupProbe struct {
	Enabled          bool  `json:"enabled"`
	FailureThreshold int32 `json:"failureThreshold"`
}

// Seccomp is `global.proxy.seccompProfile`. An empty type means RuntimeDefault, which PodSecurity `restricted` asks for.
type Seccomp struct {
	Type             string `json:"type,omitempty"`
	LocalhostProfile string `json:"localhostProfile,omitempty"`
}

// Resources is a container's resources. A null quantity takes the default away, as it does in Helm.
type Resources struct {
	Requests map[string]*resource.Quantity `json:"requests,omitempty"`
	Limits   map[string]*resource.Quantity `json:"limits,omitempty"`
}

// InjectorValues is `sidecarInjectorWebhook`.
type InjectorValues struct {
	RewriteAppHTTPProbe       bool `json:"rewriteAppHTTPProbe"`
	EnableNamespacesByDefault bool `json:"enableNamespacesByDefault"`
}

// Pilot is `pilot`: Env is the control plane's environment, of which injection reads ENABLE_NATIVE_SIDECARS ("true", "false",
// "auto"); CNI.Enabled asks for pods without an init container.
type Pilot struct {
	Env map[string]text `json:"env"`
	CNI CNI             `json:"cni"`
}

// CNI is `pilot.cni`. Provider is "default", or "multus" where the plugin is a network of the pod.
type CNI struct {
	Enabled  bool   `json:"enabled"`
	Provider string `json:"provider,omitempty"`
}

// nativeSidecarsEnv is where Istio keeps the switch for native sidecars.
const nativeSidecarsEnv = "ENABLE_NATIVE_SIDECARS"

// ObjectName is the name of one of the mesh's objects in a revision: base, or base-REV when it is not the default revision.
func ObjectName(base, revision string) string {
	if revision == "" || revision == DefaultRevision {
		return base
	}
	return base + "-" + revision
}

// DiscoveryAddress is where the sidecars of a revision find their control plane.
func DiscoveryAddress(namespace, revision string) string {
	return ObjectName("istiod", revision) + "." + namespace + ".svc:15012"
}

// Default is what a fresh installation of a revision ("" is the default one) starts from.
func Default(revision string) Settings {
	if revision == "" {
		revision = DefaultRevision
	}
	statusPort := int32(agentPort)
	return Settings{
		Serves:   ThisBuild(),
		Mesh:     defaultMesh(DefaultNamespace, revision),
		Injector: Injector{Policy: "enabled", DefaultTemplates: []string{sidecarTemplate}},
		Values: Values{
			Revision: revision,
			Global: Global{
				Hub:             "docker.io/selvage",
				Tag:             text(version.Version),
				ImagePullPolicy: "IfNotPresent",
				Namespace:       DefaultNamespace,
				CertProvider:    "istiod",
				Logging:         Logging{Level: "default:info"},
				Proxy: Proxy{
					Image:                     "proxy",
					Resources:                 defaultResources(),
					LogLevel:                  "warning",
					IncludeIPRanges:           "*",
					IncludeInboundPorts:       "*",
					StatusPort:                &statusPort,
					ReadinessPeriodSeconds:    15,
					ReadinessFailureThreshold: 4,
					StartupProbe:              StartupProbe{Enabled: true, FailureThreshold: 600},
				},
			},
			Webhook: InjectorValues{RewriteAppHTTPProbe: true},
			Pilot:   Pilot{Env: map[string]text{nativeSidecarsEnv: "auto"}},
		},
	}
}

// defaultMesh is the part of the mesh configuration that depends on nothing an operator wrote.
func defaultMesh(namespace, revision string) *meshv1alpha1.MeshConfig {
	return &meshv1alpha1.MeshConfig{
		TrustDomain:           "cluster.local",
		RootNamespace:         namespace,
		EnableAutoMtls:        wrapperspb.Bool(true),
		EnablePrometheusMerge: wrapperspb.Bool(true),
		DefaultConfig: &meshv1alpha1.ProxyConfig{
			DiscoveryAddress:         DiscoveryAddress(namespace, revision),
			TerminationDrainDuration: &durationpb.Duration{Seconds: 5},
		},
	}
}

// defaultResources are those of Istio's charts: they ask for little and allow bursts.
func defaultResources() *Resources {
	parse := func(s string) *resource.Quantity { q := resource.MustParse(s); return &q }
	return &Resources{
		Requests: map[string]*resource.Quantity{"cpu": parse("100m"), "memory": parse("128Mi")},
		Limits:   map[string]*resource.Quantity{"cpu": parse("2"), "memory": parse("1Gi")},
	}
}
