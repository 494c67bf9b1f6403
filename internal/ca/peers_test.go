package ca

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	authenticationv1client "k8s.io/client-go/kubernetes/typed/authentication/v1"
)

// judge is an API server that takes a while over each token and refuses those that say "bad". The fake clientset holds its lock
// while it answers, so it would have one question open at a time.
type judge struct {
	kubernetes.Interface
	takes time.Duration

	mu          sync.Mutex
	asked, open int
	mostOpen    int
}

func (j *judge) AuthenticationV1() authenticationv1client.AuthenticationV1Interface {
	return judgeV1{j: j}
}

type judgeV1 struct {
	authenticationv1client.AuthenticationV1Interface
	j *judge
}

func (v judgeV1) TokenReviews() authenticationv1client.TokenReviewInterface {
	return judgeReviews{j: v.j}
}

type judgeReviews struct {
	authenticationv1client.TokenReviewInterface
	j *judge
}

func (r judgeReviews) Create(_ context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	claims, err := parseClaims(review.Spec.Token)
	if err != nil {
		return nil, err
	}
	j := r.j
	j.mu.Lock()
	j.asked++
	j.open++
	j.mostOpen = max(j.mostOpen, j.open)
	j.mu.Unlock()
	time.Sleep(j.takes)
	j.mu.Lock()
	j.open--
	j.mu.Unlock()
	if !claims.isFor("bad") {
		review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: review.Spec.Audiences,
			User: authenticationv1.UserInfo{Username: "system:serviceaccount:shop:web"}}
	}
	return review, nil
}

// judged is an authority whose tokens a judge reviews.
func judged(t *testing.T, takes time.Duration, change func(*Config)) (*Authority, *judge) {
	t.Helper()
	a, client := loaded(t, change)
	j := &judge{Interface: client, takes: takes}
	a.tokens.client = j.AuthenticationV1()
	return a, j
}

func (j *judge) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.asked
}

// from is a call with a token that comes from an address.
func from(ctx context.Context, address, token string) context.Context {
	ctx = call(ctx, nil, token)
	p, _ := peer.FromContext(ctx)
	p.Addr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))
	return ctx
}

func good(seed string) string { return jwt("istio-ca", time.Now().Add(time.Hour), seed) }

// bad names the right audience, so that only the API server can tell.
func bad(seed string) string {
	return jwtFor([]string{tokenAudience, "bad"}, time.Now().Add(time.Hour), seed)
}

// counted is the value of a counter with one label.
func counted(t *testing.T, registry *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// TestStrangerCannotMakeReviewsWithoutEnd: an address with forged tokens has its burst and then one review every two seconds;
// its neighbours, and its own tokens that were accepted before, are served all the time.
func TestStrangerCannotMakeReviewsWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		a, j := judged(t, time.Millisecond, func(c *Config) { c.Registerer = registry })
		const stranger = "10.0.0.66:4000"
		known := good("before")
		if _, err := a.Caller(from(t.Context(), stranger, known)); err != nil {
			t.Fatal(err)
		}
		before := j.count()
		const tries = 1000
		got := map[codes.Code]int{}
		var last error
		for n := range tries {
			_, err := a.Caller(from(t.Context(), fmt.Sprintf("10.0.0.66:%d", 4000+n), bad(fmt.Sprint(n)))) // a port is no other address
			got[status.Code(err)]++
			last = err
		}
		if n := j.count() - before; n != refusedBurst || got[codes.Unauthenticated] != refusedBurst || got[codes.ResourceExhausted] != tries-refusedBurst {
			t.Errorf("%d reviews for %d forged tokens, answers %v; want %d", n, tries, got, refusedBurst)
		}
		if !strings.Contains(fmt.Sprint(last), "too many bearer tokens from 10.0.0.66 were refused") {
			t.Errorf("the refusal does not say why: %v", last)
		}
		if n := counted(t, registry, "selvage_ca_token_reviews_total", "limited"); n != tries-refusedBurst {
			t.Errorf("the metric counts %v limited, want %d", n, tries-refusedBurst)
		}
		if _, err := a.Caller(from(t.Context(), stranger, known)); err != nil {
			t.Errorf("a token of the address that was accepted before: %v", err)
		}
		if _, err := a.Caller(from(t.Context(), "10.0.0.67:4000", good("neighbour"))); err != nil {
			t.Errorf("a neighbour: %v", err)
		}
		if _, err := a.Caller(from(t.Context(), stranger, good("new"))); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a new token of the address: %v, want ResourceExhausted", err)
		}
		before = j.count()
		for n := range 100 { // a minute and more of a try each second
			time.Sleep(time.Second)
			_, _ = a.Caller(from(t.Context(), stranger, bad(fmt.Sprint("later", n))))
		}
		if n := j.count() - before; n < 45 || n > 51 {
			t.Errorf("%d reviews in 100 s, want one every %s", n, refusedEvery)
		}
		time.Sleep(peerMemory)
		if _, err := a.Caller(from(t.Context(), stranger, good("after"))); err != nil {
			t.Errorf("after a silence: %v", err)
		}
	})
}

// TestForgedTokensThatComeTogetherAreLimitedToo: those that wait for their turn are told when the first were refused, and leave
// most of the open questions to others.
func TestForgedTokensThatComeTogetherAreLimitedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, j := judged(t, time.Second, nil)
		var work sync.WaitGroup
		for n := range 500 {
			token := bad(fmt.Sprint(n))
			work.Go(func() { _, _ = a.Caller(from(t.Context(), "10.0.0.66:4000", token)) })
		}
		synctest.Wait()
		started := time.Now()
		if _, err := a.Caller(from(t.Context(), "10.0.0.67:4000", good(""))); err != nil || time.Since(started) != time.Second {
			t.Errorf("a neighbour has waited %s: %v", time.Since(started), err)
		}
		work.Wait()
		if n := j.count() - 1; n > refusedBurst+maxPeerReviews || j.mostOpen > maxPeerReviews+1 {
			t.Errorf("%d reviews, %d at once; want at most %d, %d at once", n, j.mostOpen, refusedBurst+maxPeerReviews, maxPeerReviews)
		}
	})
}

// TestRestartOfTheControlPlaneLimitsNobody: all good tokens are reviewed at once, of thousands of addresses, and of hundreds of
// proxies behind one.
func TestRestartOfTheControlPlaneLimitsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, j := judged(t, 5*time.Millisecond, nil)
		var work sync.WaitGroup
		connect := func(address, token string) {
			work.Go(func() {
				if _, err := a.Caller(from(t.Context(), address, token)); err != nil {
					t.Errorf("%s: %v", address, err)
				}
			})
		}
		for n := range 3000 {
			connect(fmt.Sprintf("10.%d.%d.7:4000", n/250, n%250), good(fmt.Sprint("pod", n)))
		}
		for n := range 500 {
			connect(fmt.Sprintf("192.0.2.1:%d", 4000+n), good(fmt.Sprint("translated", n)))
		}
		work.Wait()
		if j.count() != 3500 || j.mostOpen > maxReviews {
			t.Errorf("%d reviews, %d at once; want 3500, at most %d at once", j.count(), j.mostOpen, maxReviews)
		}
	})
}

// TestAddressesAreForgotten: what strangers can make grow is bounded.
func TestAddressesAreForgotten(t *testing.T) {
	p := newPeers()
	first := netip.MustParseAddr("2001:db8::1")
	kept := p.at(first)
	kept.refused()
	next := first
	for range maxPeers / 2 {
		next = next.Next()
		p.at(next)
	}
	if p.at(first) != kept {
		t.Error("an address that is in use was forgotten")
	}
	for range maxPeers {
		next = next.Next()
		p.at(next)
	}
	if n := len(p.known.Keys()); n > maxPeers {
		t.Errorf("%d addresses are kept, want at most %d", n, maxPeers)
	}
	if p.at(first) == kept {
		t.Error("an address that is silent is kept for ever")
	}
}

func TestDebugEndpointLimitsAnAddressToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &judge{Interface: fake.NewClientset(), takes: time.Millisecond}
		authorizer, err := NewAuthorizer(j, "istio-system", nil)
		if err != nil {
			t.Fatal(err)
		}
		handler := authorizer.Require(http.NotFoundHandler())
		codes := map[int]int{}
		for n := range 50 {
			r := httptest.NewRequest(http.MethodGet, "/debug/syncz", nil)
			r.RemoteAddr = fmt.Sprintf("[::ffff:10.0.0.66]:%d", 4000+n)
			r.Header.Set(TokenHeader, jwtFor([]string{DebugAudience, "bad"}, time.Now().Add(time.Hour), fmt.Sprint(n)))
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			codes[w.Code]++
		}
		if codes[http.StatusUnauthorized] != refusedBurst || codes[http.StatusTooManyRequests] != 50-refusedBurst || j.count() != refusedBurst {
			t.Errorf("answers %v, %d reviews; want %d times 401, then 429", codes, j.count(), refusedBurst)
		}
	})
}
