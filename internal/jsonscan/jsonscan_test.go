package jsonscan_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/jsonscan"
)

// value reads any document with everything that the scanner has.
func value(s *jsonscan.Scanner, raw []byte) (any, error) {
	switch c := strings.TrimLeft(string(raw), " \t\r\n"); {
	case strings.HasPrefix(c, "{"):
		m := map[string]any{}
		return m, s.Object(func(name []byte) error {
			key := string(name)
			v, err := next(s)
			m[key] = v
			return err
		})
	case strings.HasPrefix(c, "["):
		list := []any{}
		return list, s.Array(func(int) error {
			v, err := next(s)
			list = append(list, v)
			return err
		})
	case strings.HasPrefix(c, `"`):
		return s.String()
	case strings.HasPrefix(c, "t"), strings.HasPrefix(c, "f"):
		return s.Bool()
	}
	text, err := s.Raw()
	if err != nil {
		return nil, err
	}
	var v any
	return v, json.Unmarshal(text, &v)
}

func next(s *jsonscan.Scanner) (any, error) {
	ahead := *s
	raw, err := ahead.Raw()
	if err != nil {
		return nil, err
	}
	return value(s, raw)
}

// FuzzScanner: what it takes is JSON, and what is JSON it takes, in pieces and as a whole.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{`{"a":[1,-0.5e+7,true,false,null,"x\u00e9\n"],"b":{}}`, `[`, `{"a" 1}`, `[1,]`, "\"\x01\"", "\"\xff\"", `"\ud800"`, `01`, `-`, `1.`, `tru`, `{"a":1}}`, " [ ] ", `"\x"`, `{"\u0061":1}`, ``,
		strings.Repeat("[", 2000) + strings.Repeat("]", 2000)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := jsonscan.New([]byte(text))
		_, err := s.Raw()
		if err == nil {
			err = s.End()
		}
		deep := strings.Count(text, "[")+strings.Count(text, "{") > 900
		if valid := json.Valid([]byte(text)); valid != (err == nil) && !deep {
			t.Fatalf("%q is JSON: %v, the scanner says %v", text, valid, err)
		}
		if err != nil {
			return
		}
		s = jsonscan.New([]byte(text))
		if _, err := next(s); err != nil {
			t.Fatalf("%q: in pieces: %v", text, err)
		}
		if err := s.End(); err != nil {
			t.Fatalf("%q: something is left", text)
		}
	})
}

// TestStringsAreThoseOfJSON: also those with escapes and with bytes that are no UTF-8.
func TestStringsAreThoseOfJSON(t *testing.T) {
	for _, text := range []string{`""`, `"a"`, `"é"`, `"\u00e9\t\"\\\/"`, "\"\xff\"", `"\ud83d\ude00"`, `"\ud800"`, "null", " \"a\" "} {
		var want string
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatal(err)
		}
		if got, err := jsonscan.New([]byte(text)).String(); err != nil || got != want {
			t.Errorf("%s is %q (error %v), want %q", text, got, err, want)
		}
	}
}

// TestOtherTypes: a value of another type is an error and never a zero.
func TestOtherTypes(t *testing.T) {
	for _, text := range []string{`1`, `"a"`, `[]`, `{}`, `true`} {
		s := func() *jsonscan.Scanner { return jsonscan.New([]byte(text)) }
		got := map[string]bool{}
		_, err := s().String()
		got[`"a"`] = err == nil
		_, err = s().Int(32)
		got["1"] = err == nil
		_, err = s().Bool()
		got["true"] = err == nil
		got["[]"] = s().Array(func(int) error { return nil }) == nil
		got["{}"] = s().Object(func([]byte) error { return nil }) == nil
		want := map[string]bool{`"a"`: false, "1": false, "true": false, "[]": false, "{}": false}
		want[text] = true
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s is taken as %v", text, got)
		}
	}
	for _, text := range []string{"1.5", "99999999999", "1e3"} {
		if n, err := jsonscan.New([]byte(text)).Int(32); err == nil {
			t.Errorf("%s is %d", text, n)
		}
	}
}
