package acceptance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// TestIstiosTemplate injects the manifests of e2e/testdata/shapes twice: by `istioctl kube-inject`, and by us with the ConfigMaps of
// the same Istio. The pods must be the same. It needs no data but what istioctl, built from its Go module, prints.
func TestIstiosTemplate(t *testing.T) {
	istioctl := os.Getenv("ISTIOCTL")
	if istioctl == "" || os.Getenv("ISTIO_MANIFEST") == "" {
		t.Skip("ISTIOCTL and ISTIO_MANIFEST are not set: run make acceptance")
	}
	installed := istioSettings(t)
	dir := t.TempDir()
	args := []string{"kube-inject", "--revision", "default"} // without it istioctl waits for a cluster that would name one
	for name, file := range map[string]string{"config": "--injectConfigFile", "mesh": "--meshConfigFile", "values": "--valuesFile"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(installed[name]), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file, path)
	}
	cfg, problems := inject.ParseConfig([]byte(installed["mesh"]), []byte(installed["config"]), []byte(installed["values"]))
	if cfg == nil {
		t.Fatalf("Istio's settings are refused: %v", problems)
	}
	paths, err := filepath.Glob("../e2e/testdata/shapes/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("find manifests: %v (%d)", err, len(paths))
	}
	for _, mode := range []struct {
		name, native string
		minor        int
	}{{"native sidecars", "true", 34}, {"classic sidecars", "false", 28}} {
		// istioctl has the switch in its environment; we know what the cluster's version can do.
		options := inject.StreamOptions{Config: cfg.ForKubernetes(1, mode.minor)}
		same := tally{area: "inject (as istioctl kube-inject, " + mode.name + ")"}
		for _, path := range paths {
			switch base := filepath.Base(path); {
			case base == "two-templates.yaml":
				continue // its second template is none of Istio's
			case base == "overrides.yaml" && mode.native == "false":
				continue // overrides of a native sidecar, which we apply to a classic one too
			}
			theirs := exec.CommandContext(t.Context(), istioctl, append(args, "-f", path)...)
			theirs.Env = append(os.Environ(), "ENABLE_NATIVE_SIDECARS="+mode.native)
			difference := compareInjections(t, path, theirs, options)
			same.add(filepath.Base(path), difference)
			if difference != "" {
				t.Errorf("%s, %s:\n%s", mode.name, path, difference)
			}
		}
		same.print()
	}
}

// compareInjections is what differs between what istioctl makes of a manifest's pod and what we do.
func compareInjections(t *testing.T, path string, istioctl *exec.Cmd, options inject.StreamOptions) string {
	t.Helper()
	var theirs, said, ours bytes.Buffer
	istioctl.Stdout, istioctl.Stderr = &theirs, &said
	if err := istioctl.Run(); err != nil {
		t.Fatalf("istioctl kube-inject -f %s: %v\n%s", path, err, &said)
	}
	in, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inject.Stream(bytes.NewReader(in), &ours, options); err != nil {
		return "we refuse it: " + err.Error()
	}
	want, got := podsOf(t, theirs.Bytes()), podsOf(t, ours.Bytes())
	if len(want) != 1 || len(got) != 1 {
		return fmt.Sprintf("%d pods by istioctl, %d by us", len(want), len(got))
	}
	if bytes.Contains(in, []byte("kind: CronJob")) { // istioctl writes its labels and annotations into the Job's template, where no pod gets them
		want[0].ObjectMeta = got[0].ObjectMeta
	}
	return equalPods(want[0], got[0])
}

// podsOf are the pods of a stream.
func podsOf(t *testing.T, stream []byte) (pods []*corev1.Pod) {
	t.Helper()
	list, err := inject.StreamOptions{}.Workloads(stream, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range list {
		pods = append(pods, w.Pod)
	}
	return pods
}

// istioSettings are the texts config, values and mesh of an installed Istio's ConfigMaps.
func istioSettings(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(os.Getenv("ISTIO_MANIFEST"))
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
		var cm corev1.ConfigMap
		if yaml.Unmarshal(doc, &cm) != nil || cm.Kind != "ConfigMap" {
			continue
		}
		switch cm.Name {
		case "istio-sidecar-injector":
			texts["config"], texts["values"] = cm.Data["config"], cm.Data["values"]
		case "istio":
			texts["mesh"] = cm.Data["mesh"]
		}
	}
	for _, name := range []string{"config", "values", "mesh"} {
		if texts[name] == "" {
			t.Fatalf("%s has no %s", os.Getenv("ISTIO_MANIFEST"), name)
		}
	}
	return texts
}
