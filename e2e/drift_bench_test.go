package e2e

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// driftsPerSecond is how often one object is made wrong: a write to it each second is what its budget gives.
const driftsPerSecond = 0.9

// BenchmarkDrift measures from the beginning of a bad write to the event of the repaired object, of two objects in turn, and then a minute
// with a rival: make bench-drift.
func BenchmarkDrift(b *testing.B) {
	l, h, first, _ := twoPlanes(b, repairing)
	other := strings.TrimSpace(run(b, nil, bin("kubectl"), "--kubeconfig", l.kubeconfig(), "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	ways := map[string][]drift{}
	for _, d := range h.drifts(l, other) {
		if !strings.Contains(d.name, "kubectl") && !strings.Contains(d.name, "the label") { // these take time of their own
			ways[d.object] = append(ways[d.object], d)
		}
	}
	budgets := map[string]*rate.Limiter{injector: rate.NewLimiter(driftsPerSecond, 10), validator: rate.NewLimiter(driftsPerSecond, 10)}
	objects := [...]string{injector, validator}
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		object := objects[len(took)%len(objects)]
		if err := budgets[object].Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		h.settle(object)
		b.StartTimer()
		took = append(took, h.repaired(object, ways[object][rand.IntN(len(ways[object]))].do))
	}
	slices.Sort(took)
	b.ReportMetric(float64(percentile(took, 50).Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(percentile(took, 95).Microseconds())/1000, "p95-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
	h.rival(b, first, other)
}

// rival measures a minute with a rival that applies the old object every second: the share of time in which the bundle is wrong, and
// our writes a second.
func (h *hooks) rival(b *testing.B, first *plane, other string) {
	for _, object := range []string{injector, validator} {
		h.settle(object)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	events, err := h.of(injector).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + injector})
	if err != nil {
		b.Fatal(err)
	}
	before, fights := first.written()["PATCH mutatingwebhookconfigurations"], h.hostile(injector, other, time.Second)
	begin, wrong, since := time.Now(), time.Duration(0), time.Time{}
	for e := range events.ResultChan() {
		u, ok := e.Object.(*unstructured.Unstructured)
		switch {
		case !ok:
		case !h.right(u) && since.IsZero():
			since = time.Now()
		case h.right(u) && !since.IsZero():
			wrong, since = wrong+time.Since(since), time.Time{}
		}
	}
	total := time.Since(begin)
	if !since.IsZero() {
		wrong += time.Since(since)
	}
	b.ReportMetric(100*wrong.Seconds()/total.Seconds(), "%wrong-with-rival")
	b.ReportMetric(float64(first.written()["PATCH mutatingwebhookconfigurations"]-before)/total.Seconds(), "writes/s-with-rival")
	b.ReportMetric(float64(fights())/total.Seconds(), "rival-writes/s")
}
