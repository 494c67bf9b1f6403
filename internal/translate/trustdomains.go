package translate

import (
	"slices"
	"strings"
)

// trustDomains are the mesh's own and its aliases, the mesh's own first.
type trustDomains []string

// localDomain stands for the mesh's own trust domain in policies, whatever that is. Source: istio.io "Trust Domain Migration".
const localDomain = "cluster.local"

// principals gives for each principal of the mesh's trust domains those of all of them. A principal is
// DOMAIN/ns/NAMESPACE/sa/ACCOUNT; others, and those of other domains, stay as they are.
func (d trustDomains) principals(values []string) (all []string) {
	for _, value := range values {
		domain, rest, _ := strings.Cut(value, "/")
		if strings.Count(value, "/") != 4 || domain == "*" || !d.has(domain) && domain != localDomain {
			all = append(all, value)
			continue
		}
		for _, own := range d {
			form := own + "/" + rest
			if suffix, wild := strings.CutPrefix(domain, "*"); wild && strings.HasSuffix(own, suffix) {
				form = value
			}
			if !slices.Contains(all, form) {
				all = append(all, form)
			}
		}
	}
	return all
}

// has reports whether one of the domains is meant by a pattern.
func (d trustDomains) has(pattern string) bool {
	return slices.ContainsFunc(d, func(own string) bool {
		if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
			return strings.HasSuffix(own, suffix)
		}
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(own, prefix)
		}
		return own == pattern
	})
}

// expand gives for each of the mesh's trust domains all of them.
func (d trustDomains) expand(values []string) (all []string) {
	for _, value := range values {
		forms := []string{value}
		if slices.Contains(d, value) {
			forms = d
		}
		for _, form := range forms {
			if !slices.Contains(all, form) {
				all = append(all, form)
			}
		}
	}
	return all
}
