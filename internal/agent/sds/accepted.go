package sds

import (
	"sync"

	"github.com/selvage-mesh/selvage/internal/agent/identity"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// accepted knows what the proxy has accepted of what it was sent: before that it does not use it.
type accepted struct {
	mu      *sync.Mutex
	clients map[*client]struct{}
	changed *chan struct{} // closed and replaced with every change
}

// client is one stream of the proxy, which opens one for each secret.
type client struct {
	has   map[string]*identity.Material // by name of the secret that it is subscribed to; nil until it has accepted one
	nonce string                        // of the answer that is on its way, "" for none
	names []string                      // what is in it
	sent  *identity.Material            // where that is from
}

func newAccepted() accepted {
	changed := make(chan struct{})
	return accepted{mu: &sync.Mutex{}, clients: map[*client]struct{}{}, changed: &changed}
}

func (a accepted) join() *client {
	c := &client{has: map[string]*identity.Material{}}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clients[c] = struct{}{}
	return c
}

func (a accepted) leave(c *client) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.clients, c)
	a.tell()
}

// tell wakes who waits for a change. a.mu is held.
func (a accepted) tell() {
	close(*a.changed)
	*a.changed = make(chan struct{})
}

func (a accepted) sending(c *client, nonce string, m *identity.Material, list []secret) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.nonce, c.sent, c.names = nonce, m, nil
	for _, in := range list {
		c.names = append(c.names, in.name)
	}
}

// answered takes note of a request; subscribed are the names that the client is subscribed to after it.
func (a accepted) answered(c *client, r request, subscribed map[string]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name := range c.has {
		if _, still := subscribed[name]; !still {
			delete(c.has, name)
		}
	}
	for name := range subscribed {
		if _, known := c.has[name]; !known {
			c.has[name] = nil
		}
	}
	if c.nonce != "" && r.nonce == c.nonce {
		if r.rejected == "" {
			for _, name := range c.names {
				if _, still := c.has[name]; still {
					c.has[name] = c.sent
				}
			}
		}
		c.nonce = ""
	}
	a.tell()
}

// Accepted gives the material whose roots, and the one whose certificate, the proxy uses, and a channel that is closed when that may
// have changed. A secret that the proxy has not asked for yet is current's: that is what it would get. Nil is one that it asked for
// and has not accepted.
func (a accepted) Accepted(current *identity.Material) (roots, certificate *identity.Material, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	roots, certificate = current, current
	for c := range a.clients {
		if m, asked := c.has[envoy.RootSecret]; asked && (m == nil || string(m.RootsPEM) != string(current.RootsPEM)) {
			roots = m
		}
		if m, asked := c.has[envoy.CertificateSecret]; asked && (m == nil || m.Leaf == nil || current.Leaf == nil || !m.Leaf.Equal(current.Leaf)) {
			certificate = m
		}
	}
	return roots, certificate, *a.changed
}
