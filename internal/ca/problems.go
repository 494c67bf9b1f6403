package ca

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// unavailableError is a Secret that cannot be read or written.
type unavailableError struct {
	secret, verb string
	err          error
}

func (e *unavailableError) Error() string {
	return fmt.Sprintf("%s Secret %s: %v", e.verb, e.secret, e.err)
}
func (e *unavailableError) Unwrap() error { return e.err }

// recordError is a record of a change that cannot be read as a whole.
type recordError struct {
	secret *corev1.Secret
	wrong  []string  // what is wrong, by key
	rest   *rotation // what can be read
}

func (e *recordError) Error() string {
	text := "the change of the root cannot go on: " + strings.Join(e.wrong, "; ")
	if names := rootNames(readable(e.rest.others)); len(names) > 0 {
		text += "; what can be read of it stays trusted: " + strings.Join(slices.Compact(slices.Sorted(slices.Values(names))), ", ")
	}
	return text
}

// problem is what a person must know of an error about a Secret. secret is nil when there is none.
func (a *Authority) problem(name string, secret *corev1.Secret, err error) *diag.Problem {
	var unavailable *unavailableError
	if errors.As(err, &unavailable) {
		return a.unavailable(unavailable)
	}
	p := a.secretProblem(diag.InvalidRoot, name)
	p.Detail = err.Error()
	switch {
	case name == rotationName:
		p.Hint = "put its content back; or, while this control plane runs, let the change begin anew from its first stage, in which no root is forgotten: " +
			a.deletes(name)
	case secret == nil: // it was there before
		p.Hint = "put it back: certificates are signed with what is in memory, which is lost when this control plane restarts"
	case name == pluggedName:
		a.nameMissing(p, secret.Data, pluggedKeys(secret.Data))
		p.Hint = "put a certificate, its key, its chain and root in: `kubectl explain` does not know them, docs/certificates.md does"
		if a.root.Load() != nil {
			p.Hint = "the former content stays in force while this control plane runs; put it, or a right one, back"
		}
	default:
		a.nameMissing(p, secret.Data, []string{certKey, keyKey})
		p.Hint = "put a backup back; without one, " + a.deletes(name) + " makes a new root, and every workload must be restarted to trust it"
		if a.root.Load() != nil {
			p.Hint = "put the former content back, or let the root in memory be written again, while this control plane runs: " + a.deletes(name)
		}
	}
	return p
}

func (a *Authority) deletes(name string) string {
	return fmt.Sprintf("`kubectl -n %s delete secret %s`", a.config.Namespace, name)
}

// nameMissing points at the first key that is not there.
func (a *Authority) nameMissing(p *diag.Problem, data map[string][]byte, keys []string) {
	n := slices.IndexFunc(keys, func(key string) bool { return len(data[key]) == 0 })
	if n >= 0 {
		p.Field, p.Detail = "data["+keys[n]+"]", "the key "+keys[n]+" is missing or empty"
	}
}

// unavailable is the problem of a Secret that cannot be read or written.
func (a *Authority) unavailable(e *unavailableError) *diag.Problem {
	p := a.secretProblem(diag.SourceUnavailable, e.secret)
	p.Detail = fmt.Sprintf("cannot %s it: %v", e.verb, e.err)
	switch {
	case apierrors.IsForbidden(e.err):
		p.Hint = fmt.Sprintf("let the control plane get, list, watch, create and update Secrets in namespace %s: `selvage install` grants it", a.config.Namespace)
	case apierrors.IsNotFound(e.err):
		p.Hint = fmt.Sprintf("namespace %s does not exist: `selvage install` creates it", a.config.Namespace)
	default:
		p.Hint = "it is tried again until the API server answers"
	}
	return p
}

func (a *Authority) secretProblem(code diag.Code, name string) *diag.Problem {
	return &diag.Problem{Code: code, Severity: diag.Error, Object: ref.Ref{Kind: "Secret", Namespace: a.config.Namespace, Name: name}}
}

// setProblem remembers what is wrong with a Secret, or another thing that the CA needs, nil for nothing, and tells it when it is new.
func (a *Authority) setProblem(name string, p *diag.Problem) {
	a.mu.Lock()
	before := a.problems[name]
	if p == nil {
		delete(a.problems, name)
	} else {
		a.problems[name] = p
	}
	changed := (p == nil) != (before == nil) || p != nil && *before != *p
	if changed {
		a.restate()
	}
	a.mu.Unlock()
	switch {
	case p != nil && changed:
		a.log.Error("the CA lacks something", "problem", p.String(), "signing", a.root.Load() != nil)
		a.tellObject(p.Object, corev1.EventTypeWarning, "InvalidAuthority", p.Detail+"; "+p.Hint)
	case p == nil && before != nil:
		a.log.Info("the CA lacks it no more", "object", before.Object.String())
		a.tellObject(before.Object, corev1.EventTypeNormal, "AuthorityUsable", "it can be used again")
	}
	unusable := 0.0
	if p != nil {
		unusable = 1
	}
	a.metrics.unusable.WithLabelValues(name).Set(unusable)
}

// endProblem forgets what was wrong with a Secret that is another one now.
func (a *Authority) endProblem(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.problems[name] != nil {
		delete(a.problems, name)
		a.restate()
	}
	a.metrics.unusable.WithLabelValues(name).Set(0)
}

// hasProblem reports whether something is wrong with a Secret.
func (a *Authority) hasProblem(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.problems[name] != nil
}

// tell writes an Event on a Secret of the CA.
func (a *Authority) tell(name, kind, reason, message string) {
	a.tellObject(ref.Ref{Kind: "Secret", Namespace: a.config.Namespace, Name: name}, kind, reason, message)
}

// tellObject writes an Event on an object.
func (a *Authority) tellObject(o ref.Ref, kind, reason, message string) {
	if a.config.Events != nil {
		version := "v1"
		if o.Group != "" {
			version = o.Group + "/v1"
		}
		a.config.Events.Event(&corev1.ObjectReference{APIVersion: version, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}, kind, reason, message)
	}
}

// problemError is a problem as an error.
type problemError struct{ diag.Problem }

func (e problemError) Error() string {
	return fmt.Sprintf("%s: %s; %s", e.Object, e.Detail, e.Hint)
}
