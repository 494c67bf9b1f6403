package translate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"sync"
	"unicode/utf8"
)

// key is what is looked at of a JSON web key (RFC 7518).
type key struct {
	Type, Algorithm, Curve string
	N, E, X, Y, K          string
}

// keyOf reads a key by its exact names, as Envoy does; encoding/json would take any case into a struct.
func keyOf(members map[string]json.RawMessage) key {
	text := func(name string) (s string) {
		if json.Unmarshal(members[name], &s) != nil {
			return ""
		}
		return s
	}
	return key{Type: text("kty"), Algorithm: text("alg"), Curve: text("crv"), N: text("n"), E: text("e"), X: text("x"), Y: text("y"), K: text("k")}
}

// isKeySet reports whether a text is a JSON web key set that Envoy takes: one with a key that can be used. Envoy refuses a listener
// as a whole whose set has none, and passes over single keys that it cannot use.
func isKeySet(text string) bool {
	var set map[string]json.RawMessage
	var keys []map[string]json.RawMessage
	if !utf8.ValidString(text) || json.Unmarshal([]byte(text), &set) != nil || json.Unmarshal(set["keys"], &keys) != nil {
		return false
	}
	return slices.ContainsFunc(keys, func(members map[string]json.RawMessage) bool { return keyOf(members).usable() })
}

var (
	rsaAlgorithms = []string{"", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	macAlgorithms = []string{"", "HS256", "HS384", "HS512"}
	curves        = map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}
	curveOf       = map[string]string{"": "P-256", "ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
)

func (k key) usable() bool {
	switch k.Type {
	case "RSA":
		return slices.Contains(rsaAlgorithms, k.Algorithm) && len(decoded(k.N)) >= 128 && len(decoded(k.E)) > 0
	case "EC":
		name := k.Curve
		if name == "" {
			name = curveOf[k.Algorithm]
		}
		curve := curves[name]
		if curve == nil || k.Algorithm != "" && curveOf[k.Algorithm] != name {
			return false
		}
		_, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, decoded(k.X), decoded(k.Y)))
		return err == nil
	case "OKP":
		return k.Curve == "Ed25519" && (k.Algorithm == "" || k.Algorithm == "EdDSA") && len(decoded(k.X)) == 32
	case "oct":
		return slices.Contains(macAlgorithms, k.Algorithm) && len(decoded(k.K)) > 0
	}
	return false
}

// decoded gives the bytes of a base64url text, nil when it is none.
func decoded(text string) []byte {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil
	}
	return b
}

// noKeys is a set by which no token is good: it holds while the issuer's keys are not known. Envoy wants a key in it, so it has one
// whose private half nobody has: a point of the curve that comes out of a hash.
var noKeys = sync.OnceValue(func() string {
	curve := elliptic.P256().Params()
	x := new(big.Int)
	for seed := sha256.Sum256([]byte("no token is good by this key")); ; seed = sha256.Sum256(seed[:]) {
		x.SetBytes(seed[:])
		square := new(big.Int).Exp(x, big.NewInt(3), curve.P) // y² = x³ - 3x + b
		square.Sub(square, new(big.Int).Mul(x, big.NewInt(3))).Add(square, curve.B).Mod(square, curve.P)
		if y := new(big.Int).ModSqrt(square, curve.P); y != nil && x.Cmp(curve.P) < 0 {
			encode := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.FillBytes(make([]byte, 32))) }
			return `{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"none","x":"` + encode(x) + `","y":"` + encode(y) + `"}]}`
		}
	}
})
