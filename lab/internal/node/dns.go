package node

import (
	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/kubeapi"
)

// DNSObjects are what makes CoreDNS, a process on the lab's own address, the cluster's DNS, by the path to apply each at.
func DNSObjects() map[string]kubeapi.Object {
	type m = kubeapi.Object
	const user, service = "system:coredns", "kube-dns"
	ports := []m{{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}}
	const rbac = "rbac.authorization.k8s.io"
	return map[string]m{
		"/api/v1/namespaces/kube-system/services/" + service: {
			"apiVersion": "v1", "kind": "Service",
			"metadata": m{"name": service, "namespace": "kube-system", "labels": m{"k8s-app": service}},
			"spec":     m{"clusterIP": cluster.DNSAddress, "ports": ports}, // no selector: nothing but the slice below
		},
		"/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/" + service: {
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
			"metadata": m{"name": service, "namespace": "kube-system", "labels": m{
				"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "selvage-lab",
			}},
			"addressType": "IPv4", "ports": ports,
			"endpoints": []m{{"addresses": []string{cluster.Host}, "conditions": m{"ready": true}}},
		},
		"/apis/" + rbac + "/v1/clusterroles/" + user: {
			"apiVersion": rbac + "/v1", "kind": "ClusterRole", "metadata": m{"name": user},
			"rules": []m{
				{"apiGroups": []string{""}, "resources": []string{"services", "pods", "namespaces"}, "verbs": []string{"list", "watch"}},
				{"apiGroups": []string{"discovery.k8s.io"}, "resources": []string{"endpointslices"}, "verbs": []string{"list", "watch"}},
			},
		},
		"/apis/" + rbac + "/v1/clusterrolebindings/" + user: {
			"apiVersion": rbac + "/v1", "kind": "ClusterRoleBinding", "metadata": m{"name": user},
			"roleRef":  m{"apiGroup": rbac, "kind": "ClusterRole", "name": user},
			"subjects": []m{{"apiGroup": rbac, "kind": "User", "name": user}},
		},
	}
}
