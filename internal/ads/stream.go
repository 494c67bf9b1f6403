package ads

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/scope"
)

// service is the gRPC face of a Server.
type service struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
	// trusting is set where the caller's word is enough.
	trusting bool
}

// DeltaAggregatedResources serves a proxy that takes changes.
func (s service) DeltaAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.server.serve(s.trusting, rpc, session.Delta, func() (request, error) {
		m, err := rpc.Recv()
		if err != nil {
			return request{}, err
		}
		return request{node: m.GetNode(), delta: &session.DeltaRequest{
			TypeURL: m.GetTypeUrl(), Nonce: m.GetResponseNonce(),
			Rejected: m.GetErrorDetail() != nil, Error: m.GetErrorDetail().GetMessage(),
			Subscribe: m.GetResourceNamesSubscribe(), Unsubscribe: m.GetResourceNamesUnsubscribe(),
			Initial: m.GetInitialResourceVersions(),
		}}, nil
	})
}

// StreamAggregatedResources serves a proxy that takes the state of the world.
func (s service) StreamAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.server.serve(s.trusting, rpc, session.SotW, func() (request, error) {
		m, err := rpc.Recv()
		if err != nil {
			return request{}, err
		}
		return request{node: m.GetNode(), sotw: &session.SotWRequest{
			TypeURL: m.GetTypeUrl(), Nonce: m.GetResponseNonce(),
			Rejected: m.GetErrorDetail() != nil, Error: m.GetErrorDetail().GetMessage(),
			Names: m.GetResourceNames(), Version: m.GetVersionInfo(),
		}}, nil
	})
}

// request is a message of either variant.
type request struct {
	node  *corev3.Node
	delta *session.DeltaRequest
	sotw  *session.SotWRequest
}

// stream is one connected proxy. All but what mu guards belongs to the goroutine that serves it.
type stream struct {
	server    *Server
	rpc       grpc.ServerStream
	variant   session.Variant
	trusting  bool // the proxy's word is enough
	proxy     scope.Proxy
	connected time.Time

	requests chan request
	lost     chan error // from the receiver, buffered
	written  chan error // from the writer, buffered

	mu      sync.Mutex // what it guards is also read for Proxies
	session *session.Session
	shown   shown

	state  *state     // the newest that was seen
	view   *view      // what the session was given
	scoped scope.View // what that was made of
	missed bool       // the session was not given the changes of some state

	since time.Time // when the oldest change that the proxy may not have yet was published; zero when there is none
	sent  bool      // something was sent because of it

	rejecting [session.Unknown]bool // as the metric says

	writing  session.Kind // type of the response that is being written; nothing when that is idle
	began    time.Time    // when its write began
	started  atomic.Bool  // whether it has begun at all
	idle     bool
	clock    clock
	draining <-chan struct{}
}

// serve is the life of one stream; trusting says that what a node claims is believed.
func (s *Server) serve(trusting bool, rpc grpc.ServerStream, v session.Variant, receive func() (request, error)) error {
	st := &stream{server: s, trusting: trusting, rpc: rpc, variant: v, connected: time.Now(), idle: true, draining: s.draining,
		requests: make(chan request), lost: make(chan error, 1), written: make(chan error, 1)}
	if err := s.enter(); err != nil {
		return s.refuse(st, err)
	}
	defer s.leave(st)
	ctx := rpc.Context()
	first, release, err := st.introduce(ctx, receive)
	if err != nil {
		return s.refuse(st, err)
	}
	st.shown = handshake(ctx)
	st.invite()
	scoped, err := st.await(ctx)
	if err != nil {
		return s.refuse(st, err)
	}
	st.view, st.scoped = s.views.acquire(scoped), scoped
	defer func() { s.views.release(st.view) }()
	if st.view.err != nil {
		return s.refuse(st, status.Errorf(codes.Internal, "the configuration of proxy %s cannot be generated: %v", st.proxy.ID, st.view.err))
	}
	st.session = session.New(v, st.config(st.view, scoped))
	s.join(st)
	label := s.metrics.connect(release)
	s.config.Log.Debug("proxy connected", "proxy", st.proxy.ID)
	err = st.run(ctx, first)
	s.metrics.disconnect(label)
	for k, rejecting := range st.rejecting {
		if rejecting {
			s.metrics.rejecting(session.Kind(k), st.proxy.ID, false)
		}
	}
	s.config.Log.Debug("proxy disconnected", "proxy", st.proxy.ID, "cause", err)
	return err
}

// receive hands on what the proxy sends until the stream ends.
func (st *stream) receive(ctx context.Context, next func() (request, error)) {
	for {
		r, err := next()
		if err != nil {
			st.lost <- err
			return
		}
		select {
		case st.requests <- r:
		case <-ctx.Done():
			return
		}
	}
}

// run serves the stream from its first request to its end.
func (st *stream) run(ctx context.Context, first request) error {
	defer st.clock.stop()
	if err := st.take(first); err != nil {
		return err
	}
	for {
		st.write()
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case err := <-st.lost:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case r := <-st.requests:
			if err := st.take(r); err != nil {
				return err
			}
		case <-st.state.replaced:
			if err := st.update(); err != nil {
				return err
			}
		case err := <-st.written:
			if err := st.wrote(err); err != nil {
				return err
			}
		case <-st.clock.expired():
			st.clock.fired()
			if err := st.late(); err != nil {
				return err
			}
		case <-st.draining:
			st.draining = nil
			spread := st.server.config.DrainSpread
			st.clock.set(drain, time.Now().Add(time.Duration(rand.Int64N(int64(spread)+1))))
		}
	}
}

// take feeds one request to the session.
func (st *stream) take(r request) error {
	if st.report(r) {
		return nil
	}
	st.mu.Lock()
	var out session.Outcome
	var err error
	if st.variant == session.SotW {
		out, err = st.session.SotW(*r.sotw)
	} else {
		out, err = st.session.Delta(*r.delta)
	}
	if err == nil && out.Kind < session.Unknown && !st.session.InFlight(out.Kind) {
		st.clock.clear(answer + deadline(out.Kind))
	}
	st.mu.Unlock()
	m := st.server.metrics
	switch {
	case err != nil:
		return status.Errorf(codes.InvalidArgument, "proxy %s: %v", st.proxy.ID, err)
	case out.Stale:
		m.expiredNonce.Inc()
	case out.Unserved:
		m.unserved.Inc()
	case out.Rejection != nil:
		m.rejects.WithLabelValues(out.Kind.String()).Inc()
		st.rejected(out.Kind, out.Rejection)
	}
	st.countRejecting()
	return nil
}

// countRejecting keeps the metric of proxies that reject something.
func (st *stream) countRejecting() {
	for k := range session.Unknown {
		st.mu.Lock()
		now := st.session.Rejecting(k)
		st.mu.Unlock()
		if now != st.rejecting[k] {
			st.rejecting[k] = now
			st.server.metrics.rejecting(k, st.proxy.ID, now)
		}
	}
}

// rejected logs a rejection, once for a version.
func (st *stream) rejected(kind session.Kind, r *session.Rejection) {
	if !st.server.rejection.first(st.proxy.ID, kind, r.Version) {
		return
	}
	var resources []string
	for _, g := range r.Guilty {
		resources = append(resources, g.Name)
	}
	st.server.config.Log.Warn("proxy rejects configuration", "code", diag.RejectedByProxy, "proxy", st.proxy.ID, "type", kind.String(),
		"version", r.Version, "resources", resources, "objects", refsOf(r.Guilty), "error", r.Error)
}

// update moves to the newest state.
func (st *stream) update() error {
	s := st.server
	next := s.state.Load()
	changes := next.changesSince(st.state.seq)
	st.state = next
	scoped, err := scope.For(next.model, st.proxy)
	if err != nil {
		return st.unscoped(err)
	}
	view := s.views.acquire(scoped)
	if view.failed() { // logged where it was generated
		s.views.release(view)
		st.missed = true
		return nil
	}
	changes.All = changes.All || st.missed || !scoped.FindsEndpointsAs(st.scoped)
	st.missed = false
	if st.since.IsZero() {
		st.since = next.since
	}
	st.mu.Lock()
	st.session.Update(st.config(view, scoped), changes)
	st.mu.Unlock()
	s.views.release(st.view)
	st.view, st.scoped = view, scoped
	st.countRejecting()
	return nil
}

// unscoped decides about a proxy for which a new model has no view.
func (st *stream) unscoped(err error) error {
	var unknown *scope.UnknownWorkloadError
	if !errors.As(err, &unknown) {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	st.missed = true // its pod is gone, and it ends soon: let it keep what it has
	return nil
}

// config is what a view is sent, as the session takes it.
func (st *stream) config(v *view, scoped scope.View) session.Config {
	return session.Config{Clusters: v.clusters, Listeners: v.listeners, Routes: v.routes, Hosts: v.hosts,
		Endpoints: endpointSource{st.server.endpoints, scoped, st.variant}.get}
}

// write starts the next response, unless one is being written.
func (st *stream) write() {
	if !st.idle {
		return
	}
	st.mu.Lock()
	r, ok := st.session.Next()
	blocked, settled := st.session.Blocked(), st.session.Settled()
	st.mu.Unlock()
	if !ok {
		st.clock.keep(gate, blocked, st.server.config.GateTimeout)
		if settled {
			if st.sent && !st.since.IsZero() {
				st.server.metrics.convergence.Observe(time.Since(st.since).Seconds())
			}
			st.since, st.sent = time.Time{}, false
		}
		return
	}
	st.idle, st.sent, st.writing = false, true, r.Kind
	now := time.Now()
	st.began = now
	st.clock.set(send, now.Add(st.server.config.SendTimeout))
	if r.Kind < session.Unknown {
		st.clock.set(answer+deadline(r.Kind), now.Add(st.server.config.AnswerTimeout))
	}
	f := newFrame(st.variant, r)
	st.started.Store(false)
	go func() { // in a goroutine of its own, for SendMsg cannot be given up
		st.started.Store(true)
		st.written <- st.rpc.SendMsg(f)
	}()
}

// wrote notes that a write has ended.
func (st *stream) wrote(err error) error {
	m, kind := st.server.metrics, st.writing.String()
	m.pushTime.WithLabelValues(kind).Observe(time.Since(st.began).Seconds())
	st.clock.clear(send)
	if err != nil {
		m.pushes.WithLabelValues(kind + "_senderr").Inc()
		return err
	}
	m.pushes.WithLabelValues(kind).Inc()
	st.idle = true
	return nil
}

// late acts on the deadlines that have passed. When this process had no time to run, everything is late, and what was waited
// for is there by now or has not begun: that is not the proxy's doing, and to reset its stream would make more work.
func (st *stream) late() error {
	select {
	case err := <-st.written:
		return st.wrote(err)
	case r := <-st.requests:
		return st.take(r)
	default:
	}
	s, now := st.server, time.Now()
	for d := range deadlines {
		if !st.clock.passed(d, now) {
			continue
		}
		st.clock.clear(d)
		switch d {
		case gate:
			st.mu.Lock()
			st.session.OpenGates()
			st.mu.Unlock()
		case send:
			if !st.started.Load() {
				st.clock.set(send, now.Add(s.config.SendTimeout))
				continue
			}
			s.metrics.writeTimeouts.Inc()
			s.config.Log.Warn("proxy does not read; its stream is reset", "proxy", st.proxy.ID, "type", st.writing.String(), "after", s.config.SendTimeout)
			return status.Errorf(codes.DeadlineExceeded, "proxy %s did not read a response for %s", st.proxy.ID, s.config.SendTimeout)
		case drain:
			return errDraining
		default:
			kind := session.Kind(d - answer)
			s.metrics.answerTimeouts.Inc()
			s.config.Log.Warn("proxy does not answer; its stream is reset", "proxy", st.proxy.ID, "type", kind.String(), "after", s.config.AnswerTimeout)
			return status.Errorf(codes.DeadlineExceeded, "proxy %s left a response of type %s unanswered for %s", st.proxy.ID, kind, s.config.AnswerTimeout)
		}
	}
	return nil
}
