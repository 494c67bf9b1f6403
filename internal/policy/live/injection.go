package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/policy"
)

// InjectionConfig says whose template is kept. Report, Events and Registerer may be nil.
type InjectionConfig struct {
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface
	Revision   string                      // "" is "default"
	Injector   func() *inject.Config       // nil while it is not known
	Changed    <-chan struct{}             // tells that Injector gives something else
	Report     func(policy.InjectionState) // called when the state changes, and at first
	Events     Events
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Injection keeps the parameter of the policy by which the API server injects sidecars. A template comes into force only when pods that
// were created as dry runs have come out as the injector makes them, by the same policy with another parameter (policy.TrialName). Only
// the replica that leads runs it.
type Injection struct {
	config    InjectionConfig
	parameter *Parameter
	gauge     prometheus.Gauge

	proven *policy.Template // that was tried with success last
	at     time.Time

	mu    sync.Mutex
	state policy.InjectionState
}

// NewInjection gives a keeper that does nothing yet.
func NewInjection(config InjectionConfig) (*Injection, error) {
	if config.Injector == nil {
		return nil, errors.New("configure injection by policy: the injector's configuration is needed")
	}
	i := &Injection{config: config, gauge: prometheus.NewGauge(prometheus.GaugeOpts{Name: "selvage_injection_by_policy",
		Help: "1 while the API server itself is proven to inject this revision's pods as the injector does, else 0; on the replica that leads."})}
	var err error
	i.parameter, err = NewParameter(ParameterConfig{Kubernetes: config.Kubernetes, Dynamic: config.Dynamic, Name: policy.InjectionName(config.Revision),
		Spec: i.fields, Absent: func() { i.tell(policy.NoInjectionPolicy(config.Revision)) }, Changed: config.Changed, Log: config.Log})
	if err != nil {
		return nil, err
	}
	if config.Registerer != nil {
		if err := config.Registerer.Register(i.gauge); err != nil {
			return nil, fmt.Errorf("configure injection by policy: register metrics: %w", err)
		}
	}
	return i, nil
}

// Run keeps the parameter until ctx ends, and returns nil then.
func (i *Injection) Run(ctx context.Context) error {
	defer i.gauge.Set(0)
	i.proven = nil
	return i.parameter.Run(ctx)
}

// State is what was found last.
func (i *Injection) State() policy.InjectionState {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state
}

// fields are what the parameter is to have: the decision always, and the template when it is proven. One that is known to be wrong is taken
// out; one that could not be tried leaves the last in force.
func (i *Injection) fields(ctx context.Context) (map[string]any, error) {
	config := i.config.Injector()
	if config == nil {
		return nil, errors.New("the injector's configuration is not known yet")
	}
	observed, err := i.config.Kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list mutatingwebhookconfigurations: %w", err)
	}
	out := policy.Chosen(i.config.Revision, observed.Items, config)
	template, problems := policy.NewTemplate(config)
	if template == nil {
		i.proven = nil
		i.tell(policy.InjectionUnsupported(problems))
		out["injection"] = nil
		return out, nil
	}
	state := policy.InjectsByPolicy(i.config.Revision)
	if !reflect.DeepEqual(i.proven, template) || time.Since(i.at) > recheck {
		state = i.try(ctx, config, template)
	}
	i.tell(state)
	switch state.Reason {
	case policy.ProvenHeld:
		out["injection"] = template.Parameter()["injection"]
	case policy.Different:
		out["injection"] = nil
	default: // what was proven last stays
	}
	return out, nil
}

// try writes the template into the parameter of the trial and creates pods as dry runs. API servers hear of a parameter within
// milliseconds, and of a policy within a second: so a pod that did not come out right is tried again for a while.
func (i *Injection) try(ctx context.Context, config *inject.Config, template *policy.Template) policy.InjectionState {
	i.proven = nil
	if err := i.parameter.put(ctx, policy.TrialName(i.config.Revision), policy.TrialFields(i.config.Revision, template)); err != nil {
		return policy.InjectionUnproven(fmt.Errorf("write AdmissionParameter %s: %w", policy.TrialName(i.config.Revision), err))
	}
	until := time.Now().Add(settle)
	for {
		state := i.compare(ctx, config)
		if state.Reason == policy.ProvenHeld {
			i.proven, i.at = template, time.Now()
			return state
		}
		if time.Now().After(until) || !state.Wrong() {
			return state
		}
		select {
		case <-ctx.Done():
			return policy.InjectionUnproven(ctx.Err())
		case <-time.After(between):
		}
	}
}

// compare creates each pod twice: as it is, for the policy, and as the injector makes it, so that both have what the API server fills in.
func (i *Injection) compare(ctx context.Context, config *inject.Config) policy.InjectionState {
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	for _, pod := range policy.TrialPods(i.config.Revision) {
		injected, _, err := inject.Pod(pod, config)
		if err != nil {
			return policy.InjectionUnproven(err)
		}
		pods := i.config.Kubernetes.CoreV1().Pods(pod.Namespace)
		got, err := pods.Create(ctx, pod, dry)
		if err != nil {
			if apierrors.IsInternalError(err) || apierrors.IsInvalid(err) { // the patch gave no pod
				return policy.InjectionDiffers(i.config.Revision, pod.Name, err.Error())
			}
			return policy.InjectionUnproven(err)
		}
		if !policy.HasSidecar(got) {
			return policy.InjectionNotInForce(i.config.Revision)
		}
		want, err := pods.Create(ctx, injected, dry)
		if err != nil {
			return policy.InjectionUnproven(err)
		}
		if d := policy.Differs(want, got); d != "" {
			return policy.InjectionDiffers(i.config.Revision, pod.Name, d)
		}
	}
	return policy.InjectsByPolicy(i.config.Revision)
}

// tell reports a state that is another one than before.
func (i *Injection) tell(s policy.InjectionState) {
	i.gauge.Set(0)
	if s.ByPolicy {
		i.gauge.Set(1)
	}
	i.mu.Lock()
	before := i.state
	i.state = s
	i.mu.Unlock()
	if before == s {
		return
	}
	if i.config.Report != nil {
		i.config.Report(s)
	}
	subject := &corev1.ObjectReference{APIVersion: "admissionregistration.k8s.io/v1", Kind: policy.Mutating, Name: policy.InjectionName(i.config.Revision)}
	event := func(kind, reason, message string) {
		if i.config.Events != nil {
			i.config.Events.Event(subject, kind, reason, message)
		}
	}
	if !s.Wrong() {
		i.config.Log.Info("injection by policy", "byPolicy", s.ByPolicy, "reason", s.Reason, "message", s.Message)
		if s.ByPolicy && before.Wrong() {
			event(corev1.EventTypeNormal, "InjectionByPolicy", s.Message)
		}
		return
	}
	p := s.Problem(i.config.Revision)
	i.config.Log.Warn("problem", "code", p.Code, "object", p.Object.String(), "detail", p.Detail, "hint", p.Hint)
	event(corev1.EventTypeWarning, "InjectionNotByPolicy", fmt.Sprintf("%s: %s; %s", p.Code, p.Detail, p.Hint))
}
