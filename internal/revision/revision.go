// Package revision knows which revisions of a mesh a cluster has, who uses them, and which webhook configurations are stale: those
// that call a control plane that is gone. It judges any mesh of Istio's API, whoever installed it. It is pure: package
// revision/live reads and writes the cluster.
package revision

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"istio.io/api/label"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// Kinds of webhook configurations, as in their manifests.
const (
	Mutating   = "MutatingWebhookConfiguration"
	Validating = "ValidatingWebhookConfiguration"
)

const (
	// OwnerLabel says whose part an object is, whatever tool has applied it.
	OwnerLabel = "selvage/owner"
	// ManagedByLabel is Kubernetes' own label for that tool: Owner, or Helm, which claims it for what it installs. What the control
	// plane makes carries this one alone, and so does what Selvage installed before it had a label of its own.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	// Owner is Selvage, as the value of both.
	Owner = "selvage"

	// KeepAnnotation on a webhook configuration, of any value, keeps the control plane from removing it by itself.
	KeepAnnotation = "selvage/keep"

	// ControlPlaneApp is the value of the label app that a control plane's Deployment and Service carry, Istio's too.
	ControlPlaneApp = "istiod"

	// MeshNamespace is where a mesh lives unless somebody moved it.
	MeshNamespace = "istio-system"
)

// suffixes tell a mesh's entries from others that share a configuration. They are Istio's names.
var suffixes = map[string]string{Mutating: inject.WebhookSuffix, Validating: "validation.istio.io"}

// Service is a Service that a webhook calls.
type Service struct{ Namespace, Name string }

func (s Service) String() string { return s.Namespace + "/" + s.Name }

// Webhook is one webhook configuration of a mesh.
type Webhook struct {
	Kind, Name           string
	UID, ResourceVersion string
	Revision             string // of the label istio.io/rev; inject.DefaultRevision when there is none
	Tag                  string // of the label istio.io/tag
	Ours                 bool   // Selvage manages it
	Kept                 bool   // it carries KeepAnnotation
	Changed              time.Time
	Services             []Service // that its entries call, each once, sorted
	URLs                 []string  // that its entries call, each once, sorted
	Others               []string  // entries that are not a mesh's
}

// IsOurs reports whether an object with these labels is Selvage's. Only such an object may be removed without a person.
func IsOurs(labels map[string]string) bool {
	return labels[OwnerLabel] == Owner || labels[ManagedByLabel] == Owner
}

// Own puts both labels of an object that `selvage install` makes among the labels.
func Own(labels map[string]string) {
	labels[OwnerLabel], labels[ManagedByLabel] = Owner, Owner
}

// Subject names the object, as people type it.
func (w Webhook) Subject() string { return w.Kind + " " + w.Name }

// OfMutating reads a configuration; ok is false when no entry of it injects sidecars.
func OfMutating(c *admissionv1.MutatingWebhookConfiguration) (w Webhook, ok bool) {
	entries := make([]entry, len(c.Webhooks))
	for i, e := range c.Webhooks {
		entries[i] = entry{e.Name, e.ClientConfig}
	}
	return of(Mutating, c, entries)
}

// OfValidating reads a configuration; ok is false when no entry of it checks a mesh's configuration.
func OfValidating(c *admissionv1.ValidatingWebhookConfiguration) (w Webhook, ok bool) {
	entries := make([]entry, len(c.Webhooks))
	for i, e := range c.Webhooks {
		entries[i] = entry{e.Name, e.ClientConfig}
	}
	return of(Validating, c, entries)
}

type entry struct {
	name   string
	client admissionv1.WebhookClientConfig
}

func of(kind string, m metav1.Object, entries []entry) (w Webhook, ok bool) {
	labels := m.GetLabels()
	_, kept := m.GetAnnotations()[KeepAnnotation]
	w = Webhook{
		Kind: kind, Name: m.GetName(), UID: string(m.GetUID()), ResourceVersion: m.GetResourceVersion(),
		Revision: cmp.Or(labels[label.IoIstioRev.Name], inject.DefaultRevision), Tag: labels[label.IoIstioTag.Name],
		Ours: IsOurs(labels), Kept: kept, Changed: m.GetCreationTimestamp().Time,
	}
	for _, f := range m.GetManagedFields() {
		if f.Time != nil && f.Time.After(w.Changed) {
			w.Changed = f.Time.Time
		}
	}
	for _, e := range entries {
		if !isMesh(kind, e.name) {
			w.Others = append(w.Others, e.name)
			continue
		}
		ok = true
		switch {
		case e.client.Service != nil:
			w.Services = append(w.Services, Service{e.client.Service.Namespace, e.client.Service.Name})
		case e.client.URL != nil:
			w.URLs = append(w.URLs, *e.client.URL)
		}
	}
	slices.SortFunc(w.Services, func(a, b Service) int { return strings.Compare(a.String(), b.String()) })
	slices.Sort(w.URLs)
	w.Services, w.URLs = slices.Compact(w.Services), slices.Compact(w.URLs)
	return w, ok
}

// isMesh reports whether an entry is a mesh's, by the end of its name.
func isMesh(kind, name string) bool {
	return name == suffixes[kind] || strings.HasSuffix(name, "."+suffixes[kind])
}

// ControlPlane is what runs a revision: a Deployment in the cluster, or a Service of Selvage's that leads out of it.
type ControlPlane struct {
	Revision, Namespace, Name string
	Outside                   bool
	Ready, Replicas           int32 // of a Deployment
	Version                   string
	Ours                      bool
}

// Lease is one that a control plane may hold.
type Lease struct {
	Namespace, Name, Holder string
	Renewed                 time.Time
}

// Namespace is one with labels that ask for sidecars.
type Namespace struct{ Name, Injection, Rev string }

// Pod is one that has a sidecar.
type Pod struct{ Namespace, Name, Revision string }

// Proxy is one that is connected to a control plane of the revision.
type Proxy struct{ Namespace, Pod, Revision string }

// Facts are what was read of a cluster. What could not be read is in Unread and is never taken for absent.
type Facts struct {
	Now           time.Time
	Webhooks      []Webhook
	Existing      map[Service]bool // those of the webhooks' Services that exist; complete but for what is in Unread
	ControlPlanes []ControlPlane
	Leases        []Lease
	Namespaces    []Namespace
	Pods          []Pod
	Proxies       []Proxy
	AskedProxies  map[string]bool // revisions whose control planes said which proxies are connected
	Unread        map[Source]error
}

// Source is a kind of object in a namespace; Namespace is "" for those outside of any and for all namespaces together.
type Source struct{ Resource, Namespace string }

// Resources that Facts are read from.
const (
	Services    = "services"
	Deployments = "deployments"
	Leases      = "leases"
	Namespaces  = "namespaces"
	Pods        = "pods"
	Proxies     = "proxies"
)

// tags maps every tag to the revision that it names.
func (f *Facts) tags() map[string]string {
	tags := map[string]string{}
	for _, w := range f.Webhooks {
		if w.Kind == Mutating && w.Tag != "" {
			tags[w.Tag] = w.Revision
		}
	}
	return tags
}

// Answers gives the revision that a value of the label istio.io/rev leads to, and the tag by which; istio-injection=enabled is the
// value inject.DefaultRevision.
func (f *Facts) Answers(value string) (revision, tag string) {
	if revision, ok := f.tags()[value]; ok {
		return revision, value
	}
	return value, ""
}

// Installed reports whether the value of istio.io/rev leads to an injecting webhook.
func (f *Facts) Installed(value string) bool {
	revision, tag := f.Answers(value)
	return slices.ContainsFunc(f.Webhooks, func(w Webhook) bool {
		return w.Kind == Mutating && w.Revision == revision && w.Tag == tag
	})
}

// State is what a revision is.
type State string

// The states of a revision.
const (
	InUse  State = "IN USE" // a namespace asks for it, a pod has its sidecar, or a proxy is connected to it
	Stale  State = "STALE"  // its control plane is gone and its webhooks are left
	Unused State = "UNUSED"
)

// Use is a namespace that uses a revision.
type Use struct {
	Namespace string `json:"namespace"`
	Label     string `json:"label,omitempty"` // that asks for it, as KEY=VALUE; "" when only pods are left of it
	Tag       string `json:"tag,omitempty"`   // by which the label leads here
	Pods      int    `json:"pods"`            // with a sidecar of this revision
}

// WebhookState is one webhook configuration and how it stands.
type WebhookState struct {
	Kind    string  `json:"kind"`
	Name    string  `json:"name"`
	Tag     string  `json:"tag,omitempty"`
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail,omitempty"`
}

// Revision is one that is installed, or that something of is left.
type Revision struct {
	Name         string         `json:"revision"`
	State        State          `json:"state"`
	ControlPlane string         `json:"controlPlane"` // READY/REPLICAS, "outside" of the cluster, the host of a URL, or "none"
	Version      string         `json:"version,omitempty"`
	Selvage      bool           `json:"selvage"` // Selvage installed it
	Tags         []string       `json:"tags"`
	Namespaces   []Use          `json:"namespaces"`
	Pods         int            `json:"pods"`
	Proxies      *int           `json:"proxies"` // connected; nil when nobody could be asked
	Webhooks     []WebhookState `json:"webhooks"`
}

// Used reports whether anything hangs on the revision.
func (r *Revision) Used() bool {
	return len(r.Namespaces) > 0 || r.Pods > 0 || r.Proxies != nil && *r.Proxies > 0
}

// Revisions gives every revision that a control plane, a webhook or a sidecar is there of, sorted by name.
func (f *Facts) Revisions(grace time.Duration) []Revision {
	byName := map[string]*Revision{}
	at := func(name string) *Revision {
		if byName[name] == nil {
			byName[name] = &Revision{Name: name, ControlPlane: "none", Tags: []string{}, Namespaces: []Use{}, Webhooks: []WebhookState{}}
		}
		return byName[name]
	}
	for _, c := range f.ControlPlanes {
		r := at(c.Revision)
		r.ControlPlane, r.Version, r.Selvage = c.shown(), c.Version, r.Selvage || c.Ours
	}
	stale := map[string]bool{}
	for _, w := range f.Webhooks {
		r := at(w.Revision)
		r.Selvage = r.Selvage || w.Ours
		j := f.Judge(w, f.LastSign(w), grace)
		r.Webhooks = append(r.Webhooks, WebhookState{w.Kind, w.Name, w.Tag, j.Verdict, j.Detail})
		stale[w.Revision] = stale[w.Revision] || j.Verdict == IsStale
		if w.Tag != "" && w.Kind == Mutating {
			r.Tags = append(r.Tags, w.Tag)
		}
		if r.ControlPlane == "none" && len(w.URLs) > 0 {
			r.ControlPlane = hostOf(w.URLs[0])
		}
	}
	f.addUses(byName, at)
	var out []Revision
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		r := byName[name]
		switch {
		case stale[name]:
			r.State = Stale
		case r.Used():
			r.State = InUse
		default:
			r.State = Unused
		}
		slices.Sort(r.Tags)
		out = append(out, *r)
	}
	return out
}

// addUses adds the namespaces, pods and proxies.
func (f *Facts) addUses(byName map[string]*Revision, at func(string) *Revision) {
	uses := map[[2]string]*Use{} // by revision and namespace
	for _, ns := range f.Namespaces {
		value, text := ns.asks()
		if revision, tag := f.Answers(value); value != "" && byName[revision] != nil {
			uses[[2]string{revision, ns.Name}] = &Use{Namespace: ns.Name, Label: text, Tag: tag}
		}
	}
	for _, p := range f.Pods {
		r := at(p.Revision)
		r.Pods++
		key := [2]string{p.Revision, p.Namespace}
		if uses[key] == nil {
			uses[key] = &Use{Namespace: p.Namespace}
		}
		uses[key].Pods++
	}
	for key, use := range uses {
		r := at(key[0])
		r.Namespaces = append(r.Namespaces, *use)
	}
	for name, r := range byName {
		slices.SortFunc(r.Namespaces, func(a, b Use) int { return strings.Compare(a.Namespace, b.Namespace) })
		if !f.AskedProxies[name] {
			continue
		}
		count := 0
		for _, p := range f.Proxies {
			if p.Revision == name {
				count++
			}
		}
		r.Proxies = &count
	}
}

// asks gives the value of istio.io/rev that counts for the namespace, "" for none, and the label that says so: istio-injection
// decides before istio.io/rev.
func (n Namespace) asks() (value, text string) {
	switch {
	case n.Injection == "enabled":
		return inject.DefaultRevision, inject.NamespaceInjection + "=enabled"
	case n.Injection != "" || n.Rev == "":
		return "", ""
	}
	return n.Rev, label.IoIstioRev.Name + "=" + n.Rev
}

// Asks is the label by which the namespace asks for sidecars, as KEY=VALUE; "" when none does.
func (n Namespace) Asks() string { _, text := n.asks(); return text }

// Value is the value of istio.io/rev that counts for the namespace, "" for none.
func (n Namespace) Value() string { value, _ := n.asks(); return value }

// Lost gives the namespaces whose label leads to no revision: their pods start without a sidecar.
func (f *Facts) Lost() (lost []Namespace) {
	for _, ns := range f.Namespaces {
		if value, _ := ns.asks(); value != "" && !f.Installed(value) {
			lost = append(lost, ns)
		}
	}
	return lost
}

// TagUsers are the namespaces whose label names the tag, sorted.
func (f *Facts) TagUsers(tag string) (names []string) {
	for _, ns := range f.Namespaces {
		if value, _ := ns.asks(); value == tag {
			names = append(names, ns.Name)
		}
	}
	slices.Sort(names)
	return names
}
