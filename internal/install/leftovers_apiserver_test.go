//go:build apiserver

package install_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/testneed"
)

// controlPlane runs the real control plane against the API server, as its own account, until it has made what it keeps in the cluster:
// its leases, the root, and the root's ConfigMap in every namespace.
func (s *server) controlPlane(t *testing.T) (stop func()) {
	t.Helper()
	binary := testneed.Bin(t, "selvaged", "build")
	raw, err := os.ReadFile(os.Getenv("SELVAGE_TEST_KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	user := config["users"].([]any)[0].(map[string]any)["user"].(map[string]any)
	user["as"] = "system:serviceaccount:istio-system:istiod"
	user["as-groups"] = []string{"system:serviceaccounts", "system:serviceaccounts:istio-system", "system:authenticated"}
	out, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--kubeconfig", path, "--xds-addr", "127.0.0.1:0", "--webhook-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	wanted := []string{"ConfigMap default/istio-ca-root-cert", "Secret istio-system/istio-ca-secret", "Lease istio-system/selvage-roots", "Lease istio-system/selvage-webhooks"}
	for tick := time.NewTicker(500 * time.Millisecond); ; {
		names := s.everything(t)
		missing := slices.DeleteFunc(slices.Clone(wanted), func(name string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, name+" ") })
		})
		if len(missing) == 0 {
			tick.Stop()
			return stop
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the control plane has not made %v", missing)
		}
	}
}

// TestUninstallLeavesNothingInWhateverOrder compares the cluster before and after, object by object with labels and annotations: with the
// control plane running or gone, and something deleted before the uninstallation begins.
func TestUninstallLeavesNothingInWhateverOrder(t *testing.T) {
	s := connect(t)
	owned := metav1.ListOptions{LabelSelector: install.OwnerLabel + "=" + install.Owner}
	for _, c := range []struct {
		sentence string
		disturb  func(t *testing.T, stop func())
	}{
		{"the control plane runs on outside the cluster", func(*testing.T, func()) {}},
		{"the namespace was deleted first", func(t *testing.T, stop func()) {
			stop()
			if err := s.kubernetes.CoreV1().Namespaces().Delete(t.Context(), install.Namespace, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			s.until(t, "the namespace goes", func() bool {
				_, err := s.kubernetes.CoreV1().Namespaces().Get(t.Context(), install.Namespace, metav1.GetOptions{})
				return apierrors.IsNotFound(err)
			})
		}},
		{"webhooks, policies and rights were deleted first, under a control plane that runs", func(t *testing.T, _ func()) {
			hooks, rights, all := s.kubernetes.AdmissionregistrationV1(), s.kubernetes.RbacV1(), metav1.DeleteOptions{}
			err := errors.Join(hooks.MutatingWebhookConfigurations().DeleteCollection(t.Context(), all, owned),
				hooks.ValidatingWebhookConfigurations().DeleteCollection(t.Context(), all, owned),
				hooks.ValidatingAdmissionPolicies().DeleteCollection(t.Context(), all, owned),
				rights.ClusterRoles().DeleteCollection(t.Context(), all, owned),
				rights.ClusterRoleBindings().DeleteCollection(t.Context(), all, owned),
				rights.Roles(install.Namespace).DeleteCollection(t.Context(), all, owned),
				s.kubernetes.CoreV1().ServiceAccounts(install.Namespace).DeleteCollection(t.Context(), all, owned))
			if err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			s.purge(t, "")
			before := s.everything(t)
			if err := s.Apply(t.Context(), outside("")); err != nil {
				t.Fatal(err)
			}
			stop := s.controlPlane(t)
			moved := []byte(`{"metadata":{"annotations":{"` + install.MigratedAnnotation + `":"{}"}}}`) // by `selvage revision migrate`
			if _, err := s.kubernetes.CoreV1().Namespaces().Patch(t.Context(), "default", types.MergePatchType, moved, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			c.disturb(t, stop)
			s.purge(t, "")
			same(t, before, s.everything(t), "uninstall")
			stop()
			same(t, before, s.everything(t), "the control plane, before it ended,")
		})
	}
}

func (s *server) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for tick := time.NewTicker(200 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within two minutes", what)
		}
	}
}

// same fails with what differs between two states of the cluster.
func same(t *testing.T, before, after []string, who string) {
	t.Helper()
	without := func(of, other []string) []string {
		return slices.DeleteFunc(slices.Clone(of), func(name string) bool { return slices.Contains(other, name) })
	}
	if left, gone := without(after, before), without(before, after); len(left) > 0 || len(gone) > 0 {
		t.Errorf("%s left:\n+ %s\nand took:\n- %s", who, strings.Join(left, "\n+ "), strings.Join(gone, "\n- "))
	}
}

// breaking fails every write after so many, as a connection that is lost does.
type breaking struct {
	http.RoundTripper
	left atomic.Int64
}

func (b *breaking) RoundTrip(r *http.Request) (*http.Response, error) {
	isWrite := r.Method == http.MethodPatch && !strings.Contains(r.URL.RawQuery, "dryRun")
	if isWrite && b.left.Add(-1) < 0 {
		return nil, errors.New("the connection is lost")
	}
	return b.RoundTripper.RoundTrip(r)
}

// TestUninstallTakesAHalfFinishedInstallation, whichever object was the last that was made.
func TestUninstallTakesAHalfFinishedInstallation(t *testing.T) {
	s := connect(t)
	s.purge(t, "")
	before := s.everything(t)
	for _, writes := range []int64{4, 14} {
		config := rest.CopyConfig(s.config)
		config.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			b := &breaking{RoundTripper: rt}
			b.left.Store(writes)
			return b
		})
		broken, err := install.New(install.Config{Kubernetes: kubernetes.NewForConfigOrDie(config), Dynamic: dynamic.NewForConfigOrDie(config), Progress: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		if err := broken.Apply(t.Context(), outside("")); err == nil {
			t.Fatalf("an installation that may write %d objects is complete", writes)
		}
		s.purge(t, "")
		same(t, before, s.everything(t), fmt.Sprintf("uninstall, of %d objects,", writes))
	}
}
