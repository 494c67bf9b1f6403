// Package e2e proves the mesh as its users meet it: in a lab with a real Kubernetes API server, at level 2 with a real node,
// real iptables and real Envoys. Nothing here reaches into the product: the tests run its binaries and read what kubectl, the
// sample and Envoy say.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-mesh/selvage/internal/testneed"
)

// lab is a running lab, as its lab.json describes it.
type lab struct {
	Dir       string
	Addresses map[string]string `json:"addresses"`
	Processes map[string]int    `json:"processes"`
	Config    *rest.Config      `json:"-"`
	Client    kubernetes.Interface
}

// labs are shared by all tests of a level: starting one is the larger part of a test's time. TestMain ends them.
var labs = struct {
	sync.Mutex
	byLevel map[int]*lab
	dirs    []string
}{byLevel: map[int]*lab{}}

func TestMain(m *testing.M) {
	if address := os.Getenv(handshakeVariable); address != "" {
		os.Exit(handshake(address))
	}
	code := m.Run()
	for _, dir := range labs.dirs {
		logs := dir + "-logs" // the end of a lab removes all that is in its folder
		if code != 0 && os.Rename(filepath.Join(dir, "logs"), logs) == nil {
			fmt.Fprintf(os.Stderr, "the lab's logs are in %s\n", logs)
		}
		out, err := exec.Command(bin("selvage"), "down", "--dir", dir).CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "ending the lab in %s: %v\n%s", dir, err, out)
			code = max(code, 1)
			continue
		}
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// bin is the path of a built binary, relative to this package.
func bin(name string) string {
	path, err := filepath.Abs(filepath.Join("..", "bin", name))
	if err != nil {
		panic(err)
	}
	return path
}

// atLevel gives the lab of that level, started on first use.
func atLevel(t *testing.T, level int) *lab {
	t.Helper()
	if level == 2 {
		testneed.Root(t)
	}
	testneed.Bin(t, "selvage", "build")
	testneed.Bin(t, "selvage-lab", "lab")
	testneed.Envoy(t)
	labs.Lock()
	defer labs.Unlock()
	if l, ok := labs.byLevel[level]; ok {
		if l == nil {
			t.Fatalf("the lab of level %d did not start (see the first test of that level)", level)
		}
		return l
	}
	labs.byLevel[level] = nil
	l := startLab(t, level)
	labs.byLevel[level] = l
	return l
}

// startLab starts a lab of its own in a new folder.
func startLab(t testing.TB, level int, args ...string) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("selvage-e2e-%d-", level))
	if err != nil {
		t.Fatal(err)
	}
	labs.dirs = append(labs.dirs, dir)
	args = append([]string{"up", "--dir", dir, "--level", fmt.Sprint(level)}, args...)
	if v := os.Getenv("SELVAGE_E2E_KUBERNETES"); v != "" {
		args = append(args, "--kubernetes", v)
	}
	run(t, nil, bin("selvage"), args...)
	return readLab(t, dir)
}

func readLab(t testing.TB, dir string) *lab {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{Dir: dir}
	if err := json.Unmarshal(raw, l); err != nil {
		t.Fatalf("read lab.json: %v\n%s", err, raw)
	}
	l.Config, err = clientcmd.BuildConfigFromFlags("", l.kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	l.Config.QPS, l.Config.Burst, l.Config.WarningHandler = 200, 400, rest.NoWarnings{}
	l.Client, err = kubernetes.NewForConfig(l.Config)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) kubeconfig() string { return filepath.Join(l.Dir, "kubeconfig") }

// kubectl runs kubectl against the lab and gives what it printed on standard output.
func (l *lab) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return l.kubectlIn(t, "", args...)
}

// kubectlIn is kubectl with a standard input, for `apply -f -`.
func (l *lab) kubectlIn(t *testing.T, in string, args ...string) string {
	t.Helper()
	return run(t, strings.NewReader(in), bin("kubectl"), append([]string{"--kubeconfig", l.kubeconfig()}, args...)...)
}

// selvage runs the CLI against the lab and gives its standard output and its exit code.
func (l *lab) selvage(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return command(t, nil, bin("selvage"), append(args, "--kubeconfig", l.kubeconfig())...)
}

// inside runs a command in the lab's network namespace, where pods and services can be reached.
func (l *lab) inside(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return command(t, nil, bin("selvage-lab"), append([]string{"enter", "--dir", l.Dir, "--"}, args...)...)
}

// run fails the test when the command fails, with all that it said.
func run(t testing.TB, in io.Reader, name string, args ...string) string {
	t.Helper()
	stdout, stderr, code := command(t, in, name, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit %d\n%s%s", filepath.Base(name), strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// command runs a program to its end; a program that cannot be started fails the test.
func command(t testing.TB, in io.Reader, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	// Clean-up runs commands too, when the test's own context is over already.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	if in != nil {
		cmd.Stdin = in
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("start %s: %v", name, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// eventually asks until the answer is "" and fails with the last answer after a minute. It is for what another program will
// do in its own time and tells nobody; what can be watched is watched.
func eventually(t testing.TB, what string, ask func(ctx context.Context) (pending string)) {
	t.Helper()
	within(t, time.Minute, what, ask)
}

// within is eventually for what takes longer on a busy machine.
func within(t testing.TB, limit time.Duration, what string, ask func(ctx context.Context) (pending string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		pending := ask(ctx)
		if pending == "" {
			tick.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: still not so after %s: %s", what, limit, pending)
		}
	}
}
