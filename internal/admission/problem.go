package admission

import (
	"fmt"
	"strings"
	"time"

	"istio.io/api/label"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

func (k Key) ref(generation int64) ref.Ref {
	return ref.Ref{Group: "admissionregistration.k8s.io", Kind: string(k.Kind), Name: k.Name, Generation: generation}
}

// Problem is what is wrong until the patch is applied.
func (p Patch) Problem() diag.Problem {
	var names []string
	for _, d := range p.Entries {
		if d.Bundle != Right {
			names = append(names, fmt.Sprintf("%s (%s)", d.Name, d.Bundle))
		}
	}
	return diag.Problem{
		Code: diag.WebhookDrift, Severity: diag.Error, Object: p.ref(p.Generation),
		Field:  "webhooks[].clientConfig.caBundle",
		Detail: fmt.Sprintf("the API server cannot trust the control plane: the bundle of %s is not this mesh's root", strings.Join(names, ", ")),
		Hint:   "the control plane puts it back by itself; keep other tools from writing caBundle (GitOps: ignore differences of this field)",
	}
}

// Problem is what to know about a configuration in a feud that has a name, or ok is false.
func (f *Feud) Problem(k Key) (p diag.Problem, ok bool) {
	by, _, n := f.Rival()
	if n < feudNamed {
		return p, false
	}
	p = diag.Problem{
		Code: diag.WebhookRival, Severity: diag.Warning, Object: k.ref(0), Field: "webhooks[].clientConfig.caBundle",
		Detail: fmt.Sprintf("%s has overwritten the control plane's repair %d times: until the next repair the API server cannot call the webhook", by, n),
		Hint:   "end that writer, or let it ignore caBundle and failurePolicy (docs/webhooks.md has the rules for Argo CD, Flux and Helm)",
	}
	if pause := f.Pause(); pause > 0 {
		p.Severity = diag.Error
		p.Detail += fmt.Sprintf("; it is repaired only every %s now", pause)
	}
	return p, true
}

// TakenByTag reports whether a configuration with a revision's name answers for a tag now: the tag of that name, such as default, leads to
// another revision. Then the revision has no configuration of its own by the wish of a person, and nothing is missing.
func TakenByTag(labels map[string]string, revision string) bool {
	return labels[label.IoIstioTag.Name] != "" && labels[label.IoIstioRev.Name] != revision
}

// MissingProblem says what the absence of a configuration means and how to restore it.
func MissingProblem(k Key, revision string) diag.Problem {
	p := diag.Problem{
		Code: diag.WebhookDeleted, Severity: diag.Error, Object: k.ref(0),
		Detail: "it does not exist: new pods get no sidecar from revision " + revision,
		Hint:   "nothing puts it back by itself, because people must be able to delete it; restore it with `selvage install --revision " + revision + "` (the options of the installation again), or `selvage uninstall` the revision",
	}
	if k.Kind == Validating {
		p.Severity, p.Detail = diag.Warning, "it does not exist: revision "+revision+" refuses no invalid Istio configuration any more"
	}
	return p
}

// UnlabelledProblem is that of a configuration with a revision's name which that revision does not keep any more, because the label that
// says whose it is was removed or changed. since is when that was noticed.
func UnlabelledProblem(k Key, revision string, object metav1.Object, since time.Time) diag.Problem {
	had := fmt.Sprintf("it has lost its label %s=%s", label.IoIstioRev.Name, revision)
	if value := object.GetLabels()[label.IoIstioRev.Name]; value != "" {
		had = fmt.Sprintf("its label %s says %s instead of %s", label.IoIstioRev.Name, value, revision)
	}
	return diag.Problem{
		Code: diag.WebhookDeleted, Severity: diag.Error, Object: k.ref(object.GetGeneration()), Field: "metadata.labels[" + label.IoIstioRev.Name + "]",
		Detail: fmt.Sprintf("%s since %s%s: the control plane keeps its caBundle right no more, and with the next change of the root the API server cannot call it",
			had, since.UTC().Format(time.RFC3339), labelTaker(object.GetManagedFields())),
		Hint: fmt.Sprintf("give it back: `kubectl label %s %s %s=%s --overwrite`; the control plane may not, because a webhook's label says whose it is",
			strings.ToLower(string(k.Kind)), k.Name, label.IoIstioRev.Name, revision),
	}
}

// labelTaker names who has changed the label, as far as managedFields tell: who sets it owns it, who only removes it leaves no trace.
func labelTaker(managed []metav1.ManagedFieldsEntry) string {
	field := `"f:` + label.IoIstioRev.Name + `"`
	var last metav1.ManagedFieldsEntry
	for _, m := range managed {
		if m.FieldsV1 != nil && strings.Contains(string(m.FieldsV1.GetRawBytes()), field) && !strings.HasPrefix(m.Manager, "selvage-") {
			return fmt.Sprintf(" (set by field manager %s)", m.Manager)
		}
		if !strings.HasPrefix(m.Manager, "selvage-") && m.Subresource == "" && !timeOf(m.Time).Before(timeOf(last.Time)) {
			last = m
		}
	}
	if last.Manager == "" {
		return " (who removes a label leaves no trace in managedFields; the API server's audit log names it)"
	}
	return fmt.Sprintf(" (who removes a label leaves no trace in managedFields, which name %s at %s as the last other writer; the API server's audit log is certain)",
		last.Manager, timeOf(last.Time).UTC().Format(time.RFC3339))
}
