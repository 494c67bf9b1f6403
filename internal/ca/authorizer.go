package ca

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// TokenHeader carries the caller's token where Authorization does not arrive: the API server's service proxy takes that one off.
const TokenHeader = "X-Selvage-Token"

// DebugAudience is what a token for the debug endpoints must be made for. A token of another audience is no use there, and one of
// this audience is no use to the API server, so a control plane that is not trusted gains nothing from it.
const DebugAudience = "selvage"

// Authorizer guards HTTP endpoints that show other people's configuration: the caller must have a token of DebugAudience, and
// Kubernetes' RBAC must allow its user the endpoint's path as a nonResourceURL.
type Authorizer struct {
	kubernetes kubernetes.Interface
	namespace  string
	tokens     *reviewer
}

// NewAuthorizer gives an Authorizer. namespace is the control plane's, for the messages. registerer may be nil.
func NewAuthorizer(client kubernetes.Interface, namespace string, registerer prometheus.Registerer) (*Authorizer, error) {
	if client == nil {
		return nil, errors.New("configure debug authorizer: a Kubernetes client is needed")
	}
	results := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "selvage_debug_token_reviews_total", Help: "Tokens shown at the debug endpoints, by result: accepted, cached, rejected, limited, error.",
	}, []string{"result"})
	if registerer != nil {
		if err := registerer.Register(results); err != nil {
			return nil, fmt.Errorf("configure debug authorizer: register metrics: %w", err)
		}
	}
	return &Authorizer{kubernetes: client, namespace: namespace, tokens: newReviewer(client.AuthenticationV1(), DebugAudience, results)}, nil
}

// Require lets a request through to next when its caller may do it, and answers it otherwise: 401 without a good token, 403
// without the right, 429 after too many bad tokens, 503 when the API server cannot be asked.
func (a *Authorizer) Require(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		code, err := a.check(r)
		if err == nil {
			next.ServeHTTP(w, r)
			return
		}
		if code == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="selvage"`)
		}
		http.Error(w, err.Error(), code)
	})
}

func (a *Authorizer) check(r *http.Request) (int, error) {
	token := r.Header.Get(TokenHeader)
	if token == "" {
		token, _ = bearerToken(r.Header.Get("Authorization"))
	}
	if token == "" {
		return http.StatusUnauthorized, fmt.Errorf("a token is needed in header %s or Authorization: Bearer. Make one with\n  %s", TokenHeader, a.howTo())
	}
	user, err := a.tokens.review(r.Context(), remoteAddress(r.RemoteAddr), token)
	if err != nil {
		message := status.Convert(err).Message()
		switch status.Code(err) {
		case codes.Unauthenticated:
			return http.StatusUnauthorized, fmt.Errorf("%s. Make one with\n  %s", message, a.howTo())
		case codes.ResourceExhausted:
			return http.StatusTooManyRequests, errors.New(message)
		default:
		}
		return http.StatusServiceUnavailable, errors.New(message)
	}
	allowed, err := a.allowed(r.Context(), user, r.Method, r.URL.Path)
	if err != nil {
		return http.StatusServiceUnavailable, fmt.Errorf("cannot ask the API server whether %s may %s %s: %w", user.Username, r.Method, r.URL.Path, err)
	}
	if !allowed {
		return http.StatusForbidden, fmt.Errorf(
			"%s may not %s the nonResourceURL %s: bind it to a ClusterRole that allows it, or use the service account selvage-reader",
			user.Username, strings.ToLower(r.Method), r.URL.Path)
	}
	return http.StatusOK, nil
}

func (a *Authorizer) howTo() string {
	return fmt.Sprintf("kubectl -n %s create token selvage-reader --audience %s", a.namespace, DebugAudience)
}

// allowed asks Kubernetes' own authorization. It is not remembered: a right that was taken away is gone at once.
func (a *Authorizer) allowed(ctx context.Context, user authenticationv1.UserInfo, method, path string) (bool, error) {
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	review, err := a.kubernetes.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: strings.ToLower(method)},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}
