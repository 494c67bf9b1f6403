package pki

import (
	"strings"
	"testing"
)

func TestIdentityIsReadBackAsWritten(t *testing.T) {
	for _, id := range []Identity{
		{"cluster.local", "shop", "web"},
		{"td_1.example-2.org", "a", "default"},
		{"cluster.local", strings.Repeat("n", 63), strings.Repeat("s", 253)},
		{"cluster.local", "shop", "web.v2"},
	} {
		got, err := ParseIdentity(id.String())
		if err != nil || got != id {
			t.Errorf("ParseIdentity(%q) = %v, %v", id.String(), got, err)
		}
	}
}

func TestParseIdentityRefusesEveryOtherForm(t *testing.T) {
	for name, s := range map[string]string{
		"empty":                  "",
		"another scheme":         "https://cluster.local/ns/shop/sa/web",
		"scheme in upper case":   "SPIFFE://cluster.local/ns/shop/sa/web",
		"no trust domain":        "spiffe:///ns/shop/sa/web",
		"upper case in domain":   "spiffe://Cluster.local/ns/shop/sa/web",
		"port":                   "spiffe://cluster.local:80/ns/shop/sa/web",
		"user":                   "spiffe://me@cluster.local/ns/shop/sa/web",
		"empty label":            "spiffe://cluster..local/ns/shop/sa/web",
		"trailing dot in domain": "spiffe://cluster.local./ns/shop/sa/web",
		"query":                  "spiffe://cluster.local/ns/shop/sa/web?x=1",
		"fragment":               "spiffe://cluster.local/ns/shop/sa/web#x",
		"percent-encoding":       "spiffe://cluster.local/ns/sh%6fp/sa/web",
		"trailing slash":         "spiffe://cluster.local/ns/shop/sa/web/",
		"empty namespace":        "spiffe://cluster.local/ns//sa/web",
		"dot segment":            "spiffe://cluster.local/ns/../sa/web",
		"too few segments":       "spiffe://cluster.local/ns/shop",
		"other words":            "spiffe://cluster.local/sa/web/ns/shop",
		"newline":                "spiffe://cluster.local/ns/shop/sa/web\n",
		"not ASCII":              "spiffe://cluster.local/ns/shöp/sa/web",
		"namespace too long":     "spiffe://cluster.local/ns/" + strings.Repeat("n", 64) + "/sa/web",
		"account too long":       "spiffe://cluster.local/ns/shop/sa/" + strings.Repeat("s", 254),
		"domain too long":        "spiffe://" + strings.Repeat("d", 256) + "/ns/shop/sa/web",
		"everything too long":    "spiffe://" + strings.Repeat("d", 3000),
	} {
		if id, err := ParseIdentity(s); err == nil {
			t.Errorf("%s: ParseIdentity(%q) = %v, want an error", name, s, id)
		}
	}
}

// Whatever ParseIdentity takes is written back as the same bytes: two spellings of one identity do not exist.
func FuzzParseIdentity(f *testing.F) {
	for _, s := range []string{
		"spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/../sa/web", "spiffe://a/ns/b/sa/c/", "spiffe://%41/ns/b/sa/c", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseIdentity(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Fatalf("ParseIdentity(%q).String() = %q", s, id.String())
		}
		if id.uri().String() != s {
			t.Fatalf("in a certificate %q would be %q", s, id.uri())
		}
	})
}
