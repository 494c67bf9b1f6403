package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// errNotServed says that no sidecar was told of a change.
var errNotServed = errors.New("no sidecar was told of the change")

// result is one run of one server. Times are in milliseconds, sizes in bytes.
type result struct {
	Server    string
	Protocol  string // delta or sotw
	Services  int
	Endpoints int // of each service
	Proxies   int

	ReadyMillis  float64
	ReadyBytes   int64 // resident, when it was ready
	SyncCPU      float64
	SyncMillis   float64
	SyncBytes    int64 // from server to clients
	SettledBytes int64 // resident, a while after all were synced
	ChangedBytes int64 // resident, after all changes
	Changes      map[string]*changed
	// ReconnectBytes is what the server sends when all connect again after it was started anew.
	ReconnectBytes int64
	ReconnectCPU   float64
}

// changed is what changes of one kind cost. NotServed says that no client was told of them.
type changed struct {
	NotServed bool    `json:",omitempty"`
	P50, P99  float64 // from the beginning of the write until a client has it
	CPU       float64 // of the server, for a change
	Bytes     float64 // from server to clients, for a change
}

// The kinds of changes.
const (
	endpointChanged       = "endpoint"
	virtualServiceChanged = "virtualservice"
	serviceAdded          = "service"
)

const (
	syncLimit   = 10 * time.Minute
	changeLimit = 2 * time.Minute
	// unservedLimit is how long nobody must be told of a change before it counts as not served.
	unservedLimit = 20 * time.Second
	// calm is how long nothing is done before memory is read, and after a change before the next: what a server does later
	// because of a change is counted to it.
	calmBefore = 3 * time.Second
	calmAfter  = 400 * time.Millisecond
)

// bench is what is measured.
type bench struct {
	world    *world
	proxies  int
	delta    bool
	changes  int // of each kind
	dir      string
	say      func(format string, args ...any)
	profiles *profiler // nil for none
}

// measure runs one server from its start to its end.
func (b *bench) measure(ctx context.Context, s server) (*result, error) {
	r := &result{Server: s.name, Protocol: pick(b.delta, "delta", "sotw"), Services: b.world.services, Endpoints: b.world.endpoints, Proxies: b.proxies,
		Changes: map[string]*changed{}}
	p, err := s.start(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { p.stop() }()
	r.ReadyMillis = millis(p.took)
	if r.ReadyBytes, err = p.memory(); err != nil {
		return nil, err
	}
	b.say("%s: ready after %.0f ms", s.name, r.ReadyMillis)
	time.Sleep(calmBefore) // what it does after its start is not the connection's cost
	var workloads []workload
	for i := range b.proxies {
		workloads = append(workloads, b.world.workload(i))
	}
	f := newFleet(workloads, b.delta)
	c, err := b.sync(ctx, f, p, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	if err := b.change(ctx, f, p, r); err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	if r.ChangedBytes, err = p.memory(); err != nil {
		return nil, err
	}
	c.close()
	p.stop()
	if p, err = s.start(ctx, b.dir); err != nil {
		return nil, err
	}
	time.Sleep(calmBefore)
	return r, b.reconnect(ctx, f, p, r)
}

// sync connects all sidecars and waits until they have everything.
func (b *bench) sync(ctx context.Context, f *fleet, p *process, r *result) (*connection, error) {
	before, err := p.cpu()
	if err != nil {
		return nil, err
	}
	b.profiles.take(ctx, p, "profile?seconds=4", "connect-cpu")
	began := time.Now()
	c := f.connect(ctx, at(p.ports.xds))
	if err := c.awaitSync(ctx, syncLimit); err != nil {
		c.close()
		return nil, err
	}
	r.SyncMillis = millis(time.Since(began))
	time.Sleep(calmAfter)
	after, err := p.cpu()
	if err != nil {
		return nil, err
	}
	r.SyncCPU, r.SyncBytes = millis(after-before), f.received()
	b.say("%s: %d sidecars are synced after %.0f ms, by %.0f ms of CPU", r.Server, b.proxies, r.SyncMillis, r.SyncCPU)
	time.Sleep(calmBefore)
	b.profiles.take(ctx, p, "heap", "settled-heap")
	b.profiles.wait()
	r.SettledBytes, err = p.memory()
	return c, err
}

func (b *bench) change(ctx context.Context, f *fleet, p *process, r *result) error {
	for _, kind := range []struct {
		name string
		next func() change
	}{{endpointChanged, b.world.changeEndpoint}, {virtualServiceChanged, b.world.changeVirtualService}, {serviceAdded, b.world.addService}} {
		b.profiles.take(ctx, p, "profile?seconds=5", kind.name+"-cpu")
		made, err := b.changeAll(ctx, f, p, kind.next)
		b.profiles.wait()
		if errors.Is(err, errNotServed) {
			made, err = &changed{NotServed: true}, nil
		}
		if err != nil {
			return fmt.Errorf("%s changed: %w", kind.name, err)
		}
		r.Changes[kind.name] = made
		b.say("%s: %s: p50 %.0f ms, p99 %.0f ms, %.0f ms of CPU, %.0f bytes%s", r.Server, kind.name, made.P50, made.P99, made.CPU, made.Bytes,
			pick(made.NotServed, " (not served)", ""))
	}
	return nil
}

// changeAll makes changes of one kind, one after the other.
func (b *bench) changeAll(ctx context.Context, f *fleet, p *process, next func() change) (*changed, error) {
	idle, err := b.idle(p)
	if err != nil {
		return nil, err
	}
	before, err := p.cpu()
	if err != nil {
		return nil, err
	}
	began, bytes := time.Now(), f.received()
	var took []time.Duration
	for i := range b.changes {
		one := next()
		e := f.expect(one.marker, one.types...)
		wrote := time.Now()
		if err := one.do(ctx); err != nil {
			return nil, err
		}
		limit := pick(i == 0, unservedLimit, changeLimit)
		some, err := f.await(e, wrote, limit)
		if err != nil {
			return nil, err
		}
		took = append(took, some...)
		time.Sleep(calmAfter)
	}
	after, err := p.cpu()
	if err != nil {
		return nil, err
	}
	cost := max(0, after-before-time.Duration(idle*float64(time.Since(began))))
	return &changed{
		P50: millis(percentile(took, 50)), P99: millis(percentile(took, 99)),
		CPU: millis(cost) / float64(b.changes), Bytes: float64(f.received()-bytes) / float64(b.changes),
	}, nil
}

// idle is the part of a processor that the server uses when nothing happens.
func (b *bench) idle(p *process) (float64, error) {
	const long = 2 * time.Second
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	time.Sleep(long)
	after, err := p.cpu()
	return float64(after-before) / float64(long), err
}

func (b *bench) reconnect(ctx context.Context, f *fleet, p *process, r *result) error {
	before, err := p.cpu()
	if err != nil {
		return err
	}
	f.expected.Store(nil)
	c := f.connect(ctx, at(p.ports.xds))
	defer c.close()
	if err := c.awaitQuiet(ctx, calmBefore, syncLimit); err != nil {
		return fmt.Errorf("reconnect: %w", err)
	}
	after, err := p.cpu()
	r.ReconnectBytes, r.ReconnectCPU = f.received(), millis(after-before)
	b.say("%s: reconnected by %d bytes, %.0f ms of CPU", r.Server, r.ReconnectBytes, r.ReconnectCPU)
	return err
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
