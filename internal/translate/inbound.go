package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// target is a service port that leads to a port of a pod.
type target struct {
	service *index.Service
	port    index.ServicePort
	number  uint32 // of the pod's port
}

// selection finds the services of a namespace that lead to a pod. A service with a selector leads to the pods it selects,
// ready or not, so that a proxy has its listeners before its pod becomes ready; one without leads where its slices say.
type selection struct {
	// bySelector has each service with a selector under one pair of it, so that a pod meets only services it shares a label
	// with.
	bySelector map[[2]string][]*index.Service
	byPod      map[string][]target // of services without a selector, by the pod's name
}

func newSelection(ns *index.Namespace) *selection {
	s := &selection{bySelector: map[[2]string][]*index.Service{}, byPod: map[string][]target{}}
	for _, svc := range ns.Services.All() {
		if len(svc.Selector) > 0 {
			first := slices.Min(slices.Collect(maps.Keys(svc.Selector)))
			pair := [2]string{first, svc.Selector[first]}
			s.bySelector[pair] = append(s.bySelector[pair], svc)
			continue
		}
		for _, slice := range ns.SlicesOf(svc.Name) {
			s.addSlice(svc, slice)
		}
	}
	return s
}

func (s *selection) addSlice(svc *index.Service, slice *index.EndpointSlice) {
	for _, e := range slice.Endpoints {
		if e.Pod == "" {
			continue
		}
		for _, p := range svc.Ports {
			for _, sp := range slice.Ports {
				t := target{svc, p, sp.Number}
				if sp.Name == p.Name && !slices.ContainsFunc(s.byPod[e.Pod], t.same) {
					s.byPod[e.Pod] = append(s.byPod[e.Pod], t)
				}
			}
		}
	}
}

func (t target) same(o target) bool {
	return t.service == o.service && t.port.Number == o.port.Number && t.number == o.number
}

// targets gives the service ports that lead to a pod, by the pod's port, then the age of the service.
func (s *selection) targets(pod *index.Pod) []target {
	found := slices.Clone(s.byPod[pod.Name])
	for k, v := range pod.Labels {
		for _, svc := range s.bySelector[[2]string{k, v}] {
			if !matches(svc.Selector, pod.Labels) {
				continue
			}
			for _, p := range svc.Ports {
				number, ok := p.Target.Number, true
				if p.Target.Name != "" {
					number, ok = pod.Port(p.Target.Name)
				}
				if ok {
					found = append(found, target{svc, p, number})
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b target) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.service.Created, b.service.Created),
			strings.Compare(a.service.Name, b.service.Name), cmp.Compare(a.port.Number, b.port.Number))
	})
	return found
}

// inbound gives what the proxy of a pod serves. Where two services say different things of one port, the older is believed:
// the connection does not tell which of them was called.
func (n *namespace) inbound(pod *index.Pod) (*mesh.Inbound, []diag.Problem) {
	auth, problems := n.auth.of(pod.Labels)
	in := &mesh.Inbound{Namespace: pod.Namespace, MTLS: auth.base.mode, Refs: auth.base.refs()}
	targets := n.selection().targets(pod)
	for len(targets) > 0 {
		first, same := targets[0], 1
		for same < len(targets) && targets[same].number == first.number {
			same++
		}
		mode := auth.port(first.number)
		port := mesh.InboundPort{Number: first.number, Protocol: protocol(first.port), MTLS: mode.mode, Refs: mode.refs()}
		for _, t := range targets[:same] {
			port.Services = append(port.Services, mesh.ServiceTarget{Host: n.host(t.service.Name), Port: t.port.Number})
			port.Refs = append(port.Refs, t.service.Ref())
			if protocol(t.port) != port.Protocol {
				problems = append(problems, otherProtocol(first, t))
			}
		}
		sortTargets(&port)
		in.Ports = append(in.Ports, port)
		targets = targets[same:]
	}
	policyPorts(auth, in)
	return in, problems
}

func sortTargets(port *mesh.InboundPort) {
	slices.SortFunc(port.Services, func(a, b mesh.ServiceTarget) int {
		return cmp.Or(strings.Compare(string(a.Host), string(b.Host)), cmp.Compare(a.Port, b.Port))
	})
	port.Services = slices.Compact(port.Services)
	slices.SortFunc(port.Refs, ref.Compare)
	port.Refs = slices.Compact(port.Refs)
}

func otherProtocol(first, t target) diag.Problem {
	return diag.Problem{
		Code: diag.HostCollision, Severity: diag.Warning, Object: t.service.Ref(), Field: fmt.Sprintf("spec.ports[port=%d]", t.port.Number),
		Detail: fmt.Sprintf("it says %s of port %d of its pods, but %s port %d, which counts, says %s", protocol(t.port), t.number,
			first.service.Ref(), first.port.Number, protocol(first.port)),
		Hint: "give both service ports the same appProtocol, or different target ports",
	}
}

// policyPorts adds the ports that a policy names and no service leads to: what they say holds there too.
func policyPorts(auth workloadAuthentication, in *mesh.Inbound) {
	if auth.policy == nil {
		return
	}
	for _, p := range auth.policy.Ports {
		if p.Number == 0 || p.Number > 65535 || slices.ContainsFunc(in.Ports, func(i mesh.InboundPort) bool { return i.Number == p.Number }) {
			continue
		}
		mode := auth.port(p.Number)
		in.Ports = append(in.Ports, mesh.InboundPort{Number: p.Number, Protocol: mesh.TCP, MTLS: mode.mode, Refs: mode.refs()})
	}
	slices.SortFunc(in.Ports, func(a, b mesh.InboundPort) int { return cmp.Compare(a.Number, b.Number) })
}

// modeOf gives how a workload takes connections to one of its ports.
func modeOf(in *mesh.Inbound, number uint32) mesh.Mode {
	if i, ok := slices.BinarySearchFunc(in.Ports, number, func(p mesh.InboundPort, n uint32) int { return cmp.Compare(p.Number, n) }); ok {
		return in.Ports[i].MTLS
	}
	return in.MTLS
}

// inboundKey is the same for inbounds of the same content, within a namespace.
func inboundKey(in *mesh.Inbound) string {
	b := make([]byte, 0, 256)
	b = append(b, byte(in.MTLS))
	b = appendRefs(b, in.Refs)
	for _, p := range in.Ports {
		b = append(b, '\n')
		b = strconv.AppendUint(b, uint64(p.Number), 10)
		b = append(b, ' ', byte(p.Protocol), byte(p.MTLS))
		for _, s := range p.Services {
			b = append(append(b, s.Host...), ':')
			b = append(strconv.AppendUint(b, uint64(s.Port), 10), ' ')
		}
		b = appendRefs(b, p.Refs)
	}
	return string(b)
}

func appendRefs(b []byte, refs []ref.Ref) []byte {
	for _, r := range refs {
		b = append(append(append(b, r.Kind...), '/'), r.Namespace...)
		b = append(append(append(b, '/'), r.Name...), '@')
		b = append(strconv.AppendInt(b, r.Generation, 10), ' ')
	}
	return b
}
