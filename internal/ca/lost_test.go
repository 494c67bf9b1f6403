package ca

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kubetesting "k8s.io/client-go/testing"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// distribute is what package reconcile does in the control plane's own namespace.
func (m *mesh) distribute(roots []byte) {
	m.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootsConfigMap, Namespace: "istio-system"}, Data: map[string]string{rootsKey: string(roots)}}
	if _, err := m.client.CoreV1().ConfigMaps("istio-system").Update(m.Context(), cm, metav1.UpdateOptions{}); err != nil {
		must(m.client.CoreV1().ConfigMaps("istio-system").Create(m.Context(), cm, metav1.CreateOptions{}))(m)
	}
}

func (m *mesh) deleteSecret(name string) {
	m.Helper()
	if err := m.client.CoreV1().Secrets("istio-system").Delete(m.Context(), name, metav1.DeleteOptions{}); err != nil {
		m.Fatal(err)
	}
}

func (m *mesh) hasProblem(code diag.Code, says ...string) {
	m.Helper()
	for _, p := range m.status().Problems {
		if strings.Contains(p, string(code)) {
			for _, want := range says {
				if !strings.Contains(p, want) {
					m.Errorf("the problem %q does not say %q", p, want)
				}
			}
			return
		}
	}
	m.Errorf("ca status does not tell %s: %q", code, m.status().Problems)
}

// The Secret goes while nobody is alive, and its key with it. The former root must stay trusted as long as a sidecar shows a certificate
// of it; a process that ends in between changes nothing about that.
func TestALostRootStaysTrustedUntilNobodyShowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		old := m.a.RootPEM()
		m.distribute(append([]byte("garbage -----BEGIN\n"), old...))
		m.set(func() {
			m.proxies["a"] = trust.Proxy{Name: "shop/a", Roots: must(pki.BundleHash(old))(t), Root: "01d"}
			m.asleep["a"] = true
		})
		m.stop()
		m.deleteSecret(secretName)
		m.start()
		next := getSecret(t, m.client).Data[certKey]
		if bytes.Equal(next, old) {
			t.Fatal("the old root is there again")
		}
		m.pass(5 * time.Minute)
		m.at(trust.Sign, next, [][]byte{next, old}, "shop/a")
		m.hasProblem(diag.RootLost, "was lost while no control plane ran", "Secret/istio-system/istio-ca-secret")
		m.stop()
		m.start()
		m.pass(time.Minute)
		m.at(trust.Sign, next, [][]byte{next, old}, "shop/a")
		m.set(func() { m.asleep["a"] = false })
		m.pass(time.Minute)
		m.at(trust.Stable, next, [][]byte{next})
		if ps := m.status().Problems; len(ps) != 0 {
			t.Errorf("problems at the end: %q", ps)
		}
	})
}

// A process that ends between the record and the Secret is followed by one that makes no third root.
func TestALostRootIsMadeAnewOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		old := m.a.RootPEM()
		m.distribute(old)
		m.stop()
		m.deleteSecret(secretName)
		failing := true
		m.client.PrependReactor("create", "secrets", func(action kubetesting.Action) (bool, runtime.Object, error) {
			if s := action.(kubetesting.CreateAction).GetObject().(*corev1.Secret); failing && s.Name == secretName {
				return true, nil, apierrors.NewInternalError(errMeanwhile)
			}
			return false, nil, nil
		})
		m.start()
		m.pass(time.Minute)
		m.stop()
		failing = false
		secret := must(m.client.CoreV1().Secrets("istio-system").Get(t.Context(), rotationName, metav1.GetOptions{}))(t)
		m.start()
		if next := getSecret(t, m.client).Data[certKey]; !bytes.Equal(next, secret.Data[nextPrefix+certKey]) {
			t.Error("the root is not the one that was announced")
		}
	})
}

// The Secret goes in the middle of a change, while nobody is alive: the record has keys that everybody trusts.
func TestARootLostWhileItChangesIsPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		old := m.a.RootPEM()
		m.set(func() {
			m.proxies["a"] = trust.Proxy{Name: "shop/a", Roots: "01d"}
			m.asleep["a"] = true
		})
		m.request("now")
		m.pass(time.Minute)
		both := m.a.RootPEM()
		m.distribute(both)
		m.stop()
		m.deleteSecret(secretName)
		m.start()
		m.pass(time.Minute)
		if roots := m.a.RootPEM(); !bytes.HasPrefix(roots, old) {
			t.Error("another root signs than the one that everybody trusts")
		}
		m.set(func() { m.asleep["a"] = false })
		m.pass(5 * time.Minute)
		if s := m.status(); s.Stage != trust.Stable || len(s.Problems) != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The record of a change is garbled and the control plane starts again: every root that it had announced stays trusted, whatever key
// of the record is garbled; a person is told what to do, and doing that ends the change without forgetting a root.
func TestAGarbledRecordForgetsNoRoot(t *testing.T) {
	for _, stage := range []trust.Stage{trust.Distribute, trust.Sign} {
		for _, key := range []string{stageKey, sinceKey, toKey, toRootsKey, fromPrefix + certKey, fromPrefix + keyKey, fromPrefix + rootsKey, pairGone, allGone} {
			t.Run(string(stage)+" "+key, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { garbled(t, stage, key) })
			})
		}
	}
}

// Ways to garble a record that are not about one key.
const (
	pairGone = fromPrefix + "pair" // the former authority's certificate and key are taken out
	allGone  = "nothing is left"
)

func garbled(t *testing.T, stage trust.Stage, key string) {
	m := newMesh(t)
	m.set(func() {
		m.proxies["a"] = trust.Proxy{Name: "shop/a", Roots: "01d"}
		m.asleep["a"] = true
	})
	m.request("now")
	if stage == trust.Sign {
		hash := must(pki.BundleHash(m.a.RootPEM()))(t)
		m.set(func() { m.proxies["a"] = trust.Proxy{Name: "shop/a", Roots: hash, Root: "01d"} })
	}
	m.pass(time.Minute)
	both := must(pki.BundleHash(m.a.RootPEM()))(t)
	m.stop()
	secrets := m.client.CoreV1().Secrets("istio-system")
	record := must(secrets.Get(t.Context(), rotationName, metav1.GetOptions{}))(t).DeepCopy()
	if got := string(record.Data[stageKey]); got != string(stage) {
		t.Fatalf("stage %s", got)
	}
	switch key {
	case toKey:
		record.Data[key] = nil
	case pairGone:
		delete(record.Data, fromPrefix+certKey)
		delete(record.Data, fromPrefix+keyKey)
	case allGone:
		record.Data = nil
		m.distribute(m.a.RootPEM())
	default:
		record.Data[key] = []byte("garbage")
	}
	must(secrets.Update(t.Context(), record, metav1.UpdateOptions{}))(t)
	m.start()
	m.pass(5 * time.Minute)
	trusts := func() {
		t.Helper()
		if hash := must(pki.BundleHash(m.a.RootPEM()))(t); hash != both {
			t.Errorf("the roots are not those that were announced: %d certificates", bytes.Count(m.a.RootPEM(), []byte("BEGIN")))
		}
	}
	trusts()
	words := []string{strings.Split(key, "-")[0], "stays trusted: root CN=Selvage root"}
	if key == allGone { // what is trusted is known from elsewhere
		words = []string{stageKey, toKey}
	}
	m.hasProblem(diag.InvalidRoot, append(words, "kubectl -n istio-system delete secret selvage-root-rotation")...)
	kept := must(secrets.Get(t.Context(), rotationName, metav1.GetOptions{}))(t)
	if !bytes.Equal(kept.Data[fromPrefix+keyKey], record.Data[fromPrefix+keyKey]) {
		t.Error("the record was written over")
	}

	m.deleteSecret(rotationName)
	m.pass(time.Minute)
	trusts()
	m.set(func() { m.asleep["a"] = false })
	m.pass(10 * time.Minute)
	if s := m.status(); s.Stage != trust.Stable || len(s.Problems) != 0 || len(s.Roots) != 1 {
		t.Errorf("after what the hint says: %+v", s)
	}
}

var errMeanwhile = apierrors.NewServiceUnavailable("meanwhile")

// Rights that are given back have no event.
func TestRightsGivenBackAreNoticedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.stop()
		forbidden := true
		m.client.PrependReactor("get", "secrets", func(kubetesting.Action) (bool, runtime.Object, error) {
			return forbidden, nil, apierrors.NewForbidden(secrets, secretName, nil)
		})
		m.start()
		m.pass(10 * time.Minute)
		if m.a.Ready() == nil {
			t.Fatal("ready without a right to the root")
		}
		forbidden = false
		m.pass(2 * time.Second)
		if err := m.a.Ready(); err != nil {
			t.Errorf("2 s after the right was given back: %v", err)
		}
	})
}
