// Package inject decides whether a pod gets a sidecar and says how the pod looks with one. It is pure: a pod and a Config go
// in, a verdict with its reason, a patched pod and the problems that a user should hear of come out. The admission webhook,
// offline injection and, later, the admission policies all ask this package, so that they agree.
//
// The steps are
//
//	Decide   pod → inject or not, and the reason in a sentence
//	Pod      pod → pod with sidecar; twice changes nothing; the input is never changed
//	Patch    the two pods → the least JSON patch
//
// A Config is compiled once from the documents that Istio keeps in two ConfigMaps (ParseConfig) or from the defaults
// (Default(revision).Compile()), is immutable, and may be shared by any number of goroutines.
package inject

import (
	"errors"
	"fmt"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// The names of the containers that injection adds. Tools of Istio's find the sidecar by them.
const (
	ProxyContainer = "istio-proxy"
	InitContainer  = "istio-init"
)

// isOurs reports whether a container has a name that injection gives.
func isOurs(name string) bool {
	return name == ProxyContainer || name == InitContainer || name == validationContainer
}

// Ports of the sidecar. They are fixed: the agent serves them and the interception rules know them.
const (
	outboundPort  = 15001 // Envoy, outbound capture
	inboundPort   = 15006 // Envoy, inbound capture
	agentPort     = 15020 // the agent: merged metrics, application probes
	readinessPort = 15021 // the agent: readiness of the sidecar
	envoyPromPort = 15090 // Envoy's own Prometheus listener
)

// proxyUID is the user and the group of the sidecar. Interception leaves this user's traffic alone, which is how Envoy's own
// connections get out.
const proxyUID int64 = 1337

// RefusedError says that a pod should have a sidecar and cannot get it as it is written. Problems has at least one entry of
// severity Error, in the order of the pod's fields, so that all can be mended at once.
type RefusedError struct {
	Problems []diag.Problem
}

// Error gives every problem, one a line when there are several.
func (e *RefusedError) Error() string {
	if len(e.Problems) == 1 {
		return Describe(e.Problems[0])
	}
	s := fmt.Sprintf("%d problems", len(e.Problems))
	for _, p := range e.Problems {
		s += "\n  " + Describe(p)
	}
	return s
}

// Describe is a problem as an admission message shows it: the object and the cause first, the code last, for a search.
func Describe(p diag.Problem) string {
	s := p.Object.String()
	if p.Field != "" {
		s += " " + p.Field
	}
	s += ": " + p.Detail
	if p.Hint != "" {
		s += " (" + p.Hint + ")"
	}
	return s + " [" + string(p.Code) + "]"
}

// alsoRefused joins two reasons to refuse a pod; each is a *RefusedError or nil.
func alsoRefused(list ...error) error {
	var all RefusedError
	for _, err := range list {
		var refused *RefusedError
		if errors.As(err, &refused) {
			all.Problems = append(all.Problems, refused.Problems...)
		}
	}
	if all.Problems == nil {
		return nil
	}
	return &all
}
