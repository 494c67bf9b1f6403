package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/lab/internal/pki"
	"github.com/selvage-mesh/selvage/lab/internal/testneed"
)

func config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{
		Dir: filepath.Join(dir, "node"), Logs: filepath.Join(dir, "logs"), Run: filepath.Join(dir, "run"), Cgroup: "selvage-x",
		PauseImage: "docker.io/selvage/pause:dev", Plugins: "/usr/lib/cni", PKI: pki.Set{Dir: "/pki"}, API: "127.0.0.1:6443",
		Kubeconfig: func(user string) string { return "/pki/" + user + ".kubeconfig" },
	}
}

// TestFilesThatAreRightAreNotWrittenAgain: kube-proxy ends when its configuration is written, so a second up would end it.
func TestFilesThatAreRightAreNotWrittenAgain(t *testing.T) {
	c := config(t)
	if err := c.Write(); err != nil {
		t.Fatal(err)
	}
	long := time.Unix(1000, 0)
	if err := os.Chtimes(c.File("kube-proxy.yaml"), long, long); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.File("corefile"), []byte("of an older release"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Write(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(c.File("kube-proxy.yaml")); err != nil || !info.ModTime().Equal(long) {
		t.Errorf("kube-proxy.yaml was written again: %v, %v", info.ModTime(), err)
	}
	if text, err := os.ReadFile(c.File("corefile")); err != nil || string(text) != c.corefile() {
		t.Errorf("the corefile stays wrong: %q, %v", text, err)
	}
}

// Whatever a node's program may write lies in the lab's folders: the machine has no other trace of it.
func TestEveryPathOfTheConfigurationIsTheLabs(t *testing.T) {
	c := config(t)
	if err := c.Write(); err != nil {
		t.Fatal(err)
	}
	var kubelet map[string]any
	content, err := os.ReadFile(c.File("kubelet.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &kubelet); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"podLogsDir", "volumePluginDir", "resolvConf"} {
		if path, _ := kubelet[key].(string); !strings.HasPrefix(path, filepath.Dir(c.Dir)) {
			t.Errorf("kubelet's %s is %q", key, path)
		}
	}
	if kubelet["cgroupRoot"] != "/selvage-x" {
		t.Errorf("pods' cgroups are below %v", kubelet["cgroupRoot"])
	}
	toml := string(must(t, c.File("containerd.toml")))
	for _, line := range []string{`root = "` + c.File("containerd") + `"`, `conf_dir = "` + c.File("cni") + `"`, `path = "` + c.File("opt") + `"`, `address = "` + c.Socket() + `"`} {
		if !strings.Contains(toml, line) {
			t.Errorf("containerd.toml lacks %s:\n%s", line, toml)
		}
	}
	if !strings.Contains(string(must(t, c.File("cni/10-pods.conflist"))), c.File("cni-addresses")) {
		t.Error("pods' addresses are remembered outside of the lab")
	}
}

func TestNoKernelSettingOfTheMachineIsWithinReach(t *testing.T) {
	testneed.Root(t)
	c := config(t)
	if err := c.Write(); err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	for name := range sysctls {
		if b, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			before[name] = string(b)
		}
	}
	done := make(chan error, 1)
	go func() { // on a thread of its own, which ends with it
		done <- enclosed(c, func() error {
			for name := range before {
				if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte("7\n"), 0o644); err != nil {
					return err
				}
			}
			return os.WriteFile("/run/netns/inside", nil, 0o644)
		})
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for name, was := range before {
		if got := string(must(t, filepath.Join("/proc/sys", name))); got != was {
			t.Errorf("%s is %q now, and was %q", name, got, was)
		}
	}
	if _, err := os.Stat("/run/netns/inside"); err == nil {
		t.Error("a name of a pod's network namespace is seen outside")
	}
}

func TestACgroupGoesWithWhatIsInIt(t *testing.T) {
	testneed.Root(t)
	name := "selvage-test-" + filepath.Base(t.TempDir())
	t.Cleanup(func() {
		if err := RemoveCgroup(name); err != nil {
			t.Error(err)
		}
	})
	if err := CreateCgroup(name); err != nil {
		t.Fatal(err)
	}
	if err := CreateCgroup(name); err != nil {
		t.Errorf("a cgroup that is there: %v", err)
	}
	roots, _ := hierarchies()
	child := filepath.Join(roots[0], name, "child")
	if err := os.Mkdir(child, 0o755); err != nil {
		t.Fatal(err)
	}
	ended := sleeper(t, filepath.Join(child, "cgroup.procs"))
	if err := RemoveCgroup(name); err != nil {
		t.Fatal(err)
	}
	<-ended
	if CgroupExists(name) {
		t.Error("it is still there")
	}
}

func must(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
