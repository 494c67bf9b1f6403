package translate

import (
	"strings"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
)

// served are the kinds of Istio's API that this version carries out. An object of another kind is refused aloud: it has no effect,
// and its owner is told so.
var served = map[index.Kind]bool{
	index.AuthorizationPolicies: true, index.DestinationRules: true, index.PeerAuthentications: true, index.RequestAuthentications: true,
	index.ServiceEntries: true, index.VirtualServices: true, index.WorkloadEntries: true,
}

// resourceProblems are what is wrong with the objects of Istio's API of one namespace, each looked at alone.
func resourceProblems(ns *index.Namespace) (problems []diag.Problem) {
	for _, kind := range index.IstioKinds() {
		for _, r := range ns.Resources(kind.Kind).All() {
			switch {
			case kind.Kind == index.PeerAuthentications && r.Spec != nil:
				problems = append(problems, warnings(r.Problems)...) // its errors are told where it is translated
			default:
				problems = append(problems, r.Problems...)
			}
			if !served[kind.Kind] {
				problems = append(problems, diag.Problem{
					Code: diag.UnsupportedField, Severity: diag.Error, Object: r.Ref(),
					Detail: "this version does not carry out the kind " + kind.Name + ": the object has no effect",
					Hint:   "do not rely on it; CHANGELOG.md names the kinds that each version adds. To remove it: kubectl -n " + r.Namespace + " delete " + strings.ToLower(kind.Name) + " " + r.Name,
				})
			}
		}
	}
	return problems
}

func warnings(problems []diag.Problem) (kept []diag.Problem) {
	for _, p := range problems {
		if p.Severity != diag.Error {
			kept = append(kept, p)
		}
	}
	return kept
}
