package inject

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/jsonscan"
)

// errOddName says that a name differs from a field's in case only, which encoding/json takes for it.
var errOddName = errors.New("a name that differs in case only")

// ScanPod reads a whole pod, which is the scanner's next value: as json.Unmarshal would, but lists of variables and maps of strings, of
// which large pods consist, in one pass and without reflection. An error says only that encoding/json must be asked; a quantity that
// takes its parser for ever (CheckQuantities) is one.
func ScanPod(s *jsonscan.Scanner) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	if s.Null() {
		return pod, nil
	}
	return pod, s.Object(func(name []byte) (err error) {
		switch string(name) {
		case "kind":
			pod.Kind, err = s.String()
		case "apiVersion":
			pod.APIVersion, err = s.String()
		case "metadata":
			err = scanMeta(s, &pod.ObjectMeta)
		case "spec":
			err = scanPodSpec(s, &pod.Spec)
		default:
			err = scanField(s, pod, name)
		}
		return err
	})
}

func scanMeta(s *jsonscan.Scanner, m *metav1.ObjectMeta) error {
	v := metaView{m.Name, m.GenerateName, m.Namespace, m.Labels, m.Annotations, m.OwnerReferences} // a name may stand twice
	err := v.scan(s, func(name []byte) error { return scanField(s, m, name) })
	m.Name, m.GenerateName, m.Namespace = v.Name, v.GenerateName, v.Namespace
	m.Labels, m.Annotations, m.OwnerReferences = v.Labels, v.Annotations, v.OwnerReferences
	return err
}

func scanPodSpec(s *jsonscan.Scanner, spec *corev1.PodSpec) error {
	return object(s, func(name []byte) (err error) {
		switch string(name) {
		case "initContainers":
			spec.InitContainers, err = list(s, func(into *corev1.Container) error { return scanContainer(s, into) })
		case "containers":
			spec.Containers, err = list(s, func(into *corev1.Container) error { return scanContainer(s, into) })
		default:
			err = scanField(s, spec, name)
		}
		return err
	})
}

func scanContainer(s *jsonscan.Scanner, c *corev1.Container) error {
	return object(s, func(name []byte) (err error) {
		var text string
		switch string(name) {
		case "name":
			c.Name, err = s.String()
		case "image":
			c.Image, err = s.String()
		case "imagePullPolicy":
			text, err = s.String()
			c.ImagePullPolicy = corev1.PullPolicy(text)
		case "terminationMessagePath":
			c.TerminationMessagePath, err = s.String()
		case "terminationMessagePolicy":
			text, err = s.String()
			c.TerminationMessagePolicy = corev1.TerminationMessagePolicy(text)
		case "command":
			c.Command, err = list(s, func(into *string) (err error) { *into, err = s.String(); return err })
		case "args":
			c.Args, err = list(s, func(into *string) (err error) { *into, err = s.String(); return err })
		case "env":
			c.Env, err = list(s, func(into *corev1.EnvVar) error { return scanVariable(s, into) })
		case "ports":
			c.Ports, err = list(s, func(into *corev1.ContainerPort) error { return scanPort(s, into) })
		case "volumeMounts":
			c.VolumeMounts, err = list(s, func(into *corev1.VolumeMount) error { return scanMount(s, into) })
		default:
			err = scanField(s, c, name)
		}
		return err
	})
}

func scanVariable(s *jsonscan.Scanner, v *corev1.EnvVar) error {
	return object(s, func(name []byte) (err error) {
		switch string(name) {
		case "name":
			v.Name, err = s.String()
		case "value":
			v.Value, err = s.String()
		default:
			err = scanField(s, v, name)
		}
		return err
	})
}

func scanMount(s *jsonscan.Scanner, m *corev1.VolumeMount) error {
	return object(s, func(name []byte) (err error) {
		switch string(name) {
		case "name":
			m.Name, err = s.String()
		case "mountPath":
			m.MountPath, err = s.String()
		case "readOnly":
			m.ReadOnly, err = s.Bool()
		default:
			err = scanField(s, m, name)
		}
		return err
	})
}

// fieldIndexes are the fields of a struct by their JSON names, for each type that scanField was asked for.
var fieldIndexes sync.Map // of reflect.Type to map[string]int

func fieldsOf(t reflect.Type) map[string]int {
	if known, ok := fieldIndexes.Load(t); ok {
		return known.(map[string]int)
	}
	out := map[string]int{}
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
			out[name] = i
		}
	}
	known, _ := fieldIndexes.LoadOrStore(t, out)
	return known.(map[string]int)
}

// scanField reads any field of a struct by encoding/json. One that the API does not have is passed over.
func scanField(s *jsonscan.Scanner, into any, name []byte) error {
	v := reflect.ValueOf(into).Elem()
	known := fieldsOf(v.Type())
	i, ok := known[string(name)]
	if !ok {
		for field := range known {
			if strings.EqualFold(field, string(name)) {
				return errOddName
			}
		}
		return s.Skip()
	}
	raw, err := s.Raw()
	if err != nil {
		return err
	}
	if raw[0] == '{' || raw[0] == '[' {
		if err := checkQuantities(raw, string(name) == "overhead"); err != nil {
			return err
		}
	}
	return json.Unmarshal(raw, v.Field(i).Addr().Interface())
}
