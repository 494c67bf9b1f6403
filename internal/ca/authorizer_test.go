package ca

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"
)

func TestDebugEndpointsAskForATokenAndARight(t *testing.T) {
	client := fake.NewClientset()
	accept(client)
	var asked authorizationv1.SubjectAccessReviewSpec
	allowed, fails := true, error(nil)
	client.PrependReactor("create", "subjectaccessreviews", func(action kubetesting.Action) (bool, runtime.Object, error) {
		review := action.(kubetesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview).DeepCopy()
		asked = review.Spec
		review.Status.Allowed = allowed
		return true, review, fails
	})
	authorizer, err := NewAuthorizer(client, "istio-system", nil)
	if err != nil {
		t.Fatal(err)
	}
	handler := authorizer.Require(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("secret")) }))
	get := func(header, value string) (int, string) {
		r := httptest.NewRequest(http.MethodGet, "/debug/syncz?x=1", nil)
		if header != "" {
			r.Header.Set(header, value)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	good := jwt("selvage", time.Now().Add(time.Hour), "")
	for name, c := range map[string]struct {
		header, value string
		code          int
		says          string
	}{
		"none":             {"", "", 401, "kubectl -n istio-system create token selvage-reader --audience selvage"},
		"Authorization":    {"Authorization", "bearer " + good, 200, "secret"},
		"own header":       {TokenHeader, good, 200, "secret"},
		"basic":            {"Authorization", "Basic " + good, 401, "a token is needed"},
		"workload's":       {TokenHeader, jwt("istio-ca", time.Now().Add(time.Hour), ""), 401, `audience "istio-ca"`},
		"not even a token": {TokenHeader, "x", 401, "not a JSON web token"},
	} {
		if code, body := get(c.header, c.value); code != c.code || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %q, want %d that says %q", name, code, body, c.code, c.says)
		}
	}
	if n := asked.NonResourceAttributes; n == nil || n.Path != "/debug/syncz" || n.Verb != "get" || asked.User != "system:serviceaccount:shop:web" {
		t.Errorf("asked %+v", asked)
	}
	allowed = false
	if code, body := get(TokenHeader, good); code != 403 || !strings.Contains(body, "system:serviceaccount:shop:web may not get the nonResourceURL /debug/syncz") {
		t.Errorf("%d %q", code, body)
	}
	fails = errors.New("connection refused")
	if code, body := get(TokenHeader, good); code != 503 || strings.Contains(body, "secret") {
		t.Errorf("%d %q", code, body)
	}
}

// Claims are read from whatever a stranger sends.
func FuzzParseClaims(f *testing.F) {
	f.Add(jwt("istio-ca", time.Unix(1795000000, 0), "x"))
	f.Add("e30.eyJhdWQiOiJhIiwiZXhwIjoxZTMwMH0.x")
	f.Add("e30.eyJhdWQiOltdfQ.x")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := parseClaims(token)
		if err == nil && !c.expires.IsZero() && c.expires.Before(time.Unix(1, 0)) {
			t.Fatalf("end %s", c.expires)
		}
	})
}
