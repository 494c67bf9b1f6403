package inject_test

import (
	"strings"
	"testing"

	networkingv1beta1 "istio.io/api/networking/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"

	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// TestProxyConfigObjects: the mesh's, the root namespace's, the namespace's, the workload's, the pod's own: each wins over those
// before it.
func TestProxyConfigObjects(t *testing.T) {
	threads := func(namespace string, n int32, metadata map[string]string, labels ...string) inject.ProxyConfigResource {
		r := inject.ProxyConfigResource{Namespace: namespace, Name: "a", Spec: &networkingv1beta1.ProxyConfig{EnvironmentVariables: metadata}}
		if n > 0 {
			r.Spec.Concurrency = wrapperspb.Int32(n)
		}
		if len(labels) > 0 {
			r.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{labels[0]: labels[1]}}
		}
		return r
	}
	base := configFrom(t, "defaultConfig: {concurrency: 1, proxyMetadata: {ISTIO_META_M: mesh}}", "", "")
	for _, c := range []struct {
		name       string
		list       []inject.ProxyConfigResource
		annotation string
		want, meta string
	}{
		{"none", nil, "", `"concurrency":1`, "mesh"},
		{"the root's", []inject.ProxyConfigResource{threads("istio-system", 2, nil)}, "", `"concurrency":2`, "mesh"},
		{"another namespace's", []inject.ProxyConfigResource{threads("other", 2, nil)}, "", `"concurrency":1`, "mesh"},
		{"the namespace's before the root's", []inject.ProxyConfigResource{threads("shop", 3, map[string]string{"ISTIO_META_M": "ns"}), threads("istio-system", 2, nil)}, "", `"concurrency":3`, "ns"},
		{"the workload's", []inject.ProxyConfigResource{threads("shop", 4, nil, "app", "web"), threads("shop", 3, nil)}, "", `"concurrency":4`, "mesh"},
		{"another workload's", []inject.ProxyConfigResource{threads("shop", 4, nil, "app", "db")}, "", `"concurrency":1`, "mesh"},
		{"the pod's own", []inject.ProxyConfigResource{threads("shop", 4, map[string]string{"ISTIO_META_M": "w"}, "app", "web")}, "concurrency: 5", `"concurrency":5`, "w"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, problems := base.WithProxyConfigs(c.list)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			pod := podFrom(t, "metadata: {name: web, namespace: shop, labels: {app: web}}\nspec: {containers: [{name: web}]}")
			if c.annotation != "" {
				pod.Annotations = map[string]string{"proxy.istio.io/config": c.annotation}
			}
			checkPod(t, pod, cfg)
			out, _, err := inject.Pod(pod, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got := envOf(out, "PROXY_CONFIG"); !strings.Contains(got, c.want) {
				t.Errorf("PROXY_CONFIG is %s, want %s", got, c.want)
			}
			if got := envOf(out, "ISTIO_META_M"); got != c.meta {
				t.Errorf("ISTIO_META_M is %q, want %q", got, c.meta)
			}
		})
	}
	bad := threads("shop", 0, map[string]string{"ISTIO_META_DNS_CAPTURE": "true"})
	cfg, problems := base.WithProxyConfigs([]inject.ProxyConfigResource{bad})
	if len(problems) != 1 || !strings.Contains(problems[0].String(), "ProxyConfig/shop/a spec: proxyMetadata.ISTIO_META_DNS_CAPTURE") {
		t.Errorf("problems: %v", problems)
	}
	out, _, err := inject.Pod(podFrom(t, "metadata: {name: web, namespace: shop}\nspec: {containers: [{name: web}]}"), cfg)
	if err != nil || envOf(out, "ISTIO_META_DNS_CAPTURE") != "" {
		t.Errorf("the object has an effect (error %v)", err)
	}
}

// TestProxyConfigObjectsInTemplates: a template sees the same ProxyConfig as our own agent does, and what only our agent cannot do is let
// through where the sidecar's template is the operator's.
func TestProxyConfigObjectsInTemplates(t *testing.T) {
	const text = `metadata: {annotations: {threads: "{{ .ProxyConfig.Concurrency.GetValue }}", meta: "{{ index .ProxyConfig.ProxyMetadata "M" }}", image: {{ .ProxyImage }}, json: {{ protoToJSON .ProxyConfig | quote }}}}`
	config, err := yaml.Marshal(map[string]any{"templates": map[string]string{"sidecar": text}})
	if err != nil {
		t.Fatal(err)
	}
	base := configFrom(t, "defaultConfig: {concurrency: 1, proxyMetadata: {M: mesh}}", string(config), `{"global":{"hub":"h","tag":"1","proxy":{"image":"p"}}}`)
	cfg, problems := base.WithProxyConfigs([]inject.ProxyConfigResource{
		{Namespace: "istio-system", Name: "root", Spec: &networkingv1beta1.ProxyConfig{Concurrency: wrapperspb.Int32(2), EnvironmentVariables: map[string]string{"M": "root", "ISTIO_META_DNS_CAPTURE": "true"}}},
		{Namespace: "shop", Name: "web", Spec: &networkingv1beta1.ProxyConfig{Selector: &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": "web"}},
			Concurrency: wrapperspb.Int32(3), Image: &networkingv1beta1.ProxyImage{ImageType: "distroless"}}},
	})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for pod, want := range map[string]string{
		"{name: web, namespace: other}":                    `2 root h/p:1 {"concurrency":2,"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","M":"root"}}`,
		"{name: web, namespace: shop, labels: {app: web}}": `3 root h/p:1-distroless {"concurrency":3,"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","M":"root"},"image":{"imageType":"distroless"}}`,
		"{name: web, namespace: shop, labels: {app: web}, annotations: {proxy.istio.io/config: '{proxyMetadata: {M: pod}}'}}": `3 pod h/p:1-distroless {"concurrency":3,"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","M":"pod"},"image":{"imageType":"distroless"}}`,
	} {
		out, _, err := inject.Pod(podFrom(t, "metadata: "+pod+"\nspec: {containers: [{name: web}]}"), cfg)
		if err != nil {
			t.Errorf("%s: %v", pod, err)
			continue
		}
		a := out.Annotations
		if got := a["threads"] + " " + a["meta"] + " " + a["image"] + " " + a["json"]; got != want {
			t.Errorf("%s: the template sees\n%s\nwant\n%s", pod, got, want)
		}
	}
}

// TestImageTypes: a type ends the tag of an image of the values, and leaves a pod's own image alone.
func TestImageTypes(t *testing.T) {
	const values = `{"global":{"hub":"example.com/h","tag":"1.2-debug","proxy":{"image":"p"}}}`
	for _, c := range []struct{ mesh, values, annotations, proxy, initial string }{
		{"", values, "{}", "example.com/h/p:1.2-debug", "example.com/h/p:1.2-debug"},
		{"", values, "{sidecar.istio.io/proxyImageType: distroless}", "example.com/h/p:1.2-distroless", "example.com/h/p:1.2-distroless"},
		{"", values, "{sidecar.istio.io/proxyImageType: default}", "example.com/h/p:1.2", "example.com/h/p:1.2"},
		{"defaultConfig: {image: {imageType: distroless}}", values, "{}", "example.com/h/p:1.2-distroless", "example.com/h/p:1.2-distroless"},
		{"", values, "{proxy.istio.io/config: 'image: {imageType: distroless}'}", "example.com/h/p:1.2-distroless", "example.com/h/p:1.2-distroless"},
		{"", values, "{sidecar.istio.io/proxyImageType: distroless, sidecar.istio.io/proxyImage: 'x/y:1'}", "x/y:1", "x/y:1"},
		{"", `{"global":{"tag":"1","hub":"h.example","proxy":{"image":"a/b:1"},"proxy_init":{"image":"i"}}}`, "{sidecar.istio.io/proxyImageType: distroless}", "a/b:1", "h.example/i:1-distroless"},
	} {
		out, _, err := inject.Pod(podFrom(t, "metadata: {name: web, namespace: shop, annotations: "+c.annotations+"}\nspec: {containers: [{name: web}]}"), configFrom(t, c.mesh, "", c.values))
		if err != nil {
			t.Fatal(err)
		}
		if proxy, initial := containerOf(t, out, inject.ProxyContainer).Image, containerOf(t, out, inject.InitContainer).Image; proxy != c.proxy || initial != c.initial {
			t.Errorf("%s %s: %s and %s, want %s and %s", c.mesh, c.annotations, proxy, initial, c.proxy, c.initial)
		}
	}
}
