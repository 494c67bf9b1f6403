package inject_test

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// rename gives the entries of one revision with the revision before their names, to tell configurations apart.
func rename(t *testing.T, prefix, revision string) []admissionv1.MutatingWebhook {
	t.Helper()
	entries := inject.Webhooks(revision, inject.Endpoint{Namespace: "istio-system", Service: inject.ObjectName("istiod", revision)})
	want := 2
	if revision == inject.DefaultRevision {
		want = 4
	}
	if len(entries) != want {
		t.Fatalf("revision %s has %d entries, want %d", revision, len(entries), want)
	}
	for i := range entries {
		entries[i].Name = prefix + "/" + entries[i].Name
	}
	return entries
}

// TestWebhookSafety: what Kubernetes advises for webhooks, and what people's outages taught, holds for every entry.
func TestWebhookSafety(t *testing.T) {
	for _, e := range rename(t, "default", inject.DefaultRevision) {
		switch {
		case *e.FailurePolicy != admissionv1.Fail, *e.SideEffects != admissionv1.SideEffectClassNone, *e.ReinvocationPolicy != admissionv1.NeverReinvocationPolicy,
			*e.TimeoutSeconds != 10, len(e.MatchConditions) == 0, e.ClientConfig.CABundle != nil, *e.ClientConfig.Service.Path != "/inject", e.ClientConfig.Service.Name != "istiod":
			text, _ := yaml.Marshal(e)
			t.Errorf("unsafe entry:\n%s", text)
		}
	}
	url := inject.Webhooks("canary", inject.Endpoint{Namespace: "istio-system", URL: "https://192.0.2.1:15017"})[0].ClientConfig.URL
	if url == nil || *url != "https://192.0.2.1:15017/inject" {
		t.Errorf("the URL is %v", url)
	}
}
