package inject

import (
	"slices"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// NamespaceInjection is the label by which people switch injection on for a namespace. Istio's label package does not have it.
const NamespaceInjection = "istio-injection"

// The names of the webhook entries. Istio's patchers, and ours, find them by their common suffix.
const (
	RevisionNamespaceWebhook = "rev.namespace.sidecar-injector.istio.io"
	RevisionObjectWebhook    = "rev.object.sidecar-injector.istio.io"
	NamespaceWebhook         = "namespace.sidecar-injector.istio.io"
	ObjectWebhook            = "object.sidecar-injector.istio.io"
)

// Endpoint is where the API server finds the webhook: URL when it is set, otherwise the Service.
type Endpoint struct {
	Namespace string // of the Service, and the namespace that is never injected
	Service   string
	Port      int32  // of the Service; 0 is 443
	URL       string // https://HOST:PORT, without a path; "" uses the Service
}

// Webhooks are the entries of a MutatingWebhookConfiguration for the label value rev: a revision, or a tag that stands for one.
// The default revision (and the tag "default") has two more, for the labels that name no revision. For any pod at most one
// entry of one configuration matches, whatever its labels and its namespace's (Matching).
//
// The entries have no caBundle: whoever owns that field sets it, and an apply without it leaves it alone.
func Webhooks(rev string, at Endpoint) []admissionv1.MutatingWebhook {
	if rev == "" {
		rev = DefaultRevision
	}
	notOut := require(label.SidecarInject.Name, metav1.LabelSelectorOpNotIn, "false")
	entries := []admissionv1.MutatingWebhook{
		entry(RevisionNamespaceWebhook, at,
			[]metav1.LabelSelectorRequirement{require(label.IoIstioRev.Name, metav1.LabelSelectorOpIn, rev), absent(NamespaceInjection)},
			[]metav1.LabelSelectorRequirement{notOut}),
		entry(RevisionObjectWebhook, at,
			[]metav1.LabelSelectorRequirement{absent(label.IoIstioRev.Name), absent(NamespaceInjection)},
			[]metav1.LabelSelectorRequirement{notOut, require(label.IoIstioRev.Name, metav1.LabelSelectorOpIn, rev)}),
	}
	if rev != DefaultRevision {
		return entries
	}
	return append(entries,
		entry(NamespaceWebhook, at,
			[]metav1.LabelSelectorRequirement{require(NamespaceInjection, metav1.LabelSelectorOpIn, "enabled")},
			[]metav1.LabelSelectorRequirement{notOut}),
		entry(ObjectWebhook, at,
			[]metav1.LabelSelectorRequirement{absent(NamespaceInjection), absent(label.IoIstioRev.Name)},
			[]metav1.LabelSelectorRequirement{require(label.SidecarInject.Name, metav1.LabelSelectorOpIn, "true"), absent(label.IoIstioRev.Name)}))
}

func require(key string, op metav1.LabelSelectorOperator, values ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: values}
}

func absent(key string) metav1.LabelSelectorRequirement {
	return require(key, metav1.LabelSelectorOpDoesNotExist)
}

// entry is one webhook, every field that the API server would fill in set, so that comparing finds no difference.
func entry(name string, at Endpoint, namespace, object []metav1.LabelSelectorRequirement) admissionv1.MutatingWebhook {
	excluded := append(slices.Clone(SystemNamespaces), at.Namespace)
	slices.Sort(excluded)
	namespace = append(namespace, require(corev1.LabelMetadataName, metav1.LabelSelectorOpNotIn, slices.Compact(excluded)...))
	var (
		fail       = admissionv1.Fail
		equivalent = admissionv1.Equivalent
		none       = admissionv1.SideEffectClassNone
		never      = admissionv1.NeverReinvocationPolicy
		scope      = admissionv1.NamespacedScope
		timeout    = int32(10)
		path, port = "/inject", at.Port
		client     admissionv1.WebhookClientConfig
	)
	if at.URL != "" {
		url := at.URL + path
		client.URL = &url
	} else {
		if port == 0 {
			port = 443
		}
		client.Service = &admissionv1.ServiceReference{Namespace: at.Namespace, Name: at.Service, Path: &path, Port: &port}
	}
	return admissionv1.MutatingWebhook{
		Name:         name,
		ClientConfig: client,
		Rules: []admissionv1.RuleWithOperations{{
			Operations: []admissionv1.OperationType{admissionv1.Create},
			Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: &scope},
		}},
		FailurePolicy:           &fail,
		MatchPolicy:             &equivalent,
		NamespaceSelector:       &metav1.LabelSelector{MatchExpressions: namespace},
		ObjectSelector:          &metav1.LabelSelector{MatchExpressions: object},
		SideEffects:             &none,
		TimeoutSeconds:          &timeout,
		AdmissionReviewVersions: []string{"v1"},
		ReinvocationPolicy:      &never,
		MatchConditions:         matchConditions(),
	}
}

// matchConditions keep pods that can never be injected from costing a call, and from depending on the control plane being up.
// They say in CEL what Decide says of the same pods.
func matchConditions() []admissionv1.MatchCondition {
	return []admissionv1.MatchCondition{
		{Name: "not-host-network", Expression: "!has(object.spec.hostNetwork) || !object.spec.hostNetwork"},
		{Name: "not-mirror", Expression: "!has(object.metadata.annotations) || !('" + corev1.MirrorPodAnnotationKey + "' in object.metadata.annotations)"},
		{Name: "linux", Expression: "!has(object.spec.os) || object.spec.os.name == 'linux'"},
	}
}

// Matching names the entries that the API server would call by labels for a pod in a namespace. The namespace's labels are
// those it has in the cluster; kubernetes.io/metadata.name, which every namespace has, is taken from name.
func Matching(entries []admissionv1.MutatingWebhook, name string, namespaceLabels, podLabels map[string]string) (names []string, err error) {
	namespace := labels.Merge(namespaceLabels, labels.Set{corev1.LabelMetadataName: name})
	for i := range entries {
		ns, err := metav1.LabelSelectorAsSelector(entries[i].NamespaceSelector)
		if err != nil {
			return nil, err
		}
		object, err := metav1.LabelSelectorAsSelector(entries[i].ObjectSelector)
		if err != nil {
			return nil, err
		}
		if ns.Matches(namespace) && object.Matches(labels.Set(podLabels)) {
			names = append(names, entries[i].Name)
		}
	}
	return names, nil
}
