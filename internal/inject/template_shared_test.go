package inject_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// sharing are templates whose output says little of the pod, so that many pods get the same text: then what was read once is used for
// all of them. Each has containers that something later changes: probes, variables, a user, an order.
var sharing = map[string]string{
	"same": `
metadata: {labels: {team: a}, annotations: {who: all, prometheus.io/port: "9000"}}
spec:
  securityContext: {runAsNonRoot: true, sysctls: [{name: a, value: b}]}
  dnsConfig: {options: [{name: ndots, value: "2"}]}
  tolerations: [{key: a}]
  volumes: [{name: shared, emptyDir: {sizeLimit: 1Gi}}]
  initContainers:
  - {name: istio-init, image: a, args: [-u, "1337"], securityContext: {capabilities: {add: [NET_ADMIN]}}}
  - {name: first, image: b, restartPolicy: Always, startupProbe: {httpGet: {path: /s, port: 7000}}, lifecycle: {preStop: {httpGet: {path: /bye, port: 7000}}}}
  containers:
  - name: istio-proxy
    image: a
    args: [proxy, sidecar]
    env: [{name: A, value: b}, {name: ISTIO_META_CLUSTER_ID, value: Kubernetes}]
    securityContext: {runAsUser: 1337, capabilities: {drop: [ALL]}}
    resources: {limits: {cpu: "1"}}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - {name: helper, image: b, env: [{name: A, value: b}], ports: [{name: web, containerPort: 7001}], readinessProbe: {httpGet: {path: /h, port: web}}, livenessProbe: {tcpSocket: {port: 7001}}}
`,
	// Nothing is added to the variables of this one: a value that is set in them must not be set in what is kept.
	"quiet": `
metadata: {annotations: {prometheus.io/scrape: "false", sidecar.istio.io/rewriteAppHTTPProbers: "false"}}
spec: {containers: [{name: istio-proxy, image: a, env: [{name: ISTIO_META_CLUSTER_ID, value: none}, {name: ISTIO_META_NETWORK, value: none}]}]}
`,
	"application": "spec:\n  containers:\n  - name: c0\n    tty: true\n    env: [{name: FROM_TEMPLATE, value: yes!}]\n    livenessProbe: {tcpSocket: {port: 1234}}\n",
	"one":         `metadata: {annotations: {mine: {{ .ObjectMeta.Name | quote }}}}`,
}

// kept are pods as they were when they were made.
type kept struct {
	mu    sync.Mutex
	pods  []*corev1.Pod
	texts []string
}

func (k *kept) add(pod *corev1.Pod, text string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods, k.texts = append(k.pods, pod), append(k.texts, text)
}

// TestPodsShareNoOutput: what a template gave lately is kept, and it must never show. Many pods at once, of which some differ in what
// no template reads, get through one Config the very pod that each gets through a Config of its own; and nothing that comes after
// changes a pod that was made before.
func TestPodsShareNoOutput(t *testing.T) {
	texts := map[string]string{"sidecar": inject.ShippedTemplate("sidecar") + "# ours\n"}
	for name, text := range sharing {
		texts[name] = text
	}
	config, err := yaml.Marshal(map[string]any{"templates": texts, "defaultTemplates": []string{"same"}})
	if err != nil {
		t.Fatal(err)
	}
	const values = `{"global":{"network":"n1","imagePullSecrets":["pull"]}}`
	fresh := func() *inject.Config { return configFrom(t, "", string(config), values) }
	clusters := [][2]string{{"", ""}, {"east", ""}, {"west", "n2"}}
	shared, inClusters := fresh(), make([]*inject.Config, len(clusters))
	for i, c := range clusters {
		inClusters[i] = shared.ForCluster(c[0], c[1])
	}
	const seeds, most = 40, 8
	var running sync.WaitGroup
	var all kept
	turn := make(chan struct{}, most)
	for seed := range uint64(seeds) {
		running.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			r := rand.New(rand.NewPCG(seed, 4))
			base, cluster, own := annotated(r, generated(r)), r.IntN(len(clusters)), fresh()
			if base.Annotations == nil {
				base.Annotations = map[string]string{}
			}
			base.Annotations["inject.istio.io/templates"] = pick(r, "same", "quiet", "quiet", "same,application", "application,same", "sidecar", "sidecar,application", "one,same")
			type made struct{ what, pod string }
			var before []made
			for i, change := range []string{"", "name", "namespace", "label", "annotation", "env", "account", ""} {
				pod := base.DeepCopy()
				value := fmt.Sprintf("%s-%d-%d", change, seed, i)
				switch change {
				case "name":
					pod.Name, pod.GenerateName = value, ""
				case "namespace":
					pod.Namespace = value
				case "label":
					pod.Labels = map[string]string{"app": value}
				case "annotation":
					pod.Annotations["example.com/a"] = value
				case "env":
					pod.Spec.Containers[0].Env = append(slices.Clone(pod.Spec.Containers[0].Env), pod.Spec.Containers[0].Env...)
					pod.Spec.Containers[0].Image = value
				case "account":
					pod.Spec.ServiceAccountName = value
				}
				input := pod.DeepCopy()
				got, _, err := inject.Pod(pod, inClusters[cluster])
				want, _, err2 := inject.Pod(input, own.ForCluster(clusters[cluster][0], clusters[cluster][1]))
				if fmt.Sprint(err) != fmt.Sprint(err2) {
					t.Errorf("seed %d, other %s: the shared Config gives the error %v, one of its own %v", seed, change, err, err2)
				}
				if err != nil || err2 != nil {
					continue
				}
				text := string(asJSON(t, got))
				if own := string(asJSON(t, want)); text != own {
					t.Errorf("seed %d, other %s: a pod gets another one's: shared (+), own (-)\n%s", seed, change, cmp.Diff(want, got))
				}
				if change != "" && change != "env" && !strings.Contains(text, value) {
					t.Errorf("seed %d: %s is lost", seed, value)
				}
				before = append(before, made{change, text})
				all.add(got, text)
			}
			if n := len(before); n > 1 && before[0].pod != before[n-1].pod {
				t.Errorf("seed %d: the same pod gives\n%s\nand then\n%s", seed, before[0].pod, before[n-1].pod)
			}
		})
	}
	running.Wait()
	if n := len(all.pods); n < seeds*4 {
		t.Errorf("%d pods were injected: the generator makes too many bad ones", n)
	}
	for i, pod := range all.pods {
		if now := string(asJSON(t, pod)); now != all.texts[i] {
			t.Errorf("a pod changed after it was made: it is\n%s\nand was\n%s", now, all.texts[i])
		}
	}
}
