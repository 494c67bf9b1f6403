package validate

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// check gathers the problems of one object.
type check struct {
	object   ref.Ref
	meta     *metadata // nil where only the spec is known
	strict   bool      // unknown fields are errors
	problems []diag.Problem
	more     diag.Severity // the worst of those that found no room
	left     int           // how many found none
	pruned   []string      // paths of values that cannot be read: what follows from their absence is not said
}

// metadata is what checks need of an object beside its spec.
type metadata struct {
	labels, annotations map[string]string
}

// most bounds the problems of one object: nobody reads more, and an answer to the API server is not for lists.
const most = 50

// told is a problem that has been noted, for what is to be added to it.
type told struct{ p *diag.Problem }

// hint says what to do next, where the code's own hint does not say it.
func (t told) hint(format string, args ...any) {
	if t.p != nil {
		t.p.Hint = fmt.Sprintf(format, args...)
	}
}

func (c *check) errorf(code diag.Code, at path, format string, args ...any) told {
	return c.add(diag.Problem{Code: code, Severity: diag.Error, Field: at.String(), Detail: fmt.Sprintf(format, args...)})
}

func (c *check) warnf(code diag.Code, at path, format string, args ...any) told {
	return c.add(diag.Problem{Code: code, Severity: diag.Warning, Field: at.String(), Detail: fmt.Sprintf(format, args...)})
}

func (c *check) add(p diag.Problem) told {
	if c.follows(p.Field) {
		return told{}
	}
	if len(c.problems) >= most {
		c.left++
		c.more = max(c.more, p.Severity)
		return told{}
	}
	p.Object, p.Hint = c.object, hints[p.Code]
	c.problems = append(c.problems, p)
	return told{&c.problems[len(c.problems)-1]}
}

// follows reports whether a problem at a path may be there only because a value could not be read, which has been said.
func (c *check) follows(field string) bool {
	for _, gone := range c.pruned {
		if rest, inside := strings.CutPrefix(field, gone); inside && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
		if rest, holds := strings.CutPrefix(gone, field); holds && strings.LastIndexAny(rest, ".[") == 0 {
			return true // the value is a member of what the problem is about
		}
	}
	return false
}

// all are the problems, and one more where not all of them are shown.
func (c *check) all() []diag.Problem {
	if c.left == 0 {
		return c.problems
	}
	return append(c.problems, diag.Problem{
		Code: diag.MoreProblems, Severity: c.more, Object: c.object, Field: "spec", Hint: hints[diag.MoreProblems],
		Detail: fmt.Sprintf("it has %d more problems, which are not shown", c.left),
	})
}

// path is where in an object something stands. Its text is made only when there is something to say.
type path struct {
	parent *path
	name   string // of a field; "" for an index
	number int
	quoted bool // the name is a map's key
}

// The roots of all paths.
var (
	spec       = path{name: "spec"}
	objectMeta = path{name: "metadata"}
)

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
