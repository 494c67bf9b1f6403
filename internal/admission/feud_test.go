package admission

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/diag"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestAFeudIsNamedThenTiresThenEnds(t *testing.T) {
	var f Feud
	flux, now := Rival{Manager: "flux", Operation: "Apply", Certain: true}, start
	key := Key{Mutating, "istio-sidecar-injector"}
	var told []Told
	for n := 1; n <= feudWeary+10; n++ {
		now = now.Add(time.Second)
		if got := f.Lost(now, flux); got != Quiet {
			told = append(told, got)
		}
		p, ok := f.Problem(key)
		if ok != (n >= feudNamed) || ok && (p.Code != diag.WebhookRival || !strings.Contains(p.Detail, fmt.Sprintf("flux (Apply) has overwritten the control plane's repair %d times", n))) {
			t.Fatalf("after %d fights: %v", n, p)
		}
		if wait := f.Wait(now); wait != 0 && n < feudWeary {
			t.Fatalf("after %d fights repairs wait %s", n, wait)
		}
	}
	if got := fmt.Sprint(told); got != fmt.Sprint([]Told{Repair, Repair, Repair, Repair, Named, Weary}) {
		t.Errorf("told %v", got)
	}
	if f.Pause() != longestPause || f.Wait(now.Add(longestPause)) != 0 {
		t.Errorf("pause %s, left after it %s", f.Pause(), f.Wait(now.Add(longestPause)))
	}
	if p, _ := f.Problem(key); p.Severity != diag.Error || !strings.Contains(p.Detail, "only every 1m0s") {
		t.Error(p)
	}
	if ended, again := f.Over(now.Add(time.Minute)); ended || again != feudQuiet-time.Minute {
		t.Errorf("after a minute: %v, %s", ended, again)
	}
	if ended, _ := f.Over(now.Add(feudQuiet)); !ended {
		t.Error("it does not end")
	}
	if ended, again := f.Over(now.Add(feudQuiet)); ended || again != 0 || f.Pause() != 0 || f.Named() {
		t.Error("it ended twice, or something is left of it")
	}
}

func TestOnlyTheSameRivalTiresUs(t *testing.T) {
	var f Feud
	for n := range 2 * (feudWeary - 1) {
		f.Lost(start, Rival{Manager: []string{"a", "b"}[n%2]})
	}
	if f.Pause() != 0 {
		t.Error("two rivals count as one")
	}
	for n := range 1000 {
		f.Lost(start, Rival{Manager: fmt.Sprint("script-", n)})
	}
	if len(f.fights) > manyRivals+1 {
		t.Errorf("%d rivals are kept", len(f.fights))
	}
	if _, name, n := f.Rival(); name != OtherRivals || n < feudWeary {
		t.Errorf("the rest is %s with %d", name, n)
	}
}

func TestAnInstallationIsNoFeud(t *testing.T) {
	var f Feud
	f.Lost(start, Rival{Manager: "helm"})
	if ended, _ := f.Over(start.Add(time.Hour)); ended || f.Named() {
		t.Error("one overwritten bundle passes for a feud")
	}
}

func TestFailurePolicyFollowsTheProof(t *testing.T) {
	for name, c := range map[string]struct {
		v     Validation
		want  Policy
		again time.Duration
	}{
		"never tried: nothing is changed":               {Validation{}, "", 0},
		"proven: Fail":                                  {Validation{true, start}, Fail, 0},
		"broken for a moment: nothing is changed":       {Validation{false, start.Add(-time.Second)}, "", brokenFor - time.Second},
		"broken for a while: Ignore":                    {Validation{false, start.Add(-brokenFor)}, Ignore, 0},
		"proven long ago and working still: Fail stays": {Validation{true, start.Add(-24 * time.Hour)}, Fail, 0},
	} {
		if got, again := c.v.Policy(start); got != c.want || again != c.again {
			t.Errorf("%s: %q, again in %s", name, got, again)
		}
	}
}
