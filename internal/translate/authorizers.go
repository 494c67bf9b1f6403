package translate

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	meshapi "istio.io/api/mesh/v1alpha1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/mesh"
)

// defaultCheckTimeout is Istio's for an external authorizer.
const defaultCheckTimeout = 600 * time.Second

// authorizers are the external authorizers of the mesh configuration, by name. One that cannot be used is not among them, so that
// the policies that name it refuse.
func (r *reader) authorizers(values *meshapi.MeshConfig) map[string]*mesh.Authorizer {
	all := map[string]*mesh.Authorizer{}
	for i, p := range values.GetExtensionProviders() {
		var a *mesh.Authorizer
		var err error
		field := at("extensionProviders", i)
		switch {
		case p.GetEnvoyExtAuthzHttp() != nil:
			a, err = httpAuthorizer(p.GetEnvoyExtAuthzHttp())
			field += ".envoyExtAuthzHttp"
		case p.GetEnvoyExtAuthzGrpc() != nil:
			a, err = grpcAuthorizer(p.GetEnvoyExtAuthzGrpc())
			field += ".envoyExtAuthzGrpc"
		default:
			continue
		}
		if err == nil && all[p.GetName()] != nil {
			err = fmt.Errorf("another provider before it has the name %q too", p.GetName())
			delete(all, p.GetName())
		}
		if err != nil {
			r.add(diag.InvalidField, diag.Error, field, err.Error()+"; policies that name this provider refuse all requests", "mend the provider")
			continue
		}
		a.Name = p.GetName()
		all[a.Name] = a
	}
	return all
}

func httpAuthorizer(p *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) (*mesh.Authorizer, error) {
	a, err := newAuthorizer(p.GetService(), p.GetPort(), p.GetTimeout(), p.GetStatusOnError())
	if err != nil {
		return nil, err
	}
	if prefix := p.GetPathPrefix(); prefix != "" && !strings.HasPrefix(prefix, "/") {
		return nil, fmt.Errorf("pathPrefix %.100q does not begin with a slash", prefix)
	}
	a.FailOpen, a.ClearRouteCache, a.PathPrefix = p.GetFailOpen(), p.GetClearRouteCache(), p.GetPathPrefix()
	headers := p.GetIncludeRequestHeadersInCheck()
	if len(headers) == 0 {
		headers = p.GetIncludeHeadersInCheck() //nolint:staticcheck // the old name of the same, which meshes still have
	}
	a.RequestHeaders, a.AddedHeaders = headerMatches(headers), p.GetIncludeAdditionalHeadersInCheck()
	a.UpstreamOnAllow, a.DownstreamOnDeny = headerMatches(p.GetHeadersToUpstreamOnAllow()), headerMatches(p.GetHeadersToDownstreamOnDeny())
	a.DownstreamOnAllow = headerMatches(p.GetHeadersToDownstreamOnAllow())
	setBody(a, p.GetIncludeRequestBodyInCheck())
	return a, nil
}

func grpcAuthorizer(p *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider) (*mesh.Authorizer, error) {
	a, err := newAuthorizer(p.GetService(), p.GetPort(), p.GetTimeout(), p.GetStatusOnError())
	if err != nil {
		return nil, err
	}
	a.GRPC, a.FailOpen, a.ClearRouteCache = true, p.GetFailOpen(), p.GetClearRouteCache()
	setBody(a, p.GetIncludeRequestBodyInCheck())
	return a, nil
}

// newAuthorizer reads what both kinds have. The service is HOST or NAMESPACE/HOST.
func newAuthorizer(service string, port uint32, timeout *durationpb.Duration, status string) (*mesh.Authorizer, error) {
	a := &mesh.Authorizer{Port: port, Timeout: defaultCheckTimeout}
	host := service
	if _, after, ok := strings.Cut(service, "/"); ok {
		host = after
	}
	if host == "" || strings.ContainsAny(host, "/|* ") {
		return nil, fmt.Errorf("service %.100q is no host: write web.shop.svc.cluster.local or shop/web.shop.svc.cluster.local", service)
	}
	a.Service = mesh.Host(strings.ToLower(host))
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d is not between 1 and 65535", port)
	}
	if timeout != nil {
		if a.Timeout = timeout.AsDuration(); a.Timeout < time.Millisecond {
			return nil, fmt.Errorf("timeout %s is less than a millisecond", a.Timeout)
		}
	}
	if status != "" {
		code, err := strconv.ParseUint(status, 10, 16)
		if err != nil || code < 200 || code > 599 {
			return nil, fmt.Errorf("statusOnError %.20q is no HTTP status", status)
		}
		a.StatusOnError = uint32(code)
	}
	return a, nil
}

func setBody(a *mesh.Authorizer, b *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody) {
	a.BodyBytes, a.PartialBody, a.BodyAsBytes = b.GetMaxRequestBytes(), b.GetAllowPartialMessage(), b.GetPackAsBytes()
}

func headerMatches(names []string) (all []mesh.ValueMatch) {
	for _, n := range names {
		m, _ := text(nil, n)
		all = append(all, m)
	}
	return all
}
