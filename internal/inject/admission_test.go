package inject_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

func namespaceOf(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func admissionOf(t *testing.T, registrations ...inject.Registration) *inject.Admission {
	t.Helper()
	var webhooks []admissionv1.MutatingWebhookConfiguration
	configs := map[string]*inject.Config{}
	for _, r := range registrations {
		webhooks = append(webhooks, *r.Configuration())
		c, problems := inject.Default(r.Revision).Compile()
		if c == nil {
			t.Fatal(problems)
		}
		configs[c.Revision()] = c
	}
	return inject.NewAdmission(webhooks, configs)
}

// TestOneWebhookAtMost asks, for every combination of labels, which webhooks the API server would call when the default
// revision, another one, a tag of each and enableNamespacesByDefault are there. Two calls would be two sidecars from two
// control planes.
func TestOneWebhookAtMost(t *testing.T) {
	every := registration("", "")
	every.EnableNamespacesByDefault = true
	for name, def := range map[string]inject.Registration{"": registration("", ""), "namespaces by default": every, "the default is a tag": registration("canary", "default")} {
		a := admissionOf(t, def, registration("canary", ""), registration("canary", "stable"), registration("canary", "prod"))
		combinations := 0
		for _, namespace := range combine([][]string{{"istio-injection", "", "enabled", "disabled", "yes"}, {"istio.io/rev", "", "default", "canary", "stable", "gone"}}) {
			for _, podLabels := range combine([][]string{{"sidecar.istio.io/inject", "", "true", "false", "maybe"}, {"istio.io/rev", "", "default", "canary", "stable", "gone"}}) {
				combinations++
				for _, where := range append([]string{"shop", "istio-system"}, inject.SystemNamespaces...) {
					pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: podLabels}}
					e := a.Expect(namespaceOf(where, namespace), pod)
					want := wantWebhook(where, namespace, podLabels, def.EnableNamespacesByDefault)
					if e.Webhook.Entry != want || slices.ContainsFunc(e.Warnings, func(p diag.Problem) bool { return p.Code == diag.RivalWebhooks }) {
						t.Errorf("%s: namespace %s %v, pod %v: calls %v, want %q; %v", name, where, namespace, podLabels, e.Webhook, want, e.Warnings)
					}
					if e.Inject != (want != "") || e.Reason == "" || e.Detail == "" || !slices.Contains(inject.Reasons, e.Reason) {
						t.Errorf("%s: namespace %s %v, pod %v: %+v", name, where, namespace, podLabels, e.Verdict)
					}
				}
			}
		}
		if combinations != 4*5*4*5 {
			t.Errorf("%d combinations", combinations)
		}
	}
}

// wantWebhook says in a few sentences what the selectors say: istio-injection decides before istio.io/rev, the namespace before
// the pod, and "false" on the pod before all. In the mesh's own namespace only a pod's own wish counts.
func wantWebhook(where string, namespace, pod map[string]string, everyNamespace bool) string {
	answered := []string{"default", "canary", "stable"}
	own := where == "istio-system"
	word := pod["sidecar.istio.io/inject"]
	if word == "false" || slices.Contains(inject.SystemNamespaces, where) {
		return ""
	}
	if injection, has := namespace["istio-injection"]; has {
		if injection == "enabled" && !own {
			return inject.NamespaceWebhook
		}
		return ""
	}
	if rev, has := namespace["istio.io/rev"]; has {
		if slices.Contains(answered, rev) && !own {
			return inject.RevisionNamespaceWebhook
		}
		return ""
	}
	if rev, has := pod["istio.io/rev"]; has {
		if slices.Contains(answered, rev) && (!own || word == "true") {
			return inject.RevisionObjectWebhook
		}
		return ""
	}
	switch {
	case word == "true":
		return inject.ObjectWebhook
	case word == "" && everyNamespace && !own:
		return inject.AutoWebhook
	}
	return ""
}

// combine gives every choice of values; "" leaves the label out.
func combine(choices [][]string) []map[string]string {
	out := []map[string]string{{}}
	for _, choice := range choices {
		var next []map[string]string
		for _, m := range out {
			for _, value := range choice[1:] {
				more := maps.Clone(m)
				if value != "" {
					more[choice[0]] = value
				}
				next = append(next, more)
			}
		}
		out = next
	}
	return out
}

// TestExpect: the reason, the label that it names, who decides, and what is wrong with the labels.
func TestExpect(t *testing.T) {
	installed := []inject.Registration{registration("", ""), registration("canary", ""), registration("canary", "prod")}
	const asks = `metadata: {labels: {sidecar.istio.io/inject: "true"}}`
	for _, c := range []struct {
		name          string
		registrations []inject.Registration
		namespace     map[string]string
		pod           string
		want          string // verdict: REASON [by REVISION[/TAG]] [surprising]
		detail        string
		warnings      []string
	}{
		{"the namespace asks", installed, map[string]string{"istio-injection": "enabled"}, `{}`, "policy_enabled by default", "policy is enabled", nil},
		{"a tag answers for its revision", installed, map[string]string{"istio.io/rev": "prod"}, `{}`, "policy_enabled by canary/prod", "policy is enabled", nil},
		{"the pod names a revision", installed, nil, `metadata: {labels: {istio.io/rev: canary}}`, "policy_enabled by canary", "policy is enabled", nil},
		{"nobody asks", installed, nil, `{}`, "not_selected", "neither the pod nor namespace shop", nil},
		{"the pod says no", installed, map[string]string{"istio-injection": "enabled"}, `metadata: {labels: {sidecar.istio.io/inject: "false"}}`,
			"opted_out", `label sidecar.istio.io/inject is "false"`, nil},
		{"an annotation says no before any call", installed, map[string]string{"istio-injection": "enabled"}, `metadata: {annotations: {sidecar.istio.io/inject: "false"}}`,
			"opted_out by default", `annotation sidecar.istio.io/inject is "false"`, nil},
		{"the namespace says no, the pod yes", installed, map[string]string{"istio-injection": "disabled"}, asks,
			"namespace_disabled surprising", `label istio-injection of namespace shop is "disabled"`, nil},
		{"the namespace says something", installed, map[string]string{"istio-injection": "true"}, `{}`,
			"namespace_disabled", `which is not "enabled"`, []string{"SEL0022 Namespace/shop metadata.labels[istio-injection]"}},
		{"a revision that is not installed", installed, map[string]string{"istio.io/rev": "v9"}, `{}`,
			"unknown_revision surprising", `label istio.io/rev of namespace shop is "v9", and no revision or tag of that name is installed (there is canary, default, prod)`,
			[]string{"SEL0022 Namespace/shop metadata.labels[istio.io/rev]"}},
		{"the pod names one that is not installed", installed, nil, `metadata: {labels: {istio.io/rev: v9}}`,
			"unknown_revision surprising", `label istio.io/rev of the pod is "v9"`, nil},
		{"both kinds of label: the first decides", installed, map[string]string{"istio-injection": "enabled", "istio.io/rev": "canary"}, `{}`,
			"policy_enabled by default", "", []string{"IST0123 Namespace/shop metadata.labels"}},
		{"both kinds of label: also against injection", installed, map[string]string{"istio-injection": "disabled", "istio.io/rev": "canary"}, `{}`,
			"namespace_disabled", "", []string{"IST0123 Namespace/shop metadata.labels"}},
		{"the namespace's label decides before the pod's", installed, map[string]string{"istio-injection": "enabled"}, `metadata: {labels: {istio.io/rev: canary}}`,
			"policy_enabled by default", "", []string{"SEL0022 Pod/shop/web metadata.labels[istio.io/rev]"}},
		{"there is no default revision", installed[1:], map[string]string{"istio-injection": "enabled"}, `{}`,
			"no_default surprising", `neither a revision "default" nor a tag`, []string{"SEL0022 Namespace/shop metadata.labels[istio-injection]"}},
		{"nor one for a pod that asks", installed[1:], nil, asks, "no_default surprising", "add the label istio.io/rev", nil},
		{"the default is a tag", []inject.Registration{installed[1], registration("canary", "default")}, map[string]string{"istio-injection": "enabled"}, `{}`,
			"policy_enabled by canary/default", "", nil},
		{"no injector at all", nil, nil, asks, "no_injector surprising", "no webhook that injects sidecars", nil},
		{"no injector, and nobody asks", nil, nil, `{}`, "not_selected", "", nil},
		{"an unknown word asks nobody", installed, nil, `metadata: {labels: {sidecar.istio.io/inject: "yes"}}`,
			"unknown_opt_value surprising", `"yes", which is neither`, []string{"SEL0022 Pod/shop/web metadata.labels[sidecar.istio.io/inject]"}},
		{"an unknown word does not forbid", installed, map[string]string{"istio-injection": "enabled"}, `metadata: {labels: {sidecar.istio.io/inject: "no"}}`,
			"policy_enabled by default", "", []string{"SEL0022 Pod/shop/web metadata.labels[sidecar.istio.io/inject]"}},
		{"an annotation alone selects nothing", installed, nil, `metadata: {annotations: {sidecar.istio.io/inject: "true"}}`,
			"annotation_only surprising", "make it a label", nil},
		{"the node's network, though the namespace asks", installed, map[string]string{"istio-injection": "enabled"}, `spec: {hostNetwork: true}`,
			"host_network by default surprising", "spec.hostNetwork is true", nil},
		{"a misspelt label on the namespace", installed, map[string]string{"istio-inject": "enabled"}, `{}`,
			"not_selected", "", []string{"SEL0022 Namespace/shop metadata.labels[istio-inject]"}},
		{"a misspelt label on the pod", installed, nil, `metadata: {labels: {istio-inject: "true"}}`,
			"not_selected", "", []string{"SEL0022 Pod/shop/web metadata.labels[istio-inject]"}},
		{"the namespace's label on the pod", installed, nil, `metadata: {labels: {istio-injection: enabled}}`,
			"not_selected", "", []string{"SEL0022 Pod/shop/web metadata.labels[istio-injection]"}},
		{"the pod's label on the namespace", installed, map[string]string{"sidecar.istio.io/inject": "true"}, `{}`,
			"not_selected", "", []string{"SEL0022 Namespace/shop metadata.labels[sidecar.istio.io/inject]"}},
		{"it has its sidecar", installed, map[string]string{"istio.io/rev": "gone"}, "metadata: {annotations: {sidecar.istio.io/status: '{}'}}\nspec: {containers: [{name: istio-proxy}]}",
			"already_injected", "", []string{"SEL0022 Namespace/shop metadata.labels[istio.io/rev]"}},
		{"two meshes answer", []inject.Registration{registration("", ""), registration("canary", "default")}, map[string]string{"istio-injection": "enabled"}, `{}`,
			"policy_enabled by canary/default", "", []string{"SEL0023 Pod/shop/web"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := podFrom(t, c.pod)
			pod.Name = "web"
			e := admissionOf(t, c.registrations...).Expect(namespaceOf("shop", c.namespace), pod)
			got := string(e.Reason)
			if e.Revision != "" {
				got += " by " + e.Revision
			}
			if e.Tag != "" {
				got += "/" + e.Tag
			}
			if e.Surprising {
				got += " surprising"
			}
			if got != c.want || !strings.Contains(e.Detail, c.detail) {
				t.Errorf("got %s (%s)\nwant %s (%s)", got, e.Detail, c.want, c.detail)
			}
			var warnings []string
			for _, p := range e.Warnings {
				warnings = append(warnings, strings.TrimSpace(fmt.Sprintf("%s %s %s", p.Code, p.Object, p.Field)))
			}
			if !slices.Equal(warnings, c.warnings) {
				t.Errorf("warnings %q, want %q", warnings, c.warnings)
			}
		})
	}
}

// TestForeignConditions: a condition that this package does not know is taken to hold, and said.
func TestForeignConditions(t *testing.T) {
	c := registration("", "").Configuration()
	for i := range c.Webhooks {
		c.Webhooks[i].MatchConditions = append(c.Webhooks[i].MatchConditions, admissionv1.MatchCondition{Name: "not-on-mondays", Expression: "true"})
	}
	a := inject.NewAdmission([]admissionv1.MutatingWebhookConfiguration{*c}, nil)
	e := a.Expect(namespaceOf("shop", map[string]string{"istio-injection": "enabled"}), &corev1.Pod{})
	if !e.Inject || len(e.Warnings) != 2 || !strings.Contains(e.Warnings[0].Detail, "is not known here") || !strings.Contains(e.Warnings[1].Detail, "not-on-mondays") {
		t.Errorf("%+v", e)
	}
}

// TestDeactivatedDefault: istioctl puts the default revision's webhooks out of use by selectors that match nothing.
func TestDeactivatedDefault(t *testing.T) {
	c := registration("", "").Configuration()
	never := &metav1.LabelSelector{MatchLabels: map[string]string{"istio.io/deactivated": "never-match"}}
	for i := range c.Webhooks {
		c.Webhooks[i].NamespaceSelector, c.Webhooks[i].ObjectSelector = never, never
	}
	a := inject.NewAdmission([]admissionv1.MutatingWebhookConfiguration{*c}, nil)
	if e := a.Expect(namespaceOf("shop", map[string]string{"istio-injection": "enabled"}), &corev1.Pod{}); e.Reason != inject.NoDefaultRevision {
		t.Errorf("%+v", e.Verdict)
	}
}

// TestReasonsAreDocumented: docs/injection.md explains each reason in its table.
func TestReasonsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/injection.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range inject.Reasons {
		if !strings.Contains(string(page), "| `"+string(r)+"` |") {
			t.Errorf("docs/injection.md has no row for the reason %s", r)
		}
	}
	_, table, _ := strings.Cut(string(page), "## Reasons")
	for line := range strings.SplitSeq(table, "\n") {
		if name, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ = strings.Cut(name, "`")
			if !slices.Contains(inject.Reasons, inject.Reason(name)) {
				t.Errorf("docs/injection.md explains a reason %q that there is not", name)
			}
		}
	}
}

func BenchmarkExpect(b *testing.B) {
	r := registration("", "")
	c, _ := inject.Default("").Compile()
	a := inject.NewAdmission([]admissionv1.MutatingWebhookConfiguration{*r.Configuration(), *registration("canary", "").Configuration()}, map[string]*inject.Config{"default": c})
	ns, pod := namespaceOf("shop", map[string]string{"istio-injection": "enabled"}), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", Labels: map[string]string{label.ServiceCanonicalName.Name: "web"}}}
	b.ReportAllocs()
	for b.Loop() {
		a.Expect(ns, pod)
	}
}
