package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/netns"
	"github.com/selvage-mesh/selvage/lab/internal/node"
	"github.com/selvage-mesh/selvage/lab/internal/proc"
	"github.com/selvage-mesh/selvage/lab/internal/progress"
	"github.com/selvage-mesh/selvage/lab/internal/state"
	"github.com/selvage-mesh/selvage/lab/internal/testneed"
)

// config is a lab without a mesh, in a folder of its own that is gone with the test. On Linux /tmp may be a small tmpfs: the
// folder is where the repository is.
func config(t *testing.T, level Level) Config {
	t.Helper()
	bin := testneed.Bin(t, "selvage-kube", "selvage-dns", "selvage-lab", "selvage-pause", "kubectl")
	dir, err := os.MkdirTemp(filepath.Join(bin, "..", ".cache"), "labtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Config{
		Dir: filepath.Join(dir, "lab"), Level: level, Bin: bin, Tag: "test", Cache: filepath.Join(dir, "cache"), Program: "bin/selvage",
		Progress: progress.New(os.Stderr),
	}
}

// up brings a lab up and takes it down at the end of the test.
func up(t *testing.T, cfg Config) *state.Dir {
	t.Helper()
	t.Cleanup(func() { down(t, cfg.Dir) })
	dir, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func down(t *testing.T, path string) {
	t.Helper()
	if _, err := Down(context.Background(), path, progress.New(os.Stderr)); err != nil {
		t.Errorf("down: %v", err)
	}
}

func kubectl(t *testing.T, dir *state.Dir, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(testneed.Bin(t), "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+dir.File("kubeconfig"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// nothingLeft fails the test when anything of the lab is on the machine.
func nothingLeft(t *testing.T, path string) {
	t.Helper()
	dir, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := proc.Marked(dir.Path()); err != nil || len(ids) > 0 {
		t.Errorf("processes are left: %v %v", ids, err)
	}
	if netns.Exists(dir.Name()) {
		t.Error("the network namespace is left")
	}
	if node.CgroupExists(dir.Name()) {
		t.Error("the cgroup is left")
	}
	for _, p := range []string{runDir(dir), dir.Path()} {
		if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", p)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, dir.Path()) || strings.Contains(line, dir.Name()) {
			t.Errorf("a mount is left: %s", line)
		}
	}
}

func TestLevel1ComesUpAndLeavesNothing(t *testing.T) {
	cfg := config(t, Level1)
	before := machine(t)
	dir := up(t, cfg)
	if got := kubectl(t, dir, "auth", "whoami"); !strings.Contains(got, "system:masters") {
		t.Errorf("whoami: %s", got)
	}
	kubectl(t, dir, "create", "deployment", "web", "--image=web")
	kubectl(t, dir, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=60s") // the controllers are at work
	if after := machine(t); after != before {
		t.Errorf("the machine changed from\n%s\nto\n%s", before, after)
	}

	first := dir.Lab().Processes
	began := time.Now()
	again, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatalf("up on a running lab: %v", err)
	}
	t.Logf("up on a running lab took %v", time.Since(began))
	for name, pid := range first {
		if again.Lab().Processes[name] != pid {
			t.Errorf("up on a running lab started %s again", name)
		}
	}

	id := again.Lab().Identities[cluster.ControllerManager]
	if err := proc.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	said, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Progress = progress.New(said)
	if mended, err := Up(t.Context(), cfg); err != nil || !mended.Lab().Identities[cluster.ControllerManager].Alive() {
		t.Errorf("up does not mend a lab whose controllers died: %v", err)
	}
	text, err := os.ReadFile(said.Name())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "mended: "); n != 1 || !strings.Contains(string(text), "  mended: kube-controller-manager had died, started again\n") {
		t.Errorf("up says that it mended %d programs, want the controller-manager alone:\n%s", n, text)
	}

	down(t, cfg.Dir)
	nothingLeft(t, cfg.Dir)
	if found, err := Down(t.Context(), cfg.Dir, cfg.Progress); found || err != nil {
		t.Errorf("a second down: %v, %v", found, err)
	}
}

func TestTwoLabsLiveSideBySide(t *testing.T) {
	one, two := config(t, Level1), config(t, Level1)
	two.MachineNetwork = true // what a user without root has
	a, b := up(t, one), up(t, two)
	kubectl(t, a, "create", "namespace", "only-in-one")
	if got := kubectl(t, b, "get", "namespaces"); strings.Contains(got, "only-in-one") {
		t.Error("two labs share an etcd")
	}
	down(t, one.Dir)
	kubectl(t, b, "get", "namespaces")
}

func TestLevel2RunsPods(t *testing.T) {
	testneed.Root(t)
	cfg := config(t, Level2)
	before := machine(t)
	stamp := time.Now()
	dir := up(t, cfg)
	loadEcho(t, cfg, dir)

	kubectl(t, dir, "apply", "-f", "testdata/echo.yaml")
	kubectl(t, dir, "rollout", "status", "deployment/echo", "--timeout=120s")
	ask := func(url string) string {
		return kubectl(t, dir, "exec", "deployment/echo", "-c", "echo", "--", "selvage-agent", "get", url)
	}
	if got := ask("http://echo/"); !strings.HasPrefix(got, "200\necho from echo-") { // DNS, kube-proxy, another pod
		t.Errorf("by name: %s", got)
	}
	if got := ask("http://127.0.0.1:9/"); !strings.HasPrefix(got, "200\n") { // the init container's REDIRECT rule
		t.Errorf("by iptables: %s", got)
	}
	if got := kubectl(t, dir, "exec", "deployment/echo", "-c", "echo", "--", "selvage-agent", "fail", "http://nosuch.example/"); !strings.Contains(got, "no such host") {
		t.Errorf("a foreign name: %s", got)
	}
	if got := kubectl(t, dir, "logs", "deployment/echo", "-c", "rules"); !strings.Contains(got, "REDIRECT") {
		t.Errorf("logs: %s", got)
	}
	if after := machine(t); after != before {
		t.Errorf("the machine changed from\n%s\nto\n%s", before, after)
	}
	down(t, cfg.Dir)
	nothingLeft(t, cfg.Dir)
	if after := machine(t); after != before {
		t.Errorf("the machine changed from\n%s\nto\n%s", before, after)
	}
	for _, f := range newFiles(t, stamp) {
		t.Errorf("%s is left", f)
	}
}

// Killed at any moment, the next down finds everything.
func TestDownCleansUpAfterAKilledUp(t *testing.T) {
	testneed.Root(t)
	cfg := config(t, Level2)
	cmd := exec.Command(filepath.Join(cfg.Bin, "selvage-lab"), "up", "--mesh=false", "--level=2", "--dir", cfg.Dir)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { down(t, cfg.Dir) })
	started := func() bool {
		dir, err := state.Open(cfg.Dir)
		return err == nil && dir.Lab().Identities[cluster.APIServer].Alive() && dir.Lab().Identities[node.Containerd].Alive()
	}
	await(t, "containerd and the API server to run", started)
	if _, err := Down(t.Context(), cfg.Dir, cfg.Progress); !errors.Is(err, state.ErrBusy) || fault.Next(err) == "" {
		t.Errorf("down while up is at work: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	if !started() {
		t.Fatal("the lab's processes ended with the one who started them: this proves nothing")
	}
	down(t, cfg.Dir)
	nothingLeft(t, cfg.Dir)
}

func TestAnInterruptedUpLeavesNothing(t *testing.T) {
	cfg := config(t, Level1)
	t.Cleanup(func() { down(t, cfg.Dir) })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if dir, err := state.Open(cfg.Dir); err == nil && dir.Lab().Identities[cluster.APIServer].Alive() {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if _, err := Up(ctx, cfg); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("Up() = %v", err)
	}
	dir, err := state.Open(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if leftovers(dir) {
		t.Error("something is left")
	}
	if _, err := os.Stat(dir.File("logs", cluster.APIServer+".log")); err != nil {
		t.Errorf("the logs are gone: %v", err)
	}
	down(t, cfg.Dir)
	nothingLeft(t, cfg.Dir)
}

func TestWhatCannotBeDoneIsToldBeforeAnythingStarts(t *testing.T) {
	good := config(t, Level1)
	full := filepath.Join(filepath.Dir(good.Dir), "full")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(full, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(filepath.Dir(good.Dir), "small")
	for name, c := range map[string]struct {
		change        func(*Config)
		problem, next string
	}{
		"no programs":       {func(c *Config) { c.Bin = t.TempDir() }, "selvage-kube is not there", "make lab"},
		"another version":   {func(c *Config) { c.Kubernetes = "1.2.3" }, "selvage-kube-1.2.3 is not there", "make lab K8S_VERSION=1.2.3"},
		"a used folder":     {func(c *Config) { c.Dir = full }, "thesis.tex", "--dir"},
		"no such folder":    {func(c *Config) { c.Dir = "/proc/lab" }, "cannot make folder /proc/lab", "--dir"},
		"no room":           {func(c *Config) { c.Dir = filepath.Join(small, "lab") }, "has 1 MiB free, and a lab wants 2048", "--dir"},
		"a file in between": {func(c *Config) { c.Dir = filepath.Join(full, "thesis.tex", "lab") }, "not a directory", "--dir"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "no room" {
				testneed.Root(t)
				smallDisk(t, small)
			}
			cfg := good
			c.change(&cfg)
			_, err := Up(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), c.problem) || !strings.Contains(fault.Next(err), c.next) {
				t.Errorf("Up() = %v\nnext: %s", err, fault.Next(err))
			}
			if strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("more than a line: %v", err)
			}
			if cfg.Dir == good.Dir {
				nothingLeft(t, cfg.Dir)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(full, "thesis.tex")); err != nil {
		t.Error(err)
	}
}

// What a lab has written counts against the room that it wanted at first.
func TestALabThatRunsNeedsNoMoreRoom(t *testing.T) {
	testneed.Root(t)
	small := filepath.Join(filepath.Dir(config(t, Level1).Dir), "small")
	smallDisk(t, small)
	dir, err := state.Open(small)
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Update(func(l *state.Lab) { l.Ready = true }); err != nil {
		t.Fatal(err)
	}
	if err := prepareDir(dir); err != nil {
		t.Error(err)
	}
}

// etcd does not end when the disk fills up while it starts: it waits, and so would its user.
func TestADiskThatFillsUpIsNamed(t *testing.T) {
	testneed.Root(t)
	small := filepath.Join(filepath.Dir(config(t, Level1).Dir), "small")
	smallDisk(t, small)
	dir, err := state.Open(small)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{Config: Config{Program: "bin/selvage"}, dir: dir}
	err = l.await(t.Context(), cluster.Etcd, startLimit, func(context.Context) (bool, error) { return false, errors.New("connection refused") })
	if err == nil || !strings.Contains(err.Error(), "is full") || !strings.Contains(fault.Next(err), "make room") {
		t.Errorf("await() = %v\nnext: %s", err, fault.Next(err))
	}
}

func TestABrokenRecordDoesNotKeepALabFromEnding(t *testing.T) {
	cfg := config(t, Level1)
	dir := up(t, cfg)
	if err := os.WriteFile(dir.File(labFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(t.Context(), cfg); err == nil || !strings.Contains(fault.Next(err), "selvage down") {
		t.Errorf("Up() = %v", err)
	}
	down(t, cfg.Dir)
	nothingLeft(t, cfg.Dir)
}

// machine describes what a lab must not change: devices, addresses, routes, firewall, kernel settings, mounts.
func machine(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, f := range []string{
		"/proc/thread-self/net/route", "/proc/thread-self/net/fib_trie", "/proc/thread-self/net/ipv6_route", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/route_localnet",
		"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops",
		"/proc/sys/kernel/keys/root_maxkeys", "/proc/thread-self/net/ip_tables_names",
	} {
		content, err := os.ReadFile(f)
		if err != nil {
			content = []byte("not there")
		}
		fmt.Fprintf(&b, "%s: %s\n", f, content)
	}
	if nft, err := lookPath("nft"); err == nil && os.Geteuid() == 0 {
		out, err := exec.Command(nft, "list", "ruleset").CombinedOutput()
		fmt.Fprintf(&b, "nft: %s %v\n", out, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, " /run/netns") && !strings.HasPrefix(line, "nsfs /run/selvage-") {
			b.WriteString(line) // and not the names of network namespaces, this lab's and others'
		}
	}
	return b.String()
}

// newFiles lists what appeared in the folders where container programs like to keep things.
func newFiles(t *testing.T, since time.Time) (files []string) {
	t.Helper()
	for _, root := range []string{"/etc/cni", "/opt", "/run", "/var/lib", "/var/log"} {
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if d == nil || err != nil && !d.IsDir() {
				return err // a process's files come and go
			}
			if slices.ContainsFunc([]string{"/run/selvage-", "/run/netns", "/run/systemd", "/run/log", "/var/lib/apt", "/var/lib/dpkg", "/var/lib/systemd"}, func(p string) bool { return strings.HasPrefix(path, p) }) {
				return nil // other labs', and the machine's own life
			}
			var s unix.Stat_t
			name := strings.ToLower(d.Name())
			ours := slices.ContainsFunc([]string{"containerd", "kubelet", "cni", "runc", "mount", "containers", "pods"}, func(n string) bool { return name == n })
			if children, err := os.ReadDir(path); err == nil && len(children) == 0 {
				return nil // a folder that another lab uses, too, stays until that lab ends
			}
			if ours && unix.Lstat(path, &s) == nil && time.Unix(s.Ctim.Unix()).After(since) {
				files = append(files, path)
			}
			return nil
		})
	}
	return files
}

func smallDisk(t *testing.T, at string) {
	t.Helper()
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", at, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
