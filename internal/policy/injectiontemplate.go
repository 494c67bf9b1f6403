package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/annotation"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// templateForm is the version of Template that the policy of this release reads. A policy does nothing with another one, and its pods
// are the webhook's until somebody installs the policy anew.
const templateForm = 1

// Template is what the injection policy is given: the sidecar of a pod without wishes, and where wishes go. It is made by injecting such
// a pod (NewTemplate), so what does not depend on the pod is what inject gives, whatever that is.
type Template struct {
	Form        int               `json:"form"`
	Revision    string            `json:"revision"`
	Init        corev1.Container  `json:"init"`
	Proxy       corev1.Container  `json:"proxy"`
	InitFollows bool              `json:"initFollows"` // the init container has the sidecar's image, also the pod's own
	Env         envPlaces         `json:"env"`
	CPULimit    corev1.EnvVar     `json:"cpuLimit"`
	MemoryLimit corev1.EnvVar     `json:"memoryLimit"`
	Volumes     []corev1.Volume   `json:"volumes"`
	Secrets     []string          `json:"secrets"`
	Annotations map[string]string `json:"annotations"` // of every pod that does not have them
	Network     string            `json:"network"`
	Levels      levels            `json:"levels"`
	Capture     captureArgs       `json:"capture"`
	User        int64             `json:"user"`
	Group       int64             `json:"group"`
	AgentPort   int32             `json:"agentPort"`
	Busy        []int32           `json:"busy"`        // ports that the sidecar listens on
	Unscrapable []string          `json:"unscrapable"` // ports that are not the application's
	Rewrite     bool              `json:"rewrite"`     // probes, of pods that say nothing
	Merge       bool              `json:"merge"`       // metrics, of pods that say nothing
}

// envPlaces are indices in the sidecar's environment: of the variables that depend on the pod, and of the place of those that only some
// pods have.
type envPlaces struct {
	Workload   int `json:"workload"`
	Owner      int `json:"owner"`
	Containers int `json:"containers"`
	Ports      int `json:"ports"`
	More       int `json:"more"`
}

// levels are the levels of logs, and what follows them in the sidecar's arguments.
type levels struct {
	Proxy      string   `json:"proxy"`
	Components string   `json:"components"`
	Agent      string   `json:"agent"`
	Rest       []string `json:"rest"`
}

// captureArgs are the arguments of the init container.
type captureArgs struct {
	Head                 []string `json:"head"`
	InboundPorts         string   `json:"inboundPorts"`
	ExcludeBase          string   `json:"excludeBase"` // the sidecar's own ports
	ExcludeInbound       string   `json:"excludeInbound"`
	OutboundRanges       string   `json:"outboundRanges"`
	ExcludeRanges        string   `json:"excludeRanges"`
	ExcludeOutboundPorts string   `json:"excludeOutboundPorts"`
	IncludeOutboundPorts string   `json:"includeOutboundPorts"`
	Tail                 []string `json:"tail"`
}

// The variables of the sidecar that depend on the pod.
const (
	workloadEnv, ownerEnv, containersEnv, portsEnv = "ISTIO_META_WORKLOAD_NAME", "ISTIO_META_OWNER", "ISTIO_META_APP_CONTAINERS", "ISTIO_META_POD_PORTS"
	networkEnv, cpuEnv, memoryEnv                  = "ISTIO_META_NETWORK", "ISTIO_CPU_LIMIT", "GOMEMLIMIT"
	probersEnv, scrapeEnv                          = "ISTIO_KUBE_APP_PROBERS", "ISTIO_PROMETHEUS_ANNOTATIONS"
)

// podEnv are all of them.
var podEnv = []string{workloadEnv, ownerEnv, containersEnv, portsEnv, networkEnv, cpuEnv, memoryEnv, probersEnv, scrapeEnv}

// NewTemplate compiles an injector's configuration for the policy. With a problem of severity Error the policy cannot inject as it says,
// and the revision's pods are the webhook's; the problem names the setting.
func NewTemplate(config *inject.Config) (*Template, []diag.Problem) {
	c := templateCompiler{config: config}
	c.unsupported()
	if c.problems == nil {
		c.compile()
	}
	if c.problems != nil {
		return nil, c.problems
	}
	return &c.out, nil
}

type templateCompiler struct {
	config   *inject.Config
	out      Template
	problems []diag.Problem
}

func (c *templateCompiler) not(field, format string, args ...any) {
	c.problems = append(c.problems, diag.Problem{Code: diag.InjectionNotByPolicy, Severity: diag.Error,
		Object: ref.Ref{Kind: "ConfigMap", Namespace: c.config.Namespace(), Name: inject.ObjectName(inject.InjectorConfigMap, c.config.Revision())},
		Field:  field, Detail: fmt.Sprintf(format, args...), Hint: "the webhook injects this revision's pods, as without the policy"})
}

// unsupported is what the configuration asks for and CEL cannot give.
func (c *templateCompiler) unsupported() {
	if c.config.ByTemplates() {
		c.not("data.config.templates", "pods are injected by a template of the configuration's own, and a policy cannot run a Go template")
	}
	if c.config.ByNamespace() {
		c.not("", "objects of kind ProxyConfig give single namespaces or workloads another sidecar")
	}
	metadata := c.config.Mesh().GetDefaultConfig().GetProxyMetadata()
	for _, name := range podEnv {
		if _, has := metadata[name]; has {
			c.not("data.mesh.defaultConfig.proxyMetadata."+name, "it is set for the whole mesh and differs from pod to pod otherwise")
		}
	}
}

// bare is a pod without wishes.
func bare(annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "selvage-template", Name: "selvage-template", Annotations: annotations},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "selvage-template"}}}}
}

// injected injects a pod without wishes, and gives nil when that cannot be done.
func (c *templateCompiler) injected(annotations map[string]string) (pod *corev1.Pod, init, proxy *corev1.Container) {
	pod, _, err := inject.Pod(bare(annotations), c.config)
	if err != nil {
		c.not("", "a simple pod cannot be injected: %v", err)
		return nil, nil, nil
	}
	inits := pod.Spec.InitContainers
	switch {
	case len(inits) == 0 || inits[0].Name != inject.InitContainer:
		c.not("data.values", "pods have no init container %s: the policy knows interception by that alone", inject.InitContainer)
	case len(inits) != 2 || inits[1].Name != inject.ProxyContainer:
		c.not("data.values.pilot.env.ENABLE_NATIVE_SIDECARS", "sidecars are ordinary containers: the policy makes native ones")
	default:
		return pod, &inits[0], &inits[1]
	}
	return nil, nil, nil
}

func (c *templateCompiler) compile() {
	pod, init, proxy := c.injected(nil)
	if pod == nil {
		return
	}
	if proxy.ReadinessProbe == nil {
		c.not("data.values.global.proxy.statusPort", "it is 0: sidecars have no readiness probe")
		return
	}
	out := &c.out
	out.Form, out.Revision = templateForm, c.config.Revision()
	out.Init, out.Proxy = *init, *proxy
	c.environment()
	c.arguments()
	c.capture()
	out.InitFollows = c.initFollows()
	out.Volumes = pod.Spec.Volumes
	out.Secrets = []string{}
	for _, s := range pod.Spec.ImagePullSecrets {
		out.Secrets = append(out.Secrets, s.Name)
	}
	out.Annotations = c.config.InjectedAnnotations()
	sidecar := c.config.Sidecar()
	out.Network, out.User, out.Group, out.AgentPort = sidecar.Network, sidecar.User, sidecar.Group, sidecar.AgentPort
	out.Busy, out.Rewrite, out.Merge = sidecar.Busy, sidecar.RewriteProbes, sidecar.MergeMetrics
	out.Unscrapable = sidecar.Unscrapable
	names := []string{}
	for _, v := range out.Volumes {
		names = append(names, v.Name)
	}
	for _, m := range out.Proxy.VolumeMounts {
		if !slices.Contains(names, m.Name) {
			c.not("data.values", "the sidecar mounts volume %s, which depends on the pod", m.Name)
		}
	}
	if pod.Annotations[annotation.SidecarStatus.Name] == "" {
		c.not("", "a simple pod gets no annotation %s", annotation.SidecarStatus.Name)
	}
	if sidecar.MountsCertificates {
		c.not("data.values.global.mountMtlsCerts", "it is true, and the Secret's name depends on the pod's account")
	}
}

// initFollows finds out whether the init container takes the pod's own image too.
func (c *templateCompiler) initFollows() bool {
	const own = "selvage/template:own"
	_, init, _ := c.injected(map[string]string{annotation.SidecarProxyImage.Name: own})
	return init != nil && init.Image == own
}

// environment takes what only some pods have out of the sidecar's environment, and finds the places of what differs.
func (c *templateCompiler) environment() {
	out := &c.out
	list := slices.Clone(out.Proxy.Env)
	out.CPULimit, out.MemoryLimit = inject.LimitVariables()
	list = slices.DeleteFunc(list, func(e corev1.EnvVar) bool {
		return e.Name == cpuEnv || e.Name == memoryEnv || e.Name == networkEnv || e.Name == probersEnv || e.Name == scrapeEnv
	})
	at := func(name string) int {
		i := slices.IndexFunc(list, func(e corev1.EnvVar) bool { return e.Name == name })
		if i < 0 {
			c.not("", "the sidecar has no variable %s", name)
		}
		return i
	}
	out.Env = envPlaces{Workload: at(workloadEnv), Owner: at(ownerEnv), Containers: at(containersEnv), Ports: at(portsEnv)}
	out.Env.More = out.Env.Ports + 1
	out.Proxy.Env = list
}

// arguments takes the sidecar's apart.
func (c *templateCompiler) arguments() {
	for i, arg := range c.out.Proxy.Args {
		name, value, _ := strings.Cut(arg, "=")
		switch {
		case name == "--proxyLogLevel":
			c.out.Levels.Proxy = value
		case name == "--proxyComponentLogLevel":
			c.out.Levels.Components = value
		case name == "--log_output_level":
			c.out.Levels.Agent = value
		case i > 1:
			c.out.Levels.Rest = append(c.out.Levels.Rest, arg)
		}
	}
	if c.out.Levels.Rest == nil {
		c.out.Levels.Rest = []string{}
	}
}

// capture takes the init container's arguments apart.
func (c *templateCompiler) capture() {
	out, args := &c.out.Capture, c.out.Init.Args
	_, own, _ := c.injected(map[string]string{annotation.SidecarTrafficExcludeInboundPorts.Name: ""})
	head := slices.Index(args, "--inbound-ports")
	if own == nil || head < 0 {
		c.not("", "the arguments of %s are not those that this release knows", inject.InitContainer)
		return
	}
	out.Head, out.Tail = args[:head], []string{}
	fields := map[string]*string{"--inbound-ports": &out.InboundPorts, "--exclude-inbound-ports": &out.ExcludeInbound, "--outbound-ranges": &out.OutboundRanges,
		"--exclude-outbound-ranges": &out.ExcludeRanges, "--exclude-outbound-ports": &out.ExcludeOutboundPorts, "--include-outbound-ports": &out.IncludeOutboundPorts}
	for i := head; i < len(args); i++ {
		if into := fields[args[i]]; into != nil && i+1 < len(args) {
			*into = args[i+1]
			i++
			continue
		}
		out.Tail = append(out.Tail, args[i])
	}
	if at := slices.Index(own.Args, "--exclude-inbound-ports"); at >= 0 {
		out.ExcludeBase = own.Args[at+1]
	}
	out.ExcludeInbound = strings.TrimPrefix(strings.TrimPrefix(out.ExcludeInbound, out.ExcludeBase), ",")
}

// Parameter is the template as fields of the policy's parameter.
func (t *Template) Parameter() map[string]any {
	data, err := json.Marshal(map[string]any{"injection": t})
	if err != nil {
		panic("encode a template: " + err.Error()) // strings and numbers
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		panic("decode a template: " + err.Error())
	}
	dropEmpty(out)
	return out
}

// dropEmpty takes away what the API's types write though it is nothing: null and empty resources.
func dropEmpty(node any) {
	switch n := node.(type) {
	case []any:
		for _, item := range n {
			dropEmpty(item)
		}
	case map[string]any:
		for key, value := range n {
			if m, is := value.(map[string]any); value == nil || is && len(m) == 0 && key == "resources" {
				delete(n, key)
				continue
			}
			dropEmpty(value)
		}
	}
}
