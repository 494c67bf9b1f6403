package kube

import "github.com/selvage-mesh/selvage/internal/index"

// SetKeys takes in what was read of an issuer's keys, for the next snapshot.
func (c *Cluster) SetKeys(uri string, set index.KeySet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.builder.SetKeys(uri, set)
	c.poke()
}

// ForgetKeys forgets an address that nobody names any more.
func (c *Cluster) ForgetKeys(uri string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.builder.ForgetKeys(uri)
	c.poke()
}
