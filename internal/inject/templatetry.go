package inject

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// gatewayTemplates are templates of Istio's chart for the pods of its gateway controller, which are no injected pods: they read
// other data.
var gatewayTemplates = []string{"waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"}

// tryTemplates executes the operator's templates for a simple pod, so that a template which cannot work never gets into force. Where
// pods take it without asking, a failure is an error; another one may want pods of its kind.
func (c *compiler) tryTemplates() {
	for _, p := range c.problems {
		if p.Severity == diag.Error {
			return
		}
	}
	set := c.config.templates
	defaults := set.resolve(set.defaults)
	for _, name := range sortedKeys(c.settings.Injector.Templates) {
		t := set.byName[name]
		if t == nil || t == shipped()[name] || slices.Contains(gatewayTemplates, name) {
			continue
		}
		pod := triedPod()
		subject := subjectOf(pod)
		_, _, err := c.config.byTemplates(pod, []*podTemplate{t}, workload{apiVersion: "apps/v1", kind: "Deployment", name: "example"}, subject)
		refused, ok := err.(*RefusedError) //nolint:errorlint // it is made here, and not wrapped
		if !ok {
			continue
		}
		severity, detail := diag.Warning, refused.Problems[0].Detail
		detail = strings.TrimPrefix(detail, fmt.Sprintf("template %q: ", name))
		if strings.Contains(detail, "error calling fail: ") {
			continue // it refuses pods on purpose
		}
		if slices.Contains(defaults, name) {
			severity = diag.Error
		}
		c.report(severity, "config.templates."+name, "it fails for a simple pod: "+detail, "")
	}
}

// triedPod is a pod as most are.
func triedPod() *corev1.Pod {
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "example-5d4f-", Namespace: "default", Labels: map[string]string{"app": "example", "pod-template-hash": "5d4f"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "example-5d4f", Controller: &yes}},
		},
		Spec: corev1.PodSpec{ServiceAccountName: "default", Containers: []corev1.Container{{
			Name: "example", Image: "example", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}},
		}}},
	}
}
