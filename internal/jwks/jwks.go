// Package jwks reads the public keys of token issuers from the addresses that RequestAuthentications name, again and again. The
// addresses come from whoever may write such an object, so a request goes to no address that only this machine or its cloud has.
package jwks

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/selvage-mesh/selvage/internal/index"
)

// Config is what a Fetcher needs.
type Config struct {
	// OnKeys is told what became of each try: the keys, or why there are none. What was read before stands beside a new error.
	OnKeys func(uri string, set index.KeySet)
	// OnGone is told of an address that is not wanted any more.
	OnGone func(uri string)
	// Transport carries requests; nil for one that refuses addresses of this machine and its cloud.
	Transport http.RoundTripper
	Log       *slog.Logger // nil for none
}

const (
	refresh        = 20 * time.Minute // as Istio does
	firstRetry     = 2 * time.Second
	lastRetry      = 5 * time.Minute
	defaultTimeout = 5 * time.Second
	maxTimeout     = 30 * time.Second
	atOnce         = 4
	// maxURIs bounds what objects can make this process ask. Those beyond are not asked, and say so.
	maxURIs = 500
)

// Fetcher reads keys.
type Fetcher struct {
	config Config
	client *http.Client
	wake   chan struct{}
	slots  chan struct{}

	mu     sync.Mutex
	wanted map[string]*source
}

// source is one address.
type source struct {
	timeout time.Duration
	due     time.Time
	busy    bool
	failed  int
	last    index.KeySet
}

// New gives a fetcher that asks nobody yet.
func New(c Config) (*Fetcher, error) {
	if c.OnKeys == nil || c.OnGone == nil {
		return nil, errors.New("new fetcher of keys: nobody takes them")
	}
	if c.Transport == nil {
		c.Transport = guarded()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Fetcher{
		config: c, client: &http.Client{Transport: c.Transport, CheckRedirect: redirect},
		wake: make(chan struct{}, 1), slots: make(chan struct{}, atOnce), wanted: map[string]*source{},
	}, nil
}

// Want says which addresses are to be read, with how long each may take; 0 is the default. It does not block.
func (f *Fetcher) Want(uris map[string]time.Duration) {
	f.mu.Lock()
	var gone, refused []string
	for uri := range f.wanted {
		if _, ok := uris[uri]; !ok {
			delete(f.wanted, uri)
			gone = append(gone, uri)
		}
	}
	for uri, timeout := range uris {
		s := f.wanted[uri]
		switch {
		case s == nil && len(f.wanted) >= maxURIs:
			refused = append(refused, uri)
			continue
		case s == nil:
			s = &source{due: time.Now()}
			f.wanted[uri] = s
		}
		s.timeout = min(cmp.Or(max(timeout, 0), defaultTimeout), maxTimeout)
	}
	f.mu.Unlock()
	for _, uri := range gone {
		f.config.OnGone(uri)
	}
	for _, uri := range refused {
		f.config.OnKeys(uri, index.KeySet{Error: "too many addresses are named already"})
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run reads until ctx ends.
func (f *Fetcher) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var work sync.WaitGroup
	defer work.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-timer.C:
		}
		uris, next := f.due(time.Now())
		for _, uri := range uris {
			work.Go(func() { f.read(ctx, uri) })
		}
		timer.Reset(next)
	}
}

// due gives the addresses to read now, and how long nothing else is to be done.
func (f *Fetcher) due(now time.Time) (uris []string, next time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next = refresh
	for uri, s := range f.wanted {
		switch wait := s.due.Sub(now); {
		case s.busy:
		case wait <= 0:
			s.busy = true
			uris = append(uris, uri)
		default:
			next = min(next, wait)
		}
	}
	return uris, next
}

func (f *Fetcher) read(ctx context.Context, uri string) {
	f.mu.Lock()
	s := f.wanted[uri]
	var timeout time.Duration
	if s != nil {
		timeout = s.timeout
	}
	f.mu.Unlock()
	if s == nil {
		return
	}
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	text, err := f.fetch(limited, uri)
	cancel()
	<-f.slots
	if ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	s.busy = false
	if err == nil {
		s.failed, s.due, s.last = 0, time.Now().Add(refresh), index.KeySet{Text: text}
	} else {
		s.due = time.Now().Add(min(firstRetry<<min(s.failed, 10), lastRetry))
		s.failed++
		s.last.Error = err.Error()
	}
	set, still := s.last, f.wanted[uri] == s
	f.mu.Unlock()
	if still {
		if err != nil {
			f.config.Log.Warn("cannot read the keys of an issuer; retrying", "uri", uri, "error", err)
		}
		f.config.OnKeys(uri, set)
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
