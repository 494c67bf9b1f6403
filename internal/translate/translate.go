// Package translate turns Kubernetes and Istio objects into the model of the mesh. It is the only place where Istio's
// semantics live. It is pure and incremental: the same snapshot gives the same model, and a part whose inputs did not
// change is the same pointer in the next one, so that a change costs what it touches.
package translate

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

type labelSet = labels.Set

// memo is how a model was made.
type memo struct {
	snapshot   *index.Snapshot
	mesh       *meshWide
	namespaces map[string]*namespace
	traffic    *traffic
	access     *access // of the root namespace
	problems   []diag.Problem
}

// memory is what stands in mesh.Model.Memo: the latest memo that led to just this model. Which of them it is changes only
// how much work the next translation is.
type memory struct{ latest atomic.Pointer[memo] }

// Model translates a snapshot. It takes from prev, the result of an earlier call or nil, every part that has not changed,
// and gives prev itself when none has. The problems are all that the snapshot has now, sorted: a bad object costs nothing
// but itself. Model may be called from several goroutines.
func Model(prev *mesh.Model, snap *index.Snapshot) (*mesh.Model, []diag.Problem) {
	was := &memo{}
	var kept *memory
	if prev != nil {
		kept, _ = prev.Memo.(*memory)
	}
	if kept == nil {
		prev = &mesh.Model{} // without its memo nothing can be taken from a model
	} else if was = kept.latest.Load(); was.snapshot == snap {
		return prev, slices.Clone(was.problems)
	}
	is, changed := translate(was, snap)
	next := is.assemble(was, prev, changed)
	if kept != nil && next.Settings == prev.Settings && next.Outbound == prev.Outbound && sameMap(next.Outbounds, prev.Outbounds) && sameMap(next.Endpoints, prev.Endpoints) &&
		sameMap(next.Workloads, prev.Workloads) {
		kept.latest.Store(is)
		return prev, slices.Clone(is.problems)
	}
	m := &memory{}
	m.latest.Store(is)
	next.Memo = m
	return next, slices.Clone(is.problems)
}

// translate makes the parts, and says by namespace which of them are not those of was.
func translate(was *memo, snap *index.Snapshot) (is *memo, changed map[string]changes) {
	is = &memo{snapshot: snap, mesh: translateMeshConfig(was.mesh, snap), namespaces: make(map[string]*namespace, snap.Namespaces.Len())}
	g := globals{mesh: is.mesh}
	if root := snap.Namespaces.Get(is.mesh.settings.RootNamespace); root != nil {
		g.meshPolicy = wide(g.seen(root))
		g.access = accessOf(was.access, root, is.mesh)
		is.access = g.access
	}
	changed = map[string]changes{}
	problems := slices.Concat(snap.Problems, is.mesh.problems)
	for _, ns := range snap.Namespaces.All() {
		before := was.namespaces[ns.Name]
		n, what := translateNamespace(before, ns, g, snap.Nodes)
		if is.namespaces[ns.Name] = n; n != before {
			changed[ns.Name] = what
		}
		for _, more := range [][]diag.Problem{n.auth.problems, n.serviceProblems, n.podProblems, n.resourceProblems, n.rules.problems, n.virtual.problems, n.entries.problems, n.accessProblems()} {
			problems = append(problems, more...)
		}
	}
	for name, before := range was.namespaces {
		if is.namespaces[name] == nil {
			changed[name] = before.all()
		}
	}
	is.traffic = translateTraffic(is, was, changed)
	is.problems = sorted(append(problems, is.traffic.problems...))
	return is, changed
}

// sorted orders problems by their object and leaves each in once. It works in place.
func sorted(problems []diag.Problem) []diag.Problem {
	slices.SortFunc(problems, compareProblems)
	return slices.Compact(problems)
}

func compareProblems(a, b diag.Problem) int {
	return cmp.Or(ref.Compare(a.Object, b.Object), strings.Compare(string(a.Code), string(b.Code)), strings.Compare(a.Field, b.Field),
		strings.Compare(a.Detail, b.Detail), strings.Compare(a.Hint, b.Hint), cmp.Compare(a.Severity, b.Severity))
}

// assemble makes the model out of the parts, and keeps of prev, which was made out of was, what they did not change.
func (is *memo) assemble(was *memo, prev *mesh.Model, changed map[string]changes) *mesh.Model {
	endpoints := patch[mesh.EndpointKey, *mesh.EndpointSet]{base: prev.Endpoints}
	workloads := patch[mesh.WorkloadKey, *mesh.Workload]{base: prev.Workloads}
	none := &namespace{}
	for name, what := range changed {
		before, after := cmp.Or(was.namespaces[name], none), cmp.Or(is.namespaces[name], none)
		for service := range what.services {
			old, part := cmp.Or(before.services[service], noService), cmp.Or(after.services[service], noService)
			for _, set := range old.sets {
				endpoints.remove(set.Key)
			}
			for _, set := range part.sets {
				endpoints.set(set.Key, set)
			}
		}
		for pod := range what.pods {
			if part := after.pods[pod]; part != nil {
				workloads.set(part.workload.Key, part.workload)
			} else {
				workloads.remove(mesh.WorkloadKey{Namespace: name, Name: pod})
			}
		}
	}
	if was.traffic != is.traffic {
		before := map[mesh.EndpointKey]subsetSet{}
		if was.traffic != nil {
			before = was.traffic.sets
		}
		for key := range before {
			endpoints.remove(key)
		}
		for key, s := range is.traffic.sets {
			endpoints.set(key, s.set)
		}
	}
	return &mesh.Model{
		Settings: is.mesh.settings, Outbound: is.traffic.outbound, Outbounds: is.traffic.outbounds,
		Endpoints: endpoints.result(), Workloads: workloads.result(),
	}
}

// noService is what stands for a service that is not there.
var noService = &servicePart{}

// patch is a map with changes, which copies the map it began with once there is a change.
type patch[K comparable, V comparable] struct {
	base    map[K]V
	removed map[K]bool // to be removed unless set again
	changed map[K]V
}

func (p *patch[K, V]) remove(k K) {
	if _, ok := p.base[k]; !ok {
		return
	}
	if p.removed == nil {
		p.removed = map[K]bool{}
	}
	p.removed[k] = true
}

func (p *patch[K, V]) set(k K, v V) {
	delete(p.removed, k)
	if old, ok := p.base[k]; ok && old == v {
		return
	}
	if p.changed == nil {
		p.changed = map[K]V{}
	}
	p.changed[k] = v
}

func (p *patch[K, V]) result() map[K]V {
	if p.base == nil {
		if p.changed == nil {
			return map[K]V{}
		}
		return p.changed
	}
	if len(p.removed) == 0 && len(p.changed) == 0 {
		return p.base
	}
	next := maps.Clone(p.base)
	for k := range p.removed {
		delete(next, k)
	}
	maps.Copy(next, p.changed)
	return next
}

// sameMap reports whether two maps are one and the same, not only equal.
func sameMap[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}
