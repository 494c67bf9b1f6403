package live

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/policy"
)

// TakeName takes a value of istio.io/rev from the policies that inject for other revisions than keep, so that a tag which is moved from a
// revision whose control plane is gone does not stay with it. Its pods are the webhook's then, until keep's own control plane gives its
// policy the name.
func TakeName(ctx context.Context, client dynamic.Interface, name, keep string) error {
	parameters := client.Resource(policy.ParameterResource)
	list, err := parameters.List(ctx, metav1.ListOptions{LabelSelector: label.IoIstioRev.Name})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil // there is no such kind, or it is nobody's business who may not even look
	}
	if err != nil {
		return fmt.Errorf("list admissionparameters: %w", err)
	}
	for _, u := range list.Items {
		rev := u.GetLabels()[label.IoIstioRev.Name]
		names, _, _ := unstructured.NestedStringSlice(u.Object, "spec", "names")
		if rev == keep || u.GetName() != policy.InjectionName(rev) || !slices.Contains(names, name) {
			continue
		}
		left := slices.DeleteFunc(names, func(n string) bool { return n == name })
		body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": u.GetUID()}, "spec": map[string]any{"names": left}})
		if err != nil {
			return err
		}
		if _, err := parameters.Patch(ctx, u.GetName(), types.MergePatchType, body, metav1.PatchOptions{FieldManager: manager}); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("take %s from AdmissionParameter %s: %w", name, u.GetName(), err)
		}
	}
	return nil
}
