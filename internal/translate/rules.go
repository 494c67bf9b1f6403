package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// rules are the DestinationRules of one namespace.
type rules struct {
	source   *index.Table[*index.Resource]
	exact    map[string]*ruleGroup
	wild     []*ruleGroup // the longest, which is the most specific, first
	problems []diag.Problem
}

// ruleGroup is the rules of one namespace for one host, the oldest first.
type ruleGroup struct {
	host string
	each []*destinationRule
}

// destinationRule is one object.
type destinationRule struct {
	source *index.Resource
	spec   *networkingapi.DestinationRule
	to     audience
}

// rule is what a client is told of a host by one namespace: the rules that it sees, merged.
type rule struct {
	policy  *networkingapi.TrafficPolicy
	subsets []*networkingapi.Subset // in the order of their names
	refs    []ref.Ref
}

// readRules reads the rules of a namespace. A rule that is not valid is left out: half of what somebody meant may do more harm than
// nothing of it, and its problems say that it is so.
func readRules(ns *index.Namespace, m *meshWide) *rules {
	out := &rules{source: ns.Resources(index.DestinationRules), exact: map[string]*ruleGroup{}}
	groups := map[string]*ruleGroup{}
	for _, r := range byAge(out.source.All()) {
		spec, ok := r.Spec.(*networkingapi.DestinationRule)
		if !ok || !r.Valid {
			continue
		}
		out.problems = append(out.problems, refusedFields(r.Ref(), spec)...)
		if len(spec.GetWorkloadSelector().GetMatchLabels()) > 0 {
			continue // refusedFields has said so
		}
		host := fullName(spec.GetHost(), ns.Name, m.settings.ClusterDomain)
		g := groups[host]
		if g == nil {
			g = &ruleGroup{host: host}
			groups[host] = g
		}
		g.each = append(g.each, &destinationRule{r, spec, readAudience(spec.GetExportTo(), m.exportRules, ns.Name)})
	}
	for host, g := range groups {
		if strings.HasPrefix(host, "*") {
			out.wild = append(out.wild, g)
		} else {
			out.exact[host] = g
		}
		out.problems = append(out.problems, g.contradictions()...)
	}
	out.problems = sorted(out.problems)
	slices.SortFunc(out.wild, func(a, b *ruleGroup) int {
		return cmp.Or(cmp.Compare(len(b.host), len(a.host)), strings.Compare(a.host, b.host))
	})
	return out
}

// byAge sorts the oldest first; names decide within one second.
func byAge(rs []*index.Resource) []*index.Resource {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b *index.Resource) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return rs
}

// contradictions tells rules of one host what of them an older one has already said.
func (g *ruleGroup) contradictions() (problems []diag.Problem) {
	policy, subsets := "", map[string]string{}
	for _, d := range g.each {
		r := reader{object: d.source.Ref()}
		if d.spec.GetTrafficPolicy() != nil {
			if policy != "" {
				r.add(diag.HostCollision, diag.Warning, "spec.trafficPolicy", "it has no effect: "+policy+" has a policy for "+g.host+" too, and is older",
					"put both into one rule")
			} else {
				policy = d.source.Ref().String()
			}
		}
		for i, s := range d.spec.GetSubsets() {
			if first, ok := subsets[s.GetName()]; ok {
				r.add(diag.HostCollision, diag.Warning, fmt.Sprintf("spec.subsets[%d]", i),
					"it has no effect: "+first+" has a subset "+s.GetName()+" of "+g.host+" too, and is older", "give it another name")
				continue
			}
			subsets[s.GetName()] = d.source.Ref().String()
		}
		problems = append(problems, r.problems...)
	}
	return problems
}

// mask says which of the rules are seen, and whether any is.
func (g *ruleGroup) mask(seen func(*destinationRule) bool) (mask string, any bool) {
	if len(g.each) == 1 { // as nearly always
		return "1", seen(g.each[0])
	}
	bits := make([]byte, len(g.each))
	for i, d := range g.each {
		if bits[i] = '0'; seen(d) {
			bits[i], any = '1', true
		}
	}
	return string(bits), any
}

// merge gives what the rules of a mask say together: the oldest one's policy counts, and each subset that no older one has.
func (g *ruleGroup) merge(mask string) *rule {
	merged := &rule{}
	named := map[string]bool{}
	for i, d := range g.each {
		if mask[i] == '0' {
			continue
		}
		if merged.policy == nil {
			merged.policy = d.spec.GetTrafficPolicy()
		}
		for _, s := range d.spec.GetSubsets() {
			if !named[s.GetName()] {
				named[s.GetName()] = true
				merged.subsets = append(merged.subsets, s)
			}
		}
		merged.refs = append(merged.refs, d.source.Ref())
	}
	slices.SortFunc(merged.subsets, func(a, b *networkingapi.Subset) int { return strings.Compare(a.GetName(), b.GetName()) })
	slices.SortFunc(merged.refs, ref.Compare)
	return merged
}

// apply gives a service as clients see it for whom the rule holds.
func (r *rule) apply(raw *mesh.Service) *mesh.Service {
	next := *raw
	next.Ports = make([]*mesh.ServicePort, len(raw.Ports))
	for i, p := range raw.Ports {
		port := *p
		port.Policy = trafficPolicy(r.policy, nil, p.Number)
		next.Ports[i] = &port
	}
	for _, s := range r.subsets {
		subset := &mesh.Subset{Name: s.GetName()}
		if len(raw.Targets) > 0 {
			subset.Labels = s.GetLabels()
		}
		for _, p := range raw.Ports {
			subset.Policies = append(subset.Policies, trafficPolicy(r.policy, s.GetTrafficPolicy(), p.Number))
		}
		next.Subsets = append(next.Subsets, subset)
	}
	next.Refs = slices.Concat(raw.Refs, r.refs)
	slices.SortFunc(next.Refs, ref.Compare)
	return &next
}

// labelsOf gives the labels of a subset.
func (r *rule) labelsOf(subset string) map[string]string {
	for _, s := range r.subsets {
		if s.GetName() == subset {
			return s.GetLabels()
		}
	}
	return nil
}
