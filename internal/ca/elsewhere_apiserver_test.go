//go:build apiserver

package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// stranger is an authority that is not Selvage's: crypto/x509 alone.
type stranger struct {
	*testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newStranger(t *testing.T, name string) *stranger {
	t.Helper()
	s := &stranger{T: t, key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	s.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, s.key.Public(), s.key))(t)))(t)
	return s
}

func pemOf(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }

func (s *stranger) rootPEM() []byte { return pemOf(s.cert.Raw) }

// sign signs what a request asks for.
func (s *stranger) sign(requestPEM []byte, life time.Duration) []byte {
	block, _ := pem.Decode(requestPEM)
	request := must(x509.ParseCertificateRequest(block.Bytes))(s)
	return pemOf(must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: request.URIs, DNSNames: request.DNSNames, IPAddresses: request.IPAddresses,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, s.cert, request.PublicKey, s.key))(s))
}

// controller answers approved requests to a signer, as the controller of one does, until the test ends.
func (c *cluster) controller(signer string, answer func(*certificatesv1.CertificateSigningRequest)) {
	c.Helper()
	requests := c.admin.CertificatesV1().CertificateSigningRequests()
	ctx, cancel := context.WithCancel(context.Background())
	watcher := must(requests.Watch(ctx, metav1.ListOptions{}))(c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range watcher.ResultChan() {
			r, ok := e.Object.(*certificatesv1.CertificateSigningRequest)
			if !ok || e.Type == watch.Deleted || r.Spec.SignerName != signer || !approved(r) || len(r.Status.Certificate) > 0 || condition(r, certificatesv1.CertificateFailed) != nil {
				continue
			}
			answer(r)
			if _, err := requests.UpdateStatus(ctx, r, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				c.Error(err)
			}
		}
	}()
	c.Cleanup(func() { cancel(); watcher.Stop(); <-done })
}

// asSigner is the control plane's client with the rights of `selvage install --ca-signer` in place of those to Secrets.
func (c *cluster) asSigner(signer string) kubernetes.Interface {
	c.Helper()
	client, name := c.controlPlane(), c.namespace+"-signer"
	rbac := c.admin.RbacV1()
	must(rbac.ClusterRoles().Create(c.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"certificatesigningrequests"}, Verbs: []string{"create", "get", "list", "watch", "delete"}},
		{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"certificatesigningrequests/approval"}, Verbs: []string{"update"}},
		{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"signers"}, ResourceNames: []string{signer}, Verbs: []string{"approve"}},
	}}, metav1.CreateOptions{}))(c)
	must(rbac.ClusterRoleBindings().Create(c.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: c.namespace}}}, metav1.CreateOptions{}))(c)
	c.Cleanup(func() {
		_ = rbac.ClusterRoleBindings().Delete(context.Background(), name, metav1.DeleteOptions{})
		_ = rbac.ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	return client
}

// fixedRoots are roots that do not change.
func fixedRoots(rootsPEM []byte) func(context.Context, func([]byte, error)) error {
	return func(ctx context.Context, use func([]byte, error)) error {
		use(rootsPEM, nil)
		<-ctx.Done()
		return nil
	}
}

// runAuthority runs one until the test ends.
func runAuthority(t *testing.T, a *Authority) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// await waits for the authority to be ready.
func await(t *testing.T, a *Authority) {
	t.Helper()
	for a.Ready() != nil {
		_, changed := a.Roots()
		if a.Ready() == nil {
			return
		}
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatal(a.Ready())
		}
	}
}

func TestSignerOfKubernetesSignsForWorkloadsAndTheControlPlane(t *testing.T) {
	c, authority := newCluster(t), newStranger(t, "the signer's root")
	signer := c.namespace + ".example.com/mesh"
	c.controller(signer, func(r *certificatesv1.CertificateSigningRequest) {
		r.Status.Certificate = authority.sign(r.Spec.Request, time.Hour)
	})
	a := newAuthority(t, c.asSigner(signer), func(config *Config) {
		config.Namespace, config.ExtraNames = c.namespace, []string{"127.0.0.1"}
		config.Elsewhere = &Elsewhere{Signer: signer, Roots: fixedRoots(authority.rootPEM()), RootsAt: ref.Ref{Kind: "ConfigMap", Namespace: c.namespace, Name: "istio"}}
	})
	runAuthority(t, a)
	await(t, a)
	out, key := c.certificate(a, authority.rootPEM(), c.token("web", "istio-ca", c.pod("web")))
	cert := must(tls.X509KeyPair([]byte(strings.Join(out, "")), key))(t)
	want := pki.Identity{TrustDomain: "cluster.local", Namespace: c.namespace, ServiceAccount: "web"}
	if id, err := pki.CertificateIdentity(cert.Leaf); err != nil || id != want {
		t.Errorf("identity %v, %v", id, err)
	}
	if last := out[len(out)-1]; last != string(authority.rootPEM()) || string(a.RootPEM()) != last {
		t.Errorf("the chain ends with %s", last)
	}
	c.noRequests(signer)
}

// certificate asks a served authority for a certificate by a token, whose caller trusts rootPEM alone.
func (c *cluster) certificate(a *Authority, rootPEM []byte, token string) (chain []string, keyPEM []byte) {
	c.Helper()
	id := pki.Identity{TrustDomain: "cluster.local", Namespace: c.namespace, ServiceAccount: "web"}
	keyPEM, requestPEM, err := pki.NewRequest(id)
	if err != nil {
		c.Fatal(err)
	}
	out, err := c.ask(a, rootPEM, token, string(requestPEM))
	if err != nil {
		c.Fatal(err)
	}
	return out.CertChain, keyPEM
}

func (c *cluster) ask(a *Authority, rootPEM []byte, token, requestPEM string) (*securityv1alpha1.IstioCertificateResponse, error) {
	c.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(c)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(a.TLSConfig())))
	a.Register(server)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(rootPEM)
	conn := must(grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: pool, ServerName: a.neededNames()[0]}))))(c)
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(c.Context(), "authorization", "Bearer "+token)
	return securityv1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityv1alpha1.IstioCertificateRequest{Csr: requestPEM, ValidityDuration: 3600})
}

// noRequests waits until no request to the signer is left.
func (c *cluster) noRequests(signer string) {
	c.Helper()
	requests := c.admin.CertificatesV1().CertificateSigningRequests()
	list := must(requests.List(c.Context(), metav1.ListOptions{}))(c)
	left := map[string]bool{}
	for _, r := range list.Items {
		if r.Spec.SignerName == signer {
			left[r.Name] = true
		}
	}
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	watcher := must(requests.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion}))(c)
	defer watcher.Stop()
	for len(left) > 0 {
		e, ok := <-watcher.ResultChan()
		if !ok {
			c.Fatalf("requests stay behind: %v", left)
		}
		if r, isRequest := e.Object.(*certificatesv1.CertificateSigningRequest); isRequest && e.Type == watch.Deleted {
			delete(left, r.Name)
		}
	}
}

func TestSignerThatDoesNotSignIsToldWithTheRequestsName(t *testing.T) {
	for name, fault := range map[string]struct {
		answer func(c *cluster, other *stranger, r *certificatesv1.CertificateSigningRequest)
		code   codes.Code
		says   []string
	}{
		"never answers": {func(*cluster, *stranger, *certificatesv1.CertificateSigningRequest) {}, codes.Unavailable, []string{"was not answered", "within 2s"}},
		"fails": {func(_ *cluster, _ *stranger, r *certificatesv1.CertificateSigningRequest) {
			r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateFailed,
				Status: corev1.ConditionTrue, Reason: "NoBackend", Message: "the vault is sealed"})
		}, codes.Unavailable, []string{"failed", "NoBackend: the vault is sealed"}},
		"signs by another root": {func(c *cluster, other *stranger, r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = other.sign(r.Spec.Request, time.Hour)
		}, codes.FailedPrecondition, []string{"cannot be used", `"CN=another root"`, `"CN=the signer's root"`}},
	} {
		t.Run(name, func(t *testing.T) {
			c, authority, other := newCluster(t), newStranger(t, "the signer's root"), newStranger(t, "another root")
			signer := c.namespace + ".example.com/mesh"
			first := true
			c.controller(signer, func(r *certificatesv1.CertificateSigningRequest) {
				if first { // the control plane's own
					first = false
					r.Status.Certificate = authority.sign(r.Spec.Request, time.Hour)
					return
				}
				fault.answer(c, other, r)
			})
			a := newAuthority(t, c.asSigner(signer), func(config *Config) {
				config.Namespace = c.namespace
				config.Elsewhere = &Elsewhere{Signer: signer, Roots: fixedRoots(authority.rootPEM()), Answer: 2 * time.Second,
					RootsAt: ref.Ref{Kind: "ConfigMap", Namespace: c.namespace, Name: "istio"}}
			})
			runAuthority(t, a)
			await(t, a)
			_, requestPEM, _ := pki.NewRequest(pki.Identity{TrustDomain: "cluster.local", Namespace: c.namespace, ServiceAccount: "web"})
			_, err := c.ask(a, authority.rootPEM(), c.token("web", "istio-ca", c.pod("web")), string(requestPEM))
			c.refused(a, err, fault.code, append(fault.says, "signer "+signer)...)
		})
	}
}

// refused checks what a caller and a person hear of a refusal, and that the request that it names can be looked at.
func (c *cluster) refused(a *Authority, err error, code codes.Code, says ...string) {
	c.Helper()
	c.Log(status.Convert(err).Message())
	if status.Code(err) != code {
		c.Errorf("code %s, want %s", status.Code(err), code)
	}
	problems := a.Problems()
	if len(problems) != 1 || problems[0].Code != "SEL0052" {
		c.Fatalf("problems %v", problems)
	}
	for _, want := range says {
		if !strings.Contains(err.Error(), want) || !strings.Contains(problems[0].Detail, want) {
			c.Errorf("%q is missing in %q or in %q", want, err, problems[0].Detail)
		}
	}
	name := problems[0].Object.Name
	if !strings.Contains(err.Error(), name) || !strings.Contains(problems[0].Hint, name) {
		c.Errorf("the request %s is not named: %v; hint %s", name, err, problems[0].Hint)
	}
	must(c.admin.CertificatesV1().CertificateSigningRequests().Get(c.Context(), name, metav1.GetOptions{}))(c)
}

func TestDeniedRequestIsToldWithItsName(t *testing.T) {
	c, authority := newCluster(t), newStranger(t, "the signer's root")
	signer := c.namespace + ".example.com/mesh"
	c.controller(signer, func(r *certificatesv1.CertificateSigningRequest) {
		r.Status.Certificate = authority.sign(r.Spec.Request, time.Hour)
	})
	a := newAuthority(t, c.asSigner(signer), func(config *Config) {
		config.Namespace = c.namespace
		config.Elsewhere = &Elsewhere{Signer: signer, Roots: fixedRoots(authority.rootPEM()), RootsAt: ref.Ref{Kind: "ConfigMap", Namespace: c.namespace, Name: "istio"}}
	})
	runAuthority(t, a)
	await(t, a)
	// Somebody denies the request between its creation and its approval: approve reads it again then.
	requests := c.admin.CertificatesV1().CertificateSigningRequests()
	_, requestPEM, _ := pki.NewRequest(pki.Identity{TrustDomain: "cluster.local", Namespace: c.namespace, ServiceAccount: "web"})
	made := must(requests.Create(t.Context(), &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: c.namespace},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: requestPEM, SignerName: signer, Usages: workloadUsages}}, metav1.CreateOptions{}))(t)
	t.Cleanup(func() { _ = requests.Delete(context.Background(), made.Name, metav1.DeleteOptions{}) })
	denial := made.DeepCopy()
	denial.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue, Reason: "Policy", Message: "not on a Friday"}}
	must(requests.UpdateApproval(t.Context(), made.Name, denial, metav1.UpdateOptions{}))(t)
	err := a.signer.approve(t.Context(), made, question{of: "spiffe://cluster.local/ns/shop/sa/web"})
	if err == nil || !strings.Contains(err.Error(), "CertificateSigningRequest "+made.Name+" to signer "+signer+" was denied: Policy: not on a Friday") {
		t.Errorf("it says: %v", err)
	}
	if status.Code(signerStatus(err)) != codes.FailedPrecondition {
		t.Errorf("code %s", status.Code(signerStatus(err)))
	}
}

func TestControlPlaneWithoutTheRightToApproveSaysSo(t *testing.T) {
	c, authority := newCluster(t), newStranger(t, "the signer's root")
	signer := c.namespace + ".example.com/mesh"
	a := newAuthority(t, c.asSigner("another.example.com/mesh"), func(config *Config) {
		config.Namespace = c.namespace
		config.Elsewhere = &Elsewhere{Signer: signer, Roots: fixedRoots(authority.rootPEM()), RootsAt: ref.Ref{Kind: "ConfigMap", Namespace: c.namespace, Name: "istio"}}
	})
	_, err := a.signer.certify(t.Context(), question{request: []byte(csr(t)), usages: workloadUsages, lifetime: time.Hour, of: "nobody"})
	var r *refusal
	if !errors.As(err, &r) || r.kind != forbidden || !strings.Contains(r.hint(), "approve for signer "+signer) {
		t.Errorf("it says: %v", err)
	}
	t.Logf("%v; %s", err, r.hint())
	for range maxRequests { // it has been left by then
		a.signer.open <- struct{}{}
	}
	a.signer.remove(context.Background(), a.signer.kept)
}

// toldEvents are the messages of Events.
type toldEvents chan string

func (e toldEvents) Event(_ runtime.Object, _, _, message string) { e <- message }

// TestAuthorityAtAnAddress is a mesh whose certificates somebody else signs, as istio-csr does: roots from a ConfigMap, the control plane's
// certificate from a Secret, workloads elsewhere.
func TestAuthorityAtAnAddress(t *testing.T) {
	c, authority, other := newCluster(t), newStranger(t, "the root"), newStranger(t, "another root")
	client := c.controlPlane()
	secret := func(s *stranger) map[string][]byte {
		key, requestPEM, err := pki.NewServingRequest(pki.ECDSA, []string{"istiod." + c.namespace + ".svc"})
		if err != nil {
			t.Fatal(err)
		}
		der := must(x509.MarshalPKCS8PrivateKey(key))(t)
		return map[string][]byte{"tls.crt": s.sign(requestPEM, time.Hour), "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}
	}
	roots, told := make(chan []byte), make(toldEvents, 100)
	a := newAuthority(t, client, func(config *Config) {
		config.Namespace, config.Events = c.namespace, told
		config.Elsewhere = &Elsewhere{Address: "csr.example.com:443", ServingSecret: pluggedName, RootsAt: ref.Ref{Kind: "ConfigMap", Namespace: c.namespace, Name: "istio-ca-root-cert"},
			Roots: func(ctx context.Context, use func([]byte, error)) error {
				for {
					select {
					case <-ctx.Done():
						return nil
					case r := <-roots:
						use(r, nil)
					}
				}
			}}
	})
	runAuthority(t, a)
	roots <- authority.rootPEM()
	secrets := c.admin.CoreV1().Secrets(c.namespace)
	made := must(secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: pluggedName}, Type: corev1.SecretTypeTLS, Data: secret(authority)}, metav1.CreateOptions{}))(t)
	await(t, a)
	if !bytes.Equal(a.RootPEM(), authority.rootPEM()) {
		t.Error("not the ConfigMap's roots")
	}
	_, requestPEM, _ := pki.NewRequest(pki.Identity{TrustDomain: "cluster.local", Namespace: c.namespace, ServiceAccount: "web"})
	_, err := c.ask(a, authority.rootPEM(), c.token("web", "istio-ca", c.pod("web")), string(requestPEM))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "csr.example.com:443") {
		t.Errorf("who asks here is told: %v", err)
	}
	// A certificate of another root does not replace the good one; with its root it does.
	made.Data = secret(other)
	must(secrets.Update(t.Context(), made, metav1.UpdateOptions{}))(t)
	for event := range told {
		if strings.Contains(event, "another root") {
			break
		}
	}
	if p := a.Problems()[0]; p.Code != "SEL0041" || !strings.Contains(p.Detail, `"CN=another root"`) || a.Ready() != nil || !bytes.Equal(a.RootPEM(), authority.rootPEM()) {
		t.Errorf("%v; ready %v", p, a.Ready())
	}
	_, changed := a.Roots()
	roots <- append(authority.rootPEM(), other.rootPEM()...)
	<-changed
	for event := range told { // which comes after the problem has gone
		if strings.Contains(event, "can be used again") {
			break
		}
	}
	if len(a.Problems()) != 0 || !bytes.Contains(a.RootPEM(), other.rootPEM()) {
		t.Errorf("problems %v", a.Problems())
	}
}
