package ads

import (
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"weak"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/scope"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// views generates what a view is sent once for all proxies that have it, and keeps it as long as one of them is connected.
type views struct {
	generate func(scope.View) (*xds.Config, error)
	metrics  *metrics
	log      *slog.Logger
	resource interned
	tables   tables
	cpu      chan struct{} // bounds generations at a time

	mu      sync.Mutex
	seq     uint64 // of the current state
	entries map[scope.Key]*view
}

// view is the generated configuration of all proxies with one key.
type view struct {
	key  scope.Key
	once sync.Once
	err  error

	clusters, listeners, routes *session.Set
	hosts                       map[string]*session.Set // by route configuration
	shared                      any                     // see xds.Config.Shared

	refs int    // streams that use it
	seq  uint64 // the newest state of which a stream has asked for it
}

// failed reports that there is no configuration, because it could not be generated.
func (v *view) failed() bool { return v.err != nil }

func newViews(generate func(scope.View) (*xds.Config, error), m *metrics, log *slog.Logger) *views {
	return &views{
		generate: generate, metrics: m, log: log,
		resource: interned{all: map[internKey]weak.Pointer[session.Resource]{}},
		tables:   tables{all: map[weak.Pointer[xds.Hosts]]*session.Set{}},
		cpu:      make(chan struct{}, max(1, runtime.GOMAXPROCS(0))),
		entries:  map[scope.Key]*view{},
	}
}

// acquire gives the configuration of a view; the caller must release it. Of callers that come at once one generates and the
// others wait for it.
func (c *views) acquire(v scope.View) *view {
	key := v.Key()
	c.mu.Lock()
	e, ok := c.entries[key]
	if !ok {
		e = &view{key: key}
		c.entries[key] = e
		c.metrics.views.Set(float64(len(c.entries)))
	}
	e.refs++
	e.seq = c.seq
	c.mu.Unlock()
	if ok {
		c.metrics.viewHits.Inc()
	} else {
		c.metrics.viewMisses.Inc()
	}
	e.once.Do(func() { c.fill(e, v) })
	return e
}

func (c *views) fill(e *view, v scope.View) {
	c.cpu <- struct{}{}
	defer func() { <-c.cpu }()
	cfg, err := c.contained(v)
	if err != nil {
		e.err = err
		c.log.Error("configuration of a view cannot be generated; its proxies keep what they have", "error", err)
		return
	}
	e.shared = cfg.Shared
	e.clusters = c.set(session.Clusters, cfg.Clusters)
	e.listeners = c.set(session.Listeners, cfg.Listeners)
	e.routes = c.set(session.Routes, cfg.Routes)
	for route, hosts := range cfg.Hosts {
		if e.hosts == nil {
			e.hosts = make(map[string]*session.Set, len(cfg.Hosts))
		}
		e.hosts[route] = c.tables.get(hosts, func() *session.Set { return c.set(session.VirtualHosts, hosts.All) })
	}
}

// contained generates, and makes an error of a panic: what one object makes of one view must not end the control plane of all.
func (c *views) contained(v scope.View) (cfg *xds.Config, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			cfg, err = nil, fmt.Errorf("panic: %v\n%s", cause, debug.Stack())
		}
	}()
	return c.generate(v)
}

func (c *views) set(kind session.Kind, from []xds.Resource) *session.Set {
	rs := make([]*session.Resource, len(from))
	for i, r := range from {
		rs[i] = c.resource.get(kind, r)
	}
	return session.NewSet(rs)
}

// release says that a stream does not use e any more. What nobody uses stays while it belongs to the current model, for a
// proxy that only reconnects.
func (c *views) release(e *view) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.refs--; e.refs == 0 && e.seq < c.seq {
		c.drop(e)
	}
}

// advance notes a new model.
func (c *views) advance(seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq = seq
	for _, e := range c.entries {
		if e.refs == 0 {
			c.drop(e)
		}
	}
}

func (c *views) drop(e *view) {
	delete(c.entries, e.key)
	c.metrics.views.Set(float64(len(c.entries)))
}

// tables keeps the virtual hosts of a route configuration as a set once for all views that share them.
type tables struct {
	mu  sync.Mutex
	all map[weak.Pointer[xds.Hosts]]*session.Set
}

func (t *tables) get(from *xds.Hosts, make func() *session.Set) *session.Set {
	key := weak.Make(from)
	t.mu.Lock()
	defer t.mu.Unlock()
	set, ok := t.all[key]
	if !ok {
		set = make()
		t.all[key] = set
		runtime.AddCleanup(from, t.forget, key)
	}
	return set
}

func (t *tables) forget(key weak.Pointer[xds.Hosts]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, key)
}

// interned keeps one copy of resources that several views have in common, as long as one of them has it.
type interned struct {
	mu  sync.Mutex
	all map[internKey]weak.Pointer[session.Resource]
}

type internKey struct {
	kind          session.Kind
	name, version string
}

func (i *interned) get(kind session.Kind, r xds.Resource) *session.Resource {
	key := internKey{kind, r.Name, r.Version}
	i.mu.Lock()
	defer i.mu.Unlock()
	if shared := i.all[key].Value(); shared != nil {
		return shared
	}
	made := newResource(kind, r)
	i.all[key] = weak.Make(made)
	runtime.AddCleanup(made, i.forget, key)
	return made
}

func (i *interned) forget(key internKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.all[key].Value() == nil {
		delete(i.all, key)
	}
}
