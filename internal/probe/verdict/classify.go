package verdict

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

const (
	// maxCause bounds what is kept of an API server's text, which may carry a whole page of somebody's web server.
	maxCause = 600
	// maxText bounds what is looked at.
	maxText = 16 << 10
)

// suffixes end the names of the mesh's webhook entries, Istio's too; the last is that of the probe's own.
var suffixes = []string{inject.WebhookSuffix, "validation.istio.io", Suffix}

// ours reports whether a webhook entry is the mesh's.
func ours(webhook string) bool {
	for _, s := range suffixes {
		if webhook == s || strings.HasSuffix(webhook, "."+s) {
			return true
		}
	}
	return false
}

// Classify says what the error of a dry run means. An error that is not the API server's answer, such as a broken connection to it,
// says nothing about webhooks.
func Classify(err error) Finding {
	if err == nil {
		return Finding{Verdict: OK}
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return Finding{Verdict: CouldNotProbe, Cause: oneLine("the API server cannot be asked: " + err.Error())}
	}
	s := status.Status()
	f := Recognize(s.Message)
	switch {
	case f.Webhook != "" && ours(f.Webhook):
		return f
	case f.Webhook != "":
		f.Verdict = CouldNotProbe // somebody else's webhook stands in the way
		return f
	case s.Reason == metav1.StatusReasonForbidden && lacksRight(s.Message):
		f.Verdict = RBAC
	case s.Reason == metav1.StatusReasonInvalid:
		f.Verdict = TemplateError // what was sent is valid, so it is what came back from the injector that is not
	case s.Reason == metav1.StatusReasonInternalError && patchFails(strings.ToLower(s.Message)):
		f.Verdict = TemplateError
	default:
		f.Verdict = CouldNotProbe
	}
	return f
}

// lacksRight tells a refusal of RBAC from those of admission, which have the same reason.
func lacksRight(message string) bool {
	return strings.Contains(message, " cannot ") && strings.Contains(message, "in API group")
}

// patchFails knows the texts of the API server for a patch of a webhook that does not fit the object.
func patchFails(message string) bool {
	for _, part := range []string{"operation does not apply", "jsonpatch", "json patch", "decoding error", "cannot unmarshal", "unable to decode"} {
		if strings.Contains(message, part) {
			return true
		}
	}
	return false
}

// causes are the texts of Go, of its HTTP and TLS, and of the API server, in lower case and with plain quotes, that tell why a
// webhook cannot be called. The first that is found counts: those before name their cause more exactly than those after.
var causes = []struct {
	verdict Verdict
	parts   []string
}{
	{NoEndpoints, []string{"no endpoints available for service"}},
	{X509, []string{"x509:", "tls: failed to verify certificate", "remote error: tls:", "tls: bad certificate",
		"unable to load root certificates", "tls: unknown certificate"}},
	{WrongResponse, []string{"server gave http response to https client", "first record does not look like a tls handshake",
		"malformed http response", "tls: handshake failure", "tls: protocol version", "tls: no application protocol"}},
	{ConnectionRefused, []string{"connection refused", "connection reset by peer", "broken pipe", "server closed idle connection",
		"unexpected eof", "http2: client connection lost"}},
	{Timeout, []string{"context deadline exceeded", "client.timeout", "i/o timeout", "tls handshake timeout", "request canceled",
		"timed out", "no route to host", "network is unreachable", "host is down", "no agent available", "dial timeout",
		"timeout awaiting response headers", "operation not permitted"}},
	{ServiceMissing, []string{"no such host", "server misbehaving", "no service port", "unsupported service type"}},
}

// Recognize reads an error message of an API server, or a part of one, however it is wrapped: by kubectl, in an Event of a
// ReplicaSet, in a log. What it does not know is CouldNotProbe. It knows every message of the Istio troubleshooting pages.
func Recognize(text string) Finding {
	if len(text) > maxText {
		text = text[:maxText]
	}
	text = strings.ToValidUTF8(text, "�")
	f := Finding{Verdict: CouldNotProbe, Cause: oneLine(text)}
	flat := flatten(text)
	if name, rest, found := named(flat, "failed calling webhook", "failed calling admission webhook"); found {
		f.Webhook = name
		if f.Verdict = cause(rest); f.Verdict == CouldNotProbe {
			f.Verdict = WrongResponse // it was called, and nothing that is known of kept the answer from coming
		}
		return f
	}
	if name, rest, found := named(flat, "admission webhook"); found && strings.Contains(rest, "denied the request") {
		f.Webhook, f.Verdict = name, TemplateError
		return f
	}
	if lacksRight(flat) || strings.Contains(flat, " cannot ") && strings.Contains(flat, "in api group") {
		f.Verdict = RBAC
		return f
	}
	f.Verdict = cause(flat)
	return f
}

// named finds an entry's name in quotes after one of the phrases, and what follows it.
func named(flat string, phrases ...string) (name, rest string, found bool) {
	for _, phrase := range phrases {
		_, after, ok := strings.Cut(flat, phrase+` "`)
		if !ok {
			continue
		}
		name, rest, ok = strings.Cut(after, `"`)
		if ok && name != "" && len(name) <= 253 {
			return name, rest, true
		}
	}
	return "", "", false
}

// cause is CouldNotProbe when the text says nothing that is known.
func cause(flat string) Verdict {
	if _, after, ok := strings.Cut(flat, `service "`); ok { // service "istiod" not found
		if _, after, ok = strings.Cut(after, `"`); ok && strings.HasPrefix(after, " not found") {
			return ServiceMissing
		}
	}
	for _, c := range causes {
		for _, part := range c.parts {
			if strings.Contains(flat, part) {
				return c.verdict
			}
		}
	}
	if strings.HasSuffix(strings.TrimRight(flat, " .\n\""), ": eof") {
		return ConnectionRefused
	}
	return CouldNotProbe
}

// flatten makes texts comparable: lower case, one kind of quotes without escapes, one kind of space.
func flatten(text string) string {
	text = strings.NewReplacer(`\"`, `"`, "'", `"`, "‘", `"`, "’", `"`, "“", `"`, "”", `"`, "`", `"`).Replace(text)
	return strings.ToLower(strings.Join(strings.Fields(text), " "))
}

// oneLine is text without line breaks and control characters, cut to what an Event or a condition can hold.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) <= maxCause {
		return text
	}
	cut := maxCause
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
