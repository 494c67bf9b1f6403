package validate

import (
	"slices"
	"unicode"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// ciphers are those that Envoy's TLS library has, by OpenSSL's names.
var ciphers = []string{
	"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
	"ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA",
	"ECDHE-RSA-AES256-SHA", "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA", "DES-CBC3-SHA",
}

// serverTLS checks what a server needs to end TLS.
func (c *check) serverTLS(at path, t *networking.ServerTLSSettings) {
	c.ciphers(at, t)
	mode := t.GetMode()
	switch mode {
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		for _, f := range certificates(t) {
			if f.set && f.name != "caCrl" {
				c.errorf(diag.InvalidTLS, at.field(f.name), "mode ISTIO_MUTUAL takes the mesh's own certificates").hint("take it out, or use mode MUTUAL")
			}
		}
		return
	case networking.ServerTLSSettings_PASSTHROUGH, networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		for _, f := range certificates(t) {
			if f.set {
				c.warnf(diag.NoEffect, at.field(f.name), "mode %s ends no TLS, so it needs no certificates", mode)
			}
		}
	default:
	}
	var sources []string
	for _, s := range []struct {
		name string
		set  bool
	}{
		{"credentialName", t.GetCredentialName() != ""}, {"credentialNames", len(t.GetCredentialNames()) > 0},
		{"serverCertificate", t.GetServerCertificate() != "" && t.GetPrivateKey() != ""}, {"tlsCertificates", len(t.GetTlsCertificates()) > 0},
	} {
		if s.set {
			sources = append(sources, s.name)
		}
	}
	if len(sources) > 1 {
		c.errorf(diag.Contradiction, at.field(sources[1]), "the certificates are named by %s already", sources[0])
	}
	c.ending(at, t)
}

// ending checks the modes that end TLS and so need certificates.
func (c *check) ending(at path, t *networking.ServerTLSSettings) {
	mode := t.GetMode()
	simple := mode == networking.ServerTLSSettings_SIMPLE
	mutual := mode == networking.ServerTLSSettings_MUTUAL || mode == networking.ServerTLSSettings_OPTIONAL_MUTUAL
	named := t.GetCredentialName() != "" || len(t.GetCredentialNames()) > 0
	if (simple || mutual) && named {
		return // the Secret has all of them
	}
	if t.GetCaCrl() != "" && simple {
		c.errorf(diag.InvalidTLS, at.field("caCrl"), "mode SIMPLE asks no certificates of clients that could be revoked").hint("take it out, or use mode MUTUAL")
	}
	if t.GetCaCrl() != "" && t.GetCredentialName() != "" {
		c.errorf(diag.InvalidTLS, at.field("caCrl"), "credentialName brings the list of revoked certificates").hint("put it into the Secret, as ca.crl")
	}
	if !simple && !mutual {
		return
	}
	if mutual && t.GetCaCertificates() == "" && t.GetCaCertCredentialName() == "" {
		c.errorf(diag.InvalidTLS, at.field("caCertificates"), "it is missing: mode %s checks the certificates of clients", mode)
	}
	pairs := t.GetTlsCertificates()
	if len(pairs) == 0 && (t.GetServerCertificate() == "" || t.GetPrivateKey() == "") {
		c.errorf(diag.InvalidTLS, at, "mode %s needs credentialName, or serverCertificate and privateKey", mode)
	}
	if len(pairs) > 2 {
		c.warnf(diag.NoEffect, at.field("tlsCertificates"), "there are %d, and only two are used, one RSA and one ECDSA", len(pairs))
	}
	for i, p := range pairs {
		c.required(at.field("tlsCertificates").index(i).field("serverCertificate"), p.GetServerCertificate())
		c.required(at.field("tlsCertificates").index(i).field("privateKey"), p.GetPrivateKey())
	}
}

// given is a field and whether it is set.
type given struct {
	name string
	set  bool
}

func certificates(t *networking.ServerTLSSettings) []given {
	return []given{
		{"serverCertificate", t.GetServerCertificate() != ""}, {"privateKey", t.GetPrivateKey() != ""}, {"caCertificates", t.GetCaCertificates() != ""},
		{"tlsCertificates", len(t.GetTlsCertificates()) > 0}, {"credentialName", t.GetCredentialName() != ""},
		{"credentialNames", len(t.GetCredentialNames()) > 0}, {"caCrl", t.GetCaCrl() != ""},
	}
}

func (c *check) ciphers(at path, t *networking.ServerTLSSettings) {
	old := t.GetMinProtocolVersion() == networking.ServerTLSSettings_TLSV1_0 || t.GetMinProtocolVersion() == networking.ServerTLSSettings_TLSV1_1
	if old && len(t.GetCipherSuites()) == 0 {
		c.warnf(diag.NoEffect, at.field("minProtocolVersion"), "no cipher that versions below TLSV1_2 have is on by default").hint("name some in cipherSuites, or ask for TLSV1_2")
	}
	seen := map[string]bool{}
	for i, name := range t.GetCipherSuites() {
		where := at.field("cipherSuites").index(i)
		expression := name == "" || name == "ALL" || !unicode.IsLetter(rune(name[0])) && !unicode.IsNumber(rune(name[0]))
		switch {
		case !expression && !slices.Contains(ciphers, name):
			told := c.warnf(diag.NoEffect, where, "there is no cipher suite %s: it is left out", quote(name))
			if near := nearest(name, ciphers); near != "" {
				told.hint("did you mean %s?", near)
			}
		case seen[name]:
			c.warnf(diag.NoEffect, where, "%s is there twice", quote(name))
		}
		seen[name] = true
	}
}
