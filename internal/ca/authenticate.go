package ca

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/selvage-mesh/selvage/internal/pki"
)

// tokenAudience is what a workload's token must be made for, as Istio's.
const tokenAudience = "istio-ca"

// What the API server says of a pod's own token (k8s.io/apiserver, package serviceaccount).
const (
	serviceAccountPrefix = "system:serviceaccount:"
	extraPodName         = "authentication.kubernetes.io/pod-name"
	extraPodUID          = "authentication.kubernetes.io/pod-uid"
	extraNodeName        = "authentication.kubernetes.io/node-name"
)

// Caller is who calls. The pod is known only from a token that is bound to one: a certificate does not name it.
type Caller struct {
	Identity        pki.Identity
	PodName, PodUID string
	NodeName        string
	ByCertificate   bool // else by bearer token
}

// Authenticate says who calls a gRPC method: see Caller. It is the ADS server's check too.
func (a *Authority) Authenticate(ctx context.Context) (pki.Identity, error) {
	caller, err := a.Caller(ctx)
	return caller.Identity, err
}

// Caller authenticates the peer of a gRPC call: by the client certificate that the handshake has verified, else by the bearer
// token in the metadata. A connection without TLS has no callers: a token on it was sent for everyone to read. The error is a
// gRPC status: Unauthenticated when the caller proves nothing, Unavailable when the proof cannot be checked now.
func (a *Authority) Caller(ctx context.Context) (Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, status.Error(codes.Unauthenticated, "no caller: the call has no connection")
	}
	conn, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Caller{}, status.Error(codes.Unauthenticated, "no caller: the connection is not encrypted; use TLS on port 15012")
	}
	certErr := status.Error(codes.Unauthenticated,
		"no caller: show a client certificate of this mesh or a bearer token (metadata `authorization: Bearer TOKEN`) of audience "+tokenAudience)
	if chains := conn.State.VerifiedChains; len(chains) > 0 && len(chains[0]) > 0 {
		leaf := chains[0][0]
		id, err := pki.CertificateIdentity(leaf)
		switch {
		case err != nil:
			a.metrics.identityErrors.Inc()
			certErr = status.Errorf(codes.Unauthenticated, "the client certificate is no workload's: %v", err)
		case id.TrustDomain != a.config.TrustDomain:
			certErr = a.foreign("client certificate", id.TrustDomain)
		case time.Now().After(leaf.NotAfter): // the handshake was before that
			certErr = status.Errorf(codes.Unauthenticated, "the client certificate expired at %s while the connection was open; connect again with a new one",
				leaf.NotAfter.UTC().Format(time.RFC3339))
		default:
			return Caller{Identity: id, ByCertificate: true}, nil
		}
	}
	token, ok := bearer(ctx)
	if !ok {
		return Caller{}, certErr
	}
	if err := a.ours(ctx); err != nil {
		return Caller{}, err
	}
	user, err := a.tokens.review(ctx, peerAddress(ctx), token)
	if err != nil {
		return Caller{}, err
	}
	return a.serviceAccount(user)
}

func (a *Authority) foreign(what, trustDomain string) error {
	return status.Errorf(codes.Unauthenticated, "the %s is of trust domain %q, this mesh is %q", what, trustDomain, a.config.TrustDomain)
}

// clusterKey is the metadata by which a caller says which cluster's API server made its token, as Istio's agents do.
const clusterKey = "ClusterID"

// ours refuses a token of another cluster: only the API server that made it can review it. A caller that names no cluster is of
// this one, as at Istio's CA. Certificates need no such check, as every cluster of a mesh has the same root.
func (a *Authority) ours(ctx context.Context) error {
	for _, cluster := range metadata.ValueFromIncomingContext(ctx, clusterKey) {
		if cluster != "" && cluster != a.config.ClusterID {
			return status.Errorf(codes.Unauthenticated, "the bearer token is of cluster %q (metadata %s, ISTIO_META_CLUSTER_ID of the sidecar), "+
				"and this control plane knows only its own, %q: give selvaged --cluster-id and the injector's values "+
				"global.multiCluster.clusterName one name", short(cluster), clusterKey, a.config.ClusterID)
		}
	}
	return nil
}

// short is what a stranger sent, cut for a message.
func short(s string) string {
	const limit = 100
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// serviceAccount is the workload behind a reviewed token.
func (a *Authority) serviceAccount(user authenticationv1.UserInfo) (Caller, error) {
	rest, ok := strings.CutPrefix(user.Username, serviceAccountPrefix)
	namespace, name, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 {
		return Caller{}, status.Errorf(codes.Unauthenticated, "the bearer token is of user %q, who is not a service account", user.Username)
	}
	id := pki.Identity{TrustDomain: a.config.TrustDomain, Namespace: namespace, ServiceAccount: name}
	if err := id.Validate(); err != nil {
		return Caller{}, status.Errorf(codes.Unauthenticated, "the service account of the bearer token is no workload identity: %v", err)
	}
	return Caller{
		Identity: id,
		PodName:  first(user.Extra[extraPodName]), PodUID: first(user.Extra[extraPodUID]), NodeName: first(user.Extra[extraNodeName]),
	}, nil
}

func first(values authenticationv1.ExtraValue) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// bearer is the token of the call's metadata.
func bearer(ctx context.Context) (string, bool) {
	for _, value := range metadata.ValueFromIncomingContext(ctx, "authorization") {
		if token, ok := bearerToken(value); ok {
			return token, true
		}
	}
	return "", false
}

// bearerToken reads an Authorization header (RFC 6750 2.1; the scheme's case does not matter).
func bearerToken(header string) (string, bool) {
	scheme, token, _ := strings.Cut(header, " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return "", false
	}
	return token, true
}
