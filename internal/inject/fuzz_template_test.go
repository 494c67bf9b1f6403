package inject_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/jsonscan"
)

// parts are what templates may give.
var parts = []string{
	"", "null", "spec: {}", "metadata: {labels: {a: b}, annotations: {c: d}}", "metadata: {labels: {app: null}}", "metadata: {labels: {a: 1}}", "metadata: {name: other}",
	"kind: Pod\napiVersion: v1\nspec: {hostname: a, dnsConfig: {options: [{name: ndots, value: '2'}]}, securityContext: {fsGroup: 1337}, tolerations: [{key: a}]}",
	"spec: {containers: [{name: istio-proxy, image: a, env: [{name: A, value: b}, {name: A, value: c}], resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 0.5}}}]}",
	"spec: {initContainers: [{name: istio-init, args: [-p, '15001'], securityContext: {runAsUser: 0}}, {name: b, image: null}]}",
	"spec: {containers: [{name: web, tty: true}]}", "spec: {containers: [{name: a}, {name: a, tty: true}]}", "spec: {containers: [{name: web, $patch: delete}]}",
	"spec: {volumes: [{name: v, emptyDir: {medium: Memory}}, {name: t, projected: {sources: [{serviceAccountToken: {path: t, expirationSeconds: 43200}}]}}]}",
	"spec: {volumes: [{name: data, emptyDir: {}}]}", "spec: {volumes: null}", "spec: {imagePullSecrets: [{name: s}]}", "spec: {imagePullSecrets: []}", "spec: []", "spec: {containers: {}}",
	"spec: {terminationGracePeriodSeconds: null, serviceAccountName: null}", "spec: {hostNetwork: true, shareProcessNamespace: false}", "spec: {containers: [a]}",
	"a: &a {name: x}\nspec: {containers: [*a]}", "spec: {nodeSelector: {a: b}, noSuchField: {a: [1, 2.5, yes]}}", "1: 2", "spec: {priority: 1e2, activeDeadlineSeconds: 9007199254740993}", "? [a]\n: b", "- a", "x: !!binary gIGC",
}

// FuzzParts: what is added to a pod without the strategic merge is what the strategic merge would give, the pod stays as it was, and
// the YAML is read as Kubernetes reads it.
func FuzzParts(f *testing.F) {
	for _, part := range parts {
		for _, pod := range []string{`{"metadata":{"name":"web","labels":{"app":"web"}},"spec":{"containers":[{"name":"web","image":"web","env":[{"name":"A","value":"b"}]}],"volumes":[{"name":"data","emptyDir":{}}],"securityContext":{},"terminationGracePeriodSeconds":5}}`,
			`{"spec":{"containers":[],"initContainers":[{"name":"b"}],"imagePullSecrets":[{"name":"s"}],"hostname":"h"}}`} {
			f.Add(part, pod)
		}
	}
	f.Fuzz(func(t *testing.T, text, object string) {
		var want map[string]any
		err := yaml.Unmarshal([]byte(text), &want)
		part, err2 := inject.ReadYAML([]byte(text))
		if (err == nil) != (err2 == nil) {
			t.Fatalf("sigs.k8s.io/yaml gives the error %v, and we %v", err, err2)
		}
		if err != nil {
			return
		}
		if a, b := asJSON(t, want), asJSON(t, part); !sameJSON(t, a, b) {
			t.Errorf("read as\n%s\nwant\n%s", b, a)
		}
		pod := &corev1.Pod{}
		if inject.CheckQuantities([]byte(object)) != nil || inject.CheckQuantities(asJSON(t, part)) != nil || json.Unmarshal([]byte(object), pod) != nil {
			return
		}
		for i := range pod.Spec.Containers {
			if pod.Spec.Containers[i].Name == "" {
				return // two without a name would be one
			}
		}
		before := pod.DeepCopy()
		added, ok := inject.AddPart(pod, part)
		if !reflect.DeepEqual(before, pod) {
			t.Errorf("the pod was changed:\n%s", cmp.Diff(before, pod))
		}
		if !ok {
			return
		}
		merged, err := inject.MergePart(pod, part)
		if err != nil {
			t.Fatalf("it can be added, and merging it gives the error %v", err)
		}
		if a, b := asJSON(t, merged), asJSON(t, added); !sameJSON(t, a, b) {
			t.Errorf("merged (-) and added (+):\n%s", cmp.Diff(generic(t, a), generic(t, b)))
		}
	})
}

// FuzzTemplateOutput: whatever a template gives for whatever pod, nothing panics, the pod as it came stays, and the patch can be made.
func FuzzTemplateOutput(f *testing.F) {
	for _, part := range parts {
		f.Add(part, `{"metadata":{"annotations":{"status.sidecar.istio.io/port":"123","prometheus.io/port":"80","prometheus_io_path":"/m"}},"spec":{"containers":[{"name":"web","readinessProbe":{"httpGet":{"port":80}},"lifecycle":{"preStop":{"tcpSocket":{"port":"x"}}}},{"name":"istio-proxy","securityContext":{"runAsUser":7}}]}}`)
	}
	f.Fuzz(func(t *testing.T, text, object string) {
		pod := &corev1.Pod{}
		if inject.CheckQuantities([]byte(object)) != nil || json.Unmarshal([]byte(object), pod) != nil {
			return
		}
		part, err := inject.ReadYAML([]byte(text))
		if err != nil || inject.CheckQuantities(asJSON(t, part)) != nil {
			return
		}
		pod.Name, pod.Namespace, pod.GenerateName = "web", "shop", ""
		delete(pod.Annotations, "inject.istio.io/templates")
		settings := inject.Default("")
		settings.Injector.Templates = map[string]string{"mine": "{{ `" + string(bytes.ReplaceAll([]byte(text), []byte("`"), nil)) + "` }}"}
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations["inject.istio.io/templates"] = "mine"
		cfg, _ := settings.Compile()
		if cfg == nil {
			return
		}
		before := pod.DeepCopy()
		out, _, err := inject.Pod(pod, cfg)
		if !reflect.DeepEqual(before, pod) {
			t.Fatalf("the pod was changed:\n%s", cmp.Diff(before, pod))
		}
		if err != nil {
			return
		}
		inject.Patch(pod, out)
		if again, _, err := inject.Pod(out, cfg); err == nil {
			inject.Patch(out, again)
		}
	})
}

// TestScanPodQuantities: one that takes its parser for ever is not parsed, wherever a pod has one.
func TestScanPodQuantities(t *testing.T) {
	for _, text := range []string{`{"spec":{"overhead":{"cpu":"1e-30000000"}}}`, `{"spec":{"containers":[{"resources":{"limits":{"cpu":"1e-30000000"}}}]}}`,
		`{"spec":{"volumes":[{"emptyDir":{"sizeLimit":"1e-30000000"}}]}}`, `{"spec":{"containers":[{"env":[{"valueFrom":{"resourceFieldRef":{"divisor":"1e-30000000"}}}]}]}}`} {
		if _, err := inject.ScanPod(jsonscan.New([]byte(text))); err == nil {
			t.Errorf("%s was read", text)
		}
	}
}

// FuzzScanPod: a pod that is scanned is the one that encoding/json gives (but for names that differ in case only, and names that are
// there twice).
func FuzzScanPod(f *testing.F) {
	f.Add(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","uid":"u","creationTimestamp":null,"labels":{"a":"b"},"managedFields":[{"manager":"m","operation":"Update","time":"2020-01-01T00:00:00Z","fieldsV1":{"f:a":{}}}]},"spec":{"containers":[{"name":"c","image":"i","command":["a"],"args":[null],"env":[{"name":"A","value":"b"},{"name":"B","valueFrom":{"fieldRef":{"fieldPath":"p"}}}],"ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1"}},"volumeMounts":[{"name":"v","mountPath":"/v","readOnly":true,"subPath":"s"}],"terminationMessagePath":"/t","terminationMessagePolicy":"File","imagePullPolicy":"Always"}],"initContainers":[],"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1Gi"}}],"securityContext":{},"overhead":{"cpu":"1"},"hostNetwork":true},"status":{"phase":"Pending"}}`)
	f.Add(`{"spec":{"containers":[null,{"env":[null],"ports":null}],"overhead":{"cpu":"1e-30000000"}}}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, text string) {
		s := jsonscan.New([]byte(text))
		scanned, err := inject.ScanPod(s)
		if err != nil || s.End() != nil || oddNames(text) {
			return
		}
		if inject.CheckQuantities([]byte(text)) != nil {
			return // in a field that no pod has: it was passed over, and encoding/json is not to be asked
		}
		decoded := &corev1.Pod{}
		if err := json.Unmarshal([]byte(text), decoded); err != nil {
			t.Fatalf("%s: encoding/json says %v", text, err)
		}
		if !reflect.DeepEqual(scanned, decoded) {
			t.Errorf("scanned (-) and decoded (+):\n%s", cmp.Diff(scanned, decoded))
		}
	})
}

// FuzzProbes gives any container any probes and hooks: they are rewritten or stay, the container is otherwise as it was, and injecting
// twice changes nothing.
func FuzzProbes(f *testing.F) {
	for _, seed := range []string{`{"name":"a","readinessProbe":{"httpGet":{"port":80}}}`, `{"name":"a","ports":[{"name":"p","containerPort":1}],"livenessProbe":{"httpGet":{"port":"p","scheme":"HTTPS","host":"localhost","path":"/app-health/a/livez"}},"startupProbe":{"grpc":{"port":1,"service":"s"}}}`,
		`{"name":"a","readinessProbe":{"tcpSocket":{"port":"x"}},"lifecycle":{"postStart":{"tcpSocket":{"port":80}},"preStop":{"httpGet":{"port":"-1","path":"/app-lifecycle/a/prestopz"}}}}`,
		`{"name":"a/b","livenessProbe":{"exec":{},"httpGet":{"port":99999999}},"lifecycle":{"preStop":{"sleep":{"seconds":-1}}}}`, `{"name":"","startupProbe":{},"restartPolicy":"Always"}`} {
		f.Add(seed)
	}
	cfg := configFrom(f, "", "", "")
	f.Fuzz(func(t *testing.T, container string) {
		var c corev1.Container
		if inject.CheckQuantities([]byte(container)) != nil || json.Unmarshal([]byte(container), &c) != nil || c.Name == inject.ProxyContainer || c.Name == inject.InitContainer {
			return
		}
		for _, probe := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
			if probe != nil && severalHandlers(reflect.ValueOf(probe.ProbeHandler)) {
				return // the API server refuses it, whatever becomes of it
			}
		}
		if l := c.Lifecycle; l != nil && (l.PostStart != nil && severalHandlers(reflect.ValueOf(*l.PostStart)) || l.PreStop != nil && severalHandlers(reflect.ValueOf(*l.PreStop))) {
			return
		}
		pod := &corev1.Pod{}
		pod.Name, pod.Namespace, pod.Spec.Containers = "web", "shop", []corev1.Container{c}
		out, _, err := inject.Pod(pod, cfg)
		if err != nil {
			return
		}
		checkPod(t, pod, cfg)
		rest := out.Spec.Containers[slices.IndexFunc(out.Spec.Containers, func(o corev1.Container) bool { return o.Name == c.Name })]
		rest.ReadinessProbe, rest.LivenessProbe, rest.StartupProbe, rest.Lifecycle = c.ReadinessProbe, c.LivenessProbe, c.StartupProbe, c.Lifecycle
		if !reflect.DeepEqual(rest, c) {
			t.Errorf("the container changed:\n%s", cmp.Diff(c, rest))
		}
	})
}

// severalHandlers reports whether more than one of a struct's fields is set.
func severalHandlers(v reflect.Value) bool {
	n := 0
	for i := range v.NumField() {
		if !v.Field(i).IsZero() {
			n++
		}
	}
	return n > 1
}
