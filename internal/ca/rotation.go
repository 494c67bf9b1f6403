package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// RotationConfig says whose root is changed. Authority and Namespaces are needed.
type RotationConfig struct {
	Authority *Authority
	// Namespaces counts the namespaces that have the roots, and names some that have not.
	Namespaces func() trust.Count
	// Distribution gives the namespaces that the roots cannot be brought to, and a channel that is closed when that changes; nil for none.
	Distribution func() ([]diag.Problem, <-chan struct{})
	Registerer   prometheus.Registerer // may be nil

	Settle       time.Duration // how long the gates of a stage must have been open; 5 s
	Look         time.Duration // how often the gates are looked at; 1 s
	ReplicaGone  time.Duration // after how long without a word a replica does not count any more, which speaks every 10 s; 25 s
	BlockedAfter time.Duration // from when on a closed gate is a problem; 15 min
}

// Rotation leads changes of the mesh's root from stage to stage. One replica runs it, under a lease. It keeps nothing in memory
// that matters: whoever comes next goes on from the Secret.
type Rotation struct {
	config    RotationConfig
	authority *Authority
	log       *slog.Logger
	stages    *prometheus.GaugeVec
	waiting   *prometheus.GaugeVec

	board   *board
	open    time.Time // since when all gates are, zero while one is not
	blocked string    // the stage of which it was told that it is blocked
}

// NewRotation gives a leader that does nothing yet.
func NewRotation(c RotationConfig) (*Rotation, error) {
	if c.Authority == nil || c.Namespaces == nil {
		return nil, errors.New("configure root rotation: an authority and a count of namespaces are needed")
	}
	if c.Distribution == nil {
		c.Distribution = func() ([]diag.Problem, <-chan struct{}) { return nil, nil }
	}
	defaultTo(&c.Settle, 5*time.Second)
	defaultTo(&c.Look, time.Second)
	defaultTo(&c.ReplicaGone, 25*time.Second)
	defaultTo(&c.BlockedAfter, 15*time.Minute)
	r := &Rotation{config: c, authority: c.Authority, log: c.Authority.log,
		stages: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_root_rotation_stage", Help: "1 for the stage that the root of the mesh is at, at the replica that leads.",
		}, []string{"stage"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_root_rotation_waiting", Help: "How many have not acknowledged the stage, by gate, at the replica that leads.",
		}, []string{"gate"}),
	}
	if c.Registerer != nil {
		for _, m := range []prometheus.Collector{r.stages, r.waiting} {
			if err := c.Registerer.Register(m); err != nil {
				return nil, fmt.Errorf("configure root rotation: register metrics: %w", err)
			}
		}
	}
	return r, nil
}

// Run leads until ctx ends. It returns nil then; what fails is tried again.
func (r *Rotation) Run(ctx context.Context) error {
	r.board = newBoard(r.authority, r.config.ReplicaGone)
	r.open, r.blocked = time.Time{}, ""
	defer r.stages.Reset()
	defer r.waiting.Reset()
	failures := 0
	for {
		s, changed := r.authority.lookup()
		_, distributed := r.config.Distribution()
		wait := 10 * time.Minute // for what expires and for problems in the status
		err := r.step(ctx, s)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !overtaken(err):
			failures++
			wait = min(r.config.Look<<min(failures, 5), 30*time.Second)
			r.log.Error("root rotation cannot go on, it is tried again", "error", err)
		case s.record != nil || r.authority.root.Load() == nil: // what is wrong with it may be found out later
			failures, wait = 0, r.config.Look
		default:
			failures = 0
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-distributed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// step does the one thing that is next.
func (r *Rotation) step(ctx context.Context, s state) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	held := r.authority.root.Load()
	if held == nil {
		return r.reportNothing(ctx, s) // nothing signs yet
	}
	// What signs is known a moment before the record is: a change under way must not pass for none.
	if r.board.live == nil && (s.record != nil || held.stage == trust.Stable) {
		r.board.live = map[string]struct{}{}
		if s.record != nil {
			r.board.left = time.Now() // who led before may have ended
		}
	}
	if s.record == nil {
		if r.authority.hasProblem(rotationName) {
			return r.report(ctx, s, held, nil) // a person has to mend it
		}
		if held.stage != trust.Stable {
			return nil // it will be told
		}
		if s.wantsNewRoot(time.Now()) {
			return r.begin(ctx, s)
		}
		r.open = time.Time{}
		return r.report(ctx, s, held, nil)
	}
	if done, err := r.tidy(ctx, s); done || err != nil {
		return err
	}
	if held.stage != s.record.stage {
		return nil // it will be told
	}
	gates, err := r.gates(ctx, s, held)
	if err != nil {
		return err
	}
	if err := r.report(ctx, s, held, gates); err != nil {
		return err
	}
	return r.pass(ctx, s, gates)
}

// renewShare is which part of a self-signed root's life is left when it is changed without anybody asking.
const renewShare = 10

// wantsNewRoot reports whether it is time for another self-signed root.
func (s state) wantsNewRoot(now time.Time) bool {
	if s.plugged || s.source == nil {
		return false
	}
	if s.request != "" && s.request != trust.UndoRequest {
		return true
	}
	root := s.source.Root()
	return root.NotAfter.Sub(now) < root.NotAfter.Sub(root.NotBefore)/renewShare
}

// begin stores the new root beside the one that signs. Nothing else happens before that is stored.
func (r *Rotation) begin(ctx context.Context, s state) error {
	a, now := r.authority, time.Now()
	next, err := pki.NewRootOf(a.config.Key, a.config.TrustDomain, now)
	if err != nil {
		return err
	}
	record := begin(trust.Distribute, s.source, next, now)
	record.next = next
	if err := a.writeRotation(ctx, record); err != nil {
		return fmt.Errorf("store the new root: %w", err)
	}
	r.log.Warn("the root of the mesh changes, in stages", "from", rootOf(s.source), "to", record.to, "stage", record.stage)
	a.tell(secretName, corev1.EventTypeNormal, "RootChanges", changesMessage(record))
	return nil
}

// tidy brings the Secrets to what the record says. It reports whether there was anything to do; what follows is told by the watch.
func (r *Rotation) tidy(ctx context.Context, s state) (done bool, err error) {
	a, record := r.authority, s.record
	undo := s.request == trust.UndoRequest && !s.plugged && record.from != nil && record.from.IsRoot() && record.stage != trust.Retire
	switch {
	case undo && record.next != nil:
		without := *record
		without.next = nil
		return true, a.writeRotation(ctx, &without)
	case undo:
		r.log.Warn("the change of the root is taken back", "to", rootOf(record.from), "stage", record.stage)
		return true, a.replaceRoot(ctx, record.from)
	case record.next != nil && !s.plugged && sameRoot(s.source, record.from):
		return true, a.replaceRoot(ctx, record.next)
	case record.aborted(s.source):
		r.log.Info("the change of the root ends: the former one is in force", "root", rootOf(s.source))
		return true, a.removeRotation(ctx, record)
	}
	if target := record.target(s.source); target != nil && rootOf(target) != record.to {
		return true, a.writeRotation(ctx, record.redirected(target, time.Now()))
	}
	return false, nil
}

// replaceRoot writes a self-signed root over the one in Secret istio-ca-secret; requests are carried out with it.
func (a *Authority) replaceRoot(ctx context.Context, issuer *pki.Issuer) error {
	secret, err := a.secret(ctx, secretName)
	if err != nil {
		return err
	}
	want, err := a.rootSecret(issuer)
	if err != nil {
		return err
	}
	secret = secret.DeepCopy()
	secret.Data = want.Data
	delete(secret.Annotations, trust.RequestAnnotation)
	_, err = a.config.Kubernetes.CoreV1().Secrets(a.config.Namespace).Update(ctx, secret, metav1.UpdateOptions{FieldManager: fieldManager})
	return err
}

// pass goes to the next stage when all gates have been open for long enough.
func (r *Rotation) pass(ctx context.Context, s state, gates []trust.Gate) error {
	a, now := r.authority, time.Now()
	var closed []string
	for _, g := range gates {
		if !g.Open() {
			closed = append(closed, g.Name+" "+g.String()+" (waiting for "+strings.Join(g.Waiting, ", ")+")")
		}
	}
	if len(closed) > 0 {
		r.open = time.Time{}
		r.tellBlocked(s, closed)
		return nil
	}
	if r.open.IsZero() {
		r.open = now
	}
	if now.Sub(r.open) < r.config.Settle {
		return nil
	}
	r.open = time.Time{}
	next := s.record.advance(now)
	if next == nil {
		r.log.Info("the root of the mesh is changed", "root", s.record.to)
		a.tell(s.secretName(), corev1.EventTypeNormal, "RootChanged", "every proxy and every webhook trusts "+s.record.to+" alone")
		return a.removeRotation(ctx, s.record)
	}
	r.log.Info("the change of the root goes on", "from", s.record.stage, "to", next.stage, "after", now.Sub(s.record.since).Round(time.Second))
	return a.writeRotation(ctx, next)
}

// tellBlocked says once for a stage that it does not go on.
func (r *Rotation) tellBlocked(s state, closed []string) {
	key := string(s.record.stage) + s.record.since.String()
	if time.Since(s.record.since) < r.config.BlockedAfter || r.blocked == key {
		return
	}
	r.blocked = key
	p := r.blockedProblem(s, closed)
	r.log.Warn("the change of the root waits", "problem", p.String())
	r.authority.tell(s.secretName(), corev1.EventTypeWarning, "RootChangeWaits", p.Detail+"; "+p.Hint)
}
