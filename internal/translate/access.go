package translate

import (
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"

	"istio.io/api/type/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// access is the AuthorizationPolicies and RequestAuthentications of one namespace. Once it is made it does not change.
type access struct {
	policies, tokens *index.Table[*index.Resource]
	mesh             *meshWide
	parts            []*accessPart // policies before tokens, each in the order of names
	problems         []diag.Problem
}

// accessPart is what one object became.
type accessPart struct {
	source   *index.Resource
	selector map[string]string // empty for every workload
	nothing  bool              // it selects no sidecar
	policy   *mesh.AccessPolicy
	tokens   []*mesh.Token
	id       string // the same for the same content
	problems []diag.Problem
}

// accessOf translates the objects of a namespace; prev is what they were before, nil for nothing.
func accessOf(prev *access, ns *index.Namespace, m *meshWide) *access {
	a := &access{policies: ns.Resources(index.AuthorizationPolicies), tokens: ns.Resources(index.RequestAuthentications), mesh: m}
	if prev != nil && prev.policies == a.policies && prev.tokens == a.tokens && prev.mesh == m {
		return prev
	}
	before := map[ref.Ref]*accessPart{}
	if prev != nil {
		for _, p := range prev.parts {
			before[p.source.Ref().Object()] = p
		}
	}
	add := func(r *index.Resource, make func(*index.Resource, *meshWide) *accessPart) {
		old := before[r.Ref().Object()]
		part := old
		if old == nil || old.source != r || prev.mesh != m {
			part = make(r, m)
			part.seal(old)
		}
		a.parts = append(a.parts, part)
		a.problems = append(a.problems, part.problems...)
	}
	for _, r := range a.policies.All() {
		add(r, authorizationPart)
	}
	for _, r := range a.tokens.All() {
		add(r, tokenPart)
	}
	return a
}

// seal gives the part its id, and takes from the part before what says the same.
func (p *accessPart) seal(old *accessPart) {
	text, err := json.Marshal(struct {
		Policy *mesh.AccessPolicy
		Tokens []*mesh.Token
	}{p.policy, p.tokens})
	if err != nil { // nothing in it can fail to be written
		text = []byte(p.source.Ref().String())
	}
	sum := sha256.Sum256(text)
	p.id = string(sum[:16])
	if old != nil && old.id == p.id {
		p.policy, p.tokens = old.policy, old.tokens
	}
}

func (p *accessPart) selects(labels map[string]string) bool {
	return !p.nothing && (len(p.selector) == 0 || matches(p.selector, labels))
}

// selectorOf gives the labels of a selector, and whether the object selects no sidecar: one that targetRefs attach to something else.
func selectorOf(selector *v1beta1.WorkloadSelector, one *v1beta1.PolicyTargetReference, more []*v1beta1.PolicyTargetReference) (labels map[string]string, nothing bool) {
	return selector.GetMatchLabels(), selector == nil && (one != nil || len(more) > 0)
}

// accessFor gives what decides who may call a pod with these labels, nil for nothing, and what identifies its content.
func (n *namespace) accessFor(labels map[string]string) (a *mesh.Access, id string, refs []ref.Ref, problems []diag.Problem) {
	var ids strings.Builder
	out := &mesh.Access{}
	for _, from := range n.levels() {
		for _, p := range from.parts {
			if !p.selects(labels) {
				continue
			}
			if p.policy != nil {
				out.Policies = append(out.Policies, p.policy)
			}
			out.Tokens = append(out.Tokens, p.tokens...)
			ids.WriteString(p.id)
			refs = append(refs, p.source.Ref())
		}
	}
	if len(out.Policies)+len(out.Tokens) == 0 {
		return nil, "", refs, nil
	}
	return out, ids.String(), refs, rivals(out.Policies)
}

// rivals tells of policies that ask another authorizer than one before them asks for the same workload.
func rivals(policies []*mesh.AccessPolicy) (problems []diag.Problem) {
	var first *mesh.AccessPolicy
	for _, p := range policies {
		switch {
		case p.Action != mesh.ActionCustom || p.DryRun:
		case first == nil:
			first = p
		case p.Provider.Name != first.Provider.Name:
			problems = append(problems, diag.Problem{
				Code: diag.InvalidField, Severity: diag.Error, Object: p.Ref, Field: "spec.provider.name",
				Detail: "some workload is selected by " + first.Ref.String() + " too, which asks another authorizer, " + quoted(first.Provider.Name) + ": what either would be asked about is refused there",
				Hint:   "let every workload ask one authorizer",
			})
		}
	}
	return problems
}

// levels are the root namespace's objects, which may select workloads anywhere, and the namespace's own.
func (n *namespace) levels() []*access {
	if n.globals.access == n.access || n.globals.access == nil {
		return []*access{n.access}
	}
	return []*access{n.globals.access, n.access}
}

// accessProblems are those of the namespace's own objects.
func (n *namespace) accessProblems() []diag.Problem {
	if n.access == nil {
		return nil
	}
	return slices.Clone(n.access.problems)
}
