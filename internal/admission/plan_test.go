package admission

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/selvage-mesh/selvage/internal/diag"
)

const root = "the root"

func injector(name, revision string, bundles ...string) Configuration {
	c := Configuration{Kind: Mutating, Name: name, UID: "u-" + name, Generation: 3, Labels: map[string]string{"istio.io/rev": revision}}
	for i, prefix := range []string{"rev.namespace.", "rev.object.", "namespace.", "object."}[:len(bundles)] {
		c.Entries = append(c.Entries, Entry{Name: prefix + "sidecar-injector.istio.io", CABundle: []byte(bundles[i])})
	}
	return c
}

func validator(name, revision, bundle string) Configuration {
	return Configuration{Kind: Validating, Name: name, UID: "u-" + name, Labels: map[string]string{"istio.io/rev": revision},
		Entries: []Entry{{Name: "rev.validation.istio.io", CABundle: []byte(bundle)}}}
}

func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		observed []Configuration
		root     string
		want     []Patch
	}{
		"nothing is done when all is right": {
			observed: []Configuration{injector("istio-sidecar-injector", "default", root, root, root, root), validator("istio-validator", "default", root)},
			root:     root,
		},
		"only the entries that drifted are patched": {
			observed: []Configuration{injector("istio-sidecar-injector", "default", root, "other", "", root)},
			root:     root,
			want: []Patch{{Mutating, "istio-sidecar-injector", "u-istio-sidecar-injector", 3, []Drift{
				{"rev.object.sidecar-injector.istio.io", false}, {"namespace.sidecar-injector.istio.io", true},
			}, []byte(root)}},
		},
		"a missing root never unsets a working bundle": {
			observed: []Configuration{injector("istio-sidecar-injector", "default", "other", "", "", "")},
		},
		"another revision's configuration is left alone": {
			observed: []Configuration{injector("istio-sidecar-injector-asm-1", "asm-1", "", ""), validator("istio-validator-asm-1", "asm-1", "")},
			root:     root,
		},
		"a tag's configuration of this revision is ours": {
			observed: []Configuration{func() Configuration {
				c := injector("istio-revision-tag-prod", "default", "")
				c.Labels["istio.io/tag"] = "prod"
				return c
			}()},
			root: root,
			want: []Patch{{Mutating, "istio-revision-tag-prod", "u-istio-revision-tag-prod", 3,
				[]Drift{{"rev.namespace.sidecar-injector.istio.io", true}}, []byte(root)}},
		},
		"entries of others in our configuration are left alone": {
			observed: []Configuration{{Kind: Mutating, Name: "mixed", Labels: map[string]string{"istio.io/rev": "default"}, Entries: []Entry{
				{Name: "pods.example.org"}, {Name: "evilsidecar-injector.istio.io"}, {Name: "rev.validation.istio.io"},
			}}},
			root: root,
		},
		"a validator is matched by its own suffix": {
			observed: []Configuration{validator("istio-validator", "default", "x"), {Kind: Validating, Name: "istiod-default-validator",
				Labels: map[string]string{"istio.io/rev": "default"}, Entries: []Entry{{Name: "validation.istio.io"}}}},
			root: root,
			want: []Patch{
				{Validating, "istio-validator", "u-istio-validator", 0, []Drift{{"rev.validation.istio.io", false}}, []byte(root)},
				{Validating, "istiod-default-validator", "", 0, []Drift{{"validation.istio.io", true}}, []byte(root)},
			},
		},
		"a configuration without a label or a known kind is nobody's": {
			observed: []Configuration{{Kind: Mutating, Name: "a", Entries: []Entry{{Name: "x.sidecar-injector.istio.io"}}},
				{Kind: "Service", Labels: map[string]string{"istio.io/rev": "default"}, Entries: []Entry{{Name: ""}}}},
			root: root,
		},
		"the order does not depend on the input's": {
			observed: []Configuration{validator("b", "default", ""), injector("b", "default", ""), injector("a", "default", "")},
			root:     root,
			want: []Patch{
				{Mutating, "a", "u-a", 3, []Drift{{"rev.namespace.sidecar-injector.istio.io", true}}, []byte(root)},
				{Mutating, "b", "u-b", 3, []Drift{{"rev.namespace.sidecar-injector.istio.io", true}}, []byte(root)},
				{Validating, "b", "u-b", 0, []Drift{{"rev.validation.istio.io", true}}, []byte(root)},
			},
		},
	} {
		if diff := cmp.Diff(c.want, Plan(c.observed, "default", []byte(c.root))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// After its own patches, Plan has nothing more to do.
func TestPlanIsDoneAfterItsPatches(t *testing.T) {
	c := injector("istio-sidecar-injector", "default", "", "other", root, "x")
	for _, p := range Plan([]Configuration{c}, "default", []byte(root)) {
		for _, d := range p.Entries {
			for i := range c.Entries {
				if c.Entries[i].Name == d.Name {
					c.Entries[i].CABundle = p.CABundle
				}
			}
		}
	}
	if again := Plan([]Configuration{c}, "default", []byte(root)); again != nil {
		t.Errorf("%+v", again)
	}
}

func TestProblemNamesTheObjectAndTheEntries(t *testing.T) {
	p := Plan([]Configuration{injector("istio-sidecar-injector", "default", "other", "")}, "default", []byte(root))[0]
	got := p.Problem()
	if got.Code != diag.WebhookDrift || got.Object.String() != "MutatingWebhookConfiguration/istio-sidecar-injector" {
		t.Errorf("%s", got)
	}
	for _, says := range []string{"rev.namespace.sidecar-injector.istio.io (another root)", "rev.object.sidecar-injector.istio.io (empty)"} {
		if !strings.Contains(got.Detail, says) {
			t.Errorf("%q does not say %q", got.Detail, says)
		}
	}
	if p.Installing() {
		t.Error("an overwritten bundle passes for an installation")
	}
}
