// Package ref names the Kubernetes object that something came from. It is a leaf: everything else may import it, so a
// cluster, a route or a problem can always say which object made it.
package ref

import "strings"

// Ref is one object, at one generation. It is comparable and may be a map key. The zero Ref means "nothing a user wrote":
// a part that the mesh itself always makes.
type Ref struct {
	Group      string // API group, "" for core
	Kind       string // as in the manifest: "Service", "PeerAuthentication"
	Namespace  string // "" for cluster-scoped objects
	Name       string
	Generation int64 // metadata.generation; 0 where the kind has none
}

// String gives the form that people type and search for: Kind/NAMESPACE/NAME, or Kind/NAME for cluster-scoped objects.
func (r Ref) String() string {
	if r == (Ref{}) {
		return "built-in"
	}
	var b strings.Builder
	b.WriteString(r.Kind)
	b.WriteByte('/')
	if r.Namespace != "" {
		b.WriteString(r.Namespace)
		b.WriteByte('/')
	}
	b.WriteString(r.Name)
	return b.String()
}

// IsZero reports whether r names no object.
func (r Ref) IsZero() bool { return r == Ref{} }

// Object is r without its generation: the same object at any time.
func (r Ref) Object() Ref { r.Generation = 0; return r }

// Compare orders refs by namespace, kind, group and name, so that lists of them are the same on every run.
func Compare(a, b Ref) int {
	for _, pair := range [...][2]string{{a.Namespace, b.Namespace}, {a.Kind, b.Kind}, {a.Group, b.Group}, {a.Name, b.Name}} {
		if c := strings.Compare(pair[0], pair[1]); c != 0 {
			return c
		}
	}
	return int(a.Generation - b.Generation)
}
