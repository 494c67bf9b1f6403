package ca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/selvage-mesh/selvage/internal/pki"
)

// accept lets the fake API server accept every token, as the service account shop/web in pod web-1.
func accept(client *fake.Clientset) (asked *int) {
	asked = new(int)
	client.PrependReactor("create", "tokenreviews", func(action kubetesting.Action) (bool, runtime.Object, error) {
		*asked++
		review := action.(kubetesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: review.Spec.Audiences, User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:shop:web", UID: "a-1",
			Extra: map[string]authenticationv1.ExtraValue{extraPodName: {"web-1"}, extraPodUID: {"u-1"}, extraNodeName: {"node-1"}},
		}}
		return true, review, nil
	})
	return asked
}

func csr(t testing.TB) string {
	t.Helper()
	_, requestPEM, err := pki.NewRequest(pki.Identity{TrustDomain: "cluster.local", Namespace: "istio-system", ServiceAccount: "istiod"})
	if err != nil {
		t.Fatal(err)
	}
	return string(requestPEM)
}

func leafOf(t testing.TB, chain []string) *x509.Certificate {
	t.Helper()
	certs, err := pki.ParseCertificates([]byte(chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

// TestCertificateOverGRPC is a workload's life: a first certificate for its token, the next one for the certificate that it has.
func TestCertificateOverGRPC(t *testing.T) {
	a, client := loaded(t, func(c *Config) { c.ExtraNames = []string{"127.0.0.1"} })
	accept(client)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(a.TLSConfig())))
	a.Register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	dial := func(name string, certs ...tls.Certificate) securityv1alpha1.IstioCertificateServiceClient {
		conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: a.root.Load().issuer.Pool(), ServerName: name, Certificates: certs,
		})))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return securityv1alpha1.NewIstioCertificateServiceClient(conn)
	}
	keyPEM, requestPEM, err := pki.NewRequest(web)
	if err != nil {
		t.Fatal(err)
	}
	in := &securityv1alpha1.IstioCertificateRequest{Csr: string(requestPEM), ValidityDuration: 3600}

	for _, name := range []string{"istiod.istio-system", "istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local", "127.0.0.1"} {
		if _, err := dial(name).CreateCertificate(t.Context(), in); status.Code(err) != codes.Unauthenticated {
			t.Fatalf("%s: a stranger got %v, want Unauthenticated", name, err)
		}
	}
	withToken := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+jwt("istio-ca", time.Now().Add(time.Hour), ""))
	out, err := dial("istiod.istio-system.svc").CreateCertificate(withToken, in)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(out.CertChain); n != 2 || out.CertChain[1] != string(a.RootPEM()) {
		t.Fatalf("a chain of %d, whose last is not the root", n)
	}
	if id, err := pki.CertificateIdentity(leafOf(t, out.CertChain)); err != nil || id != web {
		t.Errorf("identity %v, %v", id, err)
	}

	cert, err := tls.X509KeyPair([]byte(strings.Join(out.CertChain, "")), keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	again, err := dial("istiod.istio-system.svc", cert).CreateCertificate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := pki.CertificateIdentity(leafOf(t, again.CertChain)); err != nil || id != web {
		t.Errorf("renewed identity %v, %v", id, err)
	}

	other, _ := loaded(t, nil)
	foreign := workloadCert(t, other, web, time.Hour)
	if _, err := dial("istiod.istio-system.svc", foreign).CreateCertificate(t.Context(), in); err == nil {
		t.Error("a certificate of another root was taken")
	}
	plain, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := securityv1alpha1.NewIstioCertificateServiceClient(plain).CreateCertificate(withToken, in); err == nil {
		t.Error("a certificate was given in plain text")
	}
}

func TestWhoCalls(t *testing.T) {
	a, client := loaded(t, nil)
	accept(client)
	leaf := func(id pki.Identity) *x509.Certificate { return workloadCert(t, a, id, time.Hour).Leaf }
	serving, err := a.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	token := jwt("istio-ca", time.Now().Add(time.Hour), "")
	foreign := pki.Identity{TrustDomain: "elsewhere", Namespace: "shop", ServiceAccount: "web"}

	from := func(ctx context.Context, cluster string) context.Context {
		md, _ := metadata.FromIncomingContext(ctx)
		return metadata.NewIncomingContext(ctx, metadata.Join(md, metadata.Pairs("ClusterID", cluster)))
	}

	for name, c := range map[string]struct {
		ctx  context.Context
		want Caller
	}{
		"token of this cluster":          {from(call(t.Context(), nil, token), "Kubernetes"), Caller{Identity: web, PodName: "web-1", PodUID: "u-1", NodeName: "node-1"}},
		"token of a cluster not named":   {from(call(t.Context(), nil, token), ""), Caller{Identity: web, PodName: "web-1", PodUID: "u-1", NodeName: "node-1"}},
		"certificate of another cluster": {from(call(t.Context(), leaf(web), ""), "west"), Caller{Identity: web, ByCertificate: true}},
		"certificate":                    {call(t.Context(), leaf(web), ""), Caller{Identity: web, ByCertificate: true}},
		"token, with its pod":            {call(t.Context(), nil, token), Caller{Identity: web, PodName: "web-1", PodUID: "u-1", NodeName: "node-1"}},
		"certificate and token":          {call(t.Context(), leaf(web), token), Caller{Identity: web, ByCertificate: true}},
		"no workload's certificate but a token": {call(t.Context(), serving.Leaf, token),
			Caller{Identity: web, PodName: "web-1", PodUID: "u-1", NodeName: "node-1"}},
	} {
		if got, err := a.Caller(c.ctx); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
	for name, c := range map[string]struct {
		ctx  context.Context
		says string
	}{
		"token of another cluster":  {from(call(t.Context(), nil, token), "west"), `cluster "west" (metadata ClusterID, ISTIO_META_CLUSTER_ID of the sidecar), and this control plane knows only its own, "Kubernetes"`},
		"nothing":                   {call(t.Context(), nil, ""), "authorization: Bearer"},
		"no TLS":                    {t.Context(), "no connection"},
		"another trust domain":      {call(t.Context(), leaf(foreign), ""), `"elsewhere"`},
		"control plane's own":       {call(t.Context(), serving.Leaf, ""), "no workload's"},
		"not a JSON web token":      {call(t.Context(), nil, "secret"), "not a JSON web token"},
		"token of another audience": {call(t.Context(), nil, jwt("api", time.Now().Add(time.Hour), "")), `audience "api"; use a service account token of audience "istio-ca"`},
		"expired token":             {call(t.Context(), nil, jwt("istio-ca", time.Now().Add(-time.Hour), "")), "expired at"},
	} {
		_, err := a.Caller(c.ctx)
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want Unauthenticated that says %q", name, err, c.says)
		}
		if err != nil && strings.Contains(err.Error(), "c2ln") {
			t.Errorf("%s: the error shows the token", name)
		}
	}
}

func TestCertificateThatEndedDuringTheConnectionIsNoIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := loaded(t, nil)
		ctx := call(t.Context(), workloadCert(t, a, web, time.Hour).Leaf, "")
		if _, err := a.Authenticate(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + time.Second)
		if _, err := a.Authenticate(ctx); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired") {
			t.Errorf("%v", err)
		}
	})
}

func TestTokenIsReviewedOnceAndNotBelievedForTooLong(t *testing.T) {
	for name, c := range map[string]struct{ life, believed time.Duration }{
		"ten minutes":         {12 * time.Hour, acceptedFor},
		"never after its end": {2 * time.Minute, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, client := loaded(t, nil)
				asked := accept(client)
				ctx := call(t.Context(), nil, jwt("istio-ca", time.Now().Add(c.life), ""))
				for range 100 {
					if _, err := a.Authenticate(ctx); err != nil {
						t.Fatal(err)
					}
				}
				if *asked != 1 {
					t.Fatalf("the API server was asked %d times", *asked)
				}
				time.Sleep(c.believed + time.Second)
				_, _ = a.Authenticate(ctx)
				if *asked != 2 {
					t.Errorf("after %s the API server was asked %d times in all, want 2", c.believed, *asked)
				}
			})
		})
	}
}

func TestAReviewGoesWithItsPodAndAccount(t *testing.T) {
	for name, c := range map[string]struct {
		gone string
		asks int
	}{
		"its pod": {"u-1", 2}, "its account": {"a-1", 2}, "a watch had a gap": {"", 2}, "another pod": {"u-2", 1},
	} {
		a, client := loaded(t, nil)
		asked := accept(client)
		ctx := call(t.Context(), nil, jwt("istio-ca", time.Now().Add(time.Hour), ""))
		_, _ = a.Authenticate(ctx)
		a.Gone(c.gone)
		_, _ = a.Authenticate(ctx)
		if *asked != c.asks {
			t.Errorf("%s: the API server was asked %d times, want %d", name, *asked, c.asks)
		}
	}
	// The pod goes while its token is reviewed: the verdict is old when it comes.
	a, client := loaded(t, nil)
	asked := accept(client)
	client.PrependReactor("create", "tokenreviews", func(kubetesting.Action) (bool, runtime.Object, error) {
		a.Gone("u-1")
		return false, nil, nil
	})
	for range 2 {
		_, _ = a.Authenticate(call(t.Context(), nil, jwt("istio-ca", time.Now().Add(time.Hour), "")))
	}
	if *asked != 2 {
		t.Errorf("the review of a pod that went meanwhile is remembered: asked %d times, want 2", *asked)
	}
}

func TestManyCallersWithOneTokenAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, client := loaded(t, nil)
		asked := accept(client)
		client.PrependReactor("create", "tokenreviews", func(kubetesting.Action) (bool, runtime.Object, error) {
			time.Sleep(time.Second)
			return false, nil, nil
		})
		token := jwt("istio-ca", time.Now().Add(time.Hour), "")
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		errs := make(chan error, 11)
		go func() { _, err := a.Authenticate(call(impatient, nil, token)); errs <- err }()
		synctest.Wait()
		for range 10 {
			go func() { _, err := a.Authenticate(call(t.Context(), nil, token)); errs <- err }()
		}
		if err := <-errs; status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("the impatient caller got %v", err)
		}
		for range 10 {
			if err := <-errs; err != nil {
				t.Errorf("a caller suffers from another's deadline: %v", err)
			}
		}
		if *asked != 1 {
			t.Errorf("asked %d times", *asked)
		}
	})
}

func TestRefusedAndUncheckedTokensAreToldApart(t *testing.T) {
	a, client := loaded(t, nil)
	var answer authenticationv1.TokenReviewStatus
	var fails error
	asked := 0
	client.PrependReactor("create", "tokenreviews", func(kubetesting.Action) (bool, runtime.Object, error) {
		asked++
		return true, &authenticationv1.TokenReview{Status: answer}, fails
	})
	expires := time.Now().Add(time.Hour) // one for all: a token is the same only with the same end
	ask := func(seed string) error {
		_, err := a.Authenticate(call(t.Context(), nil, jwt("istio-ca", expires, seed)))
		return err
	}
	fails = errors.New("connection refused")
	for range 2 { // a failure is not remembered
		if err := ask("a"); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "try again") {
			t.Errorf("API server down: %v", err)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	fails, asked = nil, 0
	answer = authenticationv1.TokenReviewStatus{Error: "pod has been deleted"}
	for range 5 { // a refusal is
		if err := ask("a"); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "pod has been deleted") {
			t.Errorf("refused: %v", err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times about a refused token", asked)
	}
	user := authenticationv1.UserInfo{Username: "system:serviceaccount:shop:web"}
	answer = authenticationv1.TokenReviewStatus{Authenticated: true, User: user}
	if err := ask("b"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("an API server that has not checked the audience: %v", err)
	}
	answer = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"istio-ca"}, User: authenticationv1.UserInfo{Username: "alice"}}
	if err := ask("c"); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), `"alice"`) {
		t.Errorf("a user: %v", err)
	}
}

// TestTokensAreOfTheAuthoritysCluster: a cluster that is not called Kubernetes takes its own tokens and no other's.
func TestTokensAreOfTheAuthoritysCluster(t *testing.T) {
	a, client := loaded(t, func(c *Config) { c.ClusterID = "east" })
	asked := accept(client)
	for cluster, want := range map[string]codes.Code{"east": codes.OK, "Kubernetes": codes.Unauthenticated, "EAST": codes.Unauthenticated} {
		ctx := metadata.NewIncomingContext(call(t.Context(), nil, ""),
			metadata.Pairs("authorization", "Bearer "+jwt("istio-ca", time.Now().Add(time.Hour), cluster), "ClusterID", cluster))
		if _, err := a.Caller(ctx); status.Code(err) != want {
			t.Errorf("cluster %s: %v, want %v", cluster, err, want)
		}
	}
	if *asked != 1 {
		t.Errorf("the API server was asked %d times, want for its own token alone", *asked)
	}
}

func TestCreateCertificateRefuses(t *testing.T) {
	a, _ := loaded(t, nil)
	ctx := call(t.Context(), workloadCert(t, a, web, time.Hour).Leaf, "")
	meta := func(key string, v any) *structpb.Struct {
		s, err := structpb.NewStruct(map[string]any{key: v})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, c := range map[string]struct {
		in   *securityv1alpha1.IstioCertificateRequest
		code codes.Code
	}{
		"no request":        {&securityv1alpha1.IstioCertificateRequest{}, codes.InvalidArgument},
		"impersonation":     {&securityv1alpha1.IstioCertificateRequest{Csr: csr(t), Metadata: meta("ImpersonatedIdentity", "spiffe://x")}, codes.PermissionDenied},
		"hidden in a list":  {&securityv1alpha1.IstioCertificateRequest{Csr: csr(t), Metadata: meta("ImpersonatedIdentity", []any{"spiffe://x"})}, codes.PermissionDenied},
		"another signer":    {&securityv1alpha1.IstioCertificateRequest{Csr: csr(t), Metadata: meta("CertSigner", "x")}, codes.PermissionDenied},
		"as Istio's agents": {&securityv1alpha1.IstioCertificateRequest{Csr: csr(t), Metadata: meta("CertSigner", "")}, codes.OK},
	} {
		if _, err := a.service().CreateCertificate(ctx, c.in); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
}

func TestLifetimeThatIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := loaded(t, func(c *Config) { c.MaxWorkloadLifetime = 48 * time.Hour })
		ctx := call(t.Context(), workloadCert(t, a, web, time.Hour).Leaf, "")
		for name, c := range map[string]struct {
			seconds int64
			want    time.Duration
		}{
			"none":     {0, 24 * time.Hour},
			"negative": {-5, 24 * time.Hour},
			"an hour":  {3600, time.Hour},
			// by certificate no longer than the default, or a stolen one could make itself a long life
			"too long":  {90 * 24 * 3600, 24 * time.Hour},
			"overflows": {1<<63 - 1, 24 * time.Hour},
		} {
			out, err := a.service().CreateCertificate(ctx, &securityv1alpha1.IstioCertificateRequest{Csr: csr(t), ValidityDuration: c.seconds})
			if err != nil {
				t.Fatal(err)
			}
			if got := time.Until(leafOf(t, out.CertChain).NotAfter); got != c.want {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
		}
		for seconds, want := range map[int64]time.Duration{0: 24 * time.Hour, 3600: time.Hour, 90 * 24 * 3600: 48 * time.Hour, 1<<63 - 1: 48 * time.Hour} {
			if got := a.lifetime(seconds, Caller{}); got != want {
				t.Errorf("%d s by token: %s, want %s", seconds, got, want)
			}
		}
	})
}

func TestOneIdentityCannotAskForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := loaded(t, func(c *Config) { c.CertificatesPerSecond, c.CertificateBurst = 2, 5 })
		ask := func(id pki.Identity) codes.Code {
			_, err := a.service().CreateCertificate(call(t.Context(), workloadCert(t, a, id, time.Hour).Leaf, ""),
				&securityv1alpha1.IstioCertificateRequest{Csr: csr(t)})
			return status.Code(err)
		}
		var got []codes.Code
		for range 7 {
			got = append(got, ask(web))
		}
		ok, no := codes.OK, codes.ResourceExhausted
		if want := []codes.Code{ok, ok, ok, ok, ok, no, no}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if c := ask(pki.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "api"}); c != ok {
			t.Errorf("another identity suffers: %v", c)
		}
		time.Sleep(time.Second)
		if c := ask(web); c != ok {
			t.Errorf("a second later: %v", c)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	a, _ := loaded(b, manyOfOne)
	s := a.service()
	ctx := call(b.Context(), workloadCert(b, a, web, time.Hour).Leaf, "")
	in := &securityv1alpha1.IstioCertificateRequest{Csr: csr(b)}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.CreateCertificate(ctx, in); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}
