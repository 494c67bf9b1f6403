package admission

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

const root = "the root"

func injector(name, revision string, bundles ...string) Configuration {
	c := Configuration{Key: Key{Mutating, name}, UID: "u-" + name, Generation: 3, Labels: map[string]string{"istio.io/rev": revision}}
	for i, prefix := range []string{"rev.namespace.", "rev.object.", "namespace.", "object."}[:len(bundles)] {
		c.Entries = append(c.Entries, Entry{Name: prefix + "sidecar-injector.istio.io", CABundle: []byte(bundles[i]), FailurePolicy: Fail})
	}
	return c
}

func validator(name, revision, bundle string) Configuration {
	return Configuration{Key: Key{Validating, name}, UID: "u-" + name, Labels: map[string]string{"istio.io/rev": revision},
		Entries: []Entry{{Name: "rev.validation.istio.io", CABundle: []byte(bundle), FailurePolicy: Ignore}}}
}

// with gives the configuration with another failure policy.
func with(c Configuration, p Policy) Configuration {
	for i := range c.Entries {
		c.Entries[i].FailurePolicy = p
	}
	return c
}

func patch(k Kind, name string, generation int64, drifts ...Drift) Patch {
	return Patch{Key: Key{k, name}, UID: "u-" + name, Generation: generation, Entries: drifts, CABundle: []byte(root)}
}

func TestPlan(t *testing.T) {
	held := with(validator("istio-validator", "default", root), Fail)
	held.Hold = true
	for name, c := range map[string]struct {
		observed []Configuration
		root     string
		policy   Policy
		want     []Patch
	}{
		"nothing is done when all is right": {
			observed: []Configuration{injector("istio-sidecar-injector", "default", root, root, root, root), validator("istio-validator", "default", root)},
			root:     root,
		},
		"only the entries that drifted are patched": {
			observed: []Configuration{injector("istio-sidecar-injector", "default", root, "other", "", root)},
			root:     root,
			want: []Patch{patch(Mutating, "istio-sidecar-injector", 3,
				Drift{Name: "rev.object.sidecar-injector.istio.io", Bundle: Other}, Drift{Name: "namespace.sidecar-injector.istio.io", Bundle: Missing})},
		},
		"a missing root never unsets a working bundle": {
			observed: []Configuration{injector("istio-sidecar-injector", "default", "other", "", "", ""), validator("istio-validator", "default", "other")},
			policy:   Fail,
		},
		"another revision's configuration is left alone": {
			observed: []Configuration{injector("istio-sidecar-injector-asm-1", "asm-1", "", ""), validator("istio-validator-asm-1", "asm-1", "")},
			root:     root, policy: Fail,
		},
		"a tag's configuration of this revision is ours": {
			observed: []Configuration{func() Configuration {
				c := injector("istio-revision-tag-prod", "default", "")
				c.Labels["istio.io/tag"] = "prod"
				return c
			}()},
			root: root,
			want: []Patch{patch(Mutating, "istio-revision-tag-prod", 3, Drift{Name: "rev.namespace.sidecar-injector.istio.io", Bundle: Missing})},
		},
		"entries of others in our configuration are left alone": {
			observed: []Configuration{{Key: Key{Mutating, "mixed"}, Labels: map[string]string{"istio.io/rev": "default"}, Entries: []Entry{
				{Name: "pods.example.org"}, {Name: "evilsidecar-injector.istio.io"}, {Name: "rev.validation.istio.io"},
			}}},
			root: root,
		},
		"a validator is matched by its own suffix": {
			observed: []Configuration{validator("istio-validator", "default", "x"), {Key: Key{Validating, "istiod-default-validator"}, UID: "u-istiod-default-validator",
				Labels: map[string]string{"istio.io/rev": "default"}, Entries: []Entry{{Name: "validation.istio.io"}}}},
			root: root,
			want: []Patch{
				patch(Validating, "istio-validator", 0, Drift{Name: "rev.validation.istio.io", Bundle: Other}),
				patch(Validating, "istiod-default-validator", 0, Drift{Name: "validation.istio.io", Bundle: Missing}),
			},
		},
		"validators become Fail when that is wanted, injectors are not asked": {
			observed: []Configuration{with(injector("istio-sidecar-injector", "default", root), Ignore), validator("istio-validator", "default", root)},
			root:     root, policy: Fail,
			want: []Patch{patch(Validating, "istio-validator", 0, Drift{Name: "rev.validation.istio.io", Policy: Fail})},
		},
		"validators go back to Ignore, with the bundle in the same patch": {
			observed: []Configuration{with(validator("istio-validator", "default", "x"), Fail)},
			root:     root, policy: Ignore,
			want: []Patch{patch(Validating, "istio-validator", 0, Drift{Name: "rev.validation.istio.io", Bundle: Other, Policy: Ignore})},
		},
		"what is not known about validation changes no policy": {
			observed: []Configuration{with(validator("istio-validator", "default", root), Fail)},
			root:     root,
		},
		"a validator that people hold at Ignore becomes Ignore although validation works": {
			observed: []Configuration{held},
			root:     root, policy: Fail,
			want: []Patch{patch(Validating, "istio-validator", 0, Drift{Name: "rev.validation.istio.io", Policy: Ignore})},
		},
		"a configuration without a label or a known kind is nobody's": {
			observed: []Configuration{{Key: Key{Mutating, "a"}, Entries: []Entry{{Name: "x.sidecar-injector.istio.io"}}},
				{Key: Key{"Service", ""}, Labels: map[string]string{"istio.io/rev": "default"}, Entries: []Entry{{Name: ""}}}},
			root: root,
		},
		"the order does not depend on the input's": {
			observed: []Configuration{validator("b", "default", ""), injector("b", "default", ""), injector("a", "default", "")},
			root:     root,
			want: []Patch{
				patch(Mutating, "a", 3, Drift{Name: "rev.namespace.sidecar-injector.istio.io", Bundle: Missing}),
				patch(Mutating, "b", 3, Drift{Name: "rev.namespace.sidecar-injector.istio.io", Bundle: Missing}),
				patch(Validating, "b", 0, Drift{Name: "rev.validation.istio.io", Bundle: Missing}),
			},
		},
	} {
		got := Plan(c.observed, Want{Revision: "default", Root: []byte(c.root), Validators: c.policy})
		if diff := cmp.Diff(c.want, got.Patches); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// After its own patches, Plan has nothing more to do.
func TestPlanIsDoneAfterItsPatches(t *testing.T) {
	all := []Configuration{injector("istio-sidecar-injector", "default", "", "other", root, "x"), validator("istio-validator", "default", "")}
	want := Want{Revision: "default", Root: []byte(root), Validators: Fail}
	for _, p := range Plan(all, want).Patches {
		for _, c := range all {
			for i := range c.Entries {
				for _, d := range p.Entries {
					if c.Key != p.Key || c.Entries[i].Name != d.Name {
						continue
					}
					if d.Bundle != Right {
						c.Entries[i].CABundle = p.CABundle
					}
					if d.Policy != "" {
						c.Entries[i].FailurePolicy = d.Policy
					}
				}
			}
		}
	}
	if again := Plan(all, want); again.Patches != nil {
		t.Errorf("%+v", again)
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	want := Want{Revision: "asm-1", Expected: []Key{{Validating, "v"}, {Mutating, "m"}, {Mutating, "there"}}}
	got := Plan([]Configuration{injector("there", "asm-1", ""), injector("m", "other", "")}, want)
	if diff := cmp.Diff([]Key{{Mutating, "m"}, {Validating, "v"}}, got.Missing); diff != "" {
		t.Error(diff)
	}
	p := MissingProblem(got.Missing[0], "asm-1")
	if p.Code != diag.WebhookDeleted || !strings.Contains(p.Detail, "no sidecar") || !strings.Contains(p.Hint, "selvage install --revision asm-1") {
		t.Error(p)
	}
}

// Who sets a label owns it; who removes one leaves no trace, so nobody is accused of it.
func TestWhoTookTheLabelIsToldAsFarAsItIsKnown(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	fields := func(manager, fields string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Operation: "Update", Time: &at, FieldsV1: metav1.NewFieldsV1(fields)}
	}
	ours := fields("selvage-install", `{"f:metadata":{"f:labels":{"f:app":{}}}}`)
	for name, c := range map[string]struct {
		labels  map[string]string
		managed []metav1.ManagedFieldsEntry
		says    []string
	}{
		"removed":                {nil, []metav1.ManagedFieldsEntry{ours}, []string{"lost its label istio.io/rev=asm-1 since 2026-01-02T03:04:05Z", "leaves no trace", "audit log"}},
		"removed, others wrote":  {nil, []metav1.ManagedFieldsEntry{fields("kubectl-patch", `{}`), ours}, []string{"name kubectl-patch at 2026-01-02T03:04:05Z as the last other writer"}},
		"set to another's value": {map[string]string{"istio.io/rev": "x"}, []metav1.ManagedFieldsEntry{fields("kubectl-label", `{"f:metadata":{"f:labels":{"f:istio.io/rev":{}}}}`), ours}, []string{"says x instead of asm-1", "set by field manager kubectl-label"}},
	} {
		object := &metav1.ObjectMeta{Name: "m", Labels: c.labels, ManagedFields: c.managed}
		p := UnlabelledProblem(Key{Mutating, "m"}, "asm-1", object, at.Time)
		for _, want := range append(c.says, "kubectl label mutatingwebhookconfiguration m istio.io/rev=asm-1 --overwrite") {
			if !strings.Contains(p.String(), want) {
				t.Errorf("%s: %s\ndoes not say %q", name, p, want)
			}
		}
		if strings.Contains(p.String(), "selvage-install") {
			t.Errorf("%s: it accuses the installation: %s", name, p)
		}
	}
}

func TestProblemNamesTheObjectAndTheEntries(t *testing.T) {
	p := Plan([]Configuration{injector("istio-sidecar-injector", "default", "other", "")}, Want{Revision: "default", Root: []byte(root)}).Patches[0]
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

// managed is one entry of managedFields, which owns the caBundle of the named webhooks.
func managed(manager, operation, at string, webhooks ...string) metav1.ManagedFieldsEntry {
	fields := `{"f:metadata":{"f:labels":{}}}`
	if len(webhooks) > 0 {
		var parts []string
		for _, w := range webhooks {
			parts = append(parts, `"k:{\"name\":\"`+w+`\"}":{"f:clientConfig":{"f:caBundle":{}}}`)
		}
		fields = `{"f:webhooks":{` + strings.Join(parts, ",") + `}}`
	}
	e := metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationType(operation), FieldsV1: metav1.NewFieldsV1(fields)}
	if at != "" {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			panic(err)
		}
		e.Time = &metav1.Time{Time: when}
	}
	return e
}

func TestRivalIsReadFromManagedFields(t *testing.T) {
	drifts := []Drift{{Name: "a.sidecar-injector.istio.io", Bundle: Other}}
	for name, c := range map[string]struct {
		managed []metav1.ManagedFieldsEntry
		want    Rival
		says    string
	}{
		"the owner of the field": {
			[]metav1.ManagedFieldsEntry{managed("helm", "Apply", "2026-01-01T00:00:09Z"), managed("pilot-discovery", "Update", "2026-01-01T00:00:01Z", "a.sidecar-injector.istio.io")},
			Rival{"pilot-discovery", "Update", true}, "field manager pilot-discovery (Update)",
		},
		"the owner of another entry is not it": {
			[]metav1.ManagedFieldsEntry{managed("pilot-discovery", "Update", "2026-01-01T00:00:01Z", "b.sidecar-injector.istio.io"), managed("kubectl-client-side-apply", "Update", "2026-01-01T00:00:05Z")},
			Rival{"kubectl-client-side-apply", "Update", false}, "probably field manager kubectl-client-side-apply",
		},
		"a field that was taken away is nobody's: the last other writer": {
			[]metav1.ManagedFieldsEntry{managed("helm", "Update", "2026-01-01T00:00:05Z"), managed("argocd-controller", "Apply", "2026-01-01T00:00:07Z"), managed(FieldManager, "Update", "2026-01-01T00:00:08Z", "b.x")},
			Rival{"argocd-controller", "Apply", false}, "wrote to it last",
		},
		"a control plane of the same name": {
			[]metav1.ManagedFieldsEntry{managed("helm", "Update", ""), managed(FieldManager, "Update", "", "a.sidecar-injector.istio.io")},
			Rival{FieldManager, "Update", true}, "another control plane of this revision",
		},
		"a co-owner is named before ourselves": {
			[]metav1.ManagedFieldsEntry{managed(FieldManager, "Update", "", "a.sidecar-injector.istio.io"), managed("flux", "Apply", "", "a.sidecar-injector.istio.io")},
			Rival{"flux", "Apply", true}, "field manager flux (Apply)",
		},
		"nobody": {nil, Rival{}, "managedFields do not name"},
	} {
		got := rivalOf(c.managed, drifts)
		if got != c.want || !strings.Contains(got.String(), c.says) {
			t.Errorf("%s: %+v, says %q", name, got, got)
		}
	}
}
