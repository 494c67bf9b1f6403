package index

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// DefaultRevision is the name of the revision that has none.
const DefaultRevision = "default"

// Config says whose world the snapshots are.
type Config struct {
	Namespace     string // of the control plane, such as istio-system
	Revision      string // "" or "default" for the default revision
	TrustDomain   string // that the CA signs for; "" leaves it to the mesh configuration
	ClusterDomain string // the suffix of service hosts, "" for cluster.local
}

// revision is the revision by its name, also where it has none.
func (c Config) revision() string { return cmp.Or(c.Revision, DefaultRevision) }

// MeshConfigMap is the name of the ConfigMap that holds this revision's mesh configuration.
func (c Config) MeshConfigMap() string {
	if c.Revision == "" || c.Revision == DefaultRevision {
		return "istio"
	}
	return "istio-" + c.Revision
}

// Kind is a kind of object that snapshots are made of.
type Kind string

// The kinds, by the name of their resource.
const (
	Namespaces     Kind = "namespaces"
	Nodes          Kind = "nodes"
	Services       Kind = "services"
	EndpointSlices Kind = "endpointslices"
	Pods           Kind = "pods"
	ConfigMaps     Kind = "configmaps"
)

// Builder collects objects and gives snapshots of them. It is for one goroutine at a time.
type Builder struct {
	config   Config
	nodes    part[*Node]
	spaces   map[string]*space
	sliceOf  map[objectName]string // the service of each slice
	mesh     *MeshConfig
	meshText *string // what mesh was last read from, also when that failed; nil for nothing

	problems    []diag.Problem // of the mesh configuration
	unavailable map[Kind]diag.Problem
	keys        *Keys

	dirty   map[string]struct{} // namespaces with something pending
	changed bool                // something else than a namespace's part is to go into the next snapshot
	last    *Snapshot
}

type objectName struct{ namespace, name string }

// space is a namespace while it is built.
type space struct {
	exists    bool // the Namespace object was seen
	labels    map[string]string
	services  part[*Service]
	slices    part[*EndpointSlice]
	pods      part[*Pod]
	policies  part[*PeerAuthentication]
	resources [kindCount]part[*Resource]
	published *Namespace
}

// part is a table and what is about to change in it; a nil object is about to go.
type part[T object] struct {
	table   *Table[T]
	pending map[string]T
}

func (p *part[T]) get(key string) T {
	if v, ok := p.pending[key]; ok {
		return v
	}
	return p.table.Get(key)
}

// same compares two objects by what they say.
func same[T object](a, b T) bool {
	if one, ok := any(a).(interface{ equal(T) bool }); ok {
		return one.equal(b)
	}
	return reflect.DeepEqual(a, b)
}

// put reports whether v, which may be nil for "gone", is something new.
func (p *part[T]) put(key string, v T) bool {
	if same(p.get(key), v) {
		return false
	}
	if same(p.table.Get(key), v) { // changed back: the published pointer stays
		delete(p.pending, key)
		return true
	}
	if p.pending == nil {
		p.pending = map[string]T{}
	}
	p.pending[key] = v
	return true
}

// keep puts nil for every key that is not in the set, and reports whether there was one.
func (p *part[T]) keep(keys map[string]bool) (changed bool) {
	var gone T
	all := maps.Clone(p.pending)
	for _, v := range p.table.All() {
		if _, ok := p.pending[v.key()]; !ok {
			if all == nil {
				all = map[string]T{}
			}
			all[v.key()] = v
		}
	}
	for key := range all {
		if !keys[key] && p.put(key, gone) {
			changed = true
		}
	}
	return changed
}

func (p *part[T]) flush() (changed bool) {
	if len(p.pending) == 0 {
		return false
	}
	before := p.table
	p.table, p.pending = before.with(p.pending), nil
	return p.table != before
}

// New gives a builder of an empty world.
func New(c Config) (*Builder, error) {
	if c.Namespace == "" {
		return nil, errors.New("new index: the namespace of the control plane is not set")
	}
	if c.Revision == DefaultRevision {
		c.Revision = ""
	}
	defaults, _, err := ParseMeshConfig("")
	if err != nil {
		return nil, fmt.Errorf("new index: %w", err)
	}
	return &Builder{
		config: c, spaces: map[string]*space{}, sliceOf: map[objectName]string{}, dirty: map[string]struct{}{},
		unavailable: map[Kind]diag.Problem{}, mesh: &MeshConfig{Values: defaults}, changed: true,
	}, nil
}

// Set takes in an object that is new or has changed: *corev1.Service, Pod, Namespace, Node, ConfigMap,
// *discoveryv1.EndpointSlice, *securityv1.PeerAuthentication, *unstructured.Unstructured of a kind of Istio's API. Others are an
// error. The object is not kept.
func (b *Builder) Set(obj any) error { return b.apply(obj, false) }

// Delete takes an object out. Only its name and namespace are read.
func (b *Builder) Delete(obj any) error { return b.apply(obj, true) }

func (b *Builder) apply(obj any, gone bool) error {
	switch o := obj.(type) {
	case *corev1.Service:
		put(b, &b.space(o.Namespace).services, o.Namespace, o.Name, unless(gone, projectService, o))
	case *corev1.Pod:
		put(b, &b.space(o.Namespace).pods, o.Namespace, o.Name, unless(gone, projectPod, o))
	case *securityv1.PeerAuthentication:
		project := func(o *securityv1.PeerAuthentication) *PeerAuthentication {
			return projectPeerAuthentication(o, b.config.Revision)
		}
		put(b, &b.space(o.Namespace).policies, o.Namespace, o.Name, unless(gone, project, o))
	case *unstructured.Unstructured:
		if !b.setIstio(o, gone) {
			return fmt.Errorf("index object: %s is not a kind that is indexed", o.GroupVersionKind())
		}
	case *discoveryv1.EndpointSlice:
		b.setSlice(objectName{o.Namespace, o.Name}, unless(gone, projectSlice, o))
	case *corev1.Node:
		if b.nodes.put(o.Name, unless(gone, projectNode, o)) {
			b.changed = true
		}
	case *corev1.Namespace:
		s := b.space(o.Name)
		exists, labels := !gone, maps.Clone(o.Labels)
		if gone {
			labels = nil
		}
		if s.exists != exists || !maps.Equal(s.labels, labels) {
			s.exists, s.labels = exists, labels
			b.dirty[o.Name] = struct{}{}
		}
	case *corev1.ConfigMap:
		if o.Namespace == b.config.Namespace && o.Name == b.config.MeshConfigMap() {
			if gone {
				o = nil
			}
			b.setMesh(o)
		}
	default:
		return fmt.Errorf("index object: %T is not a kind that is indexed", obj)
	}
	return nil
}

// unless projects an object that is not gone.
func unless[O, T any](gone bool, project func(*O) *T, o *O) *T {
	if gone {
		return nil
	}
	return project(o)
}

func put[T object](b *Builder, p *part[T], namespace, key string, v T) {
	if p.put(key, v) {
		b.dirty[namespace] = struct{}{}
	}
}

// setSlice also moves a slice whose service has changed.
func (b *Builder) setSlice(name objectName, s *EndpointSlice) {
	all := &b.space(name.namespace).slices
	if old, ok := b.sliceOf[name]; ok && (s == nil || old != s.Service) {
		delete(b.sliceOf, name)
		put(b, all, name.namespace, sliceKey(old, name.name), nil)
	}
	if s != nil {
		b.sliceOf[name] = s.Service
		put(b, all, name.namespace, s.id, s)
	}
}

func (b *Builder) space(name string) *space {
	s, ok := b.spaces[name]
	if !ok {
		s = &space{}
		b.spaces[name] = s
		b.dirty[name] = struct{}{} // so that it goes again if nothing comes of it
	}
	return s
}

// Replace takes in the complete list of one kind: what is not in it is gone.
func (b *Builder) Replace(kind Kind, objects []any) error {
	named := map[objectName]bool{}
	for _, obj := range objects {
		if err := b.Set(obj); err != nil {
			return err
		}
		meta, ok := obj.(interface {
			GetNamespace() string
			GetName() string
		})
		if ok {
			named[objectName{meta.GetNamespace(), meta.GetName()}] = true
		}
	}
	return b.forgetOthers(kind, named)
}

func (b *Builder) forgetOthers(kind Kind, named map[objectName]bool) error {
	byNamespace := map[string]map[string]bool{}
	for n := range named {
		if byNamespace[n.namespace] == nil {
			byNamespace[n.namespace] = map[string]bool{}
		}
		byNamespace[n.namespace][n.name] = true
	}
	switch kind {
	case Nodes:
		b.changed = b.nodes.keep(byNamespace[""]) || b.changed
	case ConfigMaps:
		if !named[objectName{b.config.Namespace, b.config.MeshConfigMap()}] {
			b.setMesh(nil)
		}
	case EndpointSlices:
		for name := range maps.Clone(b.sliceOf) {
			if !named[name] {
				b.setSlice(name, nil)
			}
		}
	case Namespaces:
		for name, s := range b.spaces {
			if s.exists && !named[objectName{name: name}] {
				s.exists, s.labels = false, nil
				b.dirty[name] = struct{}{}
			}
		}
	default:
		if kind != Services && kind != Pods && slot(kind) < 0 {
			return fmt.Errorf("index list: %q is not a kind that is indexed", kind)
		}
		for name, s := range b.spaces {
			if s.keep(kind, byNamespace[name]) {
				b.dirty[name] = struct{}{}
			}
		}
	}
	return nil
}

func (s *space) keep(kind Kind, names map[string]bool) bool {
	if kind == Services {
		return s.services.keep(names)
	}
	if kind == Pods {
		return s.pods.keep(names)
	}
	changed := s.resources[slot(kind)].keep(names)
	if kind == PeerAuthentications {
		changed = s.policies.keep(names) || changed
	}
	return changed
}

// SetUnavailable records that a kind cannot be read, until the problem is taken back with ok. What was read before stays.
func (b *Builder) SetUnavailable(kind Kind, p diag.Problem) {
	if b.unavailable[kind] != p {
		b.unavailable[kind], b.changed = p, true
	}
}

// SetAvailable takes back SetUnavailable.
func (b *Builder) SetAvailable(kind Kind) {
	if _, ok := b.unavailable[kind]; ok {
		delete(b.unavailable, kind)
		b.changed = true
	}
}

func (b *Builder) meshProblems(ps ...diag.Problem) {
	if !slices.Equal(b.problems, ps) {
		b.problems, b.changed = ps, true
	}
}

// Snapshot gives the present state: the same pointer as before when nothing has changed.
func (b *Builder) Snapshot() *Snapshot {
	namespaces := map[string]*Namespace{}
	for name := range b.dirty {
		s := b.spaces[name]
		if s.flush(name) {
			namespaces[name] = s.published
		}
		if s.published == nil {
			delete(b.spaces, name)
		}
	}
	clear(b.dirty)
	if len(namespaces) == 0 && !b.changed {
		return b.last
	}
	b.nodes.flush()
	next := &Snapshot{Config: b.config, Mesh: b.mesh, Nodes: b.nodes.table, Keys: b.keys, Problems: slices.Clone(b.problems)}
	for _, kind := range slices.Sorted(maps.Keys(b.unavailable)) {
		next.Problems = append(next.Problems, b.unavailable[kind])
	}
	var before *Table[*Namespace]
	if b.last != nil {
		before = b.last.Namespaces
	}
	next.Namespaces = before.with(namespaces)
	b.last, b.changed = next, false
	return next
}

// flush makes the namespace anew and reports whether it differs. A namespace with nothing in it is nil.
func (s *space) flush(name string) bool {
	differs := s.services.flush()
	differs = s.slices.flush() || differs
	differs = s.pods.flush() || differs
	differs = s.policies.flush() || differs
	next := &Namespace{
		Name: name, Labels: s.labels,
		Services: s.services.table, Slices: s.slices.table, Pods: s.pods.table, PeerAuthentications: s.policies.table,
	}
	for i := range s.resources {
		differs = s.resources[i].flush() || differs
		next.resources[i] = s.resources[i].table
	}
	if !s.exists && next.Services == nil && next.Slices == nil && next.Pods == nil && next.PeerAuthentications == nil && next.resources == (tables{}) {
		next = nil
	}
	was := s.published
	if !differs && (was == nil) == (next == nil) && (next == nil || maps.Equal(was.Labels, next.Labels)) {
		return false
	}
	s.published = next
	return true
}
