package index

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"istio.io/api/annotation"
	"istio.io/api/label"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/validate"
)

// The kinds of Istio's API.
const (
	AuthorizationPolicies  Kind = "authorizationpolicies"
	DestinationRules       Kind = "destinationrules"
	EnvoyFilters           Kind = "envoyfilters"
	Gateways               Kind = "gateways"
	PeerAuthentications    Kind = "peerauthentications"
	ProxyConfigs           Kind = "proxyconfigs"
	RequestAuthentications Kind = "requestauthentications"
	ServiceEntries         Kind = "serviceentries"
	Sidecars               Kind = "sidecars"
	Telemetries            Kind = "telemetries"
	TrafficExtensions      Kind = "trafficextensions"
	VirtualServices        Kind = "virtualservices"
	WasmPlugins            Kind = "wasmplugins"
	WorkloadEntries        Kind = "workloadentries"
	WorkloadGroups         Kind = "workloadgroups"
)

// IstioKind is one kind of Istio's API: where it is read and what it means when that is not possible.
type IstioKind struct {
	Kind        Kind
	Group, Name string
	// Versions are those that an API server may serve, the one to read first. All have one schema.
	Versions []string
	// Guards is set for kinds that close something: a mesh without them would be more open than one with them.
	Guards bool
	// Without says what it means for the mesh that there are none of them.
	Without string
}

const (
	networkingGroup = "networking.istio.io"
	securityGroup   = "security.istio.io"
	telemetryGroup  = "telemetry.istio.io"
	extensionsGroup = "extensions.istio.io"
)

var (
	allVersions      = []string{"v1", "v1beta1", "v1alpha3"}
	securityVersions = []string{"v1", "v1beta1"}
)

// kindCount is how many kinds there are; each has its table in a Namespace.
const kindCount = 15

// istioKinds is the one table of them: a new kind is one more row, and its spec one of package validate.
var istioKinds = [kindCount]IstioKind{
	{AuthorizationPolicies, securityGroup, "AuthorizationPolicy", securityVersions, true, "no AuthorizationPolicy is in force: every request is allowed"},
	{DestinationRules, networkingGroup, "DestinationRule", allVersions, false, "no DestinationRule is in force"},
	{EnvoyFilters, networkingGroup, "EnvoyFilter", []string{"v1alpha3"}, false, "no EnvoyFilter is in force"},
	{Gateways, networkingGroup, "Gateway", allVersions, false, "no Gateway is in force"},
	{PeerAuthentications, securityGroup, "PeerAuthentication", securityVersions, true, "no PeerAuthentication is in force: every port takes plain text too"},
	{ProxyConfigs, networkingGroup, "ProxyConfig", []string{"v1beta1"}, false, "no ProxyConfig is in force"},
	{RequestAuthentications, securityGroup, "RequestAuthentication", securityVersions, true, "no RequestAuthentication is in force: no token is checked"},
	{ServiceEntries, networkingGroup, "ServiceEntry", allVersions, false, "no ServiceEntry is in force"},
	{Sidecars, networkingGroup, "Sidecar", allVersions, false, "no Sidecar is in force: every proxy is told of everything"},
	{Telemetries, telemetryGroup, "Telemetry", []string{"v1", "v1alpha1"}, false, "no Telemetry is in force"},
	{TrafficExtensions, extensionsGroup, "TrafficExtension", []string{"v1alpha1"}, false, "no TrafficExtension is in force"},
	{VirtualServices, networkingGroup, "VirtualService", allVersions, false, "no VirtualService is in force"},
	{WasmPlugins, extensionsGroup, "WasmPlugin", []string{"v1alpha1"}, false, "no WasmPlugin is in force"},
	{WorkloadEntries, networkingGroup, "WorkloadEntry", allVersions, false, "no WorkloadEntry is in force"},
	{WorkloadGroups, networkingGroup, "WorkloadGroup", allVersions, false, "no WorkloadGroup is in force"},
}

// IstioKinds are the kinds of Istio's API, in the order of their names.
func IstioKinds() []IstioKind { return slices.Clone(istioKinds[:]) }

// slot is the place of a kind in istioKinds; -1 for a kind that is not Istio's.
func slot(kind Kind) int {
	return slices.IndexFunc(istioKinds[:], func(k IstioKind) bool { return k.Kind == kind })
}

// slotOf finds a kind by the group and the name that an object bears.
func slotOf(group, name string) int {
	return slices.IndexFunc(istioKinds[:], func(k IstioKind) bool { return k.Group == group && k.Name == name })
}

// tables are the resources of one namespace, by kind.
type tables [kindCount]*Table[*Resource]

// Resource is what is used of an object of Istio's API of our revision: its spec, as a whole.
type Resource struct {
	Namespace, Name string
	Generation      int64
	Created         int64             // seconds since the epoch
	Labels          map[string]string // of a WorkloadEntry only: elsewhere they say nothing about the mesh
	DryRun          bool              // annotation istio.io/dry-run
	// Spec is of the type that package validate has for the kind. It is nil when the object cannot be read: then it has no effect,
	// and a problem says why. It is never to be modified.
	Spec proto.Message
	// Valid says that nothing in Spec is an error. Who uses a resource that is not valid says why it does more good than harm.
	Valid    bool
	Problems []diag.Problem

	kind int
}

func (r *Resource) key() string { return r.Name }

// Ref names the object.
func (r *Resource) Ref() ref.Ref {
	k := istioKinds[r.kind]
	return ref.Ref{Group: k.Group, Kind: k.Name, Namespace: r.Namespace, Name: r.Name, Generation: r.Generation}
}

// equal compares what a message says: two that say the same need not be equal in memory.
func (r *Resource) equal(o *Resource) bool {
	if r == nil || o == nil {
		return r == o
	}
	return r.Namespace == o.Namespace && r.Name == o.Name && r.Generation == o.Generation && r.Created == o.Created && r.kind == o.kind &&
		r.DryRun == o.DryRun && r.Valid == o.Valid && slices.Equal(r.Problems, o.Problems) && maps.Equal(r.Labels, o.Labels) &&
		(r.Spec == nil) == (o.Spec == nil) && (r.Spec == nil || proto.Equal(r.Spec, o.Spec))
}

// Resources are the objects of one kind of Istio's API, readable or not.
func (n *Namespace) Resources(kind Kind) *Table[*Resource] {
	if i := slot(kind); i >= 0 {
		return n.resources[i]
	}
	return nil
}

// SameResources reports whether all kinds of Istio's API are as they are in o.
func (n *Namespace) SameResources(o *Namespace) bool { return n.resources == o.resources }

// Problems are those of reading the objects of Istio's API, sorted by kind and name.
func (n *Namespace) Problems() (problems []diag.Problem) {
	for _, t := range n.resources {
		for _, r := range t.All() {
			problems = append(problems, r.Problems...)
		}
	}
	return problems
}

// setIstio takes in an object as the API server gives it. One of another revision's, by the label istio.io/rev, is not there.
func (b *Builder) setIstio(o *unstructured.Unstructured, gone bool) bool {
	group := o.GroupVersionKind().Group
	i := slotOf(group, o.GetKind())
	if i < 0 {
		return false
	}
	var r *Resource
	if !gone && b.ours(o.GetLabels()) {
		r = projectResource(i, o)
	}
	put(b, &b.space(o.GetNamespace()).resources[i], o.GetNamespace(), o.GetName(), r)
	if istioKinds[i].Kind == PeerAuthentications {
		put(b, &b.space(o.GetNamespace()).policies, o.GetNamespace(), o.GetName(), b.asPolicy(o, r))
	}
	return true
}

// ours reports whether the label istio.io/rev keeps an object for another revision.
func (b *Builder) ours(labels map[string]string) bool {
	rev, ok := labels[label.IoIstioRev.Name]
	return !ok || rev == b.config.revision()
}

// lost reports whether something of the object could not be read, so that what is left may say less than was meant.
func lost(r *Resource) bool {
	return slices.ContainsFunc(r.Problems, func(p diag.Problem) bool {
		return p.Code == diag.UnknownField || p.Code == diag.WrongForm || p.Code == diag.UnknownValue
	})
}

func (b *Builder) asPolicy(o *unstructured.Unstructured, r *Resource) *PeerAuthentication {
	if r == nil {
		return nil
	}
	spec, ok := r.Spec.(*securityapi.PeerAuthentication)
	if !ok || lost(r) { // what cannot be read may have been STRICT
		spec = &securityapi.PeerAuthentication{Selector: spec.GetSelector(),
			Mtls: &securityapi.PeerAuthentication_MutualTLS{Mode: securityapi.PeerAuthentication_MutualTLS_STRICT}}
		r.Problems = append(r.Problems, diag.Problem{Code: diag.InvalidField, Severity: diag.Error, Object: r.Ref(),
			Detail: "it cannot be carried out as a whole, so STRICT is in force for what it selects, for every port",
			Hint:   "mend what the other problems of this object name, or delete it: kubectl -n " + r.Namespace + " delete peerauthentication " + r.Name})
	}
	typed := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{
		Namespace: r.Namespace, Name: r.Name, Generation: r.Generation, CreationTimestamp: o.GetCreationTimestamp(),
	}}
	proto.Merge(&typed.Spec, spec)
	return projectPeerAuthentication(typed, "")
}

// isTrue reads an annotation as Istio does: 1, t, T, TRUE, true, True.
func isTrue(text string) bool {
	value, err := strconv.ParseBool(text)
	return err == nil && value
}

func projectResource(i int, o *unstructured.Unstructured) *Resource {
	r := &Resource{
		Namespace: o.GetNamespace(), Name: o.GetName(), Generation: o.GetGeneration(), Created: o.GetCreationTimestamp().Unix(), kind: i,
		DryRun: isTrue(o.GetAnnotations()[annotation.IoIstioDryRun.Name]),
	}
	if istioKinds[i].Kind == WorkloadEntries {
		r.Labels = maps.Clone(o.GetLabels())
	}
	var raw json.RawMessage
	if spec, ok := o.Object["spec"]; ok && spec != nil {
		raw, _ = json.Marshal(spec) // what came as JSON can be written as JSON
	}
	r.Spec, r.Problems, _ = validate.Spec(r.Ref(), raw)
	r.Valid = r.Spec != nil
	for j := range r.Problems {
		p := &r.Problems[j]
		if p.Severity == diag.Error {
			r.Valid = false
		}
		if p.Hint != "" {
			p.Hint += "; "
		}
		p.Hint += "kubectl -n " + r.Namespace + " edit " + strings.ToLower(istioKinds[i].Name) + " " + r.Name
	}
	slices.SortFunc(r.Problems, func(a, b diag.Problem) int { // what is found in a map comes in any order
		return cmp.Or(strings.Compare(a.Field, b.Field), strings.Compare(a.Detail, b.Detail))
	})
	return r
}
