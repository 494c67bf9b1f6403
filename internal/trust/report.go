package trust

import (
	"strconv"
	"strings"
	"time"
)

// How a sidecar tells the control plane what it trusts: on its xDS stream, as a subscription to a type of this name whose resource
// names are KEY=VALUE. It is sent only to a control plane that says in the stream's response headers that it reads it, since others
// would take it for a type that they have to serve. See docs/design/0006.
const (
	ReportType   = "type.googleapis.com/selvage.trust.v1.Report"
	ReportHeader = "selvage-trust-report"
)

// The keys of a report.
const (
	rootsKey  = "roots"
	rootKey   = "root"
	beginsKey = "begins"
	endsKey   = "ends"
)

// maxReport and maxValue bound what is read of a report; more is a stranger's.
const (
	maxReport = 8
	maxValue  = 128
)

// Report is what a proxy uses now, after it has accepted it.
type Report struct {
	Roots        string    // hash of the roots that it believes peers by
	Root         string    // fingerprint of the root that its certificate leads to; "" without one
	Begins, Ends time.Time // of its certificate; zero without one
}

// Encode gives the report as resource names.
func (r Report) Encode() []string {
	list := []string{rootsKey + "=" + r.Roots}
	if r.Root != "" {
		list = append(list, rootKey+"="+r.Root)
	}
	if !r.Ends.IsZero() {
		list = append(list, beginsKey+"="+strconv.FormatInt(r.Begins.Unix(), 10), endsKey+"="+strconv.FormatInt(r.Ends.Unix(), 10))
	}
	return list
}

// ParseReport reads resource names. What it does not know it passes over, so that a newer sidecar can say more.
func ParseReport(names []string) (r Report) {
	for _, name := range names[:min(len(names), maxReport)] {
		key, value, _ := strings.Cut(name, "=")
		if len(value) > maxValue {
			continue
		}
		switch key {
		case rootsKey:
			r.Roots = hexadecimal(value)
		case rootKey:
			r.Root = hexadecimal(value)
		case beginsKey:
			r.Begins = moment(value)
		case endsKey:
			r.Ends = moment(value)
		}
	}
	return r
}

// hexadecimal lets only what a hash is written with into logs and pages.
func hexadecimal(s string) string {
	if strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return s
}

func moment(s string) time.Time {
	seconds, err := strconv.ParseInt(s, 10, 64)
	if err != nil || seconds <= 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}
