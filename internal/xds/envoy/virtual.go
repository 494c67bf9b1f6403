package envoy

import (
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	previouspriorities "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// VirtualHost is the virtual host of a VirtualService on one port. Cluster gives the name of a destination's cluster.
func VirtualHost(name string, domains []string, vs *mesh.VirtualService, port uint32, cluster func(mesh.Destination) string) *routev3.VirtualHost {
	host := &routev3.VirtualHost{Name: name, Domains: domains, IncludeRequestAttemptCount: true}
	for _, r := range vs.HTTP {
		host.Routes = append(host.Routes, routesFor(r, port, cluster)...)
	}
	return host
}

// routesFor gives one route for each match that holds on the port, as Envoy's routes have one match.
func routesFor(r *mesh.HTTPRoute, port uint32, cluster func(mesh.Destination) string) (routes []*routev3.Route) {
	if len(r.Matches) == 0 {
		return []*routev3.Route{virtualRoute(r, &mesh.HTTPMatch{}, cluster)}
	}
	for _, m := range r.Matches {
		if m.Port == 0 || m.Port == port {
			routes = append(routes, virtualRoute(r, m, cluster))
		}
	}
	return routes
}

func virtualRoute(r *mesh.HTTPRoute, m *mesh.HTTPMatch, cluster func(mesh.Destination) string) *routev3.Route {
	out := &routev3.Route{Name: r.Name, Match: routeMatch(m), StatPrefix: m.StatPrefix, TypedPerFilterConfig: map[string]*anypb.Any{}}
	if m.Name != "" {
		out.Name = r.Name + "." + m.Name
	}
	request, authority := withoutAuthority(r.Headers.Request)
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = headerOptions(request)
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = headerOptions(r.Headers.Response)
	switch {
	case r.Redirect != nil:
		out.Action = &routev3.Route_Redirect{Redirect: redirectAction(r.Redirect)}
	case r.Direct != nil:
		out.Action = direct(r.Direct.Status, r.Direct.Body)
	case len(r.Destinations) == 0:
		out.Action = direct(503, nil) // all have the weight 0
	default:
		out.Action = &routev3.Route_Route{Route: routeAction(r, authority, cluster)}
	}
	if r.CORS != nil {
		out.TypedPerFilterConfig[corsFilter] = pack(corsPolicy(r.CORS))
	}
	if r.Fault != nil {
		out.TypedPerFilterConfig[faultFilter] = pack(fault(r.Fault))
	}
	return out
}

func direct(status uint32, body []byte) *routev3.Route_DirectResponse {
	d := &routev3.DirectResponseAction{Status: status}
	if len(body) > 0 {
		d.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: body}}
	}
	return &routev3.Route_DirectResponse{DirectResponse: d}
}

func routeMatch(m *mesh.HTTPMatch) *routev3.RouteMatch {
	out := &routev3.RouteMatch{PathSpecifier: anyPath.GetPathSpecifier()}
	switch m.Path.Kind {
	case mesh.Any:
	case mesh.Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Path.Text}
	case mesh.Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.Path.Text}
	case mesh.Regex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: regex(m.Path.Text)}
	}
	if m.IgnoreCase {
		out.CaseSensitive = wrapperspb.Bool(false)
	}
	for _, pseudo := range []mesh.NamedMatch{{Name: ":authority", Match: m.Authority}, {Name: ":method", Match: m.Method}, {Name: ":scheme", Match: m.Scheme}} {
		if pseudo.Match.Kind != mesh.Any {
			out.Headers = append(out.Headers, headerMatch(pseudo))
		}
	}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, headerMatch(h))
	}
	for _, q := range m.Query {
		p := &routev3.QueryParameterMatcher{Name: q.Name, QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}}
		if q.Match.Kind != mesh.Any {
			p.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: stringMatcher(q.Match)}
		}
		out.QueryParameters = append(out.QueryParameters, p)
	}
	return out
}

// headerMatch compares a header; an empty text asks only whether it is there. What must not match may be missing.
func headerMatch(m mesh.NamedMatch) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: m.Name, InvertMatch: m.Invert}
	if m.Match.Kind == mesh.Any || m.Match.Text == "" {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return h
	}
	h.TreatMissingHeaderAsEmpty = m.Invert
	h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatcher(m.Match)}
	return h
}

func stringMatcher(m mesh.StringMatch) *matcherv3.StringMatcher {
	switch m.Kind {
	case mesh.Prefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: m.Text}}
	case mesh.Regex:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regex(m.Text)}}
	case mesh.Any, mesh.Exact:
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: m.Text}}
}

func regex(pattern string) *matcherv3.RegexMatcher { return &matcherv3.RegexMatcher{Regex: pattern} }

func routeAction(r *mesh.HTTPRoute, authority string, cluster func(mesh.Destination) string) *routev3.RouteAction {
	a := &routev3.RouteAction{Timeout: duration(r.Timeout), MaxStreamDuration: noLimit, RetryPolicy: defaultRetry}
	if r.Timeout > 0 {
		// With a maximum for the stream Envoy does not look at the timeout. The older field bounds what a gRPC client asks for.
		a.MaxStreamDuration = nil
		a.MaxGrpcTimeout = duration(r.Timeout) //nolint:staticcheck // see above
	}
	if r.Retry != nil {
		a.RetryPolicy = retryPolicy(r.Retry)
	}
	destinations(a, r.Destinations, cluster)
	if w := r.Rewrite; w != nil {
		if w.Pattern != "" {
			a.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: regex(w.Pattern), Substitution: w.Substitution}
		} else {
			a.PrefixRewrite = w.URI
		}
		if w.Authority != "" {
			authority = w.Authority
		}
	}
	if authority != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
	}
	for _, m := range r.Mirrors {
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
			Cluster: cluster(m.To), RuntimeFraction: &corev3.RuntimeFractionalPercent{DefaultValue: fraction(m.Percent)},
		})
	}
	return a
}

// destinations sends the requests on by weight. One that is alone has its header changes in the same form, so that it needs no other.
func destinations(a *routev3.RouteAction, to []mesh.Destination, cluster func(mesh.Destination) string) {
	hashed := map[*mesh.Hash]bool{}
	weighted := &routev3.WeightedCluster{}
	plain := true
	for _, d := range to {
		request, authority := withoutAuthority(d.Headers.Request)
		w := &routev3.WeightedCluster_ClusterWeight{Name: cluster(d), Weight: wrapperspb.UInt32(d.Weight)}
		w.RequestHeadersToAdd, w.RequestHeadersToRemove = headerOptions(request)
		w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = headerOptions(d.Headers.Response)
		if authority != "" {
			w.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: authority}
		}
		weighted.Clusters = append(weighted.Clusters, w)
		plain = plain && authority == "" && len(w.RequestHeadersToAdd)+len(w.RequestHeadersToRemove)+len(w.ResponseHeadersToAdd)+len(w.ResponseHeadersToRemove) == 0
		if d.Hash != nil && !hashed[d.Hash] {
			hashed[d.Hash] = true
			a.HashPolicy = append(a.HashPolicy, hashPolicy(d.Hash)...)
		}
	}
	if len(to) == 1 && plain {
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: cluster(to[0])}
		return
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
}

// withoutAuthority takes the change of the Host header out, which Envoy wants to be a rewrite of its own.
func withoutAuthority(h mesh.HeaderOperations) (rest mesh.HeaderOperations, authority string) {
	rest.Remove = notAuthority(h.Remove, func(n string) string { return n })
	rest.Add = notAuthority(h.Add, func(p mesh.Pair) string { return p.Name })
	rest.Set = notAuthority(h.Set, func(p mesh.Pair) string { return p.Name })
	for _, p := range h.Set {
		if isAuthority(p.Name) {
			authority = p.Value
		}
	}
	return rest, authority
}

func notAuthority[T any](all []T, name func(T) string) (kept []T) {
	for _, one := range all {
		if !isAuthority(name(one)) {
			kept = append(kept, one)
		}
	}
	return kept
}

func isAuthority(name string) bool {
	return strings.EqualFold(name, "host") || strings.EqualFold(name, ":authority")
}

// headerOptions gives the changes as Envoy takes them. A name with a colon is not for changing: Envoy would refuse the whole route.
func headerOptions(h mesh.HeaderOperations) (add []*corev3.HeaderValueOption, remove []string) {
	option := func(p mesh.Pair, action corev3.HeaderValueOption_HeaderAppendAction) {
		if !strings.HasPrefix(p.Name, ":") {
			add = append(add, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: p.Name, Value: p.Value}, AppendAction: action})
		}
	}
	for _, p := range h.Set {
		option(p, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	}
	for _, p := range h.Add {
		option(p, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	}
	for _, name := range h.Remove {
		if !strings.HasPrefix(name, ":") && !strings.EqualFold(name, "host") {
			remove = append(remove, name)
		}
	}
	return add, remove
}

func hashPolicy(h *mesh.Hash) []*routev3.RouteAction_HashPolicy {
	if h == nil {
		return nil
	}
	p := &routev3.RouteAction_HashPolicy{}
	switch {
	case h.Header != "":
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h.Header}}
	case h.QueryParameter != "":
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: h.QueryParameter}}
	case h.SourceIP:
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true}}
	case h.Cookie != nil:
		c := &routev3.RouteAction_HashPolicy_Cookie{Name: h.Cookie.Name, Path: h.Cookie.Path, Ttl: optional(h.Cookie.TTL)}
		for _, a := range h.Cookie.Attributes {
			c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.Name, Value: a.Value})
		}
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}
	default:
		return nil
	}
	return []*routev3.RouteAction_HashPolicy{p}
}

// maxBackoff is how many times its first pause a retry waits at most, as Envoy's own default has it.
const maxBackoff = 10

func retryPolicy(r *mesh.Retry) *routev3.RetryPolicy {
	if r.Attempts == 0 {
		return nil
	}
	p := &routev3.RetryPolicy{RetryOn: r.On, NumRetries: wrapperspb.UInt32(r.Attempts), RetriableStatusCodes: r.Codes}
	if r.PerTry > 0 {
		p.PerTryTimeout = duration(r.PerTry)
	}
	if r.Backoff > 0 {
		p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: duration(r.Backoff), MaxInterval: duration(maxBackoff * r.Backoff)}
	}
	if !r.PreviousHosts {
		p.RetryHostPredicate, p.HostSelectionRetryMaxAttempts = defaultRetry.GetRetryHostPredicate(), defaultRetry.GetHostSelectionRetryMaxAttempts()
	}
	if r.OtherLocalities {
		p.RetryPriority = &routev3.RetryPolicy_RetryPriority{Name: "envoy.retry_priorities.previous_priorities", ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{
			TypedConfig: pack(&previouspriorities.PreviousPrioritiesConfig{UpdateFrequency: 2}),
		}}
	}
	return p
}

var redirectCodes = map[uint32]routev3.RedirectAction_RedirectResponseCode{
	302: routev3.RedirectAction_FOUND, 303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT, 308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

func redirectAction(r *mesh.Redirect) *routev3.RedirectAction {
	a := &routev3.RedirectAction{HostRedirect: r.Authority, PortRedirect: r.Port, ResponseCode: redirectCodes[r.Code]}
	switch {
	case r.Prefix != "":
		a.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: r.Prefix}
	case r.Path != "":
		a.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Path}
	}
	if r.Scheme != "" {
		a.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	if r.DefaultPort {
		if a.PortRedirect = 80; r.Scheme == "https" {
			a.PortRedirect = 443
		}
	}
	return a
}

func corsPolicy(c *mesh.CORS) *corsv3.CorsPolicy {
	p := &corsv3.CorsPolicy{
		AllowMethods: strings.Join(c.Methods, ","), AllowHeaders: strings.Join(c.Headers, ","), ExposeHeaders: strings.Join(c.Expose, ","),
		FilterEnabled:                &corev3.RuntimeFractionalPercent{DefaultValue: fraction(100)},
		ForwardNotMatchingPreflights: wrapperspb.Bool(c.ForwardUnmatched),
	}
	if c.MaxAge != nil {
		p.MaxAge = strconv.FormatInt(int64(*c.MaxAge/time.Second), 10)
	}
	if c.Credentials != nil {
		p.AllowCredentials = wrapperspb.Bool(*c.Credentials)
	}
	for _, o := range c.Origins {
		p.AllowOriginStringMatch = append(p.AllowOriginStringMatch, originMatcher(o))
	}
	return p
}

// originMatcher knows * for any origin.
func originMatcher(o mesh.StringMatch) *matcherv3.StringMatcher {
	if o.Kind == mesh.Exact && o.Text == "*" {
		return stringMatcher(mesh.StringMatch{Kind: mesh.Regex, Text: ".*"})
	}
	return stringMatcher(o)
}

func fault(f *mesh.Fault) *faultv3.HTTPFault {
	out := &faultv3.HTTPFault{}
	if f.Delay > 0 {
		out.Delay = &commonfaultv3.FaultDelay{
			FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: duration(f.Delay)}, Percentage: fraction(f.DelayPercent),
		}
	}
	switch {
	case f.Status != 0:
		out.Abort = &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: f.Status}, Percentage: fraction(f.AbortPercent)}
	case f.GRPCStatus != nil:
		out.Abort = &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_GrpcStatus{GrpcStatus: *f.GRPCStatus}, Percentage: fraction(f.AbortPercent)}
	}
	return out
}

// fraction gives a percentage to the ten-thousandth of a percent.
func fraction(percent float64) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: uint32(percent*10_000 + 0.5), Denominator: typev3.FractionalPercent_MILLION}
}
