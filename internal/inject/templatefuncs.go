package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// unrepeatable are functions of Sprig's that give something else on another run or another machine, or that take long on
// purpose. A template has none of them: the same pod must always get the same patch, and injection stays pure.
var unrepeatable = []string{
	"now", "ago", "date", "date_in_zone", "date_modify", "dateInZone", "dateModify", "must_date_modify", "mustDateModify", "htmlDate", "htmlDateInZone",
	"toDate", "mustToDate", "unixEpoch", "durationRound",
	"randAlphaNum", "randAlpha", "randAscii", "randNumeric", "randBytes", "randInt", "shuffle", "uuidv4",
	"expandenv", "getHostByName",
	"bcrypt", "htpasswd", "derivePassword", "genPrivateKey", "genCA", "genCAWithKey", "genSelfSignedCert", "genSelfSignedCertWithKey", "genSignedCert",
	"genSignedCertWithKey", "buildCustomCert", "encryptAES", "decryptAES",
}

// templateFuncs are what a template can call: Sprig's functions and those that Istio adds for its own templates, with the same
// names, arguments and results, so that a template that was written for Istio works. (Facts from Istio's pkg/kube/inject.)
var templateFuncs = sync.OnceValue(func() template.FuncMap {
	funcs := sprig.TxtFuncMap()
	for _, name := range unrepeatable {
		delete(funcs, name)
	}
	maps.Copy(funcs, template.FuncMap{
		// The language's own, to be bounded as all others are.
		"print": fmt.Sprint, "printf": fmt.Sprintf, "println": fmt.Sprintln,
		"html": template.HTMLEscaper, "js": template.JSEscaper, "urlquery": template.URLQueryEscaper,
		"until": func(n int) ([]int, error) { return untilStep(0, n, 1) },
		"untilStep": func(start, stop, step int) ([]int, error) {
			if stop < start && step > 0 {
				step = 0 // Sprig gives an empty list
			}
			return untilStep(start, stop, step)
		},
		"seq": shortSeq(funcs["seq"].(func(...int) string)),

		"sortAlpha": sortedCopy(funcs["sortAlpha"].(func(any) []string)),

		// Go's maps have no order.
		"keys":   func(dicts ...map[string]any) []string { return sortedOf(dicts) },
		"values": dictValues,
		"env":    noEnv,

		"formatDuration":         func(d *durationpb.Duration) string { return d.AsDuration().String() },
		"isset":                  func(m map[string]string, key string) bool { _, has := m[key]; return has },
		"excludeInboundPort":     excludeInboundPort,
		"includeInboundPorts":    func(list []corev1.Container) string { return tcpPorts(list, "") },
		"applicationPorts":       func(list []corev1.Container) string { return tcpPorts(list, ProxyContainer) },
		"kubevirtInterfaces":     func(s string) string { return s },
		"excludeInterfaces":      func(s string) string { return s },
		"annotation":             annotationOr,
		"valueOrDefault":         valueOrDefault,
		"toJSON":                 func(m map[string]string) string { return jsonOr(m, m == nil) },
		"structToJSON":           func(v any) string { return jsonOr(v, v == nil) },
		"toJsonMap":              func(list ...map[string]string) string { return jsonOr(mergeMaps(list...), false) },
		"fromJSON":               fromJSON,
		"protoToJSON":            protoToJSON,
		"toYaml":                 toYAML,
		"indent":                 indentRest,
		"directory":              func(file string) string { dir, _ := path.Split(file); return dir },
		"contains":               func(part, of string) bool { return strings.Contains(of, part) },
		"toLower":                strings.ToLower,
		"appendMultusNetwork":    appendMultusNetwork,
		"omit":                   omitKeys,
		"strdict":                strdict,
		"mergeMaps":              mergeMaps,
		"omitNil":                withoutNil,
		"otelResourceAttributes": otelResourceAttributes,
	})
	return funcs
})

// shortSeq is Sprig's seq, for numbers that are not too far apart.
func shortSeq(seq func(...int) string) func(...int) (string, error) {
	return func(args ...int) (string, error) {
		for _, n := range args {
			if n > mostEntries || n < -mostEntries {
				return "", errTooMuch
			}
		}
		return seq(args...), nil
	}
}

// sortedCopy keeps Sprig's sortAlpha from sorting the list itself: it may be the pod's own, or the mesh's.
func sortedCopy(sortAlpha func(any) []string) func(any) []string {
	return func(list any) []string {
		if texts, ok := list.([]string); ok {
			list = slices.Clone(texts)
		}
		return sortAlpha(list)
	}
}

// untilStep is Sprig's: the numbers from start to before stop.
func untilStep(start, stop, step int) ([]int, error) {
	list := []int{}
	if step == 0 {
		return list, nil
	}
	if step < 0 && stop > start {
		return list, nil
	}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(list) == mostEntries {
			return nil, errTooMuch
		}
		list = append(list, i)
	}
	return list, nil
}

func sortedOf(dicts []map[string]any) []string {
	out := []string{}
	for _, d := range dicts {
		out = append(out, sortedKeys(d)...)
	}
	return out
}

func dictValues(dict map[string]any) []any {
	out := make([]any, 0, len(dict))
	for _, key := range sortedKeys(dict) {
		out = append(out, dict[key])
	}
	return out
}

// noEnv is Istio's env: a variable of the control plane, or else what the template says. Here no variable is ever set: a patch
// depends on the pod and the ConfigMaps alone.
func noEnv(_ string, or ...string) string { return strings.Join(or, "") }

// excludeInboundPort adds a port to a list, unless it is 0, "" or there already.
func excludeInboundPort(port any, excluded string) string {
	add := strings.TrimSpace(fmt.Sprint(port))
	if add == "" || add == "0" {
		return excluded
	}
	var list []string
	for item := range strings.SplitSeq(excluded, ",") {
		if item == add {
			return excluded
		}
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return strings.Join(append(list, add), ",")
}

// tcpPorts are the ports that containers, but one, declare.
func tcpPorts(list []corev1.Container, but string) string {
	var ports []string
	for i := range list {
		if list[i].Name == but {
			continue
		}
		for _, p := range list[i].Ports {
			if p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP {
				ports = append(ports, strconv.Itoa(int(p.ContainerPort)))
			}
		}
	}
	return strings.Join(ports, ",")
}

// annotationOr is an annotation's value, or else the text of another value; that of nothing is "<nil>", as in Istio.
func annotationOr(meta metav1.ObjectMeta, name string, or any) string {
	if value, has := meta.Annotations[name]; has {
		return value
	}
	return fmt.Sprint(or)
}

func valueOrDefault(value, or any) any {
	if value == nil || value == "" {
		return or
	}
	return value
}

// jsonOr is JSON, and {} for what has none.
func jsonOr(v any, none bool) string {
	if none {
		return "{}"
	}
	data, err := json.Marshal(v)
	if err != nil {
		return "{}"
	}
	return string(data)
}

// fromJSON gives "{}" for what is no JSON, as Istio does: ranging over it gives an error that names the template's line.
func fromJSON(s string) any {
	var v any
	if json.Unmarshal([]byte(s), &v) != nil {
		return "{}"
	}
	return v
}

// protoToJSON leaves out of a ProxyConfig what every agent takes for granted: the pod's environment stays short.
func protoToJSON(m proto.Message) string {
	if m == nil || !m.ProtoReflect().IsValid() {
		return "{}"
	}
	if pc, ok := m.(*meshv1alpha1.ProxyConfig); ok {
		m = withoutDefaults(pc)
	}
	return compactProto(m)
}

// agentDefaults are the fields of ProxyConfig that agents have these values for anyway, beside those of asInstalled.
var agentDefaults = &meshv1alpha1.ProxyConfig{
	ConfigPath:               "./etc/istio/proxy",
	BinaryPath:               "/usr/local/bin/envoy",
	ClusterName:              &meshv1alpha1.ProxyConfig_ServiceCluster{ServiceCluster: "istio-proxy"},
	ControlPlaneAuthPolicy:   meshv1alpha1.AuthenticationPolicy_MUTUAL_TLS,
	DiscoveryAddress:         DiscoveryAddress(DefaultNamespace, DefaultRevision),
	DrainDuration:            &durationpb.Duration{Seconds: 45},
	TerminationDrainDuration: &durationpb.Duration{Seconds: 5},
	ProxyAdminPort:           15000,
	StatNameLength:           189,
	StatusPort:               agentPort,
}

func withoutDefaults(pc *meshv1alpha1.ProxyConfig) *meshv1alpha1.ProxyConfig {
	out := proto.Clone(pc).(*meshv1alpha1.ProxyConfig)
	m, usual := out.ProtoReflect(), agentDefaults.ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); m.Has(f) && usual.Has(f) && m.Get(f).Equal(usual.Get(f)) {
			m.Clear(f)
		}
	}
	return out
}

func toYAML(v any) string {
	data, err := yaml.Marshal(v)
	if err != nil {
		return ""
	}
	return string(data)
}

// indentRest puts spaces before every line but the first: in a template the first stands where the call stands.
func indentRest(spaces int, text string) string {
	return strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", spaces))
}

// appendMultusNetwork adds a network to the value of k8s.v1.cni.cncf.io/networks, in whichever of its two forms it is: names with
// commas between, or a JSON array of objects. A network that is there already is not added again.
func appendMultusNetwork(existing, network string) string {
	if existing == "" {
		return network
	}
	end := strings.LastIndex(existing, "]")
	if end < 0 {
		for item := range strings.SplitSeq(existing, ",") {
			if strings.TrimSpace(item) == network {
				return existing
			}
		}
		return existing + ", " + network
	}
	var have []struct{ Name, Namespace string }
	if json.Unmarshal([]byte(existing), &have) != nil {
		return existing // Multus will say so
	}
	entry := struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace,omitempty"`
	}{Name: network}
	if namespace, name, found := strings.Cut(network, "/"); found {
		entry.Namespace, entry.Name = namespace, name
	}
	for _, h := range have {
		if h.Name == entry.Name && h.Namespace == entry.Namespace {
			return existing
		}
	}
	add := `{"name": ` + strconv.Quote(entry.Name)
	if entry.Namespace != "" {
		add += `, "namespace": ` + strconv.Quote(entry.Namespace)
	}
	if len(have) > 0 {
		add = ", " + add
	}
	return existing[:end] + add + "}" + existing[end:]
}

func omitKeys(m map[string]string, keys ...string) map[string]string {
	out := map[string]string{}
	for key, value := range m {
		if !slices.Contains(keys, key) {
			out[key] = value
		}
	}
	return out
}

// strdict makes a map of the arguments, taken in pairs; a last one without a value has "".
func strdict(pairs ...string) map[string]string {
	out := make(map[string]string, len(pairs)/2)
	for pair := range slices.Chunk(pairs, 2) {
		out[pair[0]] = strings.Join(pair[1:], "")
	}
	return out
}

// mergeMaps lays maps over each other; the last one wins.
func mergeMaps(list ...map[string]string) map[string]string {
	if len(list) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, m := range list {
		maps.Copy(out, m)
	}
	return out
}

// withoutNil takes what is null out of maps and lists, and the maps and lists that are empty then. One that had nothing null in it
// stays as it is, also empty.
func withoutNil(v any) any {
	if !hasNil(v) {
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, item := range v {
			if kept := withoutNil(item); kept != nil {
				out[key] = kept
			}
		}
		if len(out) > 0 {
			return out
		}
	case []any:
		out := make([]any, 0, len(v))
		for _, item := range v {
			if kept := withoutNil(item); kept != nil {
				out = append(out, kept)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

func hasNil(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case map[string]any:
		for _, item := range v {
			if hasNil(item) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, hasNil)
	}
	return false
}

// otelResourceAttributes is OTEL_RESOURCE_ATTRIBUTES by OpenTelemetry's conventions for services on Kubernetes; "" unless a
// tracing provider of the mesh asks for them.
func otelResourceAttributes(mesh *meshv1alpha1.MeshConfig, annotations, labels map[string]string, namespace string, containers []corev1.Container) string {
	asked := slices.ContainsFunc(mesh.GetExtensionProviders(), func(p *meshv1alpha1.MeshConfig_ExtensionProvider) bool {
		return p.GetOpentelemetry().GetServiceAttributeEnrichment() == meshv1alpha1.MeshConfig_ExtensionProvider_OTEL_SEMANTIC_CONVENTIONS
	})
	if !asked {
		return ""
	}
	image, instance := "", ""
	if len(containers) == 1 {
		image = imageVersion(containers[0].Image)
	}
	if len(containers) > 0 {
		instance = namespace + ".$(POD_NAME)." + containers[0].Name
	}
	var out []string
	for _, a := range []struct{ name, value string }{
		{"service.namespace", namespace},
		{"service.version", first(labels["app.kubernetes.io/version"], image)},
		{"service.instance.id", instance},
	} {
		if value := first(annotations["resource.opentelemetry.io/"+a.name], a.value); value != "" {
			out = append(out, a.name+"="+value)
		}
	}
	return strings.Join(out, ",")
}

// imageVersion is TAG, DIGEST or TAG@DIGEST of an image reference.
func imageVersion(image string) string {
	name, digest, _ := strings.Cut(image, "@")
	tag := ""
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		tag = name[i+1:]
	}
	if tag != "" && digest != "" {
		return tag + "@" + digest
	}
	return first(tag, digest)
}
