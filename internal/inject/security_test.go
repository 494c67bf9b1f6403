package inject_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// restricted says what in a container is against the level `restricted` of Kubernetes' Pod Security Standards.
func restricted(c *corev1.Container) (against []string) {
	sc := c.SecurityContext
	if sc == nil {
		return []string{"no security context"}
	}
	check := func(ok bool, what string) {
		if !ok {
			against = append(against, what)
		}
	}
	check(sc.Privileged == nil || !*sc.Privileged, "privileged")
	check(sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation, "allowPrivilegeEscalation")
	check(sc.RunAsNonRoot != nil && *sc.RunAsNonRoot, "runAsNonRoot")
	check(sc.RunAsUser == nil || *sc.RunAsUser != 0, "runAsUser")
	check(sc.SeccompProfile != nil && sc.SeccompProfile.Type != corev1.SeccompProfileTypeUnconfined, "seccompProfile")
	check(sc.ProcMount == nil && sc.SELinuxOptions == nil, "procMount or seLinuxOptions")
	check(sc.Capabilities != nil && slices.Contains(sc.Capabilities.Drop, "ALL"), "capabilities.drop")
	check(sc.Capabilities != nil && !slices.ContainsFunc(sc.Capabilities.Add, func(c corev1.Capability) bool { return c != "NET_BIND_SERVICE" }), "capabilities.add")
	for _, p := range c.Ports {
		check(p.HostPort == 0, "hostPort")
	}
	return against
}

// TestRestrictedNamespaces: nothing that injection adds is against the level restricted but what the interception wants, in the init
// container.
func TestRestrictedNamespaces(t *testing.T) {
	for name, annotations := range map[string]string{"native": "", "classic": `annotations: {sidecar.istio.io/nativeSidecar: "false"}, `} {
		t.Run(name, func(t *testing.T) {
			out, _, err := inject.Pod(podFrom(t, "metadata: {"+annotations+"name: web, namespace: shop}\nspec: {containers: [{name: web}]}"), configFrom(t, "", "", ""))
			if err != nil {
				t.Fatal(err)
			}
			proxy, initial := containerOf(t, out, inject.ProxyContainer), containerOf(t, out, inject.InitContainer)
			if against := restricted(&proxy); against != nil {
				t.Errorf("the sidecar: %q", against)
			}
			if diff := cmp.Diff([]string{"runAsNonRoot", "runAsUser", "seccompProfile", "capabilities.add"}, restricted(&initial)); diff != "" {
				t.Errorf("istio-init: %s", diff)
			}
			for _, v := range out.Spec.Volumes {
				if v.EmptyDir == nil && v.DownwardAPI == nil && v.Projected == nil && v.ConfigMap == nil {
					t.Errorf("the volume %s is of a kind that restricted does not have", v.Name)
				}
			}
		})
	}
}

// TestRestrictedWithAPlugin: where a CNI plugin does the interception, all that injection adds passes the level restricted.
func TestRestrictedWithAPlugin(t *testing.T) {
	cfg := servingConfig(t, "", "", `{"pilot":{"cni":{"enabled":true}}}`)
	out, _, err := inject.Pod(podFrom(t, "metadata: {name: web, namespace: shop}\nspec: {containers: [{name: web}]}"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{inject.ProxyContainer, "istio-validation"} {
		c := containerOf(t, out, name)
		if against := restricted(&c); against != nil {
			t.Errorf("%s: %q", name, against)
		}
	}
}

// TestConflicts: what keeps a sidecar from working is said.
func TestConflicts(t *testing.T) {
	for _, c := range []struct{ name, pod, want string }{
		{"the sidecar's user", "spec: {containers: [{name: a, securityContext: {runAsUser: 1337}}]}", "spec.containers[a].securityContext.runAsUser: 1337 is the sidecar's user"},
		{"the sidecar's user of the pod", "spec: {securityContext: {runAsUser: 1337}, containers: [{name: a}]}", "spec.containers[a].securityContext.runAsUser: 1337"},
		{"another of the container", "spec: {securityContext: {runAsUser: 1337}, containers: [{name: a, securityContext: {runAsUser: 1}}]}", ""},
		{"the sidecar's group", "spec: {containers: [{name: a, securityContext: {runAsGroup: 1337}}]}", "spec.containers[a].securityContext.runAsGroup: 1337 is the sidecar's group"},
		{"a user of the sidecar's own", "spec: {containers: [{name: a, securityContext: {runAsUser: 7}}, {name: istio-proxy, securityContext: {runAsUser: 7}}]}", "7 is the sidecar's user"},
		{"the sidecar's port", "spec: {containers: [{name: a, ports: [{containerPort: 15020}]}]}", "spec.containers[a].ports: port 15020 is the sidecar's"},
		{"OpenShift", "metadata: {annotations: {openshift.io/scc: restricted-v2}}\nspec: {containers: [{name: a}]}", "OpenShift's security context constraint restricted-v2 does not allow the sidecar's user 1337"},
		{"OpenShift's privileged", "metadata: {annotations: {openshift.io/scc: privileged}}\nspec: {containers: [{name: a}]}", ""},
		{"a job with a classic sidecar", "metadata: {annotations: {sidecar.istio.io/nativeSidecar: \"false\"}, ownerReferences: [{kind: Job, name: j, apiVersion: batch/v1, controller: true}]}\nspec: {containers: [{name: a}]}",
			"so the job does not complete by itself (hint: use a native sidecar, or let the job end with a POST to http://localhost:15020/quitquitquit)"},
		{"a job with a native one", "metadata: {ownerReferences: [{kind: Job, name: j, apiVersion: batch/v1, controller: true}]}\nspec: {containers: [{name: a}]}", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, warnings, err := inject.Pod(podFrom(t, c.pod), configFrom(t, "", "", ""))
			if err != nil {
				t.Fatal(err)
			}
			if said := fmt.Sprint(warnings); (c.want == "") != (len(warnings) == 0) || !strings.Contains(said, c.want) {
				t.Errorf("said %s, want %q", said, c.want)
			}
		})
	}
}

// TestNetworkOfAPod: the pod's label wins over the values.
func TestNetworkOfAPod(t *testing.T) {
	cfg := configFrom(t, "", "", `{"global":{"network":"n1"}}`)
	for label, want := range map[string]string{"": "n1", "topology.istio.io/network: n2": "n2"} {
		out, _, err := inject.Pod(podFrom(t, "metadata: {name: a, labels: {"+label+"}}\nspec: {containers: [{name: a}]}"), cfg)
		if err != nil || envOf(out, "ISTIO_META_NETWORK") != want || out.Labels["topology.istio.io/network"] != want {
			t.Errorf("%q: error %v, network %s, label %s", label, err, envOf(out, "ISTIO_META_NETWORK"), out.Labels["topology.istio.io/network"])
		}
	}
}

// TestMeshWithDNSCapture: a mesh that asks for it works without, and is told; a pod that asks for it is refused.
func TestMeshWithDNSCapture(t *testing.T) {
	cfg, problems := inject.ParseConfig([]byte(`defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true", ISTIO_META_A: b}}`), nil, nil)
	if cfg == nil || len(problems) != 1 || !strings.Contains(problems[0].String(), "data.mesh.defaultConfig.proxyMetadata.ISTIO_META_DNS_CAPTURE: DNS capture is not carried out yet") {
		t.Fatalf("problems: %v", problems)
	}
	pod := podFrom(t, "metadata: {name: a, namespace: shop, annotations: {proxy.istio.io/config: 'concurrency: 1'}}\nspec: {containers: [{name: a}]}")
	out, _, err := inject.Pod(pod, cfg)
	if err != nil || envOf(out, "ISTIO_META_DNS_CAPTURE") != "" || envOf(out, "ISTIO_META_A") != "b" {
		t.Errorf("error %v, %s", err, envOf(out, "ISTIO_META_DNS_CAPTURE"))
	}
	pod.Annotations["proxy.istio.io/config"] = `proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true"}`
	if _, _, err := inject.Pod(pod, cfg); err == nil || !strings.Contains(err.Error(), "proxyMetadata.ISTIO_META_DNS_CAPTURE: DNS capture is not carried out yet") {
		t.Errorf("the pod's own: %v", err)
	}
}

// TestNotServed: what this build's agent cannot serve is refused, with its own code, where it was asked for, and what to do; a mesh
// whose agent serves it has pods with it.
func TestNotServed(t *testing.T) {
	for name, c := range map[string]struct{ mesh, config, values, annotations, field string }{
		"TPROXY of a pod":            {annotations: "{sidecar.istio.io/interceptionMode: TPROXY}", field: "metadata.annotations[sidecar.istio.io/interceptionMode]"},
		"NONE of a pod":              {annotations: "{sidecar.istio.io/interceptionMode: NONE}", field: "metadata.annotations[sidecar.istio.io/interceptionMode]"},
		"TPROXY by ProxyConfig":      {annotations: "{proxy.istio.io/config: 'interceptionMode: TPROXY'}", field: "metadata.annotations[proxy.istio.io/config]"},
		"DNS of a pod":               {annotations: "{proxy.istio.io/config: 'proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}'}", field: "metadata.annotations[proxy.istio.io/config]"},
		"a gateway":                  {annotations: "{inject.istio.io/templates: gateway}", field: "metadata.annotations[inject.istio.io/templates]"},
		"gRPC without a proxy":       {annotations: "{inject.istio.io/templates: grpc-agent}", field: "metadata.annotations[inject.istio.io/templates]"},
		"a plugin":                   {values: `{"pilot":{"cni":{"enabled":true}}}`, field: "data.values.pilot.cni.enabled"},
		"TPROXY of the mesh":         {mesh: "defaultConfig: {interceptionMode: TPROXY}", field: "data.mesh.defaultConfig"},
		"gateways by default":        {config: "defaultTemplates: [gateway]", field: "data.config.defaultTemplates"},
		"a plugin, changed template": {config: "templates: {sidecar: '{{ .Sidecar.Native }}: {}'}", values: `{"pilot":{"cni":{"enabled":true}}}`, field: "data.values.pilot.cni.enabled"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podFrom(t, "metadata: {name: a, namespace: shop, annotations: "+orEmpty(c.annotations)+"}\nspec: {containers: [{name: a, image: b}]}")
			cfg, problems := inject.ParseConfig([]byte(c.mesh), []byte(c.config), []byte(c.values))
			if cfg != nil {
				_, _, err := inject.Pod(pod, cfg)
				var refused *inject.RefusedError
				if errors.As(err, &refused) {
					problems = refused.Problems
				}
			}
			problems = slices.DeleteFunc(problems, func(p diag.Problem) bool { return p.Severity != diag.Error })
			if len(problems) == 0 || problems[0].Code != diag.NotServed || problems[0].Field != c.field || problems[0].Hint == "" {
				t.Errorf("problems: %v", problems)
			}
			if c.config != "" {
				return
			}
			if _, _, err := inject.Pod(pod, servingConfig(t, c.mesh, c.config, c.values)); err != nil {
				t.Errorf("where it is served: %v", err)
			}
		})
	}
}

// TestLateContainers: with reinvocationPolicy IfNeeded, whatever containers come after the sidecar get their probes and hooks rewritten,
// what was known stays known, and the next call changes nothing.
func TestLateContainers(t *testing.T) {
	configs := append(generatedConfigs(t, asIs), generatedConfigs(t, asText)...)
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 11))
		cfg := configs[r.IntN(len(configs))]
		first, _, err := inject.Pod(generated(r), cfg)
		if err != nil {
			t.Fatal(err)
		}
		late := first.DeepCopy()
		late.Spec.Containers = append(late.Spec.Containers, generatedContainer(r, "late"))
		second, _, err := inject.Pod(late, cfg)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := inject.Pod(second, cfg)
		if err != nil || !reflect.DeepEqual(second, again) {
			t.Fatalf("seed %d: a third call changes something (error %v): %s", seed, err, cmp.Diff(second, again))
		}
		if got, want := patched(t, late, second), asJSON(t, second); !sameJSON(t, got, want) {
			t.Fatalf("seed %d: the patch gives another pod:\n%s\nwant\n%s", seed, got, want)
		}
		told := envOf(second, "ISTIO_KUBE_APP_PROBERS")
		for _, path := range agentPaths(second) {
			if !strings.Contains(told, `"`+path+`"`) {
				t.Fatalf("seed %d: the kubelet asks the agent for %s, which knows %s", seed, path, told)
			}
		}
	}
}

// agentPaths are what the kubelet asks the agent for.
func agentPaths(pod *corev1.Pod) (paths []string) {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			gets := []*corev1.HTTPGetAction{}
			for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
				if p != nil {
					gets = append(gets, p.HTTPGet)
				}
			}
			if c.Lifecycle != nil {
				for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
					if h != nil {
						gets = append(gets, h.HTTPGet)
					}
				}
			}
			for _, g := range gets {
				if g != nil && g.Port.IntValue() == 15020 {
					paths = append(paths, g.Path)
				}
			}
		}
	}
	return paths
}

func orEmpty(annotations string) string {
	if annotations == "" {
		return "{}"
	}
	return annotations
}
