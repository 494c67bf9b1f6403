package cli_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
)

// cluster is an API server reduced to what status and version ask of it, so that it can show faults on demand: a control plane
// outside the cluster, which it knows the address of, and pods with sidecars.
type cluster struct {
	syncz     any // body of the debug page; a string is sent as it is
	synczCode int // its status; 0 is 200
	pods      []corev1.Pod
	forbid    string // a path that is answered with 403
	noService bool
	dead      bool // nothing listens where the Service leads
	nowhere   bool // the Service leads nowhere

	leadsTo     netip.AddrPort
	annotations map[string]string // of the Service
	status      map[string]string // of the ConfigMap selvage-status; nil when there is none

	authority string        // status.json of the ConfigMap selvage-root-rotation; "" when there is none
	renewed   time.Duration // how long ago the lease of who keeps the root was renewed; 0 when there is no lease

	sawToken    string // the header of the debug page's request
	sawAudience []string
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.forbid != "" && strings.HasPrefix(r.URL.Path, c.forbid) {
		c.answer(w, http.StatusForbidden, metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: 403, Reason: metav1.StatusReasonForbidden,
			Message: `pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "istio-system"`,
		})
		return
	}
	selects := strings.Contains(r.URL.Query().Get("labelSelector"), "app=istiod")
	switch r.URL.Path {
	case "/api/v1/namespaces/istio-system/pods":
		c.answer(w, 200, corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}})
	case "/api/v1/pods":
		c.answer(w, 200, corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: c.pods})
	case "/api/v1/namespaces/istio-system/services":
		list := corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}}
		if selects && !c.noService {
			list.Items = []corev1.Service{{ObjectMeta: metav1.ObjectMeta{Name: "istiod", Labels: map[string]string{"istio.io/rev": "default", "selvage/owner": "selvage"}}}}
			list.Items[0].Annotations = c.annotations
		}
		c.answer(w, 200, list)
	case "/api/v1/namespaces/istio-system/configmaps":
		list := corev1.ConfigMapList{TypeMeta: metav1.TypeMeta{Kind: "ConfigMapList", APIVersion: "v1"}}
		if c.status != nil {
			labels := map[string]string{"istio.io/rev": "default"}
			list.Items = []corev1.ConfigMap{{ObjectMeta: metav1.ObjectMeta{Name: "istio", Labels: labels}}, {ObjectMeta: metav1.ObjectMeta{Name: "selvage-status", Labels: labels}, Data: c.status}}
		}
		c.answer(w, 200, list)
	case "/api/v1/namespaces/istio-system/configmaps/selvage-root-rotation":
		if c.authority == "" {
			http.NotFound(w, r)
			return
		}
		c.answer(w, 200, corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}, Data: map[string]string{"status.json": c.authority}})
	case "/apis/coordination.k8s.io/v1/namespaces/istio-system/leases/selvage-roots":
		if c.renewed == 0 {
			c.answer(w, 200, coordinationv1.Lease{TypeMeta: metav1.TypeMeta{Kind: "Lease", APIVersion: "coordination.k8s.io/v1"}})
			return
		}
		c.answer(w, 200, coordinationv1.Lease{TypeMeta: metav1.TypeMeta{Kind: "Lease", APIVersion: "coordination.k8s.io/v1"}, Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To("istiod-6d8c7b9f4d-q7x2p"), RenewTime: ptr.To(metav1.NewMicroTime(time.Now().Add(-c.renewed))),
		}})
	case "/apis/apps/v1/namespaces/istio-system/deployments":
		c.answer(w, 200, appsv1.DeploymentList{TypeMeta: metav1.TypeMeta{Kind: "DeploymentList", APIVersion: "apps/v1"}})
	case "/api/v1/namespaces/istio-system/serviceaccounts/selvage-reader/token":
		request := authenticationv1.TokenRequest{TypeMeta: metav1.TypeMeta{Kind: "TokenRequest", APIVersion: "authentication.k8s.io/v1"}}
		if body, err := io.ReadAll(r.Body); err == nil {
			_, _, _ = scheme.Codecs.UniversalDeserializer().Decode(body, nil, &request) // JSON or protobuf
		}
		c.sawAudience = request.Spec.Audiences
		request.Status.Token = "reader-token"
		c.answer(w, 201, request)
	case "/apis/discovery.k8s.io/v1/namespaces/istio-system/endpointslices":
		list := discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}}
		if c.leadsTo.IsValid() && strings.Contains(r.URL.Query().Get("labelSelector"), "kubernetes.io/service-name=istiod") {
			name, port := "http-monitoring", int32(c.leadsTo.Port())
			list.Items = []discoveryv1.EndpointSlice{{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"selvage/owner": "selvage"}}, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{c.leadsTo.Addr().String()}}}}}
		}
		c.answer(w, 200, list)
	default:
		http.NotFound(w, r)
	}
}

func (c *cluster) answer(w http.ResponseWriter, code int, body any) {
	if text, ok := body.(string); ok {
		http.Error(w, text, code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// page is the control plane's status port.
func (c *cluster) page(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/debug/syncz" {
		http.NotFound(w, r)
		return
	}
	c.sawToken = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	code := c.synczCode
	if code == 0 {
		code = 200
	}
	c.answer(w, code, c.syncz)
}

// start serves the cluster and gives a folder with a kubeconfig that leads to it.
func (c *cluster) start(t *testing.T) (home, kubeconfig string) {
	t.Helper()
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	page := httptest.NewServer(http.HandlerFunc(c.page))
	t.Cleanup(page.Close)
	c.leadsTo = netip.MustParseAddrPort(strings.TrimPrefix(page.URL, "http://"))
	switch {
	case c.dead:
		page.Close()
	case c.nowhere:
		c.leadsTo = netip.AddrPort{}
	}
	home = t.TempDir()
	kubeconfig = filepath.Join(home, "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u}]\n"+
		"contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n", server.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return home, kubeconfig
}
