// Package jsonscan reads a JSON document once, from front to back, and makes values only of what it is asked for; what is passed over
// is checked and not decoded. It is for large documents of which little is needed, such as admission requests: encoding/json goes
// over the whole document twice and through reflection.
//
// It takes what encoding/json takes (RFC 8259), with these differences: names are compared exactly, of equal names the last one
// counts, and values are at most 1,000 deep. Whoever gets an error asks encoding/json, which says more.
package jsonscan

import (
	"encoding/json"
	"errors"
	"strconv"
	"unicode/utf8"
)

// maxDepth bounds the recursion. A pod is about 15 deep.
const maxDepth = 1000

// Scanner stands somewhere in a document.
type Scanner struct {
	data  []byte
	at    int
	depth int
}

// New stands before the document's value.
func New(data []byte) *Scanner { return &Scanner{data: data} }

var (
	errSyntax = errors.New("not JSON")
	errType   = errors.New("a value of another type")
)

func (s *Scanner) space() {
	for s.at < len(s.data) {
		switch s.data[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

// peek is the first byte of the next value or mark, 0 at the end.
func (s *Scanner) peek() byte {
	s.space()
	if s.at == len(s.data) {
		return 0
	}
	return s.data[s.at]
}

func (s *Scanner) take(c byte) error {
	if s.peek() != c {
		return errSyntax
	}
	s.at++
	return nil
}

// End reports an error unless nothing but white space is left.
func (s *Scanner) End() error {
	if s.peek() != 0 || s.at != len(s.data) {
		return errSyntax
	}
	return nil
}

// Kind is the first byte of the next value, which says what it is; 0 is the document's end. It takes nothing.
func (s *Scanner) Kind() byte { return s.peek() }

// Offset is how many bytes of the document were taken, with the white space before the next value.
func (s *Scanner) Offset() int {
	s.space()
	return s.at
}

// Null takes a null, when that is the next value.
func (s *Scanner) Null() bool {
	if s.peek() == 'n' && s.word("null") == nil {
		return true
	}
	return false
}

func (s *Scanner) word(w string) error {
	if len(s.data)-s.at < len(w) || string(s.data[s.at:s.at+len(w)]) != w {
		return errSyntax
	}
	s.at += len(w)
	return nil
}

// Object calls each for every name of an object; it must take the value. name is valid during the call.
func (s *Scanner) Object(each func(name []byte) error) error {
	if s.peek() != '{' {
		return errType
	}
	return s.list('}', func(int) error {
		name, plain, err := s.text()
		if err != nil {
			return err
		}
		if !plain {
			decoded, err := unquote(name)
			if err != nil {
				return err
			}
			name = []byte(decoded)
		} else {
			name = name[1 : len(name)-1]
		}
		if err := s.take(':'); err != nil {
			return err
		}
		return each(name)
	})
}

// Array calls each for every value of an array; it must take the value.
func (s *Scanner) Array(each func(i int) error) error {
	if s.peek() != '[' {
		return errType
	}
	return s.list(']', each)
}

// list goes through what stands between an opening mark, which is next, and the closing one.
func (s *Scanner) list(closing byte, each func(i int) error) error {
	if s.depth++; s.depth > maxDepth {
		return errSyntax
	}
	s.at++
	if s.peek() == closing {
		s.at++
		s.depth--
		return nil
	}
	for i := 0; ; i++ {
		if err := each(i); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.at++
		case closing:
			s.at++
			s.depth--
			return nil
		default:
			return errSyntax
		}
	}
}

// plainByte are the bytes of a string that stand for themselves, in ASCII.
var plainByte = func() (t [256]bool) {
	for c := 0x20; c < 0x80; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// text takes a string and gives it with its quotation marks; plain says that it has neither an escape nor bytes beyond ASCII.
func (s *Scanner) text() (quoted []byte, plain bool, err error) {
	if s.peek() != '"' {
		return nil, false, errType
	}
	begin := s.at
	data := s.data
	plain = true
	for at := begin + 1; at < len(data); at++ {
		c := data[at]
		switch {
		case plainByte[c]:
		case c == '"':
			s.at = at + 1
			return data[begin:s.at], plain, nil
		case c >= 0x80:
			plain = false
		case c == '\\' && at+1 < len(data):
			plain = false
			at++
			if data[at] == 'u' {
				if !hex(data[at+1:]) {
					return nil, false, errSyntax
				}
				at += 4
			} else if !escape(data[at]) {
				return nil, false, errSyntax
			}
		default:
			return nil, false, errSyntax
		}
	}
	return nil, false, errSyntax
}

func escape(c byte) bool {
	switch c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return true
	}
	return false
}

// hex wants four hexadecimal digits.
func hex(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	for _, c := range b[:4] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// String takes a string; null is "".
func (s *Scanner) String() (string, error) {
	if s.Null() {
		return "", nil
	}
	quoted, plain, err := s.text()
	if err != nil {
		return "", err
	}
	if plain || utf8.Valid(quoted) && !hasEscape(quoted) {
		return string(quoted[1 : len(quoted)-1]), nil
	}
	return unquote(quoted)
}

func hasEscape(b []byte) bool {
	for _, c := range b {
		if c == '\\' {
			return true
		}
	}
	return false
}

func unquote(quoted []byte) (text string, err error) {
	err = json.Unmarshal(quoted, &text)
	return text, err
}

// Int takes a whole number.
func (s *Scanner) Int(bits int) (int64, error) {
	begin, err := s.number()
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(s.data[begin:s.at]), 10, bits)
}

// Bool takes true or false; null is false.
func (s *Scanner) Bool() (bool, error) {
	switch s.peek() {
	case 't':
		return true, s.word("true")
	case 'f':
		return false, s.word("false")
	case 'n':
		return false, s.word("null")
	}
	return false, errType
}

// number takes a number and gives its beginning.
func (s *Scanner) number() (begin int, err error) {
	s.space()
	begin = s.at
	digits := func() bool {
		from := s.at
		for s.at < len(s.data) && s.data[s.at] >= '0' && s.data[s.at] <= '9' {
			s.at++
		}
		return s.at > from
	}
	next := func(c byte) bool {
		if s.at < len(s.data) && s.data[s.at] == c {
			s.at++
			return true
		}
		return false
	}
	next('-')
	if !next('0') && !digits() {
		return begin, errType
	}
	if next('.') && !digits() {
		return begin, errSyntax
	}
	if next('e') || next('E') {
		_ = next('+') || next('-')
		if !digits() {
			return begin, errSyntax
		}
	}
	return begin, nil
}

// Raw takes any value and gives its text. It is part of the document: it must not be changed.
func (s *Scanner) Raw() ([]byte, error) {
	s.space()
	begin := s.at
	if err := s.Skip(); err != nil {
		return nil, err
	}
	return s.data[begin:s.at], nil
}

// Skip takes any value.
func (s *Scanner) Skip() (err error) {
	switch s.peek() {
	case '{':
		return s.list('}', s.skipMember)
	case '[':
		return s.list(']', s.skipElement)
	case '"':
		_, _, err = s.text()
	case 't':
		err = s.word("true")
	case 'f':
		err = s.word("false")
	case 'n':
		err = s.word("null")
	default:
		_, err = s.number()
	}
	return err
}

func (s *Scanner) skipMember(int) error {
	if _, _, err := s.text(); err != nil {
		return err
	}
	if err := s.take(':'); err != nil {
		return err
	}
	return s.Skip()
}

func (s *Scanner) skipElement(int) error { return s.Skip() }
