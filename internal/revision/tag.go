package revision

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// OwnClientAnnotation on a revision's own injector holds, as JSON, what its entries called before a tag took it over.
const OwnClientAnnotation = "selvage/own-client"

// Tag is what a change of a tag comes to: one write of one object, so that there is no instant at which two configurations answer
// for a pod, or none.
type Tag struct {
	Before *admissionv1.MutatingWebhookConfiguration // nil when After is new
	After  *admissionv1.MutatingWebhookConfiguration // nil when Before goes
	From   string                                    // the revision that it named, "" for none
}

// TagRequest asks that a tag name a revision.
type TagRequest struct {
	Tag, Revision string
	// EnableNamespacesByDefault is the revision's setting, for a new default tag.
	EnableNamespacesByDefault bool
}

// SetTag decides what to write. The tag's object keeps its selectors and everything else that somebody may have changed: only what its
// entries call, and which revision it names, are the revision's then. The tag "default" where a revision of that name is installed
// takes over that revision's own injector, because another object beside it would answer for the same pods.
func SetTag(observed []admissionv1.MutatingWebhookConfiguration, r TagRequest) (Tag, error) {
	target, err := injectorOf(observed, r.Revision)
	if err != nil {
		return Tag{}, err
	}
	if r.Tag == r.Revision {
		return Tag{}, fmt.Errorf("tag %q is the revision's own name: a tag is another name for it", r.Tag)
	}
	before := tagged(observed, r.Tag)
	if before == nil {
		if before = answering(observed, r.Tag); before != nil && (r.Tag != inject.DefaultTag || !IsOurs(before.Labels)) {
			return Tag{}, fmt.Errorf("MutatingWebhookConfiguration %s answers for %s=%s already, and two cannot: "+
				"it belongs to revision %s, which is no tag of Selvage's; choose another tag, or remove that revision first",
				before.Name, label.IoIstioRev.Name, r.Tag, revisionOf(before))
		}
	}
	if before == nil {
		return Tag{After: newTag(target, r)}, nil
	}
	after := before.DeepCopy()
	if before.Labels[label.IoIstioTag.Name] == "" { // a revision's own, which remembers what it called
		if err := remember(after); err != nil {
			return Tag{}, err
		}
	}
	after.Labels[label.IoIstioRev.Name], after.Labels[label.IoIstioTag.Name] = r.Revision, r.Tag
	point(after, target)
	return Tag{Before: before, After: after, From: revisionOf(before)}, nil
}

// RemoveTag decides what to write so that a tag names nothing. installed reports whether a revision still has its control plane: its
// own injector, if the tag had taken it over, is given back then.
func RemoveTag(observed []admissionv1.MutatingWebhookConfiguration, tag string, installed func(revision string) bool) (Tag, error) {
	before := tagged(observed, tag)
	if before == nil {
		return Tag{}, fmt.Errorf("there is no tag %q: it has %s", tag, orNone(tagsOf(observed)))
	}
	out := Tag{Before: before, From: revisionOf(before)}
	if before.Annotations[OwnClientAnnotation] == "" || !installed(tag) {
		return out, nil
	}
	own, err := recall(before)
	if err != nil {
		return Tag{}, err
	}
	out.After = before.DeepCopy()
	delete(out.After.Annotations, OwnClientAnnotation)
	delete(out.After.Labels, label.IoIstioTag.Name)
	out.After.Labels[label.IoIstioRev.Name] = tag
	point(out.After, own)
	return out, nil
}

// injectorOf finds the revision's own injector and gives what its entries call.
func injectorOf(observed []admissionv1.MutatingWebhookConfiguration, revision string) (*admissionv1.MutatingWebhookConfiguration, error) {
	var names []string
	for i := range observed {
		c := &observed[i]
		if _, ok := OfMutating(c); !ok {
			continue
		}
		own := c
		if c.Annotations[OwnClientAnnotation] != "" && c.Name == inject.ObjectName(inject.InjectorConfigMap, revision) {
			var err error
			if own, err = recall(c); err != nil {
				return nil, err
			}
		} else if c.Labels[label.IoIstioTag.Name] != "" {
			continue
		}
		names = append(names, revisionOf(own))
		if revisionOf(own) != revision {
			continue
		}
		for _, w := range own.Webhooks {
			if isMesh(Mutating, w.Name) && len(w.ClientConfig.CABundle) == 0 && w.ClientConfig.Service != nil {
				return nil, fmt.Errorf("MutatingWebhookConfiguration %s has no caBundle yet: is the control plane of revision %s running?", c.Name, revision)
			}
		}
		return own, nil
	}
	slices.Sort(names)
	return nil, fmt.Errorf("there is no revision %q with an injector of its own: the cluster has %s", revision, orNone(slices.Compact(names)))
}

// tagged is the configuration of a tag; nil when there is none.
func tagged(observed []admissionv1.MutatingWebhookConfiguration, tag string) *admissionv1.MutatingWebhookConfiguration {
	for i := range observed {
		if _, ok := OfMutating(&observed[i]); ok && observed[i].Labels[label.IoIstioTag.Name] == tag {
			return &observed[i]
		}
	}
	return nil
}

// answering is a configuration that is called for pods of namespaces with istio.io/rev of that value, or for the default tag with
// istio-injection=enabled; nil when there is none.
func answering(observed []admissionv1.MutatingWebhookConfiguration, value string) *admissionv1.MutatingWebhookConfiguration {
	asks := []labels.Set{{label.IoIstioRev.Name: value}}
	if value == inject.DefaultTag {
		asks = append(asks, labels.Set{inject.NamespaceInjection: "enabled"})
	}
	for i := range observed {
		for _, w := range observed[i].Webhooks {
			selector, err := metav1.LabelSelectorAsSelector(w.NamespaceSelector)
			if err != nil || !isMesh(Mutating, w.Name) {
				continue
			}
			if slices.ContainsFunc(asks, func(set labels.Set) bool { return selector.Matches(set) && !selector.Empty() && asksFor(w, set) }) {
				return &observed[i]
			}
		}
	}
	return nil
}

// asksFor reports whether the entry's selectors name the label, so that one that selects every namespace does not count.
func asksFor(w admissionv1.MutatingWebhook, set labels.Set) bool {
	for _, r := range w.NamespaceSelector.MatchExpressions {
		if _, named := set[r.Key]; named && r.Operator == metav1.LabelSelectorOpIn {
			return true
		}
	}
	for key := range w.NamespaceSelector.MatchLabels {
		if _, named := set[key]; named {
			return true
		}
	}
	return false
}

// newTag is the configuration of a tag that does not exist yet.
func newTag(target *admissionv1.MutatingWebhookConfiguration, r TagRequest) *admissionv1.MutatingWebhookConfiguration {
	registration := inject.Registration{Revision: r.Revision, Tag: r.Tag, EnableNamespacesByDefault: r.EnableNamespacesByDefault,
		Endpoint: inject.Endpoint{Namespace: MeshNamespace}}
	if w, _ := OfMutating(target); len(w.Services) > 0 {
		registration.Endpoint.Namespace = w.Services[0].Namespace
	}
	c := registration.Configuration()
	Own(c.Labels)
	point(c, target)
	return c
}

// point makes every entry of a mesh call what the target's entry of the same name calls, or its first.
func point(c, target *admissionv1.MutatingWebhookConfiguration) {
	var first *admissionv1.WebhookClientConfig
	byName := map[string]*admissionv1.WebhookClientConfig{}
	for i := range target.Webhooks {
		w := &target.Webhooks[i]
		if !isMesh(Mutating, w.Name) {
			continue
		}
		byName[w.Name] = &w.ClientConfig
		if first == nil {
			first = &w.ClientConfig
		}
	}
	after := slices.ContainsFunc(target.Webhooks, func(w admissionv1.MutatingWebhook) bool { return inject.IsAfterPolicy(&w) })
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		if !isMesh(Mutating, w.Name) {
			continue
		}
		inject.SetAfterPolicy(w, after)
		from := byName[w.Name]
		if from == nil {
			from = first
		}
		w.ClientConfig = *from.DeepCopy()
	}
}

// ownClient is what OwnClientAnnotation holds.
type ownClient struct {
	Revision string                                     `json:"revision"`
	Calls    map[string]admissionv1.WebhookClientConfig `json:"calls"` // by entry; without the bundle, which is the same root's
}

// remember writes down what a revision's own injector calls.
func remember(c *admissionv1.MutatingWebhookConfiguration) error {
	own := ownClient{Revision: revisionOf(c), Calls: map[string]admissionv1.WebhookClientConfig{}}
	for _, w := range c.Webhooks {
		if isMesh(Mutating, w.Name) {
			calls := *w.ClientConfig.DeepCopy()
			calls.CABundle = nil
			own.Calls[w.Name] = calls
		}
	}
	text, err := json.Marshal(own)
	if err != nil {
		return fmt.Errorf("remember what MutatingWebhookConfiguration %s calls: %w", c.Name, err)
	}
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations[OwnClientAnnotation] = string(text)
	return nil
}

// recall gives a revision's own injector as it was before a tag took it over, with the bundle that it has now.
func recall(c *admissionv1.MutatingWebhookConfiguration) (*admissionv1.MutatingWebhookConfiguration, error) {
	var own ownClient
	if err := json.Unmarshal([]byte(c.Annotations[OwnClientAnnotation]), &own); err != nil {
		return nil, fmt.Errorf("read annotation %s of MutatingWebhookConfiguration %s: %w", OwnClientAnnotation, c.Name, err)
	}
	out := c.DeepCopy()
	out.Labels[label.IoIstioRev.Name] = own.Revision
	for i := range out.Webhooks {
		w := &out.Webhooks[i]
		if calls, ok := own.Calls[w.Name]; ok {
			calls.CABundle = w.ClientConfig.CABundle
			w.ClientConfig = calls
		}
	}
	return out, nil
}

func revisionOf(c *admissionv1.MutatingWebhookConfiguration) string {
	if r := c.Labels[label.IoIstioRev.Name]; r != "" {
		return r
	}
	return inject.DefaultRevision
}

func tagsOf(observed []admissionv1.MutatingWebhookConfiguration) (tags []string) {
	for i := range observed {
		if t := observed[i].Labels[label.IoIstioTag.Name]; t != "" {
			tags = append(tags, t)
		}
	}
	slices.Sort(tags)
	return tags
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
