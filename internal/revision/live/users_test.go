package live_test

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/revision/live"
)

// TestUsersAreToldAtOnce: who comes, moves and goes wakes the count, and a status that changes does not.
func TestUsersAreToldAtOnce(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{"security.istio.io/tlsMode": "istio"},
		Annotations: map[string]string{"sidecar.istio.io/status": "{}", "istio.io/rev": "one"}}}
	client := fake.NewClientset(pod)
	users := live.NewUsers(client)
	if err := users.Add(&revision.Facts{}); err == nil {
		t.Error("users are known before anybody has read them")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- users.Run(ctx) }()
	until := func(want string) {
		t.Helper()
		last := ""
		for {
			f := &revision.Facts{}
			if err := users.Add(f); err == nil {
				if last = fmt.Sprint(f.Namespaces, f.Pods); last == want {
					return
				}
			}
			select {
			case <-users.Changed():
			case <-t.Context().Done():
				t.Fatalf("the users are %s, want %s", last, want)
			}
		}
	}
	until("[] [{shop web one}]")
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"istio.io/rev": "one"}}}
	spaces := client.CoreV1().Namespaces()
	if _, err := spaces.Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("[{shop  one}] [{shop web one}]")
	pod.Status.PodIP = "10.0.0.1"
	if _, err := client.CoreV1().Pods("shop").Update(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Annotations["istio.io/rev"] = "two"
	if _, err := client.CoreV1().Pods("shop").Update(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("[{shop  one}] [{shop web two}]")
	ns.Labels = nil
	if _, err := spaces.Update(ctx, ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().Pods("shop").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("[] []")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := users.Add(&revision.Facts{}); err == nil {
		t.Error("what was known is kept when nobody watches")
	}
}
