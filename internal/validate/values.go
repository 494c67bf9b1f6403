package validate

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// sorted goes through a map in the order of its keys, so that problems have one order too.
func sorted[K cmp.Ordered, V any](m map[K]V) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if !yield(key, m[key]) {
				return
			}
		}
	}
}

func (c *check) required(at path, value string) bool {
	if value == "" {
		c.errorf(diag.MissingValue, at, "it is missing")
	}
	return value != ""
}

// port checks a port that must be given.
func (c *check) port(at path, n uint32) {
	if n < 1 || n > 65535 {
		c.errorf(diag.InvalidPort, at, "it is %d, and a port is between 1 and 65535", n)
	}
}

func (c *check) percent(at path, value float64) {
	if !(value >= 0 && value <= 100) {
		c.errorf(diag.OutOfRange, at, "it is %v, and a percentage is between 0 and 100", value)
	}
}

func (c *check) notNegative(at path, n int64) {
	if n < 0 {
		c.errorf(diag.OutOfRange, at, "it is %d, and may not be negative", n)
	}
}

// duration checks a duration that is given: Envoy's timers count milliseconds.
func (c *check) duration(at path, d *durationpb.Duration) {
	switch {
	case d == nil:
	case d.CheckValid() != nil:
		c.errorf(diag.InvalidDuration, at, "it is no valid duration")
	case d.AsDuration() < 0:
		c.errorf(diag.InvalidDuration, at, "it is %s, and may not be negative", d.AsDuration())
	case d.AsDuration() < time.Millisecond:
		c.errorf(diag.InvalidDuration, at, "it is %s, and the shortest is 1ms", d.AsDuration())
	case d.AsDuration()%time.Millisecond != 0:
		c.errorf(diag.InvalidDuration, at, "it is %s, and only whole milliseconds are counted", d.AsDuration())
	}
}

// longestRegex bounds patterns, in bytes: the program that Envoy makes of one is always larger than the text, and Istio has the same
// bound.
const longestRegex = 1024

// regex checks a pattern of RE2, which is Envoy's dialect and Go's.
func (c *check) regex(at path, pattern string) {
	if len(pattern) > longestRegex {
		c.errorf(diag.TooLarge, at, "the regular expression has %d characters, and may have %d", len(pattern), longestRegex)
		return
	}
	if _, err := regexp.Compile(pattern); err != nil {
		c.errorf(diag.InvalidRegex, at, "%s is no regular expression of RE2: %s", quote(pattern), short(strings.TrimPrefix(err.Error(), "error parsing regexp: ")))
	}
}

const label = `[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?`

var (
	dnsLabel      = regexp.MustCompile(`^` + label + `$`)
	wildcardLabel = regexp.MustCompile(`^(?:\*|(?:\*-?)?` + label + `)$`)
)

func isLabel(s string) bool { return len(s) <= 63 && dnsLabel.MatchString(s) }

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// host checks a DNS name whose first part may have a wildcard.
func (c *check) host(at path, host string) {
	if problem := hostProblem(host, true); problem != "" {
		c.errorf(diag.InvalidHost, at, "%s", problem)
	}
}

// fullName checks a DNS name without a wildcard.
func (c *check) fullName(at path, host string) {
	if problem := hostProblem(host, false); problem != "" {
		c.errorf(diag.InvalidHost, at, "%s", problem)
	}
}

// hostProblem says what is wrong with a DNS name, "" when nothing is.
func hostProblem(host string, wildcard bool) string {
	switch {
	case host == "":
		return "it is empty"
	case len(host) > 255:
		return "it has " + strconv.Itoa(len(host)) + " characters, and a host has 255 at most"
	case strings.Contains(host, "://"):
		return quote(host) + " is a URL: only its host belongs here"
	case strings.Contains(host, ":") && !isAddress(host):
		return quote(host) + " is no host name: a port does not belong here"
	}
	parts := strings.Split(host, ".")
	last := len(parts) - 1
	if parts[last] == "" && last > 0 { // a dot at the end makes a name absolute
		parts = parts[:last]
		last--
	}
	for i, part := range parts {
		switch {
		case i == 0 && wildcard && len(part) <= 63 && wildcardLabel.MatchString(part):
		case part == "" || len(part) > 63:
			return quote(host) + " is no host name: its parts between the dots have 1 to 63 characters"
		case strings.Contains(part, "*") && (i > 0 || !wildcard):
			if !wildcard {
				return quote(host) + " has a wildcard, and none may stand here"
			}
			return quote(host) + " has a wildcard that is not its beginning"
		case !dnsLabel.MatchString(part):
			return quote(host) + " is no host name: " + quote(part) + " is not made of letters, digits and '-'"
		}
	}
	if _, err := strconv.Atoi(parts[last]); err == nil && (last > 0 || !wildcard) {
		return quote(host) + " is no host name: the last part cannot be a number"
	}
	return ""
}

// partialWildcard reports whether a host has a wildcard that is not a whole part, such as *x.example.org.
func partialWildcard(host string) bool {
	return strings.Contains(host, "*") && host != "*" && !strings.HasPrefix(host, "*.")
}

func isWild(host string) bool { return strings.HasPrefix(host, "*") }

// covers reports whether every name of inner is one of outer.
func covers(outer, inner string) bool {
	switch {
	case !isWild(outer):
		return outer == inner
	case isWild(inner):
		return len(inner) >= len(outer) && strings.HasSuffix(inner[1:], outer[1:])
	}
	return strings.HasSuffix(inner, outer[1:])
}

func (c *check) address(at path, s string) {
	if !isAddress(s) {
		c.errorf(diag.InvalidAddress, at, "%s is no IP address", quote(s))
	}
}

// addressOrBlock checks an IP address or a CIDR block.
func (c *check) addressOrBlock(at path, s string) {
	if _, err := netip.ParsePrefix(s); err != nil && !isAddress(s) {
		c.errorf(diag.InvalidAddress, at, "%s is neither an IP address nor a CIDR block", quote(s)).hint("write an address such as 10.0.0.1 or a block such as 10.0.0.0/8")
	}
}

// unixPrefix begins the addresses of Unix sockets.
const unixPrefix = "unix://"

// socket checks what follows the prefix: a file, or @ and the name of an abstract socket.
func (c *check) socket(at path, name string) {
	if !strings.HasPrefix(name, "@") && (!strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/")) {
		c.errorf(diag.InvalidAddress, at, "%s is no absolute path of a file", quote(name)).hint("write unix:///path/of/socket, or unix://@name for an abstract one")
	}
}

// labels checks labels as pods have them.
func (c *check) labels(at path, labels map[string]string) {
	for name, value := range sorted(labels) {
		if !isLabelName(name) {
			c.errorf(diag.InvalidLabels, at.key(name), "%s is no name of a label", quote(name))
		}
		if value != "" && !qualified.MatchString(value) {
			c.errorf(diag.InvalidLabels, at.key(name), "%s is no value of a label", quote(value))
		}
	}
}

var (
	qualified   = regexp.MustCompile(`^(?:[A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$`)
	labelPrefix = regexp.MustCompile(`^` + label + `(?:\.` + label + `)*$`)
)

func isLabelName(s string) bool {
	prefix, name, prefixed := strings.Cut(s, "/")
	if !prefixed {
		prefix, name = "", s
	}
	return (!prefixed || len(prefix) <= 253 && labelPrefix.MatchString(prefix)) && len(name) <= 63 && qualified.MatchString(name)
}

// name checks a name that is one part of a DNS name.
func (c *check) name(at path, what, name string) {
	if !isLabel(name) {
		c.errorf(diag.InvalidName, at, "%s is no name of %s", quote(name), what)
	}
}

// protocol is what a port's protocol means, by any spelling.
type protocol string

// protocols are the names that Istio's ports may carry, in any case.
var protocols = []string{"HTTP", "HTTPS", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB", "TCP", "TLS", "UDP", "MONGO", "REDIS", "MYSQL"}

func protocolOf(name string) protocol { return protocol(strings.ToUpper(name)) }

func (p protocol) known() bool { return slices.Contains(protocols, string(p)) }
func (p protocol) tls() bool   { return p == "HTTPS" || p == "TLS" }

func (p protocol) http() bool {
	return p == "HTTP" || p == "HTTP2" || p == "HTTP_PROXY" || p == "GRPC" || p == "GRPC-WEB"
}

// tcp reports whether the proxy sees nothing but bytes, or knows of no requests in them.
func (p protocol) tcp() bool {
	return p == "TCP" || p.tls() || p == "MONGO" || p == "REDIS" || p == "MYSQL"
}

func (c *check) protocol(at path, name string) {
	if !protocolOf(name).known() {
		c.errorf(diag.UnknownValue, at, "%s is no protocol", quote(name)).hint("write one of %s", strings.Join(protocols, ", "))
	}
}

// exportTo checks to which namespaces something is shown. ~, nobody, is for services alone.
func (c *check) exportTo(at path, namespaces []string, service bool) {
	seen := map[string]bool{}
	for i, n := range namespaces {
		name := n
		if n == "." {
			name = c.object.Namespace
		}
		if seen[name] {
			c.errorf(diag.Duplicate, at.index(i), "%s is there twice", quote(n))
		}
		seen[name] = true
		switch {
		case n == "." || n == "*":
		case n == "~":
			if !service {
				c.errorf(diag.NotSupported, at.index(i), "~, to nobody, is for service entries alone").hint("write . for the own namespace")
			}
		case !isLabel(n):
			c.errorf(diag.InvalidName, at.index(i), "%s is no name of a namespace", quote(n)).hint("write ., * or the name of a namespace")
		}
	}
	for _, alone := range []string{"*", "~"} {
		if seen[alone] && len(namespaces) > 1 {
			c.errorf(diag.Contradiction, at, "%s says all, and there are other entries", quote(alone))
		}
	}
}

// wasmURL checks where a module is fetched from: a URL, or a host and path, which is an image's.
func (c *check) wasmURL(at path, s string) {
	if !c.required(at, s) {
		return
	}
	u, err := url.ParseRequestURI(s)
	if err != nil {
		u, err = url.ParseRequestURI("http://" + s)
	}
	if err != nil {
		c.errorf(diag.InvalidURL, at, "%s is no URL", quote(s)).hint("write a URL such as oci://registry.example.org/filter:1 or file:///opt/filter.wasm")
		return
	}
	if !slices.Contains([]string{"", "file", "http", "https", "oci"}, u.Scheme) {
		c.errorf(diag.InvalidURL, at, "modules are not fetched by %s", quote(u.Scheme)).hint("use oci, https, http or file")
	}
}
