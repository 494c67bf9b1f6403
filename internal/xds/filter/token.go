package filter

import (
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// tokens gives the filter's configuration: a request without a token passes, one with a token of one of the issuers that is good
// passes, every other is answered with 401. What the token says stands in the metadata for RBAC.
func tokens(issuers []*mesh.Token) *jwtv3.JwtAuthentication {
	out := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{}, BypassCorsPreflight: true}
	var each, all []*jwtv3.JwtRequirement
	for i, t := range issuers {
		name := "origins-" + strconv.Itoa(i)
		out.Providers[name] = provideToken(t)
		good := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: name}}
		each = append(each, good)
		all = append(all, oneOf(good, missing()))
	}
	requirement := all[0]
	if len(all) > 1 {
		// Issuers may look for their tokens in one place. Then the token of one is a wrong one to the others, so a good token of any is
		// enough; without a good one, each may only miss its token.
		requirement = oneOf(append(each, &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{
			RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: all},
		}})...)
	}
	out.Rules = []*jwtv3.RequirementRule{{
		Match:           &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		RequirementType: &jwtv3.RequirementRule_Requires{Requires: requirement},
	}}
	return out
}

func missing() *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
}

func oneOf(some ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: some}}}
}

func provideToken(t *mesh.Token) *jwtv3.JwtProvider {
	out := &jwtv3.JwtProvider{
		Issuer: t.Issuer, Audiences: t.Audiences, FromParams: t.Params, FromCookies: t.Cookies, Forward: t.Forward,
		ForwardPayloadHeader: t.PayloadHeader, PayloadInMetadata: payload,
		NormalizePayloadInMetadata: &jwtv3.JwtProvider_NormalizePayload{SpaceDelimitedClaims: t.Lists},
		JwksSourceSpecifier:        &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: t.Keys}}},
	}
	for _, h := range t.Headers {
		out.FromHeaders = append(out.FromHeaders, &jwtv3.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
	}
	for _, c := range t.ClaimHeaders {
		out.ClaimToHeaders = append(out.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: c.Header, ClaimName: c.Claim})
	}
	return out
}
