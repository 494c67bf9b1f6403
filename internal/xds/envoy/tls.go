package envoy

import (
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// MeshALPN are the protocol names by which a sidecar says that it speaks the mesh's mutual TLS and not an application's own
// TLS. The first is what our sidecars offer; the others are what Istio's do.
var MeshALPN = []string{"istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"}

// UpstreamTLS is the client's side of the mesh's mutual TLS.
type UpstreamTLS struct {
	SNI string
	// Identities are the SPIFFE identities that the server may show. When there are none, any of TrustDomain is accepted:
	// an unknown server is never accepted from outside of the trust domain.
	Identities  []string
	TrustDomain string
	HTTP2       bool
}

// Socket gives the transport socket.
func (u UpstreamTLS) Socket() *corev3.TransportSocket {
	alpn := []string{"istio"}
	if u.HTTP2 {
		alpn = append(alpn, "h2")
	}
	sans := make([]*tlsv3.SubjectAltNameMatcher, 0, max(1, len(u.Identities)))
	for _, id := range u.Identities {
		sans = append(sans, uri(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: id}}))
	}
	if len(sans) == 0 {
		sans = append(sans, inTrustDomain(u.TrustDomain))
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: commonTLS(alpn, sans), Sni: u.SNI})
}

// Origination is the client's side of TLS to servers outside of the mesh, as a policy says. The files are in the sidecar's container.
func Origination(t *mesh.ClientTLS, http2 bool) *corev3.TransportSocket {
	common := &tlsv3.CommonTlsContext{TlsParams: tlsVersions}
	if http2 {
		common.AlpnProtocols = []string{"h2"}
	}
	if t.Mode == mesh.MutualTLS {
		common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: inFile(t.Certificate), PrivateKey: inFile(t.Key)}}
	}
	if !t.SkipVerify {
		check := &tlsv3.CertificateValidationContext{TrustedCa: inFile(systemRoots)}
		if t.Roots != "" {
			check.TrustedCa = inFile(t.Roots)
		}
		if t.CRL != "" {
			check.Crl = inFile(t.CRL)
		}
		for _, name := range t.Names {
			check.MatchTypedSubjectAltNames = append(check.MatchTypedSubjectAltNames, alternativeName(name))
		}
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: check}
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: t.SNI})
}

// systemRoots is where the sidecar's image keeps the roots that its operating system trusts.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

func inFile(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

// alternativeName matches a name of a certificate by the type that its form says.
func alternativeName(name string) *tlsv3.SubjectAltNameMatcher {
	m := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}}
	kind := tlsv3.SubjectAltNameMatcher_DNS
	if strings.Contains(name, "://") {
		kind = tlsv3.SubjectAltNameMatcher_URI
	} else if _, err := netip.ParseAddr(name); err == nil {
		kind = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	return &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: m}
}

// DownstreamTLS is the server's side of the mesh's mutual TLS: the client must show a certificate of one of the trust domains.
func DownstreamTLS(trustDomains []string, alpn ...string) *corev3.TransportSocket {
	sans := make([]*tlsv3.SubjectAltNameMatcher, len(trustDomains))
	for i, d := range trustDomains {
		sans[i] = inTrustDomain(d)
	}
	return tlsSocket(&tlsv3.DownstreamTlsContext{
		RequireClientCertificate: isTrue(),
		CommonTlsContext:         commonTLS(alpn, sans),
	})
}

// PlainSocket is the transport socket that adds nothing.
func PlainSocket() *corev3.TransportSocket { return plainSocket }

var plainSocket = &corev3.TransportSocket{
	Name:       "envoy.transport_sockets.raw_buffer",
	ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawv3.RawBuffer{})},
}

func tlsSocket(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(context)}}
}

func commonTLS(alpn []string, sans []*tlsv3.SubjectAltNameMatcher) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams:                      tlsVersions,
		AlpnProtocols:                  alpn,
		TlsCertificateSdsSecretConfigs: certificate,
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: sans},
				ValidationContextSdsSecretConfig: roots,
			},
		},
	}
}

var (
	certificate = []*tlsv3.SdsSecretConfig{{Name: CertificateSecret, SdsConfig: sds}}
	roots       = &tlsv3.SdsSecretConfig{Name: RootSecret, SdsConfig: sds}
	tlsVersions = &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
	}
)

func uri(m *matcherv3.StringMatcher) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m}
}

func inTrustDomain(domain string) *tlsv3.SubjectAltNameMatcher {
	return uri(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://" + domain + "/"}})
}
