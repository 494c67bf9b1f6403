package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	securityapi "istio.io/api/security/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// decision is a mode and the policy that it came from, which is nil for the default.
type decision struct {
	mode mesh.Mode
	by   *index.PeerAuthentication
}

func (d decision) refs() []ref.Ref {
	if d.by == nil {
		return nil
	}
	return []ref.Ref{d.by.Ref()}
}

// inherit gives the decision of a narrower level: what it leaves unset is as the wider one says.
func (d decision) inherit(mode securityapi.PeerAuthentication_MutualTLS_Mode, by *index.PeerAuthentication) decision {
	switch mode {
	case securityapi.PeerAuthentication_MutualTLS_STRICT:
		return decision{mesh.Strict, by}
	case securityapi.PeerAuthentication_MutualTLS_PERMISSIVE:
		return decision{mesh.Permissive, by}
	case securityapi.PeerAuthentication_MutualTLS_DISABLE:
		return decision{mesh.Disabled, by}
	case securityapi.PeerAuthentication_MutualTLS_UNSET:
	}
	return d
}

// authentication is the policies that hold in one namespace.
type authentication struct {
	base      decision                    // of the mesh and the namespace
	workloads []*index.PeerAuthentication // those with a selector, oldest first
	problems  []diag.Problem
}

// olderFirst is the order in which policies of one level count: the first one wins. Source: PeerAuthentication's
// documentation; names decide between policies of the same second.
func olderFirst(a, b *index.PeerAuthentication) int {
	return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.Name, b.Name))
}

// wide gives the policy without a selector that holds for a namespace as a whole.
func wide(ns *index.Namespace) (oldest *index.PeerAuthentication) {
	if ns == nil {
		return nil
	}
	for _, p := range ns.PeerAuthentications.All() {
		if len(p.Selector) == 0 && (oldest == nil || olderFirst(p, oldest) < 0) {
			oldest = p
		}
	}
	return oldest
}

// authenticationOf resolves the levels above the workload. The root namespace's own policy is the mesh's, which is the only
// level that the root namespace has.
func authenticationOf(ns *index.Namespace, g globals) (a authentication) {
	isRoot := ns.Name == g.mesh.settings.RootNamespace
	if g.meshPolicy != nil {
		a.base = a.base.inherit(g.meshPolicy.Mode, g.meshPolicy)
	}
	oldest := wide(ns)
	if oldest != nil && !isRoot {
		a.base = a.base.inherit(oldest.Mode, oldest)
	}
	for _, p := range ns.PeerAuthentications.All() {
		r := reader{object: p.Ref()}
		switch {
		case len(p.Selector) > 0 && isRoot:
			r.add(diag.InvalidField, diag.Error, "spec.selector", "a policy with a selector has no effect in the root namespace, "+ns.Name,
				"move it to the namespace of the workloads, or take the selector out so that it holds for the mesh")
		case len(p.Selector) > 0:
			a.workloads = append(a.workloads, p)
		case p != oldest:
			r.add(diag.InvalidField, diag.Error, "", "it has no effect: "+oldest.Ref().String()+" has no selector either, and is older",
				"keep one of the two: kubectl -n "+p.Namespace+" delete peerauthentication "+p.Name)
		}
		if len(p.Selector) == 0 && len(p.Ports) > 0 {
			r.add(diag.InvalidField, diag.Error, "spec.portLevelMtls", "modes of ports have no effect in a policy without a selector",
				"name the workloads in spec.selector.matchLabels")
		}
		for _, port := range p.Ports {
			if port.Number < 1 || port.Number > 65535 {
				r.add(diag.InvalidField, diag.Error, fmt.Sprintf("spec.portLevelMtls[%d]", port.Number), "a port is from 1 to 65535", "mend the number")
			}
		}
		a.problems = append(a.problems, r.problems...)
	}
	slices.SortFunc(a.workloads, olderFirst)
	return a
}

// workloadAuthentication is what holds for one pod.
type workloadAuthentication struct {
	base   decision
	policy *index.PeerAuthentication // of the workload, nil for none
}

// of resolves the policies for a pod with these labels; the problem of each policy that loses against an older one is
// added to problems.
func (a *authentication) of(labels map[string]string) (w workloadAuthentication, problems []diag.Problem) {
	w.base = a.base
	for _, p := range a.workloads {
		if !matches(p.Selector, labels) {
			continue
		}
		if w.policy != nil {
			problems = append(problems, diag.Problem{
				Code: diag.InvalidField, Severity: diag.Error, Object: p.Ref(), Field: "spec.selector",
				Detail: "it has no effect on pods that " + w.policy.Ref().String() + " selects too, because that is older",
				Hint:   "let every pod be selected by one policy only",
			})
			continue
		}
		w.policy = p
		w.base = w.base.inherit(p.Mode, p)
	}
	return w, problems
}

// port gives the mode of one port of the workload.
func (w workloadAuthentication) port(number uint32) decision {
	if w.policy != nil {
		for _, p := range w.policy.Ports {
			if p.Number == number {
				return w.base.inherit(p.Mode, w.policy)
			}
		}
	}
	return w.base
}

// matches reports whether the labels have every pair of a selector that is not empty.
func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(selector) > 0
}
