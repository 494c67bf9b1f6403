package ca

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/internal/trust"
)

// ReporterConfig says whose proxies are told of. All but Ages and Every is needed.
type ReporterConfig struct {
	Authority *Authority
	Replica   string // the pod's name, or the host's
	// Proxies are those that are connected to this replica now.
	Proxies func() []trust.Proxy

	// Ages are when a proxy that cannot say what it trusts is believed to have it: 10 minutes for roots, the default lifetime of
	// certificates for those.
	Ages  trust.Ages
	Every time.Duration // how often the proxies are looked at while the root changes; 1 s
	Alive time.Duration // how often a word is said when nothing changes; 10 s
}

// Reporter tells, while the root changes, which of this replica's proxies have acknowledged the stage. Every replica runs one.
type Reporter struct {
	config ReporterConfig
	key    string
}

// NewReporter gives a reporter that does nothing yet.
func NewReporter(c ReporterConfig) (*Reporter, error) {
	if c.Authority == nil || c.Proxies == nil || c.Replica == "" {
		return nil, errors.New("configure root reporter: an authority, a replica's name and its proxies are needed")
	}
	defaultTo(&c.Ages.Roots, 10*time.Minute)
	defaultTo(&c.Ages.Certificate, c.Authority.config.WorkloadLifetime)
	defaultTo(&c.Every, time.Second)
	defaultTo(&c.Alive, speakEvery)
	// A process that begins again must not be taken for the one that ended.
	return &Reporter{config: c, key: trust.ReplicaPrefix + c.Replica + "." + strings.ToLower(rand.Text()[:6])}, nil
}

// Run tells until ctx ends. It returns nil then; what fails is tried again.
func (r *Reporter) Run(ctx context.Context) error {
	a := r.config.Authority
	var said trust.ReplicaReport
	for {
		s, changed := a.lookup()
		var again <-chan time.Time
		if held := a.root.Load(); s.record != nil && held != nil {
			again = time.After(r.config.Every)
			if report := r.look(s, held); !r.isSaid(said, report) {
				if err := r.say(ctx, report); err == nil {
					said = report
				} else if ctx.Err() == nil {
					a.log.Warn("cannot tell which proxies trust the new root, it is tried again", "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			if s.record != nil && said.Stage != "" { // the proxies go to other replicas, which tell of them
				_ = r.withdraw(context.WithoutCancel(ctx))
			}
			return nil
		case <-changed:
		case <-again:
		}
	}
}

// withdraw takes the word back. Without it, as after a crash, the leader waits until the word is old.
func (r *Reporter) withdraw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return r.config.Authority.patchBoard(ctx, map[string]*string{r.key: nil})
}

func (r *Reporter) look(s state, held *root) trust.ReplicaReport {
	w := wanted(s.record, held)
	w.Stage = held.stage // as far as this replica is: until it is where the record is, it holds the others back
	now := time.Now()
	return trust.ReplicaReport{Stage: w.Stage, Roots: w.Roots, At: now.UTC().Truncate(time.Second),
		Proxies: trust.Acknowledged(w, r.config.Proxies(), r.config.Ages, now)}
}

// isSaid reports whether there is nothing to say: the same was said a moment ago.
func (r *Reporter) isSaid(said, now trust.ReplicaReport) bool {
	return said.Stage == now.Stage && said.Roots == now.Roots && said.Proxies.Equal(now.Proxies) && now.At.Sub(said.At) < r.config.Alive
}

func (r *Reporter) say(ctx context.Context, report trust.ReplicaReport) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	raw, err := json.Marshal(report)
	if err != nil {
		return err
	}
	text := string(raw)
	return r.config.Authority.patchBoard(ctx, map[string]*string{r.key: &text})
}
