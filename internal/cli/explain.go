package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// explain is the one line that a user sees of an error: what went wrong and what to do next.
func (a *app) explain(err error) string {
	if a.host == "" { // no API server has part in it
		return err.Error()
	}
	which, choose := "the API server at "+a.host, "--context and --kubeconfig choose another cluster"
	start := "is it running? " + choose
	if a.inLab {
		start = "it is a lab's: `" + a.called() + " up`, with the --dir that made it, mends it; " + choose
	}
	if text := refusal(err, which, choose); text != "" {
		return text
	}
	if text := badCertificate(err, which, choose); text != "" {
		return text
	}
	var transport *url.Error
	if !errors.As(err, &transport) {
		return err.Error()
	}
	var (
		dial    *net.OpError
		noTLS   tls.RecordHeaderError
		timeout = transport.Timeout() || errors.Is(err, context.DeadlineExceeded)
	)
	switch {
	case errors.As(err, &noTLS), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Sprintf("%s does not speak TLS: is its address in the kubeconfig right? %s", which, choose)
	case errors.As(err, &dial) && dial.Op == "dial", errors.As(err, &dial) && dial.Op == "proxyconnect":
		return fmt.Sprintf("cannot reach %s: %v; %s", which, cause(err), start)
	case timeout:
		return fmt.Sprintf("%s takes connections and does not answer (waited %s): try again; %s", which, requestTimeout, start)
	case closed(err):
		return fmt.Sprintf("%s closed the connection without an answer, as a forwarder does with nothing behind it: %s", which, start)
	case errors.As(err, &dial):
		return fmt.Sprintf("the connection to %s broke: %v; %s", which, cause(err), start)
	}
	return fmt.Sprintf("cannot ask %s: %s; `kubectl config view --minify` shows how it is reached", which, oneLine(transport.Err.Error()))
}

// refusal explains an answer of the API server, "" when err is none or says all by itself.
func refusal(err error, which, choose string) string {
	again := "try again in a minute"
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("%s does not accept the credentials of the kubeconfig: log in again; %s", which, choose)
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("%s; use a context whose user may (--context), or ask a cluster administrator for this right", oneLine(err.Error()))
	case apierrors.IsTooManyRequests(err):
		return fmt.Sprintf("%s has too much to do: %s", which, again)
	case apierrors.IsServiceUnavailable(err), apierrors.IsServerTimeout(err), apierrors.IsTimeout(err):
		return fmt.Sprintf("%s cannot serve at present (%s): %s; `kubectl get --raw /readyz?verbose` says what it lacks", which, oneLine(err.Error()), again)
	case apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse):
		return fmt.Sprintf("what answers at %s is no Kubernetes API server, or something in front of one (%s): is its address in the kubeconfig right? %s",
			strings.TrimPrefix(which, "the API server at "), oneLine(err.Error()), choose)
	}
	return ""
}

// refusesCertificate reports whether the other side has ended a handshake because of this side's certificate. The type of such an
// error is not exported; its texts are those of the alerts (RFC 8446 6.2), all with the word but for one.
func refusesCertificate(err *net.OpError) bool {
	return err.Op == "remote error" && (strings.Contains(err.Err.Error(), "certificate") || strings.Contains(err.Err.Error(), "access denied"))
}

// badCertificate explains a handshake where one side does not take the other's certificate, "" when err is none.
func badCertificate(err error, which, choose string) string {
	var (
		unknownCA x509.UnknownAuthorityError
		wrongName x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		alert     *net.OpError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("%s shows a certificate that is not valid now (%v): compare the clocks, or let its administrator renew it; %s", which, invalid, choose)
	case errors.As(err, &unknownCA), errors.As(err, &wrongName), errors.As(err, &invalid), errors.As(err, &verify):
		return fmt.Sprintf("%s shows a certificate that the kubeconfig does not trust (%v): is it the kubeconfig of this cluster? %s", which, cause(err), choose)
	case errors.As(err, &alert) && refusesCertificate(alert):
		return fmt.Sprintf("%s does not accept the client certificate of the kubeconfig (%v): log in again; %s", which, alert.Err, choose)
	}
	return ""
}

// closed reports whether the other side ended the connection before it had answered.
func closed(err error) bool {
	if _, ok := errors.AsType[*closedError](err); ok {
		return true
	}
	// net/http keeps to itself the error for a connection that ends before the request is written; which of the two comes is chance.
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		err != nil && strings.HasSuffix(err.Error(), "http: server closed idle connection")
}

// answered makes a connection that was closed without an answer an error at once. The client library would take it for a hiccup
// and try ten times, a second apart, while a person waits before an empty screen.
func answered(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err != nil && closed(err) {
			return response, &closedError{}
		}
		return response, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// closedError stands for an error by whose type or text the client library would know a hiccup.
type closedError struct{}

func (*closedError) Error() string { return "the connection was closed without an answer" }

// oneLine is text without line breaks and the control characters that a server may have sent.
func oneLine(text string) string { return strings.Join(strings.Fields(printable(text)), " ") }
