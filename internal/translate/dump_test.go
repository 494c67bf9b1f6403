package translate_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// parse reads a stream of YAML objects of the kinds that are indexed.
func parse(t testing.TB, stream string) (objects []any) {
	t.Helper()
	for doc := range strings.SplitSeq("\n"+stream, "\n---") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("parse object: %v\n%s", err, doc)
		}
		made := map[string]func() any{
			"Namespace":     func() any { return &corev1.Namespace{} },
			"Node":          func() any { return &corev1.Node{} },
			"Service":       func() any { return &corev1.Service{} },
			"Pod":           func() any { return &corev1.Pod{} },
			"ConfigMap":     func() any { return &corev1.ConfigMap{} },
			"EndpointSlice": func() any { return &discoveryv1.EndpointSlice{} },
		}[head.Kind]
		if i := slices.IndexFunc(index.IstioKinds(), func(k index.IstioKind) bool { return k.Name == head.Kind }); i >= 0 {
			k := index.IstioKinds()[i]
			made = func() any { return &unstructured.Unstructured{} }
			doc = strings.TrimSpace(doc) + "\napiVersion: " + k.Group + "/" + k.Versions[0] + "\n"
		}
		if made == nil {
			t.Fatalf("parse object: kind %q is not one of the test's\n%s", head.Kind, doc)
		}
		obj := made()
		read := yaml.UnmarshalStrict
		if _, ok := obj.(*unstructured.Unstructured); ok {
			read = yaml.Unmarshal // its apiVersion may stand there twice
		}
		if err := read([]byte(doc), obj); err != nil {
			t.Fatalf("parse %s: %v\n%s", head.Kind, err, doc)
		}
		objects = append(objects, obj)
	}
	return objects
}

func newBuilder(t testing.TB, objects ...any) *index.Builder {
	t.Helper()
	b, err := index.New(index.Config{Namespace: "istio-system"})
	if err != nil {
		t.Fatal(err)
	}
	set(t, b, objects...)
	return b
}

func set(t testing.TB, b *index.Builder, objects ...any) {
	t.Helper()
	for _, o := range objects {
		if err := b.Set(o); err != nil {
			t.Fatal(err)
		}
	}
}

// dump writes a model and its problems so that people can review them. Everything a model says is in it.
func dump(m *mesh.Model, problems []diag.Problem) string {
	var b strings.Builder
	s := *m.Settings
	fmt.Fprintf(&b, "settings %s root namespace %s, cluster domain %s, connect timeout %d ms", s.TrustDomain, s.RootNamespace, s.ClusterDomain, s.ConnectTimeoutMillis)
	if s.BlackHoleUnknown {
		b.WriteString(", unknown refused")
	}
	if s.AccessLogFile != "" {
		fmt.Fprintf(&b, ", log %s json=%t %q", s.AccessLogFile, s.AccessLogJSON, s.AccessLogFormat)
	}
	fmt.Fprintf(&b, "%s\n", from(s.Refs))
	dumpOutbound(&b, m, m.Outbound, nil, "")
	for _, ns := range slices.Sorted(maps.Keys(m.Outbounds)) {
		fmt.Fprintf(&b, "clients of namespace %s\n", ns)
		dumpOutbound(&b, m, m.Outbounds[ns], m.Outbound, ns)
	}
	keys := slices.SortedFunc(maps.Keys(m.Workloads), func(a, b mesh.WorkloadKey) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	names := map[*mesh.Inbound]string{}
	for _, k := range keys {
		w := m.Workloads[k]
		fmt.Fprintf(&b, "workload %s/%s as %s%s%s\n", k.Namespace, k.Name, w.ServiceAccount, list(" at", w.Addresses), locality(w.Locality))
		if first, ok := names[w.Inbound]; ok {
			b.WriteString("  inbound of " + first + "\n")
			continue
		}
		names[w.Inbound] = k.Name
		fmt.Fprintf(&b, "  inbound %s%s\n", w.Inbound.MTLS, from(w.Inbound.Refs))
		b.WriteString(access(w.Inbound.Access))
		for _, p := range w.Inbound.Ports {
			fmt.Fprintf(&b, "    port %d %s %s for", p.Number, p.Protocol, p.MTLS)
			for _, s := range p.Services {
				fmt.Fprintf(&b, " %s:%d", s.Host, s.Port)
			}
			b.WriteString(from(p.Refs) + "\n")
		}
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

// dumpOutbound writes what differs from base, which is nil for everything.
func dumpOutbound(b *strings.Builder, m *mesh.Model, o, base *mesh.Outbound, client string) {
	if base == nil {
		base = &mesh.Outbound{}
	}
	for _, svc := range base.Services {
		if !slices.ContainsFunc(o.Services, func(s *mesh.Service) bool { return s.Host == svc.Host }) {
			fmt.Fprintf(b, "no service %s\n", svc.Host)
		}
	}
	for _, svc := range o.Services {
		if slices.Contains(base.Services, svc) {
			continue
		}
		fmt.Fprintf(b, "service %s (%s/%s)%s", svc.Host, svc.Namespace, svc.Name, list(" at", svc.Addresses))
		if svc.Headless {
			b.WriteString(" headless")
		}
		if svc.ExternalName != "" {
			b.WriteString(" is " + string(svc.ExternalName))
		}
		if svc.Resolution != mesh.Known {
			fmt.Fprintf(b, " %s", [...]string{"known", "as called", "all of a name", "one of a name"}[svc.Resolution])
		}
		b.WriteString(from(svc.Refs) + "\n")
		for _, t := range svc.Targets {
			fmt.Fprintf(b, "  at %s %v%s weight %d\n", t.Name, t.Ports, locality(t.Locality), t.Weight)
		}
		for i, p := range svc.Ports {
			fmt.Fprintf(b, "  port %d %q %s%s\n", p.Number, p.Name, p.Protocol, list(" as", p.Identities))
			if at := list("at", p.Instances); at != "" {
				b.WriteString("    mutual TLS " + at + "\n")
			}
			b.WriteString(says("    policy ", p.Policy))
			dumpSet(b, m.Endpoints[mesh.EndpointKey{Host: svc.Host, Port: p.Number}])
			for _, s := range svc.Subsets {
				fmt.Fprintf(b, "    subset %s\n", s.Name)
				b.WriteString(says("      policy ", s.Policies[i]))
				of := ""
				if o.Private[svc.Host] != "" {
					of = client
				}
				dumpSet(b, m.Endpoints[mesh.EndpointKey{Host: svc.Host, Port: p.Number}.OfSubset(s.Name, of)])
			}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(o.Routing)) {
		if base.Routing[host] != o.Routing[host] {
			fmt.Fprintf(b, "routes of %s: %s", host, says("", o.Routing[host]))
		}
	}
	for _, r := range o.Routed {
		if !slices.ContainsFunc(base.Routed, func(o mesh.RoutedHost) bool {
			return o.Host == r.Host && o.By == r.By && slices.Equal(o.Ports, r.Ports)
		}) {
			fmt.Fprintf(b, "routes of %s on ports %v: %s", r.Host, r.Ports, says("", r.By))
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(o.ByLocality), func(a, b mesh.EndpointKey) int {
		return strings.Compare(fmt.Sprint(a.Host, a.Port, a.Subset()), fmt.Sprint(b.Host, b.Port, b.Subset()))
	}) {
		if base.ByLocality[k] != o.ByLocality[k] {
			fmt.Fprintf(b, "by locality %s:%d %s %s", k.Host, k.Port, k.Subset(), says("", o.ByLocality[k]))
		}
	}
}

func dumpSet(b *strings.Builder, set *mesh.EndpointSet) {
	if set == nil {
		b.WriteString("    THERE IS NO ENDPOINT SET\n")
		return
	}
	for _, e := range set.Endpoints {
		b.WriteString("    " + endpoint(e) + "\n")
	}
	fmt.Fprintf(b, "    %s\n", strings.TrimSpace(from(set.Refs)))
}

// says writes what is not zero of a value, in one line; nothing for nil.
func says(prefix string, v any) string {
	if value := reflect.ValueOf(v); value.Kind() == reflect.Pointer && value.IsNil() {
		return ""
	}
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		panic(err)
	}
	if tree = withoutZeros(tree); tree == nil {
		return prefix + "that says nothing else than zeros\n"
	}
	text, err := json.Marshal(tree)
	if err != nil {
		panic(err)
	}
	return prefix + string(text) + "\n"
}

func withoutZeros(v any) any {
	switch t := v.(type) {
	case map[string]any:
		kept := map[string]any{}
		for k, v := range t {
			if v = withoutZeros(v); v != nil && k != "Refs" {
				kept[k] = v
			}
		}
		if len(kept) == 0 {
			return nil
		}
		return kept
	case []any:
		if len(t) == 0 {
			return nil
		}
		for i := range t {
			t[i] = withoutZeros(t[i])
		}
	case string:
		if t == "" {
			return nil
		}
	case bool:
		if !t {
			return nil
		}
	case float64:
		if t == 0 {
			return nil
		}
	}
	return v
}

// access writes tokens and policies, and their conditions as `ATTRIBUTE NAMES any VALUES none VALUES`.
func access(a *mesh.Access) string {
	if a == nil {
		return ""
	}
	var b strings.Builder
	for _, t := range a.Tokens {
		fmt.Fprintf(&b, "    token of %s, audiences %v, keys %.60s%s\n", t.Issuer, t.Audiences, t.Keys, from([]ref.Ref{t.Ref}))
	}
	for _, p := range a.Policies {
		fmt.Fprintf(&b, "    %s %s/%s", [...]string{"custom", "audit", "deny", "allow"}[p.Action], p.Namespace, p.Name)
		if p.DryRun {
			b.WriteString(" as a dry run")
		}
		if p.Provider != nil {
			fmt.Fprintf(&b, " asks %s:%d", p.Provider.Service, p.Provider.Port)
		}
		b.WriteString(from([]ref.Ref{p.Ref}) + "\n")
		for i, r := range p.Rules {
			fmt.Fprintf(&b, "      rule %d\n", i)
			for _, set := range r.From {
				b.WriteString("        from" + conditions(set) + "\n")
			}
			for _, set := range r.To {
				b.WriteString("        to" + conditions(set) + "\n")
			}
			if len(r.When) > 0 {
				b.WriteString("        when" + conditions(r.When) + "\n")
			}
		}
	}
	return b.String()
}

var attributes = [...]string{"principal", "source-ip", "remote-ip", "destination-ip", "port", "sni", "metadata", "host", "method", "path", "header", "claim", "request-principal"}

func conditions(all []mesh.AccessCondition) (out string) {
	for _, c := range all {
		out += " " + attributes[c.Attribute]
		if len(c.Names) > 0 {
			out += fmt.Sprint(c.Names)
		}
		if len(c.Any) > 0 {
			out += " any" + values(c.Any)
		}
		if len(c.None) > 0 {
			out += " none" + values(c.None)
		}
	}
	return out
}

func values(all []mesh.ValueMatch) (out string) {
	for _, m := range all {
		switch m.Kind {
		case mesh.MatchNetwork:
			out += " " + m.Network.String()
		case mesh.MatchPort:
			out += fmt.Sprintf(" %d", m.Port)
		case mesh.MatchPair, mesh.MatchListItem:
			out += " (" + strings.TrimSpace(values(m.Both)) + ")"
		default:
			out += fmt.Sprintf(" %s%q", map[mesh.ValueMatchKind]string{mesh.MatchPrefix: "^", mesh.MatchSuffix: "$", mesh.MatchRegex: "~", mesh.MatchPresent: "*", mesh.MatchTemplate: "template"}[m.Kind], m.Text)
		}
	}
	return out
}

func endpoint(e mesh.Endpoint) string {
	out := netip.AddrPortFrom(e.Address, uint16(e.Port)).String()
	if e.Health == mesh.Draining {
		out += " draining"
	}
	if e.MTLS {
		out += " mtls"
	}
	if e.Weight != 0 {
		out += fmt.Sprintf(" weight %d", e.Weight)
	}
	if e.Identity != "" {
		out += " " + e.Identity
	}
	if e.Workload != (mesh.WorkloadKey{}) {
		out += " pod " + e.Workload.Namespace + "/" + e.Workload.Name
	}
	return out + locality(e.Locality)
}

func locality(l mesh.Locality) string {
	if l == (mesh.Locality{}) {
		return ""
	}
	return fmt.Sprintf(" in %s/%s/%s", l.Region, l.Zone, l.Subzone)
}

func list[T any](word string, items []T) string {
	out := ""
	for _, i := range items {
		out += fmt.Sprintf(" %v", i)
	}
	if out == "" {
		return ""
	}
	return word + out
}

func from(refs []ref.Ref) string {
	out := ""
	for _, r := range refs {
		out += " " + r.String()
		if r.Generation != 0 {
			out += fmt.Sprintf("@%d", r.Generation)
		}
	}
	if out == "" {
		return ""
	}
	return "  <-" + out
}
