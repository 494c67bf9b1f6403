package probe

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// kept is a Status in memory.
type kept struct {
	mu     sync.Mutex
	texts  map[string]string
	writes int
}

func (k *kept) Get(_ context.Context, key string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.texts[key]
}

func (k *kept) Set(key, text string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.texts[key] != text {
		k.writes++
	}
	k.texts[key] = text
}

// told are Events as REASON KIND/NAME.
type told struct {
	mu   sync.Mutex
	list []string
}

func (e *told) Event(object runtime.Object, _, reason, _ string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	o := object.(*corev1.ObjectReference)
	e.list = append(e.list, reason+" "+o.Kind+"/"+o.Name)
}

// clockwork is a Run whose answers a test decides, under a false clock.
type clockwork struct {
	*testing.T
	round  *round
	status *kept
	events *told
	answer verdict.Verdict
	asked  []time.Time
}

// start begins a Run in the bubble of the caller; it ends with the test.
func start(t *testing.T, status *kept, answer verdict.Verdict) *clockwork {
	t.Helper()
	c := &clockwork{T: t, status: status, events: &told{}, answer: answer}
	p, err := New(Config{Kubernetes: fake.NewClientset(), Namespace: "istio-system", Status: status, Events: c.events,
		Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c.round = &round{Prober: p, targets: func(context.Context) []target { return []target{{"default", verdict.Injection}} }}
	c.round.ask = func(context.Context, target) verdict.Finding {
		c.asked = append(c.asked, time.Now())
		return verdict.Finding{Verdict: c.answer, Cause: fmt.Sprintf("answer %d", len(c.asked))}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.round.loop(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

// after lets time pass and gives how often was asked meanwhile.
func (c *clockwork) after(d time.Duration) int {
	before := len(c.asked)
	time.Sleep(d)
	synctest.Wait()
	return len(c.asked) - before
}

func (c *clockwork) holds(want verdict.Verdict) {
	c.Helper()
	if got, _ := c.round.Proof(verdict.Injection); got.Verdict != want {
		c.Errorf("%s holds; want %s", got.Verdict, want)
	}
}

// TestPausesFollowWhatIsKnown: short after a change, long while nothing changes, and shorter while something is broken.
func TestPausesFollowWhatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, &kept{texts: map[string]string{}}, verdict.OK)
		if n := c.after(20 * time.Second); n < 4 || n > 6 { // at 0, 1, 3, 7 and 15 s
			t.Errorf("asked %d times in the first 20 s", n)
		}
		if n := c.after(10 * time.Minute); n < 34 || n > 46 {
			t.Errorf("asked %d times in 10 minutes in which all was well", n)
		}
		c.round.Wake()
		if n := c.after(2 * settle); n != 1 {
			t.Errorf("asked %d times when a webhook configuration had changed", n)
		}
		c.after(10 * time.Minute)
		c.answer = verdict.NoEndpoints
		c.after(slow + slow/10)
		c.after(3 * quick)
		c.holds(verdict.NoEndpoints)
		c.after(time.Minute)
		if n := c.after(10 * time.Minute); n < 50 || n > 70 {
			t.Errorf("asked %d times in 10 minutes in which nothing worked", n)
		}
	})
}

// TestABadAnswerWantsAnother: a single one is told to nobody; what works is believed at once.
func TestABadAnswerWantsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, &kept{texts: map[string]string{}}, verdict.OK)
		c.after(2 * time.Minute)
		c.holds(verdict.OK)
		proof, changed := c.round.Proof(verdict.Injection)
		since := proof.Since
		c.answer = verdict.ConnectionRefused
		c.round.Wake()
		if n := c.after(settle); n != 1 {
			t.Fatalf("asked %d times", n)
		}
		c.holds(verdict.OK)
		c.answer = verdict.OK
		c.after(time.Minute)
		if proof, _ := c.round.Proof(verdict.Injection); !proof.Works() || proof.Since != since || time.Since(proof.LastOK) > slow+slow/10 {
			t.Errorf("after one bad answer: %+v, and since was %s", proof, since)
		}
		select {
		case <-changed:
			t.Error("it was told as a change")
		default:
		}
		c.answer = verdict.ConnectionRefused
		c.round.Wake()
		c.after(settle + quick + quick/10)
		c.holds(verdict.ConnectionRefused)
		<-changed
		if last := len(c.events.list) - 1; c.events.list[last] != "ConnectionRefused Service/istiod" {
			t.Errorf("the Events are %v", c.events.list)
		}
		c.answer = verdict.OK
		c.round.Wake()
		c.after(settle)
		c.holds(verdict.OK)
		if got := strings.Join(c.events.list, ", "); got != "InjectionWorks MutatingWebhookConfiguration/istio-sidecar-injector, ConnectionRefused Service/istiod, InjectionWorks MutatingWebhookConfiguration/istio-sidecar-injector" {
			t.Errorf("the Events are %s", got)
		}
	})
}

// TestAFreshInstallationIsNoFailure: the webhooks come some seconds after the control plane.
func TestAFreshInstallationIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, &kept{texts: map[string]string{}}, verdict.WebhookMissing)
		c.after(grace / 2)
		c.answer = verdict.OK
		c.after(2 * quick)
		c.holds(verdict.OK)
		if got := strings.Join(c.events.list, ", "); got != "InjectionWorks MutatingWebhookConfiguration/istio-sidecar-injector" {
			t.Errorf("the Events are %s", got)
		}
	})
	synctest.Test(t, func(t *testing.T) { // but when nothing comes it is one
		c := start(t, &kept{texts: map[string]string{}}, verdict.WebhookMissing)
		c.after(grace + 2*quick)
		c.holds(verdict.WebhookMissing)
	})
}

// TestTheStatusIsWrittenWhenItChanges and never between, although each bad answer has another text.
func TestTheStatusIsWrittenWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status := &kept{texts: map[string]string{}}
		c := start(t, status, verdict.X509)
		c.after(time.Hour)
		if status.writes != 1 || !strings.Contains(status.texts[ConditionsKey], "reason: CertificateNotTrusted") {
			t.Errorf("%d writes; the conditions are\n%s", status.writes, status.texts[ConditionsKey])
		}
		c.answer = verdict.OK
		c.after(time.Hour)
		if status.writes != 2 || !strings.Contains(status.texts[ConditionsKey], `status: "True"`) {
			t.Errorf("%d writes; the conditions are\n%s", status.writes, status.texts[ConditionsKey])
		}
	})
}

// TestANewLeaderTakesOver what the last one had found: no Event, no write, and the same "since".
func TestANewLeaderTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status := &kept{texts: map[string]string{}}
		first := start(t, status, verdict.Timeout)
		first.after(time.Minute)
		proof, _ := first.round.Proof(verdict.Injection)
		writes := status.writes

		second := start(t, status, verdict.Timeout)
		second.after(time.Minute)
		got, _ := second.round.Proof(verdict.Injection)
		if got.Verdict != verdict.Timeout || got.Since.Unix() != proof.Since.Unix() {
			t.Errorf("the second leader knows %+v; the first knew %+v", got, proof)
		}
		if len(second.events.list) > 0 || status.writes != writes {
			t.Errorf("Events %v, %d writes", second.events.list, status.writes-writes)
		}
	})
}

// TestNothingIsProvenOfAConfigurationThatATagHasTaken: no pod comes to this revision by its name then, and that is no failure.
func TestNothingIsProvenOfAConfigurationThatATagHasTaken(t *testing.T) {
	taken := true
	p, err := New(Config{Kubernetes: fake.NewClientset(), Namespace: "istio-system", Status: &kept{texts: map[string]string{}}, Log: slog.New(slog.DiscardHandler),
		Taken: func(_ context.Context, configuration string) bool {
			return taken && configuration == "istio-sidecar-injector"
		}})
	if err != nil {
		t.Fatal(err)
	}
	r := &round{Prober: p}
	ctx, cancel := context.WithCancel(t.Context())
	_, stop := r.follow(ctx)
	defer stop()
	defer cancel()
	if got := r.registered(t.Context()); len(got) != 0 {
		t.Errorf("to be proven: %v", got)
	}
	taken = false // as when nobody knows where it is: it is missing
	if got := r.registered(t.Context()); !slices.Equal(got, []target{{"default", verdict.Injection}}) {
		t.Errorf("to be proven: %v", got)
	}
}

// TestOnlyTheLeaderKnows: after Run nothing is proven, and no gauge is left.
func TestOnlyTheLeaderKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		ctx, cancel := context.WithCancel(t.Context())
		p, err := New(Config{Kubernetes: fake.NewClientset(), Namespace: "istio-system", Status: &kept{texts: map[string]string{}}, Registerer: registry, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		r := &round{Prober: p, targets: func(context.Context) []target { return []target{{"default", verdict.Injection}} },
			ask: func(context.Context, target) verdict.Finding { return verdict.Finding{Verdict: verdict.OK} }}
		done := make(chan struct{})
		go func() { defer close(done); r.loop(ctx) }()
		synctest.Wait()
		if got := gauges(t, registry); got["selvage_probe_success"] != 1 || got["selvage_probe_verdict"] != len(verdict.Verdicts) {
			t.Errorf("series while it leads: %v", got)
		}
		cancel()
		<-done
		if proof, _ := p.Proof(verdict.Injection); proof.Works() {
			t.Error("it is still proven")
		}
		if got := gauges(t, registry); got["selvage_probe_success"]+got["selvage_probe_verdict"] != 0 {
			t.Errorf("series after it has led: %v", got)
		}
	})
}

// gauges counts the series by name.
func gauges(t *testing.T, registry *prometheus.Registry) map[string]int {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, f := range families {
		out[f.GetName()] = len(f.GetMetric())
	}
	return out
}
