package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// requestsPerSecond is the constant load under which everything below happens: of each of the two generators, so twice that in
// all. Two cores carry the node, the control plane, eight Envoys and the generators: with a hundred each there is nothing left on a
// slow machine, and what then fails is the machine. `make e2e-long` wants it all the same.
func requestsPerSecond() int {
	if os.Getenv("SELVAGE_E2E_LONG") != "" {
		return 100
	}
	return 40
}

// loads are load generators that run inside the mesh, in the sample's load pod, until they are ended.
type loads struct {
	t      *testing.T
	sent   func() sent // by the Envoy of the generators
	before sent        // they began
	wait   sync.WaitGroup
	out    []*bytes.Buffer
	errs   []error
	ends   []io.Closer // of their standard inputs: at its end a generator ends
	over   atomic.Bool // they were told to end
}

// startLoads sends requests by HTTP/1.1 through the whole chain (web, cart, stock) and by HTTP/2 to stock, until finish. The
// generator repeats nothing: a request that fails has failed.
func (l *lab) startLoads(t *testing.T) *loads {
	t.Helper()
	return l.startLoadsIn(t, "shop")
}

// startLoadsIn is startLoads from a Deployment load of another namespace.
func (l *lab) startLoadsIn(t *testing.T, namespace string) *loads {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	run := &loads{t: t, sent: func() sent { return l.sentByLoad(t, namespace) }}
	run.before = run.sent()
	for i, args := range [][]string{{"--url", "http://web.shop/api", "--http1"}, {"--url", "http://stock.shop/", "--http2"}} {
		full := append([]string{"--kubeconfig", l.kubeconfig(), "-n", namespace, "exec", "-i", "deploy/load", "-c", "load", "--",
			"/usr/local/bin/sample", "load", "--rate", fmt.Sprint(requestsPerSecond()), "--until-eof", "--report", "0"}, args...)
		cmd := exec.CommandContext(ctx, bin("kubectl"), full...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		run.out, run.errs, run.ends = append(run.out, &out), append(run.errs, nil), append(run.ends, in)
		run.wait.Go(func() {
			if run.errs[i] = cmd.Run(); run.errs[i] == nil && !run.over.Load() {
				run.errs[i] = errors.New("it ended by itself: what came after it happened without load")
			}
		})
	}
	t.Cleanup(func() { stop(); run.wait.Wait() })
	return run
}

// finish ends the generators and fails the test when one request failed.
func (r *loads) finish() {
	r.t.Helper()
	r.over.Store(true)
	for _, end := range r.ends {
		_ = end.Close() // one that has ended by itself is told below
	}
	r.wait.Wait()
	for i, err := range r.errs {
		r.t.Logf("load %d:\n%s", i, r.out[i])
		if err != nil {
			r.t.Errorf("load %d: %v: a request failed (see the summary above)", i, err)
		}
	}
	now := r.sent()
	r.t.Logf("the load pod's Envoy: upstream_rq_total %d, upstream_rq_retry %d", now.total-r.before.total, now.retried-r.before.retried)
}

// sent is what the Envoy of the load pod has sent to the mesh's services. A route without a retry policy has Istio's default one,
// so a request may succeed by being sent again: that is shown, not hidden.
type sent struct{ total, retried int }

func (l *lab) sentByLoad(t *testing.T, namespace string) sent {
	t.Helper()
	of := func(counter string) int {
		return l.envoyCounter(t, namespace, "deploy/load", `cluster\.outbound\|80\|\|(?:web|stock)\.shop\.svc\.cluster\.local;?\.`+counter)
	}
	return sent{total: of("upstream_rq_total"), retried: of("upstream_rq_retry")}
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
	load := l.startLoads(t)
	for range rounds() {
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
	load := l.startLoads(t)
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
