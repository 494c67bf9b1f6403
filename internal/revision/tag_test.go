package revision

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

type configs = []admissionv1.MutatingWebhookConfiguration

// registered is what Selvage registers for a revision or a tag, with the revision's bundle.
func registered(rev, tag string) admissionv1.MutatingWebhookConfiguration {
	c := *inject.Registration{Revision: rev, Tag: tag, Endpoint: inject.Endpoint{Namespace: MeshNamespace, Service: inject.ObjectName("istiod", rev)}}.Configuration()
	c.Labels[OwnerLabel] = Owner
	for i := range c.Webhooks {
		c.Webhooks[i].ClientConfig.CABundle = []byte("root of " + rev)
	}
	return c
}

// apply gives the configurations after a change.
func apply(all configs, tag Tag) configs {
	var out configs
	for _, c := range all {
		if tag.Before == nil || c.Name != tag.Before.Name {
			out = append(out, c)
		}
	}
	if tag.After != nil {
		out = append(out, *tag.After)
	}
	return out
}

// answers lists, for pods of namespaces with every label that counts, which Services are called: more than one is a fault.
func answers(all configs) map[string][]string {
	out := map[string][]string{}
	for _, text := range []string{"istio-injection=enabled", "istio.io/rev=default", "istio.io/rev=prod", "istio.io/rev=asm-1", "istio.io/rev=asm-2"} {
		key, value, _ := strings.Cut(text, "=")
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{key: value}}}
		for _, c := range all {
			a := inject.NewAdmission(configs{c}, nil)
			e := a.Expect(ns, &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}}})
			if e.Webhook.Configuration == "" {
				continue
			}
			for _, w := range c.Webhooks {
				if w.Name == e.Webhook.Entry {
					out[text] = append(out[text], fmt.Sprintf("%s by %s", w.ClientConfig.Service.Name, w.ClientConfig.CABundle))
				}
			}
		}
	}
	return out
}

// TestTagsMoveByOneWrite: whatever is done to tags, each label leads to exactly one control plane, with its own bundle, and the change
// is of one object.
func TestTagsMoveByOneWrite(t *testing.T) {
	all := configs{registered("default", ""), registered("asm-1", ""), registered("asm-2", "")}
	own := map[string]string{"istio-injection=enabled": "istiod by root of default", "istio.io/rev=default": "istiod by root of default",
		"istio.io/rev=asm-1": "istiod-asm-1 by root of asm-1", "istio.io/rev=asm-2": "istiod-asm-2 by root of asm-2"}
	asm1, asm2 := own["istio.io/rev=asm-1"], own["istio.io/rev=asm-2"]
	installed := func(string) bool { return true }
	for _, step := range []struct {
		sentence string
		change   func() (Tag, error)
		want     map[string]string // over own; "" takes away
		object   string
	}{
		{"a new tag is a new object", func() (Tag, error) { return SetTag(all, TagRequest{Tag: "prod", Revision: "asm-1"}) },
			map[string]string{"istio.io/rev=prod": asm1}, "istio-revision-tag-prod"},
		{"a tag moves within its object", func() (Tag, error) { return SetTag(all, TagRequest{Tag: "prod", Revision: "asm-2"}) },
			map[string]string{"istio.io/rev=prod": asm2}, "istio-revision-tag-prod"},
		{"the default tag takes over the default revision's own object", func() (Tag, error) { return SetTag(all, TagRequest{Tag: "default", Revision: "asm-1"}) },
			map[string]string{"istio.io/rev=prod": asm2, "istio-injection=enabled": asm1, "istio.io/rev=default": asm1}, "istio-sidecar-injector"},
		{"and moves on", func() (Tag, error) { return SetTag(all, TagRequest{Tag: "default", Revision: "asm-2"}) },
			map[string]string{"istio.io/rev=prod": asm2, "istio-injection=enabled": asm2, "istio.io/rev=default": asm2}, "istio-sidecar-injector"},
		{"another tag can still name the revision default", func() (Tag, error) { return SetTag(all, TagRequest{Tag: "prod", Revision: "default"}) },
			map[string]string{"istio.io/rev=prod": "istiod by root of asm-2", "istio-injection=enabled": asm2, "istio.io/rev=default": asm2}, "istio-revision-tag-prod"},
		{"removed, the default revision answers again", func() (Tag, error) { return RemoveTag(all, "default", installed) },
			map[string]string{"istio.io/rev=prod": "istiod by root of asm-2", "istio-injection=enabled": "istiod by root of asm-2", "istio.io/rev=default": "istiod by root of asm-2"}, "istio-sidecar-injector"},
		{"a removed tag names nothing", func() (Tag, error) { return RemoveTag(all, "prod", installed) },
			map[string]string{"istio-injection=enabled": "istiod by root of asm-2", "istio.io/rev=default": "istiod by root of asm-2"}, "istio-revision-tag-prod"},
	} {
		tag, err := step.change()
		if err != nil {
			t.Fatalf("%s: %v", step.sentence, err)
		}
		object := tag.After
		if object == nil {
			object = tag.Before
		}
		if object.Name != step.object || tag.Before != nil && tag.After != nil && tag.Before.Name != tag.After.Name {
			t.Errorf("%s: it concerns %s, want %s", step.sentence, object.Name, step.object)
		}
		all = apply(all, tag)
		got := map[string]string{}
		for label, calls := range answers(all) {
			got[label] = strings.Join(calls, " AND ")
		}
		want := map[string]string{}
		for label, call := range own {
			want[label] = call
		}
		for label, call := range step.want {
			want[label] = call
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.sentence, diff)
		}
	}
	// After the way there and back the revision's own object is what it was, but for the bundle, which its control plane keeps.
	before, after := registered("default", ""), all[len(all)-1]
	for _, c := range all {
		if c.Name == before.Name {
			after = c
		}
	}
	for _, c := range []*admissionv1.MutatingWebhookConfiguration{&before, &after} {
		c.Annotations = nil
		for i := range c.Webhooks {
			c.Webhooks[i].ClientConfig.CABundle = nil
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

// TestATagKeepsWhatOthersHaveSet: only what the entries call, and whom they name, changes.
func TestATagKeepsWhatOthersHaveSet(t *testing.T) {
	tagged := registered("asm-1", "prod")
	ignore := admissionv1.Ignore
	tagged.Webhooks[0].FailurePolicy = &ignore
	tagged.Annotations = map[string]string{"somebody": "was here"}
	tagged.Webhooks = append(tagged.Webhooks, admissionv1.MutatingWebhook{Name: "pods.example.org"})
	tag, err := SetTag(configs{registered("asm-1", ""), registered("asm-2", ""), tagged}, TagRequest{Tag: "prod", Revision: "asm-2"})
	if err != nil {
		t.Fatal(err)
	}
	want := tagged.DeepCopy()
	want.Labels["istio.io/rev"] = "asm-2"
	for i := range want.Webhooks[:2] {
		want.Webhooks[i].ClientConfig.Service.Name, want.Webhooks[i].ClientConfig.CABundle = "istiod-asm-2", []byte("root of asm-2")
	}
	if diff := cmp.Diff(want, tag.After); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTagsThatCannotBe(t *testing.T) {
	empty := registered("asm-3", "")
	for i := range empty.Webhooks {
		empty.Webhooks[i].ClientConfig.CABundle = nil
	}
	foreign := registered("default", "")
	delete(foreign.Labels, OwnerLabel)
	all := configs{foreign, registered("asm-1", ""), registered("asm-2", ""), empty}
	for sentence, c := range map[string]struct {
		request TagRequest
		says    string
	}{
		"of a revision that is not there":               {TagRequest{Tag: "prod", Revision: "asm-9"}, `no revision "asm-9"`},
		"of a revision's own name":                      {TagRequest{Tag: "asm-1", Revision: "asm-1"}, "own name"},
		"of another revision's name":                    {TagRequest{Tag: "asm-2", Revision: "asm-1"}, "istio-sidecar-injector-asm-2 answers"},
		"default beside somebody else's":                {TagRequest{Tag: "default", Revision: "asm-1"}, "istio-sidecar-injector answers"},
		"of a revision whose bundle is not filled in":   {TagRequest{Tag: "prod", Revision: "asm-3"}, "no caBundle yet"},
		"of a tag: a tag names a revision and no other": {TagRequest{Tag: "prod", Revision: "canary"}, `no revision "canary"`},
	} {
		_, err := SetTag(all, c.request)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("a tag %s: %v, want %q", sentence, err, c.says)
		}
	}
	if _, err := RemoveTag(all, "prod", func(string) bool { return true }); err == nil || !strings.Contains(err.Error(), "it has none") {
		t.Errorf("removing a tag that is not there: %v", err)
	}
}
