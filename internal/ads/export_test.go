package ads

import (
	"google.golang.org/protobuf/encoding/protowire"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Service is the gRPC face of a server, for streams without a network.
func Service(s *Server) discoveryv3.AggregatedDiscoveryServiceServer { return service{server: s} }

// Sent reads type, nonce and size in bytes from what a stream is given to send (delta only).
func Sent(m any) (url, nonce string, size int) {
	fields(m.(*frame).own, func(n protowire.Number, _ uint64, b []byte) {
		switch n {
		case deltaTypeURL:
			url = string(b)
		case deltaNonce:
			nonce = string(b)
		}
	})
	return url, nonce, m.(*frame).size()
}
