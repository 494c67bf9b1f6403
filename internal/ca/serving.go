package ca

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"github.com/selvage-mesh/selvage/internal/pki"
)

// serving is the control plane's own certificate, made when first asked for and again at half of its life or when the root
// changes. It is not stored: each replica has its own.
type serving struct {
	mu     sync.Mutex
	cert   *tls.Certificate
	issuer *pki.Issuer
	renew  time.Time
}

// ServingNames are the names in the serving certificate: those of the Service of this revision, those of the Service without a
// revision, which leads to whichever revision is the default, and the configured ones.
func (a *Authority) ServingNames() []string {
	services := []string{"istiod"}
	if own := a.serviceName(); own != "istiod" {
		services = append(services, own)
	}
	var names []string
	for _, s := range services {
		base := s + "." + a.config.Namespace
		names = append(names, base, base+".svc", base+".svc."+a.config.ClusterDomain)
	}
	for _, n := range a.config.ExtraNames {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// GetCertificate is for tls.Config. It renews by itself, at the first handshake after half of the certificate's life, so
// connections that exist are not touched and a machine that slept is served right at once.
func (a *Authority) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	r, err := a.current()
	if err != nil {
		return nil, err
	}
	if r.serving != nil {
		return r.serving, nil
	}
	now := time.Now()
	s := &a.serving
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert != nil && s.issuer == r.issuer && now.Before(s.renew) {
		return s.cert, nil
	}
	cert, err := r.issuer.IssueServing(a.ServingNames(), a.config.ServingLifetime, now)
	if err != nil {
		return nil, err
	}
	s.cert, s.issuer = cert, r.issuer
	s.renew = now.Add(cert.Leaf.NotAfter.Sub(now) / 2)
	a.log.Info("serving certificate issued", "names", a.ServingNames(), "notAfter", cert.Leaf.NotAfter.UTC())
	return cert, nil
}

// TLSConfig is for 15012: xDS and CA over gRPC. A client may show a certificate; if it does, it must be one of the mesh's, by the
// roots of this moment. Sessions are not resumed, so that every connection is checked against them.
func (a *Authority) TLSConfig() *tls.Config {
	config := a.clientVerifyingTLS(nil)
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		r, err := a.current()
		if err != nil {
			return nil, err
		}
		return r.tls, nil
	}
	return config
}

func (a *Authority) clientVerifyingTLS(roots *x509.CertPool) *tls.Config {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2"},
		GetCertificate:         a.GetCertificate,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              x509.NewCertPool(), // trusts nobody
		SessionTicketsDisabled: true,
	}
	if roots != nil {
		config.ClientCAs = roots
	}
	return config
}

// ServingTLSConfig is for 15017: the API server calls it, and shows no certificate of the mesh.
func (a *Authority) ServingTLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: a.GetCertificate,
	}
}

// serviceName is that of this revision's Service.
func (a *Authority) serviceName() string {
	if r := a.config.Revision; r != "" && r != "default" {
		return "istiod-" + r
	}
	return "istiod"
}
