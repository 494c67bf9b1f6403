package translate

import (
	"slices"
	"strings"

	"github.com/selvage-mesh/selvage/internal/index"
)

// audience is the namespaces that may see an object (exportTo). The zero value is everybody.
type audience struct {
	limited bool
	only    []string // sorted; empty for nobody
}

// readAudience reads exportTo of an object in a namespace: "*" is everybody, "." the namespace itself, "~" nobody; nothing at all is
// the mesh's default.
func readAudience(exportTo, otherwise []string, namespace string) (a audience) {
	if len(exportTo) == 0 {
		exportTo = otherwise
	}
	if len(exportTo) == 0 || slices.Contains(exportTo, "*") {
		return audience{}
	}
	a.limited = true
	for _, to := range exportTo {
		switch to {
		case "~":
		case ".":
			a.only = append(a.only, namespace)
		default:
			a.only = append(a.only, to)
		}
	}
	slices.Sort(a.only)
	a.only = slices.Compact(a.only)
	return a
}

// includes reports whether a namespace is in the audience; "" stands for one that nothing names.
func (a audience) includes(namespace string) bool {
	return !a.limited || slices.Contains(a.only, namespace)
}

// serviceAudience reads the annotation networking.istio.io/exportTo, a list with commas.
func serviceAudience(svc *index.Service, otherwise []string) audience {
	var to []string
	for _, word := range strings.Split(svc.ExportTo, ",") {
		if word = strings.TrimSpace(word); word != "" {
			to = append(to, word)
		}
	}
	return readAudience(to, otherwise, svc.Namespace)
}

// fullName completes a host as Istio does: one without a dot is a service of the object's namespace.
func fullName(host, namespace, domain string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "*" || strings.Contains(host, ".") || strings.Contains(host, ":") {
		return host
	}
	return host + "." + namespace + ".svc." + domain
}

// covers reports whether a host, which may begin with "*.", stands for another.
func covers(pattern, host string) bool {
	if pattern == host || pattern == "*" {
		return true
	}
	suffix, ok := strings.CutPrefix(pattern, "*")
	return ok && strings.HasSuffix(host, suffix) && len(host) > len(suffix)
}
