//go:build apiserver

package helm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// cluster is an API server without Istio or Selvage; it needs no node.
type cluster struct {
	*testing.T
	config *rest.Config
	client dynamic.Interface
	mapper meta.ResettableRESTMapper
}

func connect(t *testing.T) *cluster {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("SELVAGE_TEST_KUBECONFIG"))
	if err != nil {
		t.Fatalf("set SELVAGE_TEST_KUBECONFIG to the kubeconfig of an API server for tests, such as a lab's: %v", err)
	}
	config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	found := memory.NewMemCacheClient(discovery.NewDiscoveryClientForConfigOrDie(config))
	return &cluster{t, config, dynamic.NewForConfigOrDie(config), restmapper.NewDeferredDiscoveryRESTMapper(found)}
}

func (c *cluster) at(u *unstructured.Unstructured) dynamic.ResourceInterface {
	c.Helper()
	mapping, err := c.mapper.RESTMapping(u.GroupVersionKind().GroupKind(), u.GroupVersionKind().Version)
	if err != nil {
		c.Fatal(err)
	}
	if u.GetNamespace() == "" {
		return c.client.Resource(mapping.Resource)
	}
	return c.client.Resource(mapping.Resource).Namespace(u.GetNamespace())
}

// define applies the definition of the one kind that the templates use, from the chart's folder of definitions.
func (c *cluster) define() {
	c.Helper()
	loaded, err := loader.Load(chartDir)
	if err != nil {
		c.Fatal(err)
	}
	all := map[string]*unstructured.Unstructured{}
	for _, crd := range loaded.CRDObjects() {
		if err := add(all, string(crd.File.Data)); err != nil {
			c.Fatal(err)
		}
	}
	crd := all["CustomResourceDefinition /admissionparameters.selvage.io"]
	if _, err := c.at(crd).Apply(c.Context(), crd.GetName(), crd, metav1.ApplyOptions{FieldManager: "helm"}); err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	parameters := c.client.Resource(schema.GroupVersionResource{Group: "selvage.io", Version: "v1", Resource: "admissionparameters"})
	for { // no watch tells when every part of the API server knows a kind
		if _, err := parameters.List(ctx, metav1.ListOptions{}); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.Fatal("the API server does not serve the parameters' kind")
		}
	}
	c.mapper.Reset()
}

// release renders the chart as `helm install` and `helm upgrade` do, asking the API server what is there, and applies it as Helm 4 does:
// server-side, without force, under its label and annotations.
func (c *cluster) release(values string) map[string]*unstructured.Unstructured {
	c.Helper()
	objects, err := render(engine.New(c.config), values)
	if err != nil {
		c.Fatal(err)
	}
	first := func(u *unstructured.Unstructured) bool { return u.GetKind() == "Namespace" }
	for _, now := range []bool{true, false} {
		for _, u := range objects {
			if first(u) != now {
				continue
			}
			u.SetLabels(with(u.GetLabels(), "app.kubernetes.io/managed-by", "Helm"))
			u.SetAnnotations(with(with(u.GetAnnotations(), "meta.helm.sh/release-name", "mesh"), "meta.helm.sh/release-namespace", "istio-system"))
			if _, err := c.at(u).Apply(c.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: "helm"}); err != nil {
				c.Fatalf("apply %s as Helm does: %v", key(u), err)
			}
		}
	}
	return objects
}

func with(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// controlPlane writes what the control plane owns of a webhook configuration.
func (c *cluster) controlPlane(u *unstructured.Unstructured, policy string) {
	c.Helper()
	var entries []any
	for _, e := range u.Object["webhooks"].([]any) {
		entry := map[string]any{"name": e.(map[string]any)["name"], "clientConfig": map[string]any{"caBundle": base64.StdEncoding.EncodeToString(c.config.CAData)}}
		if policy != "" {
			entry["failurePolicy"] = policy
		}
		entries = append(entries, entry)
	}
	body, err := json.Marshal(map[string]any{"webhooks": entries})
	if err != nil {
		c.Fatal(err)
	}
	if _, err := c.at(u).Patch(c.Context(), u.GetName(), types.StrategicMergePatchType, body, metav1.PatchOptions{FieldManager: "selvage-ca-bundle"}); err != nil {
		c.Fatal(err)
	}
}

// keeps fails unless every entry has a bundle and the policy.
func (c *cluster) keeps(u *unstructured.Unstructured, policy string) {
	c.Helper()
	live, err := c.at(u).Get(c.Context(), u.GetName(), metav1.GetOptions{})
	if err != nil {
		c.Fatal(err)
	}
	for _, item := range live.Object["webhooks"].([]any) {
		e := item.(map[string]any)
		bundle, _, _ := unstructured.NestedString(e, "clientConfig", "caBundle")
		if bundle == "" || e["failurePolicy"] != policy {
			c.Errorf("%s, %s: failurePolicy is %v, the bundle has %d characters; want %s and a bundle", key(u), e["name"], e["failurePolicy"], len(bundle), policy)
		}
	}
}

// TestAnUpgradeLeavesAloneWhatTheControlPlaneOwns: bundles, and failurePolicy of validators, both ways; there is no conflict to force.
// What Helm has installed, `selvage install` and `uninstall` leave to Helm; what Helm's uninstallation leaves, they remove.
func TestAnUpgradeLeavesAloneWhatTheControlPlaneOwns(t *testing.T) {
	c := connect(t)
	namespace := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "istio-system"}}}
	if _, err := c.at(namespace).Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.at(namespace).Delete(context.Background(), namespace.GetName(), metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	c.define()
	objects := c.release("")
	injector, validator := objects["MutatingWebhookConfiguration /istio-sidecar-injector"], objects["ValidatingWebhookConfiguration /istio-validator-istio-system"]
	c.controlPlane(injector, "")
	c.controlPlane(validator, "Fail")
	for _, policy := range []string{"Fail", "Ignore"} {
		c.controlPlane(validator, policy)
		c.release("{replicas: 3, logLevel: debug}")
		c.keeps(injector, "Fail")
		c.keeps(validator, policy)
	}
	for _, args := range [][]string{{"install", "--wait=false", "--skip-crds"}, {"uninstall", "--purge"}} {
		if said, code := c.selvage(args...); code != 2 || !strings.Contains(said, "selvage: Helm keeps this installation, as release mesh in namespace istio-system") || !strings.Contains(said, "Nothing was changed") {
			t.Errorf("selvage %v: exit %d\n%s", args, code, said)
		}
	}
	for _, u := range objects {
		if err := c.at(u).Delete(t.Context(), u.GetName(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	lease := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": map[string]any{
		"name": "selvage-roots", "namespace": "istio-system", "labels": map[string]any{"app.kubernetes.io/managed-by": "selvage"}}}}
	if _, err := c.at(lease).Create(t.Context(), lease, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if said, code := c.selvage("uninstall", "--purge"); code != 0 {
		t.Errorf("selvage uninstall after Helm's: exit %d\n%s", code, said)
	}
	if left := c.ours(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func (c *cluster) selvage(args ...string) (said string, code int) {
	c.Helper()
	cmd := exec.CommandContext(c.Context(), "../../bin/selvage", append(args, "--kubeconfig", os.Getenv("SELVAGE_TEST_KUBECONFIG"))...)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		c.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// ours are all objects with a label of Selvage's.
func (c *cluster) ours() (names []string) {
	c.Helper()
	lists, err := discovery.NewDiscoveryClientForConfigOrDie(c.config).ServerPreferredResources()
	if err != nil {
		c.Fatal(err)
	}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			c.Fatal(err)
		}
		for _, r := range list.APIResources {
			for _, label := range []string{"selvage/owner=selvage", "app.kubernetes.io/managed-by=selvage"} {
				if !slices.Contains(r.Verbs, "list") {
					continue
				}
				found, err := c.client.Resource(gv.WithResource(r.Name)).List(c.Context(), metav1.ListOptions{LabelSelector: label})
				if err != nil {
					continue // served no more
				}
				for _, u := range found.Items {
					names = append(names, fmt.Sprintf("%s %s/%s", r.Kind, u.GetNamespace(), u.GetName()))
				}
			}
		}
	}
	return names
}
