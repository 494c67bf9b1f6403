package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// shape is a manifest of testdata/shapes, as people have them, with what is wanted of it in the comments at its head:
//
//	containers: A B | C     the pod's init containers and containers, in their order
//	state: complete         its Job ends well; without a state the pod becomes Ready
//	state: refused TEXT     kubectl apply says TEXT
//	state: no pod TEXT      the ReplicaSet cannot make its pod, and is told TEXT
//	answers: mtls|plain     to a caller of the mesh at its Service, with or without the caller's identity
//	told: REASON            its owner gets an Event that it has no sidecar
//	proxy env: K=V          the sidecar has this variable;  proxy mount: PATH  this mount;  annotation: K=V  the pod this annotation
//	scrapes: NAME           the agent's metrics have this one of the application, and Envoy's
//	namespace: K=V          it wants a namespace of its own with this label
type shape struct {
	name, path, namespace string
	want                  map[string]string
	pod                   *corev1.Pod // once it is as it should be
}

func readShapes(t *testing.T) (list []*shape) {
	t.Helper()
	paths, err := filepath.Glob("testdata/shapes/*.yaml")
	if err != nil || len(paths) < 20 {
		t.Fatalf("find shapes: %v (%d)", err, len(paths))
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s := &shape{name: strings.TrimSuffix(filepath.Base(path), ".yaml"), path: path, want: map[string]string{}}
		for line := range strings.Lines(string(data)) {
			comment, is := strings.CutPrefix(line, "# ")
			if !is {
				break
			}
			if key, value, found := strings.Cut(strings.TrimSpace(comment), ": "); found {
				s.want[key] = value
			}
		}
		list = append(list, s)
	}
	return list
}

// templateOfUsers is a template of the operator's own beside those that are built in.
const templateOfUsers = `policy: enabled
templates:
  audit: |
    metadata:
      annotations:
        example.com/audited: "{{ .ObjectMeta.Name }}"
`

// TestShapesOfWorkloads applies what people have, all at once: the containers are as they should be, pods become Ready, Jobs end,
// services answer through Envoy with the caller's identity, and what cannot be is refused with a reason.
func TestShapesOfWorkloads(t *testing.T) {
	l := atLevel(t, 2)
	l.smallSidecars(t)
	shapes := readShapes(t)
	namespace := l.namespace(t, map[string]string{"istio-injection": "enabled"})
	args := []string{"apply", "-n", namespace}
	for _, s := range shapes {
		s.namespace = namespace
		if label := s.want["namespace"]; label != "" {
			key, value, _ := strings.Cut(label, "=")
			s.namespace = l.namespace(t, map[string]string{"istio-injection": "enabled", key: value})
			l.kubectl(t, "apply", "-n", s.namespace, "-f", s.path)
			continue
		}
		if !strings.HasPrefix(s.want["state"], "refused") {
			args = append(args, "-f", s.path)
		}
	}
	l.kubectl(t, args...)
	l.kubectl(t, "-n", namespace, "create", "job", "--from=cronjob/cronjob", "cronjob-now")
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) { // one after the other, while all of them start
			switch state, text, _ := strings.Cut(s.want["state"], " "); state {
			case "refused":
				_, stderr, code := command(t, nil, bin("kubectl"), "--kubeconfig", l.kubeconfig(), "apply", "-n", namespace, "-f", s.path)
				if code == 0 || !strings.Contains(stderr, text) {
					t.Errorf("kubectl apply: exit %d, it says %q, want %q in it", code, stderr, text)
				}
				return
			case "no":
				l.cannotBeMade(t, s, strings.TrimPrefix(text, "pod "))
				return
			}
			l.runs(t, s)
			s.asWanted(t)
			l.answersAsWanted(t, s)
			if reason := s.want["told"]; reason != "" {
				l.isTold(t, s, reason)
			}
		})
	}
}

// runs waits for the shape's pod to be Ready, or to have ended well.
func (l *lab) runs(t *testing.T, s *shape) {
	t.Helper()
	within(t, 5*time.Minute, "pod of "+s.name, func(ctx context.Context) string {
		list, err := l.Client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + s.name})
		if err != nil {
			return err.Error()
		}
		pending := "there is none"
		for i := range list.Items {
			s.pod = &list.Items[i]
			if s.want["state"] == "complete" && s.pod.Status.Phase == corev1.PodSucceeded || s.want["state"] == "" && ready(s.pod) {
				return ""
			}
			status, _ := json.Marshal(s.pod.Status)
			pending = string(status)
		}
		return pending
	})
}

// asWanted compares the pod with the shape's comments.
func (s *shape) asWanted(t *testing.T) {
	t.Helper()
	var names []string
	for _, c := range s.pod.Spec.InitContainers {
		names = append(names, c.Name)
	}
	names = append(names, "|")
	var proxy corev1.Container
	for _, c := range s.pod.Spec.Containers {
		names = append(names, c.Name)
	}
	for _, c := range append(s.pod.Spec.InitContainers, s.pod.Spec.Containers...) {
		if c.Name == "istio-proxy" {
			proxy = c
		}
	}
	if got := strings.Join(names, " "); got != s.want["containers"] {
		t.Errorf("containers are %q, want %q", got, s.want["containers"])
	}
	if key, value, has := strings.Cut(s.want["annotation"], "="); has && s.pod.Annotations[key] != value {
		t.Errorf("annotation %s is %q, want %q", key, s.pod.Annotations[key], value)
	}
	if want := s.want["proxy env"]; want != "" {
		var env []string
		for _, e := range proxy.Env {
			env = append(env, e.Name+"="+e.Value)
		}
		if !strings.Contains(" "+strings.Join(env, " ")+" ", " "+want+" ") {
			t.Errorf("the sidecar's variables are %q, want %s among them", env, want)
		}
	}
	if want := s.want["proxy mount"]; want != "" {
		var mounts []string
		for _, m := range proxy.VolumeMounts {
			mounts = append(mounts, m.MountPath)
		}
		if !strings.Contains(" "+strings.Join(mounts, " ")+" ", " "+want+" ") {
			t.Errorf("the sidecar's mounts are %q, want %s among them", mounts, want)
		}
	}
}

// answersAsWanted calls the shape's Service from the mesh, and its agent's metrics from outside.
func (l *lab) answersAsWanted(t *testing.T, s *shape) {
	t.Helper()
	const caller = "spiffe://cluster.local/ns/shop/sa/load"
	if how := s.want["answers"]; how != "" {
		eventually(t, s.name+" answers its caller", func(context.Context) string {
			stdout, stderr, code := command(t, nil, bin("kubectl"), "--kubeconfig", l.kubeconfig(), "-n", "shop", "exec", "deploy/load", "-c", "load", "--",
				"/usr/local/bin/sample", "get", fmt.Sprintf("http://%s.%s/api", s.name, s.namespace))
			var answer struct{ Pod, Client, Server string }
			switch {
			case code != 0 || json.Unmarshal([]byte(stdout), &answer) != nil:
				return stdout + stderr
			case answer.Pod != s.pod.Name:
				return "it was answered by " + answer.Pod
			case how == "mtls" && (answer.Client != caller || answer.Server != "spiffe://cluster.local/ns/"+s.namespace+"/sa/default"):
				return fmt.Sprintf("the caller is %q, the server %q", answer.Client, answer.Server)
			case how == "plain" && answer.Client != "":
				return "it knows its caller: " + answer.Client
			}
			return ""
		})
	}
	if name := s.want["scrapes"]; name != "" {
		stdout, stderr, code := l.inside(t, "curl", "-sSf", "-m", "10", fmt.Sprintf("http://%s:%s%s", s.pod.Status.PodIP,
			s.pod.Annotations["prometheus.io/port"], s.pod.Annotations["prometheus.io/path"]))
		if code != 0 || !strings.Contains(stdout, name) || !strings.Contains(stdout, "envoy_") {
			t.Errorf("the metrics have no %s beside Envoy's: exit %d\n%s%.2000s", name, code, stderr, stdout)
		}
	}
}

// cannotBeMade waits for the Event that tells the owner why, and asks `selvage inject --check`, which says the same.
func (l *lab) cannotBeMade(t *testing.T, s *shape, text string) {
	t.Helper()
	eventually(t, "an Event that names "+text, func(ctx context.Context) string {
		list, err := l.Client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
		if err != nil {
			return err.Error()
		}
		for _, e := range list.Items {
			if strings.Contains(e.Message, text) && strings.Contains(e.Message, "violates PodSecurity") {
				return ""
			}
		}
		return fmt.Sprintf("%d Events of pods that could not be made", len(list.Items))
	})
	stdout, stderr, code := l.selvage(t, "inject", "--check", "deployment/"+s.name, "-n", s.namespace)
	if code != 1 || !strings.Contains(stdout, text) || !strings.Contains(stdout, "pod-security.kubernetes.io/enforce=privileged") {
		t.Errorf("selvage inject --check: exit %d\n%s%s", code, stdout, stderr)
	}
}

// isTold waits for the Event of a workload whose pod has no sidecar.
func (l *lab) isTold(t *testing.T, s *shape, reason string) {
	t.Helper()
	owner := metav1.GetControllerOf(s.pod)
	eventually(t, "an Event on "+owner.Name, func(ctx context.Context) string {
		list, err := l.Client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=SidecarNotInjected,involvedObject.name=" + owner.Name})
		if err != nil {
			return err.Error()
		}
		for _, e := range list.Items {
			if strings.Contains(e.Message, "("+reason+")") {
				return ""
			}
		}
		return fmt.Sprintf("%d Events, none with the reason", len(list.Items))
	})
}

// smallSidecars lets sidecars ask for little until the test ends, so that twenty fit on a node of two cores, and adds the users'
// template. The lab's own settings come back.
func (l *lab) smallSidecars(t *testing.T) {
	t.Helper()
	maps := l.Client.CoreV1().ConfigMaps("istio-system")
	cm, err := maps.Get(t.Context(), "istio-sidecar-injector", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := cm.DeepCopy().Data
	values := map[string]any{}
	if err := json.Unmarshal([]byte(cm.Data["values"]), &values); err != nil {
		t.Fatal(err)
	}
	global, _ := values["global"].(map[string]any)
	proxy, _ := global["proxy"].(map[string]any)
	if proxy == nil {
		t.Fatalf("the values have no global.proxy: %s", cm.Data["values"])
	}
	proxy["resources"] = map[string]any{"requests": map[string]string{"cpu": "5m", "memory": "40Mi"}}
	data, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	cm.Data["values"], cm.Data["config"] = string(data), templateOfUsers
	if _, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now, err := maps.Get(context.Background(), cm.Name, metav1.GetOptions{})
		if err == nil {
			now.Data = before
			_, err = maps.Update(context.Background(), now, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Errorf("the lab's settings did not come back: %v", err)
		}
	})
	ns := l.namespace(t, map[string]string{"istio-injection": "enabled"})
	eventually(t, "the settings in force", func(ctx context.Context) string {
		pod := podOf(&outcome{pod: "@inject.istio.io/templates=sidecar"}, ns)
		pod.Annotations["inject.istio.io/templates"] = "sidecar,audit"
		stored, err := l.Client.CoreV1().Pods(ns).Create(ctx, &pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return err.Error()
		}
		for _, c := range stored.Spec.InitContainers {
			if c.Name == "istio-proxy" && c.Resources.Requests.Cpu().MilliValue() == 5 {
				return ""
			}
		}
		return "sidecars ask for more"
	})
}
