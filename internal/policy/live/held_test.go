package live

import (
	"context"
	"encoding/base64"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/selvage-mesh/selvage/internal/policy"
)

// oneRoot never changes.
type oneRoot []byte

func (r oneRoot) Roots() ([]byte, <-chan struct{}) { return r, nil }

// TestAParameterThatComesBackWrong: somebody deletes the parameter and later applies an old copy of it. It is put right when it comes,
// not when it is looked at next, which is up to a minute later: until then no write could have the right bundle.
func TestAParameterThatComesBackWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{policy.ParameterResource: "AdmissionParameterList"})
		h, err := NewHeld(HeldConfig{Kubernetes: fake.NewClientset(), Dynamic: client, Manager: "test", Revision: "one", Roots: oneRoot("right"), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = h.Run(ctx) }()
		go func() { _ = h.Lead(ctx) }()
		time.Sleep(10 * time.Minute) // of a bubble's time: by now it looks once a minute
		synctest.Wait()
		parameters, name := client.Resource(policy.ParameterResource), policy.HeldName("one")
		wrong := &unstructured.Unstructured{Object: map[string]any{"apiVersion": policy.ParameterResource.GroupVersion().String(), "kind": "AdmissionParameter",
			"metadata": map[string]any{"name": name}, "spec": map[string]any{"caBundle": "b2xk"}}}
		if _, err := parameters.Create(ctx, wrong, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // no time goes by
		got, err := parameters.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if bundle := bundleOf(got); bundle != base64.StdEncoding.EncodeToString([]byte("right")) {
			t.Errorf("the parameter has the bundle %q", bundle)
		}
		cancel()
		synctest.Wait()
	})
}
