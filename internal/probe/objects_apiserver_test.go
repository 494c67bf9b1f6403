//go:build apiserver

package probe_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/testneed"
	"github.com/selvage-mesh/selvage/internal/validate"
	_ "github.com/selvage-mesh/selvage/internal/validate/envoytypes"
)

// shownObjects are of every kind one whose mistake the CRDs let through: an error, or a warning where they find all errors.
var shownObjects = map[string]string{
	"networking.istio.io/v1 DestinationRule":        `{"host":"web:80"}`,
	"networking.istio.io/v1alpha3 EnvoyFilter":      `{"configPatches":[{"applyTo":"CLUSTER","patch":{"operation":"MERGE","value":{"lb_polcy":"RANDOM"}}}]}`,
	"networking.istio.io/v1 Gateway":                `{"servers":[{"port":{"number":80,"name":"http","protocol":"SMTP"},"hosts":["web"]}]}`,
	"networking.istio.io/v1 ServiceEntry":           `{"hosts":["*.example.org"],"resolution":"DNS"}`,
	"networking.istio.io/v1 Sidecar":                `{"egress":[{"hosts":["./web"]}]}`,
	"networking.istio.io/v1 VirtualService":         `{"hosts":["web"],"http":[{"match":[{"uri":{"regex":"a("}}]}]}`,
	"networking.istio.io/v1 WorkloadEntry":          `{"address":"vm_1"}`,
	"networking.istio.io/v1 WorkloadGroup":          `{"template":{},"metadata":{"labels":{"a b":"c"}}}`,
	"security.istio.io/v1 AuthorizationPolicy":      `{"rules":[{"when":[{"key":"source.namspace","values":["a"]}]}]}`,
	"security.istio.io/v1 RequestAuthentication":    `{"jwtRules":[{"issuer":"a","jwks":"keys"}]}`,
	"telemetry.istio.io/v1 Telemetry":               `{"accessLogging":[{"filter":{"expression":"a >="}}]}`,
	"extensions.istio.io/v1alpha1 WasmPlugin":       `{"url":"oci://a/b","vmConfig":{"env":[{"name":"A"}]},"selector":{"matchLabels":{"a b":"c"}},"match":[{"ports":[{"number":80}]}]}`,
	"networking.istio.io/v1beta1 ProxyConfig":       `{"concurrency":1,"selector":{"matchLabels":{"a b":"c"}}}`,
	"security.istio.io/v1 PeerAuthentication":       `{"selector":{"matchLabels":{"a b":"c"}}}`,
	"extensions.istio.io/v1alpha1 TrafficExtension": `{"lua":{"inlineCode":"-- a"},"selector":{"matchLabels":{"a b":"c"}}}`,
}

// TestKubectlShowsWhatIsWrong: the message of kubectl apply has the text of each problem that the webhook sees, its code and its hint.
func TestKubectlShowsWhatIsWrong(t *testing.T) {
	kubectl := testneed.Bin(t, "kubectl", "lab")
	c := connect(t)
	c.options.SkipCRDs = false
	c.hook.serve(c.handler())
	c.install()
	c.validating()
	for name, spec := range shownObjects {
		version, kind, _ := strings.Cut(name, " ")
		raw, err := json.Marshal(map[string]any{"apiVersion": version, "kind": kind, "metadata": map[string]any{"name": "shown", "namespace": "default"}, "spec": json.RawMessage(spec)})
		if err != nil {
			t.Fatal(err)
		}
		problems, err := validate.Object(raw)
		if err != nil || len(problems) == 0 {
			t.Fatalf("%s: %v, %v", name, problems, err)
		}
		apply := exec.CommandContext(t.Context(), kubectl, "--kubeconfig", os.Getenv("SELVAGE_TEST_KUBECONFIG"), "apply", "--dry-run=server", "-f", "-")
		apply.Stdin = strings.NewReader(string(raw))
		out, err := apply.CombinedOutput()
		errs := 0
		for _, p := range problems {
			if p.Severity == diag.Error {
				errs++
			}
			if text := fmt.Sprintf("%s default/shown: %s: %s (%s; %s)", kind, p.Field, p.Detail, p.Code, p.Hint); !strings.Contains(string(out), text) && len(text) < 250 {
				t.Errorf("%s: kubectl does not say %q, but\n%s", name, text, out)
			}
		}
		if (err != nil) != (errs > 0) {
			t.Errorf("%s: %v, and %d errors:\n%s", name, err, errs, out)
		}
	}
}

// validating lets the validator be called and fail closed, and waits until an invalid object is refused by it.
func (c *cluster) validating() {
	c.Helper()
	hooks := c.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	config, err := hooks.Get(c.Context(), "istio-validator-istio-system", metav1.GetOptions{})
	if err != nil {
		c.Fatal(err)
	}
	fail := admissionv1.Fail
	for i := range config.Webhooks {
		config.Webhooks[i].ClientConfig.CABundle, config.Webhooks[i].FailurePolicy = c.hook.root, &fail
	}
	if _, err := hooks.Update(c.Context(), config, metav1.UpdateOptions{}); err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	kubectl := testneed.Bin(c.TB, "kubectl", "lab")
	const invalid = `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"tried","namespace":"default"},"spec":{"host":"a:1"}}`
	for {
		try := exec.CommandContext(ctx, kubectl, "--kubeconfig", os.Getenv("SELVAGE_TEST_KUBECONFIG"), "create", "--dry-run=server", "-f", "-")
		try.Stdin = strings.NewReader(invalid)
		out, err := try.CombinedOutput()
		if err != nil && strings.Contains(string(out), string(diag.InvalidHost)) {
			return
		}
		if ctx.Err() != nil {
			c.Fatalf("the validator is not called: %v: %s", err, out)
		}
	}
}
