package translate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	meshapi "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// The defaults of MeshConfig, as its documentation gives them.
const (
	defaultDomain         = "cluster.local" // trust domain and cluster domain
	defaultConnectTimeout = 10 * time.Second
)

// meshWide is the mesh configuration in the form that the rest of the translation reads.
type meshWide struct {
	source   *index.MeshConfig
	config   index.Config
	settings *mesh.Settings
	autoMTLS bool
	// selectors say which namespaces the mesh looks at; none for all.
	selectors []labels.Selector
	// The audiences of objects that do not say their own.
	exportServices, exportVirtual, exportRules []string
	// trustDomains are the mesh's own and its aliases.
	trustDomains trustDomains
	authorizers  map[string]*mesh.Authorizer
	keys         *index.Keys
	problems     []diag.Problem
}

// translateMeshConfig reads the mesh configuration; prev is its last result, which is given again when nothing it reads
// has changed.
func translateMeshConfig(prev *meshWide, snap *index.Snapshot) *meshWide {
	if prev != nil && prev.source == snap.Mesh && prev.config == snap.Config && prev.keys == snap.Keys {
		return prev
	}
	c := reader{object: snap.Mesh.Ref}
	values := snap.Mesh.Values
	out := &meshWide{source: snap.Mesh, config: snap.Config, keys: snap.Keys, autoMTLS: true}
	if auto := values.GetEnableAutoMtls(); auto != nil {
		out.autoMTLS = auto.GetValue()
	}
	out.settings = &mesh.Settings{
		TrustDomain:          c.trustDomain(values, snap.Config),
		RootNamespace:        orDefault(values.GetRootNamespace(), snap.Config.Namespace),
		ClusterDomain:        orDefault(strings.ToLower(snap.Config.ClusterDomain), defaultDomain),
		AccessLogFile:        values.GetAccessLogFile(),
		ConnectTimeoutMillis: c.connectTimeout(values).Milliseconds(),
		BlackHoleUnknown:     c.blackHoleUnknown(values),
	}
	out.settings.AccessLogFormat, out.settings.AccessLogJSON = c.accessLogFormat(values)
	if !snap.Mesh.Ref.IsZero() {
		out.settings.Refs = []ref.Ref{snap.Mesh.Ref}
	}
	out.settings.TrustDomainAliases = values.GetTrustDomainAliases()
	out.trustDomains = append(trustDomains{out.settings.TrustDomain}, out.settings.TrustDomainAliases...)
	out.authorizers = c.authorizers(values)
	out.selectors = c.selectors(values)
	out.exportServices, out.exportVirtual, out.exportRules = values.GetDefaultServiceExportTo(), values.GetDefaultVirtualServiceExportTo(), values.GetDefaultDestinationRuleExportTo()
	c.unsupported(values)
	out.problems = c.problems
	if prev != nil && reflect.DeepEqual(prev.settings, out.settings) {
		out.settings = prev.settings
	}
	return out
}

func orDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// reader reads one object and collects what is wrong with it.
type reader struct {
	object   ref.Ref
	problems []diag.Problem
}

func (r *reader) add(code diag.Code, severity diag.Severity, field, detail, hint string) {
	r.problems = append(r.problems, diag.Problem{
		Code: code, Severity: severity, Object: r.object, Field: field, Detail: detail, Hint: hint,
	})
}

// trustDomain is the CA's, where that is known: identities of another would match no certificate.
func (r *reader) trustDomain(values *meshapi.MeshConfig, config index.Config) string {
	wanted := values.GetTrustDomain()
	if config.TrustDomain == "" {
		return orDefault(wanted, defaultDomain)
	}
	if wanted != "" && wanted != config.TrustDomain {
		r.add(diag.InvalidField, diag.Error, "trustDomain",
			fmt.Sprintf("%q is not the trust domain that the control plane's CA signs for, which is %q and stays in force", wanted, config.TrustDomain),
			"start selvaged with --trust-domain "+wanted+", or write "+config.TrustDomain+" here")
	}
	return config.TrustDomain
}

func (r *reader) connectTimeout(values *meshapi.MeshConfig) time.Duration {
	if values.GetConnectTimeout() == nil {
		return defaultConnectTimeout
	}
	d := values.GetConnectTimeout().AsDuration()
	if d < time.Millisecond || d > time.Hour {
		r.add(diag.InvalidField, diag.Error, "connectTimeout",
			fmt.Sprintf("%s is not between 1ms and 1h; %s is in force", d, defaultConnectTimeout), "write a duration such as 10s")
		return defaultConnectTimeout
	}
	return d
}

func (r *reader) blackHoleUnknown(values *meshapi.MeshConfig) bool {
	policy := values.GetOutboundTrafficPolicy()
	switch {
	case policy == nil:
		return false
	case policy.GetMode() == meshapi.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY:
		return true
	case policy.GetMode() != meshapi.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY:
		r.add(diag.UnsupportedField, diag.Warning, "outboundTrafficPolicy.mode",
			fmt.Sprintf("%s is not carried out; ALLOW_ANY is in force", policy.GetMode()), "write ALLOW_ANY or REGISTRY_ONLY")
	}
	return false
}

func (r *reader) accessLogFormat(values *meshapi.MeshConfig) (format string, isJSON bool) {
	format = values.GetAccessLogFormat()
	if values.GetAccessLogEncoding() != meshapi.MeshConfig_JSON {
		return format, false
	}
	if format == "" {
		return "", true
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(format), &fields); err != nil || fields == nil {
		r.add(diag.InvalidField, diag.Error, "accessLogFormat",
			"it is not a JSON object, which accessLogEncoding JSON wants; the default format is in force",
			`write an object such as {"status": "%RESPONSE_CODE%"}, or accessLogEncoding: TEXT`)
		return "", true
	}
	return format, true
}

func (r *reader) selectors(values *meshapi.MeshConfig) (selectors []labels.Selector) {
	for i, s := range values.GetDiscoverySelectors() {
		wanted := &metav1.LabelSelector{MatchLabels: s.GetMatchLabels()}
		for _, e := range s.GetMatchExpressions() {
			wanted.MatchExpressions = append(wanted.MatchExpressions, metav1.LabelSelectorRequirement{
				Key: e.GetKey(), Operator: metav1.LabelSelectorOperator(e.GetOperator()), Values: e.GetValues(),
			})
		}
		selector, err := metav1.LabelSelectorAsSelector(wanted)
		if err != nil {
			// Leaving a selector out could hide a part of the mesh, so all of them are: everything is seen.
			r.add(diag.InvalidField, diag.Error, fmt.Sprintf("discoverySelectors[%d]", i),
				err.Error()+"; no selector is in force, every namespace is seen", "mend the selector")
			return nil
		}
		selectors = append(selectors, selector)
	}
	return selectors
}

// readElsewhere are the fields of MeshConfig that the code above, the injector, the agent or the CA reads.
var readElsewhere = []protoreflect.Name{
	"access_log_encoding", "access_log_file", "access_log_format", "connect_timeout", "default_config", "default_destination_rule_export_to",
	"default_service_export_to", "default_virtual_service_export_to", "discovery_selectors",
	"enable_auto_mtls", "enable_prometheus_merge", "outbound_traffic_policy", "root_namespace", "trust_domain", "trust_domain_aliases",
}

// harmless are fields that say only what is so anyway, in the default installation of Istio too.
var harmless = map[protoreflect.Name]func(*meshapi.MeshConfig) bool{
	"ingress_controller_mode": func(c *meshapi.MeshConfig) bool {
		return c.GetIngressControllerMode() == meshapi.MeshConfig_OFF
	},
	"proxy_listen_port":         func(c *meshapi.MeshConfig) bool { return c.GetProxyListenPort() == 15001 },
	"proxy_inbound_listen_port": func(c *meshapi.MeshConfig) bool { return c.GetProxyInboundListenPort() == 15006 },
	"default_providers": func(c *meshapi.MeshConfig) bool { // Prometheus' metrics are Envoy's own, merged by the agent
		p := c.GetDefaultProviders()
		return len(p.GetTracing()) == 0 && len(p.GetAccessLogging()) == 0 && slices.Equal(p.GetMetrics(), []string{"prometheus"})
	},
	// A provider that is defined has an effect only through an object of another kind.
	"extension_providers": func(*meshapi.MeshConfig) bool { return true },
	// An ingress class without a controller that acts on it.
	"ingress_class":    func(*meshapi.MeshConfig) bool { return true },
	"ingress_service":  func(*meshapi.MeshConfig) bool { return true },
	"ingress_selector": func(*meshapi.MeshConfig) bool { return true },
}

// unsupported names every other field that is set: it has no effect yet.
func (r *reader) unsupported(values *meshapi.MeshConfig) {
	var names []string
	values.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		ok := harmless[fd.Name()]
		if !slices.Contains(readElsewhere, fd.Name()) && (ok == nil || !ok(values)) {
			names = append(names, fd.JSONName())
		}
		return true
	})
	if values.GetOutboundTrafficPolicy().GetTls() != nil {
		names = append(names, "outboundTrafficPolicy.tls")
	}
	slices.Sort(names)
	for _, name := range names {
		r.add(diag.UnsupportedField, diag.Warning, name, "this version does not carry the field out; it has no effect",
			"take it out, or leave it if that does no harm")
	}
}
