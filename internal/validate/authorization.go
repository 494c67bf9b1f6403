package validate

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func authorizationPolicy(c *check, p *security.AuthorizationPolicy) {
	c.targets(p.GetSelector(), p.GetTargetRef(), p.GetTargetRefs())
	action, rules := p.GetAction(), spec.field("rules")
	custom := action == security.AuthorizationPolicy_CUSTOM
	switch {
	case custom && p.GetProvider().GetName() == "":
		c.errorf(diag.MissingValue, spec.field("provider").field("name"), "it is missing: action CUSTOM asks a provider").hint("name one of the mesh configuration's extensionProviders")
	case !custom && p.GetProvider() != nil:
		c.errorf(diag.Contradiction, spec.field("provider"), "only action CUSTOM has a provider, and the action is %s", action)
	}
	if (custom || action == security.AuthorizationPolicy_DENY) && len(p.GetRules()) == 0 {
		c.errorf(diag.MissingValue, rules, "they are missing: action %s without a rule never happens", action).hint("add an empty rule, {}, if it is meant for every request")
	}
	for i, r := range p.GetRules() {
		c.rule(rules.index(i), r)
		if custom {
			c.customRule(rules.index(i), r)
		}
		if action == security.AuthorizationPolicy_DENY && deniesTCP(r) {
			c.warnf(diag.DeniesTCP, rules.index(i), "it names only what HTTP requests have, so on ports of TCP it denies everything")
		}
	}
}

// values are the items of one list of strings in a rule.
type values struct {
	field string
	items []string
}

func (c *check) rule(at path, r *security.Rule) {
	for i, from := range r.GetFrom() {
		c.source(at.field("from").index(i).field("source"), from.GetSource())
	}
	for i, to := range r.GetTo() {
		c.operation(at.field("to").index(i).field("operation"), to.GetOperation())
	}
	for i, when := range r.GetWhen() {
		c.condition(at.field("when").index(i), when)
	}
}

func (c *check) source(at path, s *security.Source) {
	accounts := []values{{"serviceAccounts", s.GetServiceAccounts()}, {"notServiceAccounts", s.GetNotServiceAccounts()}}
	domains := []values{{"trustDomains", s.GetTrustDomains()}, {"notTrustDomains", s.GetNotTrustDomains()}}
	blocks := []values{
		{"ipBlocks", s.GetIpBlocks()}, {"notIpBlocks", s.GetNotIpBlocks()},
		{"remoteIpBlocks", s.GetRemoteIpBlocks()}, {"notRemoteIpBlocks", s.GetNotRemoteIpBlocks()},
	}
	c.lists(at, slices.Concat([]values{
		{"principals", s.GetPrincipals()}, {"notPrincipals", s.GetNotPrincipals()},
		{"requestPrincipals", s.GetRequestPrincipals()}, {"notRequestPrincipals", s.GetNotRequestPrincipals()},
		{"namespaces", s.GetNamespaces()}, {"notNamespaces", s.GetNotNamespaces()},
	}, accounts, domains, blocks))
	identities := len(s.GetPrincipals()) + len(s.GetNotPrincipals()) + len(s.GetNamespaces()) + len(s.GetNotNamespaces())
	for _, l := range accounts {
		if len(l.items) > 0 && identities > 0 {
			c.errorf(diag.Contradiction, at.field(l.field), "it excludes principals and namespaces")
		}
		c.accounts(at.field(l.field), l.items)
	}
	for _, l := range domains {
		c.wildcards(at.field(l.field), l.items)
		for i, d := range l.items {
			if strings.Contains(d, "/") {
				c.errorf(diag.InvalidName, at.field(l.field).index(i), "%s is no trust domain: there is no slash in one", quote(d)).hint("write the trust domain alone, such as cluster.local")
			}
		}
	}
	for _, l := range blocks {
		c.blocks(at.field(l.field), l.items)
	}
}

func (c *check) operation(at path, o *security.Operation) {
	c.lists(at, []values{
		{"hosts", o.GetHosts()}, {"notHosts", o.GetNotHosts()}, {"ports", o.GetPorts()}, {"notPorts", o.GetNotPorts()},
		{"methods", o.GetMethods()}, {"notMethods", o.GetNotMethods()}, {"paths", o.GetPaths()}, {"notPaths", o.GetNotPaths()},
	})
	c.ports(at.field("ports"), o.GetPorts())
	c.ports(at.field("notPorts"), o.GetNotPorts())
	for _, l := range []values{{"paths", o.GetPaths()}, {"notPaths", o.GetNotPaths()}} {
		for i, p := range l.items {
			if problem := pathProblem(p); problem != "" {
				c.errorf(diag.InvalidPath, at.field(l.field).index(i), "%s", problem)
			}
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
			c.errorf(diag.MissingValue, at.field(l.field).index(i), "it is empty, and would match nothing")
		}
	}
	if !said {
		c.errorf(diag.NothingSaid, at, "it says nothing: name at least one field")
	}
}

func (c *check) blocks(at path, items []string) {
	for i, block := range items {
		_, err := netip.ParsePrefix(block)
		if block != "" && err != nil && !isAddress(block) {
			c.addressOrBlock(at.index(i), block)
		}
	}
}

func (c *check) ports(at path, items []string) {
	for i, port := range items {
		n, err := strconv.ParseUint(port, 10, 16)
		switch {
		case port == "":
		case err != nil:
			c.errorf(diag.InvalidPort, at.index(i), "%s is no port: it is a number between 1 and 65535", quote(port))
		case n == 0:
			c.warnf(diag.NoEffect, at.index(i), "no connection has port 0")
		}
	}
}

// wildcards checks that a wildcard stands only at one end.
func (c *check) wildcards(at path, items []string) {
	for i, item := range items {
		if n := strings.Count(item, "*"); n > 1 || n == 1 && !strings.HasPrefix(item, "*") && !strings.HasSuffix(item, "*") {
			c.errorf(diag.InvalidName, at.index(i), "%s has a wildcard that is neither its beginning nor its end", quote(item)).hint("write one * at the beginning or at the end")
		}
	}
}

// accounts checks names of service accounts: NAME or NAMESPACE/NAME. The bounds are Istio's.
func (c *check) accounts(at path, items []string) {
	const mostAccounts, longest = 16, 320
	if len(items) > mostAccounts {
		c.errorf(diag.TooLarge, at, "it has %d entries, and may have %d", len(items), mostAccounts)
	}
	for i, item := range items {
		namespace, name, parted := strings.Cut(item, "/")
		switch {
		case item == "":
		case strings.Contains(item, "*"):
			c.errorf(diag.InvalidName, at.index(i), "%s has a wildcard, and a service account has none", quote(item))
		case parted && (namespace == "" || name == "" || strings.Contains(name, "/")):
			c.errorf(diag.InvalidName, at.index(i), "%s is no service account", quote(item)).hint("write NAME or NAMESPACE/NAME")
		case len(item) > longest:
			c.errorf(diag.TooLarge, at.index(i), "it has %d characters, and may have %d", len(item), longest)
		}
	}
}

// segment is what may stand between two slashes of a path beside templates (RFC 3986, pchar).
var segment = regexp.MustCompile(`^[a-zA-Z0-9-._~%!$&'()+,;:@=]+$`)

// pathProblem says what is wrong with the template of a path, "" when nothing is. A path without braces may be anything.
func pathProblem(p string) string {
	if !strings.ContainsAny(p, "{}") {
		return ""
	}
	templated, rest := strings.Contains(p, "{*}") || strings.Contains(p, "{**}"), false
	for part := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		switch {
		case part == "{*}" || part == "{**}":
			if rest {
				return quote(p) + " has a template after {**}, which takes the rest"
			}
			rest = part == "{**}"
		case strings.ContainsAny(part, "{}"):
			return quote(p) + " has braces in " + quote(part) + ", and only {*} and {**} may be in braces, as a part of their own"
		case templated && !segment.MatchString(part):
			return quote(p) + " has the part " + quote(part) + ", which no path beside templates may have"
		}
	}
	return ""
}

// deniesTCP reports whether a rule names only what HTTP requests have: where the protocol is not HTTP, the rest of it is empty and
// matches all.
func deniesTCP(r *security.Rule) bool {
	seesTCP := false
	for _, f := range r.GetFrom() {
		s := f.GetSource()
		seesTCP = seesTCP || len(s.GetPrincipals())+len(s.GetNotPrincipals())+len(s.GetNamespaces())+len(s.GetNotNamespaces())+
			len(s.GetIpBlocks())+len(s.GetNotIpBlocks())+len(s.GetRemoteIpBlocks())+len(s.GetNotRemoteIpBlocks())+
			len(s.GetServiceAccounts())+len(s.GetNotServiceAccounts())+len(s.GetTrustDomains())+len(s.GetNotTrustDomains()) > 0
	}
	ports := false
	for _, t := range r.GetTo() {
		ports = ports || len(t.GetOperation().GetPorts())+len(t.GetOperation().GetNotPorts()) > 0
	}
	return len(r.GetTo()) > 0 && !ports || len(r.GetTo()) == 0 && len(r.GetFrom()) > 0 && !seesTCP
}
