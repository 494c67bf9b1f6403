package verdict

import (
	"fmt"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// codes are the diag codes of the failures.
var codes = map[Verdict]diag.Code{
	WebhookMissing: diag.WebhookMissing, ServiceMissing: diag.WebhookServiceMissing, NoEndpoints: diag.WebhookNoEndpoints,
	ConnectionRefused: diag.WebhookRefused, Timeout: diag.WebhookTimeout, X509: diag.WebhookCertificate,
	WrongResponse: diag.WebhookResponse, TemplateError: diag.WebhookTemplate, RBAC: diag.ProbeForbidden, CouldNotProbe: diag.ProbeFailed,
}

// Problem is the finding as what is wrong with one object, and the next step. It is false for OK.
func (n Names) Problem(c Check, f Finding) (diag.Problem, bool) {
	if f.Verdict == OK {
		return diag.Problem{}, false
	}
	p := n.describe(c, f)
	p.Code, p.Severity = codes[f.Verdict], diag.Error
	if f.Verdict == CouldNotProbe {
		p.Severity = diag.Warning
	}
	if f.Cause != "" {
		p.Detail += ": " + f.Cause
	}
	return p, true
}

// effect says what does not work.
func (c Check) effect() string {
	if c == Validation {
		return "invalid configuration is not refused"
	}
	return "pods get no sidecar"
}

// describe gives the object, the sentence and the next step of a failure.
func (n Names) describe(c Check, f Finding) diag.Problem {
	service, hook := n.Service(), n.Configuration(c)
	about := func(object ref.Ref, detail, hint string) diag.Problem {
		return diag.Problem{Object: object, Detail: detail, Hint: hint}
	}
	pods := fmt.Sprintf("kubectl -n %s get pods -l app=istiod,istio.io/rev=%s", n.Namespace, n.revision())
	switch f.Verdict {
	case WebhookMissing:
		return about(hook, fmt.Sprintf("%s: no webhook of revision %s was called", c.effect(), n.revision()),
			fmt.Sprintf("run `%s`, which puts the webhook configuration back as it should be", n.install()))
	case ServiceMissing:
		return about(service, fmt.Sprintf("%s: the Service of the webhook, or its port 443, does not exist", c.effect()),
			fmt.Sprintf("run `%s`, which makes the Service again; if the revision was removed on purpose, remove its webhooks too: `selvage uninstall --revision %s`", n.install(), n.revision()))
	case NoEndpoints:
		return about(service, fmt.Sprintf("%s: no replica of the control plane is ready", c.effect()),
			fmt.Sprintf("look why: `%s`, then `kubectl -n %s logs deployment/%s`", pods, n.Namespace, service.Name))
	case ConnectionRefused:
		return about(service, fmt.Sprintf("%s: nothing listens where the webhook leads, or it hangs up", c.effect()),
			fmt.Sprintf("the control plane must listen on 15017, to which port 443 of the Service leads: `%s`; `kubectl -n %s get endpointslices -l kubernetes.io/service-name=%s -o yaml`", pods, n.Namespace, service.Name))
	case Timeout:
		return about(service, fmt.Sprintf("%s: the API server gets no answer from port 15017 of the control plane in time", c.effect()),
			"let the API server reach TCP port 15017 of the control plane's pods: private clusters need a firewall rule from the API server's network to the nodes; look also for NetworkPolicies in namespace "+n.Namespace+" and for an overloaded control plane")
	case X509:
		return about(hook, fmt.Sprintf("%s: the API server does not trust the control plane's certificate", c.effect()),
			fmt.Sprintf("the control plane puts caBundle right by itself; if this stays, look who overwrites it: `kubectl get %s %s -o yaml --show-managed-fields`", lower(hook.Kind), hook.Name))
	case WrongResponse:
		return about(service, fmt.Sprintf("%s: what answers where the webhook leads is not this control plane", c.effect()),
			fmt.Sprintf("look where Service %s/%s leads (selector, targetPort 15017) and for proxies in between: `kubectl -n %s get endpointslices -l kubernetes.io/service-name=%s -o yaml`", n.Namespace, service.Name, n.Namespace, service.Name))
	case TemplateError:
		return about(n.injector(), fmt.Sprintf("%s: the control plane is reached and refuses", c.effect()),
			fmt.Sprintf("mend ConfigMap %s/%s (or the mesh configuration beside it): `selvage inject --check` and the Events of the ConfigMap say what is wrong", n.Namespace, n.injector().Name))
	case RBAC:
		return about(n.account(), "the control plane may not probe",
			fmt.Sprintf("run `%s`, which grants dry runs in namespace %s and nothing else there", n.install(), Namespace))
	default: // CouldNotProbe: of what is OK there is no problem
		return about(ref.Ref{Kind: "Namespace", Name: Namespace}, fmt.Sprintf("whether %s is not known", map[Check]string{Injection: "pods get sidecars", Validation: "invalid configuration is refused"}[c]),
			"it is asked again soon; if this stays, mend what the message names, or run `"+n.install()+"`")
	}
}

// lower is the kind as kubectl takes it.
func lower(kind string) string {
	if kind == "ValidatingWebhookConfiguration" {
		return "validatingwebhookconfiguration"
	}
	return "mutatingwebhookconfiguration"
}
