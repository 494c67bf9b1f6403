package inject

import (
	"regexp"
	"strings"

	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// workload is what a pod belongs to, as people know it: the Deployment rather than its ReplicaSet. APIVersion, Kind and Name
// are those of the object in the Kubernetes API.
type workload struct {
	apiVersion, kind, name string
}

// cronJobRun is the name of a Job that a CronJob made: its name and the scheduled time, in minutes since 1970 (seconds before
// Kubernetes 1.21).
var cronJobRun = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workloadOf finds the workload from the controlling owner reference, without asking the API server: the names of the
// objects between follow from how the controllers make them.
func workloadOf(pod *corev1.Pod) workload {
	w := workload{apiVersion: "v1", kind: "Pod", name: podName(pod)}
	if owner := metav1.GetControllerOf(pod); owner != nil {
		w = workload{apiVersion: owner.APIVersion, kind: owner.Kind, name: owner.Name}
	}
	switch w.kind {
	case "ReplicaSet":
		// The Deployment controller names a ReplicaSet NAME-HASH and puts the hash into this label; so does Argo with its own.
		if name, ok := withoutHash(w.name, pod.Labels["pod-template-hash"]); ok {
			return workload{apiVersion: "apps/v1", kind: "Deployment", name: name}
		}
		if name, ok := withoutHash(w.name, pod.Labels["rollouts-pod-template-hash"]); ok {
			return workload{apiVersion: "argoproj.io/v1alpha1", kind: "Rollout", name: name}
		}
	case "ReplicationController":
		// OpenShift's deployer names a ReplicationController NAME-N and labels its pods with NAME.
		if name := pod.Labels["deploymentconfig"]; name != "" && strings.HasPrefix(w.name, name+"-") {
			return workload{apiVersion: "apps.openshift.io/v1", kind: "DeploymentConfig", name: name}
		}
	case "Job":
		if m := cronJobRun.FindStringSubmatch(w.name); m != nil {
			return workload{apiVersion: w.apiVersion, kind: "CronJob", name: m[1]}
		}
	}
	return w
}

// Owner names the workload that a pod belongs to as people know it: the Deployment rather than its ReplicaSet, the pod itself when
// nothing controls it. The names of the objects between follow from how the controllers make them.
func Owner(pod *corev1.Pod) (apiVersion, kind, name string) {
	w := workloadOf(pod)
	return w.apiVersion, w.kind, w.name
}

func withoutHash(name, hash string) (string, bool) {
	if hash == "" {
		return "", false
	}
	return strings.CutSuffix(name, "-"+hash)
}

// podName is the pod's name, or what is known of it: before admission a controller's pod has only a prefix of it.
func podName(pod *corev1.Pod) string {
	if pod.Name != "" {
		return pod.Name
	}
	return strings.TrimRight(pod.GenerateName, "-.")
}

// uri is ISTIO_META_OWNER: kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME.
func (w workload) uri(namespace string) string {
	return "kubernetes://apis/" + w.apiVersion + "/namespaces/" + namespace + "/" + strings.ToLower(w.kind) + "s/" + w.name
}

// canonical names the service a pod is part of: Istio's label, then the two labels that people set anyway, then the workload.
func canonical(labels map[string]string, w workload) (name, revision string) {
	return labelValue(first(labels[label.ServiceCanonicalName.Name], labels["app.kubernetes.io/name"], labels["app"], w.name)),
		labelValue(first(labels[label.ServiceCanonicalRevision.Name], labels["app.kubernetes.io/version"], labels["version"], "latest"))
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// labelValue cuts a name to what a label can hold: 63 characters that end in a letter or a digit.
func labelValue(s string) string {
	const most = 63
	if len(s) > most {
		s = s[:most]
	}
	return strings.TrimRight(s, "-._")
}

// named is w under another name: the label service.istio.io/workload-name.
func (w workload) named(name string) workload { w.name = name; return w }
