package e2e

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// BenchmarkDrift measures from the beginning of a bad write to the event of the repaired object: make bench-drift.
func BenchmarkDrift(b *testing.B) {
	l, h, _, _ := twoPlanes(b)
	other := strings.TrimSpace(run(b, nil, bin("kubectl"), "--kubeconfig", l.kubeconfig(), "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	all := slices.DeleteFunc(h.drifts(l, other), func(d drift) bool {
		return strings.Contains(d.name, "kubectl") || strings.Contains(d.name, "the label")
	})
	var took []time.Duration
	for b.Loop() {
		d := all[rand.IntN(len(all))]
		took = append(took, h.repaired(d.object, d.do))
		b.StopTimer()
		h.settle(d.object)
		<-time.After(time.Second) // a write to one object each second is what its budget gives
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(percentile(took, 50).Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(percentile(took, 95).Microseconds())/1000, "p95-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}

// BenchmarkRival measures a minute with a rival that applies the old object every second: the share of time in which the bundle is
// wrong, and our writes a second.
func BenchmarkRival(b *testing.B) {
	l, h, first, _ := twoPlanes(b)
	other := strings.TrimSpace(run(b, nil, bin("kubectl"), "--kubeconfig", l.kubeconfig(), "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	for b.Loop() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
		cancel()
		total := time.Since(begin)
		b.ReportMetric(100*wrong.Seconds()/total.Seconds(), "%wrong")
		b.ReportMetric(float64(first.written()["PATCH mutatingwebhookconfigurations"]-before)/total.Seconds(), "writes/s")
		b.ReportMetric(float64(fights())/total.Seconds(), "rival-writes/s")
	}
}
