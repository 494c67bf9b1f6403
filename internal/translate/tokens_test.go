package translate_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/translate"
)

// TestKeysOfIssuers follows the keys of issuers that are read elsewhere: until they are known no token is good, and what was read
// holds until something else is.
func TestKeysOfIssuers(t *testing.T) {
	const uri, keys = "https://a.example/keys", `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`
	b := newBuilder(t, parse(t, `
kind: RequestAuthentication
metadata: {namespace: shop, name: tokens}
spec: {jwtRules: [{issuer: "https://a.example", jwksUri: "`+uri+`", timeout: 3s}, {issuer: "https://b.example/"}]}
---
kind: Pod
metadata: {namespace: shop, name: web, uid: w}
status: {podIP: 10.1.0.1}
`)...)
	want := map[string]time.Duration{uri: 3 * time.Second, "https://b.example" + index.Discovery: 0}
	if got := translate.KeyURIs(b.Snapshot()); !maps.Equal(got, want) {
		t.Errorf("keys are read at %v, want %v", got, want)
	}
	var model *mesh.Model
	check := func(what string, set index.KeySet, wantKeys bool, said string) {
		t.Helper()
		if set != (index.KeySet{}) {
			b.SetKeys(uri, set)
		}
		next, problems := translate.Model(model, b.Snapshot())
		model = next
		token := next.Workloads[mesh.WorkloadKey{Namespace: "shop", Name: "web"}].Inbound.Access.Tokens[0]
		if (token.Keys == keys) != wantKeys || !strings.Contains(token.Keys, `"kty"`) {
			t.Errorf("%s: the keys are %s", what, token.Keys)
		}
		text := ""
		for _, p := range problems {
			text += p.String() + "\n"
		}
		if said != "" && !strings.Contains(text, said) || said == "" && strings.Contains(text, uri) {
			t.Errorf("%s: the problems are %q, want %q", what, text, said)
		}
	}
	check("not read", index.KeySet{}, false, "were not read yet")
	check("refused", index.KeySet{Error: "it is away"}, false, "it is away; until then every token")
	check("read", index.KeySet{Text: keys}, true, "")
	check("away again", index.KeySet{Text: keys, Error: "it is away"}, true, "those read last stay in force")
	check("nonsense", index.KeySet{Text: "<html>"}, false, "no JSON web key set")
}
