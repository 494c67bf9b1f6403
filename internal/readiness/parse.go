package readiness

import (
	"regexp"
	"strconv"
	"strings"
)

// Form is which sentence it is.
type Form uint8

// The forms, in the order in which a starting proxy goes through them.
const (
	Unreachable       Form = iota + 1 // Envoy's counters cannot be read: it is not running or does not answer
	NotReceived                       // neither clusters nor listeners came
	Rejected                          // something came, and Envoy refused it
	NotFullyReceived                  // only one of clusters and listeners came
	NotLive                           // Envoy initializes or drains
	WorkersNotStarted                 // Envoy does not take connections yet
	NoCertificate                     // no workload certificate (Selvage only)
	Ready                             // nothing is missing
	ReadyButRejected                  // serving, with an older configuration than the newest (Selvage only)
)

// String names the form as tables show it.
func (f Form) String() string {
	names := [...]string{Unreachable: "Unreachable", NotReceived: "NotReceived", Rejected: "Rejected", NotFullyReceived: "NotFullyReceived",
		NotLive: "NotLive", WorkersNotStarted: "WorkersNotStarted", NoCertificate: "NoCertificate", Ready: "Ready", ReadyButRejected: "ReadyButRejected"}
	if int(f) < len(names) && names[f] != "" {
		return names[f]
	}
	return "Form(" + strconv.Itoa(int(f)) + ")"
}

// Sentence is a sentence taken apart.
type Sentence struct {
	Form Form
	// Pilot says that the wording is that of Istio before 1.6.
	Pilot bool
	// HasCounts says that the sentence has the counters; otherwise CDS and LDS are not known.
	HasCounts bool
	CDS, LDS  Updates
	// State is Envoy's server state (NotLive), the cause (Unreachable, NoCertificate), or "".
	State string
	// Upstream and Rejection are what Selvage adds: why the control plane does not answer, and the refused push.
	Upstream  string
	Rejection string
}

var counters = regexp.MustCompile(`^: cds updates: (\d{1,20}) successful, (\d{1,20}) rejected; lds updates: (\d{1,20}) successful, (\d{1,20}) rejected`)

// forms are the beginnings that Parse knows. Only the Selvage ones need what stands before them.
var forms = []struct {
	text  string
	form  Form
	pilot bool
}{
	{notReceived, NotReceived, false},
	{notReceivedPilot, NotReceived, true},
	{rejected, Rejected, false},
	{notFullyReceived, NotFullyReceived, false},
	{notLive, NotLive, false},
	{noWorkers, WorkersNotStarted, false},
	{noStats, Unreachable, false},
	{noCertificate + ": ", NoCertificate, false},
	{isReady + newerRejected, ReadyButRejected, false},
	{isReady, Ready, false},
}

// Parse finds a readiness sentence in a line of a log, an event or a page, of Istio's agents or of ours. ok is false when there is
// none. Text around the sentence is passed over; a sentence that was cut gives what is left of it.
func Parse(line string) (s Sentence, ok bool) {
	at := len(line)
	rest := ""
	for _, f := range forms {
		if i := strings.Index(line, f.text); i >= 0 && i < at {
			at, rest, ok = i, line[i+len(f.text):], true
			s = Sentence{Form: f.form, Pilot: f.pilot}
		}
	}
	if !ok {
		return Sentence{}, false
	}
	if line, _, cut := strings.Cut(rest, "\n"); cut {
		rest = line
	}
	if m := counters.FindStringSubmatch(rest); m != nil {
		s.HasCounts = true
		for i, n := range []*uint64{&s.CDS.Successful, &s.CDS.Rejected, &s.LDS.Successful, &s.LDS.Rejected} {
			var err error
			if *n, err = strconv.ParseUint(m[i+1], 10, 64); err != nil { // more than Envoy can count: not its text
				s.HasCounts, s.CDS, s.LDS = false, Updates{}, Updates{}
				break
			}
		}
		rest = rest[len(m[0]):]
	}
	rest, s.Rejection, _ = strings.Cut(rest, lastRejection)
	rest, s.Upstream, _ = strings.Cut(rest, controlPlane)
	s.Rejection, s.Upstream = strings.TrimSpace(s.Rejection), strings.TrimSpace(s.Upstream)
	switch s.Form {
	case NotLive, Unreachable, NoCertificate:
		s.State = strings.TrimSpace(rest)
	default:
	}
	return s, true
}
