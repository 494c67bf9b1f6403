package ca

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/trust"
)

// says puts the word of another replica onto the board.
func (m *mesh) says(host string, at time.Time, report trust.ReplicaReport) {
	m.Helper()
	report.At = at.UTC()
	text := string(must(json.Marshal(report))(m))
	key := trust.ReplicaPrefix + host
	if err := m.a.patchBoard(m.Context(), map[string]*string{key: &text}); err != nil {
		m.Fatal(err)
	}
}

func (m *mesh) gate(name string) trust.Gate {
	m.Helper()
	s := m.status()
	n := slices.IndexFunc(s.Gates, func(g trust.Gate) bool { return g.Name == name })
	if n < 0 {
		m.Fatalf("no gate %s at %s", name, s.Stage)
	}
	return s.Gates[n]
}

// A replica that is killed says nothing. Its proxies have time to connect to others from its last word on, and no longer; and the
// processes that ended in a pod are not counted beside the one that runs there.
func TestAKilledReplicaHoldsTheStageForAMinuteAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.set(func() {
			m.proxies["a"] = trust.Proxy{Name: "shop/a", Roots: "01d"}
			m.asleep["a"] = true
		})
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod-x", Labels: map[string]string{"app": "istiod", ownerLabel: owner}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		must(m.client.CoreV1().Pods("istio-system").Create(t.Context(), pod, metav1.CreateOptions{}))(t)
		m.request("now")
		there := trust.ReplicaReport{Stage: trust.Distribute, Roots: m.status().Hash}
		for n, process := range []string{"aaaaaa", "bbbbbb", "cccccc"} { // it was killed twice
			m.says("istiod-x."+process, time.Now().Add(time.Duration(n)*time.Second), there)
		}
		m.says("gone.dddddd", time.Now(), there)
		m.pass(3 * time.Second)
		if g := m.gate(trust.ReplicasGate); g.Total-len(g.Waiting) != 3 || g.Total > 4 {
			t.Errorf("this one, a pod and another are counted as %+v", g)
		}
		last := time.Now()
		for range 6 { // the pod goes on, the other was killed
			m.pass(10 * time.Second)
			m.says("istiod-x.cccccc", time.Now(), there)
			// Up to 25 s its word stands: what has acknowledged goes on having it.
			if g := m.gate(trust.ReplicasGate); time.Since(last) > 28*time.Second && time.Since(last) < 45*time.Second && g.Open() {
				t.Errorf("the gate is open %s after the last word, while proxies may be on their way", time.Since(last))
			}
		}
		m.pass(2 * time.Second)
		if g := m.gate(trust.ReplicasGate); !g.Open() {
			t.Errorf("%s after the last word: %s, waiting for %s", time.Since(last), g, strings.Join(g.Waiting, ", "))
		}
	})
}
