package xds_test

import (
	"testing"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/xds"
)

func TestSmoke(t *testing.T) {
	w := large(3)
	w.services = append(w.services, service("db", "shop", "", port(5432, mesh.TCP), port(80, mesh.HTTP)), externalName("ext", "shop", "example.com", port(80, mesh.HTTP)))
	w.settings = settings()
	w.settings.AccessLogFile = "/dev/stdout"
	w.inbound.Ports = append(w.inbound.Ports, mesh.InboundPort{Number: 9000, MTLS: mesh.Disabled}, mesh.InboundPort{Number: 9001, Protocol: mesh.HTTP2, MTLS: mesh.Strict})
	c, err := xds.Generate(w.view(t))
	if err != nil {
		t.Fatal(err)
	}
	envoyValidates(t, static(t, c))
}

func BenchmarkGenerate(b *testing.B) {
	v := large(1000).view(b)
	for b.Loop() {
		if _, err := xds.Generate(v); err != nil {
			b.Fatal(err)
		}
	}
}
