package validate

import (
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// attributes are what conditions may ask about, and how their values are checked; nil for those whose values may be anything.
var attributes = map[string]func(*check, path, []string){
	"source.ip": (*check).blocks, "remote.ip": (*check).blocks, "destination.ip": (*check).blocks,
	"destination.port":      (*check).ports,
	"source.serviceAccount": (*check).accounts, "source.trustDomain": (*check).wildcards,
	"source.namespace": nil, "source.principal": nil, "connection.sni": nil,
	"request.auth.principal": nil, "request.auth.audiences": nil, "request.auth.presenter": nil,
}

// keyed are attributes of which one is named in brackets.
var keyed = []string{"request.headers", "request.auth.claims", "experimental.envoy.filters."}

// moved are attributes that Istio had, and where people find now what they said.
var moved = map[string]string{
	"destination.namespace": "put the policy into that namespace",
	"destination.labels":    "name the labels in spec.selector",
	"destination.name":      "name the workload's labels in spec.selector",
	"destination.user":      "name the workload's labels in spec.selector",
}

func (c *check) condition(at path, when *security.Condition) {
	key := when.GetKey()
	if !c.required(at.field("key"), key) {
		return
	}
	if len(when.GetValues()) == 0 && len(when.GetNotValues()) == 0 {
		c.errorf(diag.MissingValue, at, "values or notValues are missing")
	}
	if !c.attribute(at.field("key"), key) {
		return
	}
	for _, l := range []values{{"values", when.GetValues()}, {"notValues", when.GetNotValues()}} {
		if i := slices.Index(l.items, ""); i >= 0 {
			c.errorf(diag.MissingValue, at.field(l.field).index(i), "it is empty, and would match nothing")
		}
		if values := attributes[key]; values != nil {
			values(c, at.field(l.field), l.items)
		}
	}
}

// attribute reports whether there is such an attribute.
func (c *check) attribute(at path, key string) bool {
	if _, known := attributes[key]; known {
		return true
	}
	for _, prefix := range keyed {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		open := strings.Index(key, "[")
		if open <= 0 || !strings.HasSuffix(key, "]") || open >= len(key)-2 {
			c.errorf(diag.UnknownAttribute, at, "%s does not say which one", quote(key)).hint("name it in brackets, such as request.headers[x-user]")
			return false
		}
		return true
	}
	for old, instead := range moved {
		if key == old || old == "destination.labels" && strings.HasPrefix(key, old) {
			c.errorf(diag.UnknownAttribute, at, "%s is no attribute any more", quote(key)).hint("%s", instead)
			return false
		}
	}
	names := slices.Clone(keyed)
	for name := range attributes {
		names = append(names, name)
	}
	told := c.errorf(diag.UnknownAttribute, at, "%s is no attribute of requests", quote(key))
	if near := nearest(key, names); near != "" {
		told.hint("did you mean %s?", near)
	}
	return false
}

// customRule checks that a rule for a provider asks only what is known before identities are: the provider is asked first.
func (c *check) customRule(at path, r *security.Rule) {
	const before = "the provider is asked before peers and tokens are looked at"
	for i, from := range r.GetFrom() {
		s, where := from.GetSource(), at.field("from").index(i).field("source")
		for _, l := range []values{
			{"principals", s.GetPrincipals()}, {"notPrincipals", s.GetNotPrincipals()},
			{"requestPrincipals", s.GetRequestPrincipals()}, {"notRequestPrincipals", s.GetNotRequestPrincipals()},
			{"namespaces", s.GetNamespaces()}, {"notNamespaces", s.GetNotNamespaces()},
			{"serviceAccounts", s.GetServiceAccounts()}, {"notServiceAccounts", s.GetNotServiceAccounts()},
			{"trustDomains", s.GetTrustDomains()}, {"notTrustDomains", s.GetNotTrustDomains()},
		} {
			if len(l.items) > 0 {
				c.errorf(diag.NotSupported, where.field(l.field), "action CUSTOM cannot use it: %s", before).hint("say it in a policy of action ALLOW or DENY beside this one")
			}
		}
	}
	for i, when := range r.GetWhen() {
		key := when.GetKey()
		if slices.Contains([]string{"source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"}, key) || strings.HasPrefix(key, "request.auth.") {
			c.errorf(diag.NotSupported, at.field("when").index(i).field("key"), "action CUSTOM cannot use %s: %s", quote(key), before).hint("say it in a policy of action ALLOW or DENY beside this one")
		}
	}
}
