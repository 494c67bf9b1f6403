package inject

import (
	"encoding/json"
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/ref"
)

// templateData is what a template reads. All but Sidecar have the names and the meaning that they have in Istio.
type templateData struct {
	TypeMeta       metav1.TypeMeta      // of the workload: apps/v1 Deployment
	DeploymentMeta types.NamespacedName // the workload's name
	ObjectMeta     metav1.ObjectMeta    // the pod's
	Spec           corev1.PodSpec       // the pod's, without what an earlier injection added
	ProxyConfig    *meshv1alpha1.ProxyConfig
	MeshConfig     *meshv1alpha1.MeshConfig
	Values         map[string]any // the whole document `values`, over the defaults of the charts
	Revision       string
	// NativeSidecars is the mesh's choice; the pod's annotation comes before it.
	NativeSidecars           bool
	ProxyImage               string
	ProxyInitImage           string
	ProxyUID                 int64
	ProxyGID                 int64
	InboundTrafficPolicyMode string // "passthrough" or "localhost"
	CompliancePolicy         string
	// Sidecar is how our own agent's sidecar is to be: settings and annotations, checked. A template that reads it is one for our
	// agent, and what the agent cannot do is refused.
	Sidecar *sidecarData
}

// compliancePolicyEnv is where Istio keeps the policy for cryptography: a variable of the control plane.
const compliancePolicyEnv = "COMPLIANCE_POLICY"

// templateDataOf gives the data of one pod, which stripped is, without what an earlier injection added.
func (c *Config) templateDataOf(stripped *corev1.Pod, w workload, pc *meshv1alpha1.ProxyConfig) *templateData {
	mode := "passthrough"
	if c.settings.Mesh.GetInboundTrafficPolicy().GetMode() == meshv1alpha1.MeshConfig_InboundTrafficPolicy_LOCALHOST {
		mode = "localhost"
	}
	g := c.settings.Values.Global
	imageType := first(stripped.Annotations[annotation.SidecarProxyImageType.Name], pc.GetImage().GetImageType(), c.variant)
	return &templateData{
		TypeMeta:                 metav1.TypeMeta{APIVersion: w.apiVersion, Kind: w.kind},
		DeploymentMeta:           types.NamespacedName{Namespace: stripped.Namespace, Name: w.name},
		ObjectMeta:               stripped.ObjectMeta,
		Spec:                     stripped.Spec,
		ProxyConfig:              pc,
		MeshConfig:               c.settings.Mesh,
		Values:                   c.document,
		Revision:                 c.Revision(),
		NativeSidecars:           c.native != nativeOff && !c.nativeMissing,
		ProxyImage:               imageOfType(string(g.Hub), g.Proxy.Image, string(g.Tag), imageType),
		ProxyInitImage:           imageOfType(string(g.Hub), first(g.ProxyInit.Image, g.Proxy.Image), string(g.Tag), first(stripped.Annotations[annotation.SidecarProxyImageType.Name], c.variant)),
		ProxyUID:                 proxyUID,
		ProxyGID:                 proxyUID,
		InboundTrafficPolicyMode: mode,
		CompliancePolicy:         string(c.settings.Values.Pilot.Env[compliancePolicyEnv]),
	}
}

// imageOfType is HUB/NAME:TAG[-TYPE]. A type that the tag has already is replaced; "default" is none.
func imageOfType(hub, name, tag, imageType string) string {
	if imageType != "" {
		for _, known := range []string{"distroless", "debug"} {
			if base, has := strings.CutSuffix(tag, "-"+known); has {
				tag = base
				break
			}
		}
		if imageType != "default" {
			tag += "-" + imageType
		}
	}
	return hub + "/" + name + ":" + tag
}

// chartValues are the keys of Istio's charts that templates read and injection itself does not know, with the charts' defaults, so
// that a template which was written for Istio finds them where the mesh was installed by us.
const chartValues = `
gateways: {securityContext: {}, seccompProfile: {}}
global:
  caAddress: ""
  caName: ""
  logAsJson: false
  meshID: ""
  mountMtlsCerts: false
  multiCluster: {clusterName: ""}
  nativeNftables: false
  network: ""
  proxy:
    clusterDomain: cluster.local
    componentLogLevel: misc:error
    excludeIPRanges: ""
    excludeInboundPorts: ""
    excludeOutboundPorts: ""
    includeOutboundPorts: ""
    outlierLogPath: ""
    privileged: false
    tracer: none
  proxy_init: {image: "", forceApplyIptables: false}
  sds: {token: {aud: istio-ca}}
  sts: {servicePort: 0}
  variant: ""
pilot:
  cni: {enabled: false, provider: default}
  env: {}
`

// values compiles the document that templates read: the charts' defaults, ours over them, the operator's document over both.
func (c *compiler) values() {
	var doc, typed map[string]any
	if err := yaml.Unmarshal([]byte(chartValues), &doc); err != nil {
		panic("read the charts' values: " + err.Error())
	}
	data, err := json.Marshal(c.settings.Values)
	if err == nil {
		err = json.Unmarshal(data, &typed)
	}
	if err != nil {
		panic("encode values: " + err.Error()) // they came from JSON
	}
	doc = overlayValues(overlayValues(doc, typed), c.settings.Document)
	if c.settings.Values.Revision == DefaultRevision {
		doc["revision"] = "" // Istio's templates name its objects without a suffix then
	}
	if global, ok := doc["global"].(map[string]any); ok {
		if init, ok := global["proxy_init"].(map[string]any); ok && init["image"] == "" {
			init["image"] = c.settings.Values.Global.Proxy.Image
		}
		c.config.variant, _ = global["variant"].(string)
	}
	c.config.document = doc
	c.config.proxyJSON = protoToJSON(c.config.settings.Mesh.GetDefaultConfig())
}

// overlayValues lays one document over another, map by map, as Helm does; a null stays, for templates to see. Maps of over are
// not shared with the result.
func overlayValues(under, over map[string]any) map[string]any {
	for key, value := range over {
		if deeper, ok := value.(map[string]any); ok {
			if below, ok := under[key].(map[string]any); ok {
				under[key] = overlayValues(below, deeper)
				continue
			}
		}
		under[key] = copyJSON(value)
	}
	return under
}

// strippedPod is the pod as it was before an earlier injection, as far as the status that that one left tells. The pod itself comes
// back when there was none.
func strippedPod(pod *corev1.Pod, before *statusJSON, annotated *overrides) *corev1.Pod {
	if before == nil && annotated == nil {
		return pod
	}
	out := *pod
	if before != nil {
		out.Spec.Containers = without(pod.Spec.Containers, before.Containers)
		out.Spec.InitContainers = without(pod.Spec.InitContainers, before.InitContainers)
		out.Annotations = map[string]string{}
		for name, value := range pod.Annotations {
			ours := name == annotation.SidecarStatus.Name || pod.Annotations[prometheusPort] == "15020" && slices.Contains([]string{prometheusPort, prometheusPath, prometheusScrape}, name)
			if !ours {
				out.Annotations[name] = value
			}
		}
	}
	if annotated != nil {
		out.Spec.Containers = withMissing(out.Spec.Containers, annotated.Containers)
		out.Spec.InitContainers = withMissing(out.Spec.InitContainers, annotated.InitContainers)
	}
	return &out
}

func without(list []corev1.Container, names []string) []corev1.Container {
	out := make([]corev1.Container, 0, len(list))
	for i := range list {
		if !slices.Contains(names, list[i].Name) {
			out = append(out, list[i])
		}
	}
	return out
}

// withMissing adds those of more whose name is not in the list.
func withMissing(list, more []corev1.Container) []corev1.Container {
	out := list[:len(list):len(list)]
	for i := range more {
		if containerIn(out, more[i].Name) == nil {
			out = append(out, more[i])
		}
	}
	return out
}

func containerIn(list []corev1.Container, name string) *corev1.Container {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// networkOf is the network of a pod: its label comes before the mesh's.
func (c *Config) networkOf(pod *corev1.Pod) string {
	return first(pod.Labels[label.TopologyNetwork.Name], c.network)
}

// sidecarData is the sidecar of our own agent for one pod: how the typed path would make it, but for what a user changes in its
// containers, which is merged after the template.
type sidecarData struct {
	Native bool
	// Init is istio-init or istio-validation; nil where nothing is captured.
	Init *corev1.Container
	// Proxy is istio-proxy.
	Proxy corev1.Container
	// PluginAnnotations tell a CNI plugin what to capture.
	PluginAnnotations map[string]string
	// AppContainers are the names of the pod's other containers.
	AppContainers []string
	// Volumes are those of Proxy's mounts, and the user's.
	Volumes          []corev1.Volume
	ImagePullSecrets []string
}

func (c *Config) sidecarDataOf(pod *corev1.Pod, s *podSettings, w workload, subject ref.Ref) (*sidecarData, error) {
	declared := pod.Spec.Containers
	if before := statusOf(pod); before != nil {
		declared = without(declared, before.Containers) // the ports of an earlier injection's are no application's
	}
	rest, changes := takeOverrides(pod, s.overrides, c.added(s)...)
	if err := s.useIDs(changes, subject); err != nil {
		return nil, err
	}
	native, _ := c.useNative(s, rest)
	probers := map[string]*corev1.Probe{}
	if s.rewriteProbes && !s.readiness.off { // what is left is told again when they are rewritten
		r := probeRewrite{port: s.probePort(), probers: probers, subject: subject}
		r.containers(rest.Spec.InitContainers, native)
		r.containers(rest.Spec.Containers, native || s.hold)
	}
	name := first(pod.Labels[label.ServiceWorkloadName.Name], w.name)
	out := &sidecarData{
		Native:            native,
		PluginAnnotations: map[string]string{},
		Proxy:             c.proxyContainer(s, c.env(rest, s, w.named(name), podPorts(declared), probersJSON(probers)), native),
		Volumes:           append(c.volumes[:len(c.volumes):len(c.volumes)], s.userVolumes...),
	}
	if c.initName(s) != "" {
		initial := c.initContainer(s)
		out.Init = &initial
	}
	c.pluginAnnotations(pod, s, out.PluginAnnotations)
	for i := range rest.Spec.Containers {
		out.AppContainers = append(out.AppContainers, rest.Spec.Containers[i].Name)
	}
	for i := range c.secrets {
		out.ImagePullSecrets = append(out.ImagePullSecrets, c.secrets[i].Name)
	}
	return out, nil
}
