package inject_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// withTemplate is a configuration with one template of the operator's, which pods take.
func withTemplate(t testing.TB, text, values string) *inject.Config {
	t.Helper()
	config, err := yaml.Marshal(map[string]any{"templates": map[string]string{"mine": text}, "defaultTemplates": []string{"mine"}})
	if err != nil {
		t.Fatal(err)
	}
	return configFrom(t, "", string(config), values)
}

const simplePod = `
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {a: b, list: "[1]"}}
spec:
  containers:
  - name: web
    image: registry.example.com:5000/web:1.2@sha256:abc
    ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 8080}]
  - name: istio-proxy
    image: auto
    ports: [{containerPort: 9}]
`

// TestTemplateFunctions: Sprig's and Istio's functions, by what they give. Each expression becomes the value of an annotation.
func TestTemplateFunctions(t *testing.T) {
	for expression, want := range map[string]string{
		`isset .ObjectMeta.Annotations "a"`:                                   "true",
		`isset .ObjectMeta.Annotations "b"`:                                   "false",
		`annotation .ObjectMeta "a" 7`:                                        "b",
		`annotation .ObjectMeta "c" 7`:                                        "7",
		`valueOrDefault "" "x"`:                                               "x",
		`valueOrDefault nil "x"`:                                              "x",
		`valueOrDefault "y" "x"`:                                              "y",
		`excludeInboundPort 15020 "22, 80"`:                                   "22,80,15020",
		`excludeInboundPort "80" "22,80"`:                                     "22,80",
		`excludeInboundPort 0 "22"`:                                           "22",
		`includeInboundPorts .Spec.Containers`:                                "80,8080,9",
		`applicationPorts .Spec.Containers`:                                   "80,8080",
		`kubevirtInterfaces "net1"`:                                           "net1",
		`excludeInterfaces "eth1"`:                                            "eth1",
		`toJSON (strdict "a" "b" "c")`:                                        `{"a":"b","c":""}`,
		`toJsonMap (strdict "a" "b") (strdict "a" "c")`:                       `{"a":"c"}`,
		`omit (strdict "a" "b" "c" "d") "a" | toJSON`:                         `{"c":"d"}`,
		`mergeMaps (strdict "a" "b") (strdict "c" "d") | toJSON`:              `{"a":"b","c":"d"}`,
		`structToJSON (index (index .Spec.Containers 0).Ports 0)`:             `{"containerPort":80}`,
		`fromJSON (index .ObjectMeta.Annotations "list") | first`:             "1",
		`fromJSON "{"`:                                                        "{}",
		`protoToJSON .ProxyConfig`:                                            "{}",
		`formatDuration .ProxyConfig.TerminationDrainDuration`:                "5s",
		`toYaml (dict "a" (list 1 "b"))`:                                      "a:\n- 1\n- b\n",
		`indent 2 "a\nb"`:                                                     "a\n  b",
		`nindent 2 "a"`:                                                       "\n  a",
		`directory "/etc/certs/root.pem"`:                                     "/etc/certs/",
		`contains "b" "abc"`:                                                  "true",
		`toLower "ABC"`:                                                       "abc",
		`env "HOME" "/default"`:                                               "/default",
		`env "HOME"`:                                                          "",
		`appendMultusNetwork "" "default/istio-cni"`:                          "default/istio-cni",
		`appendMultusNetwork "a, b" "istio-cni"`:                              "a, b, istio-cni",
		`appendMultusNetwork "a, istio-cni" "istio-cni"`:                      "a, istio-cni",
		"appendMultusNetwork `[{\"name\":\"a\"}]` `default/istio-cni`":        `[{"name":"a"}, {"name": "istio-cni", "namespace": "default"}]`,
		"appendMultusNetwork `[{\"name\":\"istio-cni\"}]` `istio-cni`":        `[{"name":"istio-cni"}]`,
		`omitNil (dict "a" nil "b" (dict "c" nil) "d" (list nil 1)) | toJson`: `{"d":[1]}`,
		`omitNil (dict "a" (dict)) | toJson`:                                  `{"a":{}}`,
		`otelResourceAttributes .MeshConfig nil nil "shop" .Spec.Containers`:  "",
		`.ProxyConfig.InterceptionMode`:                                       "REDIRECT",
		`.ProxyConfig.HoldApplicationUntilProxyStarts.GetValue`:               "false",
		`.MeshConfig.TrustDomain`:                                             "cluster.local",
		`.TypeMeta.Kind`:                                                      "Pod",
		`.DeploymentMeta.Name`:                                                "web",
		`.DeploymentMeta.Namespace`:                                           "shop",
		`.Revision`:                                                           "default",
		`.NativeSidecars`:                                                     "true",
		`.ProxyUID`:                                                           "1337",
		`.ProxyImage`:                                                         "docker.io/selvage/proxy:dev",
		`.InboundTrafficPolicyMode`:                                           "passthrough",
		`.CompliancePolicy`:                                                   "",
		`.Values.revision`:                                                    "",
		`.Values.global.sds.token.aud`:                                        "istio-ca",
		`.Values.mine.deep`:                                                   "7",
		`keys (dict "b" 1 "a" 2) | join ","`:                                  "a,b",
		`values (dict "b" 1 "a" 2) | join ","`:                                "2,1",
		`untilStep 6 0 -2 | join ","`:                                         "6,4,2",
		`until 3 | join ","`:                                                  "0,1,2",
		`printf "%s-%d" "a" 1 | quote`:                                        `"a-1"`,
		`list 1 2 | append 3 | len`:                                           "error",
		`repeat 3 "ab"`:                                                       "ababab",
		`regexReplaceAll "a+" "baaa" "c"`:                                     "bc",
		`ternary "a" "b" true`:                                                "a",
		`semverCompare ">=1.29" "1.37.2"`:                                     "true",
	} {
		text := "metadata:\n  annotations:\n    result: {{ " + expression + " | toString | toJson }}\n"
		config, err := yaml.Marshal(map[string]any{"templates": map[string]string{"mine": text}})
		if err != nil {
			t.Fatal(err)
		}
		cfg := configFrom(t, "", string(config), `{"mine":{"deep":7}}`)
		pod := podFrom(t, simplePod)
		pod.Annotations["inject.istio.io/templates"] = "mine"
		out, _, err := inject.Pod(pod, cfg)
		if want == "error" {
			if err == nil {
				t.Errorf("%s: no error", expression)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", expression, err)
		} else if got := out.Annotations["result"]; got != want {
			t.Errorf("%s: got %q, want %q", expression, got, want)
		}
	}
}

// TestOtelAttributes: they are there once a tracing provider asks for them, and annotations come first.
func TestOtelAttributes(t *testing.T) {
	const text = `metadata: {annotations: {result: {{ otelResourceAttributes .MeshConfig .ObjectMeta.Annotations .ObjectMeta.Labels "shop" .Spec.Containers | quote }}}}`
	config, err := yaml.Marshal(map[string]any{"templates": map[string]string{"mine": text}, "defaultTemplates": []string{"mine"}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := configFrom(t, "extensionProviders: [{name: otel, opentelemetry: {service: a.b, port: 4317, serviceAttributeEnrichment: OTEL_SEMANTIC_CONVENTIONS}}]", string(config), "")
	for pod, want := range map[string]string{
		"spec: {containers: [{name: web, image: 'registry:5000/web:1.2@sha256:abc'}]}":                                                             "service.namespace=shop,service.version=1.2@sha256:abc,service.instance.id=shop.$(POD_NAME).web",
		"spec: {containers: [{name: web, image: 'registry:5000/web'}]}":                                                                            "service.namespace=shop,service.instance.id=shop.$(POD_NAME).web",
		"{metadata: {labels: {app.kubernetes.io/version: v2}}, spec: {containers: [{name: web, image: a}, {name: b, image: 'a:1'}]}}":              "service.namespace=shop,service.version=v2,service.instance.id=shop.$(POD_NAME).web",
		"{metadata: {annotations: {resource.opentelemetry.io/service.namespace: mine}}, spec: {containers: [{name: web, image: 'web@sha256:a'}]}}": "service.namespace=mine,service.version=sha256:a,service.instance.id=shop.$(POD_NAME).web",
	} {
		out, _, err := inject.Pod(podFrom(t, pod), cfg)
		if err != nil || out.Annotations["result"] != want {
			t.Errorf("%s: got %q (error %v), want %q", pod, out.Annotations["result"], err, want)
		}
	}
}

// TestTemplateRefusals: what goes wrong for a pod names the template and its line, or the annotation and its value.
func TestTemplateRefusals(t *testing.T) {
	config, err := yaml.Marshal(map[string]any{
		"templates": map[string]string{
			"picky": "{{ if not (isset .ObjectMeta.Labels `team`) }}\n{{ fail \"no team\" }}{{ end }}",
			"named": "spec:\n  containers:\n  - name: {{ index .ObjectMeta.Labels `app` }}\n    tty: true\n  - tty: true\n",
			"other": "spec: {}",
		},
		"aliases": map[string][]string{"both": {"other", "sidecar"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := configFrom(t, "", string(config), "")
	for annotations, want := range map[string]string{
		"inject.istio.io/templates: nothing":                                                         `Pod/shop/web metadata.annotations[inject.istio.io/templates]: cannot use "nothing": there is no template "nothing" (there are both, gateway, grpc-agent, named, other, picky, sidecar) [SEL0020]`,
		"inject.istio.io/templates: ''":                                                              `cannot use "": it names no template`,
		"inject.istio.io/templates: 'sidecar,'":                                                      `cannot use "sidecar,": there is no template ""`,
		"inject.istio.io/templates: 'sidecar,gateway'":                                               `template "gateway" cannot be used yet: this version's agent runs sidecars and no gateways`,
		"inject.istio.io/templates: grpc-agent":                                                      `template "grpc-agent" cannot be used yet: this version's agent serves no configuration to gRPC applications`,
		"inject.istio.io/templates: picky":                                                           `Pod/shop/web: template "picky": line 2: executing "picky" at <fail "no team">: error calling fail: no team (mend config.templates.picky in ConfigMap/istio-system/istio-sidecar-injector) [SEL0021]`,
		"inject.istio.io/templates: named":                                                           `template "named": what it gives has an entry of spec.containers without a name`,
		"inject.istio.io/templates: " + strings.Repeat("other,", 17) + "other":                       "it selects 18 templates, and may select 16",
		"{inject.istio.io/templates: other, traffic.sidecar.istio.io/excludeOutboundIPRanges: '*'}":  `metadata.annotations[traffic.sidecar.istio.io/excludeOutboundIPRanges]: cannot use "*": excludeIPRanges: "*" is no range of addresses`,
		"{inject.istio.io/templates: other, traffic.sidecar.istio.io/includeInboundPorts: '80 --x'}": `cannot use "80 --x": includeInboundPorts: "80 --x" is no port`,
		"{inject.istio.io/templates: other, sidecar.istio.io/proxyImage: \"a\\\"\\n  tty: true\"}":   `metadata.annotations[sidecar.istio.io/proxyImage]: cannot use "a\"\n  tty: true": it is no image reference`,
		"{inject.istio.io/templates: other, sidecar.istio.io/interceptionMode: SOME}":                `cannot use "SOME": use REDIRECT, TPROXY, NONE`,
		"{inject.istio.io/templates: other, proxy.istio.io/config: 'concurency: 1'}":                 `ProxyConfig has no field concurency`,
		"{inject.istio.io/templates: other, proxy.istio.io/overrides: '{'}":                          `metadata.annotations[proxy.istio.io/overrides]: cannot use "{"`,
		"{inject.istio.io/templates: other, prometheus.io/port: '15090'}":                            `the application cannot be scraped: prometheus.io/port: port 15090 is the mesh's own`,
		"{inject.istio.io/templates: other, prometheus.istio.io/scrape-targets: '80:/a,x'}":          `prometheus.istio.io/scrape-targets "80:/a,x": "x" is no port`,
		"{inject.istio.io/templates: both, traffic.sidecar.istio.io/excludeInboundPorts: none}":      `metadata.annotations[traffic.sidecar.istio.io/excludeInboundPorts]: cannot use "none": "none" is no port`,
	} {
		pod := podFrom(t, "metadata: {name: web, namespace: shop, labels: {app: web}}\nspec: {containers: [{name: web, image: web}]}")
		if err := yaml.Unmarshal([]byte(annotations), &pod.Annotations); err != nil {
			t.Fatal(err)
		}
		_, _, err := inject.Pod(pod, cfg)
		var refused *inject.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got the error\n  %v\nwant\n  %s", annotations, err, want)
		}
	}
}

// TestTemplatesAreTold: a template that pods may select and that fails for a simple one is a warning; one that refuses on purpose, and
// those that Istio has for its gateway controller, are none.
func TestTemplatesAreTold(t *testing.T) {
	config, err := yaml.Marshal(map[string]any{
		"template": "{{ Template_Version_And_Istio_Version_Mismatched_Check_Installation }}",
		"templates": map[string]string{
			"picky": `{{ fail "no team" }}`, "waypoint": "{{ .InfrastructureLabels }}", "wrong": "\n{{ .Wrong }}",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg, problems := inject.ParseConfig(nil, config, nil)
	if cfg == nil || len(problems) != 1 || problems[0].Severity != diag.Warning || problems[0].Field != "data.config.templates.wrong" ||
		!strings.HasPrefix(problems[0].Detail, "it fails for a simple pod: line 2: executing") {
		t.Errorf("problems: %v", problems)
	}
	_, problems = inject.ParseConfig(nil, []byte("template: 'spec: {}'"), nil)
	if len(problems) != 1 || problems[0].Severity != diag.Warning || problems[0].Field != "data.config.template" {
		t.Errorf("an old template: %v", problems)
	}
}

// TestTemplatesChangeNothing: neither the pod nor the values that the next pod sees are changed by a template that changes maps, also
// where several run at a time.
func TestTemplatesChangeNothing(t *testing.T) {
	cfg := withTemplate(t, `{{ $seen := .Values.global.seen | default 0 }}{{ $_ := set .Values.global "seen" (add $seen 1) }}metadata: {annotations: {seen: "{{ $seen }}", deep: {{ toJson .Values.global.seen | quote }}}}`, "")
	pod := podFrom(t, simplePod)
	before := pod.DeepCopy()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			out, _, err := inject.Pod(pod, cfg)
			if err != nil || out.Annotations["seen"] != "0" || out.Annotations["deep"] != "1" {
				t.Errorf("a template sees what another one changed: %v (error %v)", out.Annotations, err)
			}
		})
	}
	wg.Wait()
	if !sameJSON(t, asJSON(t, before), asJSON(t, pod)) {
		t.Error("the pod was changed")
	}
}

// TestTemplatePatches: whatever a template changes in the pod, the patch brings it to the API server, and a second run changes nothing.
func TestTemplatePatches(t *testing.T) {
	for name, text := range map[string]string{
		"the pod's own fields":   "spec: {hostname: a, securityContext: {runAsUser: 5}, dnsConfig: {options: [{name: ndots, value: '2'}]}, tolerations: [{key: a}]}",
		"the application":        "spec:\n  containers:\n  - name: web\n    tty: true\n    env: [{name: A, value: b}, {name: B, value: c}]\n    volumeMounts: [{name: v, mountPath: /v}]\n    resources: {limits: {cpu: 1}}\n  volumes: [{name: v, emptyDir: {}}]",
		"containers more":        "spec: {containers: [{name: more, image: a}], initContainers: [{name: first, image: b}]}",
		"the application taken":  "spec: {containers: [{name: more, image: a}, {name: web, $patch: delete}]}",
		"a volume taken":         "spec: {volumes: [{name: data, $patch: delete}]}",
		"a field taken":          "spec: {terminationGracePeriodSeconds: null, serviceAccountName: null}",
		"labels and annotations": "metadata: {labels: {a: b, app: null}, annotations: {c: d, e/f: null}}",
		"a sidecar":              "spec: {containers: [{name: istio-proxy, image: a, env: [{name: A, value: b}]}]}",
		"a native sidecar":       "spec: {initContainers: [{name: istio-proxy, image: a, restartPolicy: Always}]}",
		"nothing":                "",
	} {
		t.Run(name, func(t *testing.T) {
			cfg := withTemplate(t, text, "")
			pod := podFrom(t, `
metadata: {name: web, namespace: shop, labels: {app: web, b: c}, annotations: {e/f: g, prometheus_io_port: "80"}}
spec:
  terminationGracePeriodSeconds: 5
  serviceAccountName: web
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - {name: web, image: web, ports: [{name: http, containerPort: 80}], env: [{name: B, value: old}], readinessProbe: {httpGet: {port: http}}}
  - {name: two, image: two, lifecycle: {preStop: {httpGet: {path: /bye, port: 81}}}}
`)
			out, _, err := inject.Pod(pod, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := patched(t, pod, out), asJSON(t, out); !sameJSON(t, got, want) {
				t.Errorf("the patch gives\n%s\nwant\n%s", got, want)
			}
			again, _, err := inject.Pod(out, cfg)
			if err != nil || !sameJSON(t, asJSON(t, again), asJSON(t, out)) {
				t.Errorf("a second run (error %v) gives\n%s\nwant\n%s", err, asJSON(t, again), asJSON(t, out))
			}
		})
	}
}

// TestProbePortOfATemplate: an agent of another mesh may listen elsewhere; a container that came later gets the same port.
func TestProbePortOfATemplate(t *testing.T) {
	cfg := withTemplate(t, "spec: {containers: [{name: istio-proxy, image: a}]}", "")
	pod := podFrom(t, "metadata: {name: web, namespace: shop, annotations: {status.sidecar.istio.io/port: '123'}}\nspec: {containers: [{name: web, image: a, readinessProbe: {tcpSocket: {port: 80}}}]}")
	out, _, err := inject.Pod(pod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	late := out.DeepCopy()
	late.Spec.Containers = append(late.Spec.Containers, corev1.Container{Name: "late", Image: "a", LivenessProbe: pod.Spec.Containers[0].ReadinessProbe})
	out, _, err = inject.Pod(late, cfg)
	if err != nil {
		t.Fatal(err)
	}
	readiness, liveness := out.Spec.Containers[0].ReadinessProbe.HTTPGet, out.Spec.Containers[2].LivenessProbe.HTTPGet
	got := fmt.Sprint(readiness.Path, " ", readiness.Port.IntValue(), " ", liveness.Path, " ", liveness.Port.IntValue(), " ", envOf(out, "ISTIO_KUBE_APP_PROBERS"))
	if want := `/app-health/web/readyz 123 /app-health/late/livez 123 {"/app-health/late/livez":{"tcpSocket":{"port":80}},"/app-health/web/readyz":{"tcpSocket":{"port":80}}}`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestTemplatesSortNothing: Sprig's sortAlpha sorts the list itself that it is given, be it the application's arguments or the mesh's
// configuration.
func TestTemplatesSortNothing(t *testing.T) {
	cfg := withTemplate(t, `metadata: {annotations: {sorted: {{ (index .Spec.Containers 0).Args | sortAlpha | join "," | quote }}}}`, "")
	pod := podFrom(t, "metadata: {name: web, namespace: shop}\nspec: {containers: [{name: web, image: web, args: [c, b, a]}]}")
	out, _, err := inject.Pod(pod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(out.Annotations["sorted"], pod.Spec.Containers[0].Args, out.Spec.Containers[0].Args); got != "a,b,c[c b a] [c b a]" {
		t.Errorf("got %s, want the sorted list in the annotation and the arguments as they were", got)
	}
}
