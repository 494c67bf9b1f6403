package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// secrets are the names of those that decide who signs.
func (a *Authority) secrets() []string {
	if e := a.config.Elsewhere; e == nil {
		return []string{secretName, pluggedName, rotationName}
	} else if e.ServingSecret != "" {
		return []string{e.ServingSecret}
	}
	return nil
}

// state is what was read last.
type state struct {
	source  *pki.Issuer // what the Secrets name as the authority; nil when they name none that can be used
	plugged bool        // it is Secret cacerts'
	request string      // for a new self-signed root: trust.RequestAnnotation
	record  *rotation   // the change that is under way
}

// lookup gives what was read last and a channel that is closed when there is something newer.
func (a *Authority) lookup() (state, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.stated
}

// sync makes what signs and the Secrets agree, and gives what keeps it from that. It reads the Secrets themselves rather than a
// cache, so that what it decides on is never older than the event that woke it.
func (a *Authority) sync(ctx context.Context) *diag.Problem {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for attempt := 0; ; attempt++ {
		p, err := a.syncOnce(ctx)
		if err == nil {
			return p
		}
		if !overtaken(err) || attempt == 5 {
			p := a.unavailable(&unavailableError{rotationName, "write", err})
			a.setProblem(rotationName, p)
			return p
		}
	}
}

// syncOnce gives an error when the record of a change could not be written.
func (a *Authority) syncOnce(ctx context.Context) (*diag.Problem, error) {
	// The source before the record: see rotation.
	now, problem := a.readSource(ctx)
	record, err := a.readRotation(ctx)
	if ctx.Err() != nil {
		return problem, nil //nolint:nilerr // it ends
	}
	if err != nil {
		var broken *recordError
		errors.As(err, &broken)
		var secret *corev1.Secret
		if broken != nil {
			secret = broken.secret
		}
		p := a.problem(rotationName, secret, err)
		a.setProblem(rotationName, p)
		if problem == nil {
			problem = p
		}
		if broken == nil || a.root.Load() != nil {
			return problem, nil // what is in memory is what everybody trusts
		}
		former, err := a.formerRoots(ctx)
		if err != nil {
			return problem, err
		}
		return problem, a.adoptRest(now.source, broken.rest, former)
	}
	a.setProblem(rotationName, nil)
	if next := change(a.root.Load(), record, now.source, time.Now()); next != nil {
		if err := a.writeRotation(ctx, next); err != nil {
			return nil, err
		}
		a.log.Warn("the root of the mesh changes, in stages", "from", rootOf(a.root.Load().issuer), "to", next.to, "stage", next.stage)
		a.tell(now.secretName(), corev1.EventTypeNormal, "RootChanges", changesMessage(next))
		return nil, errAgain
	}
	now.record = record
	issuer, err := effective(now.source, record)
	switch {
	case err != nil:
		return a.problem(rotationName, nil, err), nil
	case issuer != nil:
		stage := trust.Stable
		if record != nil {
			stage = record.stage
		}
		a.adopt(issuer, stage)
	}
	a.publish(now)
	return problem, nil
}

// changesMessage tells people of a change that begins.
func changesMessage(r *rotation) string {
	what := "is distributed before it signs"
	if r.stage == trust.Sign {
		what = "signs, and the former one stays trusted until nobody shows a certificate of it"
	}
	return "the new root " + r.to + " " + what + "; `selvage ca status` shows how far it is"
}

// adoptRest brings into force what is left of a record that is garbled, at a start, with the roots that workloads were told to trust
// before: a record that was emptied names none. The leader does not know of it, so nothing goes on before a person has mended the
// record or deleted it.
func (a *Authority) adoptRest(source *pki.Issuer, rest *rotation, former []*x509.Certificate) error {
	for _, cert := range former {
		rest.others = append(rest.others, pki.EncodeCertificate(cert)...)
	}
	issuer, err := effective(source, rest)
	if err == nil && issuer != nil {
		a.adopt(issuer, rest.stage)
	}
	return err
}

// errAgain says that the record was written: what is in force is to be read again.
var errAgain = apierrors.NewConflict(corev1.Resource("secrets"), rotationName, errors.New("read it again"))

func (s state) secretName() string {
	if s.plugged {
		return pluggedName
	}
	return secretName
}

func (a *Authority) publish(s state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.state
	a.plugged = s.plugged
	same := s.source.Equal(before.source) && s.plugged == before.plugged && s.request == before.request && (s.record == nil) == (before.record == nil)
	if same && s.record != nil {
		same = s.record.version == before.record.version
	}
	if same {
		return
	}
	a.state = s
	a.restate()
}

// restate tells whoever shows how the authority is that there is something newer. a.mu is held.
func (a *Authority) restate() {
	close(a.stated)
	a.stated = make(chan struct{})
}

// readSource reads which authority the Secrets name: cacerts' where that exists, else the self-signed one, which is made when there
// is none.
func (a *Authority) readSource(ctx context.Context) (state, *diag.Problem) {
	secret, err := a.secret(ctx, pluggedName)
	a.mu.Lock()
	wasPlugged := a.plugged
	a.mu.Unlock()
	switch {
	case err == nil:
		s := state{plugged: true}
		var problem *diag.Problem
		if s.source, err = a.parsePlugged(secret); err != nil {
			problem = a.problem(pluggedName, secret, err)
		}
		a.setProblem(pluggedName, problem)
		a.setProblem(secretName, nil)
		return s, problem
	case !apierrors.IsNotFound(err):
		problem := a.unavailable(&unavailableError{pluggedName, "get", err})
		a.setProblem(pluggedName, problem)
		return state{plugged: wasPlugged}, problem
	case wasPlugged:
		problem := a.problem(pluggedName, nil, errors.New("the Secret is gone"))
		a.setProblem(pluggedName, problem)
		return state{plugged: true}, problem
	}
	a.setProblem(pluggedName, nil)
	s, problem := state{}, (*diag.Problem)(nil)
	secret, s.source, err = a.readRoot(ctx)
	switch {
	case err != nil:
		problem = a.problem(secretName, secret, err)
		a.setProblem(secretName, problem)
	case secret == nil: // it was made just now, which was told
		a.endProblem(secretName)
	default:
		a.setProblem(secretName, nil)
	}
	if s.source != nil {
		a.mu.Lock()
		a.selfSigned = s.source
		a.mu.Unlock()
	}
	if secret != nil {
		s.request = secret.Annotations[trust.RequestAnnotation]
	}
	return s, problem
}
