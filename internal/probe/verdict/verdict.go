// Package verdict says what an API server's answer to a dry run means for the mesh's webhooks: exactly one Verdict, with a sentence
// and a next step. It holds the dry runs themselves too (Pod, the webhook configurations that see them), so that everybody who
// probes asks the same. It is pure: who asks the API server is package probe, package install, or a person with an error message.
package verdict

import (
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// Verdict is the state of one check. The strings are label values of metrics and reasons of conditions' history: they stay.
type Verdict string

// The verdicts. Each failure has one cause and one cure, which Problem tells.
const (
	OK                Verdict = "ok"
	WebhookMissing    Verdict = "webhook_missing"    // no webhook of the revision was called
	ServiceMissing    Verdict = "service_missing"    // the Service it leads to, or that Service's port, is not there
	NoEndpoints       Verdict = "no_endpoints"       // the Service has no ready endpoint
	ConnectionRefused Verdict = "connection_refused" // nobody listens, or whoever does hangs up
	Timeout           Verdict = "timeout"            // no answer in time: a firewall before port 15017, most of all
	X509              Verdict = "x509"               // the certificate and the caBundle do not fit
	WrongResponse     Verdict = "wrong_response"     // something else than the control plane answers
	TemplateError     Verdict = "template_error"     // the control plane answers and cannot do it: its configuration is wrong
	RBAC              Verdict = "rbac"               // the control plane may not ask
	CouldNotProbe     Verdict = "could_not_probe"    // the API server could not be asked, or somebody else's rule came between
)

// Verdicts are all there are, in the order of the documentation.
var Verdicts = []Verdict{OK, WebhookMissing, ServiceMissing, NoEndpoints, ConnectionRefused, Timeout, X509, WrongResponse,
	TemplateError, RBAC, CouldNotProbe}

// Reason is the verdict as a condition's reason, in the form that Kubernetes wants.
func (v Verdict) Reason() string {
	if r, ok := reasons[v]; ok {
		return r
	}
	return "Unknown"
}

var reasons = map[Verdict]string{
	OK: "Works", WebhookMissing: "WebhookMissing", ServiceMissing: "ServiceMissing", NoEndpoints: "NoEndpoints",
	ConnectionRefused: "ConnectionRefused", Timeout: "Timeout", X509: "CertificateNotTrusted", WrongResponse: "WrongResponse",
	TemplateError: "TemplateError", RBAC: "Forbidden", CouldNotProbe: "CouldNotProbe",
}

// ByReason is the verdict of a condition's reason, CouldNotProbe for any that is none.
func ByReason(reason string) Verdict {
	for v, r := range reasons {
		if r == reason {
			return v
		}
	}
	return CouldNotProbe
}

// Check is what a probe proves.
type Check string

// The checks.
const (
	Injection  Check = "injection"  // a pod that asks for a sidecar gets it
	Validation Check = "validation" // an invalid object is refused
)

// Finding is what one error, or one answer, says.
type Finding struct {
	Verdict Verdict
	Webhook string // the entry that the API server names, "" when it names none
	Cause   string // in the API server's words where there are any: one line, bounded; "" for OK
}

// Names are those of the objects that a revision's webhooks are made of.
type Names struct {
	Revision  string // "" is the default one
	Namespace string // of the control plane
}

const group = "admissionregistration.k8s.io"

// Service is what the webhooks lead to.
func (n Names) Service() ref.Ref {
	return ref.Ref{Kind: "Service", Namespace: n.Namespace, Name: inject.ObjectName("istiod", n.Revision)}
}

// Configuration is the webhook configuration that a check is about.
func (n Names) Configuration(c Check) ref.Ref {
	if c == Validation {
		return ref.Ref{Group: group, Kind: "ValidatingWebhookConfiguration", Name: inject.ObjectName("istio-validator", n.Revision) + "-" + n.Namespace}
	}
	return ref.Ref{Group: group, Kind: "MutatingWebhookConfiguration", Name: inject.Registration{Revision: n.Revision}.Name()}
}

// injector is the ConfigMap with the templates.
func (n Names) injector() ref.Ref {
	return ref.Ref{Kind: "ConfigMap", Namespace: n.Namespace, Name: inject.ObjectName(inject.InjectorConfigMap, n.Revision)}
}

// account is the control plane's ServiceAccount.
func (n Names) account() ref.Ref {
	return ref.Ref{Kind: "ServiceAccount", Namespace: n.Namespace, Name: inject.ObjectName("istiod", n.Revision)}
}

// revision is the name that labels carry.
func (n Names) revision() string {
	if n.Revision == "" {
		return inject.DefaultRevision
	}
	return n.Revision
}

// install is the command that puts a revision's objects back.
func (n Names) install() string {
	if n.revision() == inject.DefaultRevision {
		return "selvage install"
	}
	return "selvage install --revision " + n.Revision
}
