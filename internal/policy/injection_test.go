package policy_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/policy"
)

func configOf(t *testing.T, mesh, config, values string) *inject.Config {
	t.Helper()
	out, problems := inject.ParseConfig([]byte(mesh), []byte(config), []byte(values))
	if out == nil {
		t.Fatal(problems)
	}
	return out
}

// TestTemplateSaysWhatAPolicyCannotDo: each setting that CEL cannot carry out is named, and none is carried out halfway.
func TestTemplateSaysWhatAPolicyCannotDo(t *testing.T) {
	for _, c := range []struct{ name, mesh, config, values, want string }{
		{"a template of one's own", "", "templates: {sidecar: \"metadata: {labels: {a: b}}\"}", "", "Go template"},
		{"classic sidecars", "", "", `{"pilot":{"env":{"ENABLE_NATIVE_SIDECARS":"false"}}}`, "ordinary containers"},
		{"no readiness", "", "", `{"global":{"proxy":{"statusPort":0}}}`, "no readiness probe"},
		{"certificates from Secrets", "", "", `{"global":{"mountMtlsCerts":true}}`, "depends on the pod"},
		{"a variable for the whole mesh", "defaultConfig: {proxyMetadata: {ISTIO_META_NETWORK: n1}}", "", "", "for the whole mesh"},
	} {
		t.Run(c.name, func(t *testing.T) {
			template, problems := policy.NewTemplate(configOf(t, c.mesh, c.config, c.values))
			if template != nil || len(problems) == 0 || problems[0].Code != diag.InjectionNotByPolicy || !strings.Contains(problems[0].Detail, c.want) {
				t.Errorf("template %v, problems %v; want %q", template != nil, problems, c.want)
			}
		})
	}
	template, problems := policy.NewTemplate(configOf(t, "", "", ""))
	if template == nil {
		t.Fatal(problems)
	}
	if fields := template.Parameter()["injection"].(map[string]any); fields["form"] == nil || fields["proxy"] == nil {
		t.Errorf("the parameter has %v", fields)
	}
}

// TestLeftNamesTheField: what keeps a pod from the policy is told by the name that its author gave it.
func TestLeftNamesTheField(t *testing.T) {
	template, problems := policy.NewTemplate(configOf(t, "", "", ""))
	if template == nil {
		t.Fatal(problems)
	}
	user := int64(1337)
	for _, c := range []struct {
		change func(*corev1.Pod)
		want   string
	}{
		{func(*corev1.Pod) {}, ""},
		{func(p *corev1.Pod) { p.Annotations["proxy.istio.io/config"] = "{}" }, `annotation proxy.istio.io/config="{}"`},
		{func(p *corev1.Pod) {
			p.Annotations["traffic.sidecar.istio.io/excludeInterfaces"] = "eth0 -j ACCEPT"
		}, "annotation traffic.sidecar.istio.io/excludeInterfaces"},
		{func(p *corev1.Pod) { p.Spec.Containers[0].Name = "istio-proxy" }, "container istio-proxy of its own"},
		{func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: "istio-token"}} }, "volume istio-token"},
		{func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 15020}} }, "port 15020"},
		{func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user} }, "the sidecar's user 1337"},
		{func(p *corev1.Pod) {
			p.Annotations["sidecar.istio.io/proxyCPU"], p.Annotations["sidecar.istio.io/proxyCPULimit"] = "2", "1"
		}, "is above"},
		{func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: `/"`}}}
		}, "readinessProbe of container a"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}}}
		c.change(pod)
		if got := template.Left(pod); !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("Left says %q; want %q", got, c.want)
		}
	}
}

// TestInjectionFitsAnExpression: the limits of the API server are 100,000 code points an expression; ours must stay far from that, for what
// a later release adds.
func TestInjectionFitsAnExpression(t *testing.T) {
	for _, o := range policy.Injection("", "istio-system") {
		p, is := o.(*admissionv1.MutatingAdmissionPolicy)
		if !is {
			continue
		}
		expressions := []string{p.Spec.Mutations[0].JSONPatch.Expression}
		for _, v := range p.Spec.Variables {
			expressions = append(expressions, v.Expression)
		}
		for _, e := range expressions {
			if len(e) > 20_000 {
				t.Errorf("an expression has %d bytes", len(e))
			}
		}
		if len(p.Spec.Mutations) != 1 {
			t.Errorf("%d mutations: each would see its variables evaluated anew", len(p.Spec.Mutations))
		}
		return
	}
	t.Error("there is no policy")
}
