package inject_test

import (
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
)

func asIs(_ testing.TB, config string) string { return config }

// samples are values of every annotation that Istio has for pods, good ones and bad ones.
var samples = map[string][]string{
	annotation.AmbientBypassInboundCapture.Name:               {"true"},
	annotation.AmbientDnsCapture.Name:                         {"true"},
	annotation.AmbientRedirection.Name:                        {"enabled"},
	annotation.GalleyAnalyzeSuppress.Name:                     {"*"},
	annotation.InjectTemplates.Name:                           {"sidecar"},
	annotation.IoIstioRerouteVirtualInterfaces.Name:           {"net1", "eth 0"},
	annotation.IoIstioRev.Name:                                {"old"},
	annotation.PrometheusMergeMetrics.Name:                    {"true", "false", "maybe"},
	annotation.ProxyConfig.Name:                               {"concurrency: 2", "{terminationDrainDuration: 7s}", "holdApplicationUntilProxyStarts: true", "concurency: 1"},
	annotation.ProxyOverrides.Name:                            {`{"containers":[{"name":"istio-proxy","tty":true}]}`, `{"initContainers":[{"name":"istio-init","image":"a/b"}]}`, "{"},
	annotation.SidecarAgentLogLevel.Name:                      {"debug", "default:info,xds:debug", "$(rm)"},
	annotation.SidecarBootstrapOverride.Name:                  {"mine"},
	annotation.SidecarComponentLogLevel.Name:                  {"misc:error", "http:trace,upstream:debug", "a b"},
	annotation.SidecarDiscoveryAddress.Name:                   {"istiod:15012"},
	annotation.SidecarExtraStatTags.Name:                      {"a,b"},
	annotation.SidecarInject.Name:                             {"true"},
	annotation.SidecarInterceptionMode.Name:                   {"REDIRECT", "TPROXY", "NONE", "MAYBE"},
	annotation.SidecarLogLevel.Name:                           {"debug", "loud"},
	annotation.SidecarNativeSidecar.Name:                      {"true", "false"},
	annotation.SidecarProxyCPU.Name:                           {"50m", "3", "many"},
	annotation.SidecarProxyCPULimit.Name:                      {"1", "4000m"},
	annotation.SidecarProxyImage.Name:                         {"example.com/proxy:1", "a b"},
	annotation.SidecarProxyImageType.Name:                     {"debug", "distroless", "default"},
	annotation.SidecarProxyMemory.Name:                        {"64Mi"},
	annotation.SidecarProxyMemoryLimit.Name:                   {"1Gi", "-1"},
	annotation.SidecarRewriteAppHTTPProbers.Name:              {"true", "false"},
	annotation.SidecarStatsCompression.Name:                   {"gzip"},
	annotation.SidecarStatsEvictionInterval.Name:              {"1m"},
	annotation.SidecarStatsFlushInterval.Name:                 {"5s"},
	annotation.SidecarStatsHistogramBins.Name:                 {"{}"},
	annotation.SidecarStatsHistogramBuckets.Name:              {`{"a":[1,2]}`},
	annotation.SidecarStatsInclusionPrefixes.Name:             {"cluster."},
	annotation.SidecarStatsInclusionRegexps.Name:              {".*"},
	annotation.SidecarStatsInclusionSuffixes.Name:             {"rq_total"},
	annotation.SidecarStatus.Name:                             {"{}", "x"},
	annotation.SidecarStatusPort.Name:                         {"0", "15021", "123", "http"},
	annotation.SidecarStatusReadinessApplicationPorts.Name:    {"80"},
	annotation.SidecarStatusReadinessFailureThreshold.Name:    {"7"},
	annotation.SidecarStatusReadinessInitialDelaySeconds.Name: {"0", "3"},
	annotation.SidecarStatusReadinessPeriodSeconds.Name:       {"5", "soon"},
	annotation.SidecarTrafficExcludeInboundPorts.Name:         {"22, 80", ""},
	annotation.SidecarTrafficExcludeInterfaces.Name:           {"eth1"},
	annotation.SidecarTrafficExcludeOutboundIPRanges.Name:     {"10.0.0.1/8", "fd00::/8, 10.1.0.0/16"},
	annotation.SidecarTrafficExcludeOutboundPorts.Name:        {"443"},
	annotation.SidecarTrafficIncludeInboundPorts.Name:         {"*", "8080", ""},
	annotation.SidecarTrafficIncludeOutboundIPRanges.Name:     {"*", "10.0.0.0/8"},
	annotation.SidecarTrafficIncludeOutboundPorts.Name:        {"80", "*"},
	annotation.SidecarTrafficKubevirtInterfaces.Name:          {"net1"},
	annotation.SidecarUserVolume.Name:                         {`{"extra":{"emptyDir":{}}}`, `[{"name":"b","configMap":{"name":"b"}}]`, "{"},
	annotation.SidecarUserVolumeMount.Name:                    {`{"extra":{"mountPath":"/extra"}}`},
}

// annotated adds some of all annotations to a pod, and sometimes a user's own part of the sidecar.
func annotated(r *rand.Rand, pod *corev1.Pod) *corev1.Pod {
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	for _, name := range slices.Sorted(maps.Keys(samples)) {
		if values := samples[name]; r.IntN(20) == 0 {
			pod.Annotations[name] = values[r.IntN(len(values))]
			if r.IntN(3) > 0 {
				pod.Annotations[name] = values[0] // the good one
			}
		}
	}
	if r.IntN(6) == 0 {
		uid := int64(r.IntN(3) * 1000)
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "istio-proxy", Image: pick(r, "auto", "a/b"), TTY: true,
			Env:             []corev1.EnvVar{{Name: "MINE", Value: "1"}, {Name: "TRUST_DOMAIN", Value: "mine"}},
			Ports:           []corev1.ContainerPort{{ContainerPort: 9999}},
			SecurityContext: &corev1.SecurityContext{RunAsUser: &uid}})
	}
	if r.IntN(10) == 0 && !slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == inject.InitContainer }) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: "istio-init", Args: []string{"mine"}})
	}
	return pod
}

// TestSamplesHaveEveryAnnotation fails when Istio's API gains an annotation for pods.
func TestSamplesHaveEveryAnnotation(t *testing.T) {
	for _, a := range annotation.AllResourceAnnotations() {
		if slices.Contains(a.Resources, annotation.Pod) && samples[a.Name] == nil {
			t.Errorf("there is no sample of %s", a.Name)
		}
	}
}

// asText gives the same configuration with the sidecar's template as a text of the operator's: a comment more than the built-in one,
// so that it takes the general path.
func asText(t testing.TB, config string) string {
	t.Helper()
	doc := map[string]any{}
	if err := yaml.Unmarshal([]byte(config), &doc); err != nil {
		t.Fatal(err)
	}
	doc["templates"] = map[string]string{"sidecar": inject.ShippedTemplate("sidecar") + "# ours\n"}
	data, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestTextAndCodeGiveTheSamePod holds sidecar.yaml to sidecar.go: whatever the pod and the configuration, either gives the same pod,
// or refuses it with the same words.
func TestTextAndCodeGiveTheSamePod(t *testing.T) {
	typed, text := generatedConfigs(t, asIs), generatedConfigs(t, asText)
	refused := 0
	for seed := range uint64(800) {
		r := rand.New(rand.NewPCG(seed, 11))
		pod, i := annotated(r, generated(r)), r.IntN(len(typed))
		want, _, err := inject.Pod(pod, typed[i])
		got, _, err2 := inject.Pod(pod, text[i])
		if err != nil || err2 != nil {
			if refused++; err == nil || err2 == nil || err.Error() != err2.Error() {
				t.Fatalf("seed %d: the code gives the error %v, the text %v", seed, err, err2)
			}
			continue
		}
		if !reflect.DeepEqual(asJSON(t, want), asJSON(t, got)) {
			t.Fatalf("seed %d: the pod of the code (-) is not that of the text (+):\n%s\nof\n%s", seed, cmp.Diff(want, got), asJSON(t, pod))
		}
	}
	if refused > 400 {
		t.Errorf("%d of 800 pods are refused: the generator makes too many bad ones", refused)
	}
}
