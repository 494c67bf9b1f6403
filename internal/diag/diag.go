// Package diag is the one vocabulary for "this object is wrong". The webhook, the translator, the doctor, the CLI and the
// console all speak it; each decides only how to show a Problem.
package diag

import (
	"fmt"
	"strings"

	"github.com/selvage-mesh/selvage/internal/ref"
)

// Code is stable for ever: people suppress by it and search for it. IST0101 and on are Istio's, for findings that
// `istioctl analyze` has too; SEL0001 and on are ours. Each has a page docs/codes/CODE.md, which a test checks.
type Code string

// CauseRevision is the type of the cause, in the details of a refusal by the validating webhook, whose message is the revision that
// refused. A probe tells by it which control plane answered.
const CauseRevision = "SelvageRevision"

// ProbePrefix begins the names of what a probe creates as a dry run.
const ProbePrefix = "selvage-probe-"

// Severity says what a problem costs the user.
type Severity uint8

// The severities, from the least to the worst.
const (
	Info    Severity = iota // nothing is wrong; worth knowing
	Warning                 // works, but not as the object says
	Error                   // the object, or a part of it, has no effect or does harm
)

// String gives the word that tables and logs show.
func (s Severity) String() string {
	switch s {
	case Info:
		return "Info"
	case Warning:
		return "Warning"
	case Error:
		return "Error"
	}
	return fmt.Sprintf("Severity(%d)", uint8(s))
}

// Problem is one thing wrong with one object. Detail names the value seen and the cause; Hint is what to do next, a command
// where there is one.
type Problem struct {
	Code     Code
	Severity Severity
	Object   ref.Ref
	Field    string // JSON path inside the object, such as spec.mtls.mode; "" for the object as a whole
	Detail   string
	Hint     string
}

// String is the one-line form: `Error SEL0001 PeerAuthentication/shop/default spec.mtls.mode: … (hint: …)`.
func (p Problem) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", p.Severity, p.Code, p.Object)
	if p.Field != "" {
		b.WriteString(" " + p.Field)
	}
	b.WriteString(": " + p.Detail)
	if p.Hint != "" {
		b.WriteString(" (hint: " + p.Hint + ")")
	}
	return b.String()
}
