package ca

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// mesh is a control plane of one replica at a fake API server, whose namespaces, webhooks and proxies do what the test says.
type mesh struct {
	*testing.T
	client *fake.Clientset
	a      *Authority
	stop   func()

	mu      sync.Mutex
	behind  []string // namespaces that have not got the roots
	proxies map[string]trust.Proxy
	asleep  map[string]bool // proxies that take no notice
}

func newMesh(t *testing.T) *mesh {
	m := &mesh{T: t, client: versioned(fake.NewClientset(rootSecret(t, time.Now().Add(-time.Hour)))), proxies: map[string]trust.Proxy{}, asleep: map[string]bool{}}
	m.start()
	return m
}

// start begins a process of the control plane; it remembers nothing of the one before.
func (m *mesh) start() {
	m.a = newAuthority(m, m.client, nil)
	rotation, err := NewRotation(RotationConfig{Authority: m.a, Namespaces: func() trust.Count {
		m.mu.Lock()
		defer m.mu.Unlock()
		return trust.Counted(3, slices.Clone(m.behind))
	}})
	if err != nil {
		m.Fatal(err)
	}
	reporter, err := NewReporter(ReporterConfig{Authority: m.a, Replica: "host", Proxies: m.connected})
	if err != nil {
		m.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.Context())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{m.a.Run, rotation.Run, reporter.Run} {
		running.Go(func() { _ = run(ctx) })
	}
	var once sync.Once
	m.stop = func() { once.Do(func() { cancel(); running.Wait() }) }
	m.Cleanup(func() { m.stop() })
	m.pass(time.Second)
}

// connected lets proxies that are awake take the roots, and a certificate when it is one of the first root.
func (m *mesh) connected() []trust.Proxy {
	m.mu.Lock()
	defer m.mu.Unlock()
	roots := m.a.RootPEM()
	hash, _ := pki.BundleHash(roots)
	certs, _ := pki.ParseCertificates(roots)
	for name, p := range m.proxies {
		if !m.asleep[name] {
			p.Roots, p.Root = hash, pki.Fingerprint(certs[0])
			m.proxies[name] = p
		}
	}
	return slices.Collect(maps.Values(m.proxies))
}

func (m *mesh) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (m *mesh) set(do func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do()
}

func (m *mesh) request(value string) {
	m.Helper()
	s := getSecret(m.T, m.client).DeepCopy()
	s.Annotations = map[string]string{trust.RequestAnnotation: value}
	must(m.client.CoreV1().Secrets("istio-system").Update(m.Context(), s, metav1.UpdateOptions{}))(m)
	m.pass(2 * time.Second)
}

func (m *mesh) status() (s trust.Status) {
	m.Helper()
	cm := must(m.client.CoreV1().ConfigMaps("istio-system").Get(m.Context(), trust.StatusObject, metav1.GetOptions{}))(m)
	if err := json.Unmarshal([]byte(cm.Data[trust.StatusKey]), &s); err != nil {
		m.Fatal(err)
	}
	return s
}

// at checks the stage, which root signs, which are trusted, and what is waited for.
func (m *mesh) at(stage trust.Stage, signs []byte, trusted [][]byte, waiting ...string) {
	m.Helper()
	s := m.status()
	var names []string
	for _, g := range s.Gates {
		if !g.Open() {
			names = append(names, g.Waiting...)
		}
	}
	roots := m.a.RootPEM()
	if s.Stage != stage || !slices.Equal(names, waiting) {
		m.Fatalf("stage %s waits for %v, want %s and %v", s.Stage, names, stage, waiting)
	}
	certs, _ := pki.ParseCertificates(signs)
	leaf := workloadCert(m, m.a, web, time.Hour)
	if !bytes.HasPrefix(roots, signs) || len(roots) != len(bytes.Join(trusted, nil)) || leaf.Leaf.CheckSignatureFrom(certs[0]) != nil {
		m.Errorf("stage %s: another root signs or is trusted", stage)
	}
	for _, root := range trusted {
		if !bytes.Contains(roots, root) {
			m.Errorf("stage %s: a root is not trusted", stage)
		}
	}
}

func (m *mesh) hook(bundle []byte) {
	m.Helper()
	hooks := m.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	c := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector"},
		Webhooks: []admissionv1.MutatingWebhook{{Name: "x", ClientConfig: admissionv1.WebhookClientConfig{CABundle: bundle}}}}
	if _, err := hooks.Update(m.Context(), c, metav1.UpdateOptions{}); err != nil {
		must(hooks.Create(m.Context(), c, metav1.CreateOptions{}))(m)
	}
}

func must[V any](value V, err error) func(testing.TB) V {
	return func(t testing.TB) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func TestARootChangesInStagesAndEachGateHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		old := m.a.RootPEM()
		m.hook(old)
		m.set(func() {
			m.proxies["a"], m.proxies["b"] = trust.Proxy{Name: "shop/a"}, trust.Proxy{Name: "shop/b", Roots: "01d"}
			m.asleep["b"] = true
		})
		m.at(trust.Stable, old, [][]byte{old})

		m.set(func() { m.behind = []string{"shop"} })
		m.request("now")
		m.pass(10 * time.Second)
		both := m.a.RootPEM()
		next := bytes.TrimPrefix(both, old)
		long := func() { m.pass(11 * time.Minute) } // gates that are closed stay so
		m.at(trust.Distribute, old, [][]byte{old, next}, "shop", "mutating/istio-sidecar-injector", "shop/b")
		m.set(func() { m.behind = nil })
		long()
		m.at(trust.Distribute, old, [][]byte{old, next}, "mutating/istio-sidecar-injector", "shop/b")
		m.hook(append(bytes.Clone(next), old...)) // in another order: the same roots
		m.set(func() { m.asleep["b"], m.proxies["b"] = true, trust.Proxy{Name: "shop/b", Roots: "01d"} })
		long()
		m.at(trust.Distribute, old, [][]byte{old, next}, "shop/b")

		hash := must(pki.BundleHash(both))(t)
		m.set(func() { m.proxies["b"] = trust.Proxy{Name: "shop/b", Roots: hash, Root: "01d"} })
		long()
		m.at(trust.Sign, next, [][]byte{next, old}, "shop/b") // trusts both, and shows a certificate of the old one
		m.set(func() { m.asleep["b"] = false })
		m.pass(20 * time.Second)
		m.at(trust.Retire, next, [][]byte{next}, "mutating/istio-sidecar-injector")
		m.hook(next)
		m.pass(20 * time.Second)
		m.at(trust.Stable, next, [][]byte{next})

		if _, err := m.client.CoreV1().Secrets("istio-system").Get(t.Context(), rotationName, metav1.GetOptions{}); err == nil {
			t.Error("the former key is still stored")
		}
		s := getSecret(t, m.client)
		if s.Annotations[trust.RequestAnnotation] != "" || !bytes.Equal(s.Data[certKey], next) {
			t.Error("the request was not carried out, or is still there")
		}
		cm := must(m.client.CoreV1().ConfigMaps("istio-system").Get(t.Context(), trust.StatusObject, metav1.GetOptions{}))(t)
		if len(cm.Data) != 1 {
			t.Errorf("%d keys are left in the ConfigMap", len(cm.Data))
		}
		before := writes(m.client)
		m.pass(24 * time.Hour)
		if n := writes(m.client) - before; n != 0 {
			t.Errorf("%d writes in a day of rest", n)
		}
	})
}

// A process that ends between any two steps is followed by one that knows nothing and goes on.
func TestAChangeGoesOnAfterAnyEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		old := m.a.RootPEM()
		m.set(func() { m.proxies["a"] = trust.Proxy{Name: "shop/a"} })
		s := getSecret(t, m.client).DeepCopy()
		s.Annotations = map[string]string{trust.RequestAnnotation: "now"}
		must(m.client.CoreV1().Secrets("istio-system").Update(t.Context(), s, metav1.UpdateOptions{}))(t)
		deadline := time.Now().Add(time.Hour)
		for life := 100 * time.Millisecond; ; life += life / 4 {
			m.pass(life)
			m.stop()
			m.start()
			if _, err := m.client.CoreV1().Secrets("istio-system").Get(t.Context(), rotationName, metav1.GetOptions{}); err != nil && !bytes.Contains(m.a.RootPEM(), old) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("it does not come to an end: %+v", m.status())
			}
		}
		if next := getSecret(t, m.client).Data[certKey]; !bytes.Equal(next, m.a.RootPEM()) || bytes.Equal(next, old) {
			t.Error("the root is not the new one")
		}
	})
}

// The proxies of a replica that ends are nowhere for a moment: nobody may take their silence for consent.
func TestAStageWaitsForProxiesThatChangeReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.set(func() {
			m.proxies["a"] = trust.Proxy{Name: "shop/a", Roots: "01d"}
			m.asleep["a"] = true
		})
		m.request("now")
		m.set(func() { delete(m.proxies, "a") })
		m.stop()
		m.start()
		m.pass(30 * time.Second)
		s := m.status()
		if s.Stage != trust.Distribute {
			t.Fatalf("stage %s while a proxy that has not got the root is on its way", s.Stage)
		}
		m.set(func() { m.proxies["a"] = trust.Proxy{Name: "shop/a", Roots: "01d"} })
		m.pass(5 * time.Minute)
		if s := m.status(); s.Stage != trust.Distribute {
			t.Errorf("stage %s", s.Stage)
		}
		m.set(func() { m.asleep["a"] = false })
		m.pass(5 * time.Minute)
		if s := m.status(); s.Stage != trust.Stable {
			t.Errorf("stage %s", s.Stage)
		}
	})
}

func TestAChangeIsTakenBack(t *testing.T) {
	for _, stage := range []trust.Stage{trust.Distribute, trust.Sign} {
		t.Run(string(stage), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t)
				old := m.a.RootPEM()
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
				if got := m.status().Stage; got != stage {
					t.Fatalf("stage %s", got)
				}
				m.request(trust.UndoRequest)
				m.set(func() { m.asleep["a"] = false })
				m.pass(5 * time.Minute)
				m.at(trust.Stable, old, [][]byte{old})
			})
		})
	}
}

func TestARootNearItsEndIsChangedUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versioned(fake.NewClientset(rootSecret(t, time.Now().Add(-pki.RootLifetime/100*91))))
		m := &mesh{T: t, client: client, proxies: map[string]trust.Proxy{}, asleep: map[string]bool{}}
		m.start()
		m.pass(time.Minute)
		if s := m.status(); s.Stage != trust.Stable || len(s.Problems) != 0 || time.Until(s.Roots[0].NotAfter) < pki.RootLifetime/2 {
			t.Errorf("%+v", s)
		}
	})
}

func TestARunningReplicaThatIsSilentHoldsTheStage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod-x", Labels: map[string]string{"app": "istiod", ownerLabel: owner}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		must(m.client.CoreV1().Pods("istio-system").Create(t.Context(), pod, metav1.CreateOptions{}))(t)
		m.request("now")
		m.pass(5 * time.Minute)
		s := m.status()
		if s.Stage != trust.Distribute || !slices.ContainsFunc(s.Gates, func(g trust.Gate) bool {
			return g.Name == trust.ReplicasGate && slices.Equal(g.Waiting, []string{"istiod-x"})
		}) {
			t.Fatalf("%+v", s)
		}
		if err := m.client.CoreV1().Pods("istio-system").Delete(t.Context(), "istiod-x", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		m.pass(time.Minute)
		if got := m.status().Stage; got != trust.Stable {
			t.Errorf("stage %s", got)
		}
	})
}

// TestWithoutAUsableRootTheOldStatusGoes: what is shown is the word of a process that runs. The one before had the root in its memory,
// and its advice to let that be written again would take the key away from the one after it, which has nothing.
func TestWithoutAUsableRootTheOldStatusGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		s := getSecret(t, m.client).DeepCopy()
		s.Data[certKey] = []byte("x")
		must(m.client.CoreV1().Secrets("istio-system").Update(t.Context(), s, metav1.UpdateOptions{}))(t)
		m.pass(15 * time.Minute)
		if got := m.status(); got.Signing.Subject == "" || len(got.Problems) != 1 || !strings.Contains(got.Problems[0], "the root in memory be written again") {
			t.Errorf("of a root in memory: %+v", got)
		}
		m.stop()
		m.start()
		m.pass(time.Minute)
		if got := m.status(); got.Signing.Subject != "" || len(got.Problems) != 1 || !strings.Contains(got.Problems[0], "put a backup back") {
			t.Errorf("of none: %+v", got)
		}
	})
}

func TestAPluggedAuthorityTakesOverInStagesAndABadOneNever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		old := m.a.RootPEM()
		m.set(func() { m.proxies["a"] = trust.Proxy{Name: "shop/a"} })
		plugged := rootSecret(t, time.Now())
		secrets := m.client.CoreV1().Secrets("istio-system")
		next := plugged.Data[certKey]
		put := func(data map[string][]byte) {
			t.Helper()
			s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: pluggedName}, Data: data}
			if _, err := secrets.Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
				must(secrets.Create(t.Context(), s, metav1.CreateOptions{}))(t)
			}
			m.pass(time.Minute)
		}
		put(map[string][]byte{certKey: next})
		m.at(trust.Stable, old, [][]byte{old})
		if ps := m.a.Problems(); len(ps) != 1 || !strings.Contains(ps[0].String(), "Secret/istio-system/cacerts data[ca-key.pem]: the key ca-key.pem is missing") {
			t.Errorf("problems %v", ps)
		}
		good := map[string][]byte{certKey: next, keyKey: plugged.Data[keyKey], rootsKey: next}
		put(good)
		m.at(trust.Stable, next, [][]byte{next})
		for name, bad := range map[string]map[string][]byte{
			"empty": nil, "no roots": {certKey: next, keyKey: plugged.Data[keyKey]},
			"another's key": {certKey: next, keyKey: getSecret(t, m.client).Data[keyKey], rootsKey: next},
			"garbage":       {certKey: []byte("x"), keyKey: []byte("y"), rootsKey: []byte("z")},
		} {
			put(bad)
			m.at(trust.Stable, next, [][]byte{next})
			if len(m.a.Problems()) != 1 {
				t.Errorf("%s: problems %v", name, m.a.Problems())
			}
		}
		if err := secrets.Delete(t.Context(), pluggedName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		m.pass(time.Hour)
		m.at(trust.Stable, next, [][]byte{next})
		put(good)
		if ps := m.a.Problems(); len(ps) != 0 {
			t.Errorf("problems after the mend: %v", ps)
		}
	})
}
