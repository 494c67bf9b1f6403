package install_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/policy"
)

func render(t *testing.T, o install.Options) []*unstructured.Unstructured {
	t.Helper()
	objects, err := install.Render(o)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestRenderingIsDeterministic(t *testing.T) {
	a, err := install.YAML(render(t, install.Default("1.0.0")))
	if err != nil {
		t.Fatal(err)
	}
	b, err := install.YAML(render(t, install.Default("1.0.0")))
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("two renderings differ (error %v)", err)
	}
}

// TestEveryObjectSaysWhoseItIs: uninstall finds objects by their labels, and the revision's label on a namespace would ask for
// injection into it.
func TestEveryObjectSaysWhoseItIs(t *testing.T) {
	o := install.Default("1.0.0")
	o.Revision = "canary"
	for _, u := range render(t, o) {
		if u.GetLabels()[install.OwnerLabel] != install.Owner {
			t.Errorf("%s %s has no owner label", u.GetKind(), u.GetName())
		}
		revision, has := u.GetLabels()["istio.io/rev"]
		isShared := u.GetKind() == "Namespace" || u.GetKind() == "CustomResourceDefinition" || strings.HasPrefix(u.GetName(), "selvage-") && !strings.HasSuffix(u.GetName(), "-canary")
		if has == isShared || has && revision != "canary" {
			t.Errorf("%s %s: label istio.io/rev is %q", u.GetKind(), u.GetName(), revision)
		}
		if has && !strings.Contains(u.GetName(), "canary") {
			t.Errorf("%s %s belongs to a revision but its name does not say which", u.GetKind(), u.GetName())
		}
	}
}

// TestNothingNeedsWhatComesLater: what others refer to is applied first, and webhooks, which make pods wait, last.
func TestNothingNeedsWhatComesLater(t *testing.T) {
	objects := render(t, install.Default("1.0.0"))
	at := func(kind string) int {
		n := slices.IndexFunc(objects, func(u *unstructured.Unstructured) bool { return u.GetKind() == kind })
		if n < 0 {
			t.Fatalf("there is no %s", kind)
		}
		return n
	}
	order := []string{"Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap", "Service", "Deployment", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}
	for n := 1; n < len(order); n++ {
		if at(order[n-1]) > at(order[n]) {
			t.Errorf("%s comes before %s", order[n], order[n-1])
		}
	}
	if last := objects[len(objects)-1].GetKind(); last != "ValidatingWebhookConfiguration" {
		t.Errorf("the last object is a %s", last)
	}
}

// TestInstallNeverOwnsTheBundle: a caBundle among the applied fields would be wiped or fought over with every installation.
func TestInstallNeverOwnsTheBundle(t *testing.T) {
	for _, u := range render(t, install.Default("1.0.0")) {
		if u.GetKind() == "CustomResourceDefinition" {
			continue // which says that a parameter may have the field
		}
		out, err := json.Marshal(u)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(out, []byte(`"caBundle"`)) {
			t.Errorf("%s %s sets caBundle", u.GetKind(), u.GetName())
		}
	}
}

// TestEveryEntryIsHeld: a webhook that the policy does not know by its name would be held by nobody.
func TestEveryEntryIsHeld(t *testing.T) {
	o := install.Default("1.0.0")
	o.EnableNamespacesByDefault, o.Tags = true, []string{"prod"}
	seen := map[string]bool{}
	for _, u := range render(t, o) {
		hooks, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
		for _, h := range hooks {
			name, _, _ := unstructured.NestedString(h.(map[string]any), "name")
			seen[name] = true
			if !slices.Contains(policy.Entries(), name) {
				t.Errorf("%s %s: entry %s is not among those that the policy holds", u.GetKind(), u.GetName(), name)
			}
		}
	}
	for _, name := range policy.Entries() {
		if !seen[name] {
			t.Errorf("the policy holds %s, which no installation has", name)
		}
	}
}

func TestRightsAreNamedOneByOne(t *testing.T) {
	for _, u := range render(t, install.Default("1.0.0")) {
		if u.GetKind() != "ClusterRole" && u.GetKind() != "Role" {
			continue
		}
		out, err := json.Marshal(u.Object["rules"])
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(out, []byte(`"*"`)) {
			t.Errorf("%s %s has a wildcard: %s", u.GetKind(), u.GetName(), out)
		}
		if u.GetKind() == "ClusterRole" && bytes.Contains(out, []byte(`"secrets"`)) {
			t.Errorf("%s %s may touch secrets of every namespace", u.GetKind(), u.GetName())
		}
	}
}

// TestPodsAreCreatedAsDryRunsOnly: nobody narrows the right to create pods but the policy, so it is given in the one namespace that the
// policy watches, and after it. The right to restart workloads is given to nobody.
func TestPodsAreCreatedAsDryRunsOnly(t *testing.T) {
	guarded := false
	for _, u := range render(t, install.Default("1.0.0")) {
		out, err := json.Marshal(u.Object)
		if err != nil {
			t.Fatal(err)
		}
		creates := regexp.MustCompile(`"resources":\["pods"\],"verbs":\["create"\]`).Match(out)
		switch {
		case u.GetKind() == "ValidatingAdmissionPolicy":
			guarded = guarded || bytes.Contains(out, []byte(`"kubernetes.io/metadata.name":"selvage-probe"`)) && bytes.Contains(out, []byte(`"expression":"has(request.dryRun) \u0026\u0026 request.dryRun"`))
		case creates && (u.GetKind() != "Role" || u.GetNamespace() != "selvage-probe" || !guarded):
			t.Errorf("%s %s/%s lets the control plane create pods (policy before it: %t)", u.GetKind(), u.GetNamespace(), u.GetName(), guarded)
		case u.GetKind() == "ClusterRoleBinding" && bytes.Contains(out, []byte("selvage-restarter")), u.GetKind() == "RoleBinding" && bytes.Contains(out, []byte("selvage-restarter")):
			t.Errorf("%s %s lets the control plane change workloads", u.GetKind(), u.GetName())
		}
	}
	if !guarded {
		t.Error("there is no policy, or it guards something else")
	}
}

func TestEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":                        "192.0.2.7 15012 15017 15014",
		"192.0.2.7:xds=1,webhook=2,http=3": "192.0.2.7 1 2 3",
		"192.0.2.7:http=3":                 "192.0.2.7 15012 15017 3",
		"2001:db8::7":                      "2001:db8::7 15012 15017 15014",
		"[2001:db8::7]:xds=1":              "2001:db8::7 1 15017 15014",
		"127.0.0.1":                        "--webhook-url https://127.0.0.1:15017",
		"::1":                              "--webhook-url https://[::1]:15017",
		"169.254.1.1":                      "refuses",
		"localhost":                        "is not an IP address",
		"192.0.2.7:8080":                   "is not NAME=PORT",
		"192.0.2.7:xds=0":                  "is not NAME=PORT",
		"192.0.2.7:xds=70000":              "is not NAME=PORT",
		"192.0.2.7:grpc=1":                 "there is no port",
		"[2001:db8::7":                     "bracket",
		"":                                 "is not an IP address",
	} {
		e, err := install.ParseEndpoint(in)
		var got string
		if err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprintf("%s %d %d %d", e.Address, e.XDS, e.Webhook, e.HTTP)
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s; want %s", in, got, want)
		}
	}
}

func TestOptionsThatCannotWork(t *testing.T) {
	for name, change := range map[string]func(*install.Options){
		"revision \"Canary\"":            func(o *install.Options) { o.Revision = "Canary" },
		"revision \"a.b\"":               func(o *install.Options) { o.Revision = "a.b" },
		"revision \"1":                   func(o *install.Options) { o.Revision = strings.Repeat("1", 60) },
		"image":                          func(o *install.Options) { o.Image = "bad image" },
		"replicas is 0":                  func(o *install.Options) { o.Replicas = 0 },
		"webhook URL \"http:":            func(o *install.Options) { o.WebhookURL = "http://127.0.0.1:1" },
		"webhook URL \"https:":           func(o *install.Options) { o.WebhookURL = "https://127.0.0.1:1/inject" },
		"status address \"127.0.0.1:1\"": func(o *install.Options) { o.StatusAddress = "127.0.0.1:1" },
		"cluster's id":                   func(o *install.Options) { o.ClusterID = "" },
		"tag \"Prod\"":                   func(o *install.Options) { o.Tags = []string{"Prod"} },
		"tag \"canary\"":                 func(o *install.Options) { o.Revision, o.Tags = "canary", []string{"canary"} },
		"--set-default":                  func(o *install.Options) { o.Revision, o.EnableNamespacesByDefault = "canary", true },
		"mesh configuration":             func(o *install.Options) { o.MeshConfig = []byte("a: [") },
	} {
		o := install.Default("1.0.0")
		change(&o)
		if _, err := install.Render(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v; want one about %s", err, name)
		}
	}
}

func TestTrustDomainComesFromTheMeshConfiguration(t *testing.T) {
	o := install.Default("1.0.0")
	o.MeshConfig = []byte("trustDomain: example.org\n")
	for _, u := range render(t, o) {
		out, err := json.Marshal(u.Object)
		if err != nil {
			t.Fatal(err)
		}
		if u.GetKind() == "Deployment" && !bytes.Contains(out, []byte("--trust-domain=example.org")) {
			t.Errorf("the control plane is not told of the mesh's trust domain: %s", out)
		}
	}
}

// field reads a field of the object of one kind and name; it fails the test when there is no such object.
func field(t *testing.T, objects []*unstructured.Unstructured, kind, name string, path ...string) string {
	t.Helper()
	for _, u := range objects {
		if u.GetKind() != kind || u.GetName() != name {
			continue
		}
		value, _, err := unstructured.NestedFieldNoCopy(u.Object, path...)
		if err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	t.Fatalf("there is no %s %s", kind, name)
	return ""
}

// TestARevisionHasNamesOfItsOwn: the names are those that people's runbooks for Istio use.
func TestARevisionHasNamesOfItsOwn(t *testing.T) {
	o := install.Default("1.0.0").WithImages("registry.example.com/mesh/", "1.2.3")
	o.Revision, o.Replicas = "asm-1234-1", 3
	objects := render(t, o)
	for _, c := range []struct {
		kind, name string
		path       []string
		want       string
	}{
		{"Deployment", "istiod-asm-1234-1", []string{"spec", "replicas"}, "3"},
		{"Deployment", "istiod-asm-1234-1", []string{"spec", "template", "spec", "containers"}, `"image":"registry.example.com/mesh/selvaged:1.2.3"`},
		{"Deployment", "istiod-asm-1234-1", []string{"spec", "template", "spec", "containers"}, `"--revision=asm-1234-1"`},
		{"Service", "istiod-asm-1234-1", []string{"spec", "selector"}, `{"app":"istiod","istio.io/rev":"asm-1234-1"}`},
		{"ConfigMap", "istio-asm-1234-1", []string{"data", "mesh"}, "istiod-asm-1234-1.istio-system.svc:15012"},
		{"ConfigMap", "istio-sidecar-injector-asm-1234-1", []string{"data", "values"}, `\"hub\": \"registry.example.com/mesh\"`},
		{"MutatingWebhookConfiguration", "istio-sidecar-injector-asm-1234-1", []string{"webhooks"}, `"name":"istiod-asm-1234-1"`},
		{"ClusterRole", "istiod-clusterrole-asm-1234-1-istio-system", nil, "peerauthentications"},
		{"ServiceAccount", "istiod-asm-1234-1", nil, "asm-1234-1"},
		{"ServiceAccount", "selvage-reader", nil, "selvage-reader"},
	} {
		if got := field(t, objects, c.kind, c.name, c.path...); !strings.Contains(got, c.want) {
			t.Errorf("%s %s %v is %s; want %s in it", c.kind, c.name, c.path, got, c.want)
		}
	}
	if hooks := field(t, objects, "MutatingWebhookConfiguration", "istio-sidecar-injector-asm-1234-1", "webhooks"); strings.Contains(hooks, `"istio-injection","operator":"In"`) {
		t.Error("a revision that is not the default one answers to istio-injection=enabled")
	}
}

// TestADefaultThatIsATag: the labels that name no revision lead to this one by the configuration of the default tag.
func TestADefaultThatIsATag(t *testing.T) {
	o := install.Default("1.0.0")
	o.Revision, o.Tags, o.EnableNamespacesByDefault = "canary", []string{"default", "prod"}, true
	objects := render(t, o)
	for _, c := range []struct{ name, path, want string }{
		{"istio-revision-tag-default", "webhooks", `"key":"istio-injection","operator":"In","values":["enabled"]`},
		{"istio-revision-tag-default", "webhooks", `"name":"auto.sidecar-injector.istio.io"`},
		{"istio-revision-tag-default", "webhooks", `"name":"istiod-canary"`},
		{"istio-revision-tag-default", "metadata", `"istio.io/rev":"canary","istio.io/tag":"default"`},
		{"istio-revision-tag-prod", "webhooks", `"key":"istio.io/rev","operator":"In","values":["prod"]`},
		{"istio-sidecar-injector-canary", "webhooks", `"key":"istio.io/rev","operator":"In","values":["canary"]`},
	} {
		if got := field(t, objects, "MutatingWebhookConfiguration", c.name, c.path); !strings.Contains(got, c.want) {
			t.Errorf("%s %s is %s; want %s in it", c.name, c.path, got, c.want)
		}
	}
	if got := field(t, objects, "ConfigMap", "istio-sidecar-injector-canary", "data", "values"); !strings.Contains(got, `\"enableNamespacesByDefault\": true`) {
		t.Errorf("the values do not say it: %s", got)
	}
	for _, u := range objects[len(objects)-4:] { // pods wait for webhooks, so they come last
		if !strings.HasSuffix(u.GetKind(), "WebhookConfiguration") {
			t.Errorf("%s %s is among the last", u.GetKind(), u.GetName())
		}
	}
}

// TestOneDefault: two answers to the labels that name no revision would both be called.
func TestOneDefault(t *testing.T) {
	canary := install.Default("1.0.0")
	canary.Revision, canary.Tags = "canary", []string{"default"}
	plain := inject.Registration{Endpoint: inject.Endpoint{Namespace: "istio-system", Service: "istiod"}}.Configuration()
	tag := inject.Registration{Revision: "canary", Tag: "default", Endpoint: inject.Endpoint{Namespace: "istio-system", Service: "istiod-canary"}}.Configuration()
	off := plain.DeepCopy()
	for n := range off.Webhooks {
		off.Webhooks[n].NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"istio.io/deactivated": "never-match"}}
	}
	for name, c := range map[string]struct {
		options install.Options
		live    *admissionv1.MutatingWebhookConfiguration
		want    string
	}{
		"the default revision is there": {canary, plain, `istio-sidecar-injector makes revision "default" the default one already`},
		"the default tag is there":      {install.Default("1.0.0"), tag, `the tag "default" leads to revision canary (MutatingWebhookConfiguration istio-revision-tag-default)`},
		"a tag has taken it over": {install.Default("1.0.0"), func() *admissionv1.MutatingWebhookConfiguration {
			c := plain.DeepCopy()
			c.Labels["istio.io/rev"], c.Labels["istio.io/tag"] = "canary", "default"
			return c
		}(), `the tag "default" leads to revision canary`},
		"it is out of use": {canary, off, ""},
		"nothing is there": {canary, nil, ""},
	} {
		config := clients()
		if c.live != nil {
			config.Kubernetes = whoMayRead(c.live)
		}
		installer, err := install.New(config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = installer.Plan(t.Context(), c.options)
		if err == nil {
			t.Fatal("the fakes cannot let a plan through")
		}
		if told := strings.Contains(err.Error(), "MutatingWebhookConfiguration istio"); told != (c.want != "") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAControlPlaneOutsideTheCluster: a Service without a selector, the endpoints that it leads to, and nothing that runs.
func TestAControlPlaneOutsideTheCluster(t *testing.T) {
	o := install.Default("1.0.0")
	var err error
	if o.Endpoint, err = install.ParseEndpoint("192.0.2.7:xds=31012,webhook=31017"); err != nil {
		t.Fatal(err)
	}
	o.StatusAddress = "127.0.0.1:31014"
	objects := render(t, o)
	if at := field(t, objects, "Service", "istiod", "metadata", "annotations"); at != `{"selvage/status-address":"127.0.0.1:31014"}` {
		t.Errorf("the Service's annotations are %s", at)
	}
	for _, u := range objects {
		if u.GetKind() == "Deployment" || u.GetKind() == "PodDisruptionBudget" {
			t.Errorf("there is a %s", u.GetKind())
		}
	}
	if selector := field(t, objects, "Service", "istiod", "spec", "selector"); selector != "null" {
		t.Errorf("the Service selects %s", selector)
	}
	if ports := field(t, objects, "EndpointSlice", "istiod-external", "ports"); ports !=
		`[{"name":"tcp-xds-tls","port":31012,"protocol":"TCP"},{"name":"https-webhook","port":31017,"protocol":"TCP"},{"name":"http-monitoring","port":15014,"protocol":"TCP"}]` {
		t.Errorf("ports are %s", ports)
	}
	if owner := field(t, objects, "EndpointSlice", "istiod-external", "metadata", "labels", "kubernetes.io/service-name"); owner != `"istiod"` {
		t.Errorf("the endpoints belong to service %s", owner)
	}
}

// TestWebhookURL: on a machine with no address but loopback the API server calls the webhook by its URL.
func TestWebhookURL(t *testing.T) {
	o := install.Default("1.0.0")
	o.WebhookURL = "https://127.0.0.1:15017/"
	hooks := field(t, render(t, o), "MutatingWebhookConfiguration", "istio-sidecar-injector", "webhooks")
	if strings.Count(hooks, `"url":"https://127.0.0.1:15017/inject"`) != 4 || strings.Contains(hooks, `"service"`) {
		t.Errorf("webhooks: %s", hooks)
	}
}

// clients are fakes that hold objects; enough for what must happen before anything is changed.
func clients(objects ...runtime.Object) install.Config {
	scheme := runtime.NewScheme()
	return install.Config{Kubernetes: whoMayRead(), Dynamic: dynamicfake.NewSimpleDynamicClient(scheme, objects...), Progress: io.Discard}
}

// whoMayRead is a fake for a user who may read, and may not write.
func whoMayRead(objects ...runtime.Object) *fake.Clientset {
	c := fake.NewClientset(objects...)
	c.PrependReactor("create", "selfsubjectaccessreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		review := action.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
		review.Status.Allowed = review.Spec.ResourceAttributes.Verb == "get"
		return true, review, nil
	})
	return c
}

func foreign(apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetAPIVersion(apiVersion)
	u.SetKind(kind)
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

func TestInstallRefusesWhatBelongsToOthers(t *testing.T) {
	for name, c := range map[string]struct {
		objects []runtime.Object
		want    []string
		hint    string
	}{
		"a live Istio": {
			[]runtime.Object{foreign("v1", "Namespace", "", "istio-system"), foreign("apps/v1", "Deployment", "istio-system", "istiod"),
				foreign("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "", "istio-sidecar-injector")},
			[]string{"Deployment istio-system/istiod", "MutatingWebhookConfiguration istio-sidecar-injector"}, "--revision NAME",
		},
		"Istio's definitions": {
			[]runtime.Object{foreign("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "gateways.networking.istio.io")},
			[]string{"CustomResourceDefinition gateways.networking.istio.io"}, "--skip-crds",
		},
	} {
		config := clients(c.objects...)
		installer, err := install.New(config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = installer.Install(context.Background(), install.Default("1.0.0"))
		var refused *install.ForeignError
		if !errors.As(err, &refused) || !slices.Equal(refused.Objects, c.want) || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: error %v; want a refusal that names %v and says %s", name, err, c.want, c.hint)
		}
		for _, action := range config.Dynamic.(*dynamicfake.FakeDynamicClient).Actions() {
			if action.GetVerb() != "get" {
				t.Errorf("%s: before refusing it did %s %s", name, action.GetVerb(), action.GetResource().Resource)
			}
		}
	}
}

// TestWhatHoldsAPodBack: a person who waits is told why, in the terms of the pod.
func TestWhatHoldsAPodBack(t *testing.T) {
	waiting := func(reason string) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Image: "example.com/selvaged:1",
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}}}
	}
	for name, c := range map[string]struct {
		status corev1.PodStatus
		want   string
	}{
		"on its way": {waiting("ContainerCreating"), ""},
		"running":    {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}}, ""},
		"no image":   {waiting("ImagePullBackOff"), "cannot have its image example.com/selvaged:1: ImagePullBackOff (nothing is published yet: --registry"},
		"crashing":   {waiting("CrashLoopBackOff"), "waits: CrashLoopBackOff"},
		"ended": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2}}}}}, "ended with exit code 2"},
		"no room": {corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse,
			Message: "0/1 nodes are available: insufficient memory"}}}, "cannot be scheduled: 0/1 nodes"},
	} {
		if got := install.HeldBack(&corev1.Pod{Status: c.status}); !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s: %q; want %q", name, got, c.want)
		}
	}
}

// TestWhatHelmKeepsIsLeftToHelm: one line says so, and nothing is changed. An Istio that Helm has installed is somebody else's.
func TestWhatHelmKeepsIsLeftToHelm(t *testing.T) {
	deployment := foreign("apps/v1", "Deployment", "istio-system", "istiod")
	deployment.SetLabels(map[string]string{"selvage/owner": "selvage", "app.kubernetes.io/managed-by": "Helm"})
	deployment.SetAnnotations(map[string]string{"meta.helm.sh/release-name": "mesh", "meta.helm.sh/release-namespace": "istio-system"})
	istio := deployment.DeepCopy()
	istio.SetLabels(map[string]string{"app.kubernetes.io/managed-by": "Helm"})
	for want, object := range map[string]*unstructured.Unstructured{
		"Helm keeps this installation, as release mesh in namespace istio-system (Deployment istio-system/istiod among others): change it with `helm upgrade mesh CHART -n istio-system`": deployment,
		"these exist already and Selvage did not make them": istio,
	} {
		config := clients(object)
		installer, err := install.New(config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = installer.Install(t.Context(), install.Default("1.0.0"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v; want %s", err, want)
		}
		for _, action := range config.Dynamic.(*dynamicfake.FakeDynamicClient).Actions() {
			if action.GetVerb() != "get" {
				t.Errorf("it did %s %s", action.GetVerb(), action.GetResource().Resource)
			}
		}
	}
}
