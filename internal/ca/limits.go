package ca

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/util/cache"

	"github.com/selvage-mesh/selvage/internal/pki"
)

const (
	// maxLimited is how many identities have a limiter at once. The least recently seen is forgotten first, with its debt.
	maxLimited = 10_000
	// limitMemory is how long the limiter of a silent identity is kept.
	limitMemory = 10 * time.Minute
)

// limits holds a token bucket for each identity.
type limits struct {
	perSecond rate.Limit
	burst     int

	mu      sync.Mutex
	buckets *cache.LRUExpireCache // pki.Identity → *rate.Limiter
}

func newLimits(perSecond float64, burst int) *limits {
	return &limits{perSecond: rate.Limit(perSecond), burst: burst, buckets: cache.NewLRUExpireCache(maxLimited)}
}

// allow takes one from the bucket of id, if there is one.
func (l *limits) allow(id pki.Identity) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	found, ok := l.buckets.Get(id)
	if !ok {
		found = rate.NewLimiter(l.perSecond, l.burst)
	}
	limiter := found.(*rate.Limiter)
	l.buckets.Add(id, limiter, limitMemory) // again, to keep what is used
	return limiter.Allow()
}
