package revision

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

var (
	noon    = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	longAgo = noon.Add(-time.Hour)
)

// validator is one of a revision, last changed long ago.
func validator(rev string) Webhook {
	return Webhook{Kind: Validating, Name: "istio-validator-" + rev + "-istio-system", Revision: rev, Changed: longAgo,
		Services: []Service{{MeshNamespace, inject.ObjectName("istiod", rev)}}}
}

func injector(rev, tag string) Webhook {
	name := inject.ObjectName("istio-sidecar-injector", rev)
	if tag != "" {
		name = "istio-revision-tag-" + tag
	}
	return Webhook{Kind: Mutating, Name: name, Revision: rev, Tag: tag, Changed: longAgo, Services: []Service{{MeshNamespace, inject.ObjectName("istiod", rev)}}}
}

// TestJudge is the rule of what is stale, and of what is not although it looks so.
func TestJudge(t *testing.T) {
	forbidden := errors.New("forbidden")
	gone := validator("asm-1")
	for sentence, c := range map[string]struct {
		hook  Webhook
		since time.Time
		facts Facts
		want  Verdict
	}{
		"a webhook whose Service and control plane are gone for long is stale": {gone, longAgo, Facts{}, IsStale},
		"it is not before the grace period is over":                            {gone, noon.Add(-9 * time.Minute), Facts{}, IsGone},
		"nor when nobody knows since when":                                     {gone, time.Time{}, Facts{}, IsGone},
		"it is alive while its Service is there":                               {gone, longAgo, Facts{Existing: map[Service]bool{{MeshNamespace, "istiod-asm-1"}: true}}, Live},
		"it is alive while its revision has a Deployment in that namespace": {gone, longAgo,
			Facts{ControlPlanes: []ControlPlane{{Revision: "asm-1", Namespace: MeshNamespace, Name: "istiod-asm-1"}}}, Live},
		"another revision's Deployment is no sign of life": {gone, longAgo,
			Facts{ControlPlanes: []ControlPlane{{Revision: "asm-2", Namespace: MeshNamespace, Name: "istiod-asm-2"}}}, IsStale},
		"a lease that is renewed is a sign of life": {gone, longAgo,
			Facts{Leases: []Lease{{MeshNamespace, "selvage-webhooks-asm-1", "a-host", noon.Add(-10 * time.Second)}}}, Live},
		"a lease that an istiod pod of the revision holds is one too": {gone, longAgo,
			Facts{Leases: []Lease{{MeshNamespace, "istio-leader", "istiod-asm-1-5c9f7b4d6-x2x8z", noon}}}, Live},
		"a lease that a pod of a longer-named revision holds is none": {validator("asm"), longAgo,
			Facts{Leases: []Lease{{MeshNamespace, "istio-leader", "istiod-asm-1-5c9f7b4d6-x2x8z", noon}}}, IsStale},
		"the default revision is not kept alive by another's lease": {validator(inject.DefaultRevision), longAgo,
			Facts{Leases: []Lease{{MeshNamespace, "istio-leader", "istiod-asm-1-5c9f7b4d6-x2x8z", noon}}}, IsStale},
		"a lease that nobody renews any more is none": {gone, longAgo,
			Facts{Leases: []Lease{{MeshNamespace, "selvage-webhooks-asm-1", "a-host", noon.Add(-5 * time.Minute)}}}, IsStale},
		"a connected proxy is a sign of life": {gone, longAgo, Facts{Proxies: []Proxy{{"shop", "web", "asm-1"}}}, Live},
		"what calls a URL is never stale":     {Webhook{Kind: Mutating, Revision: "asm-managed", URLs: []string{"https://mesh.example/inject"}}, longAgo, Facts{}, Live},
		"what has entries of others is never stale": {func() Webhook { w := gone; w.Others = []string{"pods.example.org"}; return w }(),
			longAgo, Facts{}, Live},
		"it counts for nothing that one of two Services is gone": {
			func() Webhook { w := gone; w.Services = append(w.Services, Service{"other", "istiod"}); return w }(), longAgo,
			Facts{Existing: map[Service]bool{{"other", "istiod"}: true}}, Live},
		"Services that could not be read are no reason":    {gone, longAgo, Facts{Unread: map[Source]error{{Services, MeshNamespace}: forbidden}}, Unknown},
		"Deployments that could not be read are no reason": {gone, longAgo, Facts{Unread: map[Source]error{{Deployments, MeshNamespace}: forbidden}}, Unknown},
		"leases that could not be read are no reason":      {gone, longAgo, Facts{Unread: map[Source]error{{Leases, MeshNamespace}: forbidden}}, Unknown},
		"what could not be read elsewhere does not matter": {gone, longAgo, Facts{Unread: map[Source]error{{Leases, "elsewhere"}: forbidden}}, IsStale},
	} {
		c.facts.Now = noon
		if got := c.facts.Judge(c.hook, c.since, DefaultGrace); got.Verdict != c.want {
			t.Errorf("%s: %s (%s), want %s", sentence, got.Verdict, got.Detail, c.want)
		} else if got.Verdict != Live && got.Detail == "" {
			t.Errorf("%s: the verdict has no reason", sentence)
		}
	}
}

func TestProblemOfAStaleWebhookNamesItAndTheNextStep(t *testing.T) {
	w := validator("asm-1")
	facts := Facts{Now: noon}
	p := w.Problem(facts.Judge(w, longAgo, DefaultGrace))
	want := "Error SEL0045 ValidatingWebhookConfiguration/istio-validator-asm-1-istio-system: Service istio-system/istiod-asm-1 does not exist, " +
		"and revision asm-1 has no control plane: where its failurePolicy is Fail, every write of the mesh's configuration that it selects is refused " +
		"(hint: `selvage revision prune` shows and removes it, with undo)"
	if p.String() != want {
		t.Errorf("%s\nwant:\n%s", p, want)
	}
	if p := w.Problem(Judgement{Verdict: Unknown}); p.Severity != diag.Info {
		t.Errorf("what is not known is %s", p.Severity)
	}
}

// TestRevisions: two revisions of which one is left behind, a tag, namespaces by every kind of label, pods and proxies.
func TestRevisions(t *testing.T) {
	f := &Facts{
		Now:      noon,
		Webhooks: []Webhook{injector("default", ""), injector("asm-1", ""), injector("asm-1", "prod"), validator("asm-0"), injector("asm-2", "")},
		Existing: map[Service]bool{{MeshNamespace, "istiod"}: true, {MeshNamespace, "istiod-asm-1"}: true, {MeshNamespace, "istiod-asm-2"}: true},
		ControlPlanes: []ControlPlane{
			{Revision: "default", Namespace: MeshNamespace, Name: "istiod", Ready: 2, Replicas: 2, Version: "1.0.0", Ours: true},
			{Revision: "asm-1", Namespace: MeshNamespace, Name: "istiod-asm-1", Ready: 1, Replicas: 2, Version: "1.29.2"},
			{Revision: "asm-2", Namespace: MeshNamespace, Name: "istiod-asm-2", Outside: true, Ours: true},
		},
		Namespaces: []Namespace{
			{Name: "shop", Injection: "enabled"}, {Name: "bank", Rev: "prod"}, {Name: "mail", Rev: "asm-1"},
			{Name: "off", Injection: "disabled", Rev: "asm-1"}, {Name: "astray", Rev: "asm-9"},
		},
		Pods:         []Pod{{"shop", "web", "default"}, {"shop", "old", "asm-0"}, {"bank", "teller", "asm-1"}},
		Proxies:      []Proxy{{"shop", "web", "default"}},
		AskedProxies: map[string]bool{"default": true, "asm-2": true},
	}
	one, none := 1, 0
	live := func(kind, name, tag string) WebhookState {
		return WebhookState{Kind: kind, Name: name, Tag: tag, Verdict: Live}
	}
	want := []Revision{
		{Name: "asm-0", State: Stale, ControlPlane: "none", Tags: []string{}, Namespaces: []Use{{Namespace: "shop", Pods: 1}}, Pods: 1,
			Webhooks: []WebhookState{{Validating, "istio-validator-asm-0-istio-system", "", IsStale,
				"Service istio-system/istiod-asm-0 does not exist, and revision asm-0 has no control plane"}}},
		{Name: "asm-1", State: InUse, ControlPlane: "1/2", Version: "1.29.2", Tags: []string{"prod"},
			Namespaces: []Use{{Namespace: "bank", Label: "istio.io/rev=prod", Tag: "prod", Pods: 1}, {Namespace: "mail", Label: "istio.io/rev=asm-1"}},
			Pods:       1, Webhooks: []WebhookState{live(Mutating, "istio-sidecar-injector-asm-1", ""), live(Mutating, "istio-revision-tag-prod", "prod")}},
		{Name: "asm-2", State: Unused, ControlPlane: "outside", Selvage: true, Tags: []string{}, Namespaces: []Use{}, Proxies: &none,
			Webhooks: []WebhookState{live(Mutating, "istio-sidecar-injector-asm-2", "")}},
		{Name: "default", State: InUse, ControlPlane: "2/2", Version: "1.0.0", Selvage: true, Tags: []string{},
			Namespaces: []Use{{Namespace: "shop", Label: "istio-injection=enabled", Pods: 1}}, Pods: 1, Proxies: &one,
			Webhooks: []WebhookState{live(Mutating, "istio-sidecar-injector", "")}},
	}
	if diff := cmp.Diff(want, f.Revisions(DefaultGrace)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Namespace{{Name: "astray", Rev: "asm-9"}}, f.Lost()); diff != "" {
		t.Errorf("lost (-want +got):\n%s", diff)
	}
}

// TestOfReadsRealObjects: what this and other meshes register, and what is not a mesh's.
func TestOfReadsRealObjects(t *testing.T) {
	c := inject.Registration{Revision: "asm-1", Tag: "prod", Endpoint: inject.Endpoint{Namespace: MeshNamespace, Service: "istiod-asm-1"}}.Configuration()
	c.Labels[OwnerLabel] = Owner
	c.CreationTimestamp = metav1.NewTime(longAgo)
	edited := metav1.NewTime(noon)
	c.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl-edit", Time: &edited}}
	got, ok := OfMutating(c)
	want := Webhook{Kind: Mutating, Name: "istio-revision-tag-prod", Revision: "asm-1", Tag: "prod", Ours: true, Changed: noon,
		Services: []Service{{MeshNamespace, "istiod-asm-1"}}}
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Errorf("ok %v (-want +got):\n%s", ok, diff)
	}
	url := "https://mesh.example/validate"
	v := &admissionv1.ValidatingWebhookConfiguration{Webhooks: []admissionv1.ValidatingWebhook{
		{Name: "rev.validation.istio.io", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}}, {Name: "pods.example.org"}}}
	w, ok := OfValidating(v)
	if !ok || w.Revision != inject.DefaultRevision || len(w.URLs) != 1 || len(w.Others) != 1 {
		t.Errorf("%v %+v", ok, w)
	}
	if _, ok := OfValidating(&admissionv1.ValidatingWebhookConfiguration{Webhooks: []admissionv1.ValidatingWebhook{{Name: "evilvalidation.istio.io"}}}); ok {
		t.Error("a name that only ends like a mesh's is taken for one")
	}
}
