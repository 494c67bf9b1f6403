package trust

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// Use is what a certificate is for.
type Use string

// The uses. They are also the values of the label `certificate` of metrics.
const (
	Root         Use = "root"
	Intermediate Use = "intermediate"
	Serving      Use = "serving"
	Workload     Use = "workload"
)

// Certificate is one whose end matters.
type Certificate struct {
	Use          Use
	Object       ref.Ref // where a person looks: the Secret of an authority, the Service of a control plane, the Pod of a workload
	Subject      string  // "" when it has none
	Begins, Ends time.Time
	Elsewhere    bool // somebody else renews it
}

// The shares of a certificate's life, and the times, from which its end is told. The smaller of the two counts: a root of ten years
// is told 90 days before its end, a certificate of a day, which is renewed at half of its life, when a quarter is left.
const (
	soonShare, soonMost     = 0.25, 90 * 24 * time.Hour
	urgentShare, urgentMost = 0.08, 7 * 24 * time.Hour
)

// left is how much life a certificate has, and how pressing its end is.
func (c Certificate) left(now time.Time) (time.Duration, diag.Severity) {
	left, life := c.Ends.Sub(now), c.Ends.Sub(c.Begins)
	within := func(share float64, most time.Duration) bool {
		return left <= min(time.Duration(share*float64(life)), most)
	}
	switch {
	case left <= 0 || within(urgentShare, urgentMost):
		return left, diag.Error
	case within(soonShare, soonMost):
		return left, diag.Warning
	}
	return left, diag.Info
}

// Expiring gives a problem for each certificate that has expired or will soon, in the order of their ends.
func Expiring(certs []Certificate, now time.Time) []diag.Problem {
	certs = slices.Clone(certs)
	slices.SortStableFunc(certs, func(a, b Certificate) int {
		return cmp.Or(a.Ends.Compare(b.Ends), ref.Compare(a.Object, b.Object))
	})
	var problems []diag.Problem
	for _, c := range certs {
		left, severity := c.left(now)
		if severity == diag.Info {
			continue
		}
		problems = append(problems, diag.Problem{
			Code: diag.CertificateExpires, Severity: severity, Object: c.Object,
			Detail: c.detail(left), Hint: c.hint(),
		})
	}
	return problems
}

// detail does not say how long is left, only until when: its text stays the same while nothing changes.
func (c Certificate) detail(left time.Duration) string {
	name := "the " + string(c.Use) + " certificate"
	if c.Subject != "" {
		name += fmt.Sprintf(" %q", c.Subject)
	}
	end := c.Ends.UTC().Format(time.RFC3339)
	if left > 0 {
		return name + " expires at " + end
	}
	return name + " expired at " + end
}

func (c Certificate) hint() string {
	if c.Elsewhere && c.Use != Workload {
		return "whoever makes it must renew it, and put what is new where this one stands; it is taken without a restart. `selvage ca status` shows who signs"
	}
	switch c.Use {
	case Root:
		return "change the root in stages: `selvage ca rotate`, or put a new authority into Secret cacerts; `selvage ca status` shows how far it is"
	case Intermediate:
		return "put a renewed intermediate of the same root into the Secret; it is taken without a restart"
	case Serving:
		return "it is renewed at half of its life, so something keeps it from that: look at `kubectl -n istio-system logs -l app=istiod` and at `selvage ca status`"
	case Workload:
	}
	return "its sidecar renews it long before: `kubectl logs POD -c istio-proxy` says why it could not"
}
