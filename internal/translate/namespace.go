package translate

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

// globals is everything from outside a namespace, but for nodes, that its translation depends on. It is compared.
type globals struct {
	mesh       *meshWide
	meshPolicy *index.PeerAuthentication
}

// namespace is one namespace, translated. Once it is made it does not change.
type namespace struct {
	source  *index.Namespace
	view    *index.Namespace // what the mesh sees of source: only the pods when the discovery selectors leave it out
	globals globals
	nodes   *index.Table[*index.Node]

	auth     authentication
	services map[string]*servicePart // by name
	pods     map[string]*podPart     // by name

	serviceProblems, podProblems []diag.Problem // of all services and pods, sorted, each once

	selected *selection               // made on first use; nil again when the namespace is made
	inbounds map[string]*mesh.Inbound // by content, while the namespace is made
}

// podPart is what one pod became.
type podPart struct {
	source   *index.Pod
	workload *mesh.Workload
	identity string // SPIFFE
	sidecar  bool   // it says that a sidecar takes its mutual TLS
	key      string // of workload.Inbound
	problems []diag.Problem
}

func (n *namespace) host(service string) mesh.Host {
	return mesh.Host(service + "." + n.source.Name + ".svc." + n.globals.mesh.settings.ClusterDomain)
}

func (n *namespace) selection() *selection {
	if n.selected == nil {
		n.selected = newSelection(n.view)
	}
	return n.selected
}

// seen is what the mesh looks at of a namespace. The root namespace is always seen: to leave out the policy of the mesh
// because of a label would open it.
func (g globals) seen(ns *index.Namespace) *index.Namespace {
	if len(g.mesh.selectors) == 0 || ns.Name == g.mesh.settings.RootNamespace {
		return ns
	}
	for _, s := range g.mesh.selectors {
		if s.Matches(labelSet(ns.Labels)) {
			return ns
		}
	}
	return &index.Namespace{Name: ns.Name, Labels: ns.Labels, Pods: ns.Pods}
}

// translateNamespace translates one namespace. It works on what differs from prev, which is nil or the same namespace
// before, and takes everything else from it.
func translateNamespace(prev *namespace, ns *index.Namespace, g globals, nodes *index.Table[*index.Node]) *namespace {
	if prev != nil && prev.source == ns && prev.globals == g && prev.nodes == nodes {
		return prev
	}
	if prev == nil || prev.globals != g {
		prev = prev.stale()
	}
	n := &namespace{
		source: ns, view: g.seen(ns), globals: g, nodes: nodes,
		auth: prev.auth, services: prev.services, pods: prev.pods,
	}
	if prev.source == nil || prev.view.PeerAuthentications != n.view.PeerAuthentications {
		n.auth = authenticationOf(n.view, g)
	}
	moved := changedNodes(prev.nodes, nodes)
	touched := n.translatePods(prev, moved)
	n.translateServices(prev, moved, touched)
	n.selected, n.inbounds = nil, nil
	n.collectProblems(prev)
	return n
}

// stale gives what may be taken from n, which may be nil, when nothing of it holds as it is: the parts to compare with.
func (n *namespace) stale() *namespace {
	s := &namespace{view: &index.Namespace{}, services: n.servicesOrNone(), pods: n.podsOrNone()}
	if n != nil {
		s.serviceProblems, s.podProblems = n.serviceProblems, n.podProblems
	}
	return s
}

func (n *namespace) servicesOrNone() map[string]*servicePart {
	if n == nil {
		return nil
	}
	return n.services
}

func (n *namespace) podsOrNone() map[string]*podPart {
	if n == nil {
		return nil
	}
	return n.pods
}

func changedNodes(before, after *index.Table[*index.Node]) map[string]bool {
	changed := map[string]bool{}
	for was, is := range index.Changes(before, after) {
		if is == nil {
			is = was
		}
		changed[is.Name] = true
	}
	return changed
}

// translatePods makes the pods' parts and names those of which something that endpoints show has changed.
func (n *namespace) translatePods(prev *namespace, moved map[string]bool) (touched map[string]bool) {
	touched = map[string]bool{}
	dirty := map[string]*index.Pod{} // nil for gone
	if n.allPodsDirty(prev) {
		for name := range n.pods {
			dirty[name] = nil
		}
		for _, p := range n.view.Pods.All() {
			dirty[p.Name] = p
		}
	} else {
		for was, is := range index.Changes(prev.view.Pods, n.view.Pods) {
			if is == nil {
				dirty[was.Name] = nil
			} else {
				dirty[is.Name] = is
			}
		}
		if len(moved) > 0 {
			for _, p := range n.view.Pods.All() {
				if moved[p.Node] {
					dirty[p.Name] = p
				}
			}
		}
	}
	if len(dirty) == 0 {
		return touched
	}
	n.inbounds = map[string]*mesh.Inbound{}
	for _, p := range n.pods {
		n.inbounds[p.key] = p.workload.Inbound
	}
	before := n.pods
	n.pods = maps.Clone(before)
	if n.pods == nil {
		n.pods = make(map[string]*podPart, len(dirty))
	}
	for name, pod := range dirty {
		if pod == nil {
			delete(n.pods, name)
			touched[name] = true
			continue
		}
		part := n.podPart(pod, before[name])
		if n.pods[name] = part; part.differs(before[name]) {
			touched[name] = true
		}
	}
	return touched
}

// allPodsDirty reports whether what leads to pods, or decides about them, has changed.
func (n *namespace) allPodsDirty(prev *namespace) bool {
	if prev.source == nil || prev.view.Services != n.view.Services || prev.view.PeerAuthentications != n.view.PeerAuthentications {
		return true
	}
	for was, is := range index.Changes(prev.view.Slices, n.view.Slices) {
		if is == nil {
			is = was
		}
		if svc := n.view.Services.Get(is.Service); svc != nil && len(svc.Selector) == 0 {
			return true
		}
	}
	return false
}

func (n *namespace) podPart(pod *index.Pod, prev *podPart) *podPart {
	part := &podPart{
		source:   pod,
		identity: "spiffe://" + n.globals.mesh.settings.TrustDomain + "/ns/" + pod.Namespace + "/sa/" + pod.ServiceAccount,
		sidecar:  pod.Labels[label.SecurityTlsMode.Name] == "istio",
	}
	in, problems := n.inbound(pod)
	part.problems, part.key = problems, inboundKey(in)
	if known, ok := n.inbounds[part.key]; ok {
		in = known
	} else {
		n.inbounds[part.key] = in
	}
	part.workload = &mesh.Workload{
		Key:            mesh.WorkloadKey{Namespace: pod.Namespace, Name: pod.Name},
		ServiceAccount: pod.ServiceAccount,
		Addresses:      pod.Addresses,
		Locality:       n.podLocality(pod),
		Inbound:        in,
	}
	if prev != nil && reflect.DeepEqual(part.workload, prev.workload) && in == prev.workload.Inbound {
		part.workload = prev.workload
	}
	return part
}

// differs reports whether endpoints would show the pod otherwise than before.
func (part *podPart) differs(prev *podPart) bool {
	return prev == nil || part.workload != prev.workload || part.identity != prev.identity || part.sidecar != prev.sidecar ||
		part.source.UID != prev.source.UID
}

// podLocality is that of the node, unless the pod's label says another: region, zone and subzone with dots or slashes
// between them.
func (n *namespace) podLocality(pod *index.Pod) mesh.Locality {
	said := pod.Labels[label.TopologyLocality.Name]
	if said == "" {
		return localityOf(n.nodes.Get(pod.Node))
	}
	separator := "."
	if strings.Contains(said, "/") {
		separator = "/"
	}
	parts := append(strings.SplitN(said, separator, 3), "", "")
	return mesh.Locality{Region: parts[0], Zone: parts[1], Subzone: parts[2]}
}

// translateServices makes the parts of the services that have changed, whose slices have, or that lead to a pod or node that
// has.
func (n *namespace) translateServices(prev *namespace, moved, touched map[string]bool) {
	dirty := map[string]bool{}
	if prev.source == nil {
		for _, s := range n.view.Services.All() {
			dirty[s.Name] = true
		}
		for name := range n.services {
			dirty[name] = true
		}
	}
	for was, is := range index.Changes(prev.view.Services, n.view.Services) {
		if is == nil {
			is = was
		}
		dirty[is.Name] = true
	}
	for was, is := range index.Changes(prev.view.Slices, n.view.Slices) {
		if is == nil {
			is = was
		}
		dirty[is.Service] = true
	}
	if len(moved)+len(touched) > 0 {
		for _, slice := range n.view.Slices.All() {
			if !dirty[slice.Service] && slices.ContainsFunc(slice.Endpoints, func(e index.Endpoint) bool {
				return touched[e.Pod] || e.Pod == "" && moved[e.Node]
			}) {
				dirty[slice.Service] = true
			}
		}
	}
	if len(dirty) == 0 {
		return
	}
	before := n.services
	n.services = maps.Clone(before)
	if n.services == nil {
		n.services = make(map[string]*servicePart, len(dirty))
	}
	for name := range dirty {
		if svc := n.view.Services.Get(name); svc != nil {
			n.services[name] = n.servicePart(svc, before[name])
		} else {
			delete(n.services, name)
		}
	}
}

// collectProblems gathers what is wrong with the parts; many pods have the same problem.
func (n *namespace) collectProblems(prev *namespace) {
	n.serviceProblems, n.podProblems = prev.serviceProblems, prev.podProblems
	if !sameMap(n.services, prev.services) {
		n.serviceProblems = nil
		for _, s := range n.services {
			n.serviceProblems = append(n.serviceProblems, s.problems...)
		}
		n.serviceProblems = sorted(n.serviceProblems)
	}
	if !sameMap(n.pods, prev.pods) {
		n.podProblems = nil
		for _, p := range n.pods {
			n.podProblems = append(n.podProblems, p.problems...)
		}
		n.podProblems = sorted(n.podProblems)
	}
}
