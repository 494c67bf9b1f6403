// Package admission decides what must change about the cluster's webhook configurations. It is pure: it takes what was observed
// and gives the least patches; package reconcile does the reading and writing.
package admission

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
	"github.com/selvage-mesh/selvage/internal/ref"
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

// Configuration is one webhook configuration, as observed.
type Configuration struct {
	Kind       Kind
	Name       string
	UID        string
	Generation int64
	Labels     map[string]string
	Entries    []Entry
}

// Entry is one webhook of a configuration.
type Entry struct {
	Name     string // unique in its configuration
	CABundle []byte // PEM; empty when there is none
}

// Patch sets the bundle of some entries of one configuration, and changes nothing else.
type Patch struct {
	Kind       Kind
	Name       string
	UID        string // of the object that was observed: one of the same name that came later is not meant
	Generation int64
	Entries    []Drift
	CABundle   []byte
}

// Drift is an entry whose bundle is not what it should be.
type Drift struct {
	Name    string
	Missing bool // there is none, as right after an installation; else there is another
}

// Plan gives the patches after which every entry of this revision has the root bundle, none for what is right already, in a fixed
// order. A configuration is of the revision by its label istio.io/rev, which a tag's configuration has too; an entry is the mesh's by
// the end of its name. Without a root nothing is planned, so that a working bundle is never unset.
func Plan(observed []Configuration, revision string, root []byte) []Patch {
	if len(root) == 0 || revision == "" {
		return nil
	}
	var patches []Patch
	for _, c := range observed {
		if c.Labels[label.IoIstioRev.Name] != revision {
			continue
		}
		if drifts := drifted(c, root); len(drifts) > 0 {
			patches = append(patches, Patch{Kind: c.Kind, Name: c.Name, UID: c.UID, Generation: c.Generation, Entries: drifts, CABundle: root})
		}
	}
	slices.SortFunc(patches, func(a, b Patch) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	return patches
}

func drifted(c Configuration, root []byte) (drifts []Drift) {
	suffix, ok := suffixes[c.Kind]
	if !ok {
		return nil
	}
	for _, e := range c.Entries {
		if e.Name != suffix && !strings.HasSuffix(e.Name, "."+suffix) && !strings.HasSuffix(e.Name, "."+verdict.Suffix) {
			continue
		}
		if !bytes.Equal(e.CABundle, root) {
			drifts = append(drifts, Drift{Name: e.Name, Missing: len(e.CABundle) == 0})
		}
	}
	return drifts
}

// Installing reports whether the patch only fills in what was empty: nobody overwrote anything.
func (p Patch) Installing() bool {
	return !slices.ContainsFunc(p.Entries, func(d Drift) bool { return !d.Missing })
}

// Problem is what is wrong until the patch is applied.
func (p Patch) Problem() diag.Problem {
	names := make([]string, len(p.Entries))
	for i, d := range p.Entries {
		names[i] = d.Name + " (another root)"
		if d.Missing {
			names[i] = d.Name + " (empty)"
		}
	}
	return diag.Problem{
		Code: diag.WebhookDrift, Severity: diag.Error,
		Object: ref.Ref{Group: "admissionregistration.k8s.io", Kind: string(p.Kind), Name: p.Name, Generation: p.Generation},
		Field:  "webhooks[].clientConfig.caBundle",
		Detail: fmt.Sprintf("the API server cannot trust the control plane: the bundle of %s is not this mesh's root", strings.Join(names, ", ")),
		Hint:   "the control plane puts it back by itself; keep other tools from writing caBundle (GitOps: ignore differences of this field)",
	}
}
