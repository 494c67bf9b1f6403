package index

import "maps"

// Discovery ends the address of an issuer's OpenID discovery document, in which the address of its keys stands.
const Discovery = "/.well-known/openid-configuration"

// Keys are the key sets of token issuers, by the address that they were read from. They are immutable; nil has none.
type Keys struct{ byURI map[string]KeySet }

// KeySet is what was read last from one address.
type KeySet struct {
	Text  string // JSON web key set, "" when none was ever read
	Error string // of the last try, "" when it went well
}

// Get gives the key set of an address, and whether reading was tried.
func (k *Keys) Get(uri string) (KeySet, bool) {
	if k == nil {
		return KeySet{}, false
	}
	set, ok := k.byURI[uri]
	return set, ok
}

// SetKeys takes in what was read from an address.
func (b *Builder) SetKeys(uri string, set KeySet) {
	if old, ok := b.keys.Get(uri); ok && old == set {
		return
	}
	next := &Keys{byURI: map[string]KeySet{}}
	if b.keys != nil {
		maps.Copy(next.byURI, b.keys.byURI)
	}
	next.byURI[uri] = set
	b.keys, b.changed = next, true
}

// ForgetKeys forgets an address that nobody names any more.
func (b *Builder) ForgetKeys(uri string) {
	if _, ok := b.keys.Get(uri); !ok {
		return
	}
	next := &Keys{byURI: maps.Clone(b.keys.byURI)}
	delete(next.byURI, uri)
	b.keys, b.changed = next, true
}
