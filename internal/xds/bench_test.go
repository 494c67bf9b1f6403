package xds_test

import (
	"slices"
	"testing"

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
		if _, err := xds.LoadAssignment(set); err != nil {
			b.Fatal(err)
		}
	}
}
