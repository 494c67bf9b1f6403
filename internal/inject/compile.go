package inject

import (
	"errors"
	"fmt"
	"strings"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"google.golang.org/protobuf/proto"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// images compiles what is pulled and how.
func (c *compiler) images() {
	g := c.settings.Values.Global
	c.config.baseImage = c.image("values.global.proxy.image", g.Proxy.Image)
	c.config.baseInit = c.config.baseImage
	if g.ProxyInit.Image != "" {
		c.config.baseInit = c.image("values.global.proxy_init.image", g.ProxyInit.Image)
	}
	switch p := corev1.PullPolicy(g.ImagePullPolicy); p {
	case "", corev1.PullAlways, corev1.PullNever, corev1.PullIfNotPresent:
		c.config.podPolicy = p
	default:
		c.report(diag.Error, "values.global.imagePullPolicy", fmt.Sprintf("it is %q", p), "use Always, IfNotPresent or Never")
	}
	for i, name := range g.ImagePullSecrets {
		if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
			c.report(diag.Warning, indexed("values.global.imagePullSecrets", i), fmt.Sprintf("%q is no name that a Secret can have", name), "")
		}
		c.config.secrets = append(c.config.secrets, corev1.LocalObjectReference{Name: name})
	}
}

// image is a reference of an image; named says that it was made of hub, name and tag, so that a type fits behind the tag.
type image struct {
	reference string
	named     bool
}

// image is a name under global.hub with global.tag, or a full reference, which has a slash.
func (c *compiler) image(field, name string) image {
	g := c.settings.Values.Global
	full := name
	if !strings.Contains(name, "/") {
		full = string(g.Hub) + "/" + name
		if g.Tag != "" {
			full += ":" + string(g.Tag)
		}
	}
	if !imageReference.MatchString(full) {
		c.report(diag.Error, field, fmt.Sprintf("%q is no image reference", full), "check global.hub, global.tag and the image's name")
	}
	return image{full, full != name && g.Tag != ""}
}

// sidecar compiles the settings of a pod that has no annotations.
func (c *compiler) sidecar() {
	v, s := c.settings.Values, &c.config.pod
	p := v.Global.Proxy
	s.uid, s.gid = proxyUID, proxyUID
	s.serves = c.settings.Serves
	c.config.privileged = p.Privileged
	c.config.cni = cni{enabled: v.Pilot.CNI.Enabled, multus: v.Pilot.CNI.Provider == "multus"}
	s.resources = c.resources(p.Resources)
	for _, field := range []struct {
		name, value string
		parse       func(string) (string, error)
		into        *string
	}{
		{"proxy.logLevel", p.LogLevel, parseEnvoyLevel, &s.proxyLogLevel},
		{"proxy.componentLogLevel", p.ComponentLogLevel, parseComponentLevels, &s.componentLevels},
		{"logging.level", v.Global.Logging.Level, parseAgentLevels, &s.agentLogLevel},
		{"proxy.includeInboundPorts", string(p.IncludeInboundPorts), parsePortsOrAll, &s.capture.inboundPorts},
		{"proxy.excludeInboundPorts", string(p.ExcludeInboundPorts), parsePorts, &s.capture.excludeInboundPorts},
		{"proxy.includeOutboundPorts", string(p.IncludeOutboundPorts), parsePorts, &s.capture.includeOutboundPorts},
		{"proxy.excludeOutboundPorts", string(p.ExcludeOutboundPorts), parsePorts, &s.capture.excludeOutboundPorts},
		{"proxy.includeIPRanges", string(p.IncludeIPRanges), parseRangesOrAll, &s.capture.outboundRanges},
		{"proxy.excludeIPRanges", string(p.ExcludeIPRanges), parseRanges, &s.capture.excludeOutboundRanges},
	} {
		parsed, err := field.parse(field.value)
		if err != nil {
			c.report(diag.Error, "values.global."+field.name, fmt.Sprintf("cannot use %q: %v", field.value, err), "")
		}
		*field.into = parsed
	}
	c.probes(p)
	s.rewriteProbes = v.Webhook.RewriteAppHTTPProbe
	s.hold = p.HoldApplicationUntilProxyStarts
	c.seccomp(p.Seccomp)
	c.mesh()
	c.config.clusterID = first(v.Global.MultiCluster.ClusterName, DefaultCluster)
	if name := c.config.clusterID; !IsClusterName(name) {
		c.report(diag.Error, "values.global.multiCluster.clusterName", fmt.Sprintf("%q is no name of a cluster", name), "use letters, digits, dots, dashes and underscores")
	}
	c.config.network = v.Global.Network
	c.config.volumes = proxyVolumes()
	for i := range c.config.volumes {
		c.config.volumesJSON = append(c.config.volumesJSON, appendAny(nil, &c.config.volumes[i]))
	}
}

func (c *compiler) probes(p Proxy) {
	r := &c.config.pod.readiness
	r.initialDelay, r.period, r.failureThreshold = p.ReadinessInitialDelaySeconds, p.ReadinessPeriodSeconds, p.ReadinessFailureThreshold
	if r.initialDelay < 0 || r.period < 1 || r.failureThreshold < 1 {
		c.report(diag.Error, "values.global.proxy", "readinessInitialDelaySeconds, readinessPeriodSeconds and readinessFailureThreshold must be at least 0, 1 and 1", "")
	}
	if p.StartupProbe.Enabled && p.StartupProbe.FailureThreshold < 1 {
		c.report(diag.Error, "values.global.proxy.startupProbe.failureThreshold", "it must be at least 1", "")
	}
	s := &c.config.pod
	s.statusPort = agentPort
	if p.StatusPort != nil {
		s.statusPort, r.off = *p.StatusPort, *p.StatusPort == 0
	}
	if s.statusPort < 0 || s.statusPort > 65535 {
		c.report(diag.Error, "values.global.proxy.statusPort", fmt.Sprintf("%d is no port", s.statusPort), "")
	} else if err := checkAgentPort(s.statusPort); err != nil && c.config.templates.forAgent() {
		c.report(diag.Error, "values.global.proxy.statusPort", err.Error(), "")
	} else if s.statusPort > 0 && s.statusPort < 1024 && c.config.templates.forAgent() {
		c.report(diag.Warning, "values.global.proxy.statusPort", lowPort(s.statusPort), "")
	}
}

func (c *compiler) seccomp(s Seccomp) {
	profile := &corev1.SeccompProfile{Type: corev1.SeccompProfileType(s.Type)}
	switch profile.Type {
	case "":
		profile.Type = corev1.SeccompProfileTypeRuntimeDefault
	case corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined:
	case corev1.SeccompProfileTypeLocalhost:
		profile.LocalhostProfile = &s.LocalhostProfile
	default:
		c.report(diag.Error, "values.global.proxy.seccompProfile.type", fmt.Sprintf("it is %q", s.Type), "use RuntimeDefault, Localhost or Unconfined")
	}
	c.config.seccomp = profile
}

// mesh compiles the mesh configuration's part in a sidecar.
func (c *compiler) mesh() {
	m, v := c.settings.Mesh, c.settings.Values
	if m.GetDefaultConfig() == nil {
		c.problems = append(c.problems, meshProblem(v, diag.Error, diag.InvalidMeshConfig, "mesh.defaultConfig", "it is missing"))
		c.config.pod.proxy = &meshv1alpha1.ProxyConfig{}
		return
	}
	if c.config.templates.forAgent() {
		c.agentsMesh()
		m = c.config.settings.Mesh
	}
	if errs := validation.IsDNS1123Subdomain(m.GetTrustDomain()); len(errs) > 0 {
		c.problems = append(c.problems, meshProblem(v, diag.Error, diag.InvalidMeshConfig, "mesh.trustDomain", fmt.Sprintf("%q is no domain name", m.GetTrustDomain())))
	}
	c.config.pod.useProxyConfig(m.GetDefaultConfig())
	c.config.pod.image = c.config.typed(c.config.baseImage, c.config.pod.imageType)
	c.config.initImage = c.config.typed(c.config.baseInit, c.config.pod.imageType)
	c.config.pod.mergeMetrics = m.GetEnablePrometheusMerge() == nil || m.GetEnablePrometheusMerge().GetValue()
}

// agentsMesh reports what our own agent cannot do, and takes DNS capture away.
func (c *compiler) agentsMesh() {
	m, v := c.settings.Mesh, c.settings.Values
	if capturesDNS(m.GetDefaultConfig().GetProxyMetadata()) && !c.settings.Serves.DNSCapture {
		// The rest of the mesh works without it. A pod that asks for it itself is refused.
		c.problems = append(c.problems, meshProblem(v, diag.Warning, diag.NotServed, "mesh.defaultConfig.proxyMetadata."+dnsCapture, "DNS capture is not carried out yet: pods ask the cluster's DNS"))
		m = proto.Clone(m).(*meshv1alpha1.MeshConfig)
		delete(m.GetDefaultConfig().GetProxyMetadata(), dnsCapture)
		c.config.settings.Mesh = m
	}
	if err := checkProxyConfig(m.GetDefaultConfig(), c.settings.Serves); err != nil {
		p := meshProblem(v, diag.Error, diag.InvalidMeshConfig, "mesh.defaultConfig", err.Error())
		var notServed *notServedError
		if errors.As(err, &notServed) {
			p.Code, p.Hint = diag.NotServed, notServed.hint
		}
		c.problems = append(c.problems, p)
	}
	for _, field := range notCarriedOut(m.GetDefaultConfig()) {
		c.problems = append(c.problems, meshProblem(v, diag.Warning, diag.UnsupportedField, "mesh.defaultConfig."+field, "it is not carried out yet: it has no effect"))
	}
}

// notServed reports what the configuration asks for and nobody serves.
func (c *compiler) notServed(field string, err error) {
	var refused *notServedError
	if errors.As(err, &refused) {
		c.report(diag.Error, field, refused.detail, refused.hint)
		c.problems[len(c.problems)-1].Code = diag.NotServed
	}
}

// resources drops the quantities that are null.
func (c *compiler) resources(r *Resources) (out corev1.ResourceRequirements) {
	if r == nil {
		return out
	}
	for _, side := range []struct {
		from map[string]*resource.Quantity
		into *corev1.ResourceList
		name string
	}{{r.Requests, &out.Requests, "requests"}, {r.Limits, &out.Limits, "limits"}} {
		for _, name := range sortedKeys(side.from) {
			q := side.from[name]
			if q == nil {
				continue
			}
			if q.Sign() < 0 {
				c.report(diag.Error, "values.global.proxy.resources."+side.name+"."+name, q.String()+" is negative", "")
			}
			if *side.into == nil {
				*side.into = corev1.ResourceList{}
			}
			(*side.into)[corev1.ResourceName(name)] = *q
		}
	}
	for name := range out.Requests {
		if err := requestWithinLimit(out, name); err != nil {
			c.report(diag.Error, "values.global.proxy.resources.requests."+string(name), err.Error(), "")
		}
	}
	return out
}

// unsupported reports what is switched on and not carried out. What would leave traffic outside the mesh is an error.
func (c *compiler) unsupported() {
	v := c.settings.Values
	if err := c.settings.Serves.cni(); err != nil && v.Pilot.CNI.Enabled {
		c.notServed("values.pilot.cni.enabled", err)
	}
	if p := v.Global.CertProvider; p != "" && p != "istiod" {
		c.report(diag.Error, "values.global.pilotCertProvider", fmt.Sprintf("certificates of %q are not supported", p), "use istiod")
	}
	if v.Global.LogAsJSON {
		c.report(diag.Warning, "values.global.logAsJson", "it has no effect on sidecars yet", "")
	}
}
