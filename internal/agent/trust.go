package agent

import (
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// trusted is what the control plane is told of the roots and the certificate that Envoy uses, as trust.Report encodes it, and
// channels of which one is closed when that may be something else.
func (a *Agent) trusted() (names []string, renewed, accepted <-chan struct{}) {
	current, renewed := a.identity.Current()
	roots, certificate, accepted := a.sds.Accepted(current)
	var r trust.Report
	if roots != nil && len(roots.RootsPEM) > 0 {
		r.Roots, _ = pki.BundleHash(roots.RootsPEM) // they were read before
	}
	if certificate != nil && certificate.Leaf != nil {
		r.Begins, r.Ends = certificate.Leaf.NotBefore, certificate.Leaf.NotAfter
		if root := certificate.Root(); root != nil {
			r.Root = pki.Fingerprint(root)
		}
	}
	return r.Encode(), renewed, accepted
}
