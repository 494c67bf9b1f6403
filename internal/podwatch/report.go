package podwatch

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// RestartLabel on a namespace, with the value RestartEnabled, asks that its workloads whose pods have missed their sidecar are
// restarted.
const RestartLabel = "selvage/restart-unmeshed"

// RestartEnabled is the value that switches it on.
const RestartEnabled = "enabled"

// Workload is one whose pods have no sidecar and should have one.
type Workload struct {
	Namespace  string        `json:"namespace"`
	APIVersion string        `json:"-"`
	Kind       string        `json:"kind"` // as people know it: a Deployment, not its ReplicaSet; Pod for one without a controller
	Name       string        `json:"name"`
	Pods       int           `json:"pods"`
	Reason     inject.Reason `json:"reason"`
	Detail     string        `json:"detail"`
	Restart    bool          `json:"-"` // they would get it if they were created now, and their namespace asks for a restart
}

func (w Workload) compare(o Workload) int {
	return cmp.Or(cmp.Compare(w.Namespace, o.Namespace), cmp.Compare(w.Kind, o.Kind), cmp.Compare(w.Name, o.Name), cmp.Compare(w.Reason, o.Reason))
}

// without lists the workloads whose pods have no sidecar and should have one, as of the last look. What is so by design, though a
// label of its namespace says otherwise, is not among them. r.mu is held.
func (r *round) without() []Workload {
	var list []Workload
	for _, g := range r.pods.groups {
		if g.reason == "" || g.quiet {
			continue
		}
		w := Workload{Namespace: g.sample.Namespace, Pods: len(g.pods), Reason: g.reason, Detail: g.detail}
		w.APIVersion, w.Kind, w.Name = inject.Owner(g.sample)
		if ns, err := r.namespaces.Get(w.Namespace); err == nil {
			w.Restart = g.reason == inject.Missed && ns.Labels[RestartLabel] == RestartEnabled
		}
		list = append(list, w)
	}
	slices.SortFunc(list, Workload.compare)
	merged := list[:0]
	for _, w := range list { // two ReplicaSets of one Deployment
		if n := len(merged); n > 0 && merged[n-1].compare(w) == 0 {
			merged[n-1].Pods += w.Pods
			continue
		}
		merged = append(merged, w)
	}
	return merged
}

// report tells who has none, when that has changed.
func (r *round) report() {
	if r.config.Report == nil {
		return
	}
	r.mu.Lock()
	list := r.without()
	r.mu.Unlock()
	if r.reported == nil || !slices.Equal(*r.reported, list) {
		r.reported = &list
		r.config.Report(list)
	}
}

// note keeps with the group what a report says of it. r.mu is held.
func (g *group) note(f finding) {
	g.detail, g.quiet = f.detail(), f.eventType() == corev1.EventTypeNormal
}
