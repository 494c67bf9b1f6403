package translate

import (
	"maps"
	"strings"

	"google.golang.org/protobuf/proto"
	networkingapi "istio.io/api/networking/v1alpha3"
)

// delegated gives the routes of a delegate as they stand in the place of the route that delegates: a request must match both, and what a
// route of the delegate does not say is as the delegating route says (istio.io, VirtualService, Delegate). A match of the delegate that
// the delegating one does not let through is left out.
func delegated(root *networkingapi.HTTPRoute, routes []*networkingapi.HTTPRoute) (merged []*networkingapi.HTTPRoute) {
	for _, r := range routes {
		if r.GetDelegate() != nil {
			continue // one level is what the API has
		}
		matches, any := mergeMatches(root.GetMatch(), r.GetMatch())
		if !any {
			continue
		}
		m := proto.CloneOf(r)
		m.Match = matches
		if root.GetName() != "" && m.GetName() != "" {
			m.Name = root.GetName() + "-" + m.GetName()
		} else if m.GetName() == "" {
			m.Name = root.GetName()
		}
		inherit(m, root)
		merged = append(merged, m)
	}
	return merged
}

func inherit(m, root *networkingapi.HTTPRoute) {
	if m.Rewrite == nil {
		m.Rewrite = root.Rewrite
	}
	if m.Timeout == nil {
		m.Timeout = root.Timeout
	}
	if m.Retries == nil {
		m.Retries = root.Retries
	}
	if m.Fault == nil {
		m.Fault = root.Fault
	}
	if m.Mirror == nil && len(m.Mirrors) == 0 {
		m.Mirror, m.MirrorPercentage, m.Mirrors = root.Mirror, root.MirrorPercentage, root.Mirrors
		m.MirrorPercent = root.MirrorPercent //nolint:staticcheck // people still write the former form
	}
	if m.CorsPolicy == nil {
		m.CorsPolicy = root.CorsPolicy
	}
	if m.Headers == nil {
		m.Headers = root.Headers
	}
}

// mergeMatches reports false when no request can match both.
func mergeMatches(root, leaf []*networkingapi.HTTPMatchRequest) (merged []*networkingapi.HTTPMatchRequest, any bool) {
	if len(root) == 0 || len(leaf) == 0 {
		return append(append(merged, root...), leaf...), true
	}
	for _, r := range root {
		for _, l := range leaf {
			if m := mergeMatch(r, l); m != nil {
				merged = append(merged, m)
			}
		}
	}
	return merged, len(merged) > 0
}

func mergeMatch(root, leaf *networkingapi.HTTPMatchRequest) *networkingapi.HTTPMatchRequest {
	m := proto.CloneOf(leaf)
	ok := narrows(root.GetUri(), &m.Uri) && narrows(root.GetScheme(), &m.Scheme) && narrows(root.GetMethod(), &m.Method) &&
		narrows(root.GetAuthority(), &m.Authority) && allNarrow(root.GetHeaders(), &m.Headers) &&
		allNarrow(root.GetWithoutHeaders(), &m.WithoutHeaders) && allNarrow(root.GetQueryParams(), &m.QueryParams) &&
		agree(root.GetPort(), &m.Port) && agree(root.GetSourceNamespace(), &m.SourceNamespace)
	if !ok || root.GetIgnoreUriCase() != leaf.GetIgnoreUriCase() && root.GetUri() != nil && leaf.GetUri() != nil {
		return nil
	}
	m.IgnoreUriCase = root.GetIgnoreUriCase() || leaf.GetIgnoreUriCase()
	if len(root.GetSourceLabels()) > 0 {
		labels := maps.Clone(root.GetSourceLabels())
		maps.Copy(labels, leaf.GetSourceLabels())
		m.SourceLabels = labels
	}
	if len(m.GetGateways()) == 0 {
		m.Gateways = root.GetGateways()
	}
	if m.GetStatPrefix() == "" {
		m.StatPrefix = root.GetStatPrefix()
	}
	return m
}

func agree[T comparable](root T, leaf *T) bool {
	var none T
	if *leaf == none {
		*leaf = root
	}
	return root == none || *leaf == root
}

func allNarrow(root map[string]*networkingapi.StringMatch, leaf *map[string]*networkingapi.StringMatch) bool {
	all := maps.Clone(*leaf)
	if all == nil && len(root) > 0 {
		all = map[string]*networkingapi.StringMatch{}
	}
	for name, r := range root {
		l := all[name]
		if !narrows(r, &l) {
			return false
		}
		all[name] = l
	}
	*leaf = all
	return true
}

// narrows fills in what the leaf leaves open, and reports whether all that it matches then the root matches too. Of a regular expression
// that cannot be said, so there it is no.
func narrows(root *networkingapi.StringMatch, leaf **networkingapi.StringMatch) bool {
	switch {
	case root == nil:
		return true
	case *leaf == nil:
		*leaf = root
		return true
	}
	exact, isExact := (*leaf).GetMatchType().(*networkingapi.StringMatch_Exact)
	prefix, isPrefix := (*leaf).GetMatchType().(*networkingapi.StringMatch_Prefix)
	switch r := root.GetMatchType().(type) {
	case *networkingapi.StringMatch_Exact:
		return isExact && exact.Exact == r.Exact
	case *networkingapi.StringMatch_Prefix:
		return isExact && strings.HasPrefix(exact.Exact, r.Prefix) || isPrefix && strings.HasPrefix(prefix.Prefix, r.Prefix)
	}
	return false
}
