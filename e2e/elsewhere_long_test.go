//go:build long

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestAnotherAuthoritySignsForPods installs a revision for which an authority at an address signs, as with istio-csr: the control plane of
// the lab's other revision, which serves the same protocol. Pods of it get their certificates there, and talk to the shop.
func TestAnotherAuthoritySignsForPods(t *testing.T) {
	const rev = "elsewhere"
	l := atLevel(t, 2)
	image := strings.TrimSpace(l.kubectl(t, "-n", "istio-system", "get", "deployment", "istiod", "-o", "jsonpath={.spec.template.spec.containers[0].image}"))
	_, tag, _ := strings.Cut(image, ":")
	l.servingSecret(t, "istiod-elsewhere-tls", "istiod-elsewhere.istio-system.svc")
	t.Cleanup(func() { _, _, _ = l.selvage(t, "uninstall", "--revision", rev) })
	l.mustSelvage(t, "install", "--revision", rev, "--skip-crds", "--replicas", "1", "--tag", tag,
		"--ca-address", "istiod.istio-system.svc:15012", "--ca-tls-secret", "istiod-elsewhere-tls")
	if out := l.kubectl(t, "-n", "istio-system", "get", "role", "istiod-elsewhere", "-o", "yaml"); strings.Contains(out, "istio-ca-secret") {
		t.Errorf("its control plane has a right to the mesh's key:\n%s", out)
	}

	namespace := l.namespace(t, map[string]string{"istio.io/rev": rev})
	l.copies(t, namespace, "load", func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].Args = []string{"load", "--url", "http://web.shop/api", "--rate", "1", "--addr", ":8080"}
	})
	l.rolledOut(t, namespace, "load")
	env := l.kubectl(t, "-n", namespace, "get", "pods", "-l", "app=load", "-o", "yaml")
	if !strings.Contains(env, "istiod.istio-system.svc:15012") || !strings.Contains(env, "istio.io/rev: "+rev) {
		t.Errorf("the pod's sidecar is not one of the revision, or has another CA_ADDR:\n%s", env)
	}
	load := l.startLoadsIn(t, namespace)
	within(t, time.Minute, "a hundred requests", func(context.Context) string {
		if n := load.sent().total - load.before.total; n < 100 {
			return fmt.Sprint(n)
		}
		return ""
	})
	load.finish()
}

// servingSecret makes a Secret with a control plane's own certificate, signed by the mesh's root as its owner would have it.
func (l *lab) servingSecret(t *testing.T, name string, hosts ...string) {
	t.Helper()
	secrets := l.Client.CoreV1().Secrets("istio-system")
	ca := must(secrets.Get(t.Context(), "istio-ca-secret", metav1.GetOptions{}))
	certBlock, _ := pem.Decode(ca.Data["ca-cert.pem"])
	keyBlock, _ := pem.Decode(ca.Data["ca-key.pem"])
	root, rootKey := must(x509.ParseCertificate(certBlock.Bytes)), must(x509.ParsePKCS8PrivateKey(keyBlock.Bytes))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: hosts, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, root, key.Public(), rootKey))
	must(secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))}),
	}}, metav1.CreateOptions{}))
	t.Cleanup(func() { _ = secrets.Delete(context.Background(), name, metav1.DeleteOptions{}) })
}
