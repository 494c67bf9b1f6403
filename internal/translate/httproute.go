package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	networkingapi "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

// routeReader reads the routes of one virtual service for the clients of one namespace.
type routeReader struct {
	reader
	namespace string // of the object that a route stands in
	client    string
	domain    string
	lookups   []lookup
}

// append adds a route, unless no request of these clients can match it.
func (r *routeReader) append(to []*mesh.HTTPRoute, route *networkingapi.HTTPRoute, at string) []*mesh.HTTPRoute {
	matches, ok := r.matches(route.GetMatch())
	if !ok {
		return to
	}
	out := &mesh.HTTPRoute{
		Name: route.GetName(), Matches: matches, Timeout: route.GetTimeout().AsDuration(), Retry: r.retry(route.GetRetries(), at),
		Fault: r.fault(route.GetFault(), at), CORS: cors(route.GetCorsPolicy()), Headers: headerChanges(route.GetHeaders()),
		Redirect: redirect(route.GetRedirect()), Rewrite: rewrite(route.GetRewrite()),
	}
	if d := route.GetDirectResponse(); d != nil {
		out.Direct = &mesh.DirectResponse{Status: d.GetStatus(), Body: d.GetBody().GetBytes()}
		if text, ok := d.GetBody().GetSpecifier().(*networkingapi.HTTPBody_String_); ok {
			out.Direct.Body = []byte(text.String_)
		}
	}
	for i, d := range route.GetRoute() {
		weight := uint32(d.GetWeight())
		if len(route.GetRoute()) == 1 {
			weight = 100
		}
		if weight == 0 { // Istio sends nothing there
			continue
		}
		to := r.destination(d.GetDestination(), fmt.Sprintf("%s.route[%d].destination", at, i))
		to.Weight, to.Headers = weight, headerChanges(d.GetHeaders())
		out.Destinations = append(out.Destinations, to)
	}
	if len(out.Destinations) > 0 {
		r.mirrors(out, route, at)
	}
	return append(to, out)
}

// destination notes what is to be looked up, in the order in which template.resolve fills it in.
func (r *routeReader) destination(d *networkingapi.Destination, at string) mesh.Destination {
	host := fullName(d.GetHost(), r.namespace, r.domain)
	r.lookups = append(r.lookups, lookup{host: host, subset: d.GetSubset(), port: d.GetPort().GetNumber(), field: at})
	return mesh.Destination{Host: mesh.Host(host), Subset: d.GetSubset()}
}

// mirrors reads both forms, of which mirrors goes before mirror. What does not say its share is mirrored whole.
func (r *routeReader) mirrors(out *mesh.HTTPRoute, route *networkingapi.HTTPRoute, at string) {
	add := func(d *networkingapi.Destination, percent float64, field string) {
		if percent > 0 {
			out.Mirrors = append(out.Mirrors, mesh.Mirror{To: r.destination(d, field), Percent: percent})
		}
	}
	for i, m := range route.GetMirrors() {
		percent := 100.0
		if m.GetPercentage() != nil {
			percent = m.GetPercentage().GetValue()
		}
		add(m.GetDestination(), percent, fmt.Sprintf("%s.mirrors[%d].destination", at, i))
	}
	if m := route.GetMirror(); m != nil && len(route.GetMirrors()) == 0 {
		percent := 100.0
		if p := route.GetMirrorPercentage(); p != nil {
			percent = p.GetValue()
		} else if p := route.GetMirrorPercent(); p != nil { //nolint:staticcheck // people still write the former form
			percent = float64(p.GetValue())
		}
		add(m, percent, at+".mirror")
	}
}

// matches gives those that a request of these clients can have; ok is false when there were some and none is left.
func (r *routeReader) matches(from []*networkingapi.HTTPMatchRequest) (out []*mesh.HTTPMatch, ok bool) {
	for _, m := range from {
		if len(m.GetGateways()) > 0 && !slices.Contains(m.GetGateways(), meshGateway) || m.GetSourceNamespace() != "" && m.GetSourceNamespace() != r.client ||
			len(m.GetSourceLabels()) > 0 { // which are refused: such a match never holds
			continue
		}
		match := &mesh.HTTPMatch{
			Name: m.GetName(), Path: stringMatch(m.GetUri()), IgnoreCase: m.GetIgnoreUriCase(), Scheme: stringMatch(m.GetScheme()),
			Method: stringMatch(m.GetMethod()), Authority: stringMatch(m.GetAuthority()), Port: m.GetPort(), StatPrefix: m.GetStatPrefix(),
			Headers: namedMatches(m.GetHeaders(), false), Query: namedMatches(m.GetQueryParams(), false),
		}
		match.Headers = append(match.Headers, namedMatches(m.GetWithoutHeaders(), true)...)
		out = append(out, match)
	}
	return out, len(out) > 0 || len(from) == 0
}

func namedMatches(from map[string]*networkingapi.StringMatch, invert bool) (out []mesh.NamedMatch) {
	for _, name := range slices.Sorted(maps.Keys(from)) {
		out = append(out, mesh.NamedMatch{Name: name, Match: stringMatch(from[name]), Invert: invert})
	}
	return out
}

func stringMatch(m *networkingapi.StringMatch) mesh.StringMatch {
	switch t := m.GetMatchType().(type) {
	case *networkingapi.StringMatch_Exact:
		return mesh.StringMatch{Kind: mesh.Exact, Text: t.Exact}
	case *networkingapi.StringMatch_Prefix:
		return mesh.StringMatch{Kind: mesh.Prefix, Text: t.Prefix}
	case *networkingapi.StringMatch_Regex:
		return mesh.StringMatch{Kind: mesh.Regex, Text: t.Regex}
	}
	return mesh.StringMatch{}
}

func rewrite(w *networkingapi.HTTPRewrite) *mesh.Rewrite {
	if w == nil {
		return nil
	}
	return &mesh.Rewrite{URI: w.GetUri(), Authority: w.GetAuthority(), Pattern: w.GetUriRegexRewrite().GetMatch(), Substitution: w.GetUriRegexRewrite().GetRewrite()}
}

func redirect(d *networkingapi.HTTPRedirect) *mesh.Redirect {
	if d == nil {
		return nil
	}
	out := &mesh.Redirect{
		Path: d.GetUri(), Prefix: d.GetPrefixRewrite(), Authority: d.GetAuthority(), Scheme: d.GetScheme(), Port: d.GetPort(),
		Code: cmp.Or(d.GetRedirectCode(), 301),
	}
	if p, ok := d.GetRedirectPort().(*networkingapi.HTTPRedirect_DerivePort); ok {
		out.DefaultPort = p.DerivePort == networkingapi.HTTPRedirect_FROM_PROTOCOL_DEFAULT
	}
	return out
}

// defaultRetryOn is what Istio retries when a VirtualService does not say what.
const defaultRetryOn = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"

// retry reads the conditions: words are Envoy's, numbers are HTTP status codes.
func (r *routeReader) retry(from *networkingapi.HTTPRetry, at string) *mesh.Retry {
	if from == nil {
		return nil
	}
	out := &mesh.Retry{
		Attempts: uint32(max(0, from.GetAttempts())), PerTry: from.GetPerTryTimeout().AsDuration(), Backoff: from.GetBackoff().AsDuration(),
		OtherLocalities: from.GetRetryRemoteLocalities().GetValue(),
		PreviousHosts:   from.GetRetryIgnorePreviousHosts() != nil && !from.GetRetryIgnorePreviousHosts().GetValue(),
	}
	if out.Attempts == 0 {
		return out
	}
	var words []string
	for word := range strings.SplitSeq(orDefault(from.GetRetryOn(), defaultRetryOn), ",") {
		word = strings.TrimSpace(word)
		if code, err := strconv.ParseUint(word, 10, 16); err == nil {
			if code < 100 || code > 599 {
				r.add(diag.InvalidField, diag.Error, at+".retries.retryOn", word+" is no HTTP status, and left out", "write a status from 100 to 599")
				continue
			}
			out.Codes = append(out.Codes, uint32(code))
			continue
		}
		if word != "" {
			words = append(words, word)
		}
	}
	if from.GetRetryOn() == "" {
		out.Codes = []uint32{503}
	}
	if len(out.Codes) > 0 && !slices.Contains(words, "retriable-status-codes") {
		words = append(words, "retriable-status-codes")
	}
	out.On = strings.Join(words, ",")
	return out
}

// grpcCodes are the names of gRPC's status codes (google.golang.org/grpc/codes, as gRPC's specification writes them).
var grpcCodes = []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

func (r *routeReader) fault(f *networkingapi.HTTPFaultInjection, at string) *mesh.Fault {
	if f == nil {
		return nil
	}
	out := &mesh.Fault{}
	if d := f.GetDelay(); d != nil {
		out.Delay, out.DelayPercent = d.GetFixedDelay().AsDuration(), 100
		if d.GetPercentage() != nil {
			out.DelayPercent = d.GetPercentage().GetValue()
		} else if p := d.GetPercent(); p > 0 { //nolint:staticcheck // people still write the former form
			out.DelayPercent = float64(p)
		}
	}
	a := f.GetAbort()
	if a == nil {
		return out
	}
	out.AbortPercent = 100
	if a.GetPercentage() != nil {
		out.AbortPercent = a.GetPercentage().GetValue()
	}
	switch t := a.GetErrorType().(type) {
	case *networkingapi.HTTPFaultInjection_Abort_HttpStatus:
		out.Status = uint32(t.HttpStatus)
	case *networkingapi.HTTPFaultInjection_Abort_GrpcStatus:
		code := slices.Index(grpcCodes, strings.ToUpper(t.GrpcStatus))
		if code < 0 {
			r.add(diag.InvalidField, diag.Error, at+".fault.abort.grpcStatus", fmt.Sprintf("%q is no status of gRPC: nothing is ended", t.GrpcStatus), "write a name such as UNAVAILABLE")
			return out
		}
		out.GRPCStatus = new(uint32(code))
	}
	return out
}

func cors(c *networkingapi.CorsPolicy) *mesh.CORS {
	if c == nil {
		return nil
	}
	out := &mesh.CORS{
		Methods: c.GetAllowMethods(), Headers: c.GetAllowHeaders(), Expose: c.GetExposeHeaders(), MaxAge: maybe(c.GetMaxAge()),
		ForwardUnmatched: c.GetUnmatchedPreflights() != networkingapi.CorsPolicy_IGNORE,
	}
	if c.GetAllowCredentials() != nil {
		out.Credentials = new(c.GetAllowCredentials().GetValue())
	}
	for _, o := range c.GetAllowOrigins() {
		out.Origins = append(out.Origins, stringMatch(o))
	}
	if len(c.GetAllowOrigins()) == 0 { // the former form
		for _, o := range c.GetAllowOrigin() { //nolint:staticcheck // people still write the former form
			out.Origins = append(out.Origins, mesh.StringMatch{Kind: mesh.Exact, Text: o})
		}
	}
	return out
}

func headerChanges(h *networkingapi.Headers) mesh.HeaderChanges {
	return mesh.HeaderChanges{Request: headerOperations(h.GetRequest()), Response: headerOperations(h.GetResponse())}
}

func headerOperations(h *networkingapi.Headers_HeaderOperations) (out mesh.HeaderOperations) {
	out.Set, out.Add = pairs(h.GetSet()), pairs(h.GetAdd())
	out.Remove = slices.Sorted(slices.Values(h.GetRemove()))
	return out
}

func pairs(from map[string]string) (out []mesh.Pair) {
	for _, name := range slices.Sorted(maps.Keys(from)) {
		out = append(out, mesh.Pair{Name: name, Value: from[name]})
	}
	return out
}
