package validate_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/validate"
)

func TestKindsHaveTheirResources(t *testing.T) {
	got := strings.Join(validate.Resources(), " ")
	want := "destinationrules envoyfilters gateways proxyconfigs serviceentries sidecars virtualservices workloadentries workloadgroups " +
		"authorizationpolicies peerauthentications requestauthentications telemetries wasmplugins trafficextensions"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestOtherKindsAreNotJudged(t *testing.T) {
	for _, raw := range []string{
		`{"apiVersion":"v1","kind":"Pod","spec":7}`, `{"apiVersion":"example.org/v1","kind":"Gateway","spec":{"x":[]}}`,
		`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","spec":{"listeners":[]}}`, `{"apiVersion":"networking.istio.io/v9","kind":"NewKind","spec":{"x":1}}`, `{}`,
	} {
		if p, err := validate.Object([]byte(raw)); err != nil || p != nil {
			t.Errorf("%s: %v, %v", raw, p, err)
		}
	}
	for _, raw := range []string{``, `7`, `[]`, `{"kind":7}`, `{"apiVersion":"networking.istio.io/v1","kind":"Gateway","metadata":"x"}`} {
		if _, err := validate.Object([]byte(raw)); err == nil {
			t.Errorf("%q is taken for an object", raw)
		}
	}
}

// problemsOf are those of a spec, as JSON.
func problemsOf(t testing.TB, kind, spec string) []diag.Problem {
	t.Helper()
	group := "networking.istio.io"
	if kind == "AuthorizationPolicy" || kind == "PeerAuthentication" {
		group = "security.istio.io"
	}
	problems, err := validate.Object(fmt.Appendf(nil, `{"apiVersion":"%s/v1","kind":"%s","metadata":{"name":"a","namespace":"shop"},"spec":%s}`, group, kind, spec))
	if err != nil {
		t.Fatal(err)
	}
	return problems
}

func TestTheNearestSpellingIsNamed(t *testing.T) {
	lua := `"@type":"type.googleapis.com/envoy.extensions.filters.http.lua.v3.`
	for _, c := range []struct{ kind, spec, hint string }{
		{"PeerAuthentication", `{"mtsl":{"mode":"STRICT"}}`, "did you mean mtls?"},
		{"PeerAuthentication", `{"mtls":{"mode":"STRCT"}}`, "did you mean STRICT?"},
		{"VirtualService", `{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}],"retries":{"attempts":1,"retryOn":"gatewayerror"}}]}`, "did you mean gateway-error?"},
		{"AuthorizationPolicy", `{"rules":[{"when":[{"key":"source.namspace","values":["a"]}]}]}`, "did you mean source.namespace?"},
		{"EnvoyFilter", `{"configPatches":[{"applyTo":"HTTP_FILTER","patch":{"operation":"MERGE","value":{"name":"a","typed_config":{` + lua + `Lua","inlinecode":"a"}}}}]}`, "did you mean inline_code?"},
		{"EnvoyFilter", `{"configPatches":[{"applyTo":"HTTP_FILTER","patch":{"operation":"MERGE","value":{"name":"a","typed_config":{` + lua + `Lau"}}}}]}`, "did you mean type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua?"},
		{"PeerAuthentication", `{"somethingElse":{}}`, "take it out, or move it to where it belongs: kubectl explain shows the fields"},
	} {
		found := false
		for _, p := range problemsOf(t, c.kind, c.spec) {
			found = found || p.Hint == c.hint
		}
		if !found {
			t.Errorf("%s: nobody says %q: %v", c.spec, c.hint, problemsOf(t, c.kind, c.spec))
		}
	}
}

func TestUnknownFieldsOfFilesAreErrors(t *testing.T) {
	raw := []byte(`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"a"},"spec":{"mtsl":{}}}`)
	problems, err := validate.Object(raw)
	if err != nil || len(problems) != 1 || problems[0].Severity != diag.Warning {
		t.Errorf("in a cluster: %v, %v", problems, err)
	}
	problems, known, err := validate.File(raw)
	if err != nil || !known || len(problems) != 1 || problems[0].Severity != diag.Error {
		t.Errorf("in a file: %v, %v", problems, err)
	}
}

// TestFilesAreReadAsAnAPIServerWould: what it would take out or refuse before a webhook is asked.
func TestFilesAreReadAsAnAPIServerWould(t *testing.T) {
	for _, c := range []struct {
		raw, field, hint string
		known            bool
	}{
		{`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"a"},"sepc":{}}`, "sepc", "did you mean spec?", true},
		{`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","spec":{}}`, "metadata.name", "add it", true},
		{`{"apiVersion":"networking.istio.io/v1","kind":"VirtualServices","metadata":{"name":"a"}}`, "kind", "did you mean VirtualService?", true},
		{`{"apiVersion":"apps/v1","kind":"Deployment"}`, "", "", false},
		{`{"apiVersion":"v1","kind":"Pod"}`, "", "", false},
		{`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"generateName":"a-"}}`, "", "", true},
	} {
		problems, known, err := validate.File([]byte(c.raw))
		if err != nil || known != c.known || (c.field == "") != (len(problems) == 0) {
			t.Errorf("%s: known %v, %v, %v", c.raw, known, problems, err)
		}
		for _, p := range problems {
			if p.Field != c.field || p.Hint != c.hint || p.Severity != diag.Error {
				t.Errorf("%s: %+v", c.raw, p)
			}
		}
	}
}

// TestOneMistakeIsToldOnce: what follows from a value that could not be read is not told beside it, and what stands elsewhere is.
func TestOneMistakeIsToldOnce(t *testing.T) {
	problems := problemsOf(t, "VirtualService", `{"hosts":["a"],"http":[{"route":"a","timeout":"0s"}],"exportTo":["~"]}`)
	var got []string
	for _, p := range problems {
		got = append(got, p.Field)
	}
	slices.Sort(got)
	if want := []string{"spec.exportTo[0]", "spec.http[0].route", "spec.http[0].timeout"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestManyProblemsAreCut(t *testing.T) {
	routes := make([]string, 400)
	for i := range routes {
		routes[i] = `{"timeout":"0s"}`
	}
	problems := problemsOf(t, "VirtualService", `{"hosts":["a"],"http":[`+strings.Join(routes, ",")+`]}`)
	last := problems[len(problems)-1]
	if len(problems) != 51 || last.Code != diag.MoreProblems || last.Severity != diag.Error {
		t.Errorf("%d problems, the last %v", len(problems), last)
	}
}

// TestLargeObjectsAreJudged holds checks that compare all with all to a bound: without one each of these would take minutes.
func TestLargeObjectsAreJudged(t *testing.T) {
	repeat := func(n int, item func(i int) string) string {
		items := make([]string, n)
		for i := range items {
			items[i] = item(i)
		}
		return "[" + strings.Join(items, ",") + "]"
	}
	for name, spec := range map[string]string{
		"prefixes": `{"hosts":["a"],"http":` + repeat(5_000, func(i int) string {
			return fmt.Sprintf(`{"match":[{"uri":{"prefix":"/%d"}}],"route":[{"destination":{"host":"a"}}]}`, i+100_000)
		}) + `}`,
		"hosts": `{"hosts":` + repeat(10_000, func(i int) string { return fmt.Sprintf(`"*.a%d.example.org"`, i) }) + `,"http":[{"route":[{"destination":{"host":"a"}}]}]}`,
		"names": `{"hosts":` + repeat(2_000, func(i int) string { return fmt.Sprintf(`"*.a%d.example.org"`, i) }) + `,"tls":[{"match":[{"sniHosts":` +
			repeat(2_000, func(i int) string { return fmt.Sprintf(`"b.a%d.example.org"`, i) }) + `}],"route":[{"destination":{"host":"a"}}]}]}`,
	} {
		for _, p := range problemsOf(t, "VirtualService", spec) {
			if p.Severity == diag.Error {
				t.Errorf("%s: %v", name, p)
			}
		}
	}
}

func FuzzObject(f *testing.F) {
	for _, table := range tables(f) {
		for _, r := range table.rows() {
			raw, err := table.object(r)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
		raw, err := json.Marshal(map[string]any{"apiVersion": table.APIVersion, "kind": table.kind, "spec": map[string]any{
			"hosts": []any{nil}, "servers": []any{nil}, "rules": []any{map[string]any{"from": []any{nil}}}, "configPatches": []any{nil}, "egress": []any{map[string]any{}},
		}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		problems, err := validate.Object(raw)
		if err != nil {
			return
		}
		for _, p := range problems {
			if p.Field == "" || p.Detail == "" || p.Code == "" || len(p.Detail) > 2000 || p.Hint == "" {
				t.Errorf("%+v", p)
			}
			if p.Code == diag.CheckFailed {
				t.Errorf("a check failed: %s", p.Detail)
			}
		}
	})
}
