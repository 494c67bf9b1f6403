package translate

import (
	"slices"

	securityapi "istio.io/api/security/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

// authorizationPart translates one AuthorizationPolicy. One that cannot be carried out as a whole refuses everything to what it
// selects, and says so: a part of it could let through what the whole would not.
func authorizationPart(r *index.Resource, m *meshWide) *accessPart {
	part := &accessPart{source: r}
	p := &policyReader{reader: reader{object: r.Ref()}, namespace: r.Namespace, mesh: m}
	spec, readable := r.Spec.(*securityapi.AuthorizationPolicy)
	if readable {
		part.selector, part.nothing = selectorOf(spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
		part.policy = p.policy(r, spec)
	}
	if !r.Valid {
		p.problems = nil // validation says what is wrong
	}
	if readable {
		p.problems = append(p.problems, refusedFields(p.object, spec)...)
	}
	if !part.nothing && (spec == nil || !r.Valid || p.failed || unknownField(r)) {
		part.policy = p.refusal(r, spec)
		part.nothing = part.policy == nil
	}
	part.problems = p.problems
	return part
}

// unknownField reports whether the object has a field that this version does not know. Whatever it says is lost, so what is left may
// let through what the whole would not.
func unknownField(r *index.Resource) bool {
	return slices.ContainsFunc(r.Problems, func(p diag.Problem) bool { return p.Code == diag.UnknownField })
}

// refusal is the policy that takes the place of one that cannot be carried out; nil where that refuses nothing anyway.
func (p *policyReader) refusal(r *index.Resource, spec *securityapi.AuthorizationPolicy) *mesh.AccessPolicy {
	const hint = "mend what the other problems of this object name"
	if r.DryRun || spec.GetAction() == securityapi.AuthorizationPolicy_AUDIT {
		p.add(diag.InvalidField, diag.Error, "", "it cannot be carried out as a whole, so nothing of it is", hint)
		return nil
	}
	selected := "every workload that it selects"
	if spec == nil {
		selected = "every workload of its namespace, because nobody can tell which it selects"
	}
	p.add(diag.InvalidField, diag.Error, "", "it cannot be carried out as a whole, so all requests are refused to "+selected, hint+", or delete it: kubectl -n "+r.Namespace+
		" delete authorizationpolicy "+r.Name)
	return refuseAll(r)
}

// refuseAll is the policy in the name of an object that refuses every request.
func refuseAll(r *index.Resource) *mesh.AccessPolicy {
	return &mesh.AccessPolicy{Namespace: r.Namespace, Name: r.Name, Action: mesh.ActionDeny, Rules: []mesh.AccessRule{{}}, Ref: r.Ref()}
}

// policyReader reads one policy.
type policyReader struct {
	reader
	namespace string
	mesh      *meshWide
	failed    bool // something cannot be carried out
}

// fail notes what cannot be carried out.
func (p *policyReader) fail(code diag.Code, field, detail, hint string) {
	p.failed = true
	p.add(code, diag.Error, field, detail, hint)
}

func (p *policyReader) policy(r *index.Resource, spec *securityapi.AuthorizationPolicy) *mesh.AccessPolicy {
	out := &mesh.AccessPolicy{Namespace: r.Namespace, Name: r.Name, DryRun: r.DryRun, Ref: r.Ref()}
	switch spec.GetAction() {
	case securityapi.AuthorizationPolicy_ALLOW:
		out.Action = mesh.ActionAllow
	case securityapi.AuthorizationPolicy_DENY:
		out.Action = mesh.ActionDeny
	case securityapi.AuthorizationPolicy_AUDIT:
		out.Action = mesh.ActionAudit
	case securityapi.AuthorizationPolicy_CUSTOM:
		out.Action = mesh.ActionCustom
		out.Provider = p.authorizer(spec.GetProvider().GetName())
	default:
		p.fail(diag.UnsupportedField, "spec.action", spec.GetAction().String()+" is not an action that this version knows", "write ALLOW, DENY, AUDIT or CUSTOM")
	}
	for i, rule := range spec.GetRules() {
		out.Rules = append(out.Rules, p.rule(at("spec.rules", i), rule))
	}
	return out
}

// authorizer finds a provider by its name; one that nobody can ask where there is none.
func (p *policyReader) authorizer(name string) *mesh.Authorizer {
	if a, ok := p.mesh.authorizers[name]; ok {
		return a
	}
	p.add(diag.InvalidField, diag.Error, "spec.provider.name", "the mesh configuration has no external authorizer "+quoted(name)+
		" that can be used: what it would be asked about is refused", "add it to extensionProviders, as envoyExtAuthzHttp or envoyExtAuthzGrpc")
	return &mesh.Authorizer{Name: name}
}
