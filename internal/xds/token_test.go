package xds_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/mesh"
)

// issuer signs JSON web tokens.
type issuer struct {
	t    *testing.T
	name string
	key  *ecdsa.PrivateKey
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// keys is the issuer's key set, in single quotes.
func (i issuer) keys() string {
	point, err := i.key.PublicKey.Bytes()
	if err != nil {
		i.t.Fatal(err)
	}
	return fmt.Sprintf(`'{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":%q,"y":%q}]}'`, base64url(point[1:33]), base64url(point[33:]))
}

// token is one for a subject, good for an hour; more are further claims.
func (i issuer) token(subject string, more map[string]any) string {
	claims := map[string]any{"iss": i.name, "sub": subject, "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range more {
		claims[k] = v
	}
	body, err := json.Marshal(claims)
	if err != nil {
		i.t.Fatal(err)
	}
	signed := base64url([]byte(`{"alg":"ES256","kid":"k","typ":"JWT"}`)) + "." + base64url(body)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		i.t.Fatal(err)
	}
	return signed + "." + base64url(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func tokenCases(t *testing.T) []accessCase {
	const bad, no, ok = http.StatusUnauthorized, http.StatusForbidden, http.StatusOK
	a, b := issuer{t, "https://a.example/realm", newKey(t)}, issuer{t, "https://b.example", newKey(t)}
	forger := issuer{t, a.name, newKey(t)}
	bearer := func(token string) string { return "Authorization: Bearer " + token }
	rule := func(of issuer, more string) string {
		return "{issuer: '" + of.name + "', jwks: " + of.keys() + more + "}"
	}
	accept := func(rules string) string {
		return "kind: RequestAuthentication\nspec: {selector: {matchLabels: {app: server}}, jwtRules: [" + rules + "]}"
	}
	good := a.token("alice", map[string]any{"aud": []string{"shop", "bank"}, "scope": "read write", "azp": "web", "roles": "cook baker", "groups": []string{"dev"}, "address": map[string]any{"city": "Rome"}})
	late := a.token("alice", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})
	when := func(key, value string) string {
		return accept(rule(a, "")) + "\n---\n" + policy("ALLOW", "{when: [{key: '"+key+"', values: ["+value+"]}]}")
	}
	has := func(name, key, yes string, forms ...string) (cases []accessCase) {
		for _, value := range append([]string{yes}, forms...) {
			cases = append(cases, accessCase{name: name + " " + value, objects: when(key, value), checks: []accessCheck{
				{ask: "GET /", want: no}, {ask: "GET /", header: bearer(a.token("bob", map[string]any{"aud": "x"})), want: no}, {ask: "GET /", header: bearer(good), want: ok}}})
		}
		return cases
	}
	cases := []accessCase{
		{name: "a token that is not good is refused, none is not", objects: accept(rule(a, "")), checks: []accessCheck{
			{ask: "GET /", header: bearer(forger.token("alice", nil)), want: bad}, {ask: "GET /", header: bearer(late), want: bad}, {ask: "GET /", header: "Authorization: Bearer x.y.z", want: bad},
			{ask: "GET /", header: bearer(b.token("alice", nil)), want: bad}, {ask: "GET /", want: ok}, {ask: "GET /", header: bearer(good), want: ok}}},
		{name: "a policy can want a token", objects: accept(rule(a, "")) + "\n---\n" + policy("DENY", "{from: [{source: {notRequestPrincipals: ['*']}}]}"), checks: []accessCheck{
			{ask: "GET /", want: no}, {ask: "GET /", header: bearer(good), want: ok}}},
		{name: "audiences of the rule", objects: accept(rule(a, ", audiences: [bank]")), checks: []accessCheck{
			{ask: "GET /", header: bearer(a.token("alice", map[string]any{"aud": "other"})), want: no}, {ask: "GET /", header: bearer(good), want: ok}}},
		{name: "two issuers", objects: accept(rule(a, "") + ", " + rule(b, "")), checks: []accessCheck{
			{ask: "GET /", header: bearer(forger.token("alice", nil)), want: bad}, {ask: "GET /", header: bearer(good), want: ok}, {ask: "GET /", header: bearer(b.token("bob", nil)), want: ok}, {ask: "GET /", want: ok}}},
		{name: "two issuers in two objects", objects: accept(rule(a, "")) + "\n---\n" + accept(rule(b, "")), checks: []accessCheck{
			{ask: "GET /", header: bearer(forger.token("alice", nil)), want: bad}, {ask: "GET /", header: bearer(good), want: ok}, {ask: "GET /", header: bearer(b.token("bob", nil)), want: ok}}},
		{name: "a token in a header, a parameter or a cookie of one's own", objects: accept(rule(a, ", fromHeaders: [{name: x-token, prefix: 'Custom '}], fromParams: [tok], fromCookies: [jar]")) + "\n---\n" +
			policy("ALLOW", "{from: [{source: {requestPrincipals: ['*']}}]}"), checks: []accessCheck{
			{ask: "GET /", header: bearer(good), want: no}, {ask: "GET /", header: "X-Token: Custom " + good, want: ok}, {ask: "GET /?tok=" + good, want: ok}, {ask: "GET /", header: "Cookie: jar=" + good, want: ok}}},
		{name: "a claim that is a list with spaces, as the rule says", objects: accept(rule(a, ", spaceDelimitedClaims: [roles]")) + "\n---\n" + policy("ALLOW", "{when: [{key: 'request.auth.claims[roles]', values: [baker]}]}"), checks: []accessCheck{
			{ask: "GET /", want: no}, {ask: "GET /", header: bearer(good), want: ok}}},
		{name: "an issuer whose keys are not known", objects: accept("{issuer: '" + a.name + "', jwksUri: 'https://a.example/keys'}"), checks: []accessCheck{
			{ask: "GET /", header: bearer(good), want: bad}, {ask: "GET /", want: ok}}},
		{name: "keys that are none", objects: accept("{issuer: '" + a.name + "', jwks: 'nonsense'}"), flawed: true, checks: []accessCheck{
			{ask: "GET /", header: bearer(good), want: bad}, {ask: "GET /", want: ok}}},
	}
	cases = append(cases, has("request.auth.principal", "request.auth.principal", "'https://a.example/realm/alice'", "'https://a.example/realm/al*'", "'*/alice'")...)
	cases = append(cases, has("request.auth.audiences", "request.auth.audiences", "bank")...)
	cases = append(cases, has("request.auth.presenter", "request.auth.presenter", "web")...)
	cases = append(cases, has("a claim", "request.auth.claims[scope]", "write")...)
	cases = append(cases, has("a claim that is a list", "request.auth.claims[groups]", "dev", "'d*'")...)
	return append(cases, has("a claim in a claim", "request.auth.claims[address][city]", "Rome")...)
}

// testTokenHeaders has the sidecar tell the workload what a token says, and keep the token to itself or not.
func (w *town) testTokenHeaders(t *testing.T) {
	of := issuer{t, "https://a.example", newKey(t)}
	for _, forward := range []bool{false, true} {
		access := security(t, accessCase{objects: fmt.Sprintf("kind: RequestAuthentication\nspec: {jwtRules: [{issuer: %s, jwks: %s, forwardOriginalToken: %t, "+
			"outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-sub, claim: sub}]}]}", of.name, of.keys(), forward)})
		w.with(t, mesh.Permissive, func(m *mesh.Model) {
			m.Workloads[mesh.WorkloadKey{Namespace: "shop", Name: "server"}].Inbound.Access = access
		})
		eventually(t, fmt.Sprintf("forwardOriginalToken %t", forward), func() error {
			r := get(w.http, "http://10.96.0.10/", http.Header{"Authorization": {"Bearer " + of.token("alice", nil)}}, "web")
			payload, _ := base64.RawURLEncoding.DecodeString(r.Header.Get("X-Payload"))
			if r.err() != nil || r.Header.Get("X-Sub") != "alice" || !strings.Contains(string(payload), `"alice"`) || (r.Header.Get("Authorization") != "") != forward {
				return fmt.Errorf("the workload sees %v (%w)", r.Header, errors.Join(r.err(), errors.New("want sub, payload and perhaps the token")))
			}
			return nil
		})
	}
}
