package inject_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4" // what the API server itself applies patches with
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/google/go-cmp/cmp"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/jsonscan"
)

// generated is a pod as people write them, of every shape that injection looks at.
func generated(r *rand.Rand) *corev1.Pod {
	pod := &corev1.Pod{}
	pod.Namespace = "shop"
	if r.IntN(2) == 0 {
		pod.Name = "web-1"
	} else {
		pod.GenerateName = "web-7c9-"
	}
	pod.Labels = someStrings(r, "app", "web", "version", "v1", "pod-template-hash", "7c9", "app.kubernetes.io/name", "web", "security.istio.io/tlsMode", "disabled", "sidecar.istio.io/inject", "true")
	pod.Annotations = someStrings(r, "prometheus.io/scrape", pick(r, "true", "false"), "prometheus.io/port", "9090", "a/b~c", "1",
		"prometheus_io_path", "/m", "prometheus.istio.io/scrape-targets", "8080,9100:/x", "k8s.v1.cni.cncf.io/networks", pick(r, "a", `[{"name":"b"}]`),
		"sidecar.istio.io/proxyCPU", "50m", "sidecar.istio.io/nativeSidecar", pick(r, "true", "false"), "sidecar.istio.io/status", "{}",
		"traffic.sidecar.istio.io/excludeInboundPorts", "22, 80", "sidecar.istio.io/rewriteAppHTTPProbers", pick(r, "true", "false"),
		"proxy.istio.io/config", "concurrency: 4\nholdApplicationUntilProxyStarts: true", "status.sidecar.istio.io/port", pick(r, "0", "15021", "8124"),
		"traffic.sidecar.istio.io/includeOutboundPorts", "9443", "traffic.sidecar.istio.io/excludeInterfaces", "eth1", "istio.io/reroute-virtual-interfaces", "docker0",
		"sidecar.istio.io/bootstrapOverride", "mine", "sidecar.istio.io/proxyImageType", pick(r, "distroless", "default"), "sidecar.istio.io/statsInclusionPrefixes", "dns.",
		"proxy.istio.io/overrides", pick(r, `{"containers":[{"name":"istio-proxy","args":["proxy","sidecar"],"env":[{"name":"MINE","value":"2"}]}]}`,
			`{"initContainers":[{"name":"istio-init","resources":{"limits":{"cpu":"7"}}}]}`),
		"sidecar.istio.io/userVolume", `{"extra":{"emptyDir":{}}}`, "kubectl.kubernetes.io/default-container", "c0")
	if r.IntN(3) == 0 {
		yes := true
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: pick(r, "apps/v1", "batch/v1"), Kind: pick(r, "ReplicaSet", "Job", "StatefulSet"), Name: "web-7c9", Controller: &yes}}
	}
	for i := range 1 + r.IntN(3) {
		pod.Spec.Containers = append(pod.Spec.Containers, generatedContainer(r, fmt.Sprintf("c%d", i)))
	}
	for i := range r.IntN(3) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, generatedContainer(r, fmt.Sprintf("i%d", i)))
	}
	if r.IntN(6) == 0 {
		delete(pod.Annotations, "sidecar.istio.io/status") // with it, the container would be an injector's
		users := usersContainer(r, inject.ProxyContainer)
		if r.IntN(2) == 0 {
			pod.Spec.Containers = slices.Insert(pod.Spec.Containers, r.IntN(len(pod.Spec.Containers)+1), users)
		} else {
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, users)
		}
	}
	if r.IntN(8) == 0 {
		pod.Spec.InitContainers = append([]corev1.Container{usersContainer(r, pick(r, inject.InitContainer, "istio-validation"))}, pod.Spec.InitContainers...)
	}
	for _, name := range []string{"data", "istio-token"} {
		if r.IntN(4) == 0 {
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		}
	}
	for _, name := range []string{"mine", "pull"} {
		if r.IntN(4) == 0 {
			pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
		}
	}
	return pod
}

func generatedContainer(r *rand.Rand, name string) corev1.Container {
	c := corev1.Container{Name: name, Image: "example.com/" + name}
	if r.IntN(2) == 0 {
		c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	}
	for _, p := range []**corev1.Probe{&c.ReadinessProbe, &c.LivenessProbe, &c.StartupProbe} {
		*p = generatedProbe(r)
	}
	if start, stop := generatedHook(r), generatedHook(r); start != nil || stop != nil {
		c.Lifecycle = &corev1.Lifecycle{PostStart: start, PreStop: stop}
	}
	return c
}

// usersContainer is what a user changes of a container that injection adds.
func usersContainer(r *rand.Rand, name string) corev1.Container {
	c := corev1.Container{Name: name, Image: pick(r, "auto", "", "example.com/mine:1"), ImagePullPolicy: pick(r, corev1.PullAlways, "")}
	if r.IntN(2) == 0 {
		c.Env = []corev1.EnvVar{{Name: "MINE", Value: "1"}}
	}
	if r.IntN(2) == 0 {
		user := pick(r, int64(0), 2000)
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: &user}
	}
	if r.IntN(3) == 0 {
		c.Resources.Limits = corev1.ResourceList{"cpu": resource.MustParse("1500m"), "example.com/gpu": resource.MustParse("1")}
	}
	if r.IntN(3) == 0 {
		c.Ports = []corev1.ContainerPort{{ContainerPort: 8443}}
	}
	if r.IntN(3) == 0 {
		c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}}}
	}
	return c
}

func generatedHook(r *rand.Rand) *corev1.LifecycleHandler {
	switch r.IntN(8) {
	case 0:
		return &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/hook", Port: pick(r, intstr.FromInt32(8080), intstr.FromString("http")), Scheme: pick[corev1.URIScheme](r, "", "HTTPS")}}
	case 1:
		return &corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9090)}}
	case 2:
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}
	}
	return nil
}

func generatedProbe(r *rand.Rand) *corev1.Probe {
	port := intstr.FromInt32(8080)
	if r.IntN(2) == 0 {
		port = intstr.FromString("http")
	}
	switch r.IntN(6) {
	case 0:
		return &corev1.Probe{TimeoutSeconds: 2, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/$(HOME)", Port: port, Scheme: pick[corev1.URIScheme](r, "", "HTTP", "HTTPS"), Host: pick(r, "", "localhost", "example.com")}}}
	case 1:
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}}
	case 2:
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 8080}}}
	case 3:
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
	}
	return nil
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// someStrings takes some of the pairs.
func someStrings(r *rand.Rand, pairs ...string) map[string]string {
	var out map[string]string
	for i := 0; i < len(pairs); i += 2 {
		if r.IntN(4) == 0 {
			if out == nil {
				out = map[string]string{}
			}
			out[pairs[i]] = pairs[i+1]
		}
	}
	return out
}

// generatedConfigs are configurations that differ in what injection looks at; change may change their `config` documents.
func generatedConfigs(t testing.TB, change func(testing.TB, string) string) []*inject.Config {
	return []*inject.Config{
		configFrom(t, "", change(t, ""), ""),
		configFrom(t, "", change(t, ""), `{"pilot":{"env":{"ENABLE_NATIVE_SIDECARS":false}},"global":{"imagePullSecrets":["pull"],"network":"n1"}}`),
		configFrom(t, "enablePrometheusMerge: false", change(t, "injectedAnnotations: {example.com/a: b}"), `{"revision":"canary","sidecarInjectorWebhook":{"rewriteAppHTTPProbe":false},"global":{"proxy":{"holdApplicationUntilProxyStarts":true}}}`),
		configFrom(t, "", change(t, ""), "").ForKubernetes(1, 28),
		servingConfig(t, "defaultConfig: {interceptionMode: TPROXY, statusPort: 16020, proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}}", change(t, ""), ""),
		servingConfig(t, "", change(t, ""), `{"pilot":{"cni":{"enabled":true,"provider":"multus"}},"global":{"proxy":{"privileged":true,"excludeIPRanges":"10.0.0.0/8"}}}`),
		servingConfig(t, "defaultConfig: {interceptionMode: NONE}", change(t, ""), ""),
		servingConfig(t, "", change(t, ""), `{"pilot":{"cni":{"enabled":true},"env":{"ENABLE_NATIVE_SIDECARS":false}},"global":{"proxy":{"statusPort":8123}}}`),
	}
}

// TestGeneratedPods holds for any pod: the input stays as it was; injecting the result again changes nothing; the patch, applied
// by the API server's library, gives the very pod that Pod gives; there is one sidecar, and one only.
func TestGeneratedPods(t *testing.T) {
	configs := append(generatedConfigs(t, asIs), generatedConfigs(t, asText)...)
	for seed := range uint64(600) {
		r := rand.New(rand.NewPCG(seed, 7))
		pod, cfg := generated(r), configs[r.IntN(len(configs))]
		checkPod(t, pod, cfg)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func checkPod(t *testing.T, pod *corev1.Pod, cfg *inject.Config) {
	t.Helper()
	before := pod.DeepCopy()
	out, _, err := inject.Pod(pod, cfg)
	if err != nil {
		t.Fatalf("inject: %v", err)
	}
	if !reflect.DeepEqual(before, pod) {
		t.Errorf("the input was changed:\n%s", cmp.Diff(before, pod))
	}
	again, _, err := inject.Pod(out, cfg)
	if err != nil || !reflect.DeepEqual(out, again) {
		t.Errorf("a second injection changed something (error %v):\n%s", err, cmp.Diff(out, again))
	}
	if v := inject.Decide(out, cfg); v.Inject || v.Reason != inject.AlreadyInjected {
		t.Errorf("the injected pod is to be injected: %+v", v)
	}
	if got, want := patched(t, pod, out), asJSON(t, out); !sameJSON(t, got, want) {
		t.Errorf("the patch gives another pod:\n%s", cmp.Diff(generic(t, want), generic(t, got)))
	}
	ops := inject.Patch(pod, out)
	if got, want := cfg.AppendPatch(nil, ops), asJSON(t, ops); !bytes.Equal(got, want) {
		t.Errorf("the patch is written as\n%s\nencoding/json writes\n%s", got, want)
	}
	var view, scanned inject.View
	if err := scanned.Scan(jsonscan.New(asJSON(t, pod))); err != nil {
		t.Error(err)
	}
	if err := json.Unmarshal(asJSON(t, pod), &view); err != nil {
		t.Error(err)
	} else if !reflect.DeepEqual(view, scanned) {
		t.Errorf("the pod is scanned as\n%s\nencoding/json gives\n%s", asJSON(t, scanned), asJSON(t, view))
	}
	if slim, ok := view.Pod(); ok == hasOurs(pod) {
		t.Errorf("the pod's View is enough: %t", ok)
	} else if !ok {
		// decoded whole
	} else if cfg.NeedsWhole(slim) {
		// decoded whole too
	} else if after, _, err := inject.Pod(slim, cfg); err != nil || !bytes.Equal(asJSON(t, inject.Patch(slim, after)), asJSON(t, inject.Patch(pod, out))) {
		t.Errorf("the pod's View gets another patch (error %v)", err)
	}
	sidecars := 0
	for _, c := range append(out.Spec.InitContainers[:len(out.Spec.InitContainers):len(out.Spec.InitContainers)], out.Spec.Containers...) {
		if c.Name == inject.ProxyContainer {
			sidecars++
		}
	}
	var added struct{ InitContainers, Containers []string }
	if err := json.Unmarshal([]byte(out.Annotations["sidecar.istio.io/status"]), &added); err != nil {
		t.Error(err)
	}
	names := append(added.InitContainers, added.Containers...)
	want := len(before.Spec.Containers) + len(before.Spec.InitContainers) + len(names)
	for _, list := range [][]corev1.Container{before.Spec.Containers, before.Spec.InitContainers} {
		for i := range list {
			if slices.Contains(names, list[i].Name) {
				want-- // a user's part of one of them
			}
		}
	}
	if sidecars != 1 || len(out.Spec.Containers)+len(out.Spec.InitContainers) != want {
		t.Errorf("%d sidecars among %d containers, want 1 among %d", sidecars, len(out.Spec.Containers)+len(out.Spec.InitContainers), want)
	}
}

// hasOurs reports whether the pod has a container that injection adds.
func hasOurs(pod *corev1.Pod) bool {
	ours := func(c corev1.Container) bool {
		return c.Name == inject.ProxyContainer || c.Name == inject.InitContainer || c.Name == "istio-validation"
	}
	return slices.ContainsFunc(pod.Spec.Containers, ours) || slices.ContainsFunc(pod.Spec.InitContainers, ours)
}

// patched applies the patch to the pod's JSON.
func patched(t *testing.T, before, after *corev1.Pod) []byte {
	t.Helper()
	patch, err := jsonpatch.DecodePatch(asJSON(t, inject.Patch(before, after)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := patch.Apply(asJSON(t, before))
	if err != nil {
		t.Fatalf("apply patch: %v", err)
	}
	return out
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func generic(t testing.TB, data []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func sameJSON(t testing.TB, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}

// TestLateContainer: a container that another webhook added after the sidecar has its probes rewritten when the webhook is
// called again, and those of the others stay known to the agent.
func TestLateContainer(t *testing.T) {
	cfg := configFrom(t, "", "", "")
	pod := podFrom(t, `
metadata: {name: web, namespace: shop}
spec:
  containers:
  - name: web
    readinessProbe: {httpGet: {path: /$ready, port: 80}}
`)
	first, _, err := inject.Pod(pod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	late := first.DeepCopy()
	late.Spec.Containers = append(late.Spec.Containers, corev1.Container{Name: "late", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(90)}}}})
	second, _, err := inject.Pod(late, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if get := second.Spec.Containers[1].LivenessProbe.HTTPGet; get == nil || get.Path != "/app-health/late/livez" || get.Port.IntValue() != 15020 {
		t.Errorf("the late container's probe is %+v", second.Spec.Containers[1].LivenessProbe)
	}
	const want = `{"/app-health/late/livez":{"tcpSocket":{"port":90}},"/app-health/web/readyz":{"httpGet":{"path":"/$$ready","port":80}}}`
	if got := envOf(second, "ISTIO_KUBE_APP_PROBERS"); got != want {
		t.Errorf("the agent is told %s, want %s", got, want)
	}
	if got, want := patched(t, late, second), asJSON(t, second); !sameJSON(t, got, want) {
		t.Errorf("the patch gives another pod:\n%s\nwant\n%s", got, want)
	}
}

// envOf is the value of one of the sidecar's variables.
func envOf(pod *corev1.Pod, name string) string {
	for _, c := range append(pod.Spec.InitContainers[:len(pod.Spec.InitContainers):len(pod.Spec.InitContainers)], pod.Spec.Containers...) {
		if c.Name != inject.ProxyContainer {
			continue
		}
		for _, e := range c.Env {
			if e.Name == name {
				return e.Value
			}
		}
	}
	return ""
}
