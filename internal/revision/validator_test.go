package revision

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type validators = []admissionv1.ValidatingWebhookConfiguration

// checks is a revision's own validating configuration; unlabelled says that it is called for objects that name no revision too.
func checks(rev string, unlabelled bool) admissionv1.ValidatingWebhookConfiguration {
	path := "/validate"
	calls := admissionv1.WebhookClientConfig{CABundle: []byte("root of " + rev), Service: &admissionv1.ServiceReference{Namespace: MeshNamespace, Name: "istiod-" + rev, Path: &path}}
	one := func(name string, r metav1.LabelSelectorRequirement) admissionv1.ValidatingWebhook {
		return admissionv1.ValidatingWebhook{Name: name, ClientConfig: calls, ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{r}}}
	}
	c := admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "istio-validator-" + rev + "-istio-system", Labels: map[string]string{"istio.io/rev": rev}},
		Webhooks: []admissionv1.ValidatingWebhook{one("rev.validation.istio.io", metav1.LabelSelectorRequirement{Key: "istio.io/rev", Operator: metav1.LabelSelectorOpIn, Values: []string{rev}})}}
	if unlabelled {
		c.Webhooks = append(c.Webhooks, one("validation.istio.io", metav1.LabelSelectorRequirement{Key: "istio.io/rev", Operator: metav1.LabelSelectorOpDoesNotExist}))
	}
	return c
}

// istioDefault is Istio's validator for objects that name no revision, as its chart has it.
func istioDefault(rev string) admissionv1.ValidatingWebhookConfiguration {
	fail := admissionv1.Fail
	c := checks(rev, true)
	c.Name, c.Webhooks = DefaultValidator, c.Webhooks[1:]
	c.Labels["app.kubernetes.io/managed-by"], c.Webhooks[0].FailurePolicy = "Helm", &fail
	return c
}

func TestTheDefaultValidatorFollowsTheDefaultTag(t *testing.T) {
	made := func(rev string) *admissionv1.ValidatingWebhookConfiguration {
		ignore := admissionv1.Ignore
		c := istioDefault(rev)
		c.Labels = map[string]string{"app.kubernetes.io/managed-by": "selvage", "selvage/owner": "selvage", "app": "istiod", "istio.io/rev": rev, "istio.io/tag": "default"}
		c.Webhooks[0].FailurePolicy = &ignore
		return &c
	}
	followed := func(rev string) *admissionv1.ValidatingWebhookConfiguration {
		c := istioDefault(rev)
		c.Labels["istio.io/tag"] = "default"
		return &c
	}
	ours, theirs := checks("ours", true), checks("theirs", false)
	for sentence, c := range map[string]struct {
		observed validators
		revision string
		want     *admissionv1.ValidatingWebhookConfiguration // nil: nothing is written
		goes     bool
	}{
		"one that is there calls the new default, and keeps all else":         {validators{ours, theirs, istioDefault("old")}, "ours", followed("ours"), false},
		"also when the new default is an Istio":                               {validators{ours, theirs, istioDefault("old")}, "theirs", followed("theirs"), false},
		"one that calls it already is left alone":                             {validators{ours, *followed("ours")}, "ours", nil, false},
		"where each revision looks at such objects, none is needed":           {validators{ours}, "ours", nil, false},
		"where the new default does not, one is made":                         {validators{ours, theirs}, "theirs", made("theirs"), false},
		"what Selvage made goes with the tag":                                 {validators{theirs, *made("theirs")}, "", nil, true},
		"somebody else's stays when there is no default any more":             {validators{theirs, istioDefault("theirs")}, "", nil, false},
		"a default that validates nothing needs none":                         {validators{ours}, "none", nil, false},
		"one that names the revision and calls another is brought to its own": {validators{ours, renamed(istioDefault("old"), "ours")}, "ours", followed("ours"), false},
	} {
		got, err := FollowDefault(c.observed, c.revision)
		if err != nil {
			t.Errorf("%s: %v", sentence, err)
			continue
		}
		if diff := cmp.Diff(c.want, got.After); diff != "" || got.Changes() != (c.want != nil || c.goes) || c.goes && got.Before.Name != DefaultValidator {
			t.Errorf("%s: before %v (-want +got):\n%s", sentence, got.Before, diff)
		}
	}
	_, err := FollowDefault(validators{ours, istioDefault("old")}, "none")
	if err == nil || !strings.Contains(err.Error(), "istiod-default-validator calls revision old still: revision none has no validating configuration") {
		t.Errorf("a default that validates nothing, beside a validator of another: %v", err)
	}
}

func renamed(c admissionv1.ValidatingWebhookConfiguration, rev string) admissionv1.ValidatingWebhookConfiguration {
	c.Labels["istio.io/rev"] = rev
	return c
}
