package inject

import (
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"google.golang.org/protobuf/proto"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// ProxyConfigResource is an object of kind ProxyConfig (networking.istio.io/v1beta1): settings of the proxies of a workload, of a
// namespace or, in the root namespace, of the mesh.
type ProxyConfigResource struct {
	Namespace, Name string
	Spec            *networkingv1beta1.ProxyConfig
}

// WithProxyConfigs is c with the objects of the cluster. They are laid over the mesh's default configuration: first those of the
// root namespace, then those of the pod's namespace, then those whose selector matches the pod's labels, in the order of the list;
// the pod's own annotation wins over all of them. An object that cannot be used is left out and is a problem of its own.
func (c *Config) WithProxyConfigs(list []ProxyConfigResource) (*Config, []diag.Problem) {
	var problems []diag.Problem
	copied := *c
	copied.overlays = nil
	for _, r := range list {
		if err := checkProxyConfig(r.over(c.pod.proxy), c.settings.Serves); err != nil && c.templates.typed { // another template's agent may have it
			problems = append(problems, diag.Problem{Code: diag.InvalidField, Severity: diag.Error, Field: "spec", Detail: err.Error(),
				Object: ref.Ref{Kind: "ProxyConfig", Namespace: r.Namespace, Name: r.Name}, Hint: "the object has no effect until it is mended"})
			continue
		}
		copied.overlays = append(copied.overlays, r)
	}
	return &copied, problems
}

// over gives base with the object's fields.
func (r ProxyConfigResource) over(base *meshv1alpha1.ProxyConfig) *meshv1alpha1.ProxyConfig {
	merged := proto.Clone(base).(*meshv1alpha1.ProxyConfig)
	if n := r.Spec.GetConcurrency(); n != nil {
		merged.Concurrency = n
	}
	if kind := r.Spec.GetImage(); kind.GetImageType() != "" {
		merged.Image = kind
	}
	for name, value := range r.Spec.GetEnvironmentVariables() {
		if merged.ProxyMetadata == nil {
			merged.ProxyMetadata = map[string]string{}
		}
		merged.ProxyMetadata[name] = value
	}
	return merged
}

// rank orders the objects that concern a pod: 0 is none of its business.
func (r ProxyConfigResource) rank(pod *corev1.Pod, root string) int {
	selector := r.Spec.GetSelector().GetMatchLabels()
	switch {
	case len(selector) > 0 && r.Namespace == pod.Namespace && labels.SelectorFromSet(selector).Matches(labels.Set(pod.Labels)):
		return 3
	case len(selector) > 0:
		return 0
	case r.Namespace == root:
		return 1
	case r.Namespace == pod.Namespace:
		return 2
	}
	return 0
}

// mergeProxyConfigs lays the objects that concern the pod over the mesh's configuration.
func (c *Config) mergeProxyConfigs(s *podSettings, pod *corev1.Pod) {
	if merged := c.overlaid(s.proxy, pod); merged != s.proxy {
		s.useProxyConfig(merged)
	}
}

// overlaid is base with the objects that concern the pod; base itself when there are none.
func (c *Config) overlaid(base *meshv1alpha1.ProxyConfig, pod *corev1.Pod) *meshv1alpha1.ProxyConfig {
	if len(c.overlays) == 0 {
		return base
	}
	root := first(c.settings.Mesh.GetRootNamespace(), c.Namespace())
	for rank := 1; rank <= 3; rank++ {
		for _, r := range c.overlays {
			if r.rank(pod, root) == rank {
				base = r.over(base)
			}
		}
	}
	return base
}
