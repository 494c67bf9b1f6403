package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// requestsPerSecond is the constant load under which everything below happens: of each of the two generators, so twice that in
// all. Two cores carry the node, the control plane, eight Envoys and the generators.
const requestsPerSecond = 100

// loads are load generators that run inside the mesh, in the sample's load pod, until they are ended.
type loads struct {
	t    *testing.T
	lab  *lab
	wait sync.WaitGroup
	stop context.CancelFunc
	out  []*bytes.Buffer
	errs []error
}

// startLoads sends requests by HTTP/1.1 through the whole chain (web, cart, stock) and by HTTP/2 to stock, for at most that long.
// The generator repeats nothing: a request that fails has failed.
func (l *lab) startLoads(t *testing.T, longest time.Duration) *loads {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	run := &loads{t: t, lab: l, stop: stop}
	for _, args := range [][]string{{"--url", "http://web/api", "--http1"}, {"--url", "http://stock/", "--http2"}} {
		var out bytes.Buffer
		full := append([]string{"--kubeconfig", l.kubeconfig(), "-n", "shop", "exec", "deploy/load", "-c", "load", "--",
			"/usr/local/bin/sample", "load", "--rate", fmt.Sprint(requestsPerSecond), "--duration", longest.String(), "--report", "0"}, args...)
		cmd := exec.CommandContext(ctx, bin("kubectl"), full...)
		cmd.Stdout, cmd.Stderr = &out, &out
		run.out, run.errs = append(run.out, &out), append(run.errs, nil)
		i := len(run.errs) - 1
		run.wait.Go(func() { run.errs[i] = cmd.Run() })
	}
	t.Cleanup(func() { stop(); run.wait.Wait() })
	return run
}

// finish waits for the generators' own end and fails the test when one request failed.
func (r *loads) finish() {
	r.t.Helper()
	r.wait.Wait()
	for i, err := range r.errs {
		r.t.Logf("load %d:\n%s", i, r.out[i])
		if err != nil {
			r.t.Errorf("load %d: %v: a request failed (see the summary above)", i, err)
		}
	}
}

// rolledOut waits for a Deployment of the sample to be as asked.
func (l *lab) rolledOut(t *testing.T, namespace, name string) {
	t.Helper()
	l.kubectl(t, "-n", namespace, "rollout", "status", "deployment/"+name, "--timeout=120s")
}

// TestNoRequestFailsWhilePodsComeAndGo restarts, deletes and scales under load: nobody in the mesh may notice.
func TestNoRequestFailsWhilePodsComeAndGo(t *testing.T) {
	l := atLevel(t, 2)
	l.rolledOut(t, "shop", "load")
	n := rounds()
	load := l.startLoads(t, time.Duration(n)*100*time.Second)
	for range n {
		l.churn(t)
	}
	load.finish()
}

// rounds is how often `make e2e-long` does what `make e2e` does once.
func rounds() int {
	if os.Getenv("SELVAGE_E2E_LONG") != "" {
		return 5
	}
	return 1
}

// churn restarts every service, deletes a replica and scales up and down.
func (l *lab) churn(t *testing.T) {
	t.Helper()
	for _, name := range []string{"web", "cart", "stock"} {
		l.kubectl(t, "-n", "shop", "rollout", "restart", "deployment/"+name)
		l.rolledOut(t, "shop", name)
	}
	l.kubectl(t, "-n", "shop", "scale", "deployment/cart", "--replicas=2")
	l.rolledOut(t, "shop", "cart")
	pods, err := l.pods(t.Context(), "cart")
	if err != nil || len(pods) < 2 {
		t.Fatalf("pods of cart: %d, %v", len(pods), err)
	}
	l.kubectl(t, "-n", "shop", "delete", "pod", pods[0].Name)
	l.rolledOut(t, "shop", "cart")
	for _, replicas := range []int{5, 2} {
		l.kubectl(t, "-n", "shop", "scale", "deployment/stock", fmt.Sprintf("--replicas=%d", replicas))
		l.rolledOut(t, "shop", "stock")
	}
}

// TestTheMeshOutlivesItsControlPlane kills every replica of the control plane for a minute under load, then brings it back and
// changes something: the proxies catch up.
func TestTheMeshOutlivesItsControlPlane(t *testing.T) {
	l := atLevel(t, 2)
	replicas := strings.TrimSpace(l.kubectl(t, "-n", "istio-system", "get", "deployment", "istiod", "-o", "jsonpath={.spec.replicas}"))
	outage := time.Duration(rounds()) * time.Minute
	load := l.startLoads(t, outage+20*time.Second)
	l.kubectl(t, "-n", "istio-system", "scale", "deployment/istiod", "--replicas=0")
	l.kubectl(t, "-n", "istio-system", "delete", "pod", "-l", "app=istiod", "--grace-period=0", "--force", "--ignore-not-found")
	<-time.After(outage)
	l.kubectl(t, "-n", "istio-system", "scale", "deployment/istiod", "--replicas="+replicas)
	l.rolledOut(t, "istio-system", "istiod")
	load.finish()

	l.kubectl(t, "-n", "shop", "scale", "deployment/web", "--replicas=2")
	l.rolledOut(t, "shop", "web")
	eventually(t, "every proxy in step again", func(context.Context) string {
		stdout, stderr, code := l.selvage(t, "status")
		if code != 0 {
			return stdout + stderr
		}
		return ""
	})
	pods, err := l.pods(t.Context(), "web")
	if err != nil || len(pods) != 2 {
		t.Fatalf("pods of web: %d, %v", len(pods), err)
	}
	seen := map[string]bool{}
	eventually(t, "both replicas of web answering", func(context.Context) string {
		answer := l.kubectl(t, "-n", "shop", "exec", "deploy/load", "-c", "load", "--", "/usr/local/bin/sample", "get", "http://web/api")
		for _, pod := range pods {
			if strings.Contains(answer, pod.Name) {
				seen[pod.Name] = true
			}
		}
		if len(seen) < 2 {
			return fmt.Sprintf("answers came from %d of 2", len(seen))
		}
		return ""
	})
}
