package ca

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
)

const (
	// acceptedFor and rejectedFor are how long a review is believed. An accepted one never outlives its token.
	acceptedFor = 10 * time.Minute
	rejectedFor = 10 * time.Second
	// maxAccepted and maxRejected bound the memory: a review has about 1 KiB. They are apart, so that a flood of bad tokens drives
	// no good one out.
	maxAccepted = 10_000
	maxRejected = 1_000
	// maxReviews is how many questions may be open at the API server at once.
	maxReviews    = 64
	reviewTimeout = 10 * time.Second
	// clockSkew is how long after its end a token is still brought before the API server, whose clock decides.
	clockSkew = time.Minute
)

// reviewer asks the API server whose a bearer token is, once for many callers. Its errors are gRPC statuses: Unauthenticated when
// the token is no good, Unavailable when nobody could tell, ResourceExhausted when too many tokens of the address were no good.
type reviewer struct {
	client   authenticationclient.TokenReviewsGetter
	audience string
	results  *prometheus.CounterVec
	accepted *cache.LRUExpireCache // sha256 of the token → authenticationv1.UserInfo
	rejected *cache.LRUExpireCache // sha256 of the token → error
	owners   owners
	flight   singleflight.Group
	open     chan struct{} // holds one element for each open question
	peers    *peers
}

func newReviewer(client authenticationclient.TokenReviewsGetter, audience string, results *prometheus.CounterVec) *reviewer {
	return &reviewer{
		client: client, audience: audience, results: results,
		accepted: cache.NewLRUExpireCache(maxAccepted), rejected: cache.NewLRUExpireCache(maxRejected),
		open: make(chan struct{}, maxReviews), peers: newPeers(),
	}
}

// review returns the user that a token stands for, which came from an address.
func (r *reviewer) review(ctx context.Context, from netip.Addr, token string) (authenticationv1.UserInfo, error) {
	none := authenticationv1.UserInfo{}
	key := sha256.Sum256([]byte(token))
	if user, ok := r.accepted.Get(key); ok {
		r.results.WithLabelValues("cached").Inc()
		return user.(authenticationv1.UserInfo), nil
	}
	if err, ok := r.rejected.Get(key); ok {
		r.results.WithLabelValues("cached").Inc()
		return none, err.(error)
	}
	claims, err := parseClaims(token)
	if err != nil {
		r.results.WithLabelValues("rejected").Inc()
		return none, status.Errorf(codes.Unauthenticated, "the bearer token cannot be used: %v; %s", err, r.wanted())
	}
	if err := r.precheck(claims); err != nil {
		r.results.WithLabelValues("rejected").Inc()
		return none, err
	}
	if err := r.limit(from, r.peers.at(from)); err != nil {
		return none, err
	}
	// The question is not the first caller's alone, so it does not end with that caller.
	done := r.flight.DoChan(string(key[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
		defer cancel()
		return r.ask(ctx, from, token, key, claims)
	})
	select {
	case <-ctx.Done():
		return none, status.FromContextError(ctx.Err()).Err()
	case result := <-done:
		if result.Err != nil {
			return none, result.Err
		}
		return result.Val.(authenticationv1.UserInfo), nil
	}
}

// limit refuses a token of an address that has shown too many bad ones. Tokens that were accepted before are not touched by it.
func (r *reviewer) limit(from netip.Addr, peer *origin) error {
	wait := peer.wait()
	if wait == 0 {
		return nil
	}
	r.results.WithLabelValues("limited").Inc()
	where := "an unknown address"
	if from.IsValid() {
		where = from.String()
	}
	return status.Errorf(codes.ResourceExhausted, "too many bearer tokens from %s were refused: %d in a row are, and then one every %s; wait %s",
		where, refusedBurst, refusedEvery, max(wait, time.Second).Round(time.Second))
}

// precheck refuses what the API server would certainly refuse.
func (r *reviewer) precheck(c claims) error {
	if !c.isFor(r.audience) {
		return status.Errorf(codes.Unauthenticated, "the bearer token is for audience %q; %s", strings.Join(c.audience, ", "), r.wanted())
	}
	if !c.expires.IsZero() && time.Since(c.expires) > clockSkew {
		return status.Errorf(codes.Unauthenticated,
			"the bearer token expired at %s; read it again from its file (the kubelet renews it) and check the clock of the node",
			c.expires.UTC().Format(time.RFC3339))
	}
	return nil
}

func (r *reviewer) wanted() string {
	return fmt.Sprintf("use a service account token of audience %q", r.audience)
}

// ask brings the token before the API server and remembers the verdict.
func (r *reviewer) ask(ctx context.Context, from netip.Addr, token string, key [sha256.Size]byte, c claims) (authenticationv1.UserInfo, error) {
	none := authenticationv1.UserInfo{}
	peer := r.peers.at(from)
	for _, room := range []chan struct{}{peer.open, r.open} { // the address's first: who waits there takes no place from others
		select {
		case room <- struct{}{}:
			defer func() { <-room }()
		case <-ctx.Done():
			r.results.WithLabelValues("error").Inc()
			return none, status.Errorf(codes.Unavailable, "cannot review the bearer token: %d reviews are open already; try again", cap(room))
		}
	}
	if err := r.limit(from, peer); err != nil { // what others of the address were told meanwhile
		return none, err
	}
	review, err := r.client.TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{r.audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		r.results.WithLabelValues("error").Inc()
		if apierrors.IsForbidden(err) {
			return none, status.Errorf(codes.Unavailable,
				"the control plane may not review tokens: let it create tokenreviews.authentication.k8s.io (`selvage install` grants it): %v", err)
		}
		return none, status.Errorf(codes.Unavailable, "cannot review the bearer token, try again: %v", err)
	}
	// A server that knows no audiences returns none: then nobody has checked for whom the token is.
	if s := review.Status; s.Authenticated && slices.Contains(s.Audiences, r.audience) {
		r.results.WithLabelValues("accepted").Inc()
		keep := acceptedFor
		if !c.expires.IsZero() {
			keep = min(keep, time.Until(c.expires))
		}
		if keep > 0 {
			r.owners.remember(s.User, func() { r.accepted.Add(key, s.User, keep) }, func() { r.accepted.Remove(key) })
		}
		return s.User, nil
	}
	r.results.WithLabelValues("rejected").Inc()
	peer.refused()
	cause := review.Status.Error
	if cause == "" {
		cause = "the API server does not accept it"
	}
	err = status.Errorf(codes.Unauthenticated, "the bearer token was refused: %s; %s that belongs to a running pod of this cluster", cause, r.wanted())
	r.rejected.Add(key, err, rejectedFor)
	return none, err
}
