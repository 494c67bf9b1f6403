package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// TestOfflineIsAsTheWebhook gives the pods of testdata/shapes to the webhook and, as the API server fills them in, to `selvage inject
// -f`: it stores the same. What was injected offline goes through the webhook too, which changes nothing of it.
func TestOfflineIsAsTheWebhook(t *testing.T) {
	l := atLevel(t, 1)
	l.offlineIsAsTheWebhook(t, "default")
}

func (l *lab) offlineIsAsTheWebhook(t *testing.T, revision string) {
	t.Helper()
	ns, plain := l.namespace(t, map[string]string{"istio.io/rev": revision}), l.namespace(t, nil)
	l.injects(t, ns, revision)
	var names []string
	var before []*corev1.Pod
	var stream bytes.Buffer
	for _, s := range readShapes(t) {
		state := s.want["state"]
		if pod := templateOf(t, s.path); pod != "" && !strings.HasPrefix(state, "refused") && s.name != "two-templates" {
			p := &corev1.Pod{}
			if err := yaml.UnmarshalStrict([]byte(pod), p); err != nil {
				t.Fatal(err)
			}
			p = l.tried(t, plain, p)
			p.TypeMeta, p.Namespace, p.Status = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, "", corev1.PodStatus{}
			names, before = append(names, s.name), append(before, p)
			if err := json.NewEncoder(&stream).Encode(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "pods.json")
	if err := os.WriteFile(file, stream.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := l.selvage(t, "inject", "-f", file, "-o", "json", "--revision", revision, "-n", ns)
	if code != 0 {
		t.Fatalf("selvage inject: exit %d\n%s", code, stderr)
	}
	decoder := json.NewDecoder(strings.NewReader(stdout))
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			offline := &corev1.Pod{}
			if err := decoder.Decode(offline); err != nil {
				t.Fatal(err)
			}
			want, got := l.tried(t, ns, before[i]), l.tried(t, ns, offline)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-by the webhook +by selvage inject:\n%s", diff)
			}
		})
	}
}

// tried is what the API server would store of a pod, without what differs each time.
func (l *lab) tried(t *testing.T, namespace string, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	no := false
	pod.Spec.AutomountServiceAccountToken = &no // its volume has another name each time
	stored, err := l.Client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	stored.UID, stored.CreationTimestamp, stored.ManagedFields = "", metav1.Time{}, nil
	return stored
}

// templateOf is the pod of a manifest's workload as a document of its own, "" where there is none.
func templateOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type template struct {
		Metadata map[string]any `json:"metadata"`
		Spec     map[string]any `json:"spec"`
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var object struct {
			Kind     string
			Metadata map[string]any
			Spec     map[string]any
		}
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatal(err)
		}
		if object.Kind == "Service" || object.Kind == "Secret" || object.Kind == "ConfigMap" {
			continue
		}
		pod := template{object.Metadata, object.Spec}
		at := object.Spec
		if job, is := at["jobTemplate"].(map[string]any); is {
			at, _ = job["spec"].(map[string]any)
		}
		if inner, is := at["template"].(map[string]any); is {
			pod.Metadata, _ = inner["metadata"].(map[string]any)
			pod.Spec, _ = inner["spec"].(map[string]any)
			pod.Metadata["name"] = object.Metadata["name"]
		}
		out, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": pod.Metadata, "spec": pod.Spec})
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	return ""
}
