package helm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const chartDir = "../../charts/selvage"

// render is what Helm makes of the chart with these values (YAML), in a release of namespace istio-system.
func render(e engine.Engine, values string) (map[string]*unstructured.Unstructured, error) {
	capabilities := common.DefaultCapabilities.Copy() // of whatever Helm's library knows itself
	capabilities.KubeVersion.Version = "v1.37.2"
	return renderIn(e, values, "istio-system", capabilities)
}

func renderIn(e engine.Engine, values, namespace string, capabilities *common.Capabilities) (map[string]*unstructured.Unstructured, error) {
	c, err := loader.Load(chartDir)
	if err != nil {
		return nil, err
	}
	given, err := common.ReadValues([]byte(values))
	if err != nil {
		return nil, err
	}
	all, err := commonutil.ToRenderValues(c, given, common.ReleaseOptions{Name: "selvage", Namespace: namespace, Revision: 1, IsInstall: true}, capabilities)
	if err != nil {
		return nil, err
	}
	files, err := e.RenderWithContext(context.Background(), c, all)
	if err != nil {
		return nil, err
	}
	objects := map[string]*unstructured.Unstructured{}
	for name, text := range files {
		if filepath.Ext(name) == ".yaml" {
			err = errors.Join(err, add(objects, text))
		}
	}
	return objects, err
}

func key(u *unstructured.Unstructured) string {
	return u.GetKind() + " " + u.GetNamespace() + "/" + u.GetName()
}

// add parses a stream of documents.
func add(objects map[string]*unstructured.Unstructured, text string) error {
	for doc := range strings.SplitSeq(text, "\n---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(strings.TrimPrefix(doc, "---\n")), &u.Object); err != nil {
			return fmt.Errorf("%w in\n%s", err, doc)
		}
		if len(u.Object) == 0 {
			continue
		}
		if objects[key(u)] != nil {
			return fmt.Errorf("%s is there twice", key(u))
		}
		objects[key(u)] = u
	}
	return nil
}

// selvage runs the CLI and gives the objects that it prints.
func selvage(t *testing.T, args ...string) map[string]*unstructured.Unstructured {
	t.Helper()
	binary := "../../bin/selvage"
	if _, err := os.Stat(binary); err != nil {
		t.Fatal("needs bin/selvage: run `make build` first")
	}
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"install", "--dry-run", "-o", "yaml"}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("selvage install %v: %v\n%s", args, err, said.String())
	}
	objects := map[string]*unstructured.Unstructured{}
	if err := add(objects, string(out)); err != nil {
		t.Fatal(err)
	}
	return objects
}

// plain is an object in a form that compares: numbers as JSON has them, and the documents in ConfigMaps as what they say.
func plain(t *testing.T, u *unstructured.Unstructured, revision []string) any {
	t.Helper()
	u = u.DeepCopy()
	if u.GetKind() == "ConfigMap" {
		data := u.Object["data"].(map[string]any)
		for name, text := range data {
			if name == "mesh" { // as `selvage install` writes what it is given
				data[name] = canonical(t, text.(string), revision)
				continue
			}
			var document any
			if err := yaml.Unmarshal([]byte(text.(string)), &document); err != nil {
				t.Fatalf("%s, %s: %v", key(u), name, err)
			}
			data[name] = document
		}
	}
	raw, err := json.Marshal(u.Object)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func canonical(t *testing.T, mesh string, revision []string) string {
	t.Helper()
	name := "istio"
	if len(revision) > 0 {
		name += "-" + revision[1]
	}
	for key, u := range selvage(t, append([]string{"--skip-crds", "--mesh-config", file(t, mesh)}, revision...)...) {
		if key == "ConfigMap istio-system/"+name {
			text, _, _ := unstructured.NestedString(u.Object, "data", "mesh")
			return text
		}
	}
	t.Fatalf("there is no mesh configuration %s", name)
	return ""
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

const meshConfig = "accessLogFile: /dev/stdout\ntrustDomain: mesh.example\ndefaultConfig:\n  holdApplicationUntilProxyStarts: true\n  proxyMetadata: {A: \"1\"}\n"

// TestTheChartGivesTheObjectsOfInstall renders the chart by Helm and compares object by object with what `selvage install` applies. One
// object is the user's with Helm: the release's own namespace, which must be there before the chart.
func TestTheChartGivesTheObjectsOfInstall(t *testing.T) {
	indented := strings.ReplaceAll("\n"+strings.TrimSpace(meshConfig), "\n", "\n  ")
	for name, c := range map[string]struct {
		values string
		args   []string
	}{
		"nothing said":                {"", nil},
		"webhooks that are not held":  {"heldWebhooks: false", []string{"--held-webhooks=false"}},
		"guards":                      {"{revision: canary, guards: {meshed: Deny, in-use: Off, labels: Audit, config: Deny}}", []string{"--revision", "canary", "--guard", "meshed=Deny,in-use=Off,labels=Audit,config=Deny"}},
		"no guards":                   {"{heldWebhooks: false, guards: {meshed: Off, in-use: Off, labels: Off, config: Off}}", []string{"--held-webhooks=false", "--guard", "all=Off"}},
		"a revision":                  {"revision: asm-1234-1", []string{"--revision", "asm-1234-1"}},
		"a revision that is a number": {`revision: "123"`, []string{"--revision", "123"}},
		"a default of another name":   {"{revision: canary, setDefault: true}", []string{"--revision", "canary", "--set-default"}},
		"that, everywhere":            {"{revision: canary, setDefault: true, everyNamespace: true}", []string{"--revision", "canary", "--set-default", "--every-namespace"}},
		"every namespace":             {"everyNamespace: true", []string{"--every-namespace"}},
		"the default named":           {"{revision: default, setDefault: true}", []string{"--revision", "default", "--set-default"}},
		"replicas and resources":      {"{replicas: 1, resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {memory: 4Gi}}}", []string{"--replicas", "1", "--requests", "cpu=500m,memory=1Gi", "--limits", "memory=4Gi"}},
		"images of a registry of one's own": {"image: {registry: registry.example.com:5000/mesh/, tag: 1.2.3, pullPolicy: Always}",
			[]string{"--registry", "registry.example.com:5000/mesh/", "--tag", "1.2.3", "--pull-policy", "Always"}},
		"images by their whole names": {"image: {controlPlane: \"a.example/b@sha256:0000\", proxy: \"c.example:5000/d/e:f\"}",
			[]string{"--image", "a.example/b@sha256:0000", "--proxy-image", "c.example:5000/d/e:f"}},
		"a sidecar's image by its digest": {"image: {proxy: \"c.example/d@sha256:0000\"}", []string{"--proxy-image", "c.example/d@sha256:0000"}},
		"names and logs": {`{clusterID: east-1, trustDomain: other.example, logLevel: debug, nativeSidecars: "false"}`,
			[]string{"--cluster-id", "east-1", "--trust-domain", "other.example", "--log-level", "debug", "--native-sidecars", "false"}},
		"another authority": {`{revision: canary, ca: {address: "cert-manager-istio-csr.cert-manager.svc:443"}}`,
			[]string{"--revision", "canary", "--ca-address", "cert-manager-istio-csr.cert-manager.svc:443"}},
		"another authority, with roots that are distributed": {`{ca: {address: "ca.example:443", roots: the-roots, tlsSecret: own-tls}}`,
			[]string{"--ca-address", "ca.example:443", "--ca-roots", "the-roots", "--ca-tls-secret", "own-tls"}},
		"a signer of Kubernetes": {`{ca: {signer: example.com/mesh, roots: the-roots}}`, []string{"--ca-signer", "example.com/mesh", "--ca-roots", "the-roots"}},
		"a signer with roots in the mesh configuration": {"ca: {signer: example.com/mesh}\nmeshConfig:" + strings.ReplaceAll("\n"+signerMesh, "\n", "\n  "),
			[]string{"--ca-signer", "example.com/mesh", "--mesh-config", "SIGNER"}},
		"a mesh configuration": {"meshConfig:" + indented, []string{"--mesh-config", "FILE"}},
		"a mesh configuration, and a trust domain beside it": {"revision: asm-2\ntrustDomain: other.example\nmeshConfig:" + indented,
			[]string{"--mesh-config", "FILE", "--trust-domain", "other.example", "--revision", "asm-2"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--skip-crds"}, c.args...)
			var revision []string
			for i, arg := range args {
				switch arg {
				case "FILE":
					args[i] = file(t, meshConfig)
				case "SIGNER":
					args[i] = file(t, signerMesh)
				case "--revision":
					if args[i+1] != "default" {
						revision = args[i : i+2]
					}
				}
			}
			want := selvage(t, args...)
			maps.DeleteFunc(want, func(key string, u *unstructured.Unstructured) bool {
				return key == "Namespace /istio-system" || u.GetKind() == "CustomResourceDefinition"
			})
			got, err := render(engine.Engine{Strict: true}, c.values)
			if err != nil {
				t.Fatal(err)
			}
			if a, b := slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)); !slices.Equal(a, b) {
				t.Fatalf("selvage install has\n%s\nthe chart has\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
			}
			for key := range want {
				if a, b := plain(t, want[key], revision), plain(t, got[key], revision); !reflect.DeepEqual(a, b) {
					x, _ := yaml.Marshal(a)
					y, _ := yaml.Marshal(b)
					t.Errorf("%s: selvage install has\n%s\nthe chart has\n%s", key, x, y)
				}
			}
		})
	}
}

// signerMesh is a mesh configuration with the roots of a signer.
const signerMesh = "caCertificates: [{certSigners: [example.com/mesh], pem: the roots of the signer}]"

// TestTheChartRefusesAuthoritiesThatInstallRefuses, before anything is applied.
func TestTheChartRefusesAuthoritiesThatInstallRefuses(t *testing.T) {
	for values, want := range map[string]string{
		"{ca: {address: \"a.example:1\", signer: b.example/c}}": "one authority signs for the mesh",
		"{ca: {roots: r}}":              "are for an authority elsewhere",
		"{ca: {signer: b.example/c}}":   "the roots of signer b.example/c are not known",
		"{ca: {address: \"no port\"}}":  "ca.address",
		"{ca: {tlsSecret: s, nope: x}}": "nope",
	} {
		if _, err := render(engine.Engine{Strict: true}, values); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "/", "."), strings.ReplaceAll(want, "/", ".")) {
			t.Errorf("%s: %v; want an error that says %q", values, err, want)
		}
	}
}

// TestASecondReleaseLeavesOutWhatIsShared: Helm lets no two releases have one object.
func TestASecondReleaseLeavesOutWhatIsShared(t *testing.T) {
	first, err := render(engine.Engine{}, "")
	if err != nil {
		t.Fatal(err)
	}
	second, err := render(engine.Engine{}, "{revision: asm-2, shared: false}")
	if err != nil {
		t.Fatal(err)
	}
	for key := range second {
		if first[key] != nil {
			t.Errorf("both have %s", key)
		}
	}
	if len(first) <= len(second) || len(second) < 15 {
		t.Errorf("the first has %d objects, the second %d", len(first), len(second))
	}
}

// TestTheChartWantsAdmissionPolicies: it renders them for every API server, so it refuses those that have none (before Kubernetes 1.30).
func TestTheChartWantsAdmissionPolicies(t *testing.T) {
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]bool{"v1.29.9": false, "v1.30.0": true, "v1.33.2-gke.1000": true, "v1.37.2": true} {
		if got := chartutil.IsCompatibleRange(c.Metadata.KubeVersion, version); got != want {
			t.Errorf("Kubernetes %s is taken: %t; want %t", version, got, want)
		}
	}
}

// TestHeldWebhooksTakeWhatTheAPIServerServes, as `selvage install` does. With a cluster Helm knows the kinds that it serves.
func TestHeldWebhooksTakeWhatTheAPIServerServes(t *testing.T) {
	for _, c := range []struct{ kubernetes, kind, mutating, want string }{
		{"v1.37.2", "", "v1", "admissionregistration.k8s.io/v1"},
		{"v1.35.1", "", "none", ""},
		{"v1.35.1", "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy", "v1beta1", "admissionregistration.k8s.io/v1beta1"},
	} {
		capabilities := common.DefaultCapabilities.Copy()
		capabilities.KubeVersion.Version = c.kubernetes
		capabilities.APIVersions = append(slices.Clone(capabilities.APIVersions), c.kind)
		got, err := renderIn(engine.Engine{}, "", "istio-system", capabilities)
		if err != nil {
			t.Fatal(err)
		}
		want := selvage(t, "--skip-crds", "--mutating-policies", c.mutating)
		for _, kind := range []string{"MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "AdmissionParameter"} {
			key := kind + " /selvage-held-webhooks"
			if is, should := got[key], want[key]; (is == nil) != (should == nil) || is != nil && is.GetAPIVersion() != should.GetAPIVersion() {
				t.Errorf("Kubernetes %s with %q: the chart has %v, selvage install has %v", c.kubernetes, c.kind, is, should)
			}
		}
		if m := got["MutatingAdmissionPolicy /selvage-held-webhooks"]; (m == nil) != (c.want == "") || m != nil && m.GetAPIVersion() != c.want {
			t.Errorf("Kubernetes %s with %q: the chart has %v; want version %s", c.kubernetes, c.kind, m, c.want)
		}
	}
}

// TestTheChartHasTheDefinitionsOfInstall in the folder that Helm applies first.
func TestTheChartHasTheDefinitionsOfInstall(t *testing.T) {
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*unstructured.Unstructured{}
	for _, crd := range c.CRDObjects() {
		if err := add(got, string(crd.File.Data)); err != nil {
			t.Fatal(err)
		}
	}
	for key, u := range selvage(t) {
		if u.GetKind() != "CustomResourceDefinition" {
			continue
		}
		if got[key] == nil || !reflect.DeepEqual(plain(t, u, nil), plain(t, got[key], nil)) {
			t.Errorf("%s differs, or is missing", key)
		}
		delete(got, key)
	}
	if len(got) > 0 || len(c.CRDObjects()) == 0 {
		t.Errorf("the chart has more, or nothing: %v", slices.Sorted(maps.Keys(got)))
	}
}

// TestValuesThatCannotWorkAreRefused with a sentence that names the value.
func TestValuesThatCannotWorkAreRefused(t *testing.T) {
	for _, c := range []struct{ values, namespace, want string }{
		{"revision: Canary", "istio-system", "revision"},
		{"revision: 123", "istio-system", "revision"},
		{"replicas: 0", "istio-system", "replicas"},
		{"replica: 3", "istio-system", "replica"},
		{"image: {tag: \"a b\"}", "istio-system", "tag"},
		{"clusterID: \"a\\nb\"", "istio-system", "clusterID"},
		{"logLevel: loud", "istio-system", "logLevel"},
		{"nativeSidecars: maybe", "istio-system", "nativeSidecars"},
		{"{revision: canary, everyNamespace: true}", "istio-system", "everyNamespace wants setDefault for revision canary"},
		{"", "default", "install with --namespace istio-system"},
	} {
		if _, err := renderIn(engine.Engine{}, c.values, c.namespace, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s in namespace %s: %v; want %s", c.values, c.namespace, err, c.want)
		}
	}
}
