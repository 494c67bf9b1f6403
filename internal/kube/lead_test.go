package kube_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/selvage-mesh/selvage/internal/kube"
)

// candidate stands for a lease and counts how it fares.
type candidate struct {
	cancel  context.CancelFunc
	ended   chan error
	leading chan struct{} // one value for each begin of run
	resign  chan error    // what run returns when it gets a value
}

func stand(t *testing.T, client *fake.Clientset, linger time.Duration, log *slog.Logger) *candidate {
	ctx, cancel := context.WithCancel(t.Context())
	c := &candidate{cancel: cancel, ended: make(chan error, 1), leading: make(chan struct{}, 10), resign: make(chan error)}
	go func() {
		c.ended <- kube.Lead(ctx, kube.LeadConfig{Kubernetes: client, Namespace: "istio-system", Lease: "work", Identity: "replica", Log: log},
			func(ctx context.Context) error {
				c.leading <- struct{}{}
				select {
				case err := <-c.resign:
					return err
				case <-ctx.Done():
					time.Sleep(linger)
					return ctx.Err()
				}
			})
	}()
	return c
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestLeaseHasOneHolderAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		first := stand(t, client, 7*time.Second, nil)
		after(3 * time.Second)
		second := stand(t, client, 0, nil) // of the same host name
		after(time.Minute)
		if len(first.leading) != 1 || len(second.leading) != 0 {
			t.Fatalf("first leads %d times, second %d", len(first.leading), len(second.leading))
		}
		first.cancel()
		after(5 * time.Second)
		if len(second.leading) != 0 {
			t.Error("the second leads while the first is still at its work")
		}
		after(7 * time.Second)
		if len(second.leading) != 1 {
			t.Error("a lease that was given up is not taken within 5 s")
		}
		if err := <-first.ended; err != nil {
			t.Errorf("a leader that was told to stop ended with %v", err)
		}
		second.cancel()
		if err := <-second.ended; err != nil {
			t.Errorf("the second ended with %v", err)
		}
		lease, err := client.CoordinationV1().Leases("istio-system").Get(t.Context(), "work", metav1.GetOptions{})
		if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != "" {
			t.Errorf("the lease was not given up: %+v %v", lease.Spec, err)
		}
	})
}

func TestLostLeaseEndsTheWorkAndIsStoodForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, broken := fake.NewClientset(), atomic.Bool{}
		client.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return broken.Load(), nil, errors.New("leases.coordination.k8s.io is forbidden")
		})
		var logs strings.Builder
		c := stand(t, client, 0, slog.New(slog.NewTextHandler(&logs, nil)))
		after(3 * time.Second)
		broken.Store(true)
		after(30 * time.Second)
		if n := strings.Count(logs.String(), "cannot hold the lease"); n > 3 {
			t.Errorf("the cause was logged %d times in 30 s:\n%s", n, logs.String())
		}
		broken.Store(false)
		after(30 * time.Second)
		if len(c.leading) != 2 {
			t.Errorf("led %d times, want once before and once after", len(c.leading))
		}
		c.cancel()
		if err := <-c.ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestErrorOfTheWorkEndsLeading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("root is gone")
		c := stand(t, fake.NewClientset(), 0, nil)
		after(3 * time.Second)
		c.resign <- broken
		if err := <-c.ended; !errors.Is(err, broken) || !strings.Contains(err.Error(), "lead work") {
			t.Errorf("ended with %v", err)
		}
		done := stand(t, fake.NewClientset(), 0, nil)
		after(3 * time.Second)
		done.resign <- nil
		if err := <-done.ended; err != nil {
			t.Errorf("work that was done ended with %v", err)
		}
	})
}
