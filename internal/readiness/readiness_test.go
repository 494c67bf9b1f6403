package readiness

import (
	"strings"
	"testing"
)

// live is a proxy that lacks nothing.
var live = Status{CDS: Updates{Successful: 1}, LDS: Updates{Successful: 1}, ServerState: "LIVE", WorkersStarted: true}

func with(s Status, change func(*Status)) Status { change(&s); return s }

var sentences = []struct {
	name  string
	given Status
	ready bool
	want  string
}{
	{"nothing came", Status{}, false,
		"Envoy proxy is NOT ready: config not received from XDS server (is Istiod running?): cds updates: 0 successful, 0 rejected; lds updates: 0 successful, 0 rejected"},
	{"nothing came and the control plane cannot be reached", Status{Upstream: "cannot reach istiod.istio-system.svc:15012: connection refused"}, false,
		"Envoy proxy is NOT ready: config not received from XDS server (is Istiod running?): cds updates: 0 successful, 0 rejected; lds updates: 0 successful, 0 rejected; control plane: cannot reach istiod.istio-system.svc:15012: connection refused"},
	{"only clusters", Status{CDS: Updates{Successful: 1}}, false,
		"Envoy proxy is NOT ready: config not fully received from XDS server: cds updates: 1 successful, 0 rejected; lds updates: 0 successful, 0 rejected"},
	{"only listeners", Status{LDS: Updates{Successful: 2}}, false,
		"Envoy proxy is NOT ready: config not fully received from XDS server: cds updates: 0 successful, 0 rejected; lds updates: 2 successful, 0 rejected"},
	{"clusters rejected", Status{CDS: Updates{Rejected: 1}, LDS: Updates{Successful: 1}, Rejection: "CDS: no such thing"}, false,
		"Envoy proxy is NOT ready: config received from XDS server, but was rejected: cds updates: 0 successful, 1 rejected; lds updates: 1 successful, 0 rejected; last rejection: CDS: no such thing"},
	{"both rejected is not a control plane that is down", Status{CDS: Updates{Rejected: 3}, LDS: Updates{Rejected: 4}}, false,
		"Envoy proxy is NOT ready: config received from XDS server, but was rejected: cds updates: 0 successful, 3 rejected; lds updates: 0 successful, 4 rejected"},
	{"initializing", with(live, func(s *Status) { s.ServerState = "INITIALIZING" }), false,
		"Envoy proxy is NOT ready: server is not live, current state is: INITIALIZING"},
	{"draining", with(live, func(s *Status) { s.ServerState = "DRAINING" }), false,
		"Envoy proxy is NOT ready: server is not live, current state is: DRAINING"},
	{"no workers", with(live, func(s *Status) { s.WorkersStarted = false }), false,
		"Envoy proxy is NOT ready: workers have not yet started"},
	{"Envoy does not answer", Status{Unreachable: "dial tcp 127.0.0.1:15000: connect: connection refused"}, false,
		"Envoy proxy is NOT ready: failed to get readiness stats: dial tcp 127.0.0.1:15000: connect: connection refused"},
	{"no certificate", with(live, func(s *Status) { s.Certificate = "the CA at istiod:15012 refused this pod's token" }), false,
		"Envoy proxy is NOT ready: workload certificate not received from CA: the CA at istiod:15012 refused this pod's token"},
	{"ready", live, true, "Envoy proxy is ready"},
	{"a later rejection shows and does not take the proxy out of service", with(live, func(s *Status) {
		s.LDS.Rejected = 1
		s.Rejection = "LDS: Error adding/updating listener(s) 0.0.0.0_80: bad\n regex"
	}), true,
		"Envoy proxy is ready, but its newest configuration was rejected and the one before it is in force; last rejection: LDS: Error adding/updating listener(s) 0.0.0.0_80: bad regex"},
	{"a control plane that is down does not take the proxy out of service", with(live, func(s *Status) { s.Upstream = "no answer within 10s" }), true,
		"Envoy proxy is ready; control plane: no answer within 10s"},
}

func TestSentencesWordForWord(t *testing.T) {
	for _, tt := range sentences {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.given.String(); got != tt.want {
				t.Errorf("got:\n  %s\nwant:\n  %s", got, tt.want)
			}
			if got := tt.given.Ready(); got != tt.ready {
				t.Errorf("Ready() = %v, want %v", got, tt.ready)
			}
		})
	}
}

func TestParseTakesBackWhatWasSaid(t *testing.T) {
	for _, tt := range sentences {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := Parse("2026-01-02T03:04:05Z\twarn\t" + tt.want + "\nnext line; last rejection: not ours")
			if !ok {
				t.Fatalf("not recognized: %s", tt.want)
			}
			want := Sentence{Form: tt.given.form(), Upstream: oneLine(tt.given.Upstream), Rejection: oneLine(tt.given.Rejection)}
			switch want.Form {
			case NotReceived, Rejected, NotFullyReceived:
				want.HasCounts, want.CDS, want.LDS = true, tt.given.CDS, tt.given.LDS
			case NotLive:
				want.State = tt.given.ServerState
			case Unreachable:
				want.State = tt.given.Unreachable
			case NoCertificate:
				want.State = tt.given.Certificate
			default:
			}
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestParseKnowsTheWordingsOfOthers(t *testing.T) {
	counts := Updates{Successful: 1}
	for _, tt := range []struct {
		name, line string
		want       Sentence
		none       bool
	}{
		{name: "Istio before 1.6", line: "2020-05-01T00:00:00.000000Z	info	Envoy proxy is NOT ready: config not received from Pilot (is Pilot running?): cds updates: 1 successful, 0 rejected; lds updates: 0 successful, 7 rejected",
			want: Sentence{Form: NotReceived, Pilot: true, HasCounts: true, CDS: counts, LDS: Updates{Rejected: 7}}},
		{name: "without counters, as a page quotes it", line: "`config not received from Pilot (is Pilot running?)`",
			want: Sentence{Form: NotReceived, Pilot: true}},
		{name: "an event of the kubelet", line: "Readiness probe failed: HTTP probe failed with statuscode: 503: config received from XDS server, but was rejected: cds updates: 0 successful, 1 rejected; lds updates: 1 successful, 0 rejected",
			want: Sentence{Form: Rejected, HasCounts: true, CDS: Updates{Rejected: 1}, LDS: counts}},
		{name: "cut in the middle of the counters", line: "config not fully received from XDS server: cds updates: 1 succ", want: Sentence{Form: NotFullyReceived}},
		{name: "a count that no counter holds", line: "config not received from XDS server (is Istiod running?): cds updates: 99999999999999999999 successful, 0 rejected; lds updates: 0 successful, 0 rejected",
			want: Sentence{Form: NotReceived}},
		{name: "another text", line: "upstream connect error or disconnect/reset before headers", none: true},
		{name: "nothing", line: "", none: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := Parse(tt.line)
			if ok == tt.none || got != tt.want {
				t.Errorf("got  %+v, %v\nwant %+v, %v", got, ok, tt.want, !tt.none)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, tt := range sentences {
		f.Add(tt.want, "cause", "reason")
	}
	f.Add("config not received from Pilot (is Pilot running?)", "; control plane: ", "; last rejection: ")
	f.Fuzz(func(t *testing.T, line, upstream, rejection string) {
		if s, ok := Parse(line); ok && s.Form.String() == "" {
			t.Errorf("a form without a name: %+v", s)
		}
		// Whatever others say, the sentence is one line that gives its parts back.
		said := Status{Upstream: upstream, Rejection: rejection}.String()
		if strings.ContainsAny(said, "\n\r") {
			t.Errorf("more than one line: %q", said)
		}
		got, ok := Parse(said)
		if !ok || got.Form != NotReceived || !got.HasCounts {
			t.Fatalf("Parse(%q) = %+v, %v", said, got, ok)
		}
		if got.Upstream != oneLine(upstream) || got.Rejection != oneLine(rejection) {
			t.Errorf("said %q\ngot upstream %q, rejection %q\nwant %q, %q", said, got.Upstream, got.Rejection, oneLine(upstream), oneLine(rejection))
		}
	})
}
