package verdict

import (
	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

const (
	// Namespace is where the dry runs are made. Nothing is ever stored in it.
	Namespace = "selvage-probe"

	// Suffix ends the names of the probe's own webhook entries.
	Suffix = "probe.selvage"
	// InjectionWebhook is the entry that sees the dry-run pod after the injector.
	InjectionWebhook = "injection." + Suffix
	// InjectionPath is where the control plane answers it.
	InjectionPath = "/probe/inject"

	// Annotation is on the dry-run pod. The probe's own webhook changes Sent to Answered.
	Annotation = "selvage/probe"
	// Sent is the annotation's value as the pod leaves.
	Sent = "sent"
	// Answered is its value when the control plane was reached by the probe's own webhook and could have injected the pod.
	Answered = "answered"
)

// Pod is a pod that asks for a sidecar of the revision by its own labels. It is small, runs nowhere, and is allowed where PodSecurity
// is "restricted".
func Pod(revision, namespace string) *corev1.Pod {
	if revision == "" {
		revision = inject.DefaultRevision
	}
	no, yes, user := false, true, int64(65534)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "selvage-probe-", Namespace: namespace, Annotations: map[string]string{Annotation: Sent},
			Labels: map[string]string{label.SidecarInject.Name: "true", label.IoIstioRev.Name: revision},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{Name: "probe", Image: "selvage.invalid/probe", SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}}},
		},
	}
}

// ConfigurationName is that of the probe's own webhook configurations of a revision.
func ConfigurationName(revision string) string { return inject.ObjectName("selvage-probe", revision) }

// Mutating is the probe's own webhook configuration. It matches the revision's dry-run pods in Namespace and nothing else, and
// fails closed: where the injector's own failurePolicy is Ignore, the API server hides why it was not called, but not why this one,
// which leads to the same place, cannot be. It is called after the injector, as configurations are called in the order of their
// names ("istio-" before "selvage-").
func Mutating(revision string, endpoint inject.Endpoint) *admissionv1.MutatingWebhookConfiguration {
	fail, equivalent, none, never, timeout := admissionv1.Fail, admissionv1.Equivalent, admissionv1.SideEffectClassNone, admissionv1.NeverReinvocationPolicy, webhookTimeout
	meta, namespaces, objects := configuration(revision)
	return &admissionv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: meta,
		Webhooks: []admissionv1.MutatingWebhook{{
			Name:                    InjectionWebhook,
			ClientConfig:            endpoint.Client(InjectionPath),
			Rules:                   creations("", "v1", "pods"),
			FailurePolicy:           &fail,
			MatchPolicy:             &equivalent,
			NamespaceSelector:       namespaces,
			ObjectSelector:          objects,
			SideEffects:             &none,
			TimeoutSeconds:          &timeout,
			AdmissionReviewVersions: []string{"v1"},
			ReinvocationPolicy:      &never,
		}},
	}
}

// webhookTimeout is how long the API server waits for the probe's own webhooks, in seconds.
const webhookTimeout int32 = 5

// configuration is what the probe's own configurations of a revision have in common: their name and labels, and that they see nothing but
// the revision's objects in Namespace.
func configuration(revision string) (meta metav1.ObjectMeta, namespaces, objects *metav1.LabelSelector) {
	if revision == "" {
		revision = inject.DefaultRevision
	}
	meta = metav1.ObjectMeta{Name: ConfigurationName(revision), Labels: map[string]string{"app": "selvage-probe", label.IoIstioRev.Name: revision}}
	return meta, &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: Namespace}},
		&metav1.LabelSelector{MatchLabels: map[string]string{label.IoIstioRev.Name: revision}}
}

// creations are the rules for creating one resource.
func creations(group, version, resource string) []admissionv1.RuleWithOperations {
	scope := admissionv1.NamespacedScope
	return []admissionv1.RuleWithOperations{{
		Operations: []admissionv1.OperationType{admissionv1.Create},
		Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource}, Scope: &scope},
	}}
}
