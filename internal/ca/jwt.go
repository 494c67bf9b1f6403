package ca

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"time"
)

// maxToken is the size of a bearer token in bytes. A pod's token has about 1 KiB.
const maxToken = 16 << 10

// claims is what is read of a token before (to spare the API server a question whose answer is known) and after its review.
// Nothing here is verified: only the review says that a token is good.
type claims struct {
	audience []string
	expires  time.Time // zero when the token does not say
}

// parseClaims reads the payload of a JSON web token (RFC 7519) without checking its signature.
func parseClaims(token string) (claims, error) {
	if len(token) > maxToken {
		return claims{}, errors.New("it is too long")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}, errors.New("it is not a JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims{}, errors.New("it is not a JSON web token: the payload is not base64url")
	}
	var body struct {
		Audience json.RawMessage `json:"aud"`
		Expires  float64         `json:"exp"`
	}
	if err := json.Unmarshal(payload, &body); err != nil {
		return claims{}, errors.New("it is not a JSON web token: the payload is not JSON, or has claims of a wrong type")
	}
	var c claims
	if len(body.Audience) > 0 { // one string, or a list of them (RFC 7519 4.1.3)
		var one string
		if json.Unmarshal(body.Audience, &one) == nil {
			c.audience = []string{one}
		} else if json.Unmarshal(body.Audience, &c.audience) != nil {
			return claims{}, errors.New("it is not a JSON web token: its audience is not a string or a list of strings")
		}
	}
	if body.Expires > 0 && body.Expires < math.MaxInt32*1000 {
		c.expires = time.Unix(int64(body.Expires), 0)
	}
	return c, nil
}

// isFor reports whether the token names the audience.
func (c claims) isFor(audience string) bool { return slices.Contains(c.audience, audience) }
