package ads

import (
	"context"
	"crypto/x509"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// shown is what is known of a proxy's certificate and roots: at first what its handshake has shown, then what it says itself.
type shown struct {
	trust.Report
	said bool // by the proxy itself
}

// handshake is what the connection of a call shows of the caller's certificate.
func handshake(ctx context.Context) (s shown) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return s
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return s
	}
	chain := info.State.VerifiedChains[0]
	s.Root, s.Begins, s.Ends = pki.Fingerprint(rootOf(chain)), chain[0].NotBefore, chain[0].NotAfter
	return s
}

func rootOf(chain []*x509.Certificate) *x509.Certificate { return chain[len(chain)-1] }

// invite tells the proxy's agent, with the first response, that it may report what it trusts.
func (st *stream) invite() {
	// An error is that of a stream that has ended, which its next use tells.
	_ = st.rpc.SetHeader(metadata.Pairs(trust.ReportHeader, "1"))
}

// report takes what a proxy says it trusts. It reports whether the request was that.
func (st *stream) report(r request) bool {
	var names []string
	switch {
	case r.delta != nil && r.delta.TypeURL == trust.ReportType:
		names = r.delta.Subscribe
	case r.sotw != nil && r.sotw.TypeURL == trust.ReportType:
		names = r.sotw.Names
	default:
		return false
	}
	report := trust.ParseReport(names)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.shown = shown{Report: report, said: true}
	return true
}

// Trust tells what the connected proxies trust and what their certificates lead to.
func (s *Server) Trust() []trust.Proxy {
	newest := s.newest()
	list := make([]trust.Proxy, 0, len(newest))
	for _, st := range newest {
		st.mu.Lock()
		list = append(list, trust.Proxy{Name: st.proxy.Namespace + "/" + st.proxy.Name, Roots: st.shown.Roots, Root: st.shown.Root})
		st.mu.Unlock()
	}
	return list
}

// Certificates are those of the connected proxies, as far as they are known.
func (s *Server) Certificates() (list []trust.Certificate) {
	for _, st := range s.newest() {
		st.mu.Lock()
		if c := st.shown; !c.Ends.IsZero() {
			list = append(list, trust.Certificate{Use: trust.Workload, Begins: c.Begins, Ends: c.Ends,
				Object: ref.Ref{Kind: "Pod", Namespace: st.proxy.Namespace, Name: st.proxy.Name}})
		}
		st.mu.Unlock()
	}
	return list
}

// CertificateStatus is what is known of a proxy's certificate.
type CertificateStatus struct {
	Root         string    `json:"root"` // fingerprint of the root that it leads to
	NotBefore    time.Time `json:"notBefore"`
	NotAfter     time.Time `json:"notAfter"`
	TrustedRoots string    `json:"trustedRoots,omitempty"` // hash of the roots that the proxy believes peers by, "" when it does not say
}

// certificate is of the status page; nil when nothing is known. st.mu is held.
func (st *stream) certificate() *CertificateStatus {
	if st.shown.Root == "" && st.shown.Roots == "" {
		return nil
	}
	return &CertificateStatus{Root: st.shown.Root, NotBefore: st.shown.Begins.UTC(), NotAfter: st.shown.Ends.UTC(), TrustedRoots: st.shown.Roots}
}
