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
	"github.com/selvage-mesh/selvage/internal/ref"
)

// globals is everything from outside a namespace, but for nodes, that its translation depends on. It is compared.
type globals struct {
	mesh       *meshWide
	meshPolicy *index.PeerAuthentication
	access     *access // of the root namespace; nil when that is not there
}

// namespace is one namespace, translated. Once it is made it does not change.
type namespace struct {
	source  *index.Namespace
	view    *index.Namespace // what the mesh sees of source: only the pods when the discovery selectors leave it out
	globals globals
	nodes   *index.Table[*index.Node]

	auth     authentication
	entries  *entries
	rules    *rules
	virtual  *virtualServices
	access   *access
	services map[string]*servicePart // by name
	pods     map[string]*podPart     // by name

	serviceProblems, podProblems []diag.Problem // of all services and pods, sorted, each once
	resourceProblems             []diag.Problem // of the objects of Istio's API, each looked at alone

	selected *selection               // of view's services; nil when no pod has needed it yet
	inbounds map[string]*mesh.Inbound // by content: those that pods have, and perhaps some that they had
}

// changes are the names of what was translated again: all else is the same part as before.
type changes struct{ services, pods map[string]bool }

// all names everything in n, which may be nil.
func (n *namespace) all() changes {
	c := changes{map[string]bool{}, map[string]bool{}}
	if n != nil {
		for name := range n.services {
			c.services[name] = true
		}
		for name := range n.pods {
			c.pods[name] = true
		}
	}
	return c
}

// podPart is what one pod became.
type podPart struct {
	source   *index.Pod
	workload *mesh.Workload
	identity string // SPIFFE
	sidecar  bool   // it says that a sidecar takes its mutual TLS
	labels   *mesh.Labels
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
func translateNamespace(prev *namespace, ns *index.Namespace, g globals, nodes *index.Table[*index.Node]) (*namespace, changes) {
	if prev != nil && prev.source == ns && prev.globals == g && prev.nodes == nodes {
		return prev, changes{}
	}
	if prev == nil || prev.globals != g {
		prev = prev.stale()
	}
	n := &namespace{
		source: ns, view: g.seen(ns), globals: g, nodes: nodes, auth: prev.auth, entries: prev.entries, rules: prev.rules, virtual: prev.virtual, services: prev.services, pods: prev.pods,
		serviceProblems: prev.serviceProblems, podProblems: prev.podProblems, resourceProblems: prev.resourceProblems, selected: prev.selected, inbounds: prev.inbounds,
	}
	if prev.source == nil || prev.view.PeerAuthentications != n.view.PeerAuthentications {
		n.auth = authenticationOf(n.view, g)
	}
	if n.access = g.access; ns.Name != g.mesh.settings.RootNamespace {
		n.access = accessOf(prev.access, n.view, g.mesh)
	}
	moved := changedNodes(prev.nodes, nodes)
	if prev.source == nil || !prev.view.SameResources(n.view) {
		n.resourceProblems = resourceProblems(n.view)
	}
	n.readTraffic(prev)
	pods, touched := n.translatePods(prev, moved)
	n.readEntries(prev)
	return n, changes{n.translateServices(prev, moved, touched), pods}
}

// stale gives what may be taken from n, which may be nil, when nothing of it holds as it is: the parts to compare with.
func (n *namespace) stale() *namespace {
	s := &namespace{view: &index.Namespace{}}
	if n != nil {
		s.services, s.pods, s.inbounds, s.entries = n.services, n.pods, n.inbounds, n.entries
		s.serviceProblems, s.podProblems, s.access = n.serviceProblems, n.podProblems, n.access
	}
	return s
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

// translatePods makes the parts of pods anew where something about them has changed, and names them; touched are those of
// which endpoints show something else than before.
func (n *namespace) translatePods(prev *namespace, moved map[string]bool) (dirty, touched map[string]bool) {
	dirty, touched = n.dirtyPods(prev, moved), map[string]bool{}
	if len(dirty) == 0 {
		return dirty, touched
	}
	before, problems := n.pods, false
	n.pods = clone(before)
	for name := range dirty {
		old := before[name]
		pod := n.view.Pods.Get(name)
		if pod == nil {
			delete(n.pods, name)
			touched[name] = true
			problems = problems || old != nil && len(old.problems) > 0
			continue
		}
		part := n.podPart(pod, old, prev.inbounds)
		n.pods[name] = part
		if part.differs(old) {
			touched[name] = true
		}
		problems = problems || len(part.problems) > 0 || old != nil && len(old.problems) > 0
	}
	if problems {
		n.podProblems = nil
		for _, p := range n.pods {
			n.podProblems = append(n.podProblems, p.problems...)
		}
		n.podProblems = sorted(n.podProblems)
	}
	return dirty, touched
}

// dirtyPods names the pods to look at, also those that are gone, and prepares what the look needs.
func (n *namespace) dirtyPods(prev *namespace, moved map[string]bool) map[string]bool {
	if n.allPodsDirty(prev) {
		n.selected, n.inbounds = nil, map[string]*mesh.Inbound{}
		dirty := n.all().pods
		for _, p := range n.view.Pods.All() {
			dirty[p.Name] = true
		}
		return dirty
	}
	dirty := map[string]bool{}
	for was, is := range index.Changes(prev.view.Pods, n.view.Pods) {
		if is == nil {
			is = was
		}
		dirty[is.Name] = true
	}
	if len(moved) > 0 {
		for _, p := range n.view.Pods.All() {
			if moved[p.Node] {
				dirty[p.Name] = true
			}
		}
	}
	if len(dirty) > 0 {
		n.inbounds = clone(n.inbounds)
	}
	return dirty
}

// clone copies a map; the copy of nil can be written to.
func clone[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// allPodsDirty reports whether what leads to pods, or decides about them, has changed.
func (n *namespace) allPodsDirty(prev *namespace) bool {
	if prev.source == nil || prev.view.Services != n.view.Services || prev.view.PeerAuthentications != n.view.PeerAuthentications ||
		prev.access != n.access {
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

// podPart translates one pod; prev is its part before, nil for none, and known are the inbounds before.
func (n *namespace) podPart(pod *index.Pod, prev *podPart, known map[string]*mesh.Inbound) *podPart {
	part := &podPart{
		source:   pod,
		identity: "spiffe://" + n.globals.mesh.settings.TrustDomain + "/ns/" + pod.Namespace + "/sa/" + pod.ServiceAccount,
		sidecar:  pod.Labels[label.SecurityTlsMode.Name] == "istio",
	}
	if prev != nil && maps.Equal(prev.labels.Values, pod.Labels) {
		part.labels = prev.labels
	} else {
		part.labels = &mesh.Labels{Values: pod.Labels}
	}
	in, problems := n.inbound(pod)
	part.problems = problems
	var content string
	var refs []ref.Ref
	var rivals []diag.Problem
	in.Access, content, refs, rivals = n.accessFor(pod.Labels)
	part.problems = append(part.problems, rivals...)
	in.Refs = append(in.Refs, refs...)
	in = n.intern(in, content, known)
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

// intern gives the one pointer for inbounds of this content, of which access identifies what is in Access.
func (n *namespace) intern(in *mesh.Inbound, access string, known map[string]*mesh.Inbound) *mesh.Inbound {
	key := inboundKey(in) + "\x00" + access
	if one, ok := n.inbounds[key]; ok {
		return one
	}
	if one, ok := known[key]; ok {
		in = one
	}
	n.inbounds[key] = in
	return in
}

// differs reports whether endpoints would show the pod otherwise than before.
func (part *podPart) differs(prev *podPart) bool {
	return prev == nil || part.workload != prev.workload || part.identity != prev.identity || part.sidecar != prev.sidecar ||
		part.labels != prev.labels || part.source.UID != prev.source.UID
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

// translateServices makes the parts of services anew that have changed, whose slices have, or that lead to a pod or node
// that has, and names them.
func (n *namespace) translateServices(prev *namespace, moved, touched map[string]bool) map[string]bool {
	dirty := n.dirtyServices(prev, moved, touched)
	if len(dirty) == 0 {
		return dirty
	}
	before, problems := n.services, false
	n.services = clone(before)
	for name := range dirty {
		old := before[name]
		problems = problems || old != nil && len(old.problems) > 0
		if svc := n.view.Services.Get(name); svc != nil {
			n.services[name] = n.servicePart(svc, old)
			problems = problems || len(n.services[name].problems) > 0
		} else {
			delete(n.services, name)
		}
	}
	if problems {
		n.serviceProblems = nil
		for _, s := range n.services {
			n.serviceProblems = append(n.serviceProblems, s.problems...)
		}
		n.serviceProblems = sorted(n.serviceProblems)
	}
	return dirty
}

func (n *namespace) dirtyServices(prev *namespace, moved, touched map[string]bool) map[string]bool {
	dirty := map[string]bool{}
	if prev.source == nil {
		dirty = n.all().services
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
	if len(moved)+len(touched) == 0 {
		return dirty
	}
	for _, slice := range n.view.Slices.All() {
		if !dirty[slice.Service] && slices.ContainsFunc(slice.Endpoints, func(e index.Endpoint) bool {
			return touched[e.Pod] || e.Pod == "" && moved[e.Node]
		}) {
			dirty[slice.Service] = true
		}
	}
	return dirty
}
