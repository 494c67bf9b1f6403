package ca

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
)

var secrets = schema.GroupResource{Resource: "secrets"}

func getSecret(t *testing.T, client *fake.Clientset) *corev1.Secret {
	t.Helper()
	s, err := client.CoreV1().Secrets("istio-system").Get(t.Context(), secretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRootIsCreatedOnceAndSharedByReplicas(t *testing.T) {
	a, client := loaded(t, nil)
	s := getSecret(t, client)
	if !bytes.Equal(s.Data["ca-cert.pem"], a.RootPEM()) || len(s.Data["ca-key.pem"]) == 0 {
		t.Error("the Secret does not hold the root")
	}
	b := newAuthority(t, client, nil)
	if p := b.sync(t.Context()); p != nil {
		t.Fatal(p)
	}
	if !bytes.Equal(a.RootPEM(), b.RootPEM()) {
		t.Error("two replicas have two roots")
	}
	if n := writes(client); n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
}

func TestReplicaThatLosesTheRaceTakesTheWinnersRoot(t *testing.T) {
	client := fake.NewClientset()
	winner := rootSecret(t, time.Now())
	client.PrependReactor("create", "secrets", func(kubetesting.Action) (bool, runtime.Object, error) {
		_ = client.Tracker().Add(winner)
		return true, nil, apierrors.NewAlreadyExists(secrets, secretName)
	})
	a := newAuthority(t, client, nil)
	if p := a.sync(t.Context()); p != nil {
		t.Fatal(p)
	}
	if !bytes.Equal(a.RootPEM(), winner.Data[certKey]) {
		t.Error("the loser kept a root of its own")
	}
}

func TestBrokenSecretIsNamedAndNeverOverwritten(t *testing.T) {
	good, other, expired := rootSecret(t, time.Now()), rootSecret(t, time.Now()), rootSecret(t, time.Now().Add(-11*365*24*time.Hour))
	for name, c := range map[string]struct {
		data map[string][]byte
		says string
	}{
		"empty":         {nil, "ca-cert.pem is missing"},
		"no key":        {map[string][]byte{certKey: good.Data[certKey]}, "ca-key.pem is missing"},
		"garbage":       {map[string][]byte{certKey: []byte("x"), keyKey: []byte("y")}, "not PEM"},
		"another's key": {map[string][]byte{certKey: good.Data[certKey], keyKey: other.Data[keyKey]}, "not the certificate's key"},
		"expired":       {expired.Data, "expired at"},
	} {
		t.Run(name, func(t *testing.T) {
			s := good.DeepCopy()
			s.Data = c.data
			client := fake.NewClientset(s)
			a := newAuthority(t, client, nil)
			p := a.sync(t.Context())
			if p == nil || p.Code != diag.InvalidRoot || p.Object.String() != "Secret/istio-system/istio-ca-secret" || !strings.Contains(p.Detail, c.says) {
				t.Fatalf("problem %v, want one that says %q", p, c.says)
			}
			if !strings.Contains(p.Hint, "kubectl -n istio-system delete secret istio-ca-secret") {
				t.Errorf("hint %q", p.Hint)
			}
			if n := writes(client); n != 0 {
				t.Errorf("%d writes to a Secret that somebody must look at", n)
			}
			if a.Ready() == nil || a.RootPEM() != nil {
				t.Error("ready without a root")
			}
		})
	}
}

func TestProblemsSayWhoMustDoWhat(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		says string
	}{
		"forbidden":   {apierrors.NewForbidden(secrets, secretName, errors.New("no")), "let the control plane get, list, watch, create and update Secrets"},
		"unreachable": {errors.New("connection refused"), "tried again"},
	} {
		client := fake.NewClientset()
		client.PrependReactor("get", "secrets", func(kubetesting.Action) (bool, runtime.Object, error) { return true, nil, c.err })
		if p := newAuthority(t, client, nil).sync(t.Context()); p == nil || p.Code != diag.SourceUnavailable || !strings.Contains(p.String(), c.says) {
			t.Errorf("%s: %v", name, p)
		}
	}
}

// run starts a.Run in a synctest bubble.
func run(t *testing.T, a *Authority) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
}

func TestReplacedSecretIsTrustedBeforeItSigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		former := rootSecret(t, time.Now())
		client := versioned(fake.NewClientset(former))
		a := newAuthority(t, client, nil)
		run(t, a)
		before, changed := a.Roots()
		if before == nil || a.Ready() != nil {
			t.Fatalf("not ready: %v", a.Ready())
		}
		next := rootSecret(t, time.Now().Add(time.Second))
		if _, err := client.CoreV1().Secrets("istio-system").Update(t.Context(), next, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		<-changed
		synctest.Wait()
		if !bytes.Equal(a.RootPEM(), append(bytes.Clone(former.Data[certKey]), next.Data[certKey]...)) {
			t.Error("the new root is not trusted beside the former one")
		}
		serving, err := a.GetCertificate(nil)
		if err != nil || !bytes.Equal(serving.Leaf.RawIssuer, a.root.Load().issuer.Certificate().RawSubject) ||
			!bytes.Equal(pki.EncodeCertificate(a.root.Load().issuer.Certificate()), former.Data[certKey]) {
			t.Errorf("it signs before anybody has heard of it (%v)", err)
		}
	})
}

func TestSecretBrokenLaterDoesNotStopTheAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := rootSecret(t, time.Now())
		client := fake.NewClientset(good)
		a := newAuthority(t, client, nil)
		run(t, a)
		bad := good.DeepCopy()
		bad.Data[certKey] = []byte("garbage")
		if _, err := client.CoreV1().Secrets("istio-system").Update(t.Context(), bad, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if a.Ready() != nil || !bytes.Equal(a.RootPEM(), good.Data[certKey]) {
			t.Error("a working root was dropped")
		}
		if ps := a.Problems(); len(ps) != 1 || ps[0].Code != diag.InvalidRoot {
			t.Errorf("problems %v", ps)
		}
		if _, err := client.CoreV1().Secrets("istio-system").Update(t.Context(), good, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if ps := a.Problems(); len(ps) != 0 {
			t.Errorf("problems after the mend: %v", ps)
		}
	})
}

func TestDeletedSecretIsPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		a := newAuthority(t, client, nil)
		run(t, a)
		before := a.RootPEM()
		if err := client.CoreV1().Secrets("istio-system").Delete(t.Context(), secretName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := getSecret(t, client); !bytes.Equal(s.Data[certKey], before) {
			t.Error("the mesh lost its root")
		}
	})
}

func TestRunWaitsForAnAPIServerThatComesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var up atomic.Bool
		client.PrependReactor("get", "secrets", func(kubetesting.Action) (bool, runtime.Object, error) {
			return !up.Load(), nil, errors.New("connection refused")
		})
		a := newAuthority(t, client, nil)
		run(t, a)
		if err := a.Ready(); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Fatalf("Ready: %v", err)
		}
		if _, err := a.GetCertificate(nil); err == nil {
			t.Error("a certificate without a root")
		}
		up.Store(true)
		time.Sleep(30 * time.Second) // the longest pause between two tries
		synctest.Wait()
		if err := a.Ready(); err != nil {
			t.Error(err)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no client":           func(c *Config) { c.Kubernetes = nil },
		"no trust domain":     func(c *Config) { c.TrustDomain = "" },
		"trust domain in URL": func(c *Config) { c.TrustDomain = "spiffe://cluster.local" },
		"lifetimes":           func(c *Config) { c.MaxWorkloadLifetime = time.Minute },
	} {
		config := Config{Kubernetes: fake.NewClientset(), TrustDomain: "cluster.local", Log: newAuthority(t, fake.NewClientset(), nil).log}
		change(&config)
		if _, err := New(config); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
