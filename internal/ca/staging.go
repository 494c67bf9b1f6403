package ca

import (
	"crypto/x509"
	"slices"
	"time"

	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// rotation is a change of the mesh's root that is under way, as Secret selvage-root-rotation holds it. It exists from before the
// first effect of the change until after the last, so whoever reads it after the source knows what the source alone does not say.
// Immutable.
type rotation struct {
	stage trust.Stage
	since time.Time // when the stage began

	// from is the authority that signed before. Its key is kept until it is retired, so that a replica that starts in between can
	// go on with it. Nil when nobody knew the key any more.
	from *pki.Issuer
	// next is a self-signed root that is on its way into Secret istio-ca-secret; nil once it is there.
	next *pki.Issuer

	to      string // fingerprint of the new root
	toRoots []byte // the new authority's roots
	others  []byte // more roots that must be trusted until the end, of changes that this one has overtaken

	version string // resourceVersion
}

// fromRoots are the roots of the former authority, nil when it is not known.
func (r *rotation) fromRoots() []byte {
	if r.from == nil {
		return nil
	}
	return r.from.RootPEM()
}

// target is the authority that the change leads to: what the source holds, or what is on its way into it; nil when neither can be
// used.
func (r *rotation) target(source *pki.Issuer) *pki.Issuer {
	if r.next != nil && (source == nil || sameRoot(source, r.from)) {
		return r.next
	}
	return source
}

// aborted reports whether the source is what it was before, and the new authority has signed nothing.
func (r *rotation) aborted(source *pki.Issuer) bool {
	return r.stage == trust.Distribute && r.next == nil && sameRoot(source, r.from)
}

func sameRoot(a, b *pki.Issuer) bool { return a != nil && b != nil && a.Root().Equal(b.Root()) }

func rootOf(i *pki.Issuer) string { return pki.Fingerprint(i.Root()) }

// effective is who signs and what is trusted, by what the source holds (nil: nothing that can be used) and the change under way
// (nil: none). It is nil when nobody can sign.
func effective(source *pki.Issuer, r *rotation) (*pki.Issuer, error) {
	if r == nil {
		return source, nil
	}
	target := r.target(source)
	switch {
	case target == nil && r.from == nil:
		return nil, nil //nolint:nilnil // nobody
	case target == nil: // everybody still believes the former one, until it is retired
		return trusting(r.from, r.toRoots, r.others)
	case r.from == nil && r.stage != trust.Retire:
		return trusting(target, r.toRoots, r.others)
	case rootOf(target) != r.to && r.from != nil: // another one than the stage speaks of, of which nobody has heard yet
		if r.stage == trust.Distribute {
			return trusting(r.from, target.RootPEM(), r.others)
		}
		return trusting(r.from, target.RootPEM(), r.toRoots, r.others)
	case r.stage == trust.Distribute:
		return trusting(r.from, target.RootPEM(), r.others)
	case r.stage == trust.Sign:
		return trusting(target, r.fromRoots(), r.others)
	case rootOf(target) != r.to:
		return trusting(target, r.toRoots)
	}
	return target, nil
}

func trusting(i *pki.Issuer, more ...[]byte) (*pki.Issuer, error) {
	merged, err := pki.MergeRoots(more...)
	if err != nil {
		return nil, err
	}
	if len(merged) == 0 {
		return i, nil
	}
	return i.Trusting(merged)
}

// change is what must be written before a source may be used that is not the one in force; nil when it can be used at once:
// everybody trusts it already, and it still trusts what was signed before. current is what signs now and how far it was, nil at
// start.
func change(current *root, r *rotation, source *pki.Issuer, now time.Time) *rotation {
	if current == nil || source == nil {
		return nil
	}
	if r == nil {
		known := pki.Trusts(current.issuer.RootPEM(), source.Root()) && current.stage != trust.Distribute
		lasting := pki.Trusts(source.RootPEM(), current.issuer.Root())
		switch {
		case !known && !sameRoot(source, current.issuer):
			return begin(trust.Distribute, current.issuer, source, now)
		case !lasting:
			return begin(trust.Sign, current.issuer, source, now)
		case current.stage == trust.Sign && current.pem != nil && !trustsAll(source.RootPEM(), current.pem):
			// Somebody has deleted the record while certificates of the former root were in use.
			next := begin(trust.Sign, nil, source, now)
			next.others = current.pem
			return next
		}
		return nil
	}
	target := r.target(source)
	if rootOf(target) == r.to || r.stage == trust.Distribute {
		return nil // of the second the leader takes note
	}
	next := begin(trust.Distribute, current.issuer, target, now)
	next.version = r.version
	next.others, _ = pki.MergeRoots(r.fromRoots(), r.toRoots, r.others) // all were read before
	return next
}

// trustsAll reports whether a bundle has all roots of another.
func trustsAll(roots, others []byte) bool {
	return !slices.ContainsFunc(readable(others), func(c *x509.Certificate) bool { return !pki.Trusts(roots, c) })
}

func begin(stage trust.Stage, from, to *pki.Issuer, now time.Time) *rotation {
	return &rotation{stage: stage, since: now, from: from, to: rootOf(to), toRoots: to.RootPEM()}
}

// advance is the next stage's record; nil when the change is complete.
func (r *rotation) advance(now time.Time) *rotation {
	next := *r
	next.stage, next.since, next.next = r.stage.Next(), now, nil
	switch next.stage {
	case trust.Retire:
		next.from, next.others = nil, nil
	case trust.Stable:
		return nil
	case trust.Distribute, trust.Sign:
	}
	return &next
}

// redirected is r for another target: everything begins again, but what has signed stays trusted.
func (r *rotation) redirected(target *pki.Issuer, now time.Time) *rotation {
	next := *r
	next.since, next.to, next.toRoots = now, rootOf(target), target.RootPEM()
	if r.stage != trust.Distribute {
		next.others, _ = pki.MergeRoots(r.toRoots, r.others) // both were read before
		next.stage = trust.Sign
		if r.from != nil {
			next.stage = trust.Distribute
		}
	}
	return &next
}
