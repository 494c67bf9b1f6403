package acceptance

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	tcpcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/translate"
	"github.com/selvage-mesh/selvage/internal/xds/filter"
)

// authzCase is one policy file with the filters that Istio makes of it.
type authzCase struct {
	Name, Kind, Input string
	Extended          bool
	MeshConfig        json.RawMessage
	TrustDomains      []string
	Want              []string
}

// TestAuthz measures AuthorizationPolicy: it asks Istio's filters and ours about requests that are made up of the policy's own
// values, and counts the cases in which all answers are the same.
func TestAuthz(t *testing.T) {
	dir := folder(t, "authz")
	lines, err := os.ReadFile(filepath.Join(dir, "index.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	good, all := 0, 0
	for scan := bufio.NewScanner(bytes.NewReader(lines)); scan.Scan(); {
		var c authzCase
		if err := json.Unmarshal(scan.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		all++
		if difference := authz(t, filepath.Join(dir, "testdata"), c); difference == "" {
			good++
		} else {
			fmt.Printf("authz: %s/%s: %s\n", c.Kind, c.Name, difference)
		}
	}
	fmt.Printf("authz: %d of %d\n", good, all)
}

func authz(t *testing.T, dir string, c authzCase) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, c.Input))
	if err != nil {
		t.Fatal(err)
	}
	ours := filter.For(accessOf(t, c, string(text)))
	var theirs, mine []*anypb.Any
	for _, name := range c.Want {
		if c.Extended {
			name = "extended-" + name
		}
		theirs = append(theirs, wanted(t, filepath.Join(dir, c.Kind, name)))
	}
	if c.Kind == "http" {
		for _, f := range ours.HTTP {
			mine = append(mine, f.GetTypedConfig())
		}
	} else {
		for _, f := range ours.Network {
			mine = append(mine, f.GetTypedConfig())
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	values := valuesOf(string(text))
	seen := map[string]int{}
	for range 3000 {
		r := requestOf(random, values)
		want, got := decide(t, theirs, r), decide(t, mine, r)
		if want != got {
			return fmt.Sprintf("%s, want %s for %+v", got, want, r)
		}
		// Many a rule wants what no request has all of, so its conditions are compared too.
		want, got = conditions(t, theirs, r), conditions(t, mine, r)
		if want != got {
			return fmt.Sprintf("conditions %s, want %s for %+v", got, want, r)
		}
		seen[want]++
	}
	if len(seen) < 2 && c.Name != "allow-only-http" { // which leaves no rule
		return fmt.Sprintf("all requests are the same to it, %v: this measures nothing", seen)
	}
	return ""
}

func accessOf(t *testing.T, c authzCase, text string) *mesh.Access {
	t.Helper()
	b, err := index.New(index.Config{Namespace: "istio-system"})
	if err != nil {
		t.Fatal(err)
	}
	config := map[string]any{}
	if len(c.MeshConfig) > 0 {
		if err := json.Unmarshal(c.MeshConfig, &config); err != nil {
			t.Fatal(err)
		}
	}
	if config == nil {
		config = map[string]any{}
	}
	if len(c.TrustDomains) > 0 {
		config["trustDomain"], config["trustDomainAliases"] = c.TrustDomains[0], c.TrustDomains[1:]
	}
	raw, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	objects := []any{
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}, Data: map[string]string{"mesh": string(raw)}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "httpbin", Labels: map[string]string{"app": "httpbin", "version": "v1"}}},
	}
	for _, doc := range strings.Split(text, "\n---") {
		var o unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		if o.Object != nil {
			objects = append(objects, &o)
		}
	}
	for _, o := range objects {
		if err := b.Set(o); err != nil {
			t.Fatal(err)
		}
	}
	m, _ := translate.Model(nil, b.Snapshot())
	return m.Workloads[mesh.WorkloadKey{Namespace: "foo", Name: "httpbin"}].Inbound.Access
}

// wanted reads one filter.
func wanted(t *testing.T, path string) *anypb.Any {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		TypedConfig json.RawMessage `json:"typedConfig"`
	}
	if err := yaml.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	var out anypb.Any
	if err := protojson.Unmarshal(f.TypedConfig, &out); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return &out
}

// request is what the filters look at.
type request struct {
	principal, host, method, path, sni, header string
	issuer, subject                            string
	claims                                     map[string]any
	port                                       uint32
	source, remote, destination                netip.Addr
}

var quotedText = regexp.MustCompile(`"([^"]*)"`)

// valuesOf are the values of a policy, and some that stand in none.
func valuesOf(policy string) (values []string) {
	for _, m := range quotedText.FindAllStringSubmatch(policy, -1) {
		values = append(values, strings.ReplaceAll(m[1], "*", "x"))
	}
	return append(values, "", "GET", "other", "/other", "10.200.0.1", "7777")
}

func requestOf(r *rand.Rand, values []string) request {
	some := func() string { return values[r.IntN(len(values))] }
	address := func() netip.Addr {
		for range 50 {
			text, _, _ := strings.Cut(some(), "/")
			if a, err := netip.ParseAddr(text); err == nil {
				return a
			}
		}
		return netip.MustParseAddr("10.200.0.1")
	}
	port := uint32(7777)
	for range 50 {
		var n uint32
		if _, err := fmt.Sscanf(some(), "%d", &n); err == nil && n < 65536 && n > 0 {
			port = n
			break
		}
	}
	identity := some()
	switch r.IntN(4) {
	case 0:
		identity = "cluster.local/ns/" + some() + "/sa/" + some()
	case 1:
		identity = some() + "/ns/" + some() + "/sa/x"
	}
	out := request{principal: "spiffe://" + identity, host: some(), method: some(), path: some(), sni: some(), header: some(), issuer: some(), port: port,
		source: address(), remote: address(), destination: address()}
	if r.IntN(2) == 0 {
		out.issuer, out.subject, _ = strings.Cut(some(), "/")
	}
	if r.IntN(5) == 0 {
		out.principal = ""
	}
	out.claims = map[string]any{"iss": out.issuer, "sub": out.subject, "aud": []any{some(), some()}, "azp": some(), "c": some()}
	return out
}

// decide runs filters over a request: allowed, denied, or decided by an authorizer.
func decide(t *testing.T, filters []*anypb.Any, r request) string {
	t.Helper()
	metadata := map[string]string{}
	for _, f := range filters {
		m, err := f.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		switch f := m.(type) {
		case *httpv3.RBAC:
			if !r.passes(f.GetRules(), f.GetShadowRules(), f.GetShadowRulesStatPrefix(), metadata) {
				return "denied"
			}
		case *networkv3.RBAC:
			if !r.passes(f.GetRules(), f.GetShadowRules(), f.GetShadowRulesStatPrefix(), metadata) {
				return "denied"
			}
		case *httpcheckv3.ExtAuthz:
			if matched(f.GetFilterEnabledMetadata(), metadata) {
				return "asked"
			}
		case *tcpcheckv3.ExtAuthz:
			if matched(f.GetFilterEnabledMetadata(), metadata) {
				return "asked"
			}
		default:
			t.Fatalf("filter %T is not known to this test", f)
		}
	}
	return "allowed"
}

// conditions counts for each rule how many of its conditions hold.
func conditions(t *testing.T, filters []*anypb.Any, r request) string {
	t.Helper()
	var counts []string
	for _, f := range filters {
		m, err := f.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		rbac, ok := m.(interface {
			GetRules() *rbacv3.RBAC
			GetShadowRules() *rbacv3.RBAC
		})
		if !ok {
			continue
		}
		for _, rules := range []*rbacv3.RBAC{rbac.GetRules(), rbac.GetShadowRules()} {
			for name, p := range rules.GetPolicies() {
				line := ruleName.FindString(name)
				for _, one := range p.GetPermissions() {
					line += fmt.Sprint(" ", count(one.GetAndRules().GetRules(), one, r.permitted))
				}
				for _, one := range p.GetPrincipals() {
					line += fmt.Sprint(" ", count(one.GetAndIds().GetIds(), one, r.identified))
				}
				counts = append(counts, line)
			}
		}
	}
	slices.Sort(counts)
	return strings.Join(counts, "; ")
}

var ruleName = regexp.MustCompile(`ns\[.*\]-policy\[.*\]-rule\[\d+\]`)

// count says how many of a conjunction hold; what is none counts as one of one.
func count[T any](all []T, whole T, holds func(T) bool) (n int) {
	if len(all) == 0 {
		all = []T{whole}
	}
	for _, one := range all {
		if holds(one) {
			n++
		}
	}
	return n
}

func matched(m *matcherv3.MetadataMatcher, metadata map[string]string) bool {
	value, ok := metadata[m.GetPath()[0].GetKey()]
	return ok && text(m.GetValue().GetStringMatch(), value)
}

func (r request) passes(rules, shadow *rbacv3.RBAC, prefix string, metadata map[string]string) bool {
	if id := r.policy(shadow); id != "" {
		metadata[prefix+"shadow_effective_policy_id"] = id
	}
	if rules == nil {
		return true
	}
	return (r.policy(rules) != "") == (rules.GetAction() == rbacv3.RBAC_ALLOW) || rules.GetAction() == rbacv3.RBAC_LOG
}

// policy names one that matches.
func (r request) policy(rules *rbacv3.RBAC) string {
	for name, p := range rules.GetPolicies() {
		if slices.ContainsFunc(p.GetPermissions(), r.permitted) && slices.ContainsFunc(p.GetPrincipals(), r.identified) {
			return name
		}
	}
	return ""
}

func every[T any](all []T, holds func(T) bool) bool {
	return !slices.ContainsFunc(all, func(one T) bool { return !holds(one) })
}

func (r request) permitted(p *rbacv3.Permission) bool {
	switch p := p.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return p.Any
	case *rbacv3.Permission_AndRules:
		return every(p.AndRules.GetRules(), r.permitted)
	case *rbacv3.Permission_OrRules:
		return slices.ContainsFunc(p.OrRules.GetRules(), r.permitted)
	case *rbacv3.Permission_NotRule:
		return !r.permitted(p.NotRule)
	case *rbacv3.Permission_DestinationPort:
		return p.DestinationPort == r.port
	case *rbacv3.Permission_DestinationIp:
		return within(p.DestinationIp.GetAddressPrefix(), p.DestinationIp.GetPrefixLen().GetValue(), r.destination)
	case *rbacv3.Permission_RequestedServerName:
		return text(p.RequestedServerName, r.sni)
	case *rbacv3.Permission_UrlPath:
		return text(p.UrlPath.GetPath(), r.path)
	case *rbacv3.Permission_Header:
		return r.hasHeader(p.Header)
	case *rbacv3.Permission_Metadata:
		return r.hasMetadata(p.Metadata) //nolint:staticcheck // what Istio still writes
	case *rbacv3.Permission_SourcedMetadata:
		return r.hasMetadata(p.SourcedMetadata.GetMetadataMatcher())
	}
	panic(fmt.Sprintf("permission %v is not known to this test", p))
}

func (r request) identified(p *rbacv3.Principal) bool {
	switch p := p.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return p.Any
	case *rbacv3.Principal_AndIds:
		return every(p.AndIds.GetIds(), r.identified)
	case *rbacv3.Principal_OrIds:
		return slices.ContainsFunc(p.OrIds.GetIds(), r.identified)
	case *rbacv3.Principal_NotId:
		return !r.identified(p.NotId)
	case *rbacv3.Principal_Authenticated_:
		return r.principal != "" && text(p.Authenticated.GetPrincipalName(), r.principal)
	case *rbacv3.Principal_DirectRemoteIp:
		return within(p.DirectRemoteIp.GetAddressPrefix(), p.DirectRemoteIp.GetPrefixLen().GetValue(), r.source)
	case *rbacv3.Principal_RemoteIp:
		return within(p.RemoteIp.GetAddressPrefix(), p.RemoteIp.GetPrefixLen().GetValue(), r.remote)
	case *rbacv3.Principal_Header:
		return r.hasHeader(p.Header)
	case *rbacv3.Principal_Metadata:
		return r.hasMetadata(p.Metadata) //nolint:staticcheck // what Istio still writes
	case *rbacv3.Principal_SourcedMetadata:
		return r.hasMetadata(p.SourcedMetadata.GetMetadataMatcher())
	}
	panic(fmt.Sprintf("principal %v is not known to this test", p))
}

func within(prefix string, bits uint32, a netip.Addr) bool {
	return netip.PrefixFrom(netip.MustParseAddr(prefix), int(bits)).Contains(a)
}

func (r request) hasHeader(m *routev3.HeaderMatcher) bool {
	value := r.header
	switch strings.ToLower(m.GetName()) {
	case ":authority":
		value = r.host
	case ":method":
		value = r.method
	}
	if m.GetStringMatch() == nil {
		return value != "" && m.GetPresentMatch()
	}
	return text(m.GetStringMatch(), value)
}

// hasMetadata looks at the token; other filters' metadata have the header's value.
func (r request) hasMetadata(m *matcherv3.MetadataMatcher) bool {
	value := r.claims["c"]
	if m.GetFilter() == "envoy.filters.http.jwt_authn" {
		last := m.GetPath()[len(m.GetPath())-1].GetKey()
		value = r.claims[last]
	}
	return hasValue(m.GetValue(), value)
}

func hasValue(m *matcherv3.ValueMatcher, value any) bool {
	switch m := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_StringMatch:
		s, ok := value.(string)
		return ok && text(m.StringMatch, s)
	case *matcherv3.ValueMatcher_ListMatch:
		list, _ := value.([]any)
		return slices.ContainsFunc(list, func(item any) bool { return hasValue(m.ListMatch.GetOneOf(), item) })
	case *matcherv3.ValueMatcher_OrMatch:
		return slices.ContainsFunc(m.OrMatch.GetValueMatchers(), func(one *matcherv3.ValueMatcher) bool { return hasValue(one, value) })
	}
	panic(fmt.Sprintf("value matcher %v is not known to this test", m))
}

var expressions = map[string]*regexp.Regexp{}

func text(m *matcherv3.StringMatcher, value string) bool {
	fold := func(s string) string {
		if m.GetIgnoreCase() {
			return strings.ToLower(s)
		}
		return s
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return fold(value) == fold(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(fold(value), fold(p.Prefix))
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(fold(value), fold(p.Suffix))
	case *matcherv3.StringMatcher_SafeRegex:
		e := expressions[p.SafeRegex.GetRegex()]
		if e == nil {
			e = regexp.MustCompile("^(?:" + p.SafeRegex.GetRegex() + ")$")
			expressions[p.SafeRegex.GetRegex()] = e
		}
		return e.MatchString(value)
	}
	panic(fmt.Sprintf("string matcher %v is not known to this test", m))
}
