package inject_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

const hooks = `
metadata: {name: web, namespace: shop}
spec:
  containers:
  - name: web
    ports: [{name: http, containerPort: 8080}]
    lifecycle:
      postStart: {httpGet: {path: /hello, port: http, scheme: HTTPS, httpHeaders: [{name: X-A, value: b}]}}
      preStop: {tcpSocket: {port: 9090}}
  - name: other
    lifecycle:
      postStart: {exec: {command: [a]}}
      preStop: {httpGet: {path: /bye, port: 1, host: example.com}}
`

// TestHooks: hooks that the kubelet calls over the network go through the agent; commands and calls of other hosts stay.
func TestHooks(t *testing.T) {
	cfg := configFrom(t, "", "", "")
	pod := podFrom(t, hooks)
	checkPod(t, pod, cfg)
	out, warnings, err := inject.Pod(pod, cfg)
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	web, other := containerOf(t, out, "web").Lifecycle, containerOf(t, out, "other").Lifecycle
	if get := web.PostStart.HTTPGet; get == nil || get.Path != "/app-lifecycle/web/poststartz" || get.Port.IntValue() != 15020 || get.Scheme != corev1.URISchemeHTTP {
		t.Errorf("postStart is %v", web.PostStart)
	}
	if get := web.PreStop.HTTPGet; get == nil || get.Path != "/app-lifecycle/web/prestopz" || web.PreStop.TCPSocket != nil {
		t.Errorf("preStop is %v", web.PreStop)
	}
	if diff := cmp.Diff(pod.Spec.Containers[1].Lifecycle, other); diff != "" {
		t.Errorf("the others changed: %s", diff)
	}
	const want = `{"/app-lifecycle/web/poststartz":{"httpGet":{"path":"/hello","port":8080,"scheme":"HTTPS","httpHeaders":[{"name":"X-A","value":"b"}]}},` +
		`"/app-lifecycle/web/prestopz":{"tcpSocket":{"port":9090}}}`
	if got := envOf(out, "ISTIO_KUBE_APP_PROBERS"); got != want {
		t.Errorf("the agent is told %s\nwant %s", got, want)
	}
}

// TestEarlyHook: a postStart hook that is called before there is a sidecar stays, and its author hears of it.
func TestEarlyHook(t *testing.T) {
	for config, early := range map[string]bool{`sidecar.istio.io/nativeSidecar: "false"`: true, `sidecar.istio.io/nativeSidecar: "true"`: false,
		"proxy.istio.io/config: 'holdApplicationUntilProxyStarts: true', sidecar.istio.io/nativeSidecar: \"false\"": false} {
		pod := podFrom(t, strings.Replace(hooks, "namespace: shop", "namespace: shop, annotations: {"+config+"}", 1))
		cfg := configFrom(t, "", "", "")
		checkPod(t, pod, cfg)
		out, warnings, err := inject.Pod(pod, cfg)
		if err != nil {
			t.Fatal(err)
		}
		rewritten := containerOf(t, out, "web").Lifecycle.PostStart.HTTPGet.Port.IntValue() == 15020
		warned := len(warnings) == 1 && strings.Contains(warnings[0].String(), "lifecycle.postStart: the hook is called before the sidecar runs")
		if rewritten == early || warned != early {
			t.Errorf("%s: rewritten %v, warnings %v", config, rewritten, warnings)
		}
		if containerOf(t, out, "web").Lifecycle.PreStop.HTTPGet == nil {
			t.Errorf("%s: preStop is not rewritten", config)
		}
	}
}

// TestHookOfUnknownPort: the hook stays, and its author hears of it.
func TestHookOfUnknownPort(t *testing.T) {
	pod := podFrom(t, strings.Replace(hooks, "port: http", "port: nothing", 1))
	_, warnings, err := inject.Pod(pod, configFrom(t, "", "", ""))
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].String(), `spec.containers[web].lifecycle.postStart: the hook stays as it is and may fail in the mesh: the container has no port named "nothing": use the port's number`) {
		t.Errorf("%v, %v", warnings, err)
	}
}

// TestProbesOfNoPort: the API server refuses such a probe, and must see it to do so. As a number 4294967376 would be port 80.
func TestProbesOfNoPort(t *testing.T) {
	cfg := configFrom(t, "", "", "")
	for _, probe := range []string{"httpGet: {port: 0}", "httpGet: {port: 70000}", "tcpSocket: {port: '4294967376'}", "httpGet: {port: '-1'}", "grpc: {port: 65536}"} {
		pod := podFrom(t, "metadata: {name: web, namespace: shop}\nspec: {containers: [{name: web, readinessProbe: {"+probe+"}}]}")
		out, warnings, err := inject.Pod(pod, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(pod.Spec.Containers[0].ReadinessProbe, containerOf(t, out, "web").ReadinessProbe); diff != "" {
			t.Errorf("%s: the probe changed: %s", probe, diff)
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0].String(), "spec.containers[web].readinessProbe: the probe stays as it is and may fail in the mesh: ") ||
			!strings.Contains(warnings[0].String(), " is no port from 1 to 65535") {
			t.Errorf("%s: warnings %v", probe, warnings)
		}
	}
}
