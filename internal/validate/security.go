package validate

import (
	"slices"
	"strconv"

	security "istio.io/api/security/v1beta1"
	istiotype "istio.io/api/type/v1beta1"
)

func (c *check) selector(at path, s *istiotype.WorkloadSelector) {
	c.labels(at.field("matchLabels"), s.GetMatchLabels())
}

func peerAuthentication(c *check, p *security.PeerAuthentication) {
	c.selector(spec.field("selector"), p.GetSelector())
	ports := spec.field("portLevelMtls")
	if len(p.GetPortLevelMtls()) > 0 && len(p.GetSelector().GetMatchLabels()) == 0 {
		c.errorf(ports, "modes of single ports need a selector with labels: without one the policy is for all workloads, whose ports differ")
	}
	for port := range p.GetPortLevelMtls() {
		if port < 1 || port > 65535 {
			c.errorf(ports.key(strconv.FormatUint(uint64(port), 10)), "a port is between 1 and 65535")
		}
	}
}

func authorizationPolicy(c *check, p *security.AuthorizationPolicy) {
	c.selector(spec.field("selector"), p.GetSelector())
	targets := len(p.GetTargetRefs())
	if p.GetTargetRef() != nil {
		targets++
	}
	if p.GetSelector() != nil && targets > 0 {
		c.errorf(spec.field("selector"), "selector and targetRefs exclude each other")
	}
	custom := p.GetAction() == security.AuthorizationPolicy_CUSTOM
	switch {
	case custom && p.GetProvider().GetName() == "":
		c.errorf(spec.field("provider").field("name"), "it is missing: action CUSTOM asks a provider")
	case !custom && p.GetProvider() != nil:
		c.errorf(spec.field("provider"), "only action CUSTOM has a provider, and the action is %s", p.GetAction())
	}
	if custom && len(p.GetRules()) == 0 {
		c.errorf(spec.field("rules"), "they are missing: action CUSTOM needs at least one")
	}
	for i, r := range p.GetRules() {
		c.rule(spec.field("rules").index(i), r)
	}
}

// values are the items of one list of strings in a rule.
type values struct {
	field string
	items []string
}

func (c *check) rule(at path, r *security.Rule) {
	for i, from := range r.GetFrom() {
		s, where := from.GetSource(), at.field("from").index(i).field("source")
		blocks := []values{{"ipBlocks", s.GetIpBlocks()}, {"notIpBlocks", s.GetNotIpBlocks()},
			{"remoteIpBlocks", s.GetRemoteIpBlocks()}, {"notRemoteIpBlocks", s.GetNotRemoteIpBlocks()}}
		c.lists(where, append([]values{
			{"principals", s.GetPrincipals()}, {"notPrincipals", s.GetNotPrincipals()},
			{"requestPrincipals", s.GetRequestPrincipals()}, {"notRequestPrincipals", s.GetNotRequestPrincipals()},
			{"namespaces", s.GetNamespaces()}, {"notNamespaces", s.GetNotNamespaces()},
			{"serviceAccounts", s.GetServiceAccounts()}, {"notServiceAccounts", s.GetNotServiceAccounts()},
			{"trustDomains", s.GetTrustDomains()}, {"notTrustDomains", s.GetNotTrustDomains()},
		}, blocks...))
		for _, b := range blocks {
			for j, block := range b.items {
				if block != "" {
					c.addressOrBlock(where.field(b.field).index(j), block)
				}
			}
		}
	}
	for i, to := range r.GetTo() {
		o, where := to.GetOperation(), at.field("to").index(i).field("operation")
		c.lists(where, []values{
			{"hosts", o.GetHosts()}, {"notHosts", o.GetNotHosts()}, {"ports", o.GetPorts()}, {"notPorts", o.GetNotPorts()},
			{"methods", o.GetMethods()}, {"notMethods", o.GetNotMethods()}, {"paths", o.GetPaths()}, {"notPaths", o.GetNotPaths()},
		})
		for _, l := range []values{{"ports", o.GetPorts()}, {"notPorts", o.GetNotPorts()}} {
			for j, port := range l.items {
				if n, err := strconv.ParseUint(port, 10, 16); port != "" && (err != nil || n == 0) {
					c.errorf(where.field(l.field).index(j), "%s is no port: it is a number between 1 and 65535", quote(port))
				}
			}
		}
	}
	for i, when := range r.GetWhen() {
		where := at.field("when").index(i)
		c.required(where.field("key"), when.GetKey())
		if len(when.GetValues()) == 0 && len(when.GetNotValues()) == 0 {
			c.errorf(where, "values or notValues are missing")
		}
	}
}

// lists checks that at least one of the lists says something, and that nothing is empty: an empty source or operation would match
// everything, which nobody means.
func (c *check) lists(at path, all []values) {
	said := false
	for _, l := range all {
		said = said || len(l.items) > 0
		if i := slices.Index(l.items, ""); i >= 0 {
			c.errorf(at.field(l.field).index(i), "it is empty, and would match nothing")
		}
	}
	if !said {
		c.errorf(at, "it says nothing: name at least one field")
	}
}
