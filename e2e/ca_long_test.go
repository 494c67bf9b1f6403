//go:build long

package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestTheRootChangesUnderLoad changes the root of the mesh while requests run, ends the leading replica of the control plane in the
// middle as a crash would, and restarts a service whose pods begin between two roots. No request fails. It takes four minutes, of which
// the kubelet's looks at ConfigMaps are the most.
func TestTheRootChangesUnderLoad(t *testing.T) {
	l := atLevel(t, 2)
	for _, name := range []string{"load", "web", "cart", "stock"} {
		l.rolledOut(t, "shop", name)
	}
	before := l.rootConfig(t)
	load := l.startLoads(t)
	ended := make(chan string, 1)
	go func() {
		stdout, stderr, code := l.selvage(t, "ca", "rotate", "--timeout", "8m")
		if code != 0 {
			stdout += "failed"
		}
		ended <- stderr + stdout
	}()
	within(t, 5*time.Minute, "stage sign", func(ctx context.Context) string { // a kubelet looks at ConfigMaps once a minute
		if stage := l.rootStage(ctx); stage != "sign" {
			return stage
		}
		return ""
	})
	holder := l.kubectl(t, "-n", "istio-system", "get", "lease", "selvage-roots", "-o", "jsonpath={.spec.holderIdentity}")
	leader, _, _ := strings.Cut(holder, "_")
	l.kubectl(t, "-n", "istio-system", "delete", "pod", leader, "--grace-period=0", "--force")
	l.kubectl(t, "-n", "shop", "rollout", "restart", "deployment/stock")
	l.rolledOut(t, "shop", "stock")
	said := <-ended
	load.finish()
	t.Log(said)
	if !strings.Contains(said, "alone, after") || strings.Contains(said, "failed") {
		t.Error("the root was not changed")
	}
	for _, stage := range []string{"distribute", "sign", "retire"} {
		if !strings.Contains(said, stage+": ") {
			t.Errorf("stage %s was not shown", stage)
		}
	}
	if after := l.rootConfig(t); after == before || strings.Count(after, "BEGIN CERTIFICATE") != 1 {
		t.Errorf("the namespace trusts\n%s", after)
	}
	stdout, stderr, code := l.selvage(t, "ca", "status", "-o", "json")
	var status struct{ Stage string }
	if err := json.Unmarshal([]byte(stdout), &status); err != nil || code != 0 || status.Stage != "stable" {
		t.Errorf("status: %v %d\n%s%s", err, code, stdout, stderr)
	}
}

func (l *lab) rootConfig(t *testing.T) string {
	t.Helper()
	return l.kubectl(t, "-n", "shop", "get", "configmap", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
}
