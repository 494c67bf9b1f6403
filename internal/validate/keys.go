package validate

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// members are what a key of each type must have, in unpadded URL base64 but for curves (RFC 7518, section 6; RFC 8037).
var members = map[string][]string{"RSA": {"n", "e"}, "EC": {"x", "y"}, "OKP": {"x"}, "oct": {"k"}}

// keys checks a JSON web key set, or one key. That a token is signed by one of them is seen when it comes.
func (c *check) keys(at path, text string) {
	var set map[string]any
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		c.errorf(diag.InvalidKeys, at, "it is no JSON object: %s", short(err.Error()))
		return
	}
	list, isSet := set["keys"].([]any)
	if !isSet {
		if _, lone := set["kty"]; !lone {
			c.errorf(diag.InvalidKeys, at, "it has no list of keys")
			return
		}
		list = []any{set}
	}
	for i, item := range list {
		key, ok := item.(map[string]any)
		if !ok {
			c.errorf(diag.InvalidKeys, at, "key %d is %s, and must be an object", i, describe(item))
			continue
		}
		c.publicKey(at, i, key)
	}
}

func (c *check) publicKey(at path, i int, key map[string]any) {
	kind, _ := key["kty"].(string)
	needs, known := members[kind]
	if !known {
		c.errorf(diag.InvalidKeys, at, "key %d has the type %s, and must be RSA, EC, OKP or oct", i, quote(kind))
		return
	}
	for _, name := range needs {
		value, _ := key[name].(string)
		if _, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(value, "=")); value == "" || err != nil {
			c.errorf(diag.InvalidKeys, at, "key %d, of type %s, has no %s that can be read", i, kind, name)
		}
	}
	if _, private := key["d"]; private || kind == "oct" {
		c.warnf(diag.PrivateKey, at, "key %d is private: whoever reads this object can sign tokens by it", i)
	}
}
