package inject

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// View is what Decide, Pod and Patch read of a pod that has no sidecar yet; it decodes from the pod's JSON. Most of what an API
// server sends is something else: managed fields, volumes' sources, environments of hundreds of variables.
type View struct {
	Metadata struct {
		Name            string                  `json:"name"`
		GenerateName    string                  `json:"generateName"`
		Namespace       string                  `json:"namespace"`
		Labels          map[string]string       `json:"labels"`
		Annotations     map[string]string       `json:"annotations"`
		OwnerReferences []metav1.OwnerReference `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		Volumes []struct {
			Name string `json:"name"`
		} `json:"volumes"`
		InitContainers   []containerView               `json:"initContainers"`
		Containers       []containerView               `json:"containers"`
		ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets"`
		HostNetwork      bool                          `json:"hostNetwork"`
		OS               *corev1.PodOS                 `json:"os"`
		SecurityContext  *securityView                 `json:"securityContext"`
	} `json:"spec"`
}

type securityView struct {
	RunAsUser  *int64 `json:"runAsUser"`
	RunAsGroup *int64 `json:"runAsGroup"`
}

type containerView struct {
	Name            string                 `json:"name"`
	Ports           []corev1.ContainerPort `json:"ports"`
	ReadinessProbe  *corev1.Probe          `json:"readinessProbe"`
	LivenessProbe   *corev1.Probe          `json:"livenessProbe"`
	StartupProbe    *corev1.Probe          `json:"startupProbe"`
	Lifecycle       *corev1.Lifecycle      `json:"lifecycle"`
	SecurityContext *securityView          `json:"securityContext"`
}

// Pod is a pod for Decide, Pod and Patch only: they give the same for it as for the whole pod, and the patch fits the whole
// pod. ok is false when the pod has a container of one of our names: a sidecar, or what a user wants changed in it. Then that
// container is read too, and the whole pod must be decoded.
func (v *View) Pod() (pod *corev1.Pod, ok bool) {
	pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: v.Metadata.Name, GenerateName: v.Metadata.GenerateName, Namespace: v.Metadata.Namespace,
		Labels: v.Metadata.Labels, Annotations: v.Metadata.Annotations, OwnerReferences: v.Metadata.OwnerReferences,
	}}
	pod.Spec.InitContainers = containersOf(v.Spec.InitContainers)
	pod.Spec.Containers = containersOf(v.Spec.Containers)
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == ProxyContainer || list[i].Name == InitContainer {
				return nil, false
			}
		}
	}
	for i := range v.Spec.Volumes {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: v.Spec.Volumes[i].Name})
	}
	pod.Spec.ImagePullSecrets, pod.Spec.HostNetwork, pod.Spec.OS = v.Spec.ImagePullSecrets, v.Spec.HostNetwork, v.Spec.OS
	if sc := v.Spec.SecurityContext; sc != nil {
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: sc.RunAsUser, RunAsGroup: sc.RunAsGroup}
	}
	return pod, true
}

func containersOf(views []containerView) []corev1.Container {
	if views == nil {
		return nil
	}
	out := make([]corev1.Container, len(views))
	for i := range views {
		v := &views[i]
		out[i] = corev1.Container{Name: v.Name, Ports: v.Ports, ReadinessProbe: v.ReadinessProbe, LivenessProbe: v.LivenessProbe, StartupProbe: v.StartupProbe,
			Lifecycle: v.Lifecycle}
		if v.SecurityContext != nil {
			out[i].SecurityContext = &corev1.SecurityContext{RunAsUser: v.SecurityContext.RunAsUser, RunAsGroup: v.SecurityContext.RunAsGroup}
		}
	}
	return out
}
