// Package reconcile keeps what the control plane owns in the cluster right: the caBundle of webhook configurations, and the root
// certificate in every namespace. Decisions are package admission's; here is the reading, writing, retrying and telling.
//
// Loops follow events, never a timer: a drift is repaired when its watch event arrives. Run is to be called while this replica
// holds the lease, and may be called again after it has returned.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// RootSource tells the root certificates in PEM, nil while there are none, and gives a channel that is closed when that changes.
type RootSource interface {
	Roots() (rootPEM []byte, changed <-chan struct{})
}

const (
	// writeBurst and writesPerSecond limit what is written to one object, so that a rival that writes in a loop cannot make the
	// two of us a write storm.
	writeBurst      = 20
	writesPerSecond = 1

	// manyBuckets is from when on full buckets are forgotten.
	manyBuckets = 5000

	firstRetry   = 20 * time.Millisecond
	longestRetry = 30 * time.Second
	writeTimeout = 10 * time.Second
)

// errLater says that a key was queued again on purpose.
var errLater = errors.New("later")

// loop works through keys: each is handled by one worker at a time, again with back-off when that fails.
type loop[K comparable] struct {
	queue  workqueue.TypedRateLimitingInterface[K]
	handle func(context.Context, K) error
	failed func(K, error) // tells of an error that will be retried

	mu      sync.Mutex
	buckets map[K]*rate.Limiter
}

func newLoop[K comparable](handle func(context.Context, K) error, failed func(K, error)) *loop[K] {
	return &loop[K]{
		queue:  workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[K](firstRetry, longestRetry)),
		handle: handle, failed: failed, buckets: map[K]*rate.Limiter{},
	}
}

// run handles keys until ctx ends.
func (l *loop[K]) run(ctx context.Context, workers int) {
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	running.Wait()
}

func (l *loop[K]) next(ctx context.Context) bool {
	key, shutdown := l.queue.Get()
	if shutdown {
		return false
	}
	defer l.queue.Done(key)
	handling, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := l.handle(handling, key)
	switch {
	case err == nil:
		l.queue.Forget(key)
	case errors.Is(err, errLater) || ctx.Err() != nil:
	default:
		l.failed(key, err)
		l.queue.AddRateLimited(key)
	}
	return true
}

// mayWrite takes one write to the key's object from its bucket. When there is none it queues the key for when there will be one.
func (l *loop[K]) mayWrite(key K) bool {
	l.mu.Lock()
	bucket := l.buckets[key]
	if bucket == nil {
		if len(l.buckets) >= manyBuckets {
			l.settle()
		}
		bucket = rate.NewLimiter(writesPerSecond, writeBurst)
		l.buckets[key] = bucket
	}
	l.mu.Unlock()
	now := time.Now()
	reservation := bucket.ReserveN(now, 1)
	if wait := reservation.DelayFrom(now); wait > 0 {
		reservation.CancelAt(now)
		l.queue.AddAfter(key, wait)
		return false
	}
	return true
}

// settle forgets the buckets that are full again, of objects that rest or are gone. l.mu is held.
func (l *loop[K]) settle() {
	for key, bucket := range l.buckets {
		if bucket.Tokens() >= writeBurst {
			delete(l.buckets, key)
		}
	}
}

// followRoots calls each now and, from a goroutine of its own, whenever the root changes, until ctx ends. It is to be called before
// the workers run: what is queued twice before counts once, what is queued after a write, before the cache has seen that, twice.
func followRoots(ctx context.Context, roots RootSource, each func()) {
	_, changed := roots.Roots()
	each() // a change between the loop's start and here told nobody
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				_, changed = roots.Roots()
				each()
			}
		}
	}()
}

// onWatchError says what keeps an informer from its objects. The informer tries again by itself.
func onWatchError(log *slog.Logger, resource string) cache.WatchErrorHandlerWithContext {
	return func(_ context.Context, _ *cache.Reflector, err error) {
		if apierrors.IsForbidden(err) {
			log.Error("watch is forbidden: let the control plane list and watch it (`selvage install` grants it)", "resource", resource, "error", err)
			return
		}
		log.Debug("watch was interrupted", "resource", resource, "error", err)
	}
}

// hint says what a person can do about a failed write, "" when it is only to wait.
func hint(err error, verb, resource string) string {
	if apierrors.IsForbidden(err) {
		return fmt.Sprintf("let the control plane %s %s: `selvage install` grants it", verb, resource)
	}
	return ""
}
