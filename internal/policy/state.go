package policy

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// Reason says why webhooks are held or not. The strings stay: the status ConfigMap has them.
type Reason string

// The reasons.
const (
	ProvenHeld   Reason = "Proven"       // a dry run has shown it
	NotInstalled Reason = "NotInstalled" // there is no parameter object, so nothing of it is installed
	NoWebhooks   Reason = "NoWebhooks"   // the revision has no webhook configuration
	Inactive     Reason = "Inactive"     // the API server stores another bundle than the parameter's
	NotWritable  Reason = "NotWritable"  // the parameter cannot be read or written
	Unproven     Reason = "Unproven"     // the dry run did not tell
)

// State is whether a revision's webhooks are held. The zero State is that nothing is known yet.
type State struct {
	Held    bool   `json:"held"`
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Holds is the state of a proof.
func Holds(revision string) State {
	return State{Held: true, Reason: ProvenHeld, Message: fmt.Sprintf("the API server puts the caBundle of AdmissionParameter %s into every write of the revision's webhooks", HeldName(revision))}
}

// NothingToHold is the state of a revision without a webhook configuration, which is told elsewhere (SEL0043).
func NothingToHold(string) State {
	return State{Reason: NoWebhooks, Message: "the revision has no MutatingWebhookConfiguration that a dry run could ask about"}
}

// NotKept is the state when the parameter could not be read or written.
func NotKept(revision string, err error) State {
	name := HeldName(revision)
	if apierrors.IsNotFound(err) {
		return State{Reason: NotInstalled, Message: "there is no AdmissionParameter " + name + ": the control plane alone repairs the webhooks",
			Hint: "`selvage install` makes it, with its policy, where the API server serves MutatingAdmissionPolicy (Kubernetes 1.36)"}
	}
	s := State{Reason: NotWritable, Message: fmt.Sprintf("AdmissionParameter %s cannot be kept: %v", name, err)}
	if apierrors.IsForbidden(err) {
		s.Hint = "let the control plane get, watch and patch it: `selvage install` grants it"
	}
	return s
}

// NotProven is the state when the dry run failed.
func NotProven(_ string, err error) State {
	return State{Reason: Unproven, Message: fmt.Sprintf("the dry run that would prove it failed: %v", err)}
}

// NotInForce is the state when a dry run of a write of that configuration would have been stored with another bundle, or with none.
func NotInForce(revision, configuration string, other bool) State {
	name := HeldName(revision)
	what := "without a caBundle"
	if other {
		what = "with another caBundle than that of AdmissionParameter " + name
	}
	return State{Reason: Inactive,
		Message: fmt.Sprintf("a dry run that wipes the caBundle of MutatingWebhookConfiguration %s would be stored %s: MutatingAdmissionPolicy %s is not in force", configuration, what, name),
		Hint:    "`kubectl get mutatingadmissionpolicies,mutatingadmissionpolicybindings " + name + "` shows what is there; `selvage install` makes what is missing"}
}

// Wrong reports whether a person should know: the policy is installed and does not do its work.
func (s State) Wrong() bool { return s.Reason == Inactive || s.Reason == NotWritable }

// Problem is what to tell about a state that is wrong, or was lost.
func (s State) Problem(revision string) diag.Problem {
	return diag.Problem{
		Code: diag.WebhooksNotHeld, Severity: diag.Warning,
		Object: ref.Ref{Group: "admissionregistration.k8s.io", Kind: Mutating, Name: HeldName(revision)},
		Detail: s.Message, Hint: s.Hint,
	}
}
