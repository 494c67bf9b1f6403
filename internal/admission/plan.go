// Package admission decides what must change about the cluster's webhook configurations: their caBundle, the failurePolicy of
// validators, what to say about those that are gone or that somebody else writes too. It is pure: it takes what was observed and
// the time, and gives the least patches and problems; package reconcile does the reading and writing.
package admission

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"istio.io/api/label"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// Kind is the kind of a webhook configuration, as in its manifest.
type Kind string

// The two kinds.
const (
	Mutating   Kind = "MutatingWebhookConfiguration"
	Validating Kind = "ValidatingWebhookConfiguration"
)

// suffixes tell a mesh's entries from others that share a configuration. They are Istio's names.
var suffixes = map[Kind]string{
	Mutating:   "sidecar-injector.istio.io",
	Validating: "validation.istio.io",
}

// HoldAnnotation on a validating configuration, with the value Ignore, keeps its failurePolicy at Ignore whatever works.
const HoldAnnotation = "selvage/failure-policy"

// Key names one configuration.
type Key struct {
	Kind Kind
	Name string
}

// Configuration is one webhook configuration, as observed.
type Configuration struct {
	Key
	UID        string
	Generation int64
	Labels     map[string]string
	Hold       bool // HoldAnnotation says Ignore
	Entries    []Entry
	// Managed are the object's managedFields: who wrote what.
	Managed []metav1.ManagedFieldsEntry
}

// Entry is one webhook of a configuration.
type Entry struct {
	Name          string // unique in its configuration
	CABundle      []byte // PEM; empty when there is none
	FailurePolicy Policy
}

// Want is what the configurations of one revision are to be.
type Want struct {
	Revision   string
	Root       []byte // PEM; without one nothing is patched, so that a working bundle is never unset
	Validators Policy // failurePolicy of validating entries; "" leaves it as it is
	Expected   []Key  // configurations that the revision has when all is well
}

// Outcome is the plan for everything that was observed.
type Outcome struct {
	Patches []Patch
	Missing []Key // of the expected ones
}

// Patch sets the bundle, or the failure policy, of some entries of one configuration, and changes nothing else.
type Patch struct {
	Key
	UID        string // of the object that was observed: one of the same name that came later is not meant
	Generation int64
	Entries    []Drift
	CABundle   []byte
	Rival      Rival // who made it differ, as far as can be seen
}

// Drift is an entry that is not as it should be.
type Drift struct {
	Name   string
	Bundle Fault
	Policy Policy // what failurePolicy is to become; "" when it is right
}

// Fault is what is wrong with a bundle.
type Fault string

// The faults.
const (
	Right   Fault = ""
	Missing Fault = "empty" // as right after an installation
	Other   Fault = "another root"
)

// Plan gives the patches after which every entry of this revision has the root bundle and its failure policy, none for what is right
// already, in a fixed order, and which configurations are missing. A configuration is of the revision by its label istio.io/rev,
// which a tag's configuration has too; an entry is the mesh's by the end of its name.
func Plan(observed []Configuration, want Want) (out Outcome) {
	if want.Revision == "" {
		return out
	}
	there := map[Key]bool{}
	for _, c := range observed {
		if c.Labels[label.IoIstioRev.Name] != want.Revision {
			continue
		}
		there[c.Key] = true
		if len(want.Root) == 0 {
			continue
		}
		if drifts := drifted(c, want); len(drifts) > 0 {
			out.Patches = append(out.Patches, Patch{Key: c.Key, UID: c.UID, Generation: c.Generation, Entries: drifts, CABundle: want.Root,
				Rival: rivalOf(c.Managed, drifts)})
		}
	}
	for _, k := range want.Expected {
		if !there[k] {
			out.Missing = append(out.Missing, k)
		}
	}
	slices.SortFunc(out.Patches, func(a, b Patch) int { return a.compare(b.Key) })
	slices.SortFunc(out.Missing, Key.compare)
	return out
}

func (k Key) compare(other Key) int {
	return cmp.Or(cmp.Compare(k.Kind, other.Kind), cmp.Compare(k.Name, other.Name))
}

// Of gives the patch of one configuration.
func (o Outcome) Of(k Key) (p Patch, ok bool) {
	for _, p := range o.Patches {
		if p.Key == k {
			return p, true
		}
	}
	return Patch{}, false
}

// Keeps reports whether an entry of that name is the mesh's, whose bundle is kept right; others share the configuration.
func Keeps(kind Kind, entry string) bool {
	suffix, ok := suffixes[kind]
	return ok && (entry == suffix || strings.HasSuffix(entry, "."+suffix) || strings.HasSuffix(entry, "."+verdict.Suffix))
}

func drifted(c Configuration, want Want) (drifts []Drift) {
	policy := Policy("")
	if c.Kind == Validating {
		if policy = want.Validators; c.Hold {
			policy = Ignore
		}
	}
	for _, e := range c.Entries {
		if !Keeps(c.Kind, e.Name) {
			continue
		}
		d := Drift{Name: e.Name}
		switch {
		case len(e.CABundle) == 0:
			d.Bundle = Missing
		case !bytes.Equal(e.CABundle, want.Root):
			d.Bundle = Other
		}
		if policy != "" && e.FailurePolicy != policy && !strings.HasSuffix(e.Name, "."+verdict.Suffix) { // the probe fails closed for ever
			d.Policy = policy
		}
		if d.Bundle != Right || d.Policy != "" {
			drifts = append(drifts, d)
		}
	}
	return drifts
}

// Bundle reports whether a caBundle was wrong; else it is only a failure policy whose time has come.
func (p Patch) Bundle() bool {
	return slices.ContainsFunc(p.Entries, func(d Drift) bool { return d.Bundle != Right })
}

// Installing reports whether the patch only fills in what was empty in every entry, as after an installation.
func (p Patch) Installing() bool {
	return !slices.ContainsFunc(p.Entries, func(d Drift) bool { return d.Bundle == Other })
}
