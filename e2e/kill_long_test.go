//go:build long

package e2e

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestAControlPlaneThatIsKilledLeavesNothingWrong kills it at random, again and again, while webhooks drift: `make e2e-long`.
func TestAControlPlaneThatIsKilledLeavesNothingWrong(t *testing.T) {
	l, h, first, _ := twoPlanes(t)
	other := strings.TrimSpace(l.kubectl(t, "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	all := h.drifts(l, other)
	const kills = 100
	for range kills {
		go all[rand.IntN(len(all))].do()
		<-time.After(time.Duration(rand.IntN(1500)) * time.Millisecond)
		first.kill()
		first.start(t)
	}
	for _, d := range all { // whoever wrote last: both must be there
		if _, err := h.of(d.object).Get(t.Context(), d.object, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			t.Fatalf("%s is gone", d.object)
		}
	}
	first.ready(t)
	h.settle(injector)
	h.settle(validator)
	if got := bundleOf(entriesOf(h.get(injector))[0]); got != h.root {
		t.Error("the root is another after the kills")
	}
	t.Logf("killed %d times; both configurations are right, the root is the same; writes %v", kills, first.written())
}
