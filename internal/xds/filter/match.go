package filter

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// permission gives one match of a condition about what is called.
func permission(c mesh.AccessCondition, m mesh.ValueMatch) *rbacv3.Permission {
	switch c.Attribute {
	case mesh.AttrDestinationPort:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: m.Port}}
	case mesh.AttrDestinationIP:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: block(m.Network)}}
	case mesh.AttrServerName:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: stringMatcher(m, false)}}
	case mesh.AttrMetadata:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_SourcedMetadata{SourcedMetadata: &rbacv3.SourcedMetadata{
			MetadataMatcher: metadata(c.Names[0], valueMatcher(m), c.Names[1]),
		}}}
	case mesh.AttrPath:
		return pathPermission(m)
	case mesh.AttrHost:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: header(":authority", m, true)}}
	default:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: header(":method", m, false)}}
	}
}

func pathPermission(m mesh.ValueMatch) *rbacv3.Permission {
	if m.Kind == mesh.MatchTemplate {
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UriTemplate{UriTemplate: &corev3.TypedExtensionConfig{
			Name: "envoy.path.match.uri_template.uri_template_matcher", TypedConfig: pack(&uritemplatev3.UriTemplateMatchConfig{PathTemplate: m.Text}),
		}}}
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: stringMatcher(m, false)}}}}
}

// principal gives one match of a condition about the caller.
func principal(c mesh.AccessCondition, m mesh.ValueMatch) *rbacv3.Principal {
	switch c.Attribute {
	case mesh.AttrSourceIP:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: block(m.Network)}}
	case mesh.AttrRemoteIP:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: block(m.Network)}}
	case mesh.AttrHeader:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: header(c.Names[0], m, false)}}
	case mesh.AttrClaim:
		return claim(anyForm(m), c.Names...)
	case mesh.AttrRequestPrincipal:
		return andIDs(claim(valueMatcher(m.Both[0]), "iss"), claim(valueMatcher(m.Both[1]), "sub"))
	default:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{
			Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: stringMatcher(m, false)},
		}}
	}
}

// payload is the key under which jwt_authn keeps what a checked token says.
const payload = "payload"

func claim(value *matcherv3.ValueMatcher, path ...string) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_SourcedMetadata{SourcedMetadata: &rbacv3.SourcedMetadata{
		MetadataMatcher: metadata(tokenFilter, value, append([]string{payload}, path...)...),
	}}}
}

func metadata(filter string, value *matcherv3.ValueMatcher, path ...string) *matcherv3.MetadataMatcher {
	out := &matcherv3.MetadataMatcher{Filter: filter, Value: value}
	for _, key := range path {
		out.Path = append(out.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}})
	}
	return out
}

func valueMatcher(m mesh.ValueMatch) *matcherv3.ValueMatcher {
	if m.Kind == mesh.MatchListItem {
		return item(valueMatcher(m.Both[0]))
	}
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: stringMatcher(m, false)}}
}

func item(of *matcherv3.ValueMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{
		ListMatch: &matcherv3.ListMatcher{MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: of}},
	}}
}

// anyForm matches a claim that is a text, and one that is a list of texts.
func anyForm(m mesh.ValueMatch) *matcherv3.ValueMatcher {
	value := valueMatcher(m)
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{
		OrMatch: &matcherv3.OrMatcher{ValueMatchers: []*matcherv3.ValueMatcher{item(value), value}},
	}}
}

// stringMatcher matches a text. What must only be there is an expression: Envoy takes no empty prefix.
func stringMatcher(m mesh.ValueMatch, ignoreCase bool) *matcherv3.StringMatcher {
	out := &matcherv3.StringMatcher{IgnoreCase: ignoreCase}
	switch m.Kind {
	case mesh.MatchPrefix:
		out.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: m.Text}
	case mesh.MatchSuffix:
		out.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: m.Text}
	case mesh.MatchRegex:
		return regex(m.Text)
	case mesh.MatchPresent:
		return regex(".+")
	default:
		out.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: m.Text}
	}
	return out
}

func regex(text string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: text}}}
}

func header(name string, m mesh.ValueMatch, ignoreCase bool) *routev3.HeaderMatcher {
	if m.Kind == mesh.MatchPresent {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatcher(m, ignoreCase)}}
}

func block(p netip.Prefix) *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}
