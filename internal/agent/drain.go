package agent

import (
	"context"
	"sync"
	"time"
)

// Taking a proxy out of service without losing a request.
//
// When a pod is deleted, two things start at once and race: the containers get SIGTERM, and the control plane takes the pod's endpoint
// away from everyone who calls it. For a moment that is longer than it looks (API server, EndpointSlice controller, debounce, push) other
// proxies still send requests here, on connections that they keep open. So:
//
//  1. Readiness fails at once, for whoever goes by it.
//  2. Envoy is told to drain inbound connections and to keep its listeners open: new connections are still taken, but each response
//     on HTTP/1 carries `connection: close` and each HTTP/2 connection gets a GOAWAY, so that callers come to the end of their
//     connections between two requests and not in the middle of one. Outbound connections are left alone: the application finishes
//     its work through them.
//  3. The xDS stream stays: the application may still call services whose endpoints move.
//  4. After terminationDrainDuration (5 s) nobody has this pod among their endpoints, and what still is on its way has been
//     answered, if it took less than that. A longer request needs a longer terminationDrainDuration, within the pod's grace period,
//     or EXIT_ON_ZERO_ACTIVE_CONNECTIONS. Envoy ends on SIGTERM, and with it the agent.
//
// As a native sidecar the agent gets SIGTERM only after the application has ended, so waiting serves nobody but callers whose request
// would find no application anyway: they get a 503, which their proxies send to another endpoint. There, the drain should begin when the
// pod's termination does, by a preStop hook that runs `selvage-agent drain`. If it has, SIGTERM means that the application is gone, and
// the agent ends when no inbound connection is left: at once for a pod that nobody ever called (a Job), otherwise at least
// settleTime after the drain began, so that the push which takes its endpoint away overtakes it.

const (
	settleTime   = 2 * time.Second
	pollInterval = 200 * time.Millisecond
	endTimeout   = 5 * time.Second // for Envoy to end after SIGTERM, which it does at once
)

// drains remembers whether and since when the proxy drains.
type drains struct {
	mu    sync.Mutex
	since time.Time
	begun chan struct{}
}

// begin returns when the drain began and whether it is this call that began it.
func (d *drains) begin() (since time.Time, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.since.IsZero() {
		d.since, first = time.Now(), true
		close(d.begun)
	}
	return d.since, first
}

func (d *drains) has() bool {
	select {
	case <-d.begun:
		return true
	default:
		return false
	}
}

// beginDrain fails readiness and makes Envoy drain, once.
func (a *Agent) beginDrain(ctx context.Context) (since time.Time, first bool) {
	since, first = a.drains.begin()
	if !first {
		return since, false
	}
	a.config.Log.Info("draining: inbound connections are being ended, outbound ones go on")
	if err := a.admin.drain(ctx); err != nil {
		a.config.Log.Warn("cannot drain the proxy; its connections will be cut", "error", err)
	}
	return since, true
}

// terminate takes the proxy out of service and ends it.
func (a *Agent) terminate(ctx context.Context) {
	since, first := a.beginDrain(ctx)
	how := a.waitDrained(ctx, since, !first)
	a.config.Log.Info("ending the proxy", "after", time.Since(since).Round(time.Millisecond), "because", how)
	a.proxy.Stop(false)
	timer := time.NewTimer(endTimeout)
	defer timer.Stop()
	select {
	case <-ctx.Done(): // the proxy has ended, and with it the rest
	case <-a.kill:
		a.proxy.Stop(true)
	case <-timer.C:
		a.config.Log.Warn("the proxy did not end after SIGTERM, killing it", "waited", endTimeout)
		a.proxy.Stop(true)
	}
}

// waitDrained returns when the proxy may end, with the reason for the log. alone says that the application has ended.
func (a *Agent) waitDrained(ctx context.Context, since time.Time, alone bool) string {
	began := time.Now()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if how := a.drained(ctx, since, began, alone); how != "" {
			return how
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "the proxy has ended"
		case <-a.kill:
			return "a second signal came"
		}
	}
}

// drained decides whether the proxy may end now: the reason, or "".
func (a *Agent) drained(ctx context.Context, since, began time.Time, alone bool) string {
	c := a.config
	limit := c.Proxy.TerminationDrainDuration
	if !alone && !c.Drain.ExitOnZeroActiveConnections {
		if time.Since(began) >= limit {
			return "terminationDrainDuration has passed"
		}
		return ""
	}
	active, total, err := a.admin.inbound(ctx, c.Ports.Inbound)
	if err != nil { // slow on a busy machine, and then with requests under way; if it has crashed ctx ends
		if time.Since(began) >= limit {
			return "the proxy does not answer, and terminationDrainDuration has passed"
		}
		return ""
	}
	switch {
	case alone && total == 0:
		return "nobody ever called the pod"
	case alone && active == 0 && time.Since(since) >= min(settleTime, limit):
		return "no inbound connection is left"
	case alone && time.Since(began) >= limit:
		return "terminationDrainDuration has passed"
	case c.Drain.ExitOnZeroActiveConnections && active == 0 && time.Since(since) >= c.Drain.Minimum:
		return "no inbound connection is left"
	}
	return ""
}
