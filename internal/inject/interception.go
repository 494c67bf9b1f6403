package inject

import (
	"slices"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// How a pod's traffic comes to its sidecar: by an init container that sets up the rules (istio-init), by a CNI plugin that reads the
// pod's annotations, with an init container that only checks (istio-validation), or not at all (interceptionMode NONE).

// cni is the mesh's choice of a plugin.
type cni struct {
	enabled bool
	multus  bool // the plugin is a network of the pod, not chained into the cluster's own
}

// Multus knows a pod's networks by an annotation.
const (
	multusNetworks = "k8s.v1.cni.cncf.io/networks"
	multusNetwork  = "default/istio-cni"
)

// isMeshPort says that Envoy or the agent's readiness has the port.
func isMeshPort(port int32) bool {
	return slices.Contains([]int32{15000, outboundPort, inboundPort, readinessPort, 15053, envoyPromPort}, port)
}

// probePort is where the kubelet asks for the application's health.
func (s *podSettings) probePort() int32 {
	if s.ownStatusPort && s.statusPort != readinessPort {
		return s.statusPort
	}
	return s.agentPort
}

// answersAlso is a second port on which the agent answers; 0 is none.
func (s *podSettings) answersAlso() int32 {
	if s.statusPort == s.agentPort || s.statusPort == readinessPort {
		return 0
	}
	return s.statusPort
}

// useStatusPort follows the agent's port where nobody asked for another one.
func (s *podSettings) useStatusPort() {
	if !s.ownStatusPort && s.statusPort == agentPort {
		s.statusPort = s.agentPort
	}
}

// excludedInbound are the ports that are not captured: the status port, the readiness port, Envoy's metrics and the user's.
func (s *podSettings) excludedInbound() string {
	list := strconv.Itoa(readinessPort) + "," + strconv.Itoa(envoyPromPort)
	if s.statusPort != 0 && s.statusPort != readinessPort {
		list = strconv.Itoa(int(s.statusPort)) + "," + list
	}
	if s.capture.excludeInboundPorts != "" {
		list += "," + s.capture.excludeInboundPorts
	}
	return list
}

// initName is the init container of a pod's interception; "" where there is none.
func (c *Config) initName(s *podSettings) string {
	switch {
	case s.mode == meshv1alpha1.ProxyConfig_NONE:
		return ""
	case c.cni.enabled:
		return validationContainer
	}
	return InitContainer
}

// initArgs are made of parsed values only.
func (s *podSettings) initArgs() []string {
	args := []string{
		"init",
		"--proxy-port", strconv.Itoa(outboundPort),
		"--inbound-port", strconv.Itoa(inboundPort),
		"--proxy-uid", strconv.FormatInt(s.uid, 10),
		"--proxy-gid", strconv.FormatInt(s.gid, 10),
		"--inbound-ports", s.capture.inboundPorts,
		"--exclude-inbound-ports", s.excludedInbound(),
		"--outbound-ranges", s.capture.outboundRanges,
		"--exclude-outbound-ranges", s.capture.excludeOutboundRanges,
		"--exclude-outbound-ports", s.capture.excludeOutboundPorts,
	}
	var mode, own string
	if s.mode != meshv1alpha1.ProxyConfig_REDIRECT {
		mode = s.mode.String()
	}
	if s.agentPort != agentPort {
		own = strings.Join([]string{strconv.Itoa(int(s.agentPort)), strconv.Itoa(readinessPort), strconv.Itoa(envoyPromPort)}, ",")
	}
	for _, rare := range []struct{ flag, value string }{
		{"--interception-mode", mode},
		{"--include-outbound-ports", s.capture.includeOutboundPorts},
		{"--exclude-interfaces", s.capture.excludeInterfaces},
		{"--reroute-interfaces", s.capture.rerouteInterfaces},
		{"--own-ports", own},
	} {
		if rare.value != "" {
			args = append(args, rare.flag, rare.value)
		}
	}
	if s.captureDNS {
		args = append(args, "--capture-dns")
	}
	return args
}

// initContainer sets up the interception in the pod's network namespace, or checks what a plugin has set up. To set it up it is root
// there, with the two capabilities that iptables wants; to check it is the proxy's user, by whose connections the rules can be told.
func (c *Config) initContainer(s *podSettings) corev1.Container {
	root, no := int64(0), false
	out := corev1.Container{
		Name:            InitContainer,
		Image:           c.initImageFor(s),
		ImagePullPolicy: c.podPolicy,
		Args:            s.initArgs(),
		Resources:       s.resources,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &c.privileged,
			Capabilities:             &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}, Drop: []corev1.Capability{"ALL"}},
			Privileged:               &c.privileged,
			ReadOnlyRootFilesystem:   &no, // iptables takes its lock in /run
			RunAsGroup:               &root,
			RunAsNonRoot:             &no,
			RunAsUser:                &root,
		},
	}
	if c.cni.enabled {
		out.Name, out.Args, out.SecurityContext = validationContainer, append(out.Args, "--verify-only"), c.proxysUser(s)
	}
	return out
}

// initImageFor follows the pod's own image when the mesh has one image for both.
func (c *Config) initImageFor(s *podSettings) string {
	if c.baseInit == c.baseImage {
		return s.image
	}
	return c.typed(c.baseInit, s.imageType)
}

// pluginAnnotations tell a CNI plugin what to capture: it sees the pod's annotations and neither the mesh's values nor the arguments of
// its containers. What the user wrote stays.
func (c *Config) pluginAnnotations(pod *corev1.Pod, s *podSettings, add map[string]string) {
	if !c.cni.enabled {
		return
	}
	if c.cni.multus {
		add[multusNetworks] = appendMultusNetwork(pod.Annotations[multusNetworks], multusNetwork)
	}
	excluded := first(pod.Annotations[annotation.SidecarTrafficExcludeInboundPorts.Name], s.capture.excludeInboundPorts)
	add[annotation.SidecarTrafficExcludeInboundPorts.Name] = excludeInboundPort(s.statusPort, excluded)
	for _, a := range []struct{ name, value string }{
		{annotation.SidecarInterceptionMode.Name, s.mode.String()},
		{annotation.SidecarTrafficIncludeOutboundIPRanges.Name, s.capture.outboundRanges},
		{annotation.SidecarTrafficExcludeOutboundIPRanges.Name, s.capture.excludeOutboundRanges},
		{annotation.SidecarTrafficIncludeInboundPorts.Name, s.capture.inboundPorts},
		{annotation.SidecarTrafficIncludeOutboundPorts.Name, s.capture.includeOutboundPorts},
		{annotation.SidecarTrafficExcludeOutboundPorts.Name, s.capture.excludeOutboundPorts},
	} {
		if _, has := pod.Annotations[a.name]; !has && a.value != "" {
			add[a.name] = a.value
		}
	}
}
