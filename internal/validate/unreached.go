package validate

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// unreached warns of routes and matches that no request reaches, because ones before them take all: routes are tried in their order.
func (c *check) unreached(vs *networking.VirtualService) {
	var requests []route
	for _, r := range vs.GetHttp() {
		one := route{name: r.GetName()}
		for _, m := range r.GetMatch() {
			bare := proto.CloneOf(m)
			bare.Name, bare.StatPrefix = "", "" // they choose no requests
			one.matches = append(one.matches, bare)
		}
		requests = append(requests, one)
	}
	c.hidden(spec.field("http"), requests)
	c.covered(vs.GetHttp())
	var secure []route
	for _, r := range vs.GetTls() {
		var one route
		for _, m := range r.GetMatch() {
			one.matches = append(one.matches, m)
		}
		secure = append(secure, one)
	}
	c.hidden(spec.field("tls"), secure)
	var plain []route
	for _, r := range vs.GetTcp() {
		var one route
		for _, m := range r.GetMatch() {
			one.matches = append(one.matches, m)
		}
		plain = append(plain, one)
	}
	c.hidden(spec.field("tcp"), plain)
}

// route is what chooses connections or requests, of any protocol.
type route struct {
	name    string
	matches []proto.Message // without what does not choose
}

// hidden finds routes behind one without matches, and matches that are there before.
func (c *check) hidden(at path, routes []route) {
	called := func(i int) string {
		if routes[i].name != "" {
			return quote(routes[i].name)
		}
		return at.index(i).String()
	}
	all, seen := -1, map[string]int{}
	for i, r := range routes {
		if all >= 0 {
			c.warnf(diag.UnreachableRoute, at.index(i), "no request reaches it: %s has no matches, and so takes all", called(all))
			continue
		}
		if len(r.matches) == 0 {
			all = i
			continue
		}
		twice := 0
		for j, m := range r.matches {
			text, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			if err != nil {
				continue
			}
			before, known := seen[string(text)]
			if !known {
				seen[string(text)] = i
				continue
			}
			twice++
			c.warnf(diag.IneffectiveMatch, at.index(i).field("match").index(j), "no request reaches it: %s has the same match", called(before))
		}
		if twice == len(r.matches) {
			c.warnf(diag.UnreachableRoute, at.index(i), "no request reaches it: the routes before it have all of its matches")
		}
	}
}

// prefixed is a match by the beginning of a path, and all else that it asks for.
type prefixed struct {
	at     path
	prefix string
	rest   string
}

// covered finds matches by a prefix that begins with the prefix of one before, where all else is the same. Of many, only some are
// compared: each is with each.
func (c *check) covered(routes []*networking.HTTPRoute) {
	const mostCompared = 500
	var before []prefixed
	for i, r := range routes {
		for j, m := range r.GetMatch() {
			p, ok := m.GetUri().GetMatchType().(*networking.StringMatch_Prefix)
			if !ok || len(before) >= mostCompared {
				continue
			}
			bare := proto.CloneOf(m)
			bare.Uri, bare.Name, bare.StatPrefix = nil, "", ""
			text, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
			if err != nil {
				continue
			}
			this := prefixed{spec.field("http").index(i).field("match").index(j), p.Prefix, string(text)}
			for _, other := range before {
				if other.rest == this.rest && other.prefix != this.prefix && strings.HasPrefix(this.prefix, other.prefix) {
					c.warnf(diag.IneffectiveMatch, this.at, "no request reaches it: %s takes all paths that begin with %s", fmt.Sprint(other.at), quote(other.prefix))
					break
				}
			}
			before = append(before, this)
		}
	}
}
