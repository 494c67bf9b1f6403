package probe

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	istiofake "istio.io/client-go/pkg/clientset/versioned/fake"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubetesting "k8s.io/client-go/testing"
)

// refusal is what a validating webhook's refusal looks like to who asked.
func refusal(revision string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest,
		Message: `admission webhook "rev.validation.istio.io" denied the request: configuration is invalid`,
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "SelvageRevision", Message: revision}}}}}
}

func TestOnlyOurOwnRefusalIsAProof(t *testing.T) {
	for name, c := range map[string]struct {
		answer  error
		working bool
		known   bool
	}{
		"refused by this revision": {refusal("asm-1"), true, true},
		"refused by another":       {refusal("asm-2"), false, true},
		"refused by another mesh":  {apierrors.NewBadRequest(`admission webhook "rev.validation.istio.io" denied the request: no`), false, true},
		"let through":              {nil, false, true},
		"the webhook cannot be called, and the policy is Fail": {apierrors.NewInternalError(errors.New(`failed calling webhook "rev.validation.istio.io": connection refused`)), false, true},
		"may not ask":            {apierrors.NewForbidden(schema.GroupResource{Resource: "gateways"}, "", errors.New("no")), false, true},
		"no API server":          {errors.New("connection refused"), false, false},
		"the API server is busy": {apierrors.NewTooManyRequestsError("wait"), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := prove(t, func() error { return c.answer })
				working, since, _ := v.Validation()
				if working != c.working || since.IsZero() == c.known {
					t.Errorf("working %v since %v", working, since)
				}
			})
		})
	}
}

func prove(t *testing.T, answer func() error) *Validation {
	t.Helper()
	client := istiofake.NewSimpleClientset()
	client.PrependReactor("create", "gateways", func(kubetesting.Action) (bool, runtime.Object, error) {
		return true, nil, answer()
	})
	v, err := NewValidation(ValidationConfig{Istio: client, Namespace: "istio-system", Revision: "asm-1", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = v.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
	return v
}

func TestAChangeIsSeenSoonAndRestIsCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries, broken atomic.Int64
		v := prove(t, func() error {
			tries.Add(1)
			if broken.Load() == 1 {
				return nil
			}
			return refusal("asm-1")
		})
		time.Sleep(time.Hour)
		if n := tries.Load(); n < 300 || n > 400 {
			t.Errorf("%d tries in an hour", n)
		}
		_, since, changed := v.Validation()
		broken.Store(1)
		<-changed
		if working, now, _ := v.Validation(); working || now.Sub(since) > time.Hour+steady {
			t.Errorf("working %v after %s", working, now.Sub(since))
		}
	})
}
