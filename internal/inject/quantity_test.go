package inject_test

import (
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// TestQuantitiesThatNeverEnd: wherever a user's quantity is parsed, one whose parsing would take minutes is refused at once, by name.
func TestQuantitiesThatNeverEnd(t *testing.T) {
	cfg := configFrom(t, "", "", "")
	const endless = "1e-30000000"
	for name, value := range map[string]string{
		"sidecar.istio.io/proxyCPU":         endless,
		"sidecar.istio.io/proxyMemoryLimit": "-" + endless,
		"sidecar.istio.io/userVolume":       `{"a":{"emptyDir":{"sizeLimit":"` + endless + `"}}}`,
		"proxy.istio.io/overrides":          `{"containers":[{"name":"istio-proxy","resources":{"requests":{"cpu":"` + endless + `"}}}]}`,
	} {
		pod := podFrom(t, "metadata: {name: web, namespace: shop}\nspec: {containers: [{name: web}]}")
		pod.Annotations = map[string]string{name: value}
		if _, _, err := inject.Pod(pod, cfg); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), endless) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for text, bad := range map[string]bool{
		`{"limits":{"cpu":"1e-30000000"}}`: true, `[{"x":{"requests":{"a":1E99999}}}]`: true, `{"divisor":"1.5e+12345"}`: true,
		`{"limits":{"cpu":"1e3"}}`: false, `{"env":[{"value":"12e34567"}]}`: false, `{"labels":{"commit":"12e34567"}}`: false, `{`: false, ``: false,
	} {
		if err := inject.CheckQuantities([]byte(text)); (err != nil) != bad {
			t.Errorf("%s: %v", text, err)
		}
	}
}
