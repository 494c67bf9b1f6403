package cli

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// TestOfTwoTimesInOneSecond: an API server keeps whole seconds, and whoever labels a namespace right after `kubectl apply` is told that
// the label came later, not that nobody knows.
func TestOfTwoTimesInOneSecond(t *testing.T) {
	created := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.Time{Time: created}}}
	for _, tt := range []struct {
		labelled time.Duration // after the pod
		want     string
	}{
		{time.Second, "it was created before label istio-injection of namespace shop was written, at 2026-03-04T05:06:08Z"},
		{0, "it was created in the same second, 2026-03-04T05:06:07Z, and most likely before label istio-injection of namespace shop was written"},
		{-time.Second, "no webhook was called for it then"},
	} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", ManagedFields: []metav1.ManagedFieldsEntry{{
			Time:     &metav1.Time{Time: created.Add(tt.labelled)},
			FieldsV1: metav1.NewFieldsV1(`{"f:metadata": {"f:labels": {"f:istio-injection": {}}}}`),
		}}}}
		if got := (&checker{}).since(pod, ns, inject.Expectation{}); !strings.HasPrefix(got, tt.want) {
			t.Errorf("label %v after the pod: %q, want %q", tt.labelled, got, tt.want)
		}
	}
}
