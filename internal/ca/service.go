package ca

import (
	"context"
	"errors"
	"math"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/selvage-mesh/selvage/internal/pki"
)

// Register serves istio.v1.auth.IstioCertificateService. It must be behind TLSConfig: without TLS every call is refused.
func (a *Authority) Register(server grpc.ServiceRegistrar) {
	securityv1alpha1.RegisterIstioCertificateServiceServer(server, a.service())
}

func (a *Authority) service() *certificateService {
	return &certificateService{Authority: a, logged: rate.NewLimiter(1, 20)}
}

// certificateService answers istio.v1.auth.IstioCertificateService.
type certificateService struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	*Authority
	logged *rate.Limiter // refusals that are logged: what a stranger can cause must not fill the disk
}

// CreateCertificate signs the request's key for the caller's identity. The answer is a chain in PEM, the leaf first and the root
// last.
func (s *certificateService) CreateCertificate(
	ctx context.Context, in *securityv1alpha1.IstioCertificateRequest,
) (*securityv1alpha1.IstioCertificateResponse, error) {
	s.metrics.requests.Inc()
	caller, chain, err := s.sign(ctx, in)
	if err != nil {
		if s.logged.Allow() {
			s.log.Warn("certificate refused", "caller", caller.Identity, "pod", caller.PodName,
				"code", status.Code(err), "cause", status.Convert(err).Message())
		}
		return nil, err
	}
	s.metrics.issued.Inc()
	return &securityv1alpha1.IstioCertificateResponse{CertChain: chain}, nil
}

func (s *certificateService) sign(ctx context.Context, in *securityv1alpha1.IstioCertificateRequest) (Caller, []string, error) {
	caller, err := s.Caller(ctx)
	if err != nil {
		s.metrics.authenticationFailures.Inc()
		return caller, nil, err
	}
	if !s.limits.allow(caller.Identity) {
		s.metrics.limited.Inc()
		return caller, nil, status.Errorf(codes.ResourceExhausted,
			"%s asks for certificates too often: %g a second are allowed after a burst of %d; a workload needs one at start and at each renewal",
			caller.Identity, s.config.CertificatesPerSecond, s.config.CertificateBurst)
	}
	if err := checkMetadata(in); err != nil {
		return caller, nil, err
	}
	request, err := pki.ParseRequest([]byte(in.GetCsr()))
	if err != nil {
		s.metrics.parseErrors.Inc()
		return caller, nil, status.Error(codes.InvalidArgument, err.Error())
	}
	lifetime := s.lifetime(in.GetValidityDuration(), caller)
	var blocks [][]byte
	if s.config.Elsewhere != nil {
		blocks, err = s.signElsewhere(ctx, request, []byte(in.GetCsr()), caller, lifetime)
	} else {
		blocks, err = s.signHere(request, caller, lifetime)
	}
	if err != nil {
		return caller, nil, err
	}
	chain := make([]string, len(blocks))
	for i, b := range blocks {
		chain[i] = string(b)
	}
	return caller, chain, nil
}

// signHere signs with the authority of the Secrets.
func (s *certificateService) signHere(request *pki.Request, caller Caller, lifetime time.Duration) ([][]byte, error) {
	r, err := s.current()
	if err != nil {
		s.metrics.signErrors.WithLabelValues("no_root").Inc()
		return nil, status.Errorf(codes.Unavailable, "cannot sign: %v", err)
	}
	blocks, err := r.issuer.SignWorkload(request, caller.Identity, lifetime, time.Now())
	switch {
	case errors.Is(err, pki.ErrIssuerExpired):
		s.metrics.signErrors.WithLabelValues("root_expired").Inc()
		return nil, status.Errorf(codes.FailedPrecondition, "cannot sign: %v; replace the root in Secret %s/%s", err, s.config.Namespace, secretName)
	case err != nil:
		s.metrics.signErrors.WithLabelValues("internal").Inc()
		return nil, status.Errorf(codes.Internal, "cannot sign: %v", err)
	}
	return blocks, nil
}

// checkMetadata refuses what would change whose certificate it is or who signs it: to pass it over would give the caller something
// else than it asked for.
func checkMetadata(in *securityv1alpha1.IstioCertificateRequest) error {
	for key, refusal := range map[string]string{
		"ImpersonatedIdentity": "asking for another's certificate (metadata ImpersonatedIdentity) is not allowed",
		"CertSigner":           "another signer (metadata CertSigner) is not supported; leave ISTIO_META_CERT_SIGNER unset",
	} {
		switch v := in.GetMetadata().GetFields()[key].GetKind().(type) {
		case nil, *structpb.Value_NullValue:
		case *structpb.Value_StringValue:
			if v.StringValue != "" { // Istio's agent always sends the field
				return status.Error(codes.PermissionDenied, refusal)
			}
		default:
			return status.Error(codes.PermissionDenied, refusal)
		}
	}
	return nil
}

// lifetime is how long a certificate lives whose caller asks for that many seconds.
func (a *Authority) lifetime(seconds int64, caller Caller) time.Duration {
	if caller.ByCertificate { // who shows only an old certificate gets no longer one than the default
		if seconds <= 0 || seconds > int64(a.config.WorkloadLifetime/time.Second) {
			return a.config.WorkloadLifetime
		}
		return time.Duration(seconds) * time.Second
	}
	if seconds <= 0 {
		return a.config.WorkloadLifetime
	}
	if seconds > math.MaxInt64/int64(time.Second) {
		return a.config.MaxWorkloadLifetime
	}
	return min(time.Duration(seconds)*time.Second, a.config.MaxWorkloadLifetime)
}
