package inject_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// TestMetrics: Prometheus is sent to the agent, which is told where the application has its metrics, in whichever spelling of the
// annotations the pod says it; who does not want to be scraped, or not merged, keeps its annotations.
func TestMetrics(t *testing.T) {
	const merged = "prometheus.io/path=/stats/prometheus prometheus.io/port=15020 prometheus.io/scrape=true"
	for name, c := range map[string]struct{ annotations, want, told string }{
		"no word": {"{}", merged, ""},
		"one":     {"{prometheus.io/scrape: 'true', prometheus.io/port: '9090'}", merged, `{"scrape":"true","path":"","port":"9090"}`},
		"several": {"{prometheus.io/scrape: 'true', prometheus.istio.io/scrape-targets: '8080:/metrics, 9100:/more'}", merged,
			`{"scrape":"true","path":"/metrics","port":"8080","targets":[{"port":"8080","path":"/metrics"},{"port":"9100","path":"/more"}]}`},
		"other spellings": {"{prometheus_io_path: /own, prometheus.io.port: '9091'}", merged, `{"scrape":"","path":"/own","port":"9091"}`},
		"not at all":      {"{prometheus.io.scrape: 'false', prometheus.io/port: '9090'}", "prometheus.io.scrape=false prometheus.io/port=9090", ""},
		"the agent's own": {"{prometheus.io/port: '15020'}", "prometheus.io/port=15020", ""},
		"not merged": {"{prometheus.istio.io/merge-metrics: 'false', prometheus.io/scrape: 'true', prometheus.io/port: http}",
			"prometheus.io/port=http prometheus.io/scrape=true prometheus.istio.io/merge-metrics=false", ""},
		"the agent elsewhere": {"{proxy.istio.io/config: 'statusPort: 16020', prometheus.io/scrape: 'true', prometheus.io/port: '15020'}",
			"prometheus.io/path=/stats/prometheus prometheus.io/port=16020 prometheus.io/scrape=true", `{"scrape":"true","path":"","port":"15020"}`},
	} {
		for kind, change := range map[string]func(testing.TB, string) string{"code": asIs, "text": asText} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				pod := podFrom(t, "metadata: {name: a, namespace: shop, annotations: "+c.annotations+"}\nspec: {containers: [{name: a, image: b}]}")
				out, _, err := inject.Pod(pod, configFrom(t, "", change(t, ""), ""))
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, name := range slices.Sorted(maps.Keys(out.Annotations)) {
					if strings.HasPrefix(name, "prometheus") {
						got = append(got, name+"="+out.Annotations[name])
					}
				}
				if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(c.told, envOf(out, "ISTIO_PROMETHEUS_ANNOTATIONS")); diff != "" {
					t.Error("the agent is told", diff)
				}
				if got, want := patched(t, pod, out), asJSON(t, out); !sameJSON(t, got, want) {
					t.Errorf("the patch gives another pod:\n%s\nwant\n%s", got, want)
				}
			})
		}
	}
}

// TestMetricsThatCannotBeScraped: the pod is refused before the agent would crash on it, or scrape itself.
func TestMetricsThatCannotBeScraped(t *testing.T) {
	for annotations, want := range map[string]string{
		"{prometheus.io/port: http}":                                                `prometheus.io/port: "http" is no port`,
		"{prometheus.io/port: '15090'}":                                             "prometheus.io/port: port 15090 is the mesh's own",
		"{status.sidecar.istio.io/port: '8124', prometheus.io/port: '8124'}":        "prometheus.io/port: port 8124 is the mesh's own",
		"{prometheus.istio.io/scrape-targets: '80,15020'}":                          `prometheus.istio.io/scrape-targets "80,15020": port 15020 is the mesh's own`,
		"{proxy.istio.io/config: 'statusPort: 16020', prometheus.io/port: '15021'}": "prometheus.io/port: port 15021 is the mesh's own",
	} {
		pod := podFrom(t, "metadata: {name: a, namespace: shop, annotations: "+annotations+"}\nspec: {containers: [{name: a, image: b}]}")
		_, _, err := inject.Pod(pod, configFrom(t, "", "", ""))
		if err == nil || !strings.Contains(err.Error(), "the application cannot be scraped: "+want) || !strings.Contains(err.Error(), "[SEL0020]") {
			t.Errorf("%s: %v, want %s", annotations, err, want)
		}
	}
}
