package validate

import (
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func (c *check) httpRoute(at path, r *networking.HTTPRoute, in routed) {
	c.httpAction(at, r, in.delegate)
	for i, m := range r.GetMatch() {
		c.httpMatch(at.field("match").index(i), m, in.gateways || in.delegate)
	}
	c.headers(at.field("headers"), r.GetHeaders())
	c.authority(at, r)
	weights := make([]int32, 0, len(r.GetRoute()))
	for i, d := range r.GetRoute() {
		c.destination(at.field("route").index(i).field("destination"), d.GetDestination())
		c.headers(at.field("route").index(i).field("headers"), d.GetHeaders())
		weights = append(weights, d.GetWeight())
	}
	c.weights(at.field("route"), weights)
	c.mirrors(at, r)
	c.redirect(at.field("redirect"), r)
	c.directResponse(at.field("directResponse"), r.GetDirectResponse())
	c.duration(at.field("timeout"), r.GetTimeout())
	c.retries(at.field("retries"), r.GetRetries())
	c.fault(at.field("fault"), r.GetFault())
	c.cors(at.field("corsPolicy"), r.GetCorsPolicy())
	c.rewrite(at.field("rewrite"), r.GetRewrite())
}

// httpAction checks that a route does exactly one thing.
func (c *check) httpAction(at path, r *networking.HTTPRoute, delegate bool) {
	if r.GetDelegate() != nil {
		if delegate {
			c.errorf(diag.NotSupported, at.field("delegate"), "a delegate's routes lead to no further delegate").hint("name the destinations here")
		}
		for _, f := range []given{{"redirect", r.GetRedirect() != nil}, {"route", r.GetRoute() != nil}} {
			if f.set {
				c.errorf(diag.Contradiction, at.field(f.name), "a route does one thing, and this one has delegate too")
			}
		}
		if !delegate {
			return
		}
	}
	var actions []string
	for _, a := range []given{{"route", len(r.GetRoute()) > 0}, {"redirect", r.GetRedirect() != nil}, {"directResponse", r.GetDirectResponse() != nil}} {
		if a.set {
			actions = append(actions, a.name)
		}
	}
	switch {
	case len(actions) == 0:
		c.errorf(diag.NothingSaid, at, "it does nothing: route, redirect, directResponse or delegate is needed")
	case len(actions) > 1:
		c.errorf(diag.Contradiction, at.field(actions[1]), "a route does one thing, and this one has %s too", actions[0])
	}
	if r.GetRedirect() == nil && r.GetDirectResponse() == nil {
		return
	}
	for _, f := range []given{{"fault", r.GetFault() != nil}, {"rewrite", r.GetRewrite() != nil}} {
		if f.set {
			c.errorf(diag.Contradiction, at.field(f.name), "the proxy answers by itself, so there is no request to have it")
		}
	}
}

// claims begins the pseudo headers by which gateways route by what a token says.
const claims = "@request.auth.claims"

func isClaim(name string) bool {
	if len(name) < len(claims) || !strings.EqualFold(name[:len(claims)], claims) {
		return false
	}
	rest := name[len(claims):]
	return strings.HasPrefix(rest, ".") && len(rest) > 1 || strings.HasPrefix(rest, "[") && strings.HasSuffix(rest, "]") && len(rest) > 2
}

func (c *check) httpMatch(at path, m *networking.HTTPMatchRequest, gateways bool) {
	if uri, ok := m.GetUri().GetMatchType().(*networking.StringMatch_Regex); ok {
		c.pattern(at.field("uri").field("regex"), uri.Regex) // an empty prefix of a path is every path
	}
	for _, s := range []struct {
		field string
		match *networking.StringMatch
	}{{"scheme", m.GetScheme()}, {"method", m.GetMethod()}, {"authority", m.GetAuthority()}} {
		c.stringMatch(at.field(s.field), s.match)
	}
	for name, match := range sorted(m.GetHeaders()) {
		c.headerMatch(at.field("headers"), name, gateways)
		c.stringMatch(at.field("headers").key(name), match)
	}
	for name, match := range sorted(m.GetWithoutHeaders()) {
		c.headerMatch(at.field("withoutHeaders"), name, gateways)
		if match.GetRegex() != "*" { // which stands for a header that is there, whatever it says
			c.stringMatch(at.field("withoutHeaders").key(name), match)
		}
	}
	for name, match := range sorted(m.GetQueryParams()) {
		c.stringMatch(at.field("queryParams").key(name), match)
	}
	if m.GetPort() != 0 {
		c.port(at.field("port"), m.GetPort())
	}
	c.labels(at.field("sourceLabels"), m.GetSourceLabels())
	if m.GetSourceNamespace() != "" {
		c.name(at.field("sourceNamespace"), "a namespace", m.GetSourceNamespace())
	}
	c.gatewayNames(at.field("gateways"), m.GetGateways())
}

func (c *check) headerMatch(at path, name string, gateways bool) {
	switch {
	case name == "":
		c.errorf(diag.InvalidHeader, at, "a header has no name").hint("name it")
	case isClaim(name):
		if !gateways {
			c.errorf(diag.NotSupported, at.key(name), "only gateways route by what a token says").hint("name the gateways in spec.gateways, without mesh")
		}
	case !pseudoHeaders[name] && !headerName.MatchString(name):
		c.errorf(diag.InvalidHeader, at.key(name), "%s is no name of a header", quote(name))
	}
}

func (c *check) stringMatch(at path, m *networking.StringMatch) {
	switch t := m.GetMatchType().(type) {
	case *networking.StringMatch_Regex:
		c.pattern(at.field("regex"), t.Regex)
	case *networking.StringMatch_Prefix:
		if t.Prefix == "" {
			c.errorf(diag.MissingValue, at.field("prefix"), "it is empty, and would match everything")
		}
	}
}

// pattern checks a regular expression that must be there.
func (c *check) pattern(at path, pattern string) {
	if pattern == "" {
		c.errorf(diag.MissingValue, at, "the regular expression is empty")
		return
	}
	c.regex(at, pattern)
}

func (c *check) mirrors(at path, r *networking.HTTPRoute) {
	if r.GetMirror() != nil {
		c.destination(at.field("mirror"), r.GetMirror())
		if len(r.GetMirrors()) > 0 {
			c.errorf(diag.Contradiction, at.field("mirrors"), "mirror and mirrors exclude each other")
		}
	}
	for i, m := range r.GetMirrors() {
		where := at.field("mirrors").index(i)
		c.destination(where.field("destination"), m.GetDestination())
		if m.GetPercentage() != nil {
			c.percent(where.field("percentage").field("value"), m.GetPercentage().GetValue())
		}
	}
	if r.GetMirrorPercentage() != nil {
		c.percent(at.field("mirrorPercentage").field("value"), r.GetMirrorPercentage().GetValue())
	}
	if p := r.GetMirrorPercent(); p != nil { //nolint:staticcheck // the field is checked because it is deprecated
		c.warnf(diag.Deprecated, at.field("mirrorPercent"), "the field is deprecated").hint("use mirrorPercentage: {value: %d}", p.GetValue())
		c.percent(at.field("mirrorPercent"), float64(p.GetValue()))
	}
}

func (c *check) redirect(at path, r *networking.HTTPRoute) {
	d := r.GetRedirect()
	if d == nil {
		return
	}
	if d.GetUri() != "" && d.GetPrefixRewrite() != "" {
		c.errorf(diag.Contradiction, at.field("prefixRewrite"), "uri and prefixRewrite exclude each other")
	}
	if d.GetPrefixRewrite() != "" {
		for _, m := range r.GetMatch() {
			if _, prefix := m.GetUri().GetMatchType().(*networking.StringMatch_Prefix); m.GetUri() != nil && !prefix {
				c.errorf(diag.Contradiction, at.field("prefixRewrite"), "a match of the route has no prefix that could be replaced").hint("match by uri.prefix, or redirect by uri")
				break
			}
		}
	}
	if d.GetUri() == "" && d.GetPrefixRewrite() == "" && d.GetAuthority() == "" && d.GetRedirectPort() == nil && d.GetScheme() == "" {
		c.errorf(diag.NothingSaid, at, "it leads to where the request was: uri, prefixRewrite, authority, scheme, port or derivePort is needed")
	}
	if code := d.GetRedirectCode(); code != 0 && (code < 300 || code > 399) {
		c.errorf(diag.OutOfRange, at.field("redirectCode"), "it is %d, and a redirect's code is between 300 and 399", code).hint("write 301, 302, 303, 307 or 308")
	}
	if s := d.GetScheme(); s != "" && s != "http" && s != "https" {
		c.errorf(diag.UnknownValue, at.field("scheme"), "it is %s", quote(s)).hint("write http or https")
	}
	if d.GetPort() != 0 {
		c.port(at.field("port"), d.GetPort())
	}
}

// Bounds of the body of a direct response, in bytes: it is sent to every proxy, in every push.
const (
	largeBody   = 100 << 10
	longestBody = 1 << 20
)

func (c *check) directResponse(at path, d *networking.HTTPDirectResponse) {
	if d == nil {
		return
	}
	c.status(at.field("status"), int64(d.GetStatus()))
	switch n := max(len(d.GetBody().GetString_()), len(d.GetBody().GetBytes())); {
	case n > longestBody:
		c.errorf(diag.TooLarge, at.field("body"), "it has %d bytes, and may have %d", n, longestBody).hint("serve it by a workload")
	case n > largeBody:
		c.warnf(diag.TooLarge, at.field("body"), "it has %d bytes, which every proxy is sent with every change", n).hint("serve it by a workload")
	}
}

func (c *check) status(at path, status int64) {
	if status < 200 || status > 600 {
		c.errorf(diag.OutOfRange, at, "it is %d, and a status that ends a request is between 200 and 599", status)
	}
}

// retryPolicies are the conditions that Envoy knows, of HTTP and of gRPC.
var retryPolicies = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream", "retriable-status-codes",
	"retriable-headers", "envoy-ratelimited", "http3-post-connect-failure", "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// registered reports whether a status of HTTP has a meaning (the registry of RFC 9110).
func registered(status int) bool {
	for _, r := range [][2]int{{100, 103}, {200, 208}, {226, 226}, {300, 305}, {307, 308}, {400, 418}, {421, 426}, {428, 429}, {431, 431}, {451, 451}, {500, 508}, {510, 511}} {
		if status >= r[0] && status <= r[1] {
			return true
		}
	}
	return false
}

func (c *check) retries(at path, r *networking.HTTPRetry) {
	if r == nil {
		return
	}
	c.notNegative(at.field("attempts"), int64(r.GetAttempts()))
	if r.GetAttempts() == 0 && (r.GetPerTryTimeout() != nil || r.GetRetryOn() != "" || r.GetRetryRemoteLocalities() != nil) {
		c.errorf(diag.Contradiction, at.field("attempts"), "0 attempts turn retries off, and there are settings for them").hint("write a number of attempts, or take the settings out")
	}
	c.duration(at.field("perTryTimeout"), r.GetPerTryTimeout())
	c.duration(at.field("backoff"), r.GetBackoff())
	if r.GetRetryOn() == "" {
		return
	}
	for policy := range strings.SplitSeq(r.GetRetryOn(), ",") {
		if n, _ := strconv.Atoi(policy); registered(n) || slices.Contains(retryPolicies, policy) {
			continue
		}
		told := c.errorf(diag.UnknownValue, at.field("retryOn"), "%s is no condition for a retry", quote(policy))
		if near := nearest(policy, retryPolicies); near != "" && strings.TrimSpace(policy) != near {
			told.hint("did you mean %s?", near)
		} else if near != "" {
			told.hint("write no blanks between the conditions")
		}
	}
}

func (c *check) rewrite(at path, w *networking.HTTPRewrite) {
	if w == nil {
		return
	}
	regex := w.GetUriRegexRewrite()
	if w.GetUri() != "" && regex != nil {
		c.errorf(diag.Contradiction, at.field("uriRegexRewrite"), "uri and uriRegexRewrite exclude each other")
	}
	if w.GetUri() == "" && regex == nil && w.GetAuthority() == "" {
		c.errorf(diag.NothingSaid, at, "it rewrites nothing: uri, uriRegexRewrite or authority is needed")
	}
	if regex == nil {
		return
	}
	where := at.field("uriRegexRewrite")
	c.required(where.field("rewrite"), regex.GetRewrite())
	if c.required(where.field("match"), regex.GetMatch()) {
		c.regex(where.field("match"), regex.GetMatch())
	}
}
