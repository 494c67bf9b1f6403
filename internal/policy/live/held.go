// Package live keeps the parameters of the admission policies current, and proves by dry runs that the policies are in force. What they
// say is package policy's.
package live

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/selvage-mesh/selvage/internal/policy"
)

const (
	// settle is how long a new bundle may take from the parameter into the policy before the objects are written all the same. API
	// servers hear of a parameter by their watch, within some milliseconds.
	settle = 5 * time.Second
	// between is how often that is looked at meanwhile.
	between = 20 * time.Millisecond

	// grace is how long a policy that was just made, or is being replaced, may not be in force before that is told.
	grace = 10 * time.Second

	firstRetry   = time.Second // after a policy that is not in force: API servers read policies once a second
	longestRetry = time.Minute
	recheck      = 5 * time.Minute // of a policy that is in force: that it was deleted is not watched
	callTimeout  = 10 * time.Second

	looksBurst     = 20
	looksPerSecond = 1
)

// RootSource tells the root certificates in PEM, nil while there are none, and gives a channel that is closed when that changes.
type RootSource interface {
	Roots() (rootPEM []byte, changed <-chan struct{})
}

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// HeldConfig says whose webhooks are held. Report, Events and Registerer may be nil.
type HeldConfig struct {
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface
	Manager    string // field manager of the parameter and of the dry runs: the one that owns caBundle
	Revision   string // "" is "default"
	Roots      RootSource
	Report     func(policy.State) // called when the state changes, and at first
	Events     Events
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Held keeps the parameter of the policy that holds a revision's webhooks, and stands between the authority and whoever writes the
// webhooks: Roots gives a new bundle only once the policy puts it in, since the policy would put the old one back into a write that
// comes before. Every replica runs it; the one that leads writes.
type Held struct {
	config HeldConfig
	gauge  prometheus.Gauge

	mu       sync.Mutex
	released []byte
	changed  chan struct{} // closed when released changes
	leading  context.Context
	woken    chan struct{} // closed when leading begins or ends
	state    policy.State  // as told last
	wrong    time.Time     // since when it is wrong; zero while it is not
}

// NewHeld gives one that does nothing yet: Roots tells what the source does.
func NewHeld(config HeldConfig) (*Held, error) {
	if config.Kubernetes == nil || config.Dynamic == nil || config.Roots == nil || config.Log == nil || config.Manager == "" {
		return nil, errors.New("configure held webhooks: the clients, a field manager, a root source and a logger are needed")
	}
	h := &Held{config: config, changed: make(chan struct{}), woken: make(chan struct{}), gauge: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "selvage_webhooks_held",
		Help: "1 while the API server itself is proven to put the right caBundle into every write of this revision's webhooks, else 0; on the replica that leads.",
	})}
	if config.Registerer != nil {
		if err := config.Registerer.Register(h.gauge); err != nil {
			return nil, fmt.Errorf("configure held webhooks: register metrics: %w", err)
		}
	}
	h.released, _ = config.Roots.Roots()
	return h, nil
}

// Roots gives what the webhooks are to have now. It lags behind the authority's while a new bundle is on its way into the policy, never
// for longer than some seconds, and on replicas that do not lead not at all.
func (h *Held) Roots() ([]byte, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.released, h.changed
}

func (h *Held) release(root []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if bytes.Equal(h.released, root) {
		return
	}
	h.released = root
	close(h.changed)
	h.changed = make(chan struct{})
}

// Lead makes this replica the one that writes, until ctx ends.
func (h *Held) Lead(ctx context.Context) error {
	h.setLeading(ctx)
	<-ctx.Done()
	h.setLeading(ctx) // which has ended
	h.gauge.Set(0)
	return nil
}

func (h *Held) setLeading(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leading, h.state, h.wrong = ctx, policy.State{}, time.Time{}
	close(h.woken)
	h.woken = make(chan struct{})
}

// now is what there is to do.
func (h *Held) now() (leading context.Context, woken <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leading != nil && h.leading.Err() != nil {
		return nil, h.woken
	}
	return h.leading, h.woken
}

// Run works until ctx ends, and returns nil then.
func (h *Held) Run(ctx context.Context) error {
	limit := rate.NewLimiter(looksPerSecond, looksBurst) // whoever else writes the parameter, and however often
	for wait := firstRetry; limit.Wait(ctx) == nil; {
		root, rootChanged := h.config.Roots.Roots()
		leading, woken := h.now()
		if leading == nil || len(root) == 0 {
			h.release(root)
			select {
			case <-ctx.Done():
			case <-rootChanged:
			case <-woken:
			}
			continue
		}
		following, stop := context.WithCancel(leading)
		state, changed := h.hold(ctx, following, root)
		h.release(root)
		again := recheck
		if leading.Err() == nil && ctx.Err() == nil {
			h.tell(state)
		}
		if state.Held {
			wait = firstRetry
		} else {
			again, wait = wait, min(2*wait, longestRetry)
		}
		select {
		case <-ctx.Done():
		case <-rootChanged:
			wait = firstRetry
		case <-woken:
			wait = firstRetry
		case <-changed:
		case <-time.After(again):
		}
		stop()
	}
	return nil
}

// hold brings the bundle into the parameter and proves that the policy puts it into a write. The channel is closed when somebody has
// changed the parameter since; nil when that cannot be seen.
func (h *Held) hold(ctx, leading context.Context, root []byte) (policy.State, <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	defer context.AfterFunc(leading, cancel)()
	want := base64.StdEncoding.EncodeToString(root)
	name := policy.HeldName(h.config.Revision)
	parameters := h.config.Dynamic.Resource(policy.ParameterResource)
	parameter, err := parameters.Get(ctx, name, metav1.GetOptions{})
	if err == nil && bundleOf(parameter) != want {
		body, _ := json.Marshal(map[string]any{"spec": map[string]string{"caBundle": want}}) // strings
		parameter, err = parameters.Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: h.config.Manager})
		if err == nil {
			h.config.Log.Info("bundle of held webhooks written", "parameter", name)
		}
	}
	if err != nil {
		state := h.notKept(ctx, err)
		if !apierrors.IsNotFound(err) {
			return state, nil
		}
		missing := &unstructured.Unstructured{} // whoever makes it again may put anything into it
		missing.SetName(name)
		return state, follow(leading, h.config.Dynamic, missing)
	}
	changed := follow(leading, h.config.Dynamic, parameter)
	until := time.Now().Add(settle)
	for {
		got, asked, err := h.dryRun(ctx)
		switch {
		case err != nil:
			return policy.NotProven(h.config.Revision, err), changed
		case asked == "":
			return policy.NothingToHold(h.config.Revision), changed
		case bytes.Equal(got, root):
			return policy.Holds(h.config.Revision), changed
		case len(got) == 0 || time.Now().After(until): // no policy has touched it, or one has with another bundle
			return policy.NotInForce(h.config.Revision, asked, len(got) > 0), changed
		}
		select {
		case <-ctx.Done():
			return policy.NotProven(h.config.Revision, ctx.Err()), changed
		case <-time.After(between):
		}
	}
}

// notKept is the state when the parameter cannot be read or written. An installation without held webhooks grants nothing on it, and
// who has no right is not told whether there is one: then the dry run says whether a policy is at work.
func (h *Held) notKept(ctx context.Context, err error) policy.State {
	if apierrors.IsForbidden(err) {
		if got, _, failed := h.dryRun(ctx); failed == nil && len(got) == 0 {
			err = apierrors.NewNotFound(policy.ParameterResource.GroupResource(), policy.HeldName(h.config.Revision))
		}
	}
	return policy.NotKept(h.config.Revision, err)
}

func bundleOf(parameter *unstructured.Unstructured) string {
	bundle, _, _ := unstructured.NestedString(parameter.Object, "spec", "caBundle")
	return bundle
}
