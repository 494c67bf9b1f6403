package install

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/restart"
	"github.com/selvage-mesh/selvage/internal/validate"
)

// grant is one right of the control plane and its reason. The lists are separated by spaces, so that the tables below read
// as tables; group "core" is Kubernetes' "".
type grant struct {
	why       string
	group     string
	resources string
	names     string // only these objects; "" for all. RBAC can narrow a create by name only where it is an apply
	verbs     string
}

// clusterGrants hold in every namespace and for objects of the cluster, beside those of who signs.
var clusterGrants = []grant{
	{"the world that proxies are told of", "core", "namespaces nodes pods services", "", "list watch"},
	{"is the Service of a webhook there; the object of an Event", "core", "namespaces services", "", "get"},
	{"the endpoints behind services", "discovery.k8s.io", "endpointslices", "", "list watch"},
	{"keep the caBundle of webhooks right, and remove those that a revision of Selvage's left behind", "admissionregistration.k8s.io",
		"mutatingwebhookconfigurations validatingwebhookconfigurations", "", "get list watch patch delete"},
	{"who is calling: proxies that want a certificate or configuration", "authentication.k8s.io", "tokenreviews", "", "create"},
	{"whose tokens are worth nothing any more", "core", "serviceaccounts", "", "list watch"},
	{"may that caller read the debug pages", "authorization.k8s.io", "subjectaccessreviews", "", "create"},
	{"whose pods have no sidecar", "apps", "replicasets", "", "get"},
	{"whose pods have no sidecar", "batch", "jobs", "", "get"},
	{"say on the object itself what is wrong with it", "core", "events", "", "create patch"},
}

// istioGrants let the control plane read all kinds of Istio's API.
func istioGrants() (grants []grant) {
	for _, group := range validate.Groups() {
		grants = append(grants, grant{"what the mesh is told to do", group, strings.Join(validate.ResourcesOf(group), " "), "", "list watch"})
	}
	return grants
}

// namespaceGrants hold in the control plane's own namespace.
func (o Options) namespaceGrants() []grant {
	return append([]grant{
		{"mesh and injector configuration", "core", "configmaps", o.Name("istio") + " " + o.Name("istio-sidecar-injector"), "list watch"},
		{"the object of an Event", "core", "configmaps", o.Name("istio-sidecar-injector"), "get"},
		{"say what works and what does not", "core", "configmaps", o.Name(StatusConfigMap), "list watch patch"},
		{"show how far a change of the root is", "core", "configmaps", rotationName, "get patch"},
		{"begin to show that, and to keep what was removed", "core", "configmaps", "", "create"},
		{"is a revision's control plane gone", "apps", "deployments", "", "list"},
		{"is a revision's control plane gone", "coordination.k8s.io", "leases", "", "list"},
		{"keep webhooks that were removed, to bring them back", "core", "configmaps", removedWebhooks, "get update delete"},
		{"one writer at a time", "coordination.k8s.io", "leases", o.Name(webhooksLease) + " " + rootsLease, "get update"},
		{"begin to be that writer", "coordination.k8s.io", "leases", "", "create"},
	}, o.Authority.namespaceGrants()...)
}

// restartGrants are nobody's: a namespace that wants its workloads restarted when they have missed their sidecar binds the role to
// the control plane's account itself. To change a pod template is to run anything in that namespace, so it is not for us to take.
var restartGrants = []grant{
	{"restart what has missed its sidecar", "apps", "deployments statefulsets daemonsets", "", "get patch"},
	{"within what may be disrupted", "policy", "poddisruptionbudgets", "", "list"},
}

// rules gives the grants as Kubernetes wants them.
func rules(grants []grant) []rbacv1.PolicyRule {
	out := make([]rbacv1.PolicyRule, 0, len(grants))
	for _, g := range grants {
		group := g.group
		if group == "core" {
			group = ""
		}
		out = append(out, rbacv1.PolicyRule{
			APIGroups: []string{group}, Resources: strings.Fields(g.resources),
			ResourceNames: strings.Fields(g.names), Verbs: strings.Fields(g.verbs),
		})
	}
	return out
}

// access gives the service accounts with their rights: the control plane's, for this revision, and the reader's, shared.
func (o Options) access() []runtime.Object {
	account, cluster := o.Name(appName), o.clusterRole()
	reader := Owner + "-debug-reader"
	return []runtime.Object{
		&corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: o.meta(account)},
		&corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: sharedMeta(ReaderAccount, Namespace)},
		&rbacv1.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: o.clusterMeta(cluster), Rules: rules(slices.Concat(clusterGrants, istioGrants(), o.Authority.clusterGrants()))},
		&rbacv1.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: sharedMeta(reader, ""), Rules: []rbacv1.PolicyRule{
			{NonResourceURLs: []string{DebugPath}, Verbs: []string{"get"}},
		}},
		&rbacv1.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: sharedMeta(restart.Role, ""), Rules: rules(restartGrants)},
		&rbacv1.ClusterRoleBinding{TypeMeta: rbacType("ClusterRoleBinding"), ObjectMeta: o.clusterMeta(cluster),
			RoleRef: roleRef("ClusterRole", cluster), Subjects: subject(account)},
		&rbacv1.ClusterRoleBinding{TypeMeta: rbacType("ClusterRoleBinding"), ObjectMeta: sharedMeta(reader, ""),
			RoleRef: roleRef("ClusterRole", reader), Subjects: subject(ReaderAccount)},
		&rbacv1.Role{TypeMeta: rbacType("Role"), ObjectMeta: o.meta(account), Rules: rules(o.namespaceGrants())},
		&rbacv1.RoleBinding{TypeMeta: rbacType("RoleBinding"), ObjectMeta: o.meta(account),
			RoleRef: roleRef("Role", account), Subjects: subject(account)},
	}
}

// clusterRole is named as Istio's.
func (o Options) clusterRole() string {
	if o.revision() == DefaultRevision {
		return "istiod-clusterrole-" + Namespace
	}
	return "istiod-clusterrole-" + o.Revision + "-" + Namespace
}

func rbacType(kind string) metav1.TypeMeta { return typeMeta(rbacv1.SchemeGroupVersion.String(), kind) }

func roleRef(kind, name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
}

func subject(account string) []rbacv1.Subject {
	return []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: account, Namespace: Namespace}}
}
