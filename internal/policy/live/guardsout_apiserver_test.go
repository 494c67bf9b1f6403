//go:build apiserver

package live_test

import (
	"context"
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/policy"
)

// TestNobodyIsLockedOut: all guards refuse, and the control plane was killed and has left its numbers.
func TestNobodyIsLockedOut(t *testing.T) {
	all, err := policy.DefaultGuards().With([]string{"all=Deny"})
	if err != nil {
		t.Fatal(err)
	}
	m := newMesh(t, func(o *install.Options) { o.Guards = all })
	refused := func(yes bool) {
		t.Helper()
		m.eventually(fmt.Sprintf("the deletion is refused: %v", yes), func() string {
			err := m.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(t.Context(), m.mutating(), metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
			if (err != nil) == yes {
				return ""
			}
			return fmt.Sprint(err)
		})
	}
	leave := func() {
		t.Helper()
		left := fmt.Sprintf(`{"spec":{"revisions":[%q],"asOf":"2020-01-01T00:00:00Z","users":[{"name":%q,"revision":%q,"namespaces":1,"pods":1}]}}`, m.rev, m.rev, m.rev)
		if _, err := m.dynamic.Resource(policy.ParameterResource).Patch(t.Context(), policy.RevisionsName, types.MergePatchType, []byte(left), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		refused(true)
	}
	leave()
	t.Run("the mesh's namespace goes", func(t *testing.T) {
		spaces := m.client.CoreV1().Namespaces()
		if err := spaces.Delete(t.Context(), install.Namespace, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		m.eventually("it is gone", func() string {
			ns, err := spaces.Get(t.Context(), install.Namespace, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return ""
			}
			return fmt.Sprintf("%v %v", ns.Status, err)
		})
	})
	t.Run("the two commands of the documentation", func(t *testing.T) {
		refused(true) // as before
		ours := metav1.ListOptions{LabelSelector: "selvage/owner=selvage"}
		for _, kinds := range [][]string{{"mutatingadmissionpolicybindings", "validatingadmissionpolicybindings"}, {"mutatingadmissionpolicies", "validatingadmissionpolicies"}} {
			for _, kind := range kinds {
				resource := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: kind}
				if err := m.dynamic.Resource(resource).DeleteCollection(t.Context(), metav1.DeleteOptions{}, ours); err != nil && !apierrors.IsNotFound(err) {
					t.Fatalf("delete %s: %v", kind, err)
				}
			}
		}
		refused(false)
		ns, _ := m.person(nil)
		wrong := m.namespaceOf(map[string]string{"istio-inject": "enabled"})
		if err := ns.CoreV1().Namespaces().Delete(t.Context(), wrong.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("another installation, and its removal", func(t *testing.T) {
		if err := m.installer().Apply(t.Context(), m.options); err != nil {
			t.Fatal(err)
		}
		leave()
		if err := m.installer().Apply(t.Context(), m.options); err != nil {
			t.Errorf("an upgrade: %v", err)
		}
		if _, err := m.installer().Uninstall(context.Background(), install.RemoveOptions{Revision: m.rev, Purge: true}); err != nil {
			t.Errorf("uninstall: %v", err)
		}
		_, err := m.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), m.mutating(), metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			t.Errorf("the webhook configuration is still there: %v", err)
		}
	})
}
