package install

import (
	"encoding/json"
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// settings are the injector's and the mesh's: the built-in ones, under a mesh configuration that was given, under what the
// options say about images and names.
func (o Options) settings() (inject.Settings, error) {
	values, err := json.Marshal(o.values())
	if err != nil {
		return inject.Settings{}, fmt.Errorf("render values: %w", err)
	}
	s, problems := inject.ParseSettings(o.MeshConfig, nil, values)
	if o.TrustDomain != "" {
		s.Mesh.TrustDomain = o.TrustDomain
	}
	if err := o.Authority.knows(s.Mesh); err != nil {
		return s, err
	}
	_, more := s.Compile()
	for _, p := range append(problems, more...) {
		if p.Severity == diag.Error {
			return s, fmt.Errorf("use mesh configuration: %s: %s", strings.TrimPrefix(p.Field, "data."), p.Detail)
		}
	}
	return s, nil
}

// Who injects.
const (
	ByWebhook     = "webhook" // the control plane, which the API server calls
	ByPolicy      = "policy"  // the API server itself, and the webhook what that cannot
	AutoInjection = "auto"    // ByPolicy where it can be
)

// settled decides who injects: ByPolicy or ByWebhook. why says what keeps the policy from it; where it was asked for, that is an error.
func (o Options) settled(s inject.Settings) (_ Options, why string, err error) {
	if o.Injection == "" || o.Injection == ByWebhook {
		o.Injection = ByWebhook
		return o, "", nil
	}
	if o.MutatingPolicies != policy.MutatingVersions[0] {
		why = "the API server does not serve MutatingAdmissionPolicy v1 (Kubernetes 1.36)"
	} else if config, _ := s.Compile(); config != nil { // what is wrong with it was reported before
		if _, problems := policy.NewTemplate(config); len(problems) > 0 {
			why = problems[0].Detail + " (" + strings.TrimPrefix(problems[0].Field, "data.") + ")"
		}
	}
	switch {
	case why == "":
		o.Injection = ByPolicy
	case o.Injection == ByPolicy:
		return o, why, fmt.Errorf("inject by policy: %s; use --injection webhook, or auto", why)
	default:
		o.Injection = ByWebhook
	}
	return o, why, nil
}

// values are what the options say in the format of the injector's values, laid over the built-in ones. An image of the form
// HUB/NAME:TAG is taken apart, as people who know Istio's values look for hub and tag.
func (o Options) values() map[string]any {
	image, global := o.ProxyImage, map[string]any{}
	slash, colon := strings.LastIndex(image, "/"), strings.LastIndex(image, ":")
	if slash > 0 && colon > slash && !strings.Contains(image, "@") {
		global["hub"], global["tag"], image = image[:slash], image[colon+1:], image[slash+1:colon]
	}
	global["proxy"] = map[string]any{"image": image}
	global["proxy_init"] = map[string]any{"image": image}
	global["multiCluster"] = map[string]any{"clusterName": o.ClusterID}
	if o.Authority.Address != "" {
		global["caAddress"] = o.Authority.Address
	}
	if o.PullPolicy != "" {
		global["imagePullPolicy"] = o.PullPolicy
	}
	values := map[string]any{"revision": o.revision(), "global": global,
		"sidecarInjectorWebhook": map[string]any{"enableNamespacesByDefault": o.EnableNamespacesByDefault}}
	if o.NativeSidecars != "" {
		values["pilot"] = map[string]any{"env": map[string]any{"ENABLE_NATIVE_SIDECARS": o.NativeSidecars}}
	}
	return values
}

// webhooks are the configurations by which the control plane is called for each pod that is created and selected: the
// revision's, those of its tags, and that of its probe. They carry no caBundle: see FieldManager.
func (o Options) webhooks() (out []*admissionv1.MutatingWebhookConfiguration) {
	r := inject.Registration{
		Revision:                  o.revision(),
		EnableNamespacesByDefault: o.EnableNamespacesByDefault, AfterPolicy: o.Injection == ByPolicy,
		Endpoint: inject.Endpoint{Namespace: Namespace, Service: o.Name(appName), URL: strings.TrimSuffix(o.WebhookURL, "/")},
	}
	out = append(out, r.Configuration())
	for _, tag := range o.Tags {
		r.Tag = tag
		out = append(out, r.Configuration())
	}
	out = append(out, verdict.Mutating(o.revision(), r.Endpoint))
	for _, c := range out {
		revision.Own(c.Labels)
	}
	return out
}
