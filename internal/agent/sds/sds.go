// Package sds serves the workload's certificate and the mesh's roots to the proxy, by Envoy's secret discovery service, in both of its
// forms. What changes is pushed; the proxy uses it for new connections and keeps the old ones.
package sds

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"slices"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/agent/identity"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// SecretType is the type URL of what is served.
const SecretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// Config says where secrets come from.
type Config struct {
	// Current gives the material and a channel that is closed when there is newer one.
	Current func() (*identity.Material, <-chan struct{})
	Log     *slog.Logger
}

// Server is the service. It is for a Unix socket that only the proxy reaches: whoever can connect gets the key.
type Server struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	config Config
	accepted
}

// New makes the service.
func New(c Config) *Server { return &Server{config: c, accepted: newAccepted()} }

// Register adds the service to a gRPC server.
func (s *Server) Register(to grpc.ServiceRegistrar) {
	secretv3.RegisterSecretDiscoveryServiceServer(to, s)
}

// secret is one resource with the version that its bytes give it.
type secret struct {
	name, version string
	body          *anypb.Any
}

// secrets gives what the material has: the certificate, the roots, both or none.
func secrets(m *identity.Material) (list []secret, err error) {
	for _, in := range []*tlsv3.Secret{certificate(m), roots(m)} {
		if in == nil {
			continue
		}
		body, err := envoy.Marshal(in)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(body)
		list = append(list, secret{in.Name, hex.EncodeToString(sum[:8]), &anypb.Any{TypeUrl: SecretType, Value: body}})
	}
	return list, nil
}

func certificate(m *identity.Material) *tlsv3.Secret {
	if m.Leaf == nil {
		return nil
	}
	return &tlsv3.Secret{Name: envoy.CertificateSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(m.ChainPEM), PrivateKey: inline(m.KeyPEM),
	}}}
}

func roots(m *identity.Material) *tlsv3.Secret {
	if len(m.RootsPEM) == 0 {
		return nil
	}
	return &tlsv3.Secret{Name: envoy.RootSecret, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa: inline(m.RootsPEM),
	}}}
}

func inline(data []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: data}}
}

// request is what one message of a client says, in either form of the protocol.
type request struct {
	subscribe, unsubscribe []string
	replace                bool   // subscribe is the whole list (state of the world)
	nonce                  string // of the answer that this is about; "" for a first request
	rejected               string // the client's text when it refused what was sent
}

// stream serves one client. send gets the secrets that the client does not have yet, and the version and nonce of the answer.
func (s *Server) stream(ctx context.Context, requests <-chan request, send func(list []secret, nonce string) error) error {
	sent := map[string]string{} // name → version; "" is subscribed and not sent
	client := s.join()
	defer s.leave(client)
	for answers := 1; ; {
		m, changed := s.config.Current()
		list, err := secrets(m)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		list = slices.DeleteFunc(list, func(in secret) bool {
			version, subscribed := sent[in.name]
			return !subscribed || version == in.version
		})
		if len(list) > 0 {
			nonce := strconv.Itoa(answers)
			if err := send(list, nonce); err != nil {
				return err
			}
			answers++
			for _, in := range list {
				sent[in.name] = in.version
			}
			s.sending(client, nonce, m, list)
		}
		select {
		case <-ctx.Done():
			return nil
		case r, open := <-requests:
			if !open {
				return nil
			}
			s.take(r, sent)
			s.answered(client, r, sent)
		case <-changed:
		}
	}
}

// take applies a request to what the client is known to have.
func (s *Server) take(r request, sent map[string]string) {
	if r.rejected != "" {
		s.config.Log.Error("the proxy refuses a certificate or root", "error", r.rejected)
	}
	if r.replace {
		for name := range sent {
			if !slices.Contains(r.subscribe, name) {
				delete(sent, name)
			}
		}
	}
	for _, name := range r.subscribe {
		// A delta client that names a secret again has forgotten it; a list of the whole world repeats what it has.
		if _, known := sent[name]; !known || !r.replace {
			sent[name] = ""
		}
	}
	for _, name := range r.unsubscribe {
		delete(sent, name)
	}
}

// StreamSecrets is the state-of-the-world form.
func (s *Server) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	requests := receive(stream.Context(), func() (request, error) {
		in, err := stream.Recv()
		if err != nil {
			return request{}, err
		}
		return request{
			subscribe: in.GetResourceNames(), replace: true, nonce: in.GetResponseNonce(), rejected: in.GetErrorDetail().GetMessage(),
		}, nil
	})
	return s.stream(stream.Context(), requests, func(list []secret, nonce string) error {
		answer := &discoveryv3.DiscoveryResponse{TypeUrl: SecretType, VersionInfo: nonce, Nonce: nonce}
		for _, in := range list {
			answer.Resources = append(answer.Resources, in.body)
		}
		return stream.Send(answer)
	})
}

// DeltaSecrets is the incremental form.
func (s *Server) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	requests := receive(stream.Context(), func() (request, error) {
		in, err := stream.Recv()
		if err != nil {
			return request{}, err
		}
		return request{
			subscribe: in.GetResourceNamesSubscribe(), unsubscribe: in.GetResourceNamesUnsubscribe(),
			nonce: in.GetResponseNonce(), rejected: in.GetErrorDetail().GetMessage(),
		}, nil
	})
	return s.stream(stream.Context(), requests, func(list []secret, nonce string) error {
		answer := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: SecretType, SystemVersionInfo: nonce, Nonce: nonce}
		for _, in := range list {
			answer.Resources = append(answer.Resources, &discoveryv3.Resource{Name: in.name, Version: in.version, Resource: in.body})
		}
		return stream.Send(answer)
	})
}

// receive reads requests until the client ends or its connection does, and then closes the channel.
func receive(ctx context.Context, next func() (request, error)) <-chan request {
	out := make(chan request)
	go func() {
		defer close(out)
		for {
			r, err := next()
			if err != nil {
				return
			}
			select {
			case out <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
