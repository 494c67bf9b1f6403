package ca

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// errNoAnswer is the cause of a context that ended because the signer took too long.
var errNoAnswer = errors.New("no answer in time")

// refusalKind is why a signer of Kubernetes gave no certificate.
type refusalKind string

// The kinds. They are words of the message.
const (
	denied      refusalKind = "was denied"
	failed      refusalKind = "failed"
	unanswered  refusalKind = "was not answered"
	forbidden   refusalKind = "is forbidden"
	unreachable refusalKind = "could not be written"
	wrongAnswer refusalKind = "was answered with a certificate that cannot be used"
)

// refusal is a request without a certificate.
type refusal struct {
	request, signer string // request may be ""
	kind            refusalKind
	detail          string
}

func (r *refusal) Error() string {
	name := "a CertificateSigningRequest"
	if r.request != "" {
		name = "CertificateSigningRequest " + r.request
	}
	return fmt.Sprintf("%s to signer %s %s: %s", name, r.signer, r.kind, r.detail)
}

// hint is what a person can do.
func (r *refusal) hint() string {
	look := "look at `kubectl describe csr " + r.request + "`"
	switch r.kind {
	case denied:
		return "somebody or some policy denies requests to this signer; " + look
	case failed:
		return "the signer's controller says why; " + look
	case unanswered:
		return "does a controller for signer " + r.signer + " run, and may it sign? " + look
	case forbidden:
		return "let the control plane create, get, list, watch and delete certificatesigningrequests, update certificatesigningrequests/approval, and approve for signer " +
			r.signer + ": `selvage install --ca-signer` grants it"
	case wrongAnswer:
		return "the roots in meshConfig.caCertificates with certSigners " + r.signer + " must be those that it signs by, and it must take the identity from the request; " + look
	case unreachable:
	}
	return "it is tried again when the next certificate is asked for"
}

// failed is the refusal behind an error of the API server, or of ctx.
func (s *signer) failed(ctx context.Context, name, verb string, err error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errNoAnswer):
		return &refusal{request: name, signer: s.name, kind: unanswered, detail: "nothing came within " + s.answer.Round(time.Second).String()}
	case cause != nil:
		return cause // who asked has gone
	case apierrors.IsForbidden(err):
		return &refusal{request: name, signer: s.name, kind: forbidden, detail: verb + ": " + err.Error()}
	}
	return &refusal{request: name, signer: s.name, kind: unreachable, detail: verb + ": " + err.Error()}
}
