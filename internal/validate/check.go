package validate

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// check gathers the problems of one object.
type check struct {
	object   ref.Ref
	problems []diag.Problem
}

// most bounds the problems of one object: nobody reads more, and an answer to the API server is not for lists.
const most = 20

func (c *check) add(p diag.Problem) {
	if len(c.problems) < most {
		c.problems = append(c.problems, p)
	}
}

func (c *check) errorf(at path, format string, args ...any) {
	c.add(diag.Problem{Code: diag.InvalidField, Severity: diag.Error, Object: c.object, Field: at.String(), Detail: fmt.Sprintf(format, args...)})
}

func (c *check) warnf(at path, format string, args ...any) {
	c.add(diag.Problem{Code: diag.UnsupportedField, Severity: diag.Warning, Object: c.object, Field: at.String(), Detail: fmt.Sprintf(format, args...)})
}

// path is where in an object something stands. Its text is made only when there is something to say.
type path struct {
	parent *path
	name   string // of a field; "" for an index
	number int
	quoted bool // the name is a map's key
}

// spec is the root of all paths.
var spec = path{name: "spec"}

func (p path) field(name string) path { return path{parent: &p, name: name} }
func (p path) index(i int) path       { return path{parent: &p, number: i} }
func (p path) key(key string) path    { return path{parent: &p, name: key, quoted: true} }

// String gives the JSON path, such as spec.http[0].match.
func (p path) String() string {
	own := short(p.name)
	switch {
	case p.quoted:
		own = "[" + quote(p.name) + "]"
	case p.name == "":
		own = "[" + strconv.Itoa(p.number) + "]"
	case p.parent != nil:
		own = "." + own
	}
	if p.parent == nil {
		return own
	}
	return p.parent.String() + own
}

// quote shows a user's value, not all of a long one.
func quote(s string) string { return strconv.Quote(short(s)) }

func short(s string) string {
	const longest = 80
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}

func (c *check) required(at path, value string) bool {
	if value == "" {
		c.errorf(at, "it is missing")
	}
	return value != ""
}

// port checks a port that must be given.
func (c *check) port(at path, n uint32) {
	if n < 1 || n > 65535 {
		c.errorf(at, "it is %d, and a port is between 1 and 65535", n)
	}
}

func (c *check) percent(at path, value float64) {
	if !(value >= 0 && value <= 100) {
		c.errorf(at, "it is %v, and a percentage is between 0 and 100", value)
	}
}

func (c *check) notNegative(at path, n int64) {
	if n < 0 {
		c.errorf(at, "it is %d, and may not be negative", n)
	}
}

func (c *check) duration(at path, d *durationpb.Duration) {
	switch {
	case d == nil:
	case d.CheckValid() != nil:
		c.errorf(at, "it is no valid duration")
	case d.AsDuration() < 0:
		c.errorf(at, "it is %s, and may not be negative", d.AsDuration())
	}
}

// regex checks a pattern of RE2, which is Envoy's dialect and Go's.
func (c *check) regex(at path, pattern string) {
	if _, err := regexp.Compile(pattern); err != nil {
		c.errorf(at, "%s is no regular expression of RE2: %s", quote(pattern), short(strings.TrimPrefix(err.Error(), "error parsing regexp: ")))
	}
}

var hostCharacters = regexp.MustCompile(`^[a-zA-Z0-9_.:*\[\]-]+$`)

// host checks a DNS name that may begin with a wildcard, or an address. It lets through what only a DNS server would mind.
func (c *check) host(at path, host string) {
	switch {
	case host == "":
		c.errorf(at, "it is empty")
	case len(host) > 255:
		c.errorf(at, "it has %d characters, and a host has 255 at most", len(host))
	case !hostCharacters.MatchString(host):
		c.errorf(at, "%s is no host name: it has characters that none has", quote(host))
	case strings.LastIndexByte(host, '*') > 0:
		c.errorf(at, "%s has a wildcard that is not its beginning", quote(host))
	case strings.Contains(host, ":") && !isAddress(host):
		c.errorf(at, "%s is neither a host name nor an address: a port does not belong here", quote(host))
	default:
		for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
			if label == "" || len(label) > 63 {
				c.errorf(at, "%s is no host name: its parts between the dots have 1 to 63 characters", quote(host))
				return
			}
		}
	}
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil
}

// addressOrBlock checks an IP address or a CIDR block.
func (c *check) addressOrBlock(at path, s string) {
	if _, err := netip.ParsePrefix(s); err != nil && !isAddress(s) {
		c.errorf(at, "%s is neither an IP address nor a CIDR block", quote(s))
	}
}

// labels checks what is to be compared with the labels of pods.
func (c *check) labels(at path, labels map[string]string) {
	for name, value := range labels {
		if problems := validation.IsQualifiedName(name); len(problems) > 0 {
			c.errorf(at.key(name), "%s is no name of a label: %s", quote(name), problems[0])
		}
		if problems := validation.IsValidLabelValue(value); len(problems) > 0 {
			c.errorf(at.key(name), "%s is no value of a label: %s", quote(value), problems[0])
		}
	}
}

// subset checks the name of a subset.
func (c *check) subset(at path, name string) {
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		c.errorf(at, "%s is no name of a subset: %s", quote(name), problems[0])
	}
}

// protocols are the names that Istio's ports may carry, in any case.
var protocols = []string{"HTTP", "HTTPS", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB", "TCP", "TLS", "UDP", "MONGO", "REDIS", "MYSQL", "HBONE", "DOUBLEHBONE"}

func (c *check) protocol(at path, name string) {
	for _, p := range protocols {
		if strings.EqualFold(p, name) {
			return
		}
	}
	c.errorf(at, "%s is no protocol: HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TCP, TLS, UDP, MONGO, REDIS and MYSQL are", quote(name))
}
