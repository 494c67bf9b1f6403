//go:build apiserver

package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
)

// BenchmarkRootsOf2000Namespaces is the time from the start of the loop until the last of 2,000 namespaces that have nothing has its
// ConfigMap, with the limits of selvaged's client, and once more after a restart, when nothing is to be written. heap-MB is what the
// loop adds to the process.
//
//	tools/apiserver-bench.sh
func BenchmarkRootsOf2000Namespaces(b *testing.B) {
	const count = 2000
	config := adminConfig(b)
	config.QPS = -1
	admin := client(b, config)
	prefix := fmt.Sprintf("roots-%d-", time.Now().Unix())
	var workers sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		workers.Go(func() {
			for n := next.Add(1); n <= count; n = next.Add(1) {
				ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(prefix, n)}}
				if _, err := admin.CoreV1().Namespaces().Create(b.Context(), ns, metav1.CreateOptions{}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
	if b.Failed() {
		b.FailNow()
	}
	config.QPS, config.Burst = 400, 800 // as selvaged's
	config.ContentType, config.AcceptContentTypes = apiruntime.ContentTypeProtobuf, apiruntime.ContentTypeProtobuf+","+apiruntime.ContentTypeJSON
	own := client(b, config)
	source := newRoots(b)
	complete := func() (took time.Duration, heapMB float64) {
		before := heap()
		r, err := NewRoots(RootsConfig{Kubernetes: own, Roots: source, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan struct{})
		began := time.Now()
		go func() { defer close(done); _ = r.Run(ctx) }()
		for c := r.Count(); !c.Open() || c.Total < count; c = r.Count() {
			time.Sleep(20 * time.Millisecond) // a poll of the measurement, not of a test
		}
		took, heapMB = time.Since(began), float64(heap()-before)/1e6
		cancel()
		<-done
		return took, heapMB
	}
	for b.Loop() {
		first, mb := complete()
		again, _ := complete()
		b.ReportMetric(first.Seconds(), "s-first")
		b.ReportMetric(again.Seconds(), "s-again")
		b.ReportMetric(mb, "heap-MB")
	}
}

// heap is what is in use after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}
