package policy

import (
	"cmp"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// requirement is one of a label selector's, as a parameter has it.
type requirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

type selectorParameter struct {
	All []requirement `json:"all"`
}

// Chosen is what the meshed guard of a revision is given: the names by which its webhooks are called, as observed are the mutating
// webhook configurations of the cluster, and how its injector decides about pods that say nothing themselves.
func Chosen(rev string, observed []admissionv1.MutatingWebhookConfiguration, config *inject.Config) map[string]any {
	if rev == "" {
		rev = inject.DefaultRevision
	}
	enabled, never, always := config.Undecided()
	names, taken, every := []string{}, false, false
	for i := range observed {
		c := &observed[i]
		if _, injects := revision.OfMutating(c); !injects {
			continue
		}
		of := cmp.Or(c.Labels[label.IoIstioRev.Name], inject.DefaultRevision)
		name := cmp.Or(c.Labels[label.IoIstioTag.Name], of)
		switch {
		case of == rev:
			names = append(names, name)
			every = every || slices.ContainsFunc(c.Webhooks, func(w admissionv1.MutatingWebhook) bool { return w.Name == inject.AutoWebhook })
		case name == rev:
			taken = true // by a tag of another revision
		}
	}
	if !taken {
		names = append(names, rev) // when its configuration is gone, too: its pods have no sidecar then
	}
	slices.Sort(names)
	return map[string]any{
		"names": slices.Compact(names), "everyNamespace": every, "enabled": enabled,
		"never": selectors(never), "always": selectors(always),
	}
}

// selectors gives what a parameter holds of label selectors. One that selects nothing is left out.
func selectors(list []labels.Selector) []selectorParameter {
	out := []selectorParameter{}
	for _, s := range list {
		all, selectable := s.Requirements()
		if !selectable {
			continue
		}
		one := selectorParameter{All: []requirement{}}
		for _, r := range all {
			one.All = append(one.All, requirement{r.Key(), operator(r.Operator()), sorted(r.Values().UnsortedList())})
		}
		out = append(out, one)
	}
	return out
}

func operator(o selection.Operator) string {
	switch o {
	case selection.NotIn, selection.NotEquals:
		return "NotIn"
	case selection.Exists:
		return "Exists"
	case selection.DoesNotExist:
		return "DoesNotExist"
	default: // selectors of objects have In alone besides
		return "In"
	}
}

func sorted(values []string) []string {
	slices.Sort(values)
	return values
}

// user is one of a revision's names with those who use it.
type user struct {
	Name       string `json:"name"`
	Revision   string `json:"revision"`
	Namespaces int    `json:"namespaces"`
	Pods       int    `json:"pods"`
}

// Users is what the guards that all revisions share are given: the names that webhooks answer, and who uses them. Nil takes a field out:
// what could not be read is not known.
func Users(f *revision.Facts, complete bool) map[string]any {
	names, of := []string{}, map[string]string{}
	for _, w := range f.Webhooks {
		if w.Kind != revision.Mutating {
			continue
		}
		name := cmp.Or(w.Tag, w.Revision)
		names, of[name] = append(names, name), w.Revision
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if !complete {
		return map[string]any{"revisions": names, "users": nil}
	}
	byName := map[string]*user{}
	at := func(name, rev string) *user {
		if byName[name] == nil {
			byName[name] = &user{Name: name, Revision: rev}
		}
		return byName[name]
	}
	for _, ns := range f.Namespaces {
		if value := ns.Value(); of[value] != "" {
			at(value, of[value]).Namespaces++
		}
	}
	for _, p := range f.Pods {
		at(p.Revision, p.Revision).Pods++
	}
	users := []user{}
	for _, u := range byName {
		users = append(users, *u)
	}
	slices.SortFunc(users, func(a, b user) int { return strings.Compare(a.Name, b.Name) })
	return map[string]any{"revisions": names, "users": users[:min(len(users), maxItems)]}
}
