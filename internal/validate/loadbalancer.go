package validate

import (
	"maps"
	"math/big"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func (c *check) loadBalancer(at path, l *networking.LoadBalancerSettings, outliers bool) {
	if l == nil {
		return
	}
	if h := l.GetConsistentHash(); h != nil {
		c.consistentHash(at.field("consistentHash"), h)
	}
	if l.GetLocalityLbSetting() != nil && l.GetZoneAwareLbSetting() != nil {
		c.errorf(diag.Contradiction, at.field("zoneAwareLbSetting"), "localityLbSetting and zoneAwareLbSetting exclude each other")
	}
	c.localities(at.field("localityLbSetting"), l.GetLocalityLbSetting(), outliers)
	c.zones(at.field("zoneAwareLbSetting"), l.GetZoneAwareLbSetting(), outliers)
	if w := l.GetWarmup(); w != nil {
		where := at.field("warmup")
		if w.GetDuration() == nil {
			c.errorf(diag.MissingValue, where.field("duration"), "it is missing")
		}
		c.duration(where.field("duration"), w.GetDuration())
		c.percent(where.field("minimumPercent"), w.GetMinimumPercent().GetValue())
		if w.GetAggression() != nil && !(w.GetAggression().GetValue() > 0) {
			c.errorf(diag.OutOfRange, where.field("aggression"), "it is %v, and must be more than 0", w.GetAggression().GetValue())
		}
	}
}

func (c *check) consistentHash(at path, h *networking.LoadBalancerSettings_ConsistentHashLB) {
	if cookie := h.GetHttpCookie(); cookie != nil {
		where := at.field("httpCookie")
		c.required(where.field("name"), cookie.GetName())
		names := map[string]bool{}
		for i, a := range cookie.GetAttributes() {
			name := where.field("attributes").index(i).field("name")
			if c.required(name, a.GetName()) && names[a.GetName()] {
				c.errorf(diag.Duplicate, name, "the attribute %s is there twice", quote(a.GetName()))
			}
			names[a.GetName()] = true
		}
	}
	if h.GetMinimumRingSize() != 0 { //nolint:staticcheck // the field is checked because it is deprecated
		c.warnf(diag.Deprecated, at.field("minimumRingSize"), "the field is deprecated").hint("use ringHash.minimumRingSize")
		if h.GetHashAlgorithm() != nil {
			c.errorf(diag.Contradiction, at.field("minimumRingSize"), "ringHash and maglev exclude it")
		}
	}
	if m := h.GetMaglev(); m != nil {
		const mostEntries = 5000011 // Envoy's bound of the table
		if n := m.GetTableSize(); n >= mostEntries || !new(big.Int).SetUint64(n).ProbablyPrime(0) && n != 1 {
			c.errorf(diag.OutOfRange, at.field("maglev").field("tableSize"), "it is %d, and must be a prime below %d", n, mostEntries).hint("65537 is one")
		}
	}
}

// The labels of topology that Envoy follows by itself.
var topology = []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}

func (c *check) localities(at path, l *networking.LocalityLoadBalancerSetting, outliers bool) {
	if l == nil {
		return
	}
	if len(l.GetDistribute()) > 0 && len(l.GetFailover()) > 0 {
		c.errorf(diag.Contradiction, at.field("failover"), "distribute and failover exclude each other")
	}
	if len(l.GetFailover()) > 0 {
		for i, name := range l.GetFailoverPriority() {
			if slices.Contains(topology, name) {
				c.errorf(diag.Contradiction, at.field("failoverPriority").index(i), "failover orders the regions, and so does %s", name)
			}
		}
	}
	sources := make([]located, 0, len(l.GetDistribute()))
	for i, d := range l.GetDistribute() {
		where := at.field("distribute").index(i)
		sources = append(sources, located{where.field("from"), d.GetFrom()})
		total := uint64(0)
		var targets []located
		for _, name := range slices.SortedFunc(maps.Keys(d.GetTo()), restLast) {
			targets = append(targets, located{where.field("to").key(name), name})
			if w := d.GetTo()[name]; w < 1 || w > 100 {
				c.errorf(diag.InvalidLocality, where.field("to").key(name), "the weight is %d, and must be between 1 and 100", w).hint("write the weights as percentages")
			}
			total += uint64(d.GetTo()[name])
		}
		if total != 100 {
			c.errorf(diag.InvalidLocality, where.field("to"), "the weights make %d together, and must make 100", total).hint("write the weights as percentages")
		}
		c.apart(targets)
	}
	c.apart(sources)
	pairs := make([]pair, 0, len(l.GetFailover()))
	for _, f := range l.GetFailover() {
		pairs = append(pairs, f)
	}
	c.failover(at, pairs, len(l.GetFailoverPriority()) > 0, outliers)
}

func (c *check) zones(at path, l *networking.ZoneAwareLoadBalancerSetting, outliers bool) {
	if l == nil {
		return
	}
	for i, name := range l.GetFailoverPriority() {
		if slices.Contains(topology, name) {
			c.errorf(diag.Contradiction, at.field("failoverPriority").index(i), "zones are followed anyway, so %s cannot order them", name).hint("take it out")
		}
	}
	pairs := make([]pair, 0, len(l.GetFailover()))
	for _, f := range l.GetFailover() {
		pairs = append(pairs, f)
	}
	c.failover(at, pairs, len(l.GetFailoverPriority()) > 0, outliers)
}

// pair is a region and the one that stands in for it.
type pair interface {
	GetFrom() string
	GetTo() string
}

func (c *check) failover(at path, pairs []pair, priority, outliers bool) {
	if (len(pairs) > 0 || priority) && !outliers {
		c.warnf(diag.NoEffect, at, "without outlierDetection no endpoint is ever found to be down, so nothing fails over").hint("add outlierDetection to the same policy")
	}
	for i, f := range pairs {
		where := at.field("failover").index(i)
		if f.GetFrom() == f.GetTo() {
			c.errorf(diag.InvalidLocality, where, "from and to are the same region, %s", quote(f.GetTo())).hint("name another region in to")
		}
		for _, end := range []struct{ field, region string }{{"from", f.GetFrom()}, {"to", f.GetTo()}} {
			if strings.ContainsAny(end.region, "/*") {
				c.errorf(diag.InvalidLocality, where.field(end.field), "%s is no region: zones and wildcards do not belong here", quote(end.region)).hint("name the region alone")
			}
		}
	}
}

// located is a locality and where it stands.
type located struct {
	at   path
	name string
}

// restLast orders localities, with what is left of the world at the end.
func restLast(a, b string) int {
	if (a == "*") != (b == "*") {
		return strings.Compare(b, a) // a star is before all letters
	}
	return strings.Compare(a, b)
}

// apart checks that localities are well formed and do not overlap. A star at the end is what is left, and overlaps with nothing.
func (c *check) apart(all []located) {
	var before []string
	for _, l := range all {
		parts := strings.SplitN(l.name, "/", 3)
		if slices.Contains(parts, "") {
			c.errorf(diag.InvalidLocality, l.at, "%s has an empty part", quote(l.name))
			continue
		}
		if n := strings.Count(l.name, "*"); n > 1 || n == 1 && !strings.HasSuffix(l.name, "*") {
			c.errorf(diag.InvalidLocality, l.at, "%s has a wildcard that is not its end", quote(l.name))
			continue
		}
		whole := strings.TrimSuffix(strings.TrimSuffix(l.name, "*"), "/")
		const mostCompared = 1000
		for _, other := range before[:min(len(before), mostCompared)] {
			if within(whole, other) || whole != "" && within(other, whole) {
				c.errorf(diag.InvalidLocality, l.at, "%s overlaps with %s", quote(l.name), quote(other)).hint("name each locality once")
				break
			}
		}
		before = append(before, whole)
	}
}

// within reports whether a locality is another, or a part of it; "" is everything.
func within(inner, outer string) bool {
	return outer == "" || inner == outer || strings.HasPrefix(inner, outer+"/")
}
