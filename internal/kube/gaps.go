package kube

import (
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// Events tells people about an object, as record.EventRecorder does.
type Events interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// The reasons of Events about what can be read.
const (
	reasonUnavailable = "SourceUnavailable"
	reasonAvailable   = "SourceAvailable"
)

func newUnavailable() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "selvage_source_unavailable",
		Help: "1 for each kind that the API server refuses to this control plane, or cannot give, with the verb that fails.",
	}, []string{"resource", "verb"})
}

// gap is what is told of a source that cannot be read.
type gap struct {
	verb    string
	problem diag.Problem
}

// reportGap makes a refusal a problem of the snapshot, a metric and an Event, or takes it back. The mutex is held.
func (c *Cluster) reportGap(s *source) {
	defer c.poke()
	verb, denied := s.deniedVerb()
	was := s.gap
	if denied == nil {
		c.builder.SetAvailable(s.kind)
		c.unavailable.DeletePartialMatch(prometheus.Labels{"resource": s.resource()})
		if s.gap = nil; was != nil {
			c.tell(was.problem, corev1.EventTypeNormal, reasonAvailable, s.resource()+" can be read again")
		}
		return
	}
	s.gap = &gap{verb, s.problem(denied)}
	c.builder.SetUnavailable(s.kind, s.gap.problem)
	if was != nil && was.verb == verb && was.problem.Object == s.gap.problem.Object {
		return
	}
	c.unavailable.DeletePartialMatch(prometheus.Labels{"resource": s.resource()})
	c.unavailable.WithLabelValues(s.resource(), verb).Set(1)
	c.tell(s.gap.problem, corev1.EventTypeWarning, reasonUnavailable, fmt.Sprintf("%s (%s: %s)", s.gap.problem.Detail, s.gap.problem.Code, s.gap.problem.Hint))
}

// tell makes an Event about the object of a problem: the role that lacks a rule, or the definition that is missing.
func (c *Cluster) tell(p diag.Problem, kind, reason, message string) {
	if c.config.Events == nil {
		return
	}
	o := p.Object
	version := "v1"
	if o.Group != "" {
		version = o.Group + "/v1"
	}
	c.config.Events.Event(&corev1.ObjectReference{APIVersion: version, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}, kind, reason, message)
}

// Gaps says, one line for each, which kinds cannot be read at present and what that means.
func (c *Cluster) Gaps() (lines []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sources {
		if s.gap != nil {
			lines = append(lines, strings.ReplaceAll(s.gap.problem.Detail, "\n", " ")+" ("+s.gap.problem.Hint+")")
		}
	}
	return lines
}
