//go:build long

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kills is how often a control plane is killed: 100 times, or SELVAGE_E2E_KILLS.
func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("SELVAGE_E2E_KILLS")
	if text == "" {
		return 100
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("SELVAGE_E2E_KILLS=%q is not a number of kills", text)
	}
	return n
}

// meddler is for writers that meet one another and the kills: their errors are part of it. One that cannot go on ends alone.
type meddler struct{ testing.TB }

func (meddler) Error(...any)          {}
func (meddler) Errorf(string, ...any) {}
func (meddler) Fatal(...any)          { runtime.Goexit() }
func (meddler) Fatalf(string, ...any) { runtime.Goexit() }

// TestAControlPlaneThatIsKilledLeavesNothingWrong kills two control planes of different revisions at random, again and again, while
// webhooks drift and the root of the mesh changes, and once more at each later stage of that change. Afterwards nothing is wrong.
func TestAControlPlaneThatIsKilledLeavesNothingWrong(t *testing.T) {
	t.Run("repairing", func(t *testing.T) { killed(t, repairing) })
	t.Run("held", func(t *testing.T) { killed(t, "--held-webhooks") })
}

// TestPlanesWhoseWebhooksAreHeldRest lets two control planes rest whose webhooks the API server holds: TestWebhooksStayRight is the same of
// those that repair.
func TestPlanesWhoseWebhooksAreHeldRest(t *testing.T) {
	_, _, first, second := twoPlanes(t, "--held-webhooks")
	untouched(t, first, second)
}

// killed is TestAControlPlaneThatIsKilledLeavesNothingWrong of control planes that are installed with held.
func killed(t *testing.T, held string) {
	l, h, first, second := twoPlanes(t, held)
	planes := []*plane{first, second}
	other := strings.TrimSpace(l.kubectl(t, "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	all := (&hooks{TB: meddler{t}, client: h.client, root: h.root}).drifts(l, other)
	l.mustSelvage(t, "ca", "rotate", "--detach")
	n, begin := kills(t), time.Now()
	var drifts sync.WaitGroup
	for range n {
		drifts.Go(all[rand.IntN(len(all))].do)
		<-time.After(time.Duration(rand.IntN(1500)) * time.Millisecond)
		p := planes[rand.IntN(len(planes))]
		p.kill()
		p.start(t)
	}
	drifts.Wait()
	t.Logf("killed %d times in %s; the change of the root is at %s", n, time.Since(begin).Round(time.Second), l.rootStage(t.Context()))
	for _, stage := range []string{"sign", "retire"} {
		within(t, 4*time.Minute, "stage "+stage, func(ctx context.Context) string {
			if got := l.rootStage(ctx); got != stage {
				return got
			}
			return ""
		})
		for _, p := range planes {
			p.kill()
			p.start(t)
		}
	}
	within(t, 4*time.Minute, "the end of the change of the root", func(ctx context.Context) string {
		if got := l.rootStage(ctx); got != "stable" {
			return got
		}
		return ""
	})
	nothingWrong(t, l, h, planes)
	for _, p := range planes {
		t.Logf("writes of %s: %v", p.revision, p.written())
	}
}

// nothingWrong looks at all that control planes keep.
func nothingWrong(t *testing.T, l *lab, h *hooks, planes []*plane) {
	t.Helper()
	secret, err := l.Client.CoreV1().Secrets("istio-system").Get(t.Context(), "istio-ca-secret", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	root := string(secret.Data["ca-cert.pem"])
	if h.root == base64.StdEncoding.EncodeToString([]byte(root)) {
		t.Error("the root is the one from before")
	}
	h.root = base64.StdEncoding.EncodeToString([]byte(root))
	for _, p := range planes {
		p.ready(t)
		h.settle("istio-sidecar-injector-" + p.revision)
		h.settle("istio-validator-" + p.revision + "-istio-system")
		l.injects(t, l.namespace(t, map[string]string{"istio.io/rev": p.revision}), p.revision)
	}
	if _, err := l.Client.CoreV1().Secrets("istio-system").Get(t.Context(), "selvage-root-rotation", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the former key is still stored (%v)", err)
	}
	eventually(t, "the root in every namespace", func(ctx context.Context) string {
		namespaces, err := l.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		configMaps, err := l.Client.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=istio-ca-root-cert"})
		if err != nil {
			return err.Error()
		}
		return lacking(namespaces.Items, configMaps.Items, root)
	})
}

// lacking names the namespaces without the root.
func lacking(namespaces []corev1.Namespace, configMaps []corev1.ConfigMap, root string) string {
	left := map[string]bool{}
	for _, ns := range namespaces {
		left[ns.Name] = ns.DeletionTimestamp == nil && !strings.HasPrefix(ns.Name, "kube-") // those have no workloads of the mesh
	}
	for _, cm := range configMaps {
		if cm.Data["root-cert.pem"] == root {
			delete(left, cm.Namespace)
		}
	}
	maps.DeleteFunc(left, func(_ string, stays bool) bool { return !stays })
	if len(left) == 0 {
		return ""
	}
	return fmt.Sprint(slices.Sorted(maps.Keys(left)))
}
