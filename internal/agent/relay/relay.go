// Package relay passes the proxy's aggregated xDS stream on to the control plane, frame by frame and not decoded, and remembers what
// readiness has to tell: why the control plane does not answer, and what the proxy has refused. See docs/design/0001.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/selvage-mesh/selvage/internal/agent/upstream"
)

const (
	service     = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
	worldMethod = service + "StreamAggregatedResources"
	deltaMethod = service + "DeltaAggregatedResources"
)

// Config says where streams go.
type Config struct {
	Target *upstream.Target
	// Wait is closed when the first attempt to get a certificate has ended. Until then a stream waits, at most WaitAtMost, so
	// that the control plane knows the pod by its certificate from the start. Nil does not wait.
	Wait       <-chan struct{}
	WaitAtMost time.Duration
	// Report gives what the control plane is to be told of the roots that the proxy trusts (trust.Report), and channels of which one
	// is closed when there is something newer. Nil tells nothing.
	Report func() (names []string, renewed, accepted <-chan struct{})
	Log    *slog.Logger
}

// Rejection is a push that the proxy refused and that no accepted one of its type has replaced.
type Rejection struct {
	Type   string // short: CDS, EDS, LDS, RDS, …
	Reason string // the proxy's own words
}

// State is what is known now.
type State struct {
	Connected  bool  // the control plane has answered on a stream that is open
	Waiting    bool  // a stream is open, and the control plane has not answered on it
	Failure    error // why not, *upstream.Failure; nil when Connected or when nothing has ended yet
	Rejections []Rejection
	// Counters since the start.
	Requests, Responses, Failures, Ended uint64
}

// Relay is the service. Serve it with ServerOptions and without any registered service.
type Relay struct {
	config Config

	mu         sync.Mutex
	open       int // streams on which the control plane has answered
	waiting    int // streams on which it has not
	failure    *upstream.Failure
	rejections map[string]Rejection // type URL → newest
	counts     State
}

// New makes the relay. It dials when the proxy does.
func New(c Config) *Relay { return &Relay{config: c, rejections: map[string]Rejection{}} }

// ServerOptions make a gRPC server pass every call to the relay.
func (r *Relay) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(codec{}), grpc.UnknownServiceHandler(r.handle), grpc.MaxRecvMsgSize(1 << 30)}
}

// State gives a copy.
func (r *Relay) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.counts
	s.Connected, s.Waiting = r.open > 0, r.open == 0 && r.waiting > 0
	if r.failure != nil && !s.Connected {
		s.Failure = r.failure
	}
	for _, typeURL := range slices.Sorted(maps.Keys(r.rejections)) {
		s.Rejections = append(s.Rejections, r.rejections[typeURL])
	}
	return s
}

// handle serves one stream of the proxy. When the control plane ends it, so does this, with a status that says why: the proxy logs
// it and comes back by its own back-off, saying what it has.
func (r *Relay) handle(_ any, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	f := deltaFields
	switch method {
	case worldMethod:
		f = worldFields
	case deltaMethod:
	default:
		return status.Errorf(codes.Unimplemented, "the agent passes on aggregated discovery only, not %s", method)
	}
	if err := r.waitForCertificate(down.Context()); err != nil {
		return err
	}
	err := r.pipe(down, method, f)
	if down.Context().Err() != nil {
		return status.FromContextError(down.Context().Err()).Err() // the proxy ended it
	}
	var failure *upstream.Failure
	if !errors.As(err, &failure) {
		return err
	}
	r.ended(failure)
	return status.Error(codes.Unavailable, failure.Error())
}

func (r *Relay) waitForCertificate(ctx context.Context) error {
	if r.config.Wait == nil {
		return nil
	}
	timer := time.NewTimer(r.config.WaitAtMost)
	defer timer.Stop()
	select {
	case <-r.config.Wait:
	case <-timer.C:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	return nil
}

// pipe copies both ways until one side ends.
func (r *Relay) pipe(down grpc.ServerStream, method string, f fields) error {
	conn, err := r.config.Target.Connect(false)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	if ctx, err = conn.Context(ctx); err != nil {
		return err
	}
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	up, err := conn.NewStream(ctx, desc, method, grpc.ForceCodecV2(codec{}))
	if err != nil {
		return conn.Explain(err)
	}
	sending := &sender{ClientStream: up}
	go func() {
		if r.toControlPlane(down, sending, f) != nil {
			cancel()
		}
	}()
	return r.toProxy(sending, down, conn, func() {
		if r.config.Report != nil && reads(up) {
			go r.tell(ctx, sending, f)
		}
	})
}

// toControlPlane copies requests. An error of up is told by its RecvMsg.
func (r *Relay) toControlPlane(down grpc.ServerStream, up grpc.ClientStream, f fields) error {
	for {
		var message frame
		if err := down.RecvMsg(&message); err != nil {
			if errors.Is(err, io.EOF) {
				return up.CloseSend()
			}
			return err
		}
		r.note(peek(message.data.Materialize(), f))
		if err := up.SendMsg(&message); err != nil {
			return nil //nolint:nilerr // RecvMsg of the same stream gives the cause, SendMsg only io.EOF
		}
	}
}

// toProxy copies responses. connected is called with the first.
func (r *Relay) toProxy(up grpc.ClientStream, down grpc.ServerStream, conn *upstream.Conn, connected func()) error {
	r.mu.Lock()
	r.waiting++
	r.mu.Unlock()
	streams := &r.waiting
	defer func() {
		r.mu.Lock()
		*streams--
		r.mu.Unlock()
	}()
	for {
		var message frame
		if err := up.RecvMsg(&message); err != nil {
			return conn.Explain(err)
		}
		if streams == &r.waiting {
			streams = &r.open
			r.connected(conn.ByToken())
			connected()
		}
		r.mu.Lock()
		r.counts.Responses++
		r.mu.Unlock()
		if err := down.SendMsg(&message); err != nil {
			return fmt.Errorf("send to the proxy: %w", err)
		}
	}
}

// note remembers what the proxy thinks of what it was sent. An accepted answer of a type puts an end to the rejection before it.
func (r *Relay) note(p peeked) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Requests++
	switch {
	case p.rejected:
		rejection := Rejection{Type: shortType(p.typeURL), Reason: strings.TrimSpace(p.reason)}
		if r.rejections[p.typeURL] != rejection {
			r.config.Log.Error("the proxy rejects its configuration and keeps what it had", "type", rejection.Type, "reason", rejection.Reason)
		}
		r.rejections[p.typeURL] = rejection
	case p.nonce != "":
		if _, was := r.rejections[p.typeURL]; was {
			r.config.Log.Info("the proxy accepts its configuration again", "type", shortType(p.typeURL))
			delete(r.rejections, p.typeURL)
		}
	}
}

func (r *Relay) connected(byToken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
	r.waiting--
	if r.failure != nil || r.open == 1 {
		r.config.Log.Info("connected to the control plane", "address", r.config.Target.Address(), "by_token", byToken)
	}
	r.failure = nil
}

// ended remembers why a stream ended and logs it, once for each reason in a row.
func (r *Relay) ended(f *upstream.Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.Reason == upstream.Ended || f.Reason == upstream.Other {
		r.counts.Ended++
	} else {
		r.counts.Failures++
	}
	if r.failure == nil || r.failure.Reason != f.Reason || r.failure.Detail != f.Detail {
		r.config.Log.Warn("no configuration from the control plane, will try again; the proxy serves with what it has", "error", f)
	}
	r.failure = f
}

// shortType is how people call a type: CDS for …/envoy.config.cluster.v3.Cluster.
func shortType(typeURL string) string {
	name := typeURL[strings.LastIndexByte(typeURL, '/')+1:]
	switch name {
	case "envoy.config.cluster.v3.Cluster":
		return "CDS"
	case "envoy.config.endpoint.v3.ClusterLoadAssignment":
		return "EDS"
	case "envoy.config.listener.v3.Listener":
		return "LDS"
	case "envoy.config.route.v3.RouteConfiguration":
		return "RDS"
	}
	return name
}
