package validate

import (
	"slices"
	"strings"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// hints say for each code what to do next, where a check says nothing better.
var hints = map[diag.Code]string{
	diag.UnknownField:        "take it out, or move it to where it belongs: kubectl explain shows the fields",
	diag.WrongForm:           "write it in the form that the kind's reference shows",
	diag.MissingValue:        "add it",
	diag.UnknownValue:        "write one of the names that may stand there",
	diag.OutOfRange:          "write a number within the range",
	diag.InvalidPort:         "write the port's number, from 1 to 65535",
	diag.InvalidDuration:     "write a duration of at least 1ms, such as 500ms, 5s or 1h",
	diag.InvalidHost:         "write a DNS name, such as web.shop.svc.cluster.local or *.example.org",
	diag.InvalidAddress:      "write an IP address, such as 10.0.0.1 or fd00::1",
	diag.InvalidRegex:        "mend it by RE2's syntax: https://github.com/google/re2/wiki/Syntax",
	diag.InvalidLabels:       "write labels as pods carry them: letters, digits, '-', '_' and '.', 63 at most",
	diag.InvalidName:         "write letters, digits and '-', 63 at most, the first and the last no '-'",
	diag.InvalidHeader:       "write a header as HTTP allows it, and %% where a percent sign is meant",
	diag.InvalidURL:          "write a whole URL, such as https://example.org/keys",
	diag.Duplicate:           "keep one of them",
	diag.Contradiction:       "keep one of them, and take the other out",
	diag.NothingSaid:         "say what is to be done, or take it out",
	diag.NotSupported:        "take it out",
	diag.InvalidTLS:          "name the certificates that the mode needs, and no others",
	diag.InvalidTarget:       "name a Service, a ServiceEntry, a Gateway or a GatewayClass of the same namespace",
	diag.InvalidKeys:         "paste the key set as its server gives it: a JSON object with the list keys",
	diag.InvalidExpression:   "mend the expression by CEL's syntax: https://cel.dev",
	diag.InvalidPath:         "use {*} for one part of a path and {**} for the rest, each between two slashes",
	diag.InvalidLocality:     "write REGION, REGION/ZONE or REGION/ZONE/SUBZONE",
	diag.UnknownAttribute:    "use one of the attributes of https://istio.io/latest/docs/reference/config/security/conditions/",
	diag.TooLarge:            "make it smaller",
	diag.ForbiddenAnnotation: "take the annotation out",
	diag.PatchValue:          "compare it with the message in Envoy's API reference",
	diag.PatchRule:           "compare it with the rules of the field in Envoy's API reference",
	diag.PatchMatch:          "match by what the patch is applied to",
	diag.PatchType:           "compare the name with the type in Envoy's API reference",
	diag.Deprecated:          "replace it before an upgrade takes it away",
	diag.SelectsAll:          "name labels, or take the selector out if all workloads are meant",
	diag.NoEffect:            "take it out",
	diag.DeniesTCP:           "add the ports that are meant to operation.ports",
	diag.ProxyInternals:      "prefer another kind where one does it, and try the filter with each new version of the proxy",
	diag.PrivateKey:          "take the private part out of the key set, and make a new key: this one has been shown",
	diag.MoreProblems:        "mend the ones that are shown, and look again",
	diag.CheckFailed:         "please report it, with the object",
	diag.UnreachableRoute:    "take the route out, or move it before the one that hides it",
	diag.IneffectiveMatch:    "take the match out, or move its route before the one that hides it",
}

// nearest is the name that is most like what was written; "" when none is near. Both come from outside, so long ones are not compared.
func nearest(written string, names []string) string {
	const longest = 64
	if len(written) > longest {
		return ""
	}
	best, distance := "", 1+len(written)/3
	for _, name := range slices.Sorted(slices.Values(names)) {
		if len(name) > longest {
			continue
		}
		if d := edits(plain(written), plain(name)); d < distance {
			best, distance = name, d
		}
	}
	return best
}

// plain takes out what people mix up when they write names of fields.
func plain(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
}

// edits is how many letters are to be changed, taken out, put in or swapped with their neighbour to make one of the other.
func edits(a, b string) int {
	before, last, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(last[j]+1, next[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, last, next = last, next, before
	}
	return last[len(b)]
}
