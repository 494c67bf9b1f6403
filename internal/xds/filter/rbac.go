package filter

import (
	"fmt"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// ruleSet is the policies of one action: those that decide, and those that are only evaluated.
type ruleSet struct {
	rules, dryRun *rbacv3.RBAC
	prefix        string // of the statistics of dryRun
}

func (s ruleSet) http() *httpv3.RBAC {
	return &httpv3.RBAC{Rules: s.rules, ShadowRules: s.dryRun, ShadowRulesStatPrefix: s.prefix}
}

func (s ruleSet) network() *networkv3.RBAC {
	return &networkv3.RBAC{Rules: s.rules, ShadowRules: s.dryRun, ShadowRulesStatPrefix: s.prefix, StatPrefix: "tcp."}
}

var actions = map[mesh.Action]rbacv3.RBAC_Action{
	mesh.ActionCustom: rbacv3.RBAC_DENY, // matches what the authorizer is asked about
	mesh.ActionAudit:  rbacv3.RBAC_LOG,
	mesh.ActionDeny:   rbacv3.RBAC_DENY,
	mesh.ActionAllow:  rbacv3.RBAC_ALLOW,
}

// dryRunPrefixes begin the statistics of policies that are only evaluated. They are Istio's.
var dryRunPrefixes = map[mesh.Action]string{mesh.ActionAllow: "istio_dry_run_allow_", mesh.ActionDeny: "istio_dry_run_deny_"}

// rules gives policies of one action. Those that allow refuse everything when none of their rules is left.
func rules(policies []*mesh.AccessPolicy, action mesh.Action, tcp bool) (s ruleSet) {
	for _, p := range policies {
		to := &s.rules
		if p.DryRun {
			to, s.prefix = &s.dryRun, dryRunPrefixes[action]
		}
		if *to == nil {
			*to = &rbacv3.RBAC{Action: actions[action], Policies: map[string]*rbacv3.Policy{}}
		}
		addRules((*to).Policies, p, "", tcp)
	}
	return s
}

// addRules adds the rules of a policy, under names that logs show and that are Istio's.
func addRules(to map[string]*rbacv3.Policy, p *mesh.AccessPolicy, prefix string, tcp bool) {
	for i, r := range p.Rules {
		if made := rule(r, tcp, p.Action); made != nil {
			to[fmt.Sprintf("%sns[%s]-policy[%s]-rule[%d]", prefix, p.Namespace, p.Name, i)] = made
		}
	}
}

// rule gives one rule; nil when it allows nothing on this kind of port.
func rule(r mesh.AccessRule, tcp bool, action mesh.Action) *rbacv3.Policy {
	reading := reading{tcp: tcp}
	var out rbacv3.Policy
	for _, to := range orEmpty(r.To) {
		out.Permissions = append(out.Permissions, reading.permission(append(to[:len(to):len(to)], r.When...)))
	}
	for _, from := range orEmpty(r.From) {
		out.Principals = append(out.Principals, reading.principal(append(from[:len(from):len(from)], r.When...)))
	}
	if reading.lost && action == mesh.ActionAllow {
		return nil
	}
	return &out
}

// orEmpty gives one set without conditions, which matches everything, when there is none.
func orEmpty(sets [][]mesh.AccessCondition) [][]mesh.AccessCondition {
	if len(sets) == 0 {
		return [][]mesh.AccessCondition{nil}
	}
	return sets
}

// reading is how conditions are read: on a port that is not HTTP some get lost.
type reading struct{ tcp, lost bool }

// skip reports whether a condition cannot be met on this kind of port.
func (r *reading) skip(c mesh.AccessCondition) bool {
	if r.tcp && c.Attribute.HTTP() {
		r.lost = true
		return true
	}
	return false
}

// aboutTarget reports whether Envoy asks for an attribute among permissions; all others are about the caller.
func aboutTarget(a mesh.Attribute) bool {
	switch a {
	case mesh.AttrHost, mesh.AttrMethod, mesh.AttrPath, mesh.AttrDestinationIP, mesh.AttrDestinationPort, mesh.AttrServerName, mesh.AttrMetadata:
		return true
	default:
		return false
	}
}

func (r *reading) permission(conditions []mesh.AccessCondition) *rbacv3.Permission {
	var and []*rbacv3.Permission
	for _, c := range conditions {
		if !aboutTarget(c.Attribute) || r.skip(c) {
			continue
		}
		if len(c.Any) > 0 {
			and = append(and, anyPermission(c, c.Any))
		}
		if len(c.None) > 0 {
			and = append(and, &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: anyPermission(c, c.None)}})
		}
	}
	if len(and) == 0 {
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: and}}}
}

func anyPermission(c mesh.AccessCondition, matches []mesh.ValueMatch) *rbacv3.Permission {
	or := make([]*rbacv3.Permission, len(matches))
	for i, m := range matches {
		or[i] = permission(c, m)
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: or}}}
}

func (r *reading) principal(conditions []mesh.AccessCondition) *rbacv3.Principal {
	var and []*rbacv3.Principal
	for _, c := range conditions {
		if aboutTarget(c.Attribute) || r.skip(c) {
			continue
		}
		if len(c.Any) > 0 {
			and = append(and, anyPrincipal(c, c.Any))
		}
		if len(c.None) > 0 {
			and = append(and, &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: anyPrincipal(c, c.None)}})
		}
	}
	if len(and) == 0 {
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
	}
	return andIDs(and...)
}

func anyPrincipal(c mesh.AccessCondition, matches []mesh.ValueMatch) *rbacv3.Principal {
	or := make([]*rbacv3.Principal, len(matches))
	for i, m := range matches {
		or[i] = principal(c, m)
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: or}}}
}

func andIDs(ids ...*rbacv3.Principal) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: ids}}}
}
