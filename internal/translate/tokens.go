package translate

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	securityapi "istio.io/api/security/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

// tokenPart translates one RequestAuthentication. Of one that cannot be read, nobody can tell whose tokens would be checked, and who
// takes a token for good because the mesh checks it must not be given one that is not: everything is refused in its namespace.
func tokenPart(r *index.Resource, m *meshWide) *accessPart {
	part := &accessPart{source: r}
	p := &policyReader{reader: reader{object: r.Ref()}, namespace: r.Namespace, mesh: m}
	spec, ok := r.Spec.(*securityapi.RequestAuthentication)
	if !ok || spec == nil {
		p.add(diag.InvalidField, diag.Error, "", "it cannot be read, so all requests are refused to every workload of its namespace, because nobody can tell whose tokens are to be checked",
			"mend what the other problems of this object name, or delete it: kubectl -n "+r.Namespace+" delete requestauthentication "+r.Name)
		part.policy = refuseAll(r)
		part.problems = p.problems
		return part
	}
	part.selector, part.nothing = selectorOf(spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
	for i, rule := range spec.GetJwtRules() {
		part.tokens = append(part.tokens, p.token(at("spec.jwtRules", i), rule))
	}
	part.problems = append(p.problems, refusedFields(p.object, spec)...)
	return part
}

// token translates one issuer. Whatever is wrong with its keys, the issuer stays: its tokens are refused then.
func (p *policyReader) token(field string, rule *securityapi.JWTRule) *mesh.Token {
	t := &mesh.Token{
		Issuer: rule.GetIssuer(), Audiences: rule.GetAudiences(), Params: rule.GetFromParams(), Cookies: rule.GetFromCookies(),
		Forward: rule.GetForwardOriginalToken(), PayloadHeader: rule.GetOutputPayloadToHeader(), Ref: p.object,
	}
	// A scope is a list with spaces between its items (RFC 8693): policies ask for one of them.
	t.Lists = slices.Compact(slices.Sorted(slices.Values(append([]string{"permission", "scope"}, rule.GetSpaceDelimitedClaims()...))))
	// Envoy refuses a listener as a whole for a header's name that cannot be one, and no request can have such a header.
	impossible := func(field, name string) bool {
		if httpguts.ValidHeaderFieldName(name) {
			return false
		}
		p.add(diag.InvalidField, diag.Error, field, quoted(name)+" is no name of a header, so it is left out", "write a header's name, such as x-token")
		return true
	}
	for i, h := range rule.GetFromHeaders() {
		if !impossible(at(field+".fromHeaders", i)+".name", h.GetName()) && httpguts.ValidHeaderFieldValue(h.GetPrefix()) {
			t.Headers = append(t.Headers, mesh.TokenHeader{Name: h.GetName(), Prefix: h.GetPrefix()})
		}
	}
	for i, c := range rule.GetOutputClaimToHeaders() {
		if !impossible(at(field+".outputClaimToHeaders", i)+".header", c.GetHeader()) && c.GetClaim() != "" {
			t.ClaimHeaders = append(t.ClaimHeaders, mesh.ClaimHeader{Header: c.GetHeader(), Claim: c.GetClaim()})
		}
	}
	if t.PayloadHeader != "" && impossible(field+".outputPayloadToHeader", t.PayloadHeader) {
		t.PayloadHeader = ""
	}
	if t.Issuer == "" {
		p.fail(diag.InvalidField, field+".issuer", "it is missing", "name the issuer, as the claim iss of its tokens does")
	}
	t.Keys = p.keys(field, rule)
	return t
}

func (p *policyReader) keys(field string, rule *securityapi.JWTRule) string {
	const refused = "; until then every token of this issuer is refused"
	if inline := rule.GetJwks(); inline != "" {
		if !isKeySet(inline) {
			p.fail(diag.InvalidField, field+".jwks", "it is no JSON web key set with a key that can be used"+refused, `write {"keys": [...]}`)
			return noKeys()
		}
		return inline
	}
	uri := KeyURI(rule)
	known, ok := p.mesh.keys.Get(uri)
	switch {
	case ok && isKeySet(known.Text):
		if known.Error != "" {
			p.add(diag.SourceUnavailable, diag.Warning, field+".jwksUri", "the keys of "+uri+" cannot be read any more: "+known.Error+"; those read last stay in force", "see to it that the control plane reaches it")
		}
		return known.Text
	case ok && known.Error == "":
		p.add(diag.InvalidField, diag.Error, field+".jwksUri", "what "+uri+" gives is no JSON web key set with a key that can be used"+refused, "see what it answers")
	case ok:
		p.add(diag.SourceUnavailable, diag.Error, field+".jwksUri", "the keys of "+uri+" cannot be read: "+known.Error+refused,
			"see to it that the control plane reaches it, or write the keys into jwks")
	default:
		p.add(diag.SourceUnavailable, diag.Warning, field+".jwksUri", "the keys of "+uri+" were not read yet"+refused, "write the keys into jwks if they do not come")
	}
	return noKeys()
}

// KeyURI is where the keys of an issuer are read that are not in the rule: its jwksUri, or what its discovery document says.
func KeyURI(rule *securityapi.JWTRule) string {
	switch {
	case rule.GetJwks() != "":
		return ""
	case rule.GetJwksUri() != "":
		return rule.GetJwksUri()
	}
	return strings.TrimSuffix(rule.GetIssuer(), "/") + index.Discovery
}

// KeyURIs are where the keys of a snapshot's issuers are to be read, with how long each may take; 0 when no object says.
func KeyURIs(snap *index.Snapshot) map[string]time.Duration {
	wanted := map[string]time.Duration{}
	for _, ns := range snap.Namespaces.All() {
		for _, r := range ns.Resources(index.RequestAuthentications).All() {
			spec, ok := r.Spec.(*securityapi.RequestAuthentication)
			if !ok {
				continue
			}
			for _, rule := range spec.GetJwtRules() {
				if uri := KeyURI(rule); uri != "" {
					wanted[uri] = max(wanted[uri], rule.GetTimeout().AsDuration())
				}
			}
		}
	}
	return wanted
}
