package inject_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// containerOf finds the container in either list, and there must be one only.
func containerOf(t testing.TB, pod *corev1.Pod, name string) corev1.Container {
	t.Helper()
	var found []corev1.Container
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			if c.Name == name {
				found = append(found, c)
			}
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d containers are named %s", len(found), name)
	}
	return found[0]
}

const usersPart = `
  - name: istio-proxy
    image: auto
    imagePullPolicy: Always
    args: [proxy, sidecar, --concurrency, "4"]
    env:
    - {name: INSTANCE_IP, value: 10.0.0.1}
    - {name: MINE, value: "1"}
    - {name: TRUST_DOMAIN}
    ports: [{containerPort: 15090, name: mine}, {containerPort: 9000}]
    resources: {limits: {memory: 2Gi}}
    volumeMounts: [{name: own, mountPath: /own}]
    lifecycle: {preStop: {httpGet: {path: /bye, port: 1}}}
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 3}
    securityContext: {runAsUser: 2000, capabilities: {add: [NET_BIND_SERVICE]}, seccompProfile: {type: Unconfined}}
`

// TestUsersPartOfTheSidecar: what the user sets wins, everything else is injection's, in the pod and by the annotation.
func TestUsersPartOfTheSidecar(t *testing.T) {
	cfg := configFrom(t, "", "", "")
	plain := podFrom(t, "metadata: {name: web, namespace: shop}\nspec:\n  containers: [{name: web}]\n")
	base, _, err := inject.Pod(plain, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ours := containerOf(t, base, inject.ProxyContainer)
	pods := map[string]*corev1.Pod{
		"among the containers":      podFrom(t, "metadata: {name: web, namespace: shop}\nspec:\n  containers:\n  - {name: web}"+usersPart),
		"first":                     podFrom(t, "metadata: {name: web, namespace: shop}\nspec:\n  containers:"+usersPart+"  - {name: web}\n"),
		"among the init containers": podFrom(t, "metadata: {name: web, namespace: shop}\nspec:\n  containers: [{name: web}]\n  initContainers:"+usersPart),
	}
	value, err := json.Marshal(map[string]any{"containers": pods["first"].Spec.Containers[:1]})
	if err != nil {
		t.Fatal(err)
	}
	annotated := plain.DeepCopy()
	annotated.Annotations = map[string]string{"proxy.istio.io/overrides": string(value)}
	pods["by the annotation"] = annotated
	for name, pod := range pods {
		t.Run(name, func(t *testing.T) {
			checkPod(t, pod, cfg)
			out, warnings, err := inject.Pod(pod, cfg)
			if err != nil || len(warnings) != 0 {
				t.Fatal(err, warnings)
			}
			got := containerOf(t, out, inject.ProxyContainer)
			if got.Image != ours.Image || got.ImagePullPolicy != ours.ImagePullPolicy {
				t.Errorf("image auto is %s, pulled %s", got.Image, got.ImagePullPolicy)
			}
			if diff := cmp.Diff([]string{"proxy", "sidecar", "--concurrency", "4"}, got.Args); diff != "" {
				t.Error(diff)
			}
			for variable, want := range map[string]string{"INSTANCE_IP": "10.0.0.1", "MINE": "1", "TRUST_DOMAIN": "cluster.local", "POD_NAME": ""} {
				if value := envOf(out, variable); value != want {
					t.Errorf("%s is %q, want %q", variable, value, want)
				}
			}
			for _, e := range got.Env {
				if e.Value != "" && e.ValueFrom != nil {
					t.Errorf("%s has a value and a source", e.Name)
				}
			}
			want := []corev1.ContainerPort{{Name: "mine", ContainerPort: 15090, Protocol: "TCP"}, {ContainerPort: 9000}}
			if diff := cmp.Diff(want, got.Ports); diff != "" {
				t.Error(diff)
			}
			if m := got.Resources.Limits.Memory().String(); m != "2Gi" || got.Resources.Limits.Cpu().String() != "2" || got.Resources.Requests.Cpu().String() != "100m" {
				t.Errorf("resources are %v", got.Resources)
			}
			if n := len(got.VolumeMounts); n != len(ours.VolumeMounts)+1 || got.VolumeMounts[n-1].Name != "own" {
				t.Errorf("mounts are %v", got.VolumeMounts)
			}
			if hook := got.Lifecycle.PreStop; hook.Exec != nil || hook.HTTPGet == nil {
				t.Errorf("the hook is %v", hook)
			}
			if p := got.ReadinessProbe; p.HTTPGet != nil || p.Exec == nil || p.PeriodSeconds != 3 || p.FailureThreshold != ours.ReadinessProbe.FailureThreshold {
				t.Errorf("the probe is %v", p)
			}
			sc := got.SecurityContext
			if *sc.RunAsUser != 2000 || *sc.RunAsGroup != 1337 || sc.SeccompProfile.Type != "Unconfined" || !*sc.RunAsNonRoot || len(sc.Capabilities.Drop) != 1 || len(sc.Capabilities.Add) != 1 {
				t.Errorf("the security context is %v", sc)
			}
			args := strings.Join(containerOf(t, out, inject.InitContainer).Args, " ")
			if !strings.Contains(args, "--proxy-uid 2000 --proxy-gid 1337") {
				t.Errorf("the interception does not know the sidecar's user: %s", args)
			}
			if got.RestartPolicy == nil {
				t.Error("it is no native sidecar any more")
			}
			checkKept(t, out)
		})
	}
}

// checkKept: the annotation tells the user's part, and makes the same containers again of the pod without its sidecar.
func checkKept(t *testing.T, out *corev1.Pod) {
	t.Helper()
	kept := out.Annotations["proxy.istio.io/overrides"]
	if !strings.Contains(kept, `"MINE"`) {
		t.Errorf("the annotation is %s", kept)
	}
	cut := podFrom(t, "metadata: {name: web, namespace: shop}\nspec:\n  containers: [{name: web}]\n")
	cut.Annotations = map[string]string{"proxy.istio.io/overrides": kept}
	again, _, err := inject.Pod(cut, configFrom(t, "", "", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{inject.ProxyContainer, inject.InitContainer} {
		if diff := cmp.Diff(containerOf(t, out, name), containerOf(t, again, name)); diff != "" && !strings.Contains(diff, "9000") { // declared in the pod only
			t.Errorf("injected by its annotation it differs: %s", diff)
		}
	}
}

// TestOnlyTheSidecar: a pod whose only container is the user's istio-proxy keeps it among the containers, for a pod must have one.
func TestOnlyTheSidecar(t *testing.T) {
	pod := podFrom(t, "metadata: {name: gw, namespace: shop}\nspec:\n  containers: [{name: istio-proxy, image: auto, ports: [{containerPort: 8080}]}]\n")
	cfg := configFrom(t, "", "", "")
	checkPod(t, pod, cfg)
	out, _, err := inject.Pod(pod, cfg)
	if err != nil || len(out.Spec.Containers) != 1 || out.Spec.Containers[0].RestartPolicy != nil {
		t.Fatalf("error %v, containers %v", err, out.Spec.Containers)
	}
	if ports := envOf(out, "ISTIO_META_POD_PORTS"); !strings.Contains(ports, "8080") {
		t.Errorf("the control plane does not hear of the port: %s", ports)
	}
}

// TestChangedInitContainer: istio-init can be changed too; a sidecar as root is told to the interception by its group.
func TestChangedInitContainer(t *testing.T) {
	pod := podFrom(t, `
metadata: {name: web, namespace: shop}
spec:
  initContainers:
  - {name: istio-init, image: example.com/init:1, resources: {limits: {cpu: 100m}}}
  - {name: mine}
  containers:
  - {name: web}
  - {name: istio-proxy, image: auto, securityContext: {runAsUser: 0}}
`)
	cfg := configFrom(t, "", "", "")
	checkPod(t, pod, cfg)
	out, _, err := inject.Pod(pod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	initial, proxy := containerOf(t, out, inject.InitContainer), containerOf(t, out, inject.ProxyContainer)
	if initial.Image != "example.com/init:1" || initial.Resources.Limits.Cpu().String() != "100m" || len(initial.Args) == 0 {
		t.Errorf("istio-init is %v", initial)
	}
	if !strings.Contains(strings.Join(initial.Args, " "), "--proxy-uid 1337 --proxy-gid 1337") || *proxy.SecurityContext.RunAsNonRoot {
		t.Errorf("interception %v, sidecar %v", initial.Args, proxy.SecurityContext)
	}
	if kept := out.Annotations["proxy.istio.io/overrides"]; !strings.HasPrefix(kept, `{"initContainers":[{"name":"istio-`) || strings.Contains(kept, "auto") {
		t.Errorf("the annotation is %s", kept)
	}
}

// TestUnusableOverrides: the error names the annotation or the field, and the value.
func TestUnusableOverrides(t *testing.T) {
	cfg := configFrom(t, "", "", "")
	for value, want := range map[string]string{
		"{":                   `cannot use "{"`,
		`{"container":[]}`:    `unknown field "container"`,
		`{"containers":[{}]}`: "a container has no name",
		`{"containers":[{"name":"a"},{"name":"a"}]}`:                                 "container a is there twice",
		`{"containers":[{"name":"istio-proxy","resources":{"limits":{"cpu":"x"}}}]}`: "quantities must match",
	} {
		pod := podFrom(t, "metadata: {name: web, namespace: shop}\nspec: {containers: [{name: web}]}")
		pod.Annotations = map[string]string{"proxy.istio.io/overrides": value}
		_, _, err := inject.Pod(pod, cfg)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "metadata.annotations[proxy.istio.io/overrides]") {
			t.Errorf("%s: %v, want %q", value, err, want)
		}
	}
	pod := podFrom(t, "metadata: {name: web, namespace: shop}\nspec: {containers: [{name: web}, {name: istio-proxy, securityContext: {runAsUser: 0, runAsGroup: 0}}]}")
	if _, _, err := inject.Pod(pod, cfg); err == nil || !strings.Contains(err.Error(), "spec.containers[istio-proxy].securityContext: runAsUser and runAsGroup are both 0") {
		t.Errorf("root in both: %v", err)
	}
	pod = podFrom(t, "metadata: {name: web, namespace: shop}\nspec: {containers: [{name: web}]}")
	pod.Annotations = map[string]string{"proxy.istio.io/overrides": `{"containers":[{"name":"other"}]}`}
	if _, warnings, err := inject.Pod(pod, cfg); err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].Detail, `injection adds no container "other"`) {
		t.Errorf("a stranger: %v, %v", warnings, err)
	}
}

// TestEveryFieldOfAContainerIsMerged: each field of the API's container, set by the user, is in the result, also the fields that
// come with a newer API.
func TestEveryFieldOfAContainerIsMerged(t *testing.T) {
	full := reflect.TypeFor[corev1.Container]()
	for i := range full.NumField() {
		field := full.Field(i)
		if field.Name == "Name" || field.Name == "RestartPolicy" {
			continue // the pod decides them
		}
		users := corev1.Container{Name: "c"}
		v := reflect.ValueOf(&users).Elem().Field(i)
		fill(v)
		out := inject.MergeContainer(corev1.Container{Name: "c"}, users)
		if diff := cmp.Diff(v.Interface(), reflect.ValueOf(out).Field(i).Interface()); diff != "" {
			t.Errorf("%s is lost: %s", field.Name, diff)
		}
	}
}

// fill makes a value that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() { //nolint:exhaustive // the kinds that the API has
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i))
				return
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(7)
	}
}
