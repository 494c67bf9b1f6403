package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reason is what kind of failure it is. The texts are also a metric's label values.
type Reason string

// The reasons.
const (
	NoRoot        Reason = "no_root"         // the roots cannot be read
	NoToken       Reason = "no_token"        // the token cannot be read
	DNS           Reason = "dns"             // the name does not resolve
	Refused       Reason = "refused"         // nothing listens
	Timeout       Reason = "timeout"         // no answer to a connection
	Unreachable   Reason = "unreachable"     // no route
	Handshake     Reason = "handshake"       // TLS did not come about, for another reason than the next ones
	UnknownRoot   Reason = "unknown_root"    // the server's certificate is signed by another authority
	WrongName     Reason = "wrong_name"      // the server's certificate is for another name
	Expired       Reason = "expired"         // the server's certificate is not valid now
	Unauthorized  Reason = "unauthenticated" // the server does not take the pod's token or certificate
	Forbidden     Reason = "denied"          // the server knows the pod and refuses it
	Unimplemented Reason = "unimplemented"   // something else listens there
	Unavailable   Reason = "unavailable"     // the server says that it cannot answer now
	Ended         Reason = "ended"           // the connection or stream ended
	Other         Reason = "other"
	maxDetail            = 600 // bytes of a server's text that are shown
)

// Failure is why the control plane did not answer. Its text is one sentence: where, why, and what to look at.
type Failure struct {
	Reason  Reason
	Address string // HOST:PORT
	Detail  string // what the network, TLS or the server said
	cause   error
}

// Error gives the sentence.
func (f *Failure) Error() string {
	what, look := f.sentence()
	text := fmt.Sprintf("%s %s", f.Address, what)
	if f.Detail != "" {
		text += " (" + f.Detail + ")"
	}
	if look != "" {
		text += ": " + look
	}
	return text
}

// Unwrap gives the error that the sentence is about, if there is one.
func (f *Failure) Unwrap() error { return f.cause }

func (f *Failure) sentence() (what, look string) {
	host, port, err := net.SplitHostPort(f.Address)
	if err != nil {
		host, port = f.Address, "?"
	}
	switch f.Reason {
	case NoRoot:
		return "cannot be verified, because the mesh's root certificate cannot be read",
			"does ConfigMap istio-ca-root-cert exist in this namespace? The control plane writes it"
	case NoToken:
		return "cannot be asked, because this pod's token cannot be read", "is the volume istio-token mounted?"
	case DNS:
		return "cannot be reached: " + host + " does not resolve", "is discoveryAddress right, does that Service exist, does cluster DNS work?"
	case Refused:
		return "refused the connection", "is istiod running, and does its Service have a ready endpoint?"
	case Timeout:
		return "did not answer", "does a firewall or NetworkPolicy block port " + port + "?"
	case Unreachable:
		return "cannot be reached: there is no route to it", "do pods of this node reach other nodes and Services?"
	case Handshake:
		return "answered, but TLS failed", "is port " + port + " the control plane's xDS port?"
	case UnknownRoot:
		return "has a certificate of an authority that this pod does not trust",
			"ConfigMap istio-ca-root-cert in this namespace is stale or of another mesh"
	case WrongName:
		return "has a certificate for another name", "is discoveryAddress that of the right revision?"
	case Expired:
		return "has a certificate that is not valid now", "is the clock of this node or of the control plane's wrong?"
	case Unauthorized:
		return "does not believe who this pod is", "is the token's audience istio-ca, and does the control plane's cluster know this ServiceAccount?"
	case Forbidden:
		return "refused this pod", ""
	case Unimplemented:
		return "answered, but does not serve the mesh's protocol", "is port " + port + " the control plane's xDS port?"
	case Unavailable:
		return "says that it is not available", "look at its log: kubectl logs -n istio-system deploy/istiod"
	case Ended:
		return "ended the connection", ""
	default:
		return "failed", ""
	}
}

// explain classifies err, which a call on a connection with this trace returned.
func explain(c Config, t *trace, err error) *Failure {
	var known *Failure
	if errors.As(err, &known) {
		return known
	}
	f := &Failure{Reason: Other, Address: c.Address, Detail: detail(err), cause: err}
	connected, secured, alerted, cause := t.read()
	switch {
	case cause != nil && !connected:
		f.Reason, f.Detail = dialReason(cause), detail(cause)
		if f.Reason == Timeout {
			f.Detail = fmt.Sprintf("within %s", c.Timeout)
		}
	case cause != nil && !secured:
		f.Reason, f.Detail = handshakeReason(cause), detail(cause)
		if f.Reason == Handshake && timedOut(cause) {
			f.Detail = fmt.Sprintf("the handshake did not end within %s", c.Timeout)
		}
	case alerted:
		f.Reason = Unauthorized
	case errors.Is(err, io.EOF):
		f.Reason, f.Detail = Ended, ""
	default:
		f.Reason = statusReason(err)
		if f.Reason == Ended || f.Reason == Unavailable {
			f.Detail = strings.TrimPrefix(f.Detail, "connection error: ")
		}
	}
	return f
}

func dialReason(err error) Reason {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return DNS
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case timedOut(err):
		return Timeout
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Unreachable
	}
	return Other
}

func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) ||
		errors.As(err, &n) && n.Timeout()
}

func handshakeReason(err error) Reason {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return UnknownRoot
	case errors.As(err, &name):
		return WrongName
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Expired
	case isAlert(err): // the server refuses our certificate
		return Unauthorized
	}
	return Handshake
}

func statusReason(err error) Reason {
	s, ok := status.FromError(err)
	if !ok {
		return Other
	}
	switch s.Code() {
	case codes.Unauthenticated:
		return Unauthorized
	case codes.PermissionDenied:
		return Forbidden
	case codes.Unimplemented:
		return Unimplemented
	case codes.DeadlineExceeded:
		return Timeout
	case codes.Unavailable:
		// gRPC's own words for a transport that ended; anything else is the server's answer.
		for _, ended := range []string{"error reading from server", "transport is closing", "connection closed", "connection error", "GOAWAY", "keepalive", "broken pipe", "connection reset by peer"} {
			if strings.Contains(s.Message(), ended) {
				return Ended
			}
		}
		return Unavailable
	default:
		return Other
	}
}

// endpoints are the addresses in the texts of Go's network errors. Our own port among them is another with each attempt, and a text
// that says the same shall be the same.
var endpoints = regexp.MustCompile(`(read|write) (tcp|udp) \S+->(\S+?): `)

// detail is what others said, short and in one line.
func detail(err error) string {
	text := err.Error()
	var dns *net.DNSError
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		text = s.Message()
	} else if errors.As(err, &dns) {
		text = dns.Err
		if dns.Server != "" {
			text += ", said by " + dns.Server
		}
	}
	text = endpoints.ReplaceAllString(strings.Join(strings.Fields(text), " "), "$3: ")
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}
