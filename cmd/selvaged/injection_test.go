package main

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// clusterOf is the cluster that the sidecar of a pod says it is of.
func clusterOf(t *testing.T, c *inject.Config) string {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "shop"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}},
	}
	injected, _, err := inject.Pod(pod, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, container := range append(injected.Spec.InitContainers, injected.Spec.Containers...) {
		for _, e := range container.Env {
			if e.Name == "ISTIO_META_CLUSTER_ID" {
				return e.Value
			}
		}
	}
	t.Fatal("the sidecar does not say its cluster")
	return ""
}

// TestSidecarsAreOfTheControlPlanesCluster: --cluster-id is the cluster of pods whose values name none; values that name another
// are followed, and reported, as the CA will refuse those sidecars.
func TestSidecarsAreOfTheControlPlanesCluster(t *testing.T) {
	for _, c := range []struct {
		id, values string
		want       string
		reported   bool
	}{
		{id: "Kubernetes", values: `{}`, want: "Kubernetes"},
		{id: "east", values: ``, want: "east"},
		{id: "east", values: `{"global":{"multiCluster":{"clusterName":""}}}`, want: "east"},
		{id: "east", values: `{"global":{"multiCluster":{"clusterName":"east"}}}`, want: "east"},
		{id: "east", values: `{"global":{"multiCluster":{"clusterName":"west"}}}`, want: "west", reported: true},
	} {
		log := slog.New(slog.DiscardHandler)
		i, err := newInjection(fake.NewClientset(), options{clusterID: c.id}, record.NewFakeRecorder(1), prometheus.NewRegistry(), log)
		if err != nil {
			t.Fatal(err)
		}
		i.use(documents{values: c.values}, nil)
		if i.config() == nil {
			t.Fatalf("%+v: the configuration was not taken", c)
		}
		if got := clusterOf(t, i.config()); got != c.want {
			t.Errorf("%+v: the sidecar is of cluster %q", c, got)
		}
		var told []diag.Problem
		for p := range i.problems.present {
			if strings.HasSuffix(p.Field, "clusterName") {
				told = append(told, p)
			}
		}
		if len(told) > 0 != c.reported {
			t.Errorf("%+v: reported %+v", c, told)
		}
	}
}
