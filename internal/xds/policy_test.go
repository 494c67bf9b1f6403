package xds_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/scope"
	"github.com/selvage-mesh/selvage/internal/translate"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// TestPolicyFieldsReachEnvoy has the fields whose effect no request between two pods can show.
func TestPolicyFieldsReachEnvoy(t *testing.T) {
	b, err := index.New(index.Config{Namespace: "istio-system"})
	if err != nil {
		t.Fatal(err)
	}
	roots, revoked := filepath.Join(t.TempDir(), "ca.pem"), filepath.Join(t.TempDir(), "crl.pem")
	ca := newAuthority(t)
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, ca.root, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{roots: ca.pem, revoked: pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v := &village{town: &town{t: t}, builder: b}
	v.set(villageObjects + `---
kind: DestinationRule
metadata: {name: secure}
spec: {host: secure, trafficPolicy: {proxyProtocol: {version: V2}, tls: {mode: SIMPLE, caCertificates: ` + roots + `, caCrl: ` + revoked + `, insecureSkipVerify: false}}}
---
kind: DestinationRule
metadata: {name: web}
spec: {host: web, trafficPolicy: {proxyProtocol: {version: V1}}}
---
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], http: [{name: of-web, match: [{name: all, uri: {prefix: /}, statPrefix: counted}], route: [{destination: {host: web}}]}]}
`)
	m, problems := translate.Model(nil, b.Snapshot())
	if len(problems) != 0 {
		t.Fatalf("there are problems: %v", problems)
	}
	view, err := scope.For(m, scope.Proxy{Namespace: "shop", Name: "client", ServiceAccount: "client"})
	if err != nil {
		t.Fatal(err)
	}
	config := generate(t, xds.Generate, view)
	envoyValidates(t, static(t, config))
	clusters, routes := named(config.Clusters), named(config.Routes)
	for what, c := range map[string]struct {
		text string
		want []string
	}{
		"a cluster with TLS": {
			prototext.Format(unpack(t, clusters["outbound|80||secure.shop.svc.cluster.local"].Body, &clusterv3.Cluster{})),
			[]string{"upstream_proxy_protocol", "version: V2", `filename: "` + revoked + `"`, `filename: "` + roots + `"`, "auto_sni: true", "auto_san_validation: true"},
		},
		"a cluster of the mesh": {
			prototext.Format(unpack(t, clusters["outbound|80||web.shop.svc.cluster.local"].Body, &clusterv3.Cluster{})),
			[]string{"upstream_proxy_protocol", "ROOTCA"},
		},
		"a route": {
			prototext.Format(unpack(t, routes["80"].Body, &routev3.RouteConfiguration{})), []string{`"of-web.all"`, `stat_prefix: "counted"`},
		},
	} {
		plain := strings.ReplaceAll(strings.ReplaceAll(c.text, ":  ", ": "), "  {", " {")
		for _, want := range c.want {
			if !strings.Contains(plain, want) {
				t.Errorf("%s has no %s:\n%s", what, want, plain)
			}
		}
	}
}
