// Package probe proves all the time that the mesh's webhooks work: it asks the API server for dry runs, so the whole path is real
// (configuration, Service, network, TLS, control plane) and nothing is stored. What an answer means is package verdict's. What it
// found is told by metrics, by conditions in the status ConfigMap, and by an Event when it changes.
package probe

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// Status keeps texts for people and other programs by key, as kube.Status does. Get waits until what was kept before is known, and
// gives "" when there is nothing or ctx ends.
type Status interface {
	Get(ctx context.Context, key string) string
	Set(key, value string)
}

// Config is what a Prober needs. Registerer and Events may be nil.
type Config struct {
	Kubernetes kubernetes.Interface
	Istio      istioclient.Interface // nil to leave validation out
	Namespace  string                // of the control plane
	Revision   string                // of this control plane; "" is the default one
	All        bool                  // probe the webhooks of other revisions too
	// Taken reports whether a tag that leads to another revision has taken the configuration of that name: then there is no injection of
	// this revision's own to prove. It may be nil.
	Taken      func(ctx context.Context, configuration string) bool
	Status     Status
	Events     Events
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Prober probes the webhooks of a revision.
type Prober struct {
	config  Config
	metrics *metrics
	wake    chan struct{} // holds one: something has changed, ask soon

	mu      sync.Mutex
	proofs  map[verdict.Check]Proof
	changed chan struct{} // closed when proofs change
}

// New registers the metrics; it starts nothing.
func New(c Config) (*Prober, error) {
	if c.Kubernetes == nil || c.Namespace == "" || c.Status == nil || c.Log == nil {
		return nil, errors.New("make probe: Kubernetes, Namespace, Status and Log must be set")
	}
	if c.Revision == "" {
		c.Revision = inject.DefaultRevision
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	return &Prober{config: c, metrics: m, wake: make(chan struct{}, 1), proofs: map[verdict.Check]Proof{}, changed: make(chan struct{})}, nil
}

// Proof is what is known of one check of this control plane's own revision.
type Proof struct {
	Verdict verdict.Verdict // CouldNotProbe while nothing is known
	Since   time.Time       // since when it is so, across changes of the leader
	LastOK  time.Time       // when it was last seen to work; zero for never while this replica leads
}

// Works reports whether it was proven through the API server, and nothing has spoken against it since.
func (p Proof) Works() bool { return p.Verdict == verdict.OK }

// Proof tells what is known, and gives a channel that is closed when the verdict of any check changes. Only the replica that leads
// knows anything.
func (p *Prober) Proof(check verdict.Check) (Proof, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	proof, known := p.proofs[check]
	if !known {
		proof.Verdict = verdict.CouldNotProbe
	}
	return proof, p.changed
}

// Validation tells whether validation works through the API server, since when that is so (zero while it is not known), and gives a
// channel that is closed when that may have changed.
func (p *Prober) Validation() (working bool, since time.Time, changed <-chan struct{}) {
	proof, changed := p.Proof(verdict.Validation)
	if proof.Verdict == verdict.CouldNotProbe {
		return false, time.Time{}, changed
	}
	return proof.Works(), proof.Since, changed
}

// prove notes what holds now, after the answer f.
func (p *Prober) prove(check verdict.Check, s *state, f verdict.Finding, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.proofs[check]
	next := Proof{Verdict: s.finding.Verdict, Since: s.since, LastOK: before.LastOK}
	if f.Verdict == verdict.OK {
		next.LastOK = now
	}
	p.proofs[check] = next
	if before.Verdict != next.Verdict {
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

// forget drops what is known, as another replica leads from now on.
func (p *Prober) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proofs = map[verdict.Check]Proof{}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Wake makes a running Prober ask soon, because something that decides has changed.
func (p *Prober) Wake() {
	select {
	case p.wake <- struct{}{}:
	default: // one is waiting already
	}
}
