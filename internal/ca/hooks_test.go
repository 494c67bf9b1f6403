package ca

import (
	"bytes"
	"slices"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/selvage-mesh/selvage/internal/admission"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// TestWhoseWebhooksCount: those that Helm manages are ours by the mark that an installation puts on them.
func TestWhoseWebhooksCount(t *testing.T) {
	c := func(name, rev string, labels map[string]string) *admissionv1.MutatingWebhookConfiguration {
		labels["istio.io/rev"] = rev
		return &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
			Webhooks: []admissionv1.MutatingWebhook{{Name: "namespace.sidecar-injector.istio.io"}}}
	}
	a := newAuthority(t, versioned(fake.NewClientset(c("helm", "a", map[string]string{"selvage/owner": "selvage", "app.kubernetes.io/managed-by": "Helm"}),
		c("cli", "b", map[string]string{"app.kubernetes.io/managed-by": "selvage"}), c("istio", "c", map[string]string{"app.kubernetes.io/managed-by": "Helm"}))), nil)
	want := map[string]bool{"helm": true, "cli": true, "istio": false}
	for _, h := range must(a.hooks(t.Context()))(t) {
		if h.ours != want[h.config] {
			t.Errorf("%s: ours %v", h.config, h.ours)
		}
		delete(want, h.config)
	}
	if len(want) > 0 {
		t.Errorf("not seen: %v", want)
	}
}

// TestWhichWebhooksHoldAStage: those that a control plane of Selvage keeps, whatever they hold now, and those that trust a root of ours.
func TestWhichWebhooksHoldAStage(t *testing.T) {
	old, next, foreign := rootSecret(t, time.Now()).Data[certKey], rootSecret(t, time.Now()).Data[certKey], rootSecret(t, time.Now()).Data[certKey]
	both := slices.Concat(old, next)
	known := must(pki.ParseCertificates(both))(t)
	wanted := trust.Wanted{Stage: trust.Distribute, Roots: must(pki.BundleHash(both))(t)}
	const inject, check = "namespace.sidecar-injector.istio.io", "validation.istio.io"
	own := hook{kind: admission.Mutating, config: "istio-sidecar-injector", revision: "default", ours: true, entry: inject}
	canary := hook{kind: admission.Validating, config: "istio-validator-canary-istio-system", revision: "canary", ours: true, entry: check}
	tag := hook{kind: admission.Mutating, config: "istio-revision-tag-prod", revision: "canary", entry: inject} // made by istioctl
	istio := hook{kind: admission.Mutating, config: "istio-sidecar-injector-1-30", revision: "1-30", entry: inject}
	guest := hook{kind: admission.Mutating, config: "istio-sidecar-injector", revision: "default", ours: true, entry: "pods.example.org"}
	for sentence, c := range map[string]struct {
		hook
		bundle []byte
		want   string // "" when it does not count, "done", or "waits"
	}{
		"ours has the roots":                         {own, both, "done"},
		"ours has them in another order":             {own, slices.Concat(next, old), "done"},
		"ours has the old root":                      {own, old, "waits"},
		"ours is empty, as after an installation":    {own, nil, "waits"},
		"ours holds garbage":                         {own, []byte("garbage"), "waits"},
		"ours holds a certificate that was cut":      {own, bytes.TrimSpace(both)[:len(both)-40], "waits"},
		"ours was overwritten with another root":     {own, foreign, "waits"},
		"another revision of ours is empty":          {canary, nil, "waits"},
		"a tag that leads to one of ours is empty":   {tag, nil, "waits"},
		"a tag that leads to one of ours has them":   {tag, both, "done"},
		"Istio's trusts a root of ours":              {istio, old, "waits"},
		"Istio's trusts its own root":                {istio, foreign, ""},
		"Istio's is empty":                           {istio, nil, ""},
		"Istio's holds garbage":                      {istio, []byte("garbage"), ""},
		"somebody else's entry beside ours is empty": {guest, nil, ""},
	} {
		c.hook.bundle = c.bundle
		// What tells that the revision canary is ours, and is right itself.
		others := []hook{canary}
		others[0].bundle = both
		got := acknowledgedHooks(append(others, c.hook), "", known, wanted)
		want := trust.Count{Total: 1, Done: 1}
		switch c.want {
		case "done":
			want = trust.Count{Total: 2, Done: 2}
		case "waits":
			want = trust.Count{Total: 2, Done: 1, Waiting: []string{hookNames[c.kind] + c.config}}
		}
		if !got.Equal(want) {
			t.Errorf("%s: %+v, want %+v", sentence, got, want)
		}
	}
}
