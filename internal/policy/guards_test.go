package policy_test

import (
	"maps"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/revision"
)

func TestSettingsOfGuards(t *testing.T) {
	got, err := policy.DefaultGuards().With([]string{"all=audit", "meshed=Deny", "labels=off"})
	if want := (policy.Guards{"meshed": policy.Deny, "in-use": policy.Audit, "labels": policy.Off, "config": policy.Audit}); err != nil || !maps.Equal(got, want) {
		t.Errorf("%v (%v), want %v", got, err, want)
	}
	for setting, cause := range map[string]string{"meshed": "GUARD=MODE", "meshed=Sometimes": "Off, Warn, Audit and Deny", "pods=Deny": `no guard "pods"`} {
		if _, err := policy.DefaultGuards().With([]string{setting}); err == nil || !strings.Contains(err.Error(), cause) {
			t.Errorf("%s: %v; the cause is %s", setting, err, cause)
		}
	}
}

// TestNothingFailsClosed: no policy of these stands in the way because something of ours is missing or wrong.
func TestNothingFailsClosed(t *testing.T) {
	guards, err := policy.DefaultGuards().With([]string{"all=Deny"})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	check := func(name string, failure *admissionv1.FailurePolicyType, ref *admissionv1.ParamRef) {
		seen++
		if failure != nil && *failure != admissionv1.Ignore || ref != nil && *ref.ParameterNotFoundAction != admissionv1.AllowAction {
			t.Errorf("%s fails closed", name)
		}
	}
	var all []runtime.Object
	for _, list := range [][]runtime.Object{policy.Held("a"), guards.OfRevision("a", "istio-system"), guards.Shared("istio-system")} {
		all = append(all, list...)
	}
	for _, o := range all {
		switch p := o.(type) {
		case *admissionv1.MutatingAdmissionPolicy:
			check(p.Name, p.Spec.FailurePolicy, nil)
		case *admissionv1.MutatingAdmissionPolicyBinding:
			check(p.Name, nil, p.Spec.ParamRef)
		case *admissionv1.ValidatingAdmissionPolicy:
			check(p.Name, p.Spec.FailurePolicy, nil)
		case *admissionv1.ValidatingAdmissionPolicyBinding:
			check(p.Name, nil, p.Spec.ParamRef)
		}
	}
	if seen != 26 {
		t.Errorf("%d policies and bindings were looked at, want 26", seen)
	}
}

// TestUsersAreCountedByTheNameThatTheyWrite: a namespace by the tag that it names, a pod by the revision of its sidecar.
func TestUsersAreCountedByTheNameThatTheyWrite(t *testing.T) {
	hook := func(rev, tag string) revision.Webhook {
		return revision.Webhook{Kind: revision.Mutating, Name: rev + tag, Revision: rev, Tag: tag}
	}
	f := &revision.Facts{
		Webhooks:   []revision.Webhook{hook("a", ""), hook("a", "prod"), hook("b", "")},
		Namespaces: []revision.Namespace{{Name: "x", Rev: "prod"}, {Name: "y", Rev: "a"}, {Name: "z", Rev: "nowhere"}},
		Pods:       []revision.Pod{{Namespace: "x", Name: "1", Revision: "a"}, {Namespace: "x", Name: "2", Revision: "a"}},
	}
	got, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&struct {
		metav1.TypeMeta
		Users any `json:"users"`
	}{Users: policy.Users(f, true)["users"]})
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string][2]int64{}
	for _, u := range got["users"].([]any) {
		one := u.(map[string]any)
		counts[one["name"].(string)] = [2]int64{one["namespaces"].(int64), one["pods"].(int64)}
	}
	if want := map[string][2]int64{"a": {1, 2}, "prod": {1, 0}}; !maps.Equal(counts, want) {
		t.Errorf("%v, want %v", counts, want)
	}
	if partly := policy.Users(f, false); partly["users"] != nil {
		t.Error("what could not be read is told as known")
	}
}
