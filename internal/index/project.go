package index

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// The projections copy what they keep, so that the object they are given can be collected. They are total: what makes no
// sense is left out, and an object of which nothing is left is nil.

func projectService(s *corev1.Service) *Service {
	out := &Service{
		Namespace: s.Namespace, Name: s.Name, Created: s.CreationTimestamp.Unix(),
		ExportTo: s.Annotations[annotation.NetworkingExportTo.Name],
	}
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		out.ExternalName = hostName(s.Spec.ExternalName)
	case s.Spec.ClusterIP == corev1.ClusterIPNone:
		out.Headless = true
	default:
		ips := s.Spec.ClusterIPs
		if len(ips) == 0 {
			ips = []string{s.Spec.ClusterIP}
		}
		out.Addresses = addresses(ips)
	}
	if out.ExternalName == "" {
		out.Selector = maps.Clone(s.Spec.Selector)
	}
	for _, p := range s.Spec.Ports {
		if !isTCP(p.Protocol) || p.Port <= 0 {
			continue
		}
		port := ServicePort{Number: uint32(p.Port), Name: p.Name, Target: TargetPort{Number: uint32(p.Port)}}
		if p.AppProtocol != nil {
			port.AppProtocol = *p.AppProtocol
		}
		if name := p.TargetPort.StrVal; name != "" {
			port.Target = TargetPort{Name: name}
		} else if n := p.TargetPort.IntVal; n > 0 {
			port.Target = TargetPort{Number: uint32(n)}
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}

func projectSlice(s *discoveryv1.EndpointSlice) *EndpointSlice {
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	out := &EndpointSlice{Namespace: s.Namespace, Name: s.Name, Service: service, id: sliceKey(service, s.Name)}
	for _, p := range s.Ports {
		if p.Port == nil || *p.Port <= 0 || p.Protocol != nil && !isTCP(*p.Protocol) {
			continue
		}
		port := EndpointPort{Number: uint32(*p.Port)}
		if p.Name != nil {
			port.Name = *p.Name
		}
		out.Ports = append(out.Ports, port)
	}
	for _, e := range s.Endpoints {
		kept := Endpoint{State: endpointState(e.Conditions)}
		if t := e.TargetRef; t != nil && t.Kind == "Pod" && (t.Namespace == "" || t.Namespace == s.Namespace) {
			kept.Pod, kept.PodUID = t.Name, string(t.UID)
		}
		if e.NodeName != nil {
			kept.Node = *e.NodeName
		}
		if e.Zone != nil {
			kept.Zone = *e.Zone
		}
		for _, a := range addresses(e.Addresses) {
			kept.Address = a
			out.Endpoints = append(out.Endpoints, kept)
		}
	}
	slices.SortFunc(out.Ports, func(a, b EndpointPort) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Number, b.Number))
	})
	slices.SortFunc(out.Endpoints, func(a, b Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), strings.Compare(a.Pod, b.Pod), strings.Compare(a.PodUID, b.PodUID))
	})
	return out
}

// endpointState reads the conditions as discovery.k8s.io/v1 defines them: absent means ready, and absent serving means as
// ready. A terminating endpoint is ready only for a service that publishes addresses that are not ready.
func endpointState(c discoveryv1.EndpointConditions) State {
	ready := c.Ready == nil || *c.Ready
	serving := ready
	if c.Serving != nil {
		serving = *c.Serving
	}
	switch {
	case c.Terminating != nil && *c.Terminating:
		if serving {
			return Draining
		}
		return NotReady
	case ready:
		return Ready
	}
	return NotReady
}

func projectPod(p *corev1.Pod) *Pod {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	out := &Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName,
		ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, "default"),
		Labels:         maps.Clone(p.Labels),
	}
	ips := make([]string, 0, len(p.Status.PodIPs))
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) == 0 {
		ips = append(ips, p.Status.PodIP)
	}
	out.Addresses = addresses(ips)
	for _, c := range p.Status.Conditions {
		out.Ready = out.Ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}
	for _, c := range p.Spec.Containers {
		out.Ports = appendNamedPorts(out.Ports, c)
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out.Ports = appendNamedPorts(out.Ports, c)
		}
	}
	return out
}

func appendNamedPorts(to []ContainerPort, c corev1.Container) []ContainerPort {
	for _, p := range c.Ports {
		if p.Name != "" && p.ContainerPort > 0 && isTCP(p.Protocol) {
			to = append(to, ContainerPort{p.Name, uint32(p.ContainerPort)})
		}
	}
	return to
}

func projectNode(n *corev1.Node) *Node {
	return &Node{
		Name:    n.Name,
		Region:  n.Labels[corev1.LabelTopologyRegion],
		Zone:    n.Labels[corev1.LabelTopologyZone],
		Subzone: n.Labels[label.TopologySubzone.Name],
	}
}

// projectPeerAuthentication gives nil for a policy that the label istio.io/rev keeps for another revision.
func projectPeerAuthentication(p *securityv1.PeerAuthentication, revision string) *PeerAuthentication {
	if rev, ok := p.Labels[label.IoIstioRev.Name]; ok && rev != cmp.Or(revision, DefaultRevision) {
		return nil
	}
	out := &PeerAuthentication{
		Namespace: p.Namespace, Name: p.Name, Generation: p.Generation, Created: p.CreationTimestamp.Unix(),
		Selector: maps.Clone(p.Spec.GetSelector().GetMatchLabels()),
		Mode:     p.Spec.GetMtls().GetMode(),
	}
	for _, number := range slices.Sorted(maps.Keys(p.Spec.GetPortLevelMtls())) {
		mode := securityapi.PeerAuthentication_MutualTLS_UNSET
		if m := p.Spec.GetPortLevelMtls()[number]; m != nil {
			mode = m.GetMode()
		}
		out.Ports = append(out.Ports, PortMode{number, mode})
	}
	return out
}

// isTCP reads a protocol field, whose default is TCP.
func isTCP(p corev1.Protocol) bool { return p == "" || p == corev1.ProtocolTCP }

// addresses parses IP addresses in the order given; what is none is left out.
func addresses(texts []string) (parsed []netip.Addr) {
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			parsed = append(parsed, a.Unmap())
		}
	}
	return parsed
}

// hostName is a DNS name in the one form that is compared: lower case, no trailing dot.
func hostName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
