package inject_test

import (
	"testing"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// BenchmarkPod is the pure part: decide, inject, diff. The whole path, bytes to bytes, is webhook's BenchmarkInject.
func BenchmarkPod(b *testing.B) {
	cfg := configFrom(b, "", "", "")
	pod := podFrom(b, "metadata: {generateName: web-, namespace: shop, labels: {app: web}}\nspec:\n  containers:\n  - name: web\n    ports: [{containerPort: 80}]\n    readinessProbe: {httpGet: {path: /, port: 80}}\n")
	b.ReportAllocs()
	for b.Loop() {
		if v := inject.Decide(pod, cfg); !v.Inject {
			b.Fatal(v)
		}
		out, _, err := inject.Pod(pod, cfg)
		if err != nil || len(inject.Patch(pod, out)) == 0 {
			b.Fatal(err)
		}
	}
}
