package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// mostFailuresTold bounds the Events and problems about namespaces: when all fail, they fail for one reason.
const mostFailuresTold = 20

// failures are the namespaces whose roots cannot be put right, with what is wrong there.
type failures struct {
	mu      sync.Mutex
	all     map[string]diag.Problem
	changed chan struct{} // closed and replaced when all changes
}

// set notes what is wrong in a namespace, nil for nothing. It reports whether that is news, and few others fail.
func (f *failures) set(namespace string, p *diag.Problem) (tell bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, had := f.all[namespace]
	switch {
	case p == nil && !had || p != nil && had && before == *p:
		return false
	case p == nil:
		delete(f.all, namespace)
	default:
		if f.all == nil {
			f.all = map[string]diag.Problem{}
		}
		f.all[namespace] = *p
		tell = len(f.all) <= mostFailuresTold
	}
	close(f.changed)
	f.changed = make(chan struct{})
	return tell
}

func (f *failures) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = nil
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *failures) count() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return float64(len(f.all))
}

// Problems are the namespaces whose ConfigMap cannot be put right, some of them when there are many, and a channel that is closed when
// that is no longer so.
func (r *Roots) Problems() (list []diag.Problem, changed <-chan struct{}) {
	f := &r.failing
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, namespace := range slices.Sorted(maps.Keys(f.all)) {
		if len(list) == mostFailuresTold {
			last := &list[len(list)-1]
			last.Detail += fmt.Sprintf("; so it is in %d more namespaces", len(f.all)-mostFailuresTold)
			break
		}
		list = append(list, f.all[namespace])
	}
	return list, f.changed
}

// failed tells of a namespace whose ConfigMap could not be written.
func (l *rootLoop) failed(namespace string, err error) {
	p := diag.Problem{
		Code: diag.RootNotDistributed, Severity: diag.Error, Object: ref.Ref{Kind: "ConfigMap", Namespace: namespace, Name: RootConfigMap},
		Detail: fmt.Sprintf("the mesh's root cannot be written into it: %v", err),
		Hint:   hint(err, "create and patch", "configmaps"),
	}
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: namespace, Name: RootConfigMap}
	if cm, err := l.configMaps.ConfigMaps(namespace).Get(RootConfigMap); err == nil {
		about.UID = cm.UID // `kubectl describe` looks for it
		if cm.Immutable != nil && *cm.Immutable {
			p.Field = "immutable"
			p.Detail = "it is immutable and has other roots than the mesh's: pods that start in this namespace trust nobody of the mesh, and sidecars cannot reach the control plane"
			p.Hint = fmt.Sprintf("delete it, and it is made again at once: `kubectl -n %s delete configmap %s`", namespace, RootConfigMap)
		}
	}
	if p.Hint == "" {
		p.Hint = "it is tried again until it succeeds"
	}
	tell := l.failing.set(namespace, &p)
	if tell {
		l.config.Log.Error("root certificate cannot be written, it is tried again", "problem", p.String(), "error", err)
	}
	if tell && l.config.Events != nil {
		l.config.Events.Event(about, corev1.EventTypeWarning, "RootNotDistributed", p.Detail+"; "+p.Hint)
	}
}
