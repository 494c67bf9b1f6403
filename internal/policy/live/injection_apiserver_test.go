//go:build apiserver

package live_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/webhook"
)

// number is on every pod of these tests, so that the webhook's calls can be told apart.
const number = "selvage-test/number"

// injectors is a mesh whose pods are injected by the policy and by a webhook of the product's that the test serves.
type injectors struct {
	*mesh
	inject    *inject.Config
	template  *policy.Template
	namespace string // of meshed pods
	plain     string // of others
	root      []byte // of the webhook

	mu     sync.Mutex
	called map[string]bool
	down   atomic.Bool
	// serving is what the webhook injects by.
	serving atomic.Pointer[inject.Config]
}

// newInjectors installs a revision with injection by policy, and writes its parameter.
func newInjectors(t *testing.T, config func(rev string) *inject.Config) *injectors {
	t.Helper()
	j := &injectors{called: map[string]bool{}}
	address, root := j.listen(t)
	j.mesh = newMesh(t, func(o *install.Options) {
		o.Injection, o.WebhookURL, o.Guards = install.ByPolicy, "https://"+address, nil
	})
	j.inject = config(j.rev)
	j.serving.Store(j.inject)
	j.root = root
	j.webhookTrusts()
	j.namespace = j.namespaceOf(map[string]string{"istio.io/rev": j.rev}).Name
	j.plain = j.namespaceOf(nil).Name
	return j
}

// webhookTrusts writes the test's root into the webhook.
func (j *injectors) webhookTrusts() {
	j.Helper()
	hooks := j.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	hook, err := hooks.Get(j.Context(), j.mutating(), metav1.GetOptions{})
	if err != nil {
		j.Fatal(err)
	}
	for i := range hook.Webhooks {
		hook.Webhooks[i].ClientConfig.CABundle = j.root
	}
	if _, err := hooks.Update(j.Context(), hook, metav1.UpdateOptions{}); err != nil {
		j.Fatal(err)
	}
}

// inForce writes the parameter and waits until the policy injects.
func (j *injectors) inForce() {
	j.Helper()
	j.give(true)
	j.eventually("the policy", func() string { // a second after it was made
		j.down.Store(true)
		defer j.down.Store(false)
		if _, err := j.create(j.namespace, simplePod()); err != nil {
			return err.Error()
		}
		return ""
	})
}

// give writes the policy's parameter, or takes the template out of it.
func (j *injectors) give(injection bool) {
	j.Helper()
	list, err := j.client.AdmissionregistrationV1().MutatingWebhookConfigurations().List(j.Context(), metav1.ListOptions{})
	if err != nil {
		j.Fatal(err)
	}
	spec := policy.Chosen(j.rev, list.Items, j.inject)
	spec["injection"] = nil
	if injection {
		template, problems := policy.NewTemplate(j.inject)
		if template == nil {
			j.Fatal(problems)
		}
		j.template = template
		spec["injection"] = template.Parameter()["injection"]
	}
	body, err := json.Marshal(map[string]any{"spec": spec})
	if err != nil {
		j.Fatal(err)
	}
	_, err = j.dynamic.Resource(policy.ParameterResource).Patch(j.Context(), policy.InjectionName(j.rev), types.MergePatchType, body, metav1.PatchOptions{})
	if err != nil {
		j.Fatal(err)
	}
}

// listen serves the webhook where the lab's API server reaches it.
func (j *injectors) listen(t *testing.T) (address string, root []byte) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(filepath.Dir(os.Getenv("SELVAGE_TEST_KUBECONFIG")), "lab.json"))
	if err != nil {
		t.Fatal(err)
	}
	var lab struct{ NetworkNamespace string }
	if err := json.Unmarshal(data, &lab); err != nil {
		t.Fatal(err)
	}
	handler, err := webhook.New(webhook.Config{Config: j.serving.Load, Revision: "any", Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	listener := loopbackOf(t, lab.NetworkNamespace)
	ca, err := pki.NewRoot("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ca.IssueServing([]string{"127.0.0.1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	of := regexp.MustCompile(`"` + number + `":"([^"]*)"`)
	server := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), TLSConfig: &tls.Config{Certificates: []tls.Certificate{*certificate}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || j.down.Load() && r.URL.Path != "/late" {
				http.Error(w, "down", http.StatusServiceUnavailable)
				return
			}
			if r.URL.Path == "/late" {
				addLate(w, body)
				return
			}
			if m := of.FindSubmatch(body); m != nil {
				j.mu.Lock()
				j.called[string(m[1])] = true
				j.mu.Unlock()
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			handler.ServeHTTP(w, r)
		})}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { _ = server.Close(); <-served })
	return listener.Addr().String(), ca.RootPEM()
}

// loopbackOf listens on the loopback of a lab's network, where its API server is.
func loopbackOf(t *testing.T, namespace string) (l net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if namespace != "" {
			fd, err := unix.Open("/run/netns/"+namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(fd, unix.CLONE_NEWNET)
			}
			if err != nil {
				done <- err
				return
			}
		}
		var err error
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("listen in the lab's network: %v", err)
	}
	return l
}

// calls gives the pods for which the webhook was called, and forgets them.
func (j *injectors) calls() map[string]bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := j.called
	j.called = map[string]bool{}
	return out
}

// create creates a pod as a dry run, and gives what would be stored but for what is made for each object.
func (j *injectors) create(namespace string, pod *corev1.Pod) (*corev1.Pod, error) {
	copied := pod.DeepCopy()
	copied.Namespace = namespace
	out, err := j.client.CoreV1().Pods(namespace).Create(j.Context(), copied, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return nil, err
	}
	out.UID, out.CreationTimestamp, out.ManagedFields, out.ResourceVersion = "", metav1.Time{}, nil, ""
	if out.GenerateName != "" {
		out.Name = ""
	}
	return out, nil
}

func simplePod() *corev1.Pod {
	no := false
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "simple"}, Spec: corev1.PodSpec{AutomountServiceAccountToken: &no, Containers: []corev1.Container{{Name: "a", Image: "a"}}}}
}

// TestInjectionEquality: the API server, the webhook and inject make the same of a pod.
func TestInjectionEquality(t *testing.T) {
	for _, c := range []struct{ name, mesh, config, values string }{
		{"as installed", "", "", "{}"},
		{"with settings of the operator's", "enablePrometheusMerge: false\ndefaultConfig: {concurrency: 2, statusPort: 16020, proxyMetadata: {MINE: $(POD_NAME)}}",
			"injectedAnnotations: {example.com/a: b, kubectl.kubernetes.io/default-container: x}\nneverInjectSelector: [{matchLabels: {never: here}}]",
			`{"global":{"imagePullSecrets":["pull","other"],"network":"n1","proxy":{"excludeIPRanges":"10.0.0.0/8","includeOutboundPorts":"99","excludeInboundPorts":"7","componentLogLevel":"misc:error",` +
				`"resources":{"requests":{"cpu":"10m"},"limits":null},"readinessInitialDelaySeconds":1,"startupProbe":{"enabled":false}}, "proxy_init":{"image":"example.com/init:1"}}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newInjectors(t, func(rev string) *inject.Config { return configOf(t, rev, c.mesh, c.config, c.values) })
			j.inForce()
			j.equal(append(generatedPods(pods), writtenPods(t)...))
		})
	}
}

// writtenPods are those of the manifests of the repository's end-to-end tests, and of the acceptance data where that is there.
func writtenPods(t *testing.T) (out []*corev1.Pod) {
	t.Helper()
	add := func(pod *corev1.Pod, from string) {
		no := false
		pod = pod.DeepCopy()
		pod.Namespace, pod.Spec.ServiceAccountName, pod.Spec.DeprecatedServiceAccount, pod.Spec.AutomountServiceAccountToken = "", "", "", &no
		if pod.Name == "" && pod.GenerateName == "" {
			pod.GenerateName = "written-"
		}
		pod.ResourceVersion, pod.UID, pod.Status = "", "", corev1.PodStatus{}
		out = append(out, withNumber(pod, fmt.Sprintf("%s.%d", strings.TrimSuffix(filepath.Base(from), filepath.Ext(from)), len(out))))
	}
	shapes, err := filepath.Glob("../../../e2e/testdata/shapes/*.yaml")
	if err != nil || len(shapes) == 0 {
		t.Fatalf("there are no shapes: %v", err)
	}
	for _, path := range shapes {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		workloads, err := (inject.StreamOptions{}).Workloads(data, func(string, []byte) {})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range workloads {
			add(w.Pod, path)
		}
	}
	cases, _ := filepath.Glob(filepath.Join(os.Getenv("ACCEPTANCE_DIR"), "inject/cases/*.json"))
	for _, path := range cases {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var c struct{ Parts []struct{ Pod *corev1.Pod } }
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, part := range c.Parts {
			if part.Pod != nil {
				add(part.Pod, path)
			}
		}
	}
	t.Logf("%d pods of manifests", len(out))
	return out
}

// configOf compiles documents for a revision.
func configOf(t *testing.T, rev, mesh, config, values string) *inject.Config {
	t.Helper()
	out, problems := inject.ParseConfig([]byte(mesh), []byte(config), []byte(`{"revision":"`+rev+`",`+values[1:]))
	if values == "{}" {
		out, problems = inject.ParseConfig([]byte(mesh), []byte(config), []byte(`{"revision":"`+rev+`"}`))
	}
	if out == nil {
		t.Fatal(problems)
	}
	return out
}

// pods are how many are generated.
const pods = 1000

// outcome is what became of one pod.
type outcome struct {
	pod *corev1.Pod
	err error
}

// equal creates the pods by the policy, by the webhook, and injected by inject, and compares.
func (j *injectors) equal(pods []*corev1.Pod) {
	j.Helper()
	j.calls()
	byPolicy := j.all(pods, j.namespace)
	left := j.calls()
	offline := make([]*corev1.Pod, len(pods)) // with what the API server fills in, as the webhook gets it
	plain := j.all(unlabelled(pods), j.plain)
	for i, pod := range pods {
		offline[i] = pod
		if plain[i].err != nil {
			continue
		}
		whole := pod.DeepCopy()
		whole.Namespace, whole.Spec = j.namespace, plain[i].pod.Spec
		if !inject.Decide(whole, j.inject).Inject {
			continue
		}
		if out, _, err := inject.Pod(whole, j.inject); err == nil {
			offline[i] = out
		}
	}
	byInject := j.all(offline, j.namespace)
	j.give(false)
	j.eventually("the webhook alone", func() string {
		if _, err := j.create(j.namespace, withNumber(simplePod(), "alone")); err != nil {
			return err.Error()
		}
		return map[bool]string{false: "the policy is still at work"}[j.calls()["alone"]]
	})
	byWebhook := j.all(pods, j.namespace)
	j.give(true)
	injected, refused := 0, 0
	for i, pod := range pods {
		who := "policy"
		whole := pod.DeepCopy()
		whole.Namespace = j.namespace
		if why := j.template.Left(pod); inject.Decide(whole, j.inject).Inject && (why != "") != left[pod.Labels[number]] {
			j.Errorf("pod %s: the webhook was called: %v; Left says %q\n%s", pod.Labels[number], left[pod.Labels[number]], why, asJSON(pod))
		}
		if left[pod.Labels[number]] {
			who = "webhook"
		} else if byPolicy[i].err == nil {
			injected++
		}
		if byWebhook[i].err != nil {
			refused++
			if byPolicy[i].err == nil {
				j.Errorf("pod %s: the webhook refuses, and the %s does not: %v", pod.Labels[number], who, byWebhook[i].err)
			}
			continue
		}
		if byPolicy[i].err != nil {
			j.Errorf("pod %s (%s): %v\n%s", pod.Labels[number], who, byPolicy[i].err, asJSON(pod))
			continue
		}
		if d := cmp.Diff(byWebhook[i].pod, byPolicy[i].pod); d != "" {
			j.Errorf("pod %s (%s) differs from the webhook's (-): %s\n%s", pod.Labels[number], who, d, asJSON(pod))
		}
		if byInject[i].err == nil && plain[i].err == nil {
			if d := cmp.Diff(byInject[i].pod, byPolicy[i].pod); d != "" {
				j.Errorf("pod %s (%s) differs from inject's (-): %s\n%s", pod.Labels[number], who, d, asJSON(pod))
			}
		}
	}
	j.Logf("%d pods: %d by the policy, %d left to the webhook, %d refused", len(pods), injected, len(left), refused)
}

func asJSON(pod *corev1.Pod) string {
	data, _ := json.Marshal(pod)
	return string(data)
}

func withNumber(pod *corev1.Pod, n string) *corev1.Pod {
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[number] = n
	return pod
}

// unlabelled are the pods without their wish for a sidecar.
func unlabelled(pods []*corev1.Pod) []*corev1.Pod {
	out := make([]*corev1.Pod, len(pods))
	for i, pod := range pods {
		out[i] = pod.DeepCopy()
		out[i].Labels, out[i].Annotations = nil, nil
	}
	return out
}

// all creates pods as dry runs, several at a time.
func (j *injectors) all(pods []*corev1.Pod, namespace string) []outcome {
	out := make([]outcome, len(pods))
	var next atomic.Int64
	var running sync.WaitGroup
	for range 6 {
		running.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(pods); i = int(next.Add(1)) - 1 {
				pod, err := j.create(namespace, pods[i])
				out[i] = outcome{pod, err}
			}
		})
	}
	running.Wait()
	return out
}

func generatedPods(n int) (pods []*corev1.Pod) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		pods = append(pods, withNumber(generatedPod(r), fmt.Sprint(i)))
	}
	return pods
}
