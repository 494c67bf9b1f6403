package probe

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/probe/verdict"
	"github.com/selvage-mesh/selvage/internal/ref"
)

const (
	// ConditionsKey is the key of the status ConfigMap under which the conditions of this revision stand: a YAML list of what
	// Kubernetes' API calls conditions, of the types InjectionWorks and ValidationWorks.
	ConditionsKey = "conditions"
	// PeersKey is the key for those of other revisions: a YAML list of Peer.
	PeersKey = "peers"
)

// Peer is what a revision's control plane knows of another revision's webhooks.
type Peer struct {
	Revision   string             `json:"revision"`
	Conditions []metav1.Condition `json:"conditions"`
}

// conditionTypes are the conditions of the checks.
var conditionTypes = map[verdict.Check]string{verdict.Injection: "InjectionWorks", verdict.Validation: "ValidationWorks"}

// works is the message of a condition that is True.
var works = map[verdict.Check]string{
	verdict.Injection:  "a pod that asked for a sidecar got one, by a dry run through the API server",
	verdict.Validation: "an invalid object was refused, by a dry run through the API server",
}

// message is what a finding says to people.
func (r *round) message(t target, f verdict.Finding) string {
	p, wrong := r.names(t).Problem(t.check, f)
	if !wrong {
		return works[t.check]
	}
	return fmt.Sprintf("%s [%s]. Next: %s", p.Detail, p.Code, p.Hint)
}

// condition is a state as Kubernetes' API writes it.
func (r *round) condition(t target, s *state) metav1.Condition {
	status := metav1.ConditionFalse
	switch s.finding.Verdict {
	case verdict.OK:
		status = metav1.ConditionTrue
	case verdict.CouldNotProbe:
		status = metav1.ConditionUnknown
	default:
	}
	message := s.message
	if message == "" {
		message = r.message(t, s.finding)
	}
	return metav1.Condition{Type: conditionTypes[t.check], Status: status, Reason: s.finding.Verdict.Reason(), Message: message,
		LastTransitionTime: metav1.NewTime(s.since)}
}

// publish writes the conditions where the doctor, the console and people read them.
func (r *round) publish() {
	own, peers := []metav1.Condition{}, []Peer{}
	targets := make([]target, 0, len(r.states))
	for t := range r.states {
		targets = append(targets, t)
	}
	slices.SortFunc(targets, target.compare)
	for _, t := range targets {
		s := r.states[t]
		switch last := len(peers) - 1; {
		case !s.known:
		case t.revision == r.config.Revision:
			own = append(own, r.condition(t, s))
		case last >= 0 && peers[last].Revision == t.revision:
			peers[last].Conditions = append(peers[last].Conditions, r.condition(t, s))
		default:
			peers = append(peers, Peer{Revision: t.revision, Conditions: []metav1.Condition{r.condition(t, s)}})
		}
	}
	r.keep(ConditionsKey, own, len(own))
	r.keep(PeersKey, peers, len(peers))
}

// keep writes a list under a key, and nothing for an empty one.
func (r *round) keep(key string, list any, n int) {
	if n == 0 {
		r.config.Status.Set(key, "")
		return
	}
	text, err := yaml.Marshal(list)
	if err != nil {
		panic("encode conditions: " + err.Error()) // strings and times
	}
	r.config.Status.Set(key, string(text))
}

// recall takes over what the last leader had found, so that a change of the leader is no change of the verdict.
func (r *round) recall(ctx context.Context) {
	r.states = map[target]*state{}
	take := func(revision string, conditions []metav1.Condition) {
		for _, c := range conditions {
			for check, conditionType := range conditionTypes {
				if c.Type == conditionType {
					r.states[target{revision, check}] = &state{known: true, since: c.LastTransitionTime.Time, message: c.Message,
						finding: verdict.Finding{Verdict: verdict.ByReason(c.Reason)}}
				}
			}
		}
	}
	// What cannot be read, because somebody has edited it, is found out anew.
	var own []metav1.Condition
	if yaml.Unmarshal([]byte(r.config.Status.Get(ctx, ConditionsKey)), &own) == nil {
		take(r.config.Revision, own)
	}
	var peers []Peer
	if yaml.Unmarshal([]byte(r.config.Status.Get(ctx, PeersKey)), &peers) == nil && r.config.All {
		for _, p := range peers {
			take(p.Revision, p.Conditions)
		}
	}
}

// tell says a change of a verdict by the log and by an Event on the object that it is about.
func (r *round) tell(ctx context.Context, t target, s *state) {
	log := r.config.Log.With("check", t.check, "probed", t.revision, "verdict", s.finding.Verdict)
	object, eventType, reason := r.names(t).Configuration(t.check), corev1.EventTypeNormal, conditionTypes[t.check]
	message := r.message(t, s.finding)
	if p, wrong := r.names(t).Problem(t.check, s.finding); wrong {
		object, eventType, reason = p.Object, corev1.EventTypeWarning, s.finding.Verdict.Reason()
		log.Error("probe failed", "code", p.Code, "object", p.Object.String(), "detail", p.Detail, "hint", p.Hint)
	} else {
		log.Info("probe succeeded")
	}
	if r.config.Events != nil {
		r.config.Events.Event(r.reference(ctx, object), eventType, reason, message)
	}
}

// reference names an object for an Event, with its UID where it exists: by that, describing the object finds the Event.
func (r *round) reference(ctx context.Context, o ref.Ref) *corev1.ObjectReference {
	out := &corev1.ObjectReference{APIVersion: "v1", Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}
	var live metav1.Object
	var err error
	core := r.config.Kubernetes.CoreV1()
	switch o.Kind {
	case "Service":
		live, err = core.Services(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	case "ConfigMap":
		live, err = core.ConfigMaps(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	case "Namespace":
		out.Namespace = o.Name // an Event about a namespace stands in it
		live, err = core.Namespaces().Get(ctx, o.Name, metav1.GetOptions{})
	case "MutatingWebhookConfiguration":
		out.APIVersion = strings.Join([]string{o.Group, "v1"}, "/")
		live, err = r.config.Kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, o.Name, metav1.GetOptions{})
	case "ValidatingWebhookConfiguration":
		out.APIVersion = strings.Join([]string{o.Group, "v1"}, "/")
		live, err = r.config.Kubernetes.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, o.Name, metav1.GetOptions{})
	default:
		return out // the control plane may not read it
	}
	if err == nil {
		out.UID = live.GetUID()
	}
	return out
}
