// Package restart lets workloads create their pods anew that came into the cluster without a sidecar while the webhook was not
// called. It does what `kubectl rollout restart` does, so the owner replaces its pods at its own pace; a pod that nothing owns is
// never touched. It acts only where a namespace asks for it and has granted it, only while injection is proven to work, and one
// workload of a namespace after the other, within its PodDisruptionBudgets.
package restart

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	// FieldManager is that of the restarts.
	FieldManager = "selvage-restart"
	// Role is the ClusterRole that a namespace binds to the control plane's account to let it restart its workloads.
	Role = "selvage-restarter"

	// pause is between two looks at workloads that wait for something.
	pause = 10 * time.Second
	// restartsPerSecond and restartBurst limit restarts in the whole cluster: image pulls and schedulers have other work too.
	restartsPerSecond = 0.2
	restartBurst      = 1
	// rolloutLimit is how long a restarted workload keeps the next one of its namespace waiting when it does not get ready.
	rolloutLimit = 10 * time.Minute
	// requestTimeout is for one request.
	requestTimeout = 10 * time.Second
)

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// Workload names a workload whose pods are to be created anew.
type Workload struct{ Namespace, Kind, Name string }

func (w Workload) compare(o Workload) int {
	return cmp.Or(cmp.Compare(w.Namespace, o.Namespace), cmp.Compare(w.Kind, o.Kind), cmp.Compare(w.Name, o.Name))
}

// Config is what a Restarter needs. Registerer may be nil.
type Config struct {
	Kubernetes kubernetes.Interface
	Account    string // the control plane's service account, NAMESPACE:NAME, for what people are told
	// Works reports whether injection is proven to work now.
	Works      func() bool
	Events     Events
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Restarter restarts workloads.
type Restarter struct {
	config  Config
	results *prometheus.CounterVec
	waiting prometheus.Gauge
	wake    chan struct{} // holds one

	mu   sync.Mutex
	want []Workload
}

// New registers the metrics; it starts nothing.
func New(c Config) (*Restarter, error) {
	if c.Kubernetes == nil || c.Works == nil || c.Events == nil || c.Log == nil {
		return nil, errors.New("make restarter: Kubernetes, Works, Events and Log must be set")
	}
	r := &Restarter{config: c, wake: make(chan struct{}, 1),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "selvage_unmeshed_restarts_total",
			Help: "Workloads that were restarted because their pods had missed their sidecar, or could not be, by result."}, []string{"result"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "selvage_unmeshed_restarts_waiting",
			Help: "Workloads that wait to be restarted because their pods have missed their sidecar."}),
	}
	if c.Registerer != nil {
		for _, m := range []prometheus.Collector{r.results, r.waiting} {
			if err := c.Registerer.Register(m); err != nil {
				return nil, fmt.Errorf("register metrics of the restarter: %w", err)
			}
		}
	}
	return r, nil
}

// Want says which workloads are to be restarted, in the place of all that were wanted before. It does not block.
func (r *Restarter) Want(list []Workload) {
	list = slices.Clone(list)
	slices.SortFunc(list, Workload.compare)
	r.mu.Lock()
	r.want = slices.Compact(list)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // one is waiting already
	}
}

// wanted is what Want has said.
func (r *Restarter) wanted() []Workload {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.want)
}

// term is one Run.
type term struct {
	*Restarter
	limiter *rate.Limiter
	rolling map[string]rollout  // by namespace
	said    map[Workload]string // by the log
	told    map[Workload]string // by an Event; without Kind and Name for the namespace
}

// rollout is a restart that is under way.
type rollout struct {
	Workload
	began time.Time
}

// Run restarts until ctx ends, and returns nil then. It is to be called while this replica holds the lease of its revision, and may
// be called again.
func (r *Restarter) Run(ctx context.Context) error {
	t := &term{Restarter: r, limiter: rate.NewLimiter(restartsPerSecond, restartBurst), rolling: map[string]rollout{},
		said: map[Workload]string{}, told: map[Workload]string{}}
	defer r.waiting.Set(0)
	for {
		var later <-chan time.Time
		if list := r.wanted(); len(list) > 0 {
			later = time.After(pause)
			t.pass(ctx, list)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-later:
		}
	}
}

// pass looks at every wanted workload once.
func (t *term) pass(ctx context.Context, list []Workload) {
	for _, memory := range []map[Workload]string{t.said, t.told} { // of those that are wanted no more
		maps.DeleteFunc(memory, func(w Workload, _ string) bool { return w.Name != "" && !slices.Contains(list, w) })
	}
	waiting := 0
	budgets := map[string][]policyv1.PodDisruptionBudget{}
	for _, w := range list {
		if ctx.Err() != nil || !t.config.Works() {
			return
		}
		why, err := t.try(ctx, w, budgets)
		switch {
		case err != nil:
			t.failed(w, err)
		case why != "":
			waiting++
			t.say(w, why)
		}
	}
	t.waiting.Set(float64(waiting))
}

// try restarts one workload, or says why not yet.
func (t *term) try(ctx context.Context, w Workload, budgets map[string][]policyv1.PodDisruptionBudget) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := t.read(ctx, w)
	if err != nil || s == nil {
		return "", err
	}
	if s.held != "" {
		t.tell(w, s, corev1.EventTypeWarning, "SidecarNeedsRestart", "its pods have missed their sidecar and are not restarted: "+s.held+". Create its pods anew")
		return s.held, nil
	}
	if before, rolls := t.rolling[w.Namespace]; rolls && (before.Workload != w || !s.settled) && time.Since(before.began) < rolloutLimit {
		if before.Workload == w {
			return "it is being restarted", nil
		}
		if other, err := t.read(ctx, before.Workload); err == nil && other != nil && !other.settled {
			return before.Kind + " " + before.Name + " is being restarted", nil
		}
	}
	if _, known := budgets[w.Namespace]; !known {
		list, err := t.config.Kubernetes.PolicyV1().PodDisruptionBudgets(w.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", fmt.Errorf("list poddisruptionbudgets: %w", err)
		}
		budgets[w.Namespace] = list.Items
	}
	now := time.Now()
	if why := s.wait(budgets[w.Namespace], now); why != "" {
		return why, nil
	}
	if !t.limiter.Allow() {
		return "other workloads come first", nil
	}
	return "", t.restart(ctx, w, s, now)
}

// restart changes the annotation of the pod template, of the very object that was looked at.
func (t *term) restart(ctx context.Context, w Workload, s *state, now time.Time) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": s.object.GetResourceVersion(), "uid": s.object.GetUID()},
		"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
			"annotations": map[string]string{Annotation: now.UTC().Format(time.RFC3339)}}}},
	})
	if err != nil {
		return err
	}
	apps, options := t.config.Kubernetes.AppsV1(), metav1.PatchOptions{FieldManager: FieldManager}
	switch w.Kind {
	case "Deployment":
		_, err = apps.Deployments(w.Namespace).Patch(ctx, w.Name, types.MergePatchType, patch, options)
	case "StatefulSet":
		_, err = apps.StatefulSets(w.Namespace).Patch(ctx, w.Name, types.MergePatchType, patch, options)
	case "DaemonSet":
		_, err = apps.DaemonSets(w.Namespace).Patch(ctx, w.Name, types.MergePatchType, patch, options)
	}
	if err != nil {
		return fmt.Errorf("restart %s %s/%s: %w", w.Kind, w.Namespace, w.Name, err)
	}
	t.rolling[w.Namespace] = rollout{w, now}
	t.results.WithLabelValues("restarted").Inc()
	t.config.Log.Info("workload restarted, its pods had missed their sidecar", "namespace", w.Namespace, "kind", w.Kind, "name", w.Name)
	delete(t.said, w)
	t.tell(w, s, corev1.EventTypeNormal, "RestartedForSidecar", "restarted, as pods of it had missed their sidecar and its namespace asks for it")
	return nil
}

// read gets what decides; nil for a workload that is gone, or that nobody can restart.
func (t *term) read(ctx context.Context, w Workload) (*state, error) {
	apps := t.config.Kubernetes.AppsV1()
	var s *state
	var err error
	switch w.Kind {
	case "Deployment":
		d, e := apps.Deployments(w.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
		if err = e; err == nil {
			s = ofDeployment(d)
		}
	case "StatefulSet":
		d, e := apps.StatefulSets(w.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
		if err = e; err == nil {
			s = ofStatefulSet(d)
		}
	case "DaemonSet":
		d, e := apps.DaemonSets(w.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
		if err = e; err == nil {
			s = ofDaemonSet(d)
		}
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", w.Kind, w.Namespace, w.Name, err)
	}
	return s, nil
}

// failed says what went wrong; a conflict is none, the next look sees what has changed.
func (t *term) failed(w Workload, err error) {
	if apierrors.IsConflict(err) {
		return
	}
	if apierrors.IsForbidden(err) {
		hint := fmt.Sprintf("kubectl -n %s create rolebinding %s --clusterrole=%s --serviceaccount=%s", w.Namespace, Role, Role, t.config.Account)
		t.tellNamespace(w.Namespace, "the namespace asks for restarts of workloads whose pods have missed their sidecar, and the control plane may not: grant it by `"+hint+"`")
		t.say(Workload{Namespace: w.Namespace}, "forbidden; "+hint)
		return
	}
	t.results.WithLabelValues("failed").Inc()
	t.config.Log.Warn("workload cannot be restarted, it is tried again", "namespace", w.Namespace, "kind", w.Kind, "name", w.Name, "error", err)
}

// say logs why a workload waits, once for each reason.
func (t *term) say(w Workload, why string) {
	if t.said[w] != why {
		t.said[w] = why
		t.config.Log.Info("restart waits", "namespace", w.Namespace, "kind", w.Kind, "name", w.Name, "why", why)
	}
}

// tell makes an Event on the workload, once for each message.
func (t *term) tell(w Workload, s *state, eventType, reason, message string) {
	if t.told[w] == message {
		return
	}
	t.told[w] = message
	t.config.Events.Event(&corev1.ObjectReference{APIVersion: "apps/v1", Kind: s.kind, Namespace: w.Namespace, Name: w.Name, UID: s.object.GetUID()}, eventType, reason, message)
}

// tellNamespace makes an Event on a namespace, once.
func (t *term) tellNamespace(namespace, message string) {
	key := Workload{Namespace: namespace}
	if t.told[key] != "" {
		return
	}
	t.told[key] = message
	t.results.WithLabelValues("forbidden").Inc()
	t.config.Events.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Namespace: namespace, Name: namespace}, corev1.EventTypeWarning, "RestartForbidden", message)
}
