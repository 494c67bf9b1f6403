//go:build istio

package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// TestIstiosConfigMap puts the settings of an installed Istio (ISTIO_MANIFEST, what `istioctl manifest generate` prints) in the place
// of a revision's own: its webhook injects by Istio's template, as `selvage inject -f` does. tools/acceptance.sh runs it; what
// `istioctl kube-inject` makes of the same pods is compared in package acceptance.
func TestIstiosConfigMap(t *testing.T) {
	l := atLevel(t, 1)
	const name = "from-istio"
	l.startRevision(t, name, func() { l.useManifest(t, name, os.Getenv("ISTIO_MANIFEST")) })
	l.offlineIsAsTheWebhook(t, name)
}

// useManifest puts Istio's ConfigMaps into a revision's.
func (l *lab) useManifest(t *testing.T, revision, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	maps, found := l.Client.CoreV1().ConfigMaps("istio-system"), 0
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var theirs corev1.ConfigMap
		if yaml.Unmarshal([]byte(doc), &theirs) != nil || theirs.Kind != "ConfigMap" || theirs.Name != "istio-sidecar-injector" && theirs.Name != "istio" {
			continue
		}
		found++
		ours, err := maps.Get(t.Context(), theirs.Name+"-"+revision, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ours.Data = theirs.Data
		if values := ours.Data["values"]; values != "" { // the manifest is of the default revision
			fields := map[string]any{}
			if err := json.Unmarshal([]byte(values), &fields); err != nil {
				t.Fatal(err)
			}
			fields["revision"] = revision
			text, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			ours.Data["values"] = string(text)
		}
		if _, err := maps.Update(t.Context(), ours, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if found != 2 {
		t.Fatalf("%s has %d of the ConfigMaps istio and istio-sidecar-injector", path, found)
	}
}
