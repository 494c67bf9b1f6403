package install

import (
	"encoding/json"
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// settings are the injector's and the mesh's: the built-in ones, under a mesh configuration that was given, under what the
// options say about images and names.
func (o Options) settings() (inject.Settings, error) {
	values, err := json.Marshal(map[string]string{"revision": o.revision()})
	if err != nil {
		return inject.Settings{}, fmt.Errorf("render revision: %w", err)
	}
	s, problems := inject.ParseSettings(o.MeshConfig, nil, values)
	if o.TrustDomain != "" {
		s.Mesh.TrustDomain = o.TrustDomain
	}
	s.Values.Global.Proxy.Image = o.ProxyImage
	s.Values.Global.ProxyInit.Image = o.ProxyImage
	s.Values.Global.MultiCluster.ClusterName = o.ClusterID
	if o.PullPolicy != "" {
		s.Values.Global.ImagePullPolicy = o.PullPolicy
	}
	_, more := s.Compile()
	for _, p := range append(problems, more...) {
		if p.Severity == diag.Error {
			return s, fmt.Errorf("use mesh configuration: %s: %s", strings.TrimPrefix(p.Field, "data."), p.Detail)
		}
	}
	return s, nil
}

// webhooks call the control plane for each pod that is created and selected. They carry no caBundle: see FieldManager.
func (o Options) webhooks() *admissionv1.MutatingWebhookConfiguration {
	meta := o.clusterMeta(o.Name(inject.InjectorConfigMap))
	meta.Labels[appLabel] = "sidecar-injector"
	return &admissionv1.MutatingWebhookConfiguration{
		TypeMeta:   typeMeta(admissionv1.SchemeGroupVersion.String(), "MutatingWebhookConfiguration"),
		ObjectMeta: meta,
		Webhooks: inject.Webhooks(o.revision(), inject.Endpoint{
			Namespace: Namespace, Service: o.Name(appName), URL: strings.TrimSuffix(o.WebhookURL, "/"),
		}),
	}
}
