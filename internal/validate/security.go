package validate

import (
	"net/url"
	"strconv"

	security "istio.io/api/security/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func peerAuthentication(c *check, p *security.PeerAuthentication) {
	c.selector(spec.field("selector"), p.GetSelector())
	ports := spec.field("portLevelMtls")
	if len(p.GetPortLevelMtls()) > 0 && len(p.GetSelector().GetMatchLabels()) == 0 {
		c.errorf(diag.Contradiction, ports, "modes of single ports need a selector with labels: without one the policy is for all workloads, whose ports differ").hint("name the workloads in spec.selector.matchLabels")
	}
	if p.GetPortLevelMtls() != nil && len(p.GetPortLevelMtls()) == 0 {
		c.errorf(diag.NothingSaid, ports, "it names no port")
	}
	for port := range sorted(p.GetPortLevelMtls()) {
		if port < 1 || port > 65535 {
			c.errorf(diag.InvalidPort, ports.key(strconv.FormatUint(uint64(port), 10)), "a port is between 1 and 65535")
		}
	}
}

func requestAuthentication(c *check, r *security.RequestAuthentication) {
	c.targets(r.GetSelector(), r.GetTargetRef(), r.GetTargetRefs())
	for i, rule := range r.GetJwtRules() {
		c.jwtRule(spec.field("jwtRules").index(i), rule)
	}
}

func (c *check) jwtRule(at path, r *security.JWTRule) {
	if r.GetIssuer() == "" && r.GetJwksUri() == "" {
		c.errorf(diag.MissingValue, at.field("issuer"), "neither issuer nor jwksUri is there, so no token can be checked")
	}
	c.items(at.field("audiences"), r.GetAudiences())
	if uri := r.GetJwksUri(); uri != "" {
		if u, err := url.Parse(uri); err != nil || u.Scheme != "http" && u.Scheme != "https" {
			c.errorf(diag.InvalidURL, at.field("jwksUri"), "%s is no URL of http or https", quote(uri))
		}
	}
	if r.GetJwks() != "" {
		c.keys(at.field("jwks"), r.GetJwks())
	}
	for i, h := range r.GetFromHeaders() {
		c.required(at.field("fromHeaders").index(i).field("name"), h.GetName())
	}
	c.items(at.field("fromParams"), r.GetFromParams())
	c.items(at.field("fromCookies"), r.GetFromCookies())
	for i, o := range r.GetOutputClaimToHeaders() {
		where := at.field("outputClaimToHeaders").index(i)
		c.required(where.field("claim"), o.GetClaim())
		if c.required(where.field("header"), o.GetHeader()) && !plainHeader.MatchString(o.GetHeader()) {
			c.errorf(diag.InvalidHeader, where.field("header"), "%s is no name of a header: letters, digits, '-' and '_' may stand here", quote(o.GetHeader()))
		}
	}
	c.duration(at.field("timeout"), r.GetTimeout())
}

// items checks that none of a list of strings is empty.
func (c *check) items(at path, items []string) {
	for i, item := range items {
		c.required(at.index(i), item)
	}
}
