package ads

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/scope"
)

var errDraining = status.Error(codes.Unavailable, "the control plane is shutting down: connect again to reach another replica")

// enter counts a new stream, or refuses it.
func (s *Server) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.idle != nil:
		return errDraining
	case s.config.MaxStreams > 0 && s.open >= s.config.MaxStreams:
		return status.Errorf(codes.ResourceExhausted, "this replica serves %d streams already: connect again to reach another replica", s.config.MaxStreams)
	}
	s.open++
	return nil
}

// join makes a stream visible.
func (s *Server) join(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st] = struct{}{}
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	if s.open--; s.open == 0 && s.idle != nil {
		close(s.idle)
	}
}

// refuse counts a stream that ends before it got anything.
func (s *Server) refuse(st *stream, err error) error {
	code := status.Code(err)
	if code != codes.Canceled {
		s.metrics.refused.WithLabelValues(code.String()).Inc()
		s.config.Log.Info("proxy refused", "proxy", st.proxy.ID, "cause", err)
	}
	return err
}

// introduce finds out who the proxy is: its identity by what it has shown, its pod by what it says in its first request.
func (st *stream) introduce(ctx context.Context, receive func() (request, error)) (first request, release string, err error) {
	c := &st.server.config
	patience, cancel := context.WithTimeout(ctx, c.PodWait)
	defer cancel()
	namespace, account, err := st.identify(ctx)
	if err != nil {
		return first, "", err
	}
	// After the caller has proven itself, so that who cannot does not take the places of those who can.
	if err := st.server.limiter.Wait(patience); err != nil {
		return first, "", status.Error(codes.Unavailable, "too many proxies connect at once: connect again later")
	}
	go st.receive(ctx, receive)
	select {
	case first = <-st.requests:
	case err := <-st.lost:
		return first, "", err
	case <-patience.Done():
		return first, "", st.gaveUp(ctx, status.Errorf(codes.DeadlineExceeded, "no request came within %s", c.PodWait))
	case <-st.server.draining:
		return first, "", errDraining
	}
	n, err := parseNode(first.node)
	if err != nil {
		return first, "", status.Error(codes.InvalidArgument, err.Error())
	}
	if st.trusting {
		namespace, account = n.namespace, n.account
	}
	st.proxy = scope.Proxy{ID: n.id, Namespace: namespace, Name: n.pod, ServiceAccount: account, Version: n.envoy, Addresses: n.addresses,
		Delta: st.variant == session.Delta}
	if n.namespace != namespace {
		return first, "", status.Errorf(codes.PermissionDenied, "node id %q is of namespace %s, but the proxy's identity is service account %s of namespace %s",
			n.id, n.namespace, account, namespace)
	}
	return first, n.release, nil
}

// identify gives the identity that the caller has proven; none where its word is enough.
func (st *stream) identify(ctx context.Context) (namespace, account string, err error) {
	if st.trusting {
		return "", "", nil
	}
	namespace, account, err = st.server.config.Authenticate(ctx)
	if err == nil {
		return namespace, account, nil
	}
	if _, ok := status.FromError(err); ok {
		return "", "", err
	}
	return "", "", status.Errorf(codes.Unauthenticated, "the proxy's identity is not proven: %v", err)
}

// gaveUp is the error of a wait that ended: the caller's own, when it went away.
func (st *stream) gaveUp(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return status.FromContextError(cause).Err()
	}
	return err
}

// await waits for a model that knows the proxy's pod. A proxy is often faster than the news of its own pod.
func (st *stream) await(ctx context.Context) (scope.View, error) {
	wait := st.server.config.PodWait
	patience := time.NewTimer(wait)
	defer patience.Stop()
	for {
		st.state = st.server.state.Load()
		err := status.Errorf(codes.Unavailable, "the control plane has not read the cluster yet, after %s: its log says what is missing", wait)
		if st.state.model != nil {
			v, forErr := scope.For(st.state.model, st.proxy)
			var unknown *scope.UnknownWorkloadError
			switch {
			case forErr == nil:
				return v, nil
			case !errors.As(forErr, &unknown):
				return scope.View{}, status.Error(codes.PermissionDenied, forErr.Error())
			}
			err = status.Errorf(codes.NotFound, "no pod %s/%s is known after %s: it is deleted, or the control plane cannot read pods of namespace %s",
				st.proxy.Namespace, st.proxy.Name, wait, st.proxy.Namespace)
		}
		select {
		case <-st.state.replaced:
		case <-patience.C:
			return scope.View{}, err
		case err := <-st.lost:
			return scope.View{}, err
		case <-ctx.Done():
			return scope.View{}, status.FromContextError(ctx.Err()).Err()
		case <-st.server.draining:
			return scope.View{}, errDraining
		}
	}
}
