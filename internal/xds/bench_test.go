package xds_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// A mesh of 1,000 services with 3 ports each, in 50 namespaces. Nothing is known of it yet.
func BenchmarkGenerate(b *testing.B) {
	v := large(1000).view(b)
	b.ReportAllocs()
	for b.Loop() {
		generate(b, xds.Generate, v)
	}
}

// The same mesh, seen by one more workload.
func BenchmarkGenerateAnotherWorkload(b *testing.B) {
	w, g := large(1000), new(xds.Generator)
	m := w.model()
	generate(b, g.Generate, viewOf(b, m, "ns-0"))
	b.ReportAllocs()
	for b.Loop() {
		generate(b, g.Generate, viewOf(b, m, "ns-0"))
	}
}

// The same mesh after one of its services has changed.
func BenchmarkGenerateAfterOneChange(b *testing.B) {
	w, g := large(1000), new(xds.Generator)
	w.settings = settings()
	generate(b, g.Generate, w.view(b))
	b.ReportAllocs()
	for b.Loop() {
		w.services = slices.Clone(w.services)
		w.services[500] = service("s-500", "ns-25", "10.96.1.244", port(80, mesh.HTTP), port(3306, mesh.TCP), port(9090, mesh.HTTP2))
		generate(b, g.Generate, w.view(b))
	}
}

func BenchmarkLoadAssignment(b *testing.B) {
	set := &mesh.EndpointSet{Key: mesh.EndpointKey{Host: "web.shop.svc.cluster.local", Port: 80}}
	for i := range 1000 {
		set.Endpoints = append(set.Endpoints, mesh.Endpoint{
			Address: address4(10, 1, byte(i>>8), byte(i)), Port: 8080, MTLS: true, Locality: mesh.Locality{Region: "eu", Zone: string(rune('a' + i%3))},
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := xds.LoadAssignment(set, nil, mesh.Locality{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRequest is one request after another from sidecar to sidecar, with mutual TLS and the access log: what each of the
// two Envoys uses of a CPU for it. It wants root.
func BenchmarkRequest(b *testing.B) {
	w := newTown(b)
	if err := w.get("http://10.96.0.10/", "web").err(); err != nil {
		b.Fatal(err)
	}
	client, server := w.client.cpu(b), w.server.cpu(b)
	for b.Loop() {
		if err := w.get("http://10.96.0.10/", "web").err(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((w.client.cpu(b)-client).Microseconds())/float64(b.N), "client-µs/op")
	b.ReportMetric(float64((w.server.cpu(b)-server).Microseconds())/float64(b.N), "server-µs/op")
}

// cpu is what Envoy has used so far, in steps of 10 ms (proc_pid_stat(5): utime and stime, in ticks of which Linux shows 100
// a second).
func (s *sidecar) cpu(b *testing.B) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // from the third on
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
