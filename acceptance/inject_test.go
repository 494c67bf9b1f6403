package acceptance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// injectCase is a file of inject/cases.
type injectCase struct {
	name             string
	ExpectedError    string `json:"expectedError"`
	InputYAML        string `json:"inputYAML"`
	MeshConfig       string `json:"meshConfig"`
	Values           string `json:"values"`
	NativeSidecars   string `json:"nativeSidecars"` // "1" is off
	CompliancePolicy string `json:"compliancePolicy"`
	Parts            []struct {
		Namespace string     `json:"namespace"`
		Pod       corev1.Pod `json:"Pod"`
		WantPod   corev1.Pod `json:"WantPod"`
	} `json:"parts"`
}

func injectCases(t *testing.T, dir string) (cases []injectCase) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "cases", "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("find cases in %s: %v (%d)", dir, err, len(paths))
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c := injectCase{name: strings.TrimSuffix(filepath.Base(path), ".json")}
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatalf("read %s: %v", path, err)
		}
		cases = append(cases, c)
	}
	return cases
}

// TestInject prints two numbers: with the templates of an installed Istio, where the pods must be equal, and with ours, where what a
// user relies on must be.
func TestInject(t *testing.T) {
	dir := folder(t, "inject")
	cases := injectCases(t, dir)
	if config := istioInjectConfig(t); config != nil {
		theirs := tally{area: "inject (Istio's template)"}
		for _, c := range cases {
			theirs.add(c.name, c.run(t, dir, config, equalPods))
		}
		theirs.print()
	} else {
		fmt.Println("inject (Istio's template): not measured, ISTIO_MANIFEST is not set")
	}
	ours := tally{area: "inject (our template)"}
	for _, c := range cases {
		ours.add(c.name, c.run(t, dir, nil, sameForUsers))
	}
	ours.print()
}

// istioInjectConfig is the key config of the ConfigMap istio-sidecar-injector in the file ISTIO_MANIFEST, what `istioctl manifest
// generate` printed.
func istioInjectConfig(t *testing.T) map[string]any {
	t.Helper()
	if os.Getenv("ISTIO_MANIFEST") == "" {
		return nil
	}
	config := map[string]any{}
	if err := yaml.Unmarshal([]byte(istioSettings(t)["config"]), &config); err != nil {
		t.Fatalf("read Istio's config: %v", err)
	}
	return config
}

// run injects a case's pods and compares them; config nil is our own template.
func (c injectCase) run(t *testing.T, dir string, config map[string]any, compare func(want, got *corev1.Pod) string) string {
	t.Helper()
	mesh, err := os.ReadFile(filepath.Join(dir, "configs", c.MeshConfig))
	if err != nil {
		t.Fatal(err)
	}
	settings, problems := inject.ParseSettings(mesh, c.config(t, dir, config), c.values(t, dir))
	settings.Serves = inject.Everything() // the patch is judged, whoever serves the pod
	cfg, more := settings.Compile()
	if problems = append(problems, more...); cfg == nil {
		for _, p := range problems {
			if p.Severity == diag.Error {
				return "the configuration is refused: " + p.String()
			}
		}
	}
	if c.ExpectedError != "" || len(c.Parts) == 0 {
		_, err := inject.Stream(strings.NewReader(c.InputYAML), &bytes.Buffer{}, inject.StreamOptions{Config: cfg})
		switch {
		case c.ExpectedError == "" && err != nil:
			return "it is refused: " + err.Error()
		case c.ExpectedError != "" && err == nil:
			return "it is accepted, want an error with " + c.ExpectedError
		case c.ExpectedError != "" && !strings.Contains(strings.ToLower(err.Error()), c.ExpectedError):
			return fmt.Sprintf("the error has no %q: %v", c.ExpectedError, err)
		}
		return ""
	}
	var differences []string
	for i := range c.Parts {
		p := &c.Parts[i]
		pod := p.Pod.DeepCopy()
		pod.Namespace = p.Namespace
		got, err := injected(pod, cfg)
		switch {
		case err != nil:
			differences = append(differences, "it is refused: "+err.Error())
		default:
			got.Namespace = p.WantPod.Namespace
			if d := compare(p.WantPod.DeepCopy(), got); d != "" {
				differences = append(differences, d)
			}
		}
	}
	return strings.Join(differences, "\n")
}

// injected is what the API server would have after the webhook's patch.
func injected(pod *corev1.Pod, cfg *inject.Config) (*corev1.Pod, error) {
	if v := inject.Decide(pod, cfg); !v.Inject && v.Reason != inject.AlreadyInjected {
		return pod, nil
	}
	after, _, err := inject.Pod(pod, cfg)
	if err != nil {
		return nil, err
	}
	ops, err := json.Marshal(inject.Patch(pod, after))
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.DecodePatch(ops)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	patched, err := patch.Apply(before)
	if err != nil {
		return nil, fmt.Errorf("apply %s: %w", ops, err)
	}
	out := &corev1.Pod{}
	return out, json.Unmarshal(patched, out)
}

// values are the case's, with the server's settings where an installation has them.
func (c injectCase) values(t *testing.T, dir string) []byte {
	t.Helper()
	values := c.readValues(t, dir)
	pilot, _ := values["pilot"].(map[string]any)
	env, _ := pilot["env"].(map[string]any)
	env = maps.Clone(env)
	if env == nil {
		env = map[string]any{}
	}
	if c.NativeSidecars == "1" {
		env["ENABLE_NATIVE_SIDECARS"] = "false"
	}
	if c.CompliancePolicy != "" {
		env["COMPLIANCE_POLICY"] = c.CompliancePolicy
	}
	pilot["env"] = env
	data, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (c injectCase) readValues(t *testing.T, dir string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "configs", c.Values))
	values := map[string]any{}
	if err == nil {
		err = yaml.Unmarshal(data, &values)
	}
	if err != nil {
		t.Fatalf("read %s: %v", c.Values, err)
	}
	return values
}

// config is the installed one with the case's own templates, which the chart takes from the values.
func (c injectCase) config(t *testing.T, dir string, installed map[string]any) []byte {
	t.Helper()
	config := maps.Clone(installed)
	if config == nil {
		config = map[string]any{}
	}
	webhook, _ := c.readValues(t, dir)["sidecarInjectorWebhook"].(map[string]any)
	if own, _ := webhook["templates"].(map[string]any); len(own) > 0 {
		templates, _ := config["templates"].(map[string]any)
		templates = maps.Clone(templates)
		if templates == nil {
			templates = map[string]any{}
		}
		maps.Copy(templates, own)
		config["templates"] = templates
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// youngerVariable is one that the template has and the data does not know yet: the template is some days younger.
const youngerVariable = "GOMAXPROCS"

// equalPods compares all of two pods, as JSON, but for what means nothing: the order of lists that have a key, and of the fields in
// values that are JSON.
func equalPods(want, got *corev1.Pod) string {
	return strings.Join(differences("", normal(want), normal(got)), "\n")
}

func normal(pod *corev1.Pod) any {
	for name, value := range pod.Annotations {
		pod.Annotations[name] = normalJSON(value)
	}
	byName := func(a, b corev1.Volume) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(pod.Spec.Volumes, byName)
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			list[i].Env = slices.DeleteFunc(list[i].Env, func(e corev1.EnvVar) bool { return e.Name == youngerVariable })
			slices.SortStableFunc(list[i].Env, func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) })
			slices.SortFunc(list[i].VolumeMounts, func(a, b corev1.VolumeMount) int { return strings.Compare(a.MountPath, b.MountPath) })
			for j := range list[i].Env {
				list[i].Env[j].Value = normalJSON(list[i].Env[j].Value)
				if from := list[i].Env[j].ValueFrom; from != nil && from.FieldRef != nil {
					from.FieldRef.APIVersion = ""
				}
			}
		}
	}
	return generic(pod)
}

func normalJSON(value string) string {
	if !strings.HasPrefix(value, "{") && !strings.HasPrefix(value, "[") {
		return value
	}
	var v any
	if json.Unmarshal([]byte(value), &v) != nil {
		return value
	}
	withoutEmptyResources(v)
	data, _ := json.Marshal(v)
	return string(data)
}

// withoutEmptyResources takes away what Go writes of a container that asks for nothing.
func withoutEmptyResources(v any) {
	switch v := v.(type) {
	case map[string]any:
		if r, is := v["resources"].(map[string]any); is && len(r) == 0 {
			delete(v, "resources")
		}
		for _, inner := range v {
			withoutEmptyResources(inner)
		}
	case []any:
		for _, inner := range v {
			withoutEmptyResources(inner)
		}
	}
}
