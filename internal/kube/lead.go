package kube

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// The times of a lease are those of Kubernetes' own controllers: a leader that died is followed after leaseDuration at the
// latest, one that ended in good order at once.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// LeadConfig says for which lease to stand.
type LeadConfig struct {
	Kubernetes kubernetes.Interface
	Namespace  string            // of the Lease
	Lease      string            // its name
	Identity   string            // of this replica, for people; what the lease shows is unique to the process
	Labels     map[string]string // of the Lease, by which it is found and removed; nil for none
	Log        *slog.Logger      // nil for none
}

// Lead calls run while this process holds the lease, one process at a time: run's context ends when the lease is lost, and
// the lease is given up only after run has returned. When the lease is lost it stands for it again. It returns nil when ctx
// has ended, or when run returned nil by itself; the error of run ends it too.
func Lead(ctx context.Context, c LeadConfig, run func(context.Context) error) error {
	if c.Kubernetes == nil || c.Namespace == "" || c.Lease == "" {
		return errors.New("lead: the client, the namespace or the name of the lease is missing")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("lease", c.Lease)
	c.Identity += "_" + rand.Text()[:8] // two processes of one host must not take each other for themselves
	for ctx.Err() == nil {
		t := &term{config: c, run: run}
		if ended, err := t.serve(ctx); ended || err != nil {
			return err
		}
	}
	return nil
}

// term is one time of leading, from standing for the lease to the end of it.
type term struct {
	config LeadConfig
	run    func(context.Context) error

	mu     sync.Mutex
	over   bool          // too late to begin
	begun  bool          // run was called
	done   chan struct{} // closed when run has returned
	err    error         // of run
	itself bool          // run returned while it still led
}

// serve returns when the lease is not held any more and run, if it was called, has returned; ended says that run had
// nothing left to do.
func (t *term) serve(ctx context.Context) (ended bool, err error) {
	t.done = make(chan struct{})
	// The lease outlives ctx, until run has returned.
	held, release := context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), klog.Logger{}))
	defer release()
	lock := &watchedLock{log: t.config.Log, said: map[string]string{}, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: t.config.Namespace, Name: t.config.Lease},
		Client:     t.config.Kubernetes.CoordinationV1(),
		Labels:     t.config.Labels,
		LockConfig: resourcelock.ResourceLockConfig{Identity: t.config.Identity},
	}}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, Name: t.config.Lease, ReleaseOnCancel: true,
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) { t.lead(ctx, leading); release() },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return true, fmt.Errorf("stand for lease %s/%s: %w", t.config.Namespace, t.config.Lease, err)
	}
	stop := context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.over = true
		if !t.begun {
			release()
		}
	})
	defer stop()
	elector.Run(held)

	t.mu.Lock()
	t.over = true
	begun := t.begun
	t.mu.Unlock()
	if !begun {
		return false, nil
	}
	<-t.done
	return t.itself, t.err
}

// lead calls run with a context that ends with the lease or with ctx.
func (t *term) lead(ctx, leading context.Context) {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	t.begun = true
	t.mu.Unlock()
	defer close(t.done)

	running, stop := context.WithCancel(leading)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	t.config.Log.Info("leading")
	t.err = t.run(running)
	t.itself = running.Err() == nil
	switch {
	case t.itself && t.err != nil:
		t.err = fmt.Errorf("lead %s: %w", t.config.Lease, t.err)
	case leading.Err() != nil:
		t.err = nil // what an interrupted run says is of no interest
		t.config.Log.Warn("lost the lease; standing for it again")
	case running.Err() != nil:
		t.err = nil
	}
}

// watchedLock logs why a lease cannot be held, once for each cause: client-go's own log is silenced.
type watchedLock struct {
	resourcelock.Interface
	log  *slog.Logger
	said map[string]string // by verb
}

func (l *watchedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	l.report(ctx, "get", err)
	return record, raw, err
}

// Create makes the lease.
func (l *watchedLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, record)
	l.report(ctx, "create", err)
	return err
}

// Update renews or takes the lease.
func (l *watchedLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, record)
	l.report(ctx, "update", err)
	return err
}

// report tells of an error that is not a part of every election.
func (l *watchedLock) report(ctx context.Context, verb string, err error) {
	if err == nil || apierrors.IsNotFound(err) && verb == "get" {
		delete(l.said, verb)
		return
	}
	if ctx.Err() != nil || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || err.Error() == l.said[verb] {
		return
	}
	l.said[verb] = err.Error()
	l.log.Warn("cannot hold the lease; retrying", "verb", verb, "error", err)
}
