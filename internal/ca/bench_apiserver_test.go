//go:build apiserver

package ca

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/metadata"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"
)

// BenchmarkNewTokens is a certificate for a caller whom nobody has reviewed yet, each with a token of its own, bound to a pod, against
// a real API server. Making the tokens is not measured. CPU is this process's: the API server has its own on the same cores.
//
//	tools/apiserver-bench.sh
func BenchmarkNewTokens(b *testing.B) {
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		b.Skip("needs an API server: tools/apiserver-bench.sh starts one")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		b.Fatal(err)
	}
	fast := rest.CopyConfig(config)
	fast.QPS = -1
	admin := kubernetes.NewForConfigOrDie(fast)
	ns := must(admin.CoreV1().Namespaces().Create(b.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "selvage-bench-"}}, metav1.CreateOptions{}))(b)
	b.Cleanup(func() {
		_ = admin.CoreV1().Namespaces().Delete(b.Context(), ns.Name, metav1.DeleteOptions{})
	})
	a := newAuthority(b, kubernetes.NewForConfigOrDie(asControlPlane(b, admin, config, ns.Name)), func(c *Config) { c.Namespace = ns.Name; manyOfOne(c) })
	if p := a.sync(b.Context()); p != nil {
		b.Fatal(p)
	}
	dial := certificatesServer(b, a)
	tokens := newTokens(b, admin, ns.Name, b.N)
	in := &securityv1alpha1.IstioCertificateRequest{Csr: csr(b), ValidityDuration: 3600}
	conn := dial()
	defer conn.Close()
	var next atomic.Int64
	before := apiServerCPU(b, admin)
	measured(b, func() error {
		ctx := metadata.AppendToOutgoingContext(b.Context(), "authorization", "Bearer "+tokens[next.Add(1)-1])
		_, err := securityv1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, in)
		return err
	})
	b.ReportMetric((apiServerCPU(b, admin)-before)*1e6/float64(b.N), "apiserver-cpu-µs/op")
}

// asControlPlane is the configuration of selvaged's client for reviews: its own account's token, protobuf, no limit but the CA's.
func asControlPlane(b *testing.B, admin kubernetes.Interface, config *rest.Config, namespace string) *rest.Config {
	b.Helper()
	must(admin.CoreV1().ServiceAccounts(namespace).Create(b.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "istiod"}}, metav1.CreateOptions{}))(b)
	must(admin.RbacV1().ClusterRoleBindings().Create(b.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: namespace},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: "istiod"}}}, metav1.CreateOptions{}))(b)
	b.Cleanup(func() {
		_ = admin.RbacV1().ClusterRoleBindings().Delete(context.Background(), namespace, metav1.DeleteOptions{})
	})
	own := rest.AnonymousClientConfig(config)
	own.BearerToken = must(admin.CoreV1().ServiceAccounts(namespace).CreateToken(b.Context(), "istiod", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}))(b).Status.Token
	own.QPS = -1
	own.ContentType, own.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	return own
}

// apiServerCPU is what the API server has used of the processors, in seconds.
func apiServerCPU(b *testing.B, admin kubernetes.Interface) (seconds float64) {
	b.Helper()
	text := must(admin.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(b.Context()))(b)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "process_cpu_seconds_total "); ok {
			seconds = must(strconv.ParseFloat(strings.TrimSpace(value), 64))(b)
		}
	}
	return seconds
}

// newTokens makes distinct tokens of 20 pods that nothing runs.
func newTokens(b *testing.B, admin kubernetes.Interface, namespace string, count int) []string {
	b.Helper()
	const pods = 20
	var made [pods]*corev1.Pod
	for n := range made {
		name := fmt.Sprintf("web-%d", n)
		must(admin.CoreV1().ServiceAccounts(namespace).Create(b.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(b)
		made[n] = must(admin.CoreV1().Pods(namespace).Create(b.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{ServiceAccountName: name, AutomountServiceAccountToken: ptr.To(false), SchedulerName: "nobody",
				Containers: []corev1.Container{{Name: "app", Image: "none"}}},
		}, metav1.CreateOptions{}))(b)
	}
	tokens := make([]string, count)
	var workers sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		workers.Go(func() {
			for n := int(next.Add(1)) - 1; n < count; n = int(next.Add(1)) - 1 {
				pod := made[n%pods]
				token, err := admin.CoreV1().ServiceAccounts(namespace).CreateToken(b.Context(), pod.Name, &authenticationv1.TokenRequest{
					Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"istio-ca"}, ExpirationSeconds: ptr.To(int64(600 + n)),
						BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
				}, metav1.CreateOptions{})
				if err != nil {
					b.Error(err)
					return
				}
				tokens[n] = token.Status.Token
			}
		})
	}
	workers.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return tokens
}
