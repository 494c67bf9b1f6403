package inject_test

import (
	"slices"
	"strings"
	"testing"

	"istio.io/api/annotation"
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

func TestDecide(t *testing.T) {
	const selectors = `
policy: enabled
neverInjectSelector: [{matchLabels: {job: batch}}, {}]
alwaysInjectSelector: [{matchExpressions: [{key: mesh, operator: Exists}]}]
`
	const disabled = "policy: disabled\nalwaysInjectSelector: [{matchLabels: {mesh: please}}]\nneverInjectSelector: [{matchLabels: {job: batch}}]"
	for _, c := range []struct {
		name, config, pod string
		inject            bool
		reason            inject.Reason
		surprising        bool
	}{
		{"a pod that says nothing follows the policy", "", `spec: {}`, true, inject.PolicyEnabled, false},
		{"a pod that says nothing follows the policy, also when it is disabled", disabled, `spec: {}`, false, inject.PolicyDisabled, false},
		{"the label asks for it", disabled, `metadata: {labels: {sidecar.istio.io/inject: "true"}}`, true, inject.OptedIn, false},
		{"yes is no word for true", disabled, `metadata: {labels: {sidecar.istio.io/inject: "Yes"}}`, false, inject.PolicyDisabled, true},
		{"the label forbids it", "", `metadata: {labels: {sidecar.istio.io/inject: "false"}}`, false, inject.OptedOut, false},
		{"the deprecated annotation still counts", "", `metadata: {annotations: {sidecar.istio.io/inject: "false"}}`, false, inject.OptedOut, false},
		{"the label comes before the annotation", "", `metadata: {labels: {sidecar.istio.io/inject: "true"}, annotations: {sidecar.istio.io/inject: "false"}}`, true, inject.OptedIn, false},
		{"an unknown word is as if nothing was said", "", `metadata: {labels: {sidecar.istio.io/inject: "no"}}`, true, inject.PolicyEnabled, false},
		{"and does not come before the selectors", selectors, `metadata: {labels: {sidecar.istio.io/inject: "yes", job: batch}}`, false, inject.NeverSelector, true},
		{"an empty label says nothing", "", `metadata: {labels: {sidecar.istio.io/inject: ""}}`, true, inject.PolicyEnabled, false},
		{"the network of the node is not captured", "", `spec: {hostNetwork: true}`, false, inject.HostNetwork, false},
		{"nor when the pod asks for it", "", "metadata: {labels: {sidecar.istio.io/inject: \"true\"}}\nspec: {hostNetwork: true}", false, inject.HostNetwork, true},
		{"kube-system stays as it is", "", `metadata: {namespace: kube-system, labels: {sidecar.istio.io/inject: "true"}}`, false, inject.IgnoredNamespace, true},
		{"the mesh's own namespace stays as it is", "", `metadata: {namespace: istio-system}`, false, inject.IgnoredNamespace, false},
		{"but for a pod that asks by label, as a gateway does", "", `metadata: {namespace: istio-system, labels: {sidecar.istio.io/inject: "true"}}`, true, inject.OptedIn, false},
		{"the annotation is not enough there", "", `metadata: {namespace: istio-system, annotations: {sidecar.istio.io/inject: "true"}}`, false, inject.IgnoredNamespace, true},
		{"never comes before the policy", selectors, `metadata: {labels: {job: batch}}`, false, inject.NeverSelector, false},
		{"never comes before always", selectors, `metadata: {labels: {job: batch, mesh: "1"}}`, false, inject.NeverSelector, false},
		{"an empty selector selects nothing", selectors, `metadata: {labels: {app: web}}`, true, inject.PolicyEnabled, false},
		{"always comes before a disabled policy", disabled, `metadata: {labels: {mesh: please}}`, true, inject.AlwaysSelector, false},
		{"the pod's word comes before the selectors", selectors, `metadata: {labels: {job: batch, sidecar.istio.io/inject: "true"}}`, true, inject.OptedIn, false},
		{"a static pod's mirror cannot be changed", "", `metadata: {annotations: {kubernetes.io/config.mirror: abc}}`, false, inject.MirrorPod, false},
		{"Windows has no sidecar", "", `spec: {os: {name: windows}}`, false, inject.OtherSystem, false},
		{"Linux may be said", "", `spec: {os: {name: linux}}`, true, inject.PolicyEnabled, false},
		{"a pod with a sidecar has one", "", "metadata: {annotations: {sidecar.istio.io/status: '{}'}}\nspec: {containers: [{name: istio-proxy}]}", false, inject.AlreadyInjected, false},
		{"an annotation copied without the sidecar is no sidecar", "", "metadata: {annotations: {sidecar.istio.io/status: '{}'}}\nspec: {containers: [{name: web}]}", true, inject.PolicyEnabled, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := podFrom(t, c.pod)
			if pod.Namespace == "" {
				pod.Namespace = "shop"
			}
			v := inject.Decide(pod, configFrom(t, "", c.config, ""))
			if v.Inject != c.inject || v.Reason != c.reason || v.Surprising != c.surprising {
				t.Errorf("got %+v, want inject %v, reason %s, surprising %v", v, c.inject, c.reason, c.surprising)
			}
			if v.Detail == "" {
				t.Error("the verdict has no sentence")
			}
			word, said := pod.Labels["sidecar.istio.io/inject"]
			if odd := said && word != "true" && word != "false" && word != ""; odd != strings.Contains(v.Warning, "counts as not said") {
				t.Errorf("the warning is %q", v.Warning)
			}
		})
	}
}

// TestRulesAreComplete: every annotation that the API module knows for pods has a rule, so that none is ignored in silence when
// the module is updated.
func TestRulesAreComplete(t *testing.T) {
	for _, a := range annotation.AllResourceAnnotations() {
		if !slices.Contains(a.Resources, annotation.Pod) && !slices.Contains(a.Resources, annotation.Any) {
			continue
		}
		if !inject.HasRule(a.Name) && a.Name != annotation.GatewayControllerVersion.Name {
			t.Errorf("injection has no rule for the annotation %s (%s)", a.Name, a.Description)
		}
	}
}

// podLabels says what injection does with each label that the API module knows for pods.
var podLabels = map[string]string{
	"sidecar.istio.io/inject":                      "read by Decide",
	"istio.io/rev":                                 "read at the API server: which revision's webhook is called",
	"topology.istio.io/network":                    "becomes the sidecar's network, before the values'",
	"topology.istio.io/cluster":                    "written by multi-cluster endpoints; the sidecar's cluster is that of its webhook",
	"topology.istio.io/locality":                   "read by the control plane",
	"topology.istio.io/subzone":                    "read by the control plane, on nodes",
	"service.istio.io/canonical-name":              "kept, or set from app.kubernetes.io/name, app or the workload",
	"service.istio.io/canonical-revision":          "kept, or set from app.kubernetes.io/version or version",
	"service.istio.io/workload-name":               "becomes the workload's name",
	"security.istio.io/tlsMode":                    "kept, or set to istio",
	"gateway.istio.io/managed":                     "set on gateways that a controller made",
	"gateway.networking.k8s.io/gateway-name":       "set on gateways that a controller made",
	"gateway.networking.k8s.io/gateway-class-name": "set on gateways that a controller made",
	"istio.io/dataplane-mode":                      "of Istio's ambient mode, which is not here",
	"istio.io/use-waypoint":                        "of Istio's ambient mode, which is not here",
	"operator.istio.io/component":                  "of Istio's operator, which is not here",
	"operator.istio.io/managed":                    "of Istio's operator, which is not here",
	"operator.istio.io/version":                    "of Istio's operator, which is not here",
	"istio.io/use-waypoint-namespace":              "of Istio's ambient mode, which is not here",
}

// TestLabelsAreComplete: every label that the API module knows for pods is in the table, so that none is ignored in silence when
// the module is updated.
func TestLabelsAreComplete(t *testing.T) {
	for _, l := range label.AllResourceLabels() {
		if (slices.Contains(l.Resources, label.Pod) || slices.Contains(l.Resources, label.Any)) && podLabels[l.Name] == "" {
			t.Errorf("nobody has decided what injection does with the label %s (%s)", l.Name, l.Description)
		}
	}
}

func TestInputIsNotNeeded(t *testing.T) {
	// The emptiest pod that decodes: nothing to hold on to, and no crash.
	if _, _, err := inject.Pod(&corev1.Pod{}, configFrom(t, "", "", "")); err != nil {
		t.Error(err)
	}
}
