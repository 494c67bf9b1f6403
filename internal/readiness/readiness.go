// Package readiness turns what a proxy lacks into the sentence that people search for, and such a sentence back into its parts.
//
// The sentences are Istio's, word for word, because runbooks, alerts and the pages that explain them quote them; what Selvage
// knows more is added at their end. Two things differ on purpose. Istio reports a rejection only before the first success: its
// probe latches. Ours also says so afterwards. And where neither clusters nor listeners were accepted, but some were rejected,
// Istio still asks "is Istiod running?": it is, so ours says that configuration was rejected.
package readiness

import (
	"fmt"
	"strings"
)

// Updates counts the pushes of one type, as Envoy's update_success and update_rejected.
type Updates struct {
	Successful uint64
	Rejected   uint64
}

// Status is what is known about a proxy. The zero Status is a proxy that has received nothing.
type Status struct {
	// Unreachable says why Envoy's counters could not be read, "" when they could.
	Unreachable string
	CDS, LDS    Updates
	// ServerState is Envoy's: LIVE, DRAINING, PRE_INITIALIZING, INITIALIZING; "" when not known, which counts as LIVE.
	ServerState string
	// WorkersStarted says that Envoy takes connections.
	WorkersStarted bool
	// Certificate says why the workload has no certificate, "" when it has one.
	Certificate string
	// Upstream says why the control plane does not answer, "" when it does.
	Upstream string
	// Rejection is the newest push that Envoy refused and that no accepted one has replaced, as TYPE: REASON; "" for none.
	Rejection string
}

// The texts of the forms. The two of Pilot are those of Istio before 1.6 and of what was built on it.
const (
	notReady         = "Envoy proxy is NOT ready: "
	isReady          = "Envoy proxy is ready"
	notReceived      = "config not received from XDS server (is Istiod running?)"
	notReceivedPilot = "config not received from Pilot (is Pilot running?)"
	rejected         = "config received from XDS server, but was rejected"
	notFullyReceived = "config not fully received from XDS server"
	notLive          = "server is not live, current state is: "
	noWorkers        = "workers have not yet started"
	noStats          = "failed to get readiness stats: "
	noCertificate    = "workload certificate not received from CA"
	newerRejected    = ", but its newest configuration was rejected and the one before it is in force"
	controlPlane     = "; control plane: "
	lastRejection    = "; last rejection: "
)

// Ready says whether the proxy can serve.
func (s Status) Ready() bool { return s.form() == Ready || s.form() == ReadyButRejected }

// form finds what the proxy lacks, in the order in which it gets it.
func (s Status) form() Form {
	cds, lds := s.CDS.Successful > 0, s.LDS.Successful > 0
	anyRejected := s.CDS.Rejected > 0 || s.LDS.Rejected > 0
	switch {
	case s.Unreachable != "":
		return Unreachable
	case cds && lds:
	case anyRejected:
		return Rejected
	case !cds && !lds:
		return NotReceived
	default:
		return NotFullyReceived
	}
	switch {
	case s.ServerState != "" && s.ServerState != "LIVE":
		return NotLive
	case !s.WorkersStarted:
		return WorkersNotStarted
	case s.Certificate != "":
		return NoCertificate
	case s.Rejection != "":
		// Kept ready on purpose: the configuration before it works, and taking every replica of a workload out of service
		// because one new object is bad would turn a mistake into an outage.
		return ReadyButRejected
	}
	return Ready
}

// String gives one line, without a line feed: what the readiness endpoint answers and what the agent logs.
func (s Status) String() string {
	var b strings.Builder
	form := s.form()
	if form == Ready || form == ReadyButRejected {
		b.WriteString(isReady)
	} else {
		b.WriteString(notReady)
	}
	switch form {
	case Unreachable:
		b.WriteString(noStats + oneLine(s.Unreachable))
	case NotReceived:
		b.WriteString(notReceived + ": " + s.counts())
	case Rejected:
		b.WriteString(rejected + ": " + s.counts())
	case NotFullyReceived:
		b.WriteString(notFullyReceived + ": " + s.counts())
	case NotLive:
		b.WriteString(notLive + oneLine(s.ServerState))
	case WorkersNotStarted:
		b.WriteString(noWorkers)
	case NoCertificate:
		b.WriteString(noCertificate + ": " + oneLine(s.Certificate))
	case ReadyButRejected:
		b.WriteString(newerRejected)
	default:
	}
	if s.Upstream != "" {
		b.WriteString(controlPlane + oneLine(s.Upstream))
	}
	if s.Rejection != "" {
		b.WriteString(lastRejection + oneLine(s.Rejection))
	}
	return b.String()
}

func (s Status) counts() string {
	return fmt.Sprintf("cds updates: %d successful, %d rejected; lds updates: %d successful, %d rejected",
		s.CDS.Successful, s.CDS.Rejected, s.LDS.Successful, s.LDS.Rejected)
}

// oneLine makes text of others fit into the sentence: no line feeds, and none of the marks by which Parse finds the parts.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	for _, mark := range []string{controlPlane, lastRejection} {
		s = strings.ReplaceAll(s, mark, ","+mark[1:])
	}
	return strings.TrimSpace(s)
}
