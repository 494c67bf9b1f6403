package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// rootChanges changes the root of two control planes while pods are created all the time under both, whose injectors refuse a pod when
// they cannot be called: each pod gets its sidecar, so at no moment does a control plane show a certificate that the API server does not
// believe. A validator that somebody empties at a stage is given the roots of that stage, and not those that its control plane knew before.
func rootChanges(t *testing.T, l *lab, h *hooks) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	counts := map[string]*creates{pageRevision: {by: map[string]int{}}, "asm-2": {by: map[string]int{}}}
	var workers sync.WaitGroup
	for revision, c := range counts {
		namespace := l.namespace(t, map[string]string{"istio.io/rev": revision})
		workers.Go(func() { c.run(ctx, l, namespace) })
	}
	before, ended := h.root, make(chan string, 1)
	go func() {
		stdout, stderr, code := l.selvage(t, "ca", "rotate", "--timeout", "4m")
		ended <- fmt.Sprintf("%s%sexit %d", stderr, stdout, code)
	}()
	for _, stage := range []struct {
		name  string
		roots int
	}{{"distribute", 2}, {"sign", 2}, {"retire", 1}} {
		eventually(t, "stage "+stage.name, func(ctx context.Context) string {
			if got := l.rootStage(ctx); got != stage.name {
				return got
			}
			h.root = bundleOf(entriesOf(h.get(injector))[0])
			if pem, err := base64.StdEncoding.DecodeString(h.root); err != nil || h.root == before || bytes.Count(pem, []byte("BEGIN CERTIFICATE")) != stage.roots {
				return fmt.Sprintf("the injector has not got %d roots yet: %v", stage.roots, err)
			}
			return ""
		})
		before = h.root
		took := h.repaired(validator, func() {
			h.patch(validator, types.JSONPatchType, `[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`)
		})
		t.Logf("%s: %d roots; a validator that was emptied had them after %s", stage.name, stage.roots, took)
	}
	said := <-ended
	stop()
	workers.Wait()
	if !strings.Contains(said, "alone, after") || !strings.HasSuffix(said, "exit 0") {
		t.Errorf("the root was not changed:\n%s", said)
	}
	for revision, c := range counts {
		t.Logf("pods that were created meanwhile under %s, by the revision of their sidecars: %v", revision, c.by)
		if len(c.wrong) > 0 || c.by[revision] < 20 || len(c.by) != 1 {
			t.Errorf("%s: %v, and %d were refused or got another number of sidecars, such as: %v", revision, c.by, len(c.wrong), c.wrong[:min(1, len(c.wrong))])
		}
	}
	for _, name := range []string{injector, validator, "istio-sidecar-injector-asm-2"} {
		h.settle(name)
	}
}

// rootStage is how far a change of the root is, or why that is not known.
func (l *lab) rootStage(ctx context.Context) string {
	cm, err := l.Client.CoreV1().ConfigMaps("istio-system").Get(ctx, "selvage-root-rotation", metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	var status struct{ Stage string }
	if err := json.Unmarshal([]byte(cm.Data["status.json"]), &status); err != nil {
		return err.Error()
	}
	return status.Stage
}
