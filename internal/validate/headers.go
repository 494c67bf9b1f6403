package validate

import (
	"regexp"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// Names of headers: as HTTP has them (RFC 9110, section 5.6.2), and as they may be made of claims.
var (
	headerName  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	plainHeader = regexp.MustCompile(`^[-_A-Za-z0-9]+$`)
	// headerValue is what HTTP lets through: no control characters but the tabulator.
	headerValue = regexp.MustCompile(`^[^\x00-\x08\x0A-\x1F\x7F]*$`)
)

// length bounds what a command gives.
var length = regexp.MustCompile(`^:[0-9]+`)

var pseudoHeaders = map[string]bool{":method": true, ":scheme": true, ":authority": true, ":path": true, ":status": true}

func isAuthority(name string) bool {
	return strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")
}

// headers checks what is done to the headers of requests and responses.
func (c *check) headers(at path, h *networking.Headers) {
	for _, d := range []struct {
		field   string
		headers *networking.Headers_HeaderOperations
		host    bool // the host may be set
	}{{"request", h.GetRequest(), true}, {"response", h.GetResponse(), false}} {
		where := at.field(d.field)
		for _, l := range []struct {
			field  string
			values map[string]string
		}{{"set", d.headers.GetSet()}, {"add", d.headers.GetAdd()}} {
			for name, value := range sorted(l.values) {
				c.changed(where.field(l.field).key(name), name, d.host)
				if problem := valueProblem(value); problem != "" {
					c.errorf(diag.InvalidHeader, where.field(l.field).key(name), "%s cannot be its value: %s", quote(value), problem)
				}
			}
		}
		for i, name := range d.headers.GetRemove() {
			c.changed(where.field("remove").index(i), name, false)
		}
	}
}

func (c *check) changed(at path, name string, host bool) {
	switch {
	case name == "":
		c.errorf(diag.InvalidHeader, at, "the header has no name").hint("name it")
	case isAuthority(name) && !host:
		c.errorf(diag.NotSupported, at, "the host can be set on requests, and nothing else can be done to it")
	case strings.HasPrefix(name, ":") && !isAuthority(name):
		c.errorf(diag.NotSupported, at, "pseudo headers cannot be changed").hint("rewrite changes paths")
	}
}

// authority checks that the host of requests is set in one place only.
func (c *check) authority(at path, r *networking.HTTPRoute) {
	set := r.GetRewrite().GetAuthority() != ""
	request := at.field("headers").field("request")
	for _, l := range []struct {
		field  string
		values map[string]string
	}{{"set", r.GetHeaders().GetRequest().GetSet()}, {"add", r.GetHeaders().GetRequest().GetAdd()}} {
		for name := range sorted(l.values) {
			if !isAuthority(name) {
				continue
			}
			if set {
				c.errorf(diag.Contradiction, request.field(l.field).key(name), "the host of the request is set elsewhere in the route too")
			}
			set = true
		}
	}
}

// valueProblem says what is wrong with a header's value, "" when nothing is: Envoy puts commands between percent signs, such as
// %REQ(x-user)% or %DYNAMIC_METADATA(["a", "b"])%, into it, and takes two for one.
func valueProblem(value string) string {
	if !headerValue.MatchString(value) {
		return "it has control characters"
	}
	for rest := value; ; {
		_, after, found := strings.Cut(rest, "%")
		if !found {
			return ""
		}
		if strings.HasPrefix(after, "%") {
			rest = after[1:]
			continue
		}
		end, problem := command(after)
		if problem != "" {
			return problem
		}
		rest = after[end:]
	}
}

// command reads a command after its first percent sign, and gives what is behind its last.
func command(s string) (end int, problem string) {
	const open = "a percent sign begins a command, and none ends it"
	i := strings.IndexAny(s, "%(")
	switch {
	case i < 0:
		return 0, open
	case s[i] == '%':
		return i + 1, ""
	}
	i, problem = arguments(s, i+1)
	if problem != "" {
		return 0, problem
	}
	if rest := length.FindString(s[i:]); rest != "" { // %REQ(x-user):10% is its first 10 characters
		i += len(rest)
	}
	for ; i < len(s); i++ {
		switch s[i] {
		case ' ':
		case '%':
			return i + 1, ""
		default:
			return 0, "between a command's arguments and the percent sign that ends it is " + quote(s[i:i+1])
		}
	}
	return 0, open
}

// arguments reads the arguments of a command, a list of strings or any text, to behind their parenthesis.
func arguments(s string, i int) (end int, problem string) {
	const open = "the arguments of a command have no end"
	for i < len(s) && s[i] == ' ' {
		i++
	}
	list := i < len(s) && s[i] == '['
	if !list {
		for ; i < len(s); i++ {
			switch s[i] {
			case '\\':
				i++
			case ')':
				return i + 1, ""
			}
		}
		return 0, open
	}
	return listed(s, i+1)
}

// listed reads strings in quotes, apart by commas, to behind the bracket and the parenthesis.
func listed(s string, i int) (end int, problem string) {
	const open = "the arguments of a command have no end"
	skip := func() {
		for i < len(s) && s[i] == ' ' {
			i++
		}
	}
	for {
		if skip(); i >= len(s) || s[i] != '"' {
			return 0, "the arguments in brackets are strings in quotes"
		}
		for i++; i < len(s) && s[i] != '"'; i++ {
			if s[i] == '\\' {
				i++
			}
		}
		if i++; i >= len(s) {
			return 0, open
		}
		if skip(); i >= len(s) {
			return 0, open
		}
		if s[i] == ',' {
			i++
			continue
		}
		if s[i] != ']' {
			return 0, "arguments in brackets are apart by commas"
		}
		i++
		if skip(); i >= len(s) || s[i] != ')' {
			return 0, open
		}
		return i + 1, ""
	}
}
