package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestASignerOfKubernetesSigns runs a control plane, with the rights that its installation gives it, for which a signer of Kubernetes signs:
// the API server believes its webhooks by the signer's root, and nothing of a key is in the cluster.
func TestASignerOfKubernetesSigns(t *testing.T) {
	const signer = "mesh.example.com/workloads"
	l := bare(t)
	rootPEM := l.runSigner(t, signer)
	mesh := filepath.Join(l.Dir, "mesh.yaml")
	text := fmt.Sprintf("caCertificates:\n- certSigners: [%s]\n  pem: |\n    %s\n", signer, strings.ReplaceAll(strings.TrimSpace(string(rootPEM)), "\n", "\n    "))
	if err := os.WriteFile(mesh, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := l.startPlaneWith(t, pageRevision, []string{"--ca-signer", signer}, "--ca-signer", signer, "--mesh-config", mesh)
	p.ready(t)
	h := newHooks(t, l)
	h.root = base64.StdEncoding.EncodeToString(rootPEM)
	h.settle(injector)
	h.settle(validator) // its failurePolicy is Fail: the API server has called it, and believed its certificate
	eventually(t, "the signer's root in every namespace", func(ctx context.Context) string {
		cm, err := l.Client.CoreV1().ConfigMaps("default").Get(ctx, "istio-ca-root-cert", metav1.GetOptions{})
		if err != nil || cm.Data["root-cert.pem"] != string(rootPEM) {
			return fmt.Sprintf("%v, %v", cm, err)
		}
		return ""
	})
	eventually(t, "no request left", func(ctx context.Context) string {
		list, err := l.Client.CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != 0 {
			return fmt.Sprintf("%d requests, %v", len(list.Items), err)
		}
		return ""
	})
	secrets, err := l.Client.CoreV1().Secrets("istio-system").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(secrets.Items) != 0 {
		t.Errorf("%d Secrets, %v", len(secrets.Items), err)
	}
	eventually(t, "what `ca status` shows", func(context.Context) string {
		stdout, stderr, code := l.selvage(t, "ca", "status")
		if code != 0 || !strings.Contains(stdout, "external (Kubernetes signer "+signer+")") {
			return fmt.Sprintf("exit %d\n%s%s", code, stdout, stderr)
		}
		t.Log("\n" + stdout)
		return ""
	})
	log, err := os.ReadFile(filepath.Join(l.Dir, "selvaged-"+pageRevision+".log"))
	if err != nil || bytes.Contains(log, []byte("orbidden")) {
		t.Errorf("the control plane lacks a right (%v):\n%s", err, log)
	}
}

// runSigner is a controller that signs what is approved, as cert-manager's does. It gives its root in PEM.
func (l *lab) runSigner(t *testing.T, signer string) (rootPEM []byte) {
	t.Helper()
	encode := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a signer's root"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))))
	requests := l.Client.CertificatesV1().CertificateSigningRequests()
	ctx, cancel := context.WithCancel(context.Background())
	events, err := requests.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range events.ResultChan() {
			r, ok := e.Object.(*certificatesv1.CertificateSigningRequest)
			if !ok || r.Spec.SignerName != signer || len(r.Status.Certificate) > 0 || len(r.Status.Conditions) == 0 || r.Status.Conditions[0].Status != corev1.ConditionTrue {
				continue
			}
			block, _ := pem.Decode(r.Spec.Request)
			asked := must(x509.ParseCertificateRequest(block.Bytes))
			r.Status.Certificate = encode(must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
				SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: asked.DNSNames, IPAddresses: asked.IPAddresses, URIs: asked.URIs,
				NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			}, root, asked.PublicKey, key)))
			if _, err := requests.UpdateStatus(ctx, r, metav1.UpdateOptions{}); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	t.Cleanup(func() { cancel(); events.Stop(); <-done })
	return encode(root.Raw)
}
