//go:build apiserver

package ca

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// These tests need a real API server, which alone knows what a token is worth.
//
//	SELVAGE_TEST_KUBECONFIG=.lab/kubeconfig go test -tags apiserver ./internal/reconcile ./internal/ca

// cluster is the cluster of the environment with a namespace of the test's own.
type cluster struct {
	*testing.T
	config    *rest.Config
	admin     kubernetes.Interface
	namespace string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("needs an API server: set SELVAGE_TEST_KUBECONFIG to the kubeconfig of a cluster that may be changed, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{T: t, config: config, admin: kubernetes.NewForConfigOrDie(config)}
	ns, err := c.admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "selvage-test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.namespace = ns.Name
	t.Cleanup(func() {
		_ = c.admin.CoreV1().Namespaces().Delete(context.Background(), c.namespace, metav1.DeleteOptions{})
	})
	return c
}

// controlPlane is a client with exactly the rights that this package needs.
func (c *cluster) controlPlane() kubernetes.Interface {
	c.Helper()
	user := rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: "User", Name: c.namespace}
	clusterRole := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: c.namespace}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}, Verbs: []string{"list"}},
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
		{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
	}}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: c.namespace}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{rotationName}, Verbs: []string{"get", "patch"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{rootsConfigMap}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{secretName, pluggedName, rotationName},
			Verbs: []string{"get", "list", "watch", "update", "delete"}},
	}}
	rbac := c.admin.RbacV1()
	must(rbac.ClusterRoles().Create(c.Context(), clusterRole, metav1.CreateOptions{}))(c)
	must(rbac.ClusterRoleBindings().Create(c.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: c.namespace},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: c.namespace}, Subjects: []rbacv1.Subject{user}}, metav1.CreateOptions{}))(c)
	c.Cleanup(func() {
		_ = rbac.ClusterRoleBindings().Delete(context.Background(), c.namespace, metav1.DeleteOptions{})
		_ = rbac.ClusterRoles().Delete(context.Background(), c.namespace, metav1.DeleteOptions{})
	})
	must(rbac.Roles(c.namespace).Create(c.Context(), role, metav1.CreateOptions{}))(c)
	must(rbac.RoleBindings(c.namespace).Create(c.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: c.namespace},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: c.namespace}, Subjects: []rbacv1.Subject{user}}, metav1.CreateOptions{}))(c)
	as := rest.CopyConfig(c.config)
	as.Impersonate.UserName = c.namespace
	return kubernetes.NewForConfigOrDie(as)
}

// pod makes a service account and a pod of it that nothing runs.
func (c *cluster) pod(name string) *corev1.Pod {
	c.Helper()
	must(c.admin.CoreV1().ServiceAccounts(c.namespace).Create(c.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(c)
	return must(c.admin.CoreV1().Pods(c.namespace).Create(c.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{ServiceAccountName: name, AutomountServiceAccountToken: ptr.To(false), SchedulerName: "nobody",
			Containers: []corev1.Container{{Name: "app", Image: "none"}}},
	}, metav1.CreateOptions{}))(c)
}

// token is a token of the pod's service account, bound to it as the kubelet's are; pod may be nil.
func (c *cluster) token(account, audience string, pod *corev1.Pod) string {
	c.Helper()
	spec := authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: ptr.To(int64(600))}
	if pod != nil {
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	return must(c.admin.CoreV1().ServiceAccounts(c.namespace).CreateToken(c.Context(), account,
		&authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{}))(c).Status.Token
}

func (c *cluster) authority(client kubernetes.Interface) *Authority {
	return newAuthority(c, client, func(config *Config) { config.Namespace = c.namespace })
}

func TestRealTokensAreToldApart(t *testing.T) {
	c := newCluster(t)
	a := c.authority(c.controlPlane())
	pod := c.pod("web")
	caller := must(a.Caller(call(t.Context(), nil, c.token("web", "istio-ca", pod))))(t)
	want := pki.Identity{TrustDomain: "cluster.local", Namespace: c.namespace, ServiceAccount: "web"}
	if caller.Identity != want || caller.PodName != "web" || caller.PodUID != string(pod.UID) {
		t.Errorf("caller %+v", caller)
	}

	other := c.token("web", "somebody-else", nil)
	forged := c.token("web", "istio-ca", pod)
	forged = forged[:len(forged)-10] + "AAAAAAAAAA"
	late := c.token("web", "istio-ca", pod)
	if err := c.admin.CoreV1().Pods(c.namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"another audience": other, "forged": forged, "of a pod that is gone": late} {
		_, err := a.Authenticate(call(t.Context(), nil, token))
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, status.Convert(err).Message())
	}
	powerless := rest.CopyConfig(c.config)
	powerless.Impersonate.UserName = "nobody"
	_, err := c.authority(kubernetes.NewForConfigOrDie(powerless)).Authenticate(call(t.Context(), nil, c.token("web", "istio-ca", nil)))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "create tokenreviews") {
		t.Errorf("a control plane without rights: %v", err)
	}
}

// Five replicas start together and share one root; then somebody replaces it: it is distributed, signs and is alone, at all of them,
// with no more rights than the control plane has.
func TestReplicasShareOneRootAndChangeItTogether(t *testing.T) {
	c := newCluster(t)
	client := c.controlPlane()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	var replicas []*Authority
	for n := range 5 {
		a := c.authority(client)
		replicas = append(replicas, a)
		reporter := must(NewReporter(ReporterConfig{Authority: a, Replica: fmt.Sprint("host-", n), Proxies: func() []trust.Proxy { return nil }}))(t)
		running.Go(func() { _ = a.Run(ctx) })
		running.Go(func() { _ = reporter.Run(ctx) })
	}
	rotation := must(NewRotation(RotationConfig{Authority: replicas[0], Namespaces: func() trust.Count { return trust.Counted(1, nil) }, Settle: time.Millisecond}))(t)
	running.Go(func() { _ = rotation.Run(ctx) })
	// all waits until every replica trusts these roots and no other.
	all := func(want ...[]byte) {
		t.Helper()
		hash := must(pki.BundleHash(bytes.Join(want, nil)))(t)
		for _, a := range replicas {
			deadline := time.After(2 * time.Minute)
			for {
				pem, changed := a.Roots()
				if got, _ := pki.BundleHash(pem); got == hash {
					break
				}
				select {
				case <-changed:
				case <-deadline:
					t.Fatalf("a replica has other roots: %v %v", a.Ready(), a.Problems())
				}
			}
		}
	}
	_, loaded := replicas[0].Roots()
	if replicas[0].RootPEM() == nil {
		<-loaded
	}
	first := must(c.admin.CoreV1().Secrets(c.namespace).Get(t.Context(), secretName, metav1.GetOptions{}))(t).Data[certKey]
	all(first)
	next := rootSecret(t, time.Now())
	next.Namespace, next.Type = c.namespace, secretType
	must(c.admin.CoreV1().Secrets(c.namespace).Update(t.Context(), next, metav1.UpdateOptions{}))(t)
	all(next.Data[certKey])
	for _, a := range replicas {
		if leaf := workloadCert(t, a, web, time.Hour); leaf.Leaf.CheckSignatureFrom(a.root.Load().issuer.Certificate()) != nil ||
			!bytes.Equal(pki.EncodeCertificate(a.root.Load().issuer.Certificate()), next.Data[certKey]) {
			t.Error("a replica signs with another root")
		}
	}
}

// The Secret is gone and nobody is alive who knew its key; three replicas start together. One new root signs, and what workloads were
// told before stays trusted.
func TestALostRootIsReplacedInStages(t *testing.T) {
	c := newCluster(t)
	old := rootSecret(t, time.Now()).Data[certKey]
	must(c.admin.CoreV1().ConfigMaps(c.namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootsConfigMap},
		Data: map[string]string{rootsKey: string(old)}}, metav1.CreateOptions{}))(t)
	client := c.controlPlane()
	var replicas [3]*Authority
	var running sync.WaitGroup
	for n := range replicas {
		replicas[n] = c.authority(client)
		running.Go(func() {
			if p := replicas[n].sync(t.Context()); p != nil {
				t.Errorf("replica %d: %v", n, p)
			}
		})
	}
	running.Wait()
	next := must(c.admin.CoreV1().Secrets(c.namespace).Get(t.Context(), secretName, metav1.GetOptions{}))(t).Data[certKey]
	for n, a := range replicas {
		if roots := a.RootPEM(); !bytes.Equal(roots, append(bytes.Clone(next), old...)) {
			t.Errorf("replica %d: %d bytes of roots, want the new one and the old one", n, len(roots))
		}
		if ps := a.Problems(); len(ps) != 1 || ps[0].Code != diag.RootLost {
			t.Errorf("replica %d: problems %v", n, ps)
		}
	}
}

func TestDebugEndpointByRealRights(t *testing.T) {
	c := newCluster(t)
	authorizer := must(NewAuthorizer(c.controlPlane(), c.namespace, nil))(t)
	handler := authorizer.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	get := func(account, audience string) int {
		r := httptest.NewRequest(http.MethodGet, "/debug/syncz", nil)
		r.Header.Set(TokenHeader, c.token(account, audience, nil))
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		t.Logf("%s for %s: %d %s", account, audience, w.Code, w.Body)
		return w.Code
	}
	c.pod("web")
	c.pod("selvage-reader")
	name := c.namespace + "-reader"
	rbac := c.admin.RbacV1()
	must(rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules: []rbacv1.PolicyRule{{NonResourceURLs: []string{"/debug/*"}, Verbs: []string{"get"}}}}, metav1.CreateOptions{}))(t)
	must(rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: c.namespace, Name: "selvage-reader"}}}, metav1.CreateOptions{}))(t)
	t.Cleanup(func() {
		_ = rbac.ClusterRoleBindings().Delete(context.Background(), name, metav1.DeleteOptions{})
		_ = rbac.ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	if code := get("web", DebugAudience); code != http.StatusForbidden {
		t.Errorf("an account without the right: %d", code)
	}
	if code := get("selvage-reader", "istio-ca"); code != http.StatusUnauthorized {
		t.Errorf("a token of another audience: %d", code)
	}
	// RBAC follows its objects with a short delay of its own.
	deadline := time.Now().Add(20 * time.Second)
	for get("selvage-reader", DebugAudience) != http.StatusOK {
		if time.Now().After(deadline) {
			t.Fatal("the reader is not let in")
		}
	}
}
