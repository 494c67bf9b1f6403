//go:build apiserver

package live_test

import (
	"fmt"
	"math/rand/v2"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// often are annotations that the policy carries out, seldom those that it may leave to the webhook, or that nobody accepts.
var (
	often = [][]string{ // name, values, "|", values that are the webhook's to judge
		{"sidecar.istio.io/proxyImage", "example.com/proxy:1", "auto", "|", "a b"},
		{"sidecar.istio.io/proxyCPU", "50m", "0.5", "1", "|", "3", "x"}, {"sidecar.istio.io/proxyCPULimit", "2", "1500m", "|", "1e3"},
		{"sidecar.istio.io/proxyMemory", "64Mi", "100M", "|", "2Gi"}, {"sidecar.istio.io/proxyMemoryLimit", "1Gi", "512Mi", "|", "50Mi"},
		{"sidecar.istio.io/logLevel", "debug", "off", "|", "loud"}, {"sidecar.istio.io/componentLogLevel", "upstream:debug, http:trace", "misc:error", "", "|", "x"},
		{"sidecar.istio.io/agentLogLevel", "default:debug", "debug", "|", "xds:loud"}, {"sidecar.istio.io/interceptionMode", "REDIRECT", "|", "TPROXY"},
		{"sidecar.istio.io/nativeSidecar", "true", "1", "|", "false"}, {"sidecar.istio.io/rewriteAppHTTPProbers", "true", "false", "F", "|", "no"},
		{"prometheus.istio.io/merge-metrics", "true", "false", "|", "on"}, {"sidecar.istio.io/statsInclusionPrefixes", "dns.", "a,b, c", "|", "a b"},
		{"readiness.status.sidecar.istio.io/initialDelaySeconds", "0", "7", "|", "07"}, {"readiness.status.sidecar.istio.io/periodSeconds", "3", "|", "0"},
		{"readiness.status.sidecar.istio.io/failureThreshold", "9", "|", "-1"}, {"traffic.sidecar.istio.io/includeInboundPorts", "*", "80, 443", "", " 8080 ", "|", "080"},
		{"traffic.sidecar.istio.io/excludeInboundPorts", "22, 80", "", "65535", "|", "65536"}, {"traffic.sidecar.istio.io/excludeOutboundPorts", "3306,5432", "|", "0"},
		{"traffic.sidecar.istio.io/includeOutboundIPRanges", "*", "10.0.0.0/8, 192.168.0.1/16", "", "|", "fd00::/8", "10.0.0.0/33"},
		{"traffic.sidecar.istio.io/excludeOutboundIPRanges", "169.254.169.254/32", "|", "1.2.3.4"},
		{"traffic.sidecar.istio.io/includeOutboundPorts", "9443", "|", "9443;reboot"}, {"traffic.sidecar.istio.io/excludeInterfaces", "eth1, net1", "|", "$(reboot)"},
		{"istio.io/reroute-virtual-interfaces", "docker0", "", "|", "-x"}, {"traffic.sidecar.istio.io/kubevirtInterfaces", "docker1", "|", "a/b"},
		{"prometheus.io/scrape", "true", "false", "yes&no", "|", "é"}, {"prometheus.io/port", "9090", "15020", "", "|", "15090", "08"}, {"prometheus.io/path", "/m?a=1&b=<2>", "/$(HOME)", "|", `/"`},
		{"kubectl.kubernetes.io/default-container", "c0", ""}, {"example.com/note", "anything \"at\" all\nhere"}, {"sidecar.istio.io/status", "{}"},
		{"galley.istio.io/analyze-suppress", "*"}, {"istio.io/rev", "other"},
	}
	seldom = [][]string{
		{"proxy.istio.io/config", "concurrency: 4", "holdApplicationUntilProxyStarts: true", "{"}, {"status.sidecar.istio.io/port", "0", "15021", "8124"},
		{"proxy.istio.io/overrides", `{"containers":[{"name":"istio-proxy","args":["proxy","sidecar"]}]}`}, {"sidecar.istio.io/userVolume", `{"extra":{"emptyDir":{}}}`},
		{"sidecar.istio.io/bootstrapOverride", "mine"}, {"sidecar.istio.io/proxyImageType", "distroless"}, {"inject.istio.io/templates", "sidecar"},
		{"sidecar.istio.io/extraStatTags", "a"}, {"sidecar.istio.io/typo", "a"}, {"prometheus_io_path", "/m"}, {"prometheus.istio.io/scrape-targets", "8080,9100:/x"},
		{"sidecar.istio.io/statsInclusionRegexps", "a.*"}, {"openshift.io/scc", "restricted-v2"},
	}
)

// generatedPod is a pod as people write them, of every shape that injection looks at.
func generatedPod(r *rand.Rand) *corev1.Pod {
	no, wild, pod := false, r.IntN(5) == 0, &corev1.Pod{}
	if pod.Name = "web-1"; r.IntN(2) == 0 {
		pod.Name, pod.GenerateName = "", pick(r, "web-7c9-", "web--", "w-")
	}
	pod.Labels, pod.Annotations = map[string]string{}, map[string]string{}
	for _, l := range [][]string{{"app", "web", ""}, {"version", "v1"}, {"pod-template-hash", "7c9", "other"}, {"rollouts-pod-template-hash", "7c9"}, {"app.kubernetes.io/name", "shop"},
		{"app.kubernetes.io/version", "2"}, {"deploymentconfig", "web"}, {"security.istio.io/tlsMode", "disabled", ""}, {"sidecar.istio.io/inject", "true"}, {"topology.istio.io/network", "n2"},
		{"service.istio.io/canonical-name", "canon"}, {"service.istio.io/canonical-revision", "r9"}, {"service.istio.io/workload-name", "named"}} {
		if r.IntN(6) == 0 {
			pod.Labels[l[0]] = pick(r, l[1:]...)
		}
	}
	for _, a := range often {
		if r.IntN(12) == 0 {
			pod.Annotations[a[0]] = allowed(r, wild, a[1:])
		}
	}
	if wild {
		a := seldom[r.IntN(len(seldom))]
		pod.Annotations[a[0]] = pick(r, a[1:]...)
	}
	if len(pod.Annotations) == 0 {
		pod.Annotations = nil
	}
	if r.IntN(2) == 0 {
		yes := true
		owner := pick(r, [2]string{"apps/v1", "ReplicaSet"}, [2]string{"batch/v1", "Job"}, [2]string{"apps/v1", "StatefulSet"}, [2]string{"v1", "ReplicationController"}, [2]string{"example.com/v1", "Thing"})
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: owner[0], Kind: owner[1], Name: pick(r, "web-7c9", "web-28571420", "web-1", longName), Controller: &yes, UID: "1"}}
	}
	pod.Spec.AutomountServiceAccountToken = &no
	for i := range 1 + r.IntN(3) {
		pod.Spec.Containers = append(pod.Spec.Containers, generatedContainer(r, fmt.Sprintf("c%d", i), false, wild))
	}
	for i := range r.IntN(3) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, generatedContainer(r, fmt.Sprintf("i%d", i), true, wild))
	}
	if wild && r.IntN(4) == 0 {
		delete(pod.Annotations, "sidecar.istio.io/status") // with it, the container would be an injector's
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "istio-proxy", Image: "auto", Env: []corev1.EnvVar{{Name: "MINE", Value: "1"}}})
	}
	for _, name := range []string{"data", "istio-token"} {
		if r.IntN(4) == 0 && (wild || name == "data") {
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		}
	}
	for _, name := range []string{"mine", "pull"} {
		if r.IntN(4) == 0 {
			pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
		}
	}
	if r.IntN(10) == 0 {
		user := pick(r, 1000, map[bool]int64{true: 1337, false: 1001}[wild])
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, RunAsGroup: &user}
	}
	return pod
}

const longName = "a-very-long-name-of-a-workload-that-no-label-of-kubernetes-can-hold-x.7c9"

func generatedContainer(r *rand.Rand, name string, init, wild bool) corev1.Container {
	c := corev1.Container{Name: name, Image: "example.com/" + name}
	if r.IntN(2) == 0 {
		c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {ContainerPort: pick(r, 9090, map[bool]int32{true: 15020, false: 9091}[wild]), Protocol: pick(r, "", corev1.ProtocolTCP, corev1.ProtocolUDP)}}
	}
	if r.IntN(20) == 0 {
		user := pick(r, 1000, map[bool]int64{true: 1337, false: 1001}[wild])
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: &user}
	}
	if init {
		if r.IntN(2) == 0 {
			return c
		}
		always := corev1.ContainerRestartPolicyAlways // a native sidecar of the user's may have probes
		c.RestartPolicy = &always
	}
	for _, p := range []**corev1.Probe{&c.ReadinessProbe, &c.LivenessProbe, &c.StartupProbe} {
		*p = generatedProbe(r, wild, c.Ports != nil)
	}
	if start, stop := generatedHook(r, c.Ports != nil), generatedHook(r, c.Ports != nil); start != nil || stop != nil {
		c.Lifecycle = &corev1.Lifecycle{PostStart: start, PreStop: stop}
	}
	return c
}

func generatedHook(r *rand.Rand, named bool) *corev1.LifecycleHandler {
	switch r.IntN(8) {
	case 0:
		return &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/hook", Port: generatedPort(r, named), Scheme: pick[corev1.URIScheme](r, "", "HTTPS")}}
	case 1:
		return &corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9090)}}
	case 2:
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}
	}
	return nil
}

func generatedProbe(r *rand.Rand, wild, named bool) *corev1.Probe {
	port := generatedPort(r, named || wild)
	switch r.IntN(6) {
	case 0:
		p := &corev1.Probe{TimeoutSeconds: 2, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: pick(r, "/$(HOME)", "/a?b=1&c=<d>", "", "/healthz", "/healthz"), Port: port,
			Scheme: pick[corev1.URIScheme](r, "", "HTTP", "HTTPS"), Host: allowed(r, wild, []string{"", "", "localhost", "example.com", "127.0.0.1", "::1", "|", "127.0.0.2", "é"})}}}
		if r.IntN(3) == 0 {
			p.HTTPGet.HTTPHeaders = []corev1.HTTPHeader{{Name: "Host", Value: "a"}, {Name: "X-A", Value: allowed(r, wild, []string{"b", "", "a&b", "|", `"b"`, "é"})}}
		}
		return p
	case 1:
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port, Host: pick(r, "", "", "LOCALHOST")}}}
	case 2:
		service := "health"
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 8080, Service: pick(r, nil, &service)}}}
	case 3:
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
	}
	return nil
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// allowed is one of the values before the bar, or where wild of all.
func allowed(r *rand.Rand, wild bool, values []string) string {
	bar := slices.Index(values, "|")
	switch {
	case bar < 0:
		return pick(r, values...)
	case wild && r.IntN(4) == 0:
		return pick(r, values[bar+1:]...)
	}
	return pick(r, values[:bar]...)
}

func generatedPort(r *rand.Rand, named bool) intstr.IntOrString {
	if named && r.IntN(2) == 0 {
		return intstr.FromString("http")
	}
	return intstr.FromInt32(8080)
}
