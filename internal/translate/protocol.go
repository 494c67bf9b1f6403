package translate

import (
	"strings"

	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

// protocols are the words for a protocol that a port may use, in appProtocol or before the first dash of its name. What an
// application encrypts itself, and what Envoy would have to understand as a protocol of its own, passes as bytes.
// Source: istio.io "Protocol Selection"; the kubernetes.io names are KEP-3726's.
var protocols = map[string]mesh.Protocol{
	"http":              mesh.HTTP,
	"http2":             mesh.HTTP2,
	"grpc":              mesh.HTTP2,
	"grpc-web":          mesh.HTTP2,
	"tcp":               mesh.TCP,
	"tls":               mesh.TCP,
	"https":             mesh.TCP,
	"mongo":             mesh.TCP,
	"mysql":             mesh.TCP,
	"redis":             mesh.TCP,
	"kubernetes.io/h2c": mesh.HTTP2,
	"kubernetes.io/ws":  mesh.HTTP,
	"kubernetes.io/wss": mesh.TCP,
}

// protocol is what a service port says that it speaks: appProtocol first, then the port's name. A port that does not say is
// TCP, and so is one that says something else: then nothing is assumed about its bytes.
func protocol(p index.ServicePort) mesh.Protocol {
	said := strings.ToLower(p.AppProtocol)
	if said == "" {
		said = strings.ToLower(p.Name)
	}
	if known, ok := protocols[said]; ok {
		return known
	}
	if said == "grpc-web" || strings.HasPrefix(said, "grpc-web-") {
		return protocols["grpc-web"]
	}
	word, _, _ := strings.Cut(said, "-")
	return protocols[word]
}
