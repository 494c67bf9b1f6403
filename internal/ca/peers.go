package ca

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	grpcpeer "google.golang.org/grpc/peer"
	"k8s.io/apimachinery/pkg/util/cache"
)

// What one address may cost the API server. Only refused tokens count: after a restart of the control plane thousands of good
// ones come at once, hundreds of them from one address where nodes translate addresses.
const (
	// refusedBurst is how many tokens of an address may be refused in a row, refusedEvery after how long one is forgotten.
	refusedBurst = 20
	refusedEvery = 2 * time.Second
	// maxPeerReviews is how many questions about tokens of one address may be open; more wait. With maxReviews it leaves room for
	// the others, and it bounds how far refusals that are still on their way can pass refusedBurst.
	maxPeerReviews = 16
	// maxPeers bounds the memory. The least recently seen is forgotten first, with its debt.
	maxPeers = 10_000
	// peerMemory is after how long a silent address has no debt any more.
	peerMemory = (refusedBurst + maxPeerReviews) * refusedEvery
)

// peers are the addresses that show tokens.
type peers struct {
	mu    sync.Mutex
	known *cache.LRUExpireCache // netip.Addr → *origin
}

func newPeers() *peers { return &peers{known: cache.NewLRUExpireCache(maxPeers)} }

// at is the state of an address. The zero address stands for all that are not known.
func (p *peers) at(address netip.Addr) *origin {
	p.mu.Lock()
	defer p.mu.Unlock()
	found, ok := p.known.Get(address)
	if !ok {
		found = &origin{open: make(chan struct{}, maxPeerReviews)}
	}
	o := found.(*origin)
	p.known.Add(address, o, peerMemory) // again, to keep what is used
	return o
}

// origin is one address.
type origin struct {
	open chan struct{} // holds one element for each open question about its tokens

	mu      sync.Mutex
	forgets time.Time // when none of its refused tokens counts any more: each adds refusedEvery
}

// wait is how long the address must wait before another of its tokens is reviewed, 0 when it need not.
func (o *origin) wait() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	owes := max(0, time.Until(o.forgets)) // of the zero time it is the least Duration, from which nothing can be subtracted
	return max(0, owes-(refusedBurst-1)*refusedEvery)
}

// refused counts a token that the API server has refused.
func (o *origin) refused() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); o.forgets.Before(now) {
		o.forgets = now
	}
	o.forgets = o.forgets.Add(refusedEvery)
}

// peerAddress is where a gRPC call comes from, the zero address when that is not known.
func peerAddress(ctx context.Context) netip.Addr {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	tcp, ok := p.Addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}

// remoteAddress is the same of HTTP: HOST:PORT.
func remoteAddress(remote string) netip.Addr {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
