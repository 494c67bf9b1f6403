//go:build apiserver

package install_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	applyv1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// attempt is one write of the control plane's, and what the API server is to say of it: "" for yes.
type attempt struct {
	sentence, want string
	do             func() error
}

// TestThePoliciesHoldWhatRBACCannotNarrow lets the control plane's account try what its rights allow and nobody wants it to do: the API
// server refuses each. What it needs goes through.
func TestThePoliciesHoldWhatRBACCannotNarrow(t *testing.T) {
	s := connect(t)
	s.purge(t, "asm-1")
	t.Cleanup(func() { s.purge(t, "asm-1") })
	o := outside("asm-1")
	o.SkipCRDs = false
	if err := s.Apply(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	dry := []string{metav1.DryRunAll} // admission is the same, and nothing is left
	config := rest.CopyConfig(s.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:istio-system:istiod-asm-1",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:istio-system", "system:authenticated"}}
	client := kubernetes.NewForConfigOrDie(config)
	hooks := client.AdmissionregistrationV1()

	foreign := s.foreignWebhook(t, "somebodys-webhook", nil)
	sameRevision := s.foreignWebhook(t, "somebodys-injector", map[string]string{"istio.io/rev": "asm-1"})
	stale := s.foreignWebhook(t, "left-behind", map[string]string{install.OwnerLabel: install.Owner, "istio.io/rev": "asm-0"})
	create := func(name string) func() error {
		return func() error {
			_, err := client.CoreV1().ConfigMaps(install.Namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{DryRun: dry})
			return err
		}
	}
	secret := func(name string, kind corev1.SecretType, annotations map[string]string) func() error {
		return func() error {
			_, err := client.CoreV1().Secrets(install.Namespace).Create(t.Context(),
				&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}, Type: kind}, metav1.CreateOptions{DryRun: dry})
			return err
		}
	}
	lease := func(name string) func() error {
		return func() error {
			_, err := client.CoordinationV1().Leases(install.Namespace).Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{DryRun: dry})
			return err
		}
	}
	gateway := func(dryRun ...string) func() error {
		return func() error {
			_, err := dynamic.NewForConfigOrDie(config).Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}).
				Namespace(verdict.Namespace).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
				"metadata": map[string]any{"name": "g"}}}, metav1.CreateOptions{DryRun: dryRun})
			return err
		}
	}
	patch := func(name string, entry map[string]any) func() error {
		return func() error {
			entry["name"] = "rev.object.sidecar-injector.istio.io"
			body, _ := json.Marshal(map[string]any{"webhooks": []any{entry}})
			_, err := hooks.MutatingWebhookConfigurations().Patch(t.Context(), name, types.StrategicMergePatchType, body, metav1.PatchOptions{DryRun: dry})
			return err
		}
	}
	validator := func(entry string) func() error {
		return func() error {
			_, err := hooks.ValidatingWebhookConfigurations().Patch(t.Context(), "istio-validator-asm-1-istio-system", types.StrategicMergePatchType,
				[]byte(`{"webhooks":[{"name":"rev.validation.istio.io",`+entry+`}]}`), metav1.PatchOptions{DryRun: dry})
			return err
		}
	}
	remove := func(name string) func() error {
		return func() error {
			return hooks.MutatingWebhookConfigurations().Delete(t.Context(), name, metav1.DeleteOptions{DryRun: dry})
		}
	}
	const own, account = "istio-sidecar-injector-asm-1", "the control plane of revision asm-1 may "
	root := map[string]any{"clientConfig": map[string]any{"caBundle": s.config.CAData}}
	// A policy takes effect a moment after it is stored.
	s.until(t, "the policies hold", func() bool {
		return apierrors.IsInvalid(create("x")()) && apierrors.IsInvalid(patch(foreign, root)())
	})
	for _, a := range []attempt{
		{"a ConfigMap of another name", account + "create no other configmaps than istio-ca-root-cert, and in namespace istio-system selvage-status-asm-1, ", create("x")},
		{"a record of its own", "", create("selvage-removed-webhooks")},
		{"the root in a namespace", "", func() error {
			_, err := client.CoreV1().ConfigMaps("default").Apply(t.Context(), applyv1.ConfigMap("istio-ca-root-cert", "default"), metav1.ApplyOptions{FieldManager: "test", DryRun: dry})
			return err
		}},
		{"a Secret of another name", account + "create no other secrets than istio-ca-secret and selvage-root-rotation", secret("x", corev1.SecretTypeOpaque, nil)},
		{"a token of another account", account + "create no other secrets", secret("istio-ca-secret", corev1.SecretTypeServiceAccountToken, map[string]string{corev1.ServiceAccountNameKey: "default"})},
		{"the signing key", "", secret("istio-ca-secret", "istio.io/ca-root", nil)},
		{"another component's lease", account + "create no other leases than selvage-webhooks-asm-1 and selvage-roots", lease("somebodys")},
		{"its lease", "", lease("selvage-webhooks-asm-1")},
		{"a Gateway", "dry run", gateway()}, // by one of two policies
		{"a Gateway as a dry run", "", gateway(dry...)},
		{"another's webhook away", account + "delete no webhook configuration but Selvage's", remove(foreign)},
		{"another's webhook of this revision away", account + "delete no webhook configuration but Selvage's", remove(sameRevision)},
		{"Selvage's own webhook away", "", remove(stale)},
		{"the bundle of another's webhook", account + "change no webhook configuration but its own revision's", patch(foreign, root)},
		{"where pods are sent", account + "change nothing of a webhook configuration but caBundle", patch(own, map[string]any{"clientConfig": map[string]any{"service": map[string]any{"name": "elsewhere", "namespace": "default"}}})},
		{"which pods are sent", account + "change nothing of a webhook configuration but caBundle", patch(own, map[string]any{"objectSelector": map[string]any{"matchLabels": map[string]any{"a": "b"}}})},
		{"failurePolicy of the injector", account + "change nothing of a webhook configuration but caBundle", patch(own, map[string]any{"failurePolicy": "Ignore"})},
		{"its labels", account + "change no webhook configuration but its own revision's, and no label of it", func() error {
			_, err := hooks.MutatingWebhookConfigurations().Patch(t.Context(), own, types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{DryRun: dry})
			return err
		}},
		{"the bundle of its own", "", patch(own, root)},
		{"the bundle of another's webhook of this revision", "", patch(sameRevision, root)},
		{"failurePolicy of the validator", "", validator(`"failurePolicy":"Fail"`)},
		{"the rules of the validator", account + "change nothing of a webhook configuration but caBundle", validator(`"timeoutSeconds":30`)},
	} {
		err := a.do()
		if a.want == "" && err != nil || a.want != "" && (err == nil || !strings.Contains(err.Error(), a.want)) {
			t.Errorf("%s: %v; want %q", a.sentence, err, a.want)
		}
	}
	// Nobody else is held to anything.
	if _, err := s.kubernetes.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{DryRun: dry}); err != nil {
		t.Errorf("an administrator is held too: %v", err)
	}
	s.policiesAreSound(t)
}

// foreignWebhook makes a webhook configuration that nothing calls, of somebody else.
func (s *server) foreignWebhook(t *testing.T, name string, labels map[string]string) string {
	t.Helper()
	none, url := admissionv1.SideEffectClassNone, "https://127.0.0.1:1"
	hooks := s.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations()
	_, err := hooks.Create(t.Context(), &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Webhooks: []admissionv1.MutatingWebhook{{Name: "rev.object.sidecar-injector.istio.io", SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionv1.WebhookClientConfig{URL: &url}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hooks.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	return name
}

// policiesAreSound fails with what the API server finds wrong with an expression.
func (s *server) policiesAreSound(t *testing.T) {
	t.Helper()
	s.until(t, "the policies are type-checked", func() bool {
		var err error
		for _, name := range []string{"istiod-creates-asm-1", "istiod-webhooks-asm-1", "selvage-probe-dry-run-only"} {
			p, e := s.kubernetes.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(t.Context(), name, metav1.GetOptions{})
			if e != nil {
				t.Fatal(e)
			}
			if p.Status.ObservedGeneration != p.Generation || p.Status.TypeChecking == nil {
				return false
			}
			for _, w := range p.Status.TypeChecking.ExpressionWarnings {
				err = errors.Join(err, fmt.Errorf("%s %s: %s", p.Name, w.FieldRef, w.Warning))
			}
		}
		if err != nil {
			t.Error(err)
		}
		return true
	})
}
