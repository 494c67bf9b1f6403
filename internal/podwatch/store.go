package podwatch

import (
	"errors"
	"maps"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/inject"
)

type watchInterface = watch.Interface

// groupKey tells pods apart that may be decided about differently: those of one controller are alike but for these.
type groupKey struct {
	controller types.UID // the pod's own when it has none
	opt, rev   string    // labels sidecar.istio.io/inject (with a mark when it is there) and istio.io/rev
	annotation string    // sidecar.istio.io/inject
	host       bool
}

// group is the pods of one controller that have no sidecar.
type group struct {
	sample *corev1.Pod // trimmed; its controller is its only owner
	pods   map[types.UID]struct{}
	unseen int           // pods that nobody has looked at
	old    bool          // none of them came after the first list
	reason inject.Reason // why they should not be without, "" when all is well or nobody has looked
	detail string        // the reason as a sentence
	quiet  bool          // it is so by design
}

// pods are all pods without a sidecar, by what decides about them.
type pods struct {
	groups map[groupKey]*group
	of     map[types.UID]groupKey
	listed bool // the first list is in
}

func newPods() *pods { return &pods{groups: map[groupKey]*group{}, of: map[types.UID]groupKey{}} }

// set takes a pod in. One that has a sidecar is dropped: nothing more is to be said about it.
func (p *pods) set(pod *corev1.Pod) (fresh bool) {
	if hasSidecar(pod) {
		return p.remove(pod.UID)
	}
	key := keyOf(pod)
	if before, has := p.of[pod.UID]; has {
		if before == key {
			return false
		}
		p.remove(pod.UID) // its labels were changed
	}
	g := p.groups[key]
	if g == nil {
		g = &group{sample: pod, pods: map[types.UID]struct{}{}, old: true}
		p.groups[key] = g
	}
	g.pods[pod.UID] = struct{}{}
	p.of[pod.UID] = key
	g.unseen++
	if p.listed {
		g.old = false
	}
	return true
}

// remove takes a pod out, and reports whether it was one that should have had a sidecar.
func (p *pods) remove(uid types.UID) (missed bool) {
	key, has := p.of[uid]
	if !has {
		return false
	}
	delete(p.of, uid)
	g := p.groups[key]
	delete(g.pods, uid)
	g.unseen = min(g.unseen, len(g.pods))
	if len(g.pods) == 0 {
		delete(p.groups, key)
	}
	return g.reason != ""
}

// replace takes in a complete list.
func (p *pods) replace(list []*corev1.Pod) {
	gone := maps.Clone(p.of)
	for _, pod := range list {
		delete(gone, pod.UID)
		p.set(pod)
	}
	for uid := range gone {
		p.remove(uid)
	}
	p.listed = true
}

func hasSidecar(pod *corev1.Pod) bool {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == inject.ProxyContainer {
				return true
			}
		}
	}
	return false
}

func keyOf(pod *corev1.Pod) groupKey {
	k := groupKey{controller: pod.UID, rev: pod.Labels[label.IoIstioRev.Name], annotation: pod.Annotations[annotation.SidecarInject.Name], host: pod.Spec.HostNetwork}
	if v, has := pod.Labels[label.SidecarInject.Name]; has {
		k.opt = "=" + v
	}
	if c := metav1.GetControllerOf(pod); c != nil {
		k.controller = c.UID
	}
	return k
}

// store is what the reflector of pods writes to.
type store struct{ round *round }

func (s *store) Add(obj any) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return errors.New("watch pods: the object is no pod")
	}
	s.round.mu.Lock()
	defer s.round.mu.Unlock()
	if s.round.pods.set(pod) {
		s.round.hasFresh()
	}
	return nil
}

func (s *store) Update(obj any) error { return s.Add(obj) }

func (s *store) Delete(obj any) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return errors.New("watch pods: the object is no pod")
	}
	s.round.mu.Lock()
	defer s.round.mu.Unlock()
	if s.round.pods.remove(pod.UID) {
		s.round.hasFresh() // a report says less now
	}
	return nil
}

// Replace takes in a complete list: the first, and again after the watch was lost.
func (s *store) Replace(objects []any, _ string) error {
	list := make([]*corev1.Pod, 0, len(objects))
	for _, o := range objects {
		if pod, ok := o.(*corev1.Pod); ok {
			list = append(list, pod)
		}
	}
	s.round.mu.Lock()
	defer s.round.mu.Unlock()
	s.round.pods.replace(list)
	s.round.hasFresh()
	return nil
}

// Resync has nothing to do: nobody asks for it.
func (s *store) Resync() error { return nil }

// Transformer trims objects as they arrive, so that a list of all pods is never in memory as a whole.
func (s *store) Transformer() cache.TransformFunc { return slim }

func (r *round) hasFresh() {
	select {
	case r.fresh <- struct{}{}:
	default:
	}
}

// slim keeps of an object what decides about sidecars, and by what it is named.
func slim(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		return slimPod(o), nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels}}, nil
	case *admissionv1.MutatingWebhookConfiguration:
		return slimWebhooks(o), nil
	}
	return obj, nil
}

func slimPod(o *corev1.Pod) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: o.Name, Namespace: o.Namespace, UID: o.UID, ResourceVersion: o.ResourceVersion, GenerateName: o.GenerateName,
	}}
	if hasSidecar(o) { // of which nothing is kept
		p.Spec.Containers = []corev1.Container{{Name: inject.ProxyContainer}}
		return p
	}
	p.Labels = o.Labels
	p.Spec.HostNetwork, p.Spec.OS = o.Spec.HostNetwork, o.Spec.OS
	for _, key := range []string{annotation.SidecarInject.Name, corev1.MirrorPodAnnotationKey} {
		if v, has := o.Annotations[key]; has {
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			p.Annotations[key] = v
		}
	}
	if c := metav1.GetControllerOf(o); c != nil {
		p.OwnerReferences = []metav1.OwnerReference{*c}
	}
	return p
}

func slimWebhooks(o *admissionv1.MutatingWebhookConfiguration) *admissionv1.MutatingWebhookConfiguration {
	c := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels}}
	for _, w := range o.Webhooks {
		if strings.HasSuffix(w.Name, inject.WebhookSuffix) {
			c.Webhooks = append(c.Webhooks, admissionv1.MutatingWebhook{Name: w.Name, NamespaceSelector: w.NamespaceSelector,
				ObjectSelector: w.ObjectSelector, MatchConditions: w.MatchConditions})
		}
	}
	return c
}

// sameForUs reports whether two states of an object, both slim, decide alike.
func sameForUs(before, after any) bool {
	if b, ok := before.(*corev1.Namespace); ok {
		a, ok := after.(*corev1.Namespace)
		return ok && maps.Equal(b.Labels, a.Labels)
	}
	return false // webhook configurations change seldom
}
