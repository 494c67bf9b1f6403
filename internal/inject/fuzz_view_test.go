package inject_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/jsonscan"
)

// FuzzOverrides gives any JSON as a user's part of the sidecar, by the annotation and as a container. Either the pod is refused, or it
// has one sidecar, and injecting twice changes nothing.
func FuzzOverrides(f *testing.F) {
	for _, seed := range []string{`{"name":"istio-proxy"}`, `{"name":"istio-init","image":"auto","args":["--"]}`, `{"name":"istio-proxy","image":"auto","imagePullPolicy":"Always","env":[{"name":"POD_NAME","value":"x"},{"name":"POD_NAME"}]}`,
		`{"name":"istio-proxy","securityContext":{"runAsUser":0}}`, `{"name":"istio-proxy","securityContext":{"runAsUser":-1,"runAsGroup":0}}`, `{"name":"other"}`, `{"name":"istio-proxy","ports":[{"containerPort":15090},{"containerPort":15090}]}`,
		`{"name":"istio-proxy","resources":{"limits":{"cpu":"1e3","memory":"-1"}},"lifecycle":{"preStop":{"exec":{"command":["a"]}}}}`, `{"name":"istio-proxy","readinessProbe":{"grpc":{"port":1}},"restartPolicy":"Never"}`, `null`, `[]`, `{"name":1}`,
		`{"name":"istio-proxy","resources":{"limits":{"cpu":"1e-30000000"}}}`} {
		f.Add(seed)
	}
	cfg := configFrom(f, "", "", "")
	f.Fuzz(func(t *testing.T, container string) {
		pod := &corev1.Pod{}
		pod.Name, pod.Namespace, pod.Spec.Containers = "web", "shop", []corev1.Container{{Name: "web"}}
		pod.Annotations = map[string]string{"proxy.istio.io/overrides": `{"containers":[` + container + `]}`}
		if _, _, err := inject.Pod(pod, cfg); err == nil {
			checkPod(t, pod, cfg)
		} else if !strings.Contains(err.Error(), "Pod/shop/web") {
			t.Errorf("the error does not name the pod: %v", err)
		}
		var users corev1.Container
		if inject.CheckQuantities([]byte(container)) != nil || json.Unmarshal([]byte(container), &users) != nil || users.Name != inject.ProxyContainer && users.Name != inject.InitContainer {
			return
		}
		pod.Annotations, pod.Spec.Containers = nil, append(pod.Spec.Containers, users)
		if _, _, err := inject.Pod(pod, cfg); err == nil {
			checkPod(t, pod, cfg)
		}
	})
}

// FuzzView: what the scanner takes for a pod, encoding/json takes too, and it is the same pod (but for names that differ in case only,
// and names that are there twice).
func FuzzView(f *testing.F) {
	f.Add(`{"metadata":{"name":"a","labels":{"a":"b"},"annotations":null,"ownerReferences":[{"controller":true,"kind":"Job","name":"j","apiVersion":"batch/v1","uid":"1"}]},"spec":{"containers":[{"name":"c","ports":[{"containerPort":80,"name":"p","protocol":"TCP"}],"livenessProbe":{"httpGet":{"port":"p"}},"lifecycle":{"preStop":{"sleep":{"seconds":1}}},"securityContext":{"runAsUser":7}}],"hostNetwork":true,"os":{"name":"linux"},"volumes":[{"name":"v"}],"imagePullSecrets":[{"name":"s"}]}}`)
	f.Add(`{"spec":{"containers":[null,{}],"initContainers":[],"securityContext":{"runAsUser":null}}}`)
	f.Add(`{"spec":{"containers":[{"ports":[{"containerPort":1e3}]}]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		var scanned, decoded inject.View
		s := jsonscan.New([]byte(text))
		if scanned.Scan(s) != nil || s.End() != nil || oddNames(text) {
			return
		}
		if err := json.Unmarshal([]byte(text), &decoded); err != nil {
			t.Fatalf("%s: encoding/json says %v", text, err)
		}
		if got, want := asJSON(t, scanned), asJSON(t, decoded); !bytes.Equal(got, want) {
			t.Errorf("scanned %s\ndecoded %s", got, want)
		}
	})
}

// oddNames reports whether an object of the document has a name twice, or one that differs from a name of the view in case only.
func oddNames(text string) (odd bool) {
	var walk func(s *jsonscan.Scanner) error
	walk = func(s *jsonscan.Scanner) error {
		seen := map[string]bool{}
		ahead := *s
		if raw, err := ahead.Raw(); err == nil && raw[0] == '[' {
			return s.Array(func(int) error { return walk(s) })
		} else if err != nil || raw[0] != '{' {
			return s.Skip()
		}
		return s.Object(func(name []byte) error {
			odd = odd || seen[string(name)] || slices.ContainsFunc(viewNames, func(n string) bool { return n != string(name) && strings.EqualFold(n, string(name)) })
			seen[string(name)] = true
			return walk(s)
		})
	}
	return walk(jsonscan.New([]byte(text))) != nil || odd
}

var viewNames = []string{"metadata", "spec", "name", "namespace", "labels", "annotations", "volumes", "containers", "os", "ports", "lifecycle", "uid", "kind", "controller", "protocol",
	"generateName", "ownerReferences", "apiVersion", "blockOwnerDeletion", "initContainers", "imagePullSecrets", "hostNetwork", "securityContext",
	"runAsUser", "runAsGroup", "readinessProbe", "livenessProbe", "startupProbe", "containerPort", "hostPort", "hostIP"}
