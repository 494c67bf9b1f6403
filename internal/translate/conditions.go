package translate

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	securityapi "istio.io/api/security/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

func at(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

func quoted(s string) string { return fmt.Sprintf("%.100q", s) }

// spiffe begins every identity.
const spiffe = "spiffe://"

// rule translates one rule. Source of all of it: istio.io "Authorization Policy" and "Authorization Policy Conditions".
func (p *policyReader) rule(field string, r *securityapi.Rule) (out mesh.AccessRule) {
	for i, from := range r.GetFrom() {
		out.From = append(out.From, p.source(at(field+".from", i)+".source", from.GetSource()))
	}
	for i, to := range r.GetTo() {
		out.To = append(out.To, p.operation(at(field+".to", i)+".operation", to.GetOperation()))
	}
	for i, when := range r.GetWhen() {
		if c := p.when(at(field+".when", i), when); c != nil {
			out.When = append(out.When, *c)
		}
	}
	return out
}

// list is one field of a source or operation, and what it is compared with.
type list struct {
	field     string
	attribute mesh.Attribute
	any, none []string
	parse     func(*policyReader, string) (mesh.ValueMatch, error)
}

// conditions gives one for each list that says something.
func (p *policyReader) conditions(field string, lists ...list) (out []mesh.AccessCondition) {
	for _, l := range lists {
		if len(l.any)+len(l.none) == 0 {
			continue
		}
		not := "not" + strings.ToUpper(l.field[:1]) + l.field[1:]
		out = append(out, mesh.AccessCondition{Attribute: l.attribute, Any: p.matches(field+"."+l.field, l.any, l.parse), None: p.matches(field+"."+not, l.none, l.parse)})
	}
	return out
}

func (p *policyReader) matches(field string, values []string, parse func(*policyReader, string) (mesh.ValueMatch, error)) (out []mesh.ValueMatch) {
	for i, value := range values {
		m, err := parse(p, value)
		if err != nil {
			p.fail(diag.InvalidField, at(field, i), quoted(value)+" "+err.Error(), "mend the value")
			continue
		}
		out = append(out, m)
	}
	return out
}

func (p *policyReader) source(field string, s *securityapi.Source) []mesh.AccessCondition {
	d := p.mesh.trustDomains
	return p.conditions(field,
		list{"principals", mesh.AttrPrincipal, d.principals(s.GetPrincipals()), d.principals(s.GetNotPrincipals()), principal},
		list{"requestPrincipals", mesh.AttrRequestPrincipal, s.GetRequestPrincipals(), s.GetNotRequestPrincipals(), requestPrincipal},
		list{"serviceAccounts", mesh.AttrPrincipal, s.GetServiceAccounts(), s.GetNotServiceAccounts(), serviceAccount},
		list{"trustDomains", mesh.AttrPrincipal, d.expand(s.GetTrustDomains()), d.expand(s.GetNotTrustDomains()), trustDomain},
		list{"namespaces", mesh.AttrPrincipal, s.GetNamespaces(), s.GetNotNamespaces(), sourceNamespace},
		list{"remoteIpBlocks", mesh.AttrRemoteIP, s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks(), network},
		list{"ipBlocks", mesh.AttrSourceIP, s.GetIpBlocks(), s.GetNotIpBlocks(), network},
	)
}

func (p *policyReader) operation(field string, o *securityapi.Operation) []mesh.AccessCondition {
	return p.conditions(field,
		list{"hosts", mesh.AttrHost, o.GetHosts(), o.GetNotHosts(), text},
		list{"methods", mesh.AttrMethod, o.GetMethods(), o.GetNotMethods(), text},
		list{"paths", mesh.AttrPath, o.GetPaths(), o.GetNotPaths(), path},
		list{"ports", mesh.AttrDestinationPort, o.GetPorts(), o.GetNotPorts(), portNumber},
	)
}

// keys are the conditions of "when" that have no name in brackets.
var keys = map[string]list{
	"source.ip":              {attribute: mesh.AttrSourceIP, parse: network},
	"remote.ip":              {attribute: mesh.AttrRemoteIP, parse: network},
	"source.namespace":       {attribute: mesh.AttrPrincipal, parse: sourceNamespace},
	"source.principal":       {attribute: mesh.AttrPrincipal, parse: principal},
	"source.serviceAccount":  {attribute: mesh.AttrPrincipal, parse: serviceAccount},
	"source.trustDomain":     {attribute: mesh.AttrPrincipal, parse: trustDomain},
	"request.auth.principal": {attribute: mesh.AttrRequestPrincipal, parse: requestPrincipal},
	"destination.ip":         {attribute: mesh.AttrDestinationIP, parse: network},
	"destination.port":       {attribute: mesh.AttrDestinationPort, parse: portNumber},
	"connection.sni":         {attribute: mesh.AttrServerName, parse: text},
}

func (p *policyReader) when(field string, c *securityapi.Condition) *mesh.AccessCondition {
	any, none, key := c.GetValues(), c.GetNotValues(), c.GetKey()
	made, parse := mesh.AccessCondition{}, text
	prefix, _, bracket := strings.Cut(key, "[")
	known, ok := keys[key]
	switch {
	case ok:
		made.Attribute, parse = known.attribute, known.parse
		switch key {
		case "source.principal":
			any, none = p.mesh.trustDomains.principals(any), p.mesh.trustDomains.principals(none)
		case "source.trustDomain":
			any, none = p.mesh.trustDomains.expand(any), p.mesh.trustDomains.expand(none)
		}
	case key == "request.auth.audiences":
		made.Attribute, made.Names = mesh.AttrClaim, []string{"aud"}
	case key == "request.auth.presenter":
		made.Attribute, made.Names = mesh.AttrClaim, []string{"azp"}
	case bracket && prefix == "request.headers":
		made.Attribute, made.Names = mesh.AttrHeader, bracketed(key, false)
	case bracket && prefix == "request.auth.claims":
		made.Attribute, made.Names = mesh.AttrClaim, bracketed(key, true)
	case bracket && strings.HasPrefix(prefix, "experimental.envoy.filters."):
		made.Attribute, made.Names, parse = mesh.AttrMetadata, bracketed(key, false), metadataValue
		if len(made.Names) > 0 {
			made.Names = []string{strings.TrimPrefix(prefix, "experimental."), made.Names[0]}
		}
	default:
		p.fail(diag.InvalidField, field+".key", quoted(key)+" is no condition", "istio.io lists them under Authorization Policy Conditions")
		return nil
	}
	if bracket && len(made.Names) == 0 {
		p.fail(diag.InvalidField, field+".key", quoted(key)+" does not name what is in brackets", "write, for example, request.headers[User-Agent]")
		return nil
	}
	made.Any, made.None = p.matches(field+".values", any, parse), p.matches(field+".notValues", none, parse)
	return &made
}

// bracketed gives the names in brackets at the end of a key: one, or a path of several such as [address][city].
func bracketed(key string, several bool) (names []string) {
	_, rest, _ := strings.Cut(key, "[")
	rest, ok := strings.CutSuffix(rest, "]")
	if !ok || rest == "" {
		return nil
	}
	names = []string{rest}
	if several {
		names = strings.Split(rest, "][")
	}
	if slices.ContainsFunc(names, func(n string) bool { return n == "" || strings.ContainsAny(n, "[]") }) {
		return nil
	}
	return names
}

// text compares as Istio does: "*" is any value that is not empty, an asterisk at one end leaves that end open.
func text(_ *policyReader, value string) (mesh.ValueMatch, error) {
	switch {
	case value == "*":
		return mesh.ValueMatch{Kind: mesh.MatchPresent}, nil
	case strings.HasPrefix(value, "*"):
		return mesh.ValueMatch{Kind: mesh.MatchSuffix, Text: value[1:]}, nil
	case strings.HasSuffix(value, "*"):
		return mesh.ValueMatch{Kind: mesh.MatchPrefix, Text: value[:len(value)-1]}, nil
	}
	return mesh.ValueMatch{Kind: mesh.MatchExact, Text: value}, nil
}

// path knows templates besides: {*} is one segment, {**} any number of them.
func path(p *policyReader, value string) (mesh.ValueMatch, error) {
	if !strings.Contains(value, "{*}") && !strings.Contains(value, "{**}") {
		return text(p, value)
	}
	template := strings.NewReplacer("{**}", "**", "{*}", "*").Replace(value)
	rest := strings.NewReplacer("{**}", "", "{*}", "").Replace(value)
	if strings.ContainsAny(rest, "{}*") || !strings.HasPrefix(value, "/") || strings.Count(value, "{**}") > 1 {
		return mesh.ValueMatch{}, fmt.Errorf("is no path template: {*} and at most one {**} stand for whole segments, and nothing else has braces or asterisks")
	}
	for segment := range strings.SplitSeq(value, "/") {
		if strings.Contains(segment, "{") && segment != "{*}" && segment != "{**}" {
			return mesh.ValueMatch{}, fmt.Errorf("is no path template: {*} and {**} stand for whole segments")
		}
	}
	return mesh.ValueMatch{Kind: mesh.MatchTemplate, Text: template}, nil
}

func network(_ *policyReader, value string) (mesh.ValueMatch, error) {
	if a, err := netip.ParseAddr(value); err == nil && a.Zone() == "" {
		return mesh.ValueMatch{Kind: mesh.MatchNetwork, Network: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		return mesh.ValueMatch{}, fmt.Errorf("is no address and no block of addresses")
	}
	return mesh.ValueMatch{Kind: mesh.MatchNetwork, Network: prefix.Masked()}, nil
}

func portNumber(_ *policyReader, value string) (mesh.ValueMatch, error) {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n == 0 {
		return mesh.ValueMatch{}, fmt.Errorf("is no port: it is a number from 1 to 65535")
	}
	return mesh.ValueMatch{Kind: mesh.MatchPort, Port: uint32(n)}, nil
}

// principal compares an identity; policies leave its scheme out.
func principal(_ *policyReader, value string) (mesh.ValueMatch, error) {
	switch {
	case value == "*":
		return mesh.ValueMatch{Kind: mesh.MatchRegex, Text: ".+"}, nil
	case strings.HasPrefix(value, "*"):
		return mesh.ValueMatch{Kind: mesh.MatchRegex, Text: spiffe + ".*" + regexp.QuoteMeta(value[1:])}, nil
	case strings.HasSuffix(value, "*"):
		return mesh.ValueMatch{Kind: mesh.MatchPrefix, Text: spiffe + value[:len(value)-1]}, nil
	}
	return mesh.ValueMatch{Kind: mesh.MatchExact, Text: spiffe + value}, nil
}

// wild quotes a value for a regular expression, in which its asterisks stand for any characters of one segment.
func wild(value string) string {
	return strings.ReplaceAll(regexp.QuoteMeta(value), `\*`, "[^/]*")
}

func sourceNamespace(_ *policyReader, value string) (mesh.ValueMatch, error) {
	return mesh.ValueMatch{Kind: mesh.MatchRegex, Text: ".*/ns/" + wild(value) + "/.*"}, nil
}

func trustDomain(_ *policyReader, value string) (mesh.ValueMatch, error) {
	switch {
	case value == "*":
		return mesh.ValueMatch{Kind: mesh.MatchPrefix, Text: spiffe}, nil
	case !strings.Contains(value, "*"):
		return mesh.ValueMatch{Kind: mesh.MatchPrefix, Text: spiffe + value + "/"}, nil
	}
	return mesh.ValueMatch{Kind: mesh.MatchRegex, Text: spiffe + wild(value) + "/.*"}, nil
}

// serviceAccount is NAMESPACE/NAME, or a name in the policy's own namespace.
func serviceAccount(p *policyReader, value string) (mesh.ValueMatch, error) {
	namespace, name, ok := strings.Cut(value, "/")
	if !ok {
		namespace, name = p.namespace, value
	}
	if name == "" || namespace == "" || strings.ContainsAny(name, "/*") || strings.Contains(namespace, "*") {
		return mesh.ValueMatch{}, fmt.Errorf("is no service account: write NAMESPACE/NAME, or a name of the policy's namespace")
	}
	return mesh.ValueMatch{Kind: mesh.MatchRegex, Text: spiffe + ".+/ns/" + regexp.QuoteMeta(namespace) + "/(.+/)?sa/" + regexp.QuoteMeta(name) + "(/.+)?"}, nil
}

// requestPrincipal is ISSUER/SUBJECT of a token. The issuer may have slashes in it. An asterisk stands at one end.
func requestPrincipal(_ *policyReader, value string) (mesh.ValueMatch, error) {
	some := mesh.ValueMatch{Kind: mesh.MatchRegex, Text: ".+"}
	issuer, subject := mesh.ValueMatch{Text: value}, mesh.ValueMatch{}
	i := strings.LastIndexByte(value, '/')
	if i >= 0 {
		issuer.Text, subject.Text = value[:i], value[i+1:]
	}
	switch {
	case value == "*":
		issuer, subject = some, some
	case strings.HasPrefix(value, "*") && i < 0:
		issuer, subject = some, mesh.ValueMatch{Kind: mesh.MatchSuffix, Text: value[1:]}
	case strings.HasPrefix(value, "*"):
		issuer = mesh.ValueMatch{Kind: mesh.MatchSuffix, Text: issuer.Text[1:]}
		if issuer.Text == "" {
			issuer = some
		}
		if subject.Text == "*" {
			subject = some
		}
	case strings.HasSuffix(value, "*") && i < 0:
		issuer, subject = mesh.ValueMatch{Kind: mesh.MatchPrefix, Text: value[:len(value)-1]}, some
	case strings.HasSuffix(value, "*"):
		subject = mesh.ValueMatch{Kind: mesh.MatchPrefix, Text: strings.TrimSuffix(subject.Text, "*")}
		if subject.Text == "" {
			subject = some
		}
	}
	return mesh.ValueMatch{Kind: mesh.MatchPair, Both: []mesh.ValueMatch{issuer, subject}}, nil
}

// metadataValue is a value of a filter's metadata; in brackets, an item of a list.
func metadataValue(p *policyReader, value string) (mesh.ValueMatch, error) {
	inner, ok := strings.CutPrefix(value, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	if !ok || !closed {
		return text(p, value)
	}
	m, err := text(p, inner)
	return mesh.ValueMatch{Kind: mesh.MatchListItem, Both: []mesh.ValueMatch{m}}, err
}
