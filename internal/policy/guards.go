package policy

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Guard is a ValidatingAdmissionPolicy that looks for one thing that harms a mesh.
type Guard string

// The guards.
const (
	MeshedGuard Guard = "meshed" // a pod that asks for a sidecar and has none at the end of admission
	InUseGuard  Guard = "in-use" // the deletion of what a revision's users hang on
	LabelsGuard Guard = "labels" // labels about injection that have no effect or lead nowhere
	ConfigGuard Guard = "config" // objects of Istio's API that mean nothing, looked at alone
)

// AllGuards are the guards, in the order of the documentation.
var AllGuards = []Guard{MeshedGuard, InUseGuard, LabelsGuard, ConfigGuard}

// Mode is what a guard does about what it finds.
type Mode string

// The modes.
const (
	Off   Mode = "Off"   // it is not installed
	Warn  Mode = "Warn"  // whoever writes is warned
	Audit Mode = "Audit" // the audit log has an annotation
	Deny  Mode = "Deny"  // the write is refused
)

var modes = []Mode{Off, Warn, Audit, Deny}

// Guards has the mode of each guard; one that is not in it is Off.
type Guards map[Guard]Mode

// DefaultGuards warn.
func DefaultGuards() Guards {
	g := Guards{}
	for _, guard := range AllGuards {
		g[guard] = Warn
	}
	return g
}

// With gives the guards with settings of the form GUARD=MODE in force; all=MODE is for every guard.
func (g Guards) With(settings []string) (Guards, error) {
	out := Guards{}
	for guard, mode := range g {
		out[guard] = mode
	}
	for _, s := range settings {
		name, mode, ok := strings.Cut(s, "=")
		at := slices.IndexFunc(modes, func(m Mode) bool { return strings.EqualFold(string(m), mode) })
		if !ok || at < 0 {
			return nil, fmt.Errorf("guard %q is not of the form GUARD=MODE with a mode of Off, Warn, Audit and Deny", s)
		}
		switch {
		case name == "all":
			for _, guard := range AllGuards {
				out[guard] = modes[at]
			}
		case slices.Contains(AllGuards, Guard(name)):
			out[Guard(name)] = modes[at]
		default:
			return nil, fmt.Errorf("there is no guard %q: meshed, in-use, labels and config are, and all for every one", name)
		}
	}
	return out, nil
}

// on reports whether a guard is installed.
func (g Guards) on(guard Guard) bool { return g[guard] != "" && g[guard] != Off }

// The names of what guards are made of. Those of a revision have -REV.
const (
	meshedName = "selvage-guard-meshed"
	inUseName  = "selvage-guard-in-use"
	labelsName = "selvage-guard-labels"
	// workloadsName is the part of the labels guard that looks at pod templates.
	workloadsName = "selvage-guard-labels-workloads"
	configName    = "selvage-guard-config" // with -KINDS

	// RevisionsName is the parameter that all revisions share: which there are, and who uses them.
	RevisionsName = "selvage-revisions"
)

// SharedNames are the names of all objects that Shared may give.
var SharedNames = sharedNames()

func sharedNames() []string {
	names := []string{inUseName, labelsName, workloadsName, RevisionsName}
	for _, c := range configs {
		names = append(names, c.name())
	}
	return names
}

// OfRevision gives the guards of one revision; own is the mesh's namespace.
func (g Guards) OfRevision(rev, own string) (out []runtime.Object) {
	if g.on(MeshedGuard) {
		out = meshed(rev, own, g[MeshedGuard])
	}
	return out
}

// Shared gives the guards that all revisions share; own is the mesh's namespace.
func (g Guards) Shared(own string) (out []runtime.Object) {
	if g.on(InUseGuard) || g.on(LabelsGuard) {
		out = append(out, parameter(sharedMeta(RevisionsName)))
	}
	if g.on(InUseGuard) {
		out = append(out, inUse(own, g[InUseGuard])...)
	}
	if g.on(LabelsGuard) {
		out = append(out, namespaceLabels(g[LabelsGuard])...)
		out = append(out, workloadLabels(g[LabelsGuard])...)
	}
	if g.on(ConfigGuard) {
		for _, c := range configs {
			out = append(out, c.guard(g[ConfigGuard])...)
		}
	}
	return out
}

// guard is a policy with its parameter, and its binding. It fails open: an expression that fails lets the write through, and so does a
// parameter that is not there.
func guard(meta metav1.ObjectMeta, param string, mode Mode, spec admissionv1.ValidatingAdmissionPolicySpec) []runtime.Object {
	ignore, equivalent := admissionv1.Ignore, admissionv1.Equivalent
	spec.FailurePolicy, spec.ParamKind = &ignore, paramKind()
	spec.MatchConstraints.MatchPolicy = &equivalent
	return []runtime.Object{
		&admissionv1.ValidatingAdmissionPolicy{TypeMeta: typeMeta(Validating), ObjectMeta: meta, Spec: spec},
		&admissionv1.ValidatingAdmissionPolicyBinding{TypeMeta: typeMeta(ValidatingBinding), ObjectMeta: meta,
			Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
				PolicyName: meta.Name, ParamRef: byName(param), ValidationActions: []admissionv1.ValidationAction{admissionv1.ValidationAction(mode)},
			}},
	}
}

// variables makes them of pairs of a name and an expression.
func variables(pairs ...string) (out []admissionv1.Variable) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, admissionv1.Variable{Name: pairs[i], Expression: pairs[i+1]})
	}
	return out
}
