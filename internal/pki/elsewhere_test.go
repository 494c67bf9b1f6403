package pki

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestRequestOnlyForItsSender(t *testing.T) {
	uris := func(ids ...Identity) (out []*url.URL) {
		for _, id := range ids {
			out = append(out, id.uri())
		}
		return out
	}
	other := Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "admin"}
	// otherName is a kind of name that Go's library passes over: here a user of Windows' (1.3.6.1.4.1.311.20.2.3).
	otherName, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: uriName, Bytes: []byte(web.String())},
		{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{0x06, 0x03, 0x55, 0x04, 0x0a}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		template x509.CertificateRequest
		says     string // "" for a request that is taken
	}{
		"ours":                   {x509.CertificateRequest{URIs: uris(web), Subject: pkix.Name{Organization: []string{"cluster.local"}}}, ""},
		"Istio's":                {x509.CertificateRequest{URIs: uris(web), Subject: pkix.Name{Organization: []string{""}}}, ""},
		"no subject":             {x509.CertificateRequest{URIs: uris(web)}, ""},
		"no name":                {x509.CertificateRequest{}, "no name"},
		"another's":              {x509.CertificateRequest{URIs: uris(other)}, "may ask for " + web.String()},
		"another's besides":      {x509.CertificateRequest{URIs: uris(web, other)}, "may ask for"},
		"a host's":               {x509.CertificateRequest{URIs: uris(web), DNSNames: []string{"istiod.istio-system.svc"}}, "istiod.istio-system.svc"},
		"an address":             {x509.CertificateRequest{URIs: uris(web), IPAddresses: []net.IP{{10, 0, 0, 1}}}, "10.0.0.1"},
		"a mail address":         {x509.CertificateRequest{URIs: uris(web), EmailAddresses: []string{"a@example.com"}}, "a@example.com"},
		"a kind of name unknown": {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: subjectAltName, Value: otherName}}}, "or more"},
		"a group of Kubernetes":  {x509.CertificateRequest{URIs: uris(web), Subject: pkix.Name{Organization: []string{"system:masters"}}}, "leave it empty"},
		"a user of Kubernetes":   {x509.CertificateRequest{URIs: uris(web), Subject: pkix.Name{CommonName: "admin"}}, "leave it empty"},
		"an authority": {x509.CertificateRequest{URIs: uris(web), ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}}, "2.5.29.19"},
	} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &c.template, ecKey(t, elliptic.P256()))
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseRequest(pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}))
		if err != nil {
			t.Fatal(err)
		}
		switch err := r.Only(web); {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestChainOfAnAuthorityElsewhereIsCheckedAsPeersWill(t *testing.T) {
	root, stranger := newRoot(t), newRoot(t)
	anchors, err := ParseAnchors(append(bytes.Clone(root.RootPEM()), root.RootPEM()...))
	if err != nil {
		t.Fatal(err)
	}
	_, requestPEM, err := NewRequest(web)
	if err != nil {
		t.Fatal(err)
	}
	request, err := ParseRequest(requestPEM)
	if err != nil {
		t.Fatal(err)
	}
	_, otherPEM, _ := NewRequest(web)
	other, _ := ParseRequest(otherPEM)
	signed := func(by *Issuer, r *Request, id Identity) []byte {
		t.Helper()
		chain, err := by.SignWorkload(r, id, time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Join(chain, nil)
	}
	blocks, err := anchors.Workload(signed(root, request, web), request, web, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 2 || !bytes.Equal(blocks[1], root.RootPEM()) {
		t.Errorf("%d blocks, of which the last is %s", len(blocks), blocks[len(blocks)-1])
	}
	admin := Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "admin"}
	for name, c := range map[string]struct {
		chain []byte
		at    time.Time
		says  string
	}{
		"of another root":   {signed(stranger, request, web), now, "none of the roots that the mesh trusts"},
		"of another caller": {signed(root, request, admin), now, "not of " + web.String()},
		"for another key":   {signed(root, other, web), now, "another key"},
		"expired":           {signed(root, request, web), now.Add(2 * time.Hour), "expired"},
		"nothing":           {nil, now, "empty"},
		"a root":            {root.RootPEM(), now, "0 URI names"},
	} {
		if _, err := anchors.Workload(c.chain, request, web, c.at); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}

	serving, err := root.IssueServing([]string{"istiod.istio-system.svc"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	path, err := anchors.Serving(serving, []string{"istiod.istio-system.svc"}, now)
	if err != nil || len(path) != 1 || !path[0].Equal(root.Root()) {
		t.Errorf("path %v, %v", path, err)
	}
	if _, err := anchors.Serving(serving, []string{"istiod-a.istio-system.svc"}, now); err == nil || !strings.Contains(err.Error(), "istiod-a.istio-system.svc") {
		t.Errorf("of another name: %v", err)
	}
	if _, err := ParseAnchors(signed(root, request, web)); err == nil || !strings.Contains(err.Error(), "not an authority") {
		t.Errorf("a leaf as a root: %v", err)
	}
}
