package identity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/selvage-mesh/selvage/internal/agent/upstream"
)

// signTimeout bounds one request with its connection; the connection has its own, shorter bound.
const signTimeout = 20 * time.Second

// Authority asks a CA of Istio's protocol (istio.v1.auth.IstioCertificateService).
type Authority struct {
	Target    *upstream.Target
	ClusterID string        // this cluster's name: which API server reviews the token
	Lifetime  time.Duration // asked for; 0 leaves it to the authority
}

// Sign has a request certified. A renewal shows the present certificate; when the authority does not take it (its root was replaced),
// the token is tried. Errors are *upstream.Failure where the authority could not be reached or refused.
func (a *Authority) Sign(ctx context.Context, requestPEM []byte) ([][]byte, error) {
	chain, byToken, err := a.sign(ctx, requestPEM, false)
	var f *upstream.Failure
	if err != nil && !byToken && errors.As(err, &f) {
		switch f.Reason {
		case upstream.Unauthorized, upstream.Forbidden, upstream.Handshake, upstream.Ended, upstream.Other:
			chain, _, err = a.sign(ctx, requestPEM, true)
		default: // nobody there, or nobody whom the pod believes: a token changes nothing
		}
	}
	return chain, err
}

func (a *Authority) sign(ctx context.Context, requestPEM []byte, anonymous bool) (chain [][]byte, byToken bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	conn, err := a.Target.Connect(anonymous)
	if err != nil {
		return nil, true, err
	}
	defer conn.Close()
	byToken = conn.ByToken()
	if ctx, err = conn.Context(ctx); err != nil {
		return nil, byToken, err
	}
	// Istio's CA finds the API server that issued the token by this.
	ctx = metadata.AppendToOutgoingContext(ctx, "ClusterID", a.ClusterID)
	answer, err := securityv1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityv1alpha1.IstioCertificateRequest{
		Csr:              string(requestPEM),
		ValidityDuration: int64(a.Lifetime.Seconds()),
		Metadata:         &structpb.Struct{},
	})
	if err != nil {
		return nil, byToken, fmt.Errorf("ask for a certificate: %w", conn.Explain(err))
	}
	for _, block := range answer.GetCertChain() {
		chain = append(chain, []byte(block))
	}
	return chain, byToken, nil
}
