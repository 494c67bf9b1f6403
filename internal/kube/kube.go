// Package kube is the end of the control plane that talks to the Kubernetes API server: it watches the kinds that the mesh
// is made of and hands over snapshots of them, follows ConfigMaps and holds leases.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/selvage-mesh/selvage/internal/index"
)

// Config is what a Cluster needs.
type Config struct {
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface // for the kinds of Istio's API
	Namespace  string            // of the control plane
	Revision   string            // "" for the default one
	// TrustDomain that the CA signs for; "" takes the one of the mesh configuration.
	TrustDomain   string
	ClusterDomain string // "" for cluster.local
	// OnSnapshot is told of every new state, one call after the other. While one runs, changes gather for the next.
	OnSnapshot func(*index.Snapshot)
	// OnGone is told of each pod and service account that is gone, and of "" when any may be; nil when nobody wants to know.
	OnGone     func(types.UID)
	Events     Events                // nil for none
	Registerer prometheus.Registerer // nil for none
	Log        *slog.Logger          // nil for none

	// Quiet is how long nothing must change before a snapshot is taken, because one command of a user arrives by several
	// watches; MaxWait is how long it may take altogether when changes go on. Zero for 10 ms and 200 ms. The first change after
	// a time of quiet as long as MaxWait waits for a fifth of Quiet only.
	Quiet, MaxWait time.Duration
}

const (
	defaultQuiet   = 10 * time.Millisecond
	defaultMaxWait = 200 * time.Millisecond
)

// Cluster watches one cluster.
type Cluster struct {
	config  Config
	log     *slog.Logger
	sources []*source
	wake    chan struct{}

	unavailable *prometheus.GaugeVec

	mu        sync.Mutex // guards the builder, published and the state of the sources
	builder   *index.Builder
	published bool
}

// New gives a cluster that is not watched yet.
func New(c Config) (*Cluster, error) {
	switch {
	case c.Kubernetes == nil || c.Dynamic == nil:
		return nil, errors.New("new cluster: a client is missing")
	case c.OnSnapshot == nil:
		return nil, errors.New("new cluster: nobody takes the snapshots")
	}
	if c.Quiet == 0 {
		c.Quiet = defaultQuiet
	}
	if c.MaxWait == 0 {
		c.MaxWait = defaultMaxWait
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	indexed := index.Config{Namespace: c.Namespace, Revision: c.Revision, TrustDomain: c.TrustDomain, ClusterDomain: c.ClusterDomain}
	builder, err := index.New(indexed)
	if err != nil {
		return nil, fmt.Errorf("new cluster: %w", err)
	}
	cluster := &Cluster{config: c, log: c.Log, wake: make(chan struct{}, 1), builder: builder, unavailable: newUnavailable()}
	if c.Registerer != nil {
		if err := c.Registerer.Register(cluster.unavailable); err != nil {
			return nil, fmt.Errorf("new cluster: register metrics: %w", err)
		}
	}
	cluster.sources = sources(c, indexed.MeshConfigMap())
	return cluster, nil
}

// Run watches until ctx ends, and then returns nil. The first snapshot comes when every kind was read, or is an optional one
// that cannot be; from then on there is always a world, if an old one while the API server is away.
func (c *Cluster) Run(ctx context.Context) error {
	// What client-go would log is in the sources' states, and is logged from there.
	unlogged := klog.NewContext(ctx, klog.Logger{})
	for _, s := range c.sources {
		go c.reflector(s).RunWithContext(unlogged)
	}
	if c.config.OnGone != nil {
		go c.accounts().RunWithContext(unlogged)
	}
	var last *index.Snapshot
	var taken time.Time // when last was
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		if !c.gathered() {
			continue
		}
		quiet := c.config.Quiet
		if time.Since(taken) >= c.config.MaxWait {
			quiet /= 5
		}
		if !c.settle(ctx, quiet) {
			return nil
		}
		c.mu.Lock()
		snapshot := c.builder.Snapshot()
		taken = time.Now()
		first := !c.published
		c.mu.Unlock()
		if snapshot == last {
			continue
		}
		if first {
			c.log.Info("cluster read", "namespaces", snapshot.Namespaces.Len())
		} else {
			c.logChanges(ctx, last, snapshot)
		}
		c.config.OnSnapshot(snapshot)
		last = snapshot
		c.mu.Lock()
		c.published = true
		c.mu.Unlock()
	}
}

// settle waits until nothing has changed for as long as quiet, and reports false when ctx ended first.
func (c *Cluster) settle(ctx context.Context, quiet time.Duration) bool {
	limit := time.NewTimer(c.config.MaxWait)
	defer limit.Stop()
	for {
		calm := time.NewTimer(quiet)
		select {
		case <-ctx.Done():
			calm.Stop()
			return false
		case <-limit.C:
			calm.Stop()
			return true
		case <-calm.C:
			return true
		case <-c.wake:
			calm.Stop()
		}
	}
}

func (c *Cluster) logChanges(ctx context.Context, before, after *index.Snapshot) {
	if !c.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	const shown = 10
	changed := after.ChangedSince(before)
	names := make([]string, 0, shown)
	for _, r := range changed[:min(shown, len(changed))] {
		names = append(names, r.String())
	}
	c.log.Debug("cluster changed", "objects", len(changed), "first", names)
}

// gathered reports whether there is a world to show: every source was read, or is optional and refused. Policies that exist but
// may not be read are no such case: a first world without them would take plain text where STRICT is in force.
func (c *Cluster) gathered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sources {
		if !s.read && !s.dispensable() {
			return false
		}
	}
	return true
}

// Ready says why there is no world yet: the verb, the resource and the role that lacks it where that is the cause. Once a
// snapshot was handed over it is nil for ever: what is known serves better than nothing while the API server is away.
func (c *Cluster) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.published {
		return nil
	}
	var waiting []string
	var failed error
	for _, s := range c.sources {
		if s.read || s.dispensable() {
			continue
		}
		if err := s.failure(); err != nil && failed == nil {
			failed = err
		}
		waiting = append(waiting, string(s.kind))
	}
	switch {
	case failed != nil:
		return failed
	case len(waiting) > 0:
		return fmt.Errorf("read the cluster: the API server has not listed %s yet", strings.Join(waiting, ", "))
	}
	return errors.New("read the cluster: the first model is being made")
}

// poke has Run look at what has changed.
func (c *Cluster) poke() {
	select {
	case c.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

// attempted records how a request of a source went; err is nil for a success.
func (c *Cluster) attempted(s *source, verb string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := s.failed[verb]
	if err == nil {
		c.succeeded(s, verb)
		return
	}
	if isBroken(err) {
		s.broken[verb]++
	}
	if before == nil || !isDenied(before) || isDenied(err) { // a refusal stays the cause while the server is away
		s.failed[verb] = err
		if before == nil || isDenied(before) != isDenied(err) {
			c.log.Warn("cannot read from the API server; retrying", "resource", s.kind, "error", s.failure())
		}
	}
	c.reportGap(s)
}

// succeeded forgets the failure of a verb. The mutex is held.
func (c *Cluster) succeeded(s *source, verb string) {
	failing := len(s.failed) > 0
	delete(s.failed, verb)
	delete(s.broken, verb)
	if failing && len(s.failed) == 0 {
		c.log.Info("reading from the API server again", "resource", s.kind)
	}
	c.reportGap(s)
}
