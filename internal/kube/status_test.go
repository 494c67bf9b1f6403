package kube_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/selvage-mesh/selvage/internal/kube"
)

// statusTest is a Status, the cluster it writes to, and how often it did.
type statusTest struct {
	*testing.T
	client *fake.Clientset
	status *kube.Status
	writes atomic.Int32
}

func newStatusTest(t *testing.T, objects ...runtime.Object) *statusTest {
	t.Helper()
	s := &statusTest{T: t, client: fake.NewClientset(objects...)}
	s.client.PrependReactor("patch", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		s.writes.Add(1)
		return false, nil, nil
	})
	var err error
	s.status, err = kube.NewStatus(kube.StatusConfig{Kubernetes: s.client, Namespace: "istio-system", Name: "selvage-status", Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lead runs it until the returned function is called.
func (s *statusTest) lead() (end func()) {
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- s.status.Run(ctx) }()
	return func() {
		s.Helper()
		cancel()
		if err := <-done; err != nil {
			s.Errorf("Run: %v", err)
		}
	}
}

// has waits a minute and compares what the ConfigMap holds.
func (s *statusTest) has(want map[string]string, writes int32) {
	s.Helper()
	time.Sleep(time.Minute)
	synctest.Wait()
	cm, err := s.client.CoreV1().ConfigMaps("istio-system").Get(s.Context(), "selvage-status", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	if len(cm.Data) != len(want) || cm.Labels["a"] != "b" {
		s.Errorf("it holds %q with labels %v; want %q", cm.Data, cm.Labels, want)
	}
	for key, text := range want {
		if cm.Data[key] != text {
			s.Errorf("it holds %q; want %q", cm.Data, want)
		}
	}
	if got := s.writes.Swap(0); got != writes {
		s.Errorf("written %d times; want %d", got, writes)
	}
}

func existing(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "selvage-status", Labels: map[string]string{"a": "b"}}, Data: data}
}

// TestStatusIsWrittenWhenItChanges and not before or after: setting the same again, and a new leader, write nothing.
func TestStatusIsWrittenWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStatusTest(t)
		end := s.lead()
		s.status.Set("one", "1")
		s.status.Set("two", "2")
		s.has(map[string]string{"one": "1", "two": "2"}, 1)
		s.status.Set("one", "1")
		s.has(map[string]string{"one": "1", "two": "2"}, 0)
		s.status.Set("two", "")
		s.has(map[string]string{"one": "1"}, 1)
		end()

		end = s.lead() // the next leader knows what the last one wrote, and leaves it until it knows better
		if got := s.status.Get(t.Context(), "one"); got != "1" {
			t.Errorf("the next leader reads %q", got)
		}
		s.has(map[string]string{"one": "1"}, 0)
		s.status.Set("one", "9")
		s.has(map[string]string{"one": "9"}, 1)
		end()
	})
}

// TestStatusComesBack after somebody has changed or removed it.
func TestStatusComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStatusTest(t, existing(map[string]string{"old": "0"}))
		end := s.lead()
		defer end()
		s.status.Set("one", "1")
		s.has(map[string]string{"old": "0", "one": "1"}, 1)
		maps := s.client.CoreV1().ConfigMaps("istio-system")
		if _, err := maps.Update(t.Context(), existing(map[string]string{"one": "edited"}), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		s.has(map[string]string{"one": "1"}, 1)
		if err := maps.Delete(t.Context(), "selvage-status", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		s.has(map[string]string{"one": "1"}, 1)
	})
}
