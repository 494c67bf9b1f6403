package inject_test

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// registration is one of a revision, or of a tag of it, in the usual place.
func registration(revision, tag string) inject.Registration {
	return inject.Registration{Revision: revision, Tag: tag, Endpoint: inject.Endpoint{
		Namespace: "istio-system", Service: inject.ObjectName("istiod", revision)}}
}

// TestWebhookSafety: what Kubernetes advises for webhooks, and what people's outages taught, holds for every entry.
func TestWebhookSafety(t *testing.T) {
	r := registration("", "")
	r.EnableNamespacesByDefault = true
	for _, e := range r.Webhooks() {
		switch {
		case *e.FailurePolicy != admissionv1.Fail, *e.SideEffects != admissionv1.SideEffectClassNone, *e.ReinvocationPolicy != admissionv1.NeverReinvocationPolicy,
			*e.TimeoutSeconds != 10, len(e.MatchConditions) == 0, e.ClientConfig.CABundle != nil, *e.ClientConfig.Service.Path != "/inject", e.ClientConfig.Service.Name != "istiod":
			text, _ := yaml.Marshal(e)
			t.Errorf("unsafe entry:\n%s", text)
		}
	}
	r = registration("canary", "")
	r.Endpoint.URL = "https://192.0.2.1:15017"
	if url := r.Webhooks()[0].ClientConfig.URL; url == nil || *url != "https://192.0.2.1:15017/inject" {
		t.Errorf("the URL is %v", url)
	}
}

// TestRegistrations: names and labels are those by which Istio's tools, and our patcher of caBundle, find the objects; only
// what stands for the default revision answers labels that name none.
func TestRegistrations(t *testing.T) {
	for _, c := range []struct {
		revision, tag, name, rev, tagLabel, service string
		entries                                     int
	}{
		{"", "", "istio-sidecar-injector", "default", "", "istiod", 4},
		{"default", "", "istio-sidecar-injector", "default", "", "istiod", 4},
		{"canary", "", "istio-sidecar-injector-canary", "canary", "", "istiod-canary", 2},
		{"canary", "prod", "istio-revision-tag-prod", "canary", "prod", "istiod-canary", 2},
		{"canary", "default", "istio-revision-tag-default", "canary", "default", "istiod-canary", 4},
		{"", "prod", "istio-revision-tag-prod", "default", "prod", "istiod", 2},
	} {
		r := registration(c.revision, c.tag)
		got := r.Configuration()
		if got.Name != c.name || got.Labels["istio.io/rev"] != c.rev || got.Labels["istio.io/tag"] != c.tagLabel ||
			len(got.Webhooks) != c.entries || got.Webhooks[0].ClientConfig.Service.Name != c.service {
			text, _ := yaml.Marshal(got)
			t.Errorf("revision %q, tag %q:\n%s", c.revision, c.tag, text)
		}
		r.EnableNamespacesByDefault = true
		if more := len(r.Webhooks()); more > c.entries != (c.entries == 4) {
			t.Errorf("revision %q, tag %q: %d entries with enableNamespacesByDefault", c.revision, c.tag, more)
		}
	}
}
