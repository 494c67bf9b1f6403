package cli_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// conditionOf is what a control plane writes into its status.
func conditionOf(status, reason, message string) string {
	return fmt.Sprintf("- type: InjectionWorks\n  status: %q\n  reason: %s\n  message: '%s'\n  lastTransitionTime: %q\n", status, reason, message,
		time.Now().Add(-90*time.Second).UTC().Format(time.RFC3339))
}

// TestStatusTellsWhatTheControlPlaneFoundOut: that injection does not work, and why, and who has missed it; and nothing when all is well.
func TestStatusTellsWhatTheControlPlaneFoundOut(t *testing.T) {
	const cause = `pods get no sidecar: no replica of the control plane is ready: no endpoints available for service "istiod" [SEL0062]. Next: look why`
	for name, c := range map[string]struct {
		status map[string]string
		args   []string
		code   int
		want   []string // nothing but the summary when empty
	}{
		"all is well": {status: map[string]string{"conditions": conditionOf("True", "Works", "a pod got one")}},
		"injection does not work": {status: map[string]string{"conditions": conditionOf("False", "NoEndpoints", cause)}, code: 1,
			want: []string{"Injection of revision default does not work, for 1m", "no endpoints available", "[SEL0062]", "2 proxies: all synced."}},
		"not known":           {status: map[string]string{"conditions": conditionOf("Unknown", "Forbidden", "the control plane may not probe")}, want: []string{"is not proven to work"}},
		"pods without":        {status: map[string]string{"podsWithoutSidecar": "pods: 12\nworkloads: []\n"}, code: 1, want: []string{"12 pods have no sidecar and should have: `selvage inject --check` lists them."}},
		"about one namespace": {status: map[string]string{"podsWithoutSidecar": "pods: 12\n"}, args: []string{"-n", "shop"}},
		"edited by somebody":  {status: map[string]string{"conditions": "\x00{", "podsWithoutSidecar": "many"}},
		"hostile": {status: map[string]string{"conditions": conditionOf("False", "X", "broken") + "- {type: \"\\e[31m\", status: \"False\", message: \"\\e[2Jgone\"}\n"}, code: 1,
			want: []string{"Injection of revision default does not work"}},
	} {
		home, kubeconfig := (&cluster{syncz: raw(shop), status: c.status}).start(t)
		got := run(t, home, "", append([]string{"status", "--kubeconfig", kubeconfig}, c.args...)...)
		if got.code != c.code || strings.Contains(got.stdout, "\x1b") {
			t.Errorf("%s: exit code %d, want %d; stderr %q:\n%q", name, got.code, c.code, got.stderr, got.stdout)
		}
		for _, want := range c.want {
			if !strings.Contains(strings.Join(strings.Fields(got.stdout), " "), want) {
				t.Errorf("%s: it says\n%s\nwithout %q", name, got.stdout, want)
			}
		}
		if said := regexp.MustCompile(`(?m)^(Injection|Validation|\d+ pods? ha)`).MatchString(got.stdout); len(c.want) == 0 && said {
			t.Errorf("%s: it says\n%s", name, got.stdout)
		}
	}
	// Who may not read the status sees the proxies all the same.
	home, kubeconfig := (&cluster{syncz: raw(shop), forbid: "/api/v1/namespaces/istio-system/configmaps"}).start(t)
	if got := run(t, home, "", "status", "--kubeconfig", kubeconfig); got.code != 0 || !strings.Contains(got.stdout, "all synced") {
		t.Errorf("without the right: exit code %d, %s\n%s", got.code, got.stderr, got.stdout)
	}
}
