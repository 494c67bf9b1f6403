//go:build apiserver

// These tests change the cluster of SELVAGE_TEST_KUBECONFIG, a real API server without Istio or Selvage; they need no node.
package install_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// server is the API server and an installer of it.
type server struct {
	config     *rest.Config
	kubernetes kubernetes.Interface
	dynamic    dynamic.Interface
	*install.Installer
}

func connect(t *testing.T) *server {
	t.Helper()
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("SELVAGE_TEST_KUBECONFIG is not set: it names the kubeconfig of an API server for tests, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	s := &server{config: config}
	if s.kubernetes, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if s.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	s.Installer, err = install.New(install.Config{Kubernetes: s.kubernetes, Dynamic: s.dynamic, Progress: t.Output(),
		Timeout: time.Minute, Poll: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// whole is outside with the definitions.
func whole() install.Options {
	o := outside("")
	o.SkipCRDs = false
	return o
}

func (s *server) purge(t *testing.T, revision string) *install.Removal {
	t.Helper()
	removal, err := s.Uninstall(context.Background(), install.RemoveOptions{Revision: revision, Purge: true})
	if err != nil {
		t.Fatal(err)
	}
	return removal
}

// outside is a control plane that is said to be outside the cluster; nothing runs there (192.0.2.0/24 is for documents). It
// comes without the definitions, which take an API server seconds to serve and to forget.
func outside(revision string) install.Options {
	o := install.Default("1.0.0")
	o.Revision, o.SkipCRDs = revision, true
	o.Endpoint = &install.Endpoint{Address: netip.MustParseAddr("192.0.2.7"), XDS: 15012, Webhook: 15017, HTTP: 15014}
	return o
}

// everything lists every object that the API server can list, by kind, name, labels and annotations, but what comes and goes by itself.
func (s *server) everything(t *testing.T) []string {
	t.Helper()
	lists, err := s.kubernetes.Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || r.Kind == "Event" || r.Kind == "LeaseCandidate" || r.Kind == "ComponentStatus" || r.Kind == "APIService" {
				continue
			}
			objects, err := s.dynamic.Resource(gv.WithResource(r.Name)).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				continue // served no more
			}
			for _, u := range objects.Items {
				if r.Kind == "Lease" && u.GetNamespace() != install.Namespace { // of Kubernetes' own components
					continue
				}
				seen[fmt.Sprintf("%s %s/%s %v %v", r.Kind, u.GetNamespace(), u.GetName(), u.GetLabels(), u.GetAnnotations())] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// TestAPIServerTakesEveryObject: all of a plain installation passes a server-side dry run, also the objects of a namespace that
// does not exist yet.
func TestAPIServerTakesEveryObject(t *testing.T) {
	s := connect(t)
	s.purge(t, "")
	changes, err := s.Plan(t.Context(), install.Default("1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(s.everything(t)); slices.ContainsFunc(s.everything(t), func(o string) bool { return strings.Contains(o, "istio") }) {
		t.Errorf("a plan has changed the cluster (%d objects)", n)
	}
	for _, c := range changes {
		if c.Action != install.Created {
			t.Errorf("%s: %s; want created", c.Object, c.Action)
		}
	}
	// Once the namespace is there, the rest can be tried too: the Deployment against PodSecurity "restricted", among others.
	if err := s.Apply(t.Context(), whole()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.purge(t, "") })
	changes, err = s.Plan(t.Context(), install.Default("1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		want := install.Unchanged
		switch {
		case strings.HasPrefix(c.Object, "Deployment "), strings.HasPrefix(c.Object, "PodDisruptionBudget "):
			want = install.Created
		case strings.HasPrefix(c.Object, "Service "):
			want = install.Configured // it gets a selector
		}
		if c.Action != want {
			t.Errorf("%s: %s; want %s", c.Object, c.Action, want)
		}
	}
}

// TestInstallAndUninstallLeaveNothing: after a purge the cluster has exactly what it had before.
func TestInstallAndUninstallLeaveNothing(t *testing.T) {
	s := connect(t)
	s.purge(t, "")
	before := s.everything(t)
	if err := s.Apply(t.Context(), whole()); err != nil {
		t.Fatal(err)
	}
	crds, err := s.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}).
		List(t.Context(), metav1.ListOptions{LabelSelector: install.OwnerLabel + "=" + install.Owner})
	if err != nil || len(crds.Items) != 16 {
		t.Fatalf("%d definitions (error %v); want Istio's 15 and that of the policies' parameters", len(crds.Items), err)
	}
	s.purge(t, "")
	if after := s.everything(t); !slices.Equal(before, after) {
		t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if again := s.purge(t, ""); len(again.Removed) != 0 {
		t.Errorf("a second run removed %v", again.Removed)
	}
}

// TestUninstallKeepsWhatIsTheUsers: custom resources, the signing key, and the namespace that holds it.
func TestUninstallKeepsWhatIsTheUsers(t *testing.T) {
	s := connect(t)
	t.Cleanup(func() { s.purge(t, "") })
	if err := s.Apply(t.Context(), whole()); err != nil {
		t.Fatal(err)
	}
	_, err := s.kubernetes.CoreV1().Secrets(install.Namespace).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Name: "istio-ca-secret", Labels: map[string]string{install.OwnerLabel: install.Owner}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	policy := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
		"metadata": map[string]any{"name": "default"}, "spec": map[string]any{"mtls": map[string]any{"mode": "STRICT"}}}}
	policies := s.dynamic.Resource(schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}).Namespace("default")
	if _, err := policies.Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	removal, err := s.Uninstall(t.Context(), install.RemoveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kept := strings.Join(removal.Kept, "\n")
	for _, want := range []string{"peerauthentications.security.istio.io: resources", "the 14 other", "Secret istio-system/istio-ca-secret", "Namespace istio-system: it still holds Secret istio-ca-secret"} {
		if !strings.Contains(kept, want) {
			t.Errorf("kept is\n%s\nwithout %q", kept, want)
		}
	}
	if strings.Contains(kept, "selvage.io") {
		t.Errorf("what nobody but Selvage has use for is kept:\n%s", kept)
	}
	if _, err := policies.Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
		t.Errorf("the user's policy is gone: %v", err)
	}
	hooks, err := s.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(hooks.Items) != 0 {
		t.Errorf("%d webhook configurations are left (error %v)", len(hooks.Items), err)
	}
}

// TestRevisionsDoNotTouchOneAnother: one goes, the other stays whole, with what both share.
func TestRevisionsDoNotTouchOneAnother(t *testing.T) {
	s := connect(t)
	t.Cleanup(func() { s.purge(t, ""); s.purge(t, "asm-1234-1") })
	for _, revision := range []string{"", "asm-1234-1"} {
		if err := s.Apply(t.Context(), outside(revision)); err != nil {
			t.Fatal(err)
		}
	}
	s.defaultValidator(t, "", "istiod") // an Istio's that has followed the default tag
	removal := s.purge(t, "")
	if len(removal.Kept) != 1 || !strings.Contains(removal.Kept[0], "asm-1234-1") {
		t.Errorf("kept: %v; want what revision asm-1234-1 shares", removal.Kept)
	}
	if !slices.Contains(removal.Removed, "ValidatingWebhookConfiguration "+revision.DefaultValidator) {
		t.Errorf("a validator of objects that name no revision is left, calls what is gone, and refuses their writes: %v", removal.Removed)
	}
	changes, err := s.Plan(t.Context(), outside("asm-1234-1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if c.Action != install.Unchanged {
			t.Errorf("%s: %s; want unchanged", c.Object, c.Action)
		}
	}
	if err := s.Apply(t.Context(), outside("")); err != nil {
		t.Fatal(err)
	}
	s.defaultValidator(t, "asm-1234-1", "istiod-asm-1234-1")
	s.purge(t, "asm-1234-1")
	got, err := s.kubernetes.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), revision.DefaultValidator, metav1.GetOptions{})
	if err != nil || got.Webhooks[0].ClientConfig.Service.Name != "istiod" || got.Labels["istio.io/rev"] != "default" {
		t.Errorf("the validator of objects that name no revision calls %v (error %v), want the revision that stays", got.Webhooks, err)
	}
}

// defaultValidator makes what Istio has for objects that name no revision, until the test ends.
func (s *server) defaultValidator(t *testing.T, rev, service string) {
	t.Helper()
	none, path := admissionv1.SideEffectClassNone, "/validate"
	c := &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: revision.DefaultValidator, Labels: map[string]string{"app": "istiod", "app.kubernetes.io/managed-by": "Helm", "istio.io/rev": cmp.Or(rev, "default")}},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "validation.istio.io", SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: install.Namespace, Name: service, Path: &path}},
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule: admissionv1.Rule{APIGroups: []string{"networking.istio.io"}, APIVersions: []string{"*"}, Resources: []string{"*"}}}},
		}},
	}
	hooks := s.kubernetes.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	if _, err := hooks.Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hooks.Delete(context.Background(), c.Name, metav1.DeleteOptions{}) })
}

// TestInstallingAgainKeepsTheBundle that the control plane's own field manager has written, and takes back what others changed.
func TestInstallingAgainKeepsTheBundle(t *testing.T) {
	s := connect(t)
	t.Cleanup(func() { s.purge(t, "") })
	if err := s.Apply(t.Context(), outside("")); err != nil {
		t.Fatal(err)
	}
	hooks := s.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations()
	// A real certificate: the API server parses bundles.
	bundle := s.config.TLSClientConfig.CAData
	if len(bundle) == 0 {
		var err error
		if bundle, err = os.ReadFile(s.config.TLSClientConfig.CAFile); err != nil {
			t.Fatal(err)
		}
	}
	before, err := hooks.Get(t.Context(), "istio-sidecar-injector", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var entries []string
	for _, w := range before.Webhooks {
		entries = append(entries, fmt.Sprintf("- name: %s\n  clientConfig: {caBundle: %s}\n", w.Name, base64.StdEncoding.EncodeToString(bundle)))
	}
	patch := "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: istio-sidecar-injector}\nwebhooks:\n" + strings.Join(entries, "")
	if _, err := hooks.Patch(t.Context(), "istio-sidecar-injector", types.ApplyYAMLPatchType, []byte(patch), metav1.PatchOptions{FieldManager: "selvage-ca-bundle"}); err != nil {
		t.Fatal(err)
	}
	// Somebody weakens the first entry.
	weak := `[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}]`
	if _, err := hooks.Patch(t.Context(), "istio-sidecar-injector", types.JSONPatchType, []byte(weak), metav1.PatchOptions{FieldManager: "somebody"}); err != nil {
		t.Fatal(err)
	}
	change := s.planned(t, "MutatingWebhookConfiguration istio-sidecar-injector")
	if got := fmt.Sprint(change.Fields, change.Conflicts); change.Action != install.Configured || !strings.Contains(got, `.failurePolicy: "Ignore" -> "Fail"] [.webhooks[name=`) ||
		!strings.Contains(got, `conflict with "somebody" using`) || len(change.Fields) != 1 {
		t.Errorf("the plan is %s %s; want failurePolicy, and who has set it", change.Action, got)
	}
	if err := s.Apply(t.Context(), outside("")); err != nil {
		t.Fatal(err)
	}
	after, err := hooks.Get(t.Context(), "istio-sidecar-injector", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range after.Webhooks {
		if string(w.ClientConfig.CABundle) != string(bundle) {
			t.Errorf("%s: the bundle is %q", w.Name, w.ClientConfig.CABundle)
		}
		if *w.FailurePolicy != admissionv1.Fail {
			t.Errorf("%s: failurePolicy is %s", w.Name, *w.FailurePolicy)
		}
	}
}

// planned is what another installation would do to one object.
func (s *server) planned(t *testing.T, object string) install.Change {
	t.Helper()
	changes, err := s.Plan(t.Context(), outside(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if c.Object == object {
			return c
		}
	}
	t.Fatalf("the plan has no %s", object)
	return install.Change{}
}

// TestAnEditedMeshConfigurationStays: installing again, as an upgrade does, does not throw a user's settings away.
func TestAnEditedMeshConfigurationStays(t *testing.T) {
	s := connect(t)
	t.Cleanup(func() { s.purge(t, "") })
	if err := s.Apply(t.Context(), outside("")); err != nil {
		t.Fatal(err)
	}
	maps := s.kubernetes.CoreV1().ConfigMaps(install.Namespace)
	edited, err := maps.Get(t.Context(), "istio", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	edited.Data["mesh"] += "accessLogFile: /dev/stdout\n"
	if _, err := maps.Update(t.Context(), edited, metav1.UpdateOptions{FieldManager: "kubectl-edit"}); err != nil {
		t.Fatal(err)
	}
	if c := s.planned(t, "ConfigMap istio-system/istio"); c.Action != install.Unchanged || !c.Kept || !strings.Contains(fmt.Sprint(c.Conflicts), `.data.mesh (conflict with "kubectl-edit"`) {
		t.Errorf("the plan is %+v; want that the edited configuration stays", c)
	}
	if err := s.Apply(t.Context(), outside("")); err != nil {
		t.Fatal(err)
	}
	if after, err := maps.Get(t.Context(), "istio", metav1.GetOptions{}); err != nil || after.Data["mesh"] != edited.Data["mesh"] {
		t.Errorf("the edited configuration is gone (error %v): %v", err, after.Data)
	}
	o := outside("")
	o.MeshConfig = []byte("accessLogFile: /dev/stderr\n")
	if err := s.Apply(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if after, err := maps.Get(t.Context(), "istio", metav1.GetOptions{}); err != nil || !strings.Contains(after.Data["mesh"], "/dev/stderr") {
		t.Errorf("a configuration that was given does not win (error %v): %v", err, after.Data)
	}
}

// TestWithoutTheRightNothingIsChanged: a user who may read but not write is told which verbs and kinds are missing.
func TestWithoutTheRightNothingIsChanged(t *testing.T) {
	s := connect(t)
	s.purge(t, "")
	before := s.everything(t)
	config := rest.CopyConfig(s.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:kube-system:generic-garbage-collector",
		Groups: []string{"system:serviceaccounts", "system:authenticated"}} // may get and list everything
	reader, err := install.New(install.Config{Kubernetes: kubernetes.NewForConfigOrDie(config), Dynamic: dynamic.NewForConfigOrDie(config), Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = reader.Install(t.Context(), outside(""))
	if err == nil || !strings.Contains(err.Error(), ", mutatingwebhookconfigurations.admissionregistration.k8s.io, validatingwebhookconfigurations.admissionregistration.k8s.io; nor create ") {
		t.Errorf("error %v; want one that names the verb and the kind", err)
	}
	if after := s.everything(t); !slices.Equal(before, after) {
		t.Errorf("the cluster has changed:\n%s", strings.Join(after, "\n"))
	}
}

// TestWhoMayNothingIsToldAllOfIt: a user who may not even read gets one list of all that is missing, not the first of it.
func TestWhoMayNothingIsToldAllOfIt(t *testing.T) {
	s := connect(t)
	config := rest.CopyConfig(s.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "jane", Groups: []string{"system:authenticated"}}
	jane, err := install.New(install.Config{Kubernetes: kubernetes.NewForConfigOrDie(config), Dynamic: dynamic.NewForConfigOrDie(config), Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = jane.Install(t.Context(), outside(""))
	var denied *install.DeniedError
	if !errors.As(err, &denied) {
		t.Fatalf("error %v; want one that lists rights", err)
	}
	for _, want := range []string{"get, create and patch namespaces, ", " mutatingwebhookconfigurations.admissionregistration.k8s.io, validatingwebhookconfigurations.admissionregistration.k8s.io; nor get, create and patch ",
		" services, ", " in namespace istio-system. Use a kubeconfig context"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

// TestProbeSaysWhyPodsGetNoSidecar: nobody listens where the webhook leads.
func TestProbeSaysWhyPodsGetNoSidecar(t *testing.T) {
	s := connect(t)
	t.Cleanup(func() { s.purge(t, "") })
	o := outside("")
	o.Endpoint, o.WebhookURL = nil, "https://127.0.0.1:1"
	quick, err := install.New(install.Config{Kubernetes: s.kubernetes, Dynamic: s.dynamic, Progress: t.Output(), Timeout: 3 * time.Second, Poll: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	verdict, err := quick.Install(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if verdict.Injects || !strings.Contains(verdict.Detail, "nothing listens where the webhook leads") {
		t.Errorf("verdict %+v; want the refused connection", verdict)
	}
}

// TestTheControlPlaneKeepsFailurePolicy: the first installation renders Ignore; what the control plane has made of it since stays
// through another installation, also when that changes something else of the object, and for an entry that it never touched.
func TestTheControlPlaneKeepsFailurePolicy(t *testing.T) {
	s := connect(t)
	s.purge(t, "")
	t.Cleanup(func() { s.purge(t, "") })
	hooks := s.kubernetes.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	const name = "istio-validator-istio-system"
	want := func(first, second admissionv1.FailurePolicyType) {
		t.Helper()
		c, err := hooks.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if *c.Webhooks[0].FailurePolicy != first || *c.Webhooks[1].FailurePolicy != second {
			t.Errorf("failurePolicy is %s and %s, want %s and %s", *c.Webhooks[0].FailurePolicy, *c.Webhooks[1].FailurePolicy, first, second)
		}
	}
	if err := s.Apply(t.Context(), whole()); err != nil {
		t.Fatal(err)
	}
	want(admissionv1.Ignore, admissionv1.Ignore)
	patch := `{"webhooks":[{"name":"rev.validation.istio.io","failurePolicy":"Fail"}]}`
	if _, err := hooks.Patch(t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "selvage-ca-bundle"}); err != nil {
		t.Fatal(err)
	}
	changes, err := s.Plan(t.Context(), whole())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(changes, func(c install.Change) bool {
		return c.Object == "ValidatingWebhookConfiguration "+name && c.Action == install.Unchanged
	}) {
		t.Errorf("the same again changes something: %v", changes)
	}
	if err := s.Apply(t.Context(), whole()); err != nil {
		t.Fatal(err)
	}
	want(admissionv1.Fail, admissionv1.Ignore)
	other := whole()
	other.Endpoint, other.WebhookURL = nil, "https://127.0.0.1:15017"
	if err := s.Apply(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	want(admissionv1.Fail, admissionv1.Ignore)
}
