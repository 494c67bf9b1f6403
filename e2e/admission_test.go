package e2e

import (
	"context"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// namespace makes a namespace with these labels and ends it with the test.
func (l *lab) namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	name := fmt.Sprintf("t%x", time.Now().UnixNano())
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := l.Client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Client.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	eventually(t, "the default service account of "+name, func(ctx context.Context) string {
		_, err := l.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return text(err)
	})
	return name
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// containers are the names of all containers of a pod that the API server admitted, the init containers first.
func containers(pod *corev1.Pod) (names []string) {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		names = append(names, c.Name)
	}
	return names
}

const pageCommand = `-o=jsonpath={.webhooks[0].clientConfig.caBundle}`

// TestCABundleComesBack runs the command of the page that this project began with, before and after the bundle is wiped.
func TestCABundleComesBack(t *testing.T) {
	l := atLevel(t, 1)
	read := func() string {
		return l.kubectl(t, "get", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "istio-sidecar-injector", pageCommand)
	}
	before := read()
	if before == "" {
		t.Fatal("the page's command prints nothing: the caBundle is empty")
	}
	webhooks := l.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	for _, wiped := range []string{`""`, `"bm90IGEgY2VydGlmaWNhdGU="`} {
		patch := fmt.Sprintf(`[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":%s},{"op":"replace","path":"/webhooks/3/clientConfig/caBundle","value":%s}]`, wiped, wiped)
		if wiped != `""` { // the API server itself refuses a bundle that is not PEM, so garbage is another root
			patch = strings.ReplaceAll(patch, wiped, fmt.Sprintf("%q", otherRoot(t)))
		}
		watch, err := webhooks.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=istio-sidecar-injector"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := webhooks.Patch(t.Context(), "istio-sidecar-injector", types.JSONPatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		deadline := time.After(time.Minute)
		for repaired := false; !repaired; {
			select {
			case <-watch.ResultChan():
				repaired = read() == before
			case <-deadline:
				t.Fatalf("after %s the bundle did not come back within a minute", wiped)
			}
		}
		watch.Stop()
		config, err := webhooks.Get(t.Context(), "istio-sidecar-injector", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range config.Webhooks {
			if block, _ := pem.Decode(w.ClientConfig.CABundle); block == nil {
				t.Errorf("entry %s has no certificate in its caBundle", w.Name)
			}
		}
	}
}

// otherRoot is a valid certificate of somebody else, as base64 of its PEM: the API server's own root.
func otherRoot(t *testing.T) string {
	t.Helper()
	l := atLevel(t, 1)
	return l.kubectl(t, "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}")
}

// TestRootIsInEveryNamespace makes a namespace and finds the mesh's root there, also after it was changed and deleted.
func TestRootIsInEveryNamespace(t *testing.T) {
	l := atLevel(t, 1)
	ns := l.namespace(t, nil)
	roots := l.Client.CoreV1().ConfigMaps(ns)
	var root string
	stands := func(ctx context.Context) string {
		cm, err := roots.Get(ctx, "istio-ca-root-cert", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if block, _ := pem.Decode([]byte(cm.Data["root-cert.pem"])); block == nil {
			return "root-cert.pem holds no certificate"
		}
		if root != "" && cm.Data["root-cert.pem"] != root {
			return "root-cert.pem is not the mesh's root"
		}
		root = cm.Data["root-cert.pem"]
		return ""
	}
	eventually(t, "the root in a new namespace", stands)
	if _, err := roots.Patch(t.Context(), "istio-ca-root-cert", types.MergePatchType, []byte(`{"data":{"root-cert.pem":"spoilt"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the root after it was spoilt", stands)
	if err := roots.Delete(t.Context(), "istio-ca-root-cert", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the root after it was deleted", stands)
}

// TestStatusAtLevel1 asks a control plane that runs outside the cluster, where the Service says it can be reached.
func TestStatusAtLevel1(t *testing.T) {
	l := atLevel(t, 1)
	stdout, stderr, code := l.selvage(t, "status")
	if code != 0 {
		t.Errorf("selvage status: exit %d, want 0\n%s%s", code, stdout, stderr)
	}
}

// TestInstallLeavesAForeignMeshAlone puts an object with one of our names, but not ours, where a revision would be installed.
func TestInstallLeavesAForeignMeshAlone(t *testing.T) {
	l := atLevel(t, 1)
	foreign := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-elsewhere"}, Data: map[string]string{"mesh": "{}"}}
	configMaps := l.Client.CoreV1().ConfigMaps("istio-system")
	if _, err := configMaps.Create(t.Context(), foreign, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = configMaps.Delete(context.Background(), foreign.Name, metav1.DeleteOptions{}) })
	stdout, stderr, code := l.selvage(t, "install", "--revision", "elsewhere")
	if code != 2 {
		t.Errorf("selvage install: exit %d, want 2\n%s%s", code, stdout, stderr)
	}
	if !strings.Contains(stderr, "istio-elsewhere") {
		t.Errorf("the message does not name the object that is in the way:\n%s", stderr)
	}
	_, err := l.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "istio-sidecar-injector-elsewhere", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("something was installed all the same: %v", err)
	}
}
