package ca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/selvage-mesh/selvage/internal/pki"
)

var web = pki.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

func newAuthority(t testing.TB, client kubernetes.Interface, change func(*Config)) *Authority {
	t.Helper()
	config := Config{Kubernetes: client, TrustDomain: "cluster.local", Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&config)
	}
	a, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// loaded is an authority that has made its root at a clientset without objects.
func loaded(t testing.TB, change func(*Config)) (*Authority, *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset()
	a := newAuthority(t, client, change)
	if p := a.sync(t.Context()); p != nil {
		t.Fatal(p)
	}
	return a, client
}

func rootSecret(t testing.TB, now time.Time) *corev1.Secret {
	t.Helper()
	issuer, err := pki.NewRoot("cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := issuer.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: secretName},
		Data:       map[string][]byte{certKey: certPEM, keyKey: keyPEM},
	}
}

// workloadCert is a certificate of id from a's root, as a workload would hold it.
func workloadCert(t testing.TB, a *Authority, id pki.Identity, lifetime time.Duration) tls.Certificate {
	t.Helper()
	keyPEM, requestPEM, err := pki.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	request, err := pki.ParseRequest(requestPEM)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.root.Load().issuer.SignWorkload(request, id, lifetime, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair([]byte(strings.Join([]string{string(chain[0]), string(chain[1])}, "")), keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// call is the context of a gRPC call over TLS, from a client with the given verified certificate (nil: none) and token ("": none).
func call(ctx context.Context, cert *x509.Certificate, token string) context.Context {
	var state tls.ConnectionState
	if cert != nil {
		state.VerifiedChains = [][]*x509.Certificate{{cert}}
	}
	ctx = peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}})
	if token != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+token))
	}
	return ctx
}

// jwt is an unsigned token with the given audience and end; seed makes it differ from others.
func jwt(audience string, expires time.Time, seed string) string {
	return jwtFor([]string{audience}, expires, seed)
}

func jwtFor(audience []string, expires time.Time, seed string) string {
	payload, _ := json.Marshal(map[string]any{"aud": audience, "exp": expires.Unix(), "jti": seed})
	return "e30." + base64.RawURLEncoding.EncodeToString(payload) + ".c2ln"
}

// writes counts the calls of a fake clientset that change something.
func writes(client *fake.Clientset) (n int) {
	for _, action := range client.Actions() {
		switch action.GetVerb() {
		case "create", "update", "patch", "delete":
			n++
		}
	}
	return n
}

// versioned makes a fake clientset keep resourceVersions of Secrets and refuse an update of an older one, as the API server does.
func versioned(client *fake.Clientset) *fake.Clientset {
	var last atomic.Int64
	client.PrependReactor("create", "secrets", func(action kubetesting.Action) (bool, runtime.Object, error) {
		action.(kubetesting.CreateAction).GetObject().(*corev1.Secret).ResourceVersion = strconv.FormatInt(last.Add(1), 10)
		return false, nil, nil
	})
	client.PrependReactor("update", "secrets", func(action kubetesting.Action) (bool, runtime.Object, error) {
		s := action.(kubetesting.UpdateAction).GetObject().(*corev1.Secret)
		now, err := client.Tracker().Get(corev1.SchemeGroupVersion.WithResource("secrets"), s.Namespace, s.Name)
		if err == nil && s.ResourceVersion != "" && now.(*corev1.Secret).ResourceVersion != s.ResourceVersion {
			return true, nil, apierrors.NewConflict(corev1.Resource("secrets"), s.Name, errors.New("it is older"))
		}
		s.ResourceVersion = strconv.FormatInt(last.Add(1), 10)
		return false, nil, nil
	})
	return client
}
