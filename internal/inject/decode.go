package inject

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-mesh/selvage/internal/jsonscan"
)

// View is what Decide, Pod and Patch read of a pod that has no sidecar yet; it decodes from the pod's JSON. Most of what an API
// server sends is something else: managed fields, volumes' sources, environments of hundreds of variables.
type View struct {
	Metadata metaView `json:"metadata"`
	Spec     struct {
		Volumes []struct {
			Name string `json:"name"`
		} `json:"volumes"`
		InitContainers   []containerView               `json:"initContainers"`
		Containers       []containerView               `json:"containers"`
		ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets"`
		HostNetwork      bool                          `json:"hostNetwork"`
		OS               *corev1.PodOS                 `json:"os"`
		SecurityContext  *securityView                 `json:"securityContext"`
		ServiceAccount   string                        `json:"serviceAccountName"`
	} `json:"spec"`
}

// metaView is what injection reads of a pod's metadata.
type metaView struct {
	Name            string                  `json:"name"`
	GenerateName    string                  `json:"generateName"`
	Namespace       string                  `json:"namespace"`
	Labels          map[string]string       `json:"labels"`
	Annotations     map[string]string       `json:"annotations"`
	OwnerReferences []metav1.OwnerReference `json:"ownerReferences"`
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
			if isOurs(list[i].Name) {
				return nil, false
			}
		}
	}
	for i := range v.Spec.Volumes {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: v.Spec.Volumes[i].Name})
	}
	pod.Spec.ServiceAccountName = v.Spec.ServiceAccount
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

// Scan reads the view from a pod's JSON, which is the scanner's next value: as json.Unmarshal would, but in one pass and without
// reflection. With an error the view is not to be used.
func (v *View) Scan(s *jsonscan.Scanner) error {
	*v = View{}
	return object(s, func(name []byte) error {
		switch string(name) {
		case "metadata":
			return v.Metadata.scan(s, func([]byte) error { return s.Skip() })
		case "spec":
			return v.scanSpec(s)
		}
		return s.Skip()
	})
}

// scan reads metadata, whose other fields are left to other.
func (m *metaView) scan(s *jsonscan.Scanner, other func(name []byte) error) error {
	return object(s, func(name []byte) (err error) {
		switch string(name) {
		case "name":
			m.Name, err = s.String()
		case "generateName":
			m.GenerateName, err = s.String()
		case "namespace":
			m.Namespace, err = s.String()
		case "labels":
			m.Labels, err = stringMap(s)
		case "annotations":
			m.Annotations, err = stringMap(s)
		case "ownerReferences":
			m.OwnerReferences, err = list(s, func(into *metav1.OwnerReference) error { return scanOwner(s, into) })
		default:
			err = other(name)
		}
		return err
	})
}

// scanOwner reads what the API has of an owner.
func scanOwner(s *jsonscan.Scanner, into *metav1.OwnerReference) error {
	return object(s, func(name []byte) (err error) {
		var text string
		switch string(name) {
		case "apiVersion":
			into.APIVersion, err = s.String()
		case "kind":
			into.Kind, err = s.String()
		case "name":
			into.Name, err = s.String()
		case "uid":
			text, err = s.String()
			into.UID = types.UID(text)
		case "controller":
			into.Controller, err = boolPointer(s)
		case "blockOwnerDeletion":
			into.BlockOwnerDeletion, err = boolPointer(s)
		default:
			err = s.Skip()
		}
		return err
	})
}

func boolPointer(s *jsonscan.Scanner) (*bool, error) {
	if s.Null() {
		return nil, nil
	}
	b, err := s.Bool()
	return &b, err
}

func (v *View) scanSpec(s *jsonscan.Scanner) error {
	p := &v.Spec
	return object(s, func(name []byte) (err error) {
		switch string(name) {
		case "volumes":
			p.Volumes, err = list(s, func(into *struct {
				Name string `json:"name"`
			}) error {
				return scanName(s, &into.Name)
			})
		case "initContainers":
			p.InitContainers, err = list(s, func(into *containerView) error { return into.scan(s) })
		case "containers":
			p.Containers, err = list(s, func(into *containerView) error { return into.scan(s) })
		case "imagePullSecrets":
			p.ImagePullSecrets, err = list(s, func(into *corev1.LocalObjectReference) error { return scanName(s, &into.Name) })
		case "hostNetwork":
			p.HostNetwork, err = s.Bool()
		case "os":
			p.OS, err = pointer[corev1.PodOS](s)
		case "securityContext":
			p.SecurityContext, err = scanSecurity(s)
		case "serviceAccountName":
			p.ServiceAccount, err = s.String()
		default:
			err = s.Skip()
		}
		return err
	})
}

func (c *containerView) scan(s *jsonscan.Scanner) error {
	return object(s, func(name []byte) (err error) {
		switch string(name) {
		case "name":
			c.Name, err = s.String()
		case "ports":
			c.Ports, err = list(s, func(into *corev1.ContainerPort) error { return scanPort(s, into) })
		case "readinessProbe":
			c.ReadinessProbe, err = pointer[corev1.Probe](s)
		case "livenessProbe":
			c.LivenessProbe, err = pointer[corev1.Probe](s)
		case "startupProbe":
			c.StartupProbe, err = pointer[corev1.Probe](s)
		case "lifecycle":
			c.Lifecycle, err = pointer[corev1.Lifecycle](s)
		case "securityContext":
			c.SecurityContext, err = scanSecurity(s)
		default:
			err = s.Skip()
		}
		return err
	})
}

func scanPort(s *jsonscan.Scanner, into *corev1.ContainerPort) error {
	return object(s, func(name []byte) (err error) {
		var text string
		var n int64
		switch string(name) {
		case "name":
			into.Name, err = s.String()
		case "hostIP":
			into.HostIP, err = s.String()
		case "protocol":
			text, err = s.String()
			into.Protocol = corev1.Protocol(text)
		case "containerPort":
			n, err = s.Int(32)
			into.ContainerPort = int32(n)
		case "hostPort":
			n, err = s.Int(32)
			into.HostPort = int32(n)
		default:
			err = s.Skip()
		}
		return err
	})
}

func scanSecurity(s *jsonscan.Scanner) (*securityView, error) {
	if s.Null() {
		return nil, nil
	}
	v := &securityView{}
	return v, s.Object(func(name []byte) error {
		var into **int64
		switch string(name) {
		case "runAsUser":
			into = &v.RunAsUser
		case "runAsGroup":
			into = &v.RunAsGroup
		default:
			return s.Skip()
		}
		if s.Null() {
			*into = nil
			return nil
		}
		n, err := s.Int(64)
		*into = &n
		return err
	})
}

// scanName reads of an object only its name.
func scanName(s *jsonscan.Scanner, into *string) error {
	return object(s, func(name []byte) (err error) {
		if string(name) == "name" {
			*into, err = s.String()
			return err
		}
		return s.Skip()
	})
}

// object is Scanner.Object for a value that may be null.
func object(s *jsonscan.Scanner, each func(name []byte) error) error {
	if s.Null() {
		return nil
	}
	return s.Object(each)
}

// list reads an array; null is nil, and an element that is null is zero.
func list[T any](s *jsonscan.Scanner, each func(into *T) error) ([]T, error) {
	if s.Null() {
		return nil, nil
	}
	out := []T{}
	err := s.Array(func(int) error {
		out = append(out, *new(T))
		return each(&out[len(out)-1])
	})
	return out, err
}

func stringMap(s *jsonscan.Scanner) (map[string]string, error) {
	if s.Null() {
		return nil, nil
	}
	out := map[string]string{}
	return out, s.Object(func(name []byte) error {
		key := string(name)
		value, err := s.String()
		out[key] = value
		return err
	})
}

// pointer reads a value that is rare or small by encoding/json; null is nil.
func pointer[T any](s *jsonscan.Scanner) (*T, error) {
	if s.Null() {
		return nil, nil
	}
	into := new(T)
	return into, decode(s, into)
}

func decode(s *jsonscan.Scanner, into any) error {
	raw, err := s.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}
