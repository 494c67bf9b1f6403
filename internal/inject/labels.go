package inject

import (
	"fmt"
	"strings"

	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// lookalikes are keys that people use in the belief that they switch injection on or off, and where they have no effect. None
// is guessed: a pod that a wrong guess leaves without its sidecar would be outside the mesh unnoticed.
var lookalikes = []struct {
	key                                 string
	namespaceLabel, namespaceAnnotation bool
	podLabel, podAnnotation             bool
}{
	{"istio-inject", true, true, true, true},
	{"istio_injection", true, true, true, true},
	{"istio.io/inject", true, true, true, true},
	{"istio.io/injection", true, true, true, true},
	{NamespaceInjection, false, true, true, true},
	{label.SidecarInject.Name, true, true, false, false},
	{label.IoIstioRev.Name, false, true, false, false}, // injection itself notes the revision in an annotation of the pod
}

// NamespaceLookalikes are the keys of labels and of annotations of a namespace that people write in the belief that they say something
// about injection, and that do not.
func NamespaceLookalikes() (labels, annotations []string) {
	for _, l := range lookalikes {
		if l.namespaceLabel {
			labels = append(labels, l.key)
		}
		if l.namespaceAnnotation {
			annotations = append(annotations, l.key)
		}
	}
	return labels, annotations
}

// PodLookalikes are those of a pod.
func PodLookalikes() (labels, annotations []string) {
	for _, l := range lookalikes {
		if l.podLabel {
			labels = append(labels, l.key)
		}
		if l.podAnnotation {
			annotations = append(annotations, l.key)
		}
	}
	return labels, annotations
}

// labelProblems are what is wrong with the labels of a namespace and a pod, in a fixed order.
func (a *Admission) labelProblems(ns *corev1.Namespace, pod *corev1.Pod) (out []diag.Problem) {
	out = append(out, a.NamespaceProblems(ns)...)
	subject := subjectOf(pod)
	instead := "label " + label.SidecarInject.Name + ": \"true\" or \"false\""
	for _, l := range lookalikes {
		if v, has := pod.Labels[l.key]; has && l.podLabel {
			out = append(out, mislabelled(subject, "labels", l.key, v, instead))
		}
		if v, has := pod.Annotations[l.key]; has && l.podAnnotation {
			out = append(out, mislabelled(subject, "annotations", l.key, v, instead))
		}
	}
	rev, hasRev := pod.Labels[label.IoIstioRev.Name]
	for _, key := range []string{NamespaceInjection, label.IoIstioRev.Name} {
		v, has := ns.Labels[key]
		if !has || !hasRev || key == label.IoIstioRev.Name && v == rev || injected(pod) {
			continue
		}
		out = append(out, problemOf(diag.InjectionLabel, diag.Warning, subject, "metadata.labels["+label.IoIstioRev.Name+"]",
			fmt.Sprintf("it is %q and has no effect: label %s=%s of namespace %s decides before it", rev, key, v, ns.Name),
			"take one of the two labels away"))
		break
	}
	if asked := askedBy(pod); asked.value != "" && asked.value != "true" && asked.value != "false" {
		out = append(out, problemOf(diag.InjectionLabel, diag.Warning, subject, "metadata."+strings.Fields(asked.where)[0]+"s["+label.SidecarInject.Name+"]",
			fmt.Sprintf("it is %q, which is neither \"true\" nor \"false\" and counts as not said", asked.value), "write \"true\" or \"false\""))
	}
	return out
}

// NamespaceProblems are what is wrong with a namespace's labels about injection: the two kinds together, one that no installed
// revision or tag answers, one that only looks like a label of injection.
func (a *Admission) NamespaceProblems(ns *corev1.Namespace) (out []diag.Problem) {
	subject := ref.Ref{Kind: "Namespace", Name: ns.Name, Generation: ns.Generation}
	for _, l := range lookalikes {
		instead := "label " + NamespaceInjection + "=enabled"
		if l.key == label.IoIstioRev.Name {
			instead = "a label of this name"
		}
		if v, has := ns.Labels[l.key]; has && l.namespaceLabel {
			out = append(out, mislabelled(subject, "labels", l.key, v, instead))
		}
		if v, has := ns.Annotations[l.key]; has && l.namespaceAnnotation {
			out = append(out, mislabelled(subject, "annotations", l.key, v, instead))
		}
	}
	injection, hasInjection := ns.Labels[NamespaceInjection]
	rev, hasRev := ns.Labels[label.IoIstioRev.Name]
	if hasInjection && hasRev {
		out = append(out, problemOf(diag.MultipleInjectionLabels, diag.Warning, subject, "metadata.labels",
			fmt.Sprintf("%s=%s and %s=%s: the first decides, the second has no effect", NamespaceInjection, injection, label.IoIstioRev.Name, rev),
			"kubectl label namespace "+ns.Name+" "+NamespaceInjection+"-  (or "+label.IoIstioRev.Name+"-)"))
	}
	if hasInjection && injection != "enabled" && injection != "disabled" {
		out = append(out, problemOf(diag.InjectionLabel, diag.Warning, subject, "metadata.labels["+NamespaceInjection+"]",
			fmt.Sprintf("it is %q, which is not \"enabled\" and counts as \"disabled\"", injection), "write enabled or disabled"))
	}
	if injection == "enabled" && len(a.answers[DefaultRevision]) == 0 {
		out = append(out, problemOf(diag.InjectionLabel, diag.Error, subject, "metadata.labels["+NamespaceInjection+"]",
			"it is \"enabled\", and there is neither a revision \"default\" nor a tag of that name",
			"name a revision by "+label.IoIstioRev.Name+" (there is "+a.installed()+"), or make one the default: selvage install --revision REV --set-default"))
	}
	if hasRev && !hasInjection && len(a.answers[rev]) == 0 {
		out = append(out, problemOf(diag.InjectionLabel, diag.Error, subject, "metadata.labels["+label.IoIstioRev.Name+"]",
			fmt.Sprintf("it is %q, and no revision or tag of that name is installed", rev), "use one that is: "+a.installed()))
	}
	return out
}

// mislabelled is the problem of a key that looks like one of injection's. list is labels or annotations.
func mislabelled(subject ref.Ref, list, key, value, instead string) diag.Problem {
	return problemOf(diag.InjectionLabel, diag.Warning, subject, "metadata."+list+"["+key+"]",
		fmt.Sprintf("it is %q and has no effect: injection knows no such %s here", value, strings.TrimSuffix(list, "s")),
		"if it is meant to decide about sidecars, use "+instead)
}

// callProblems are what is wrong with the webhooks that would be called.
func callProblems(called []*hook, pod *corev1.Pod) (out []diag.Problem) {
	if len(called) > 1 {
		names := make([]string, len(called))
		for i, h := range called {
			names[i] = h.String()
		}
		out = append(out, problemOf(diag.RivalWebhooks, diag.Warning, subjectOf(pod), "",
			"several webhooks inject it: "+strings.Join(names, ", ")+"; the first gives it its sidecar", "remove the configuration of the mesh that should not inject it"))
	}
	for _, h := range called {
		if len(h.foreign) > 0 {
			out = append(out, problemOf(diag.RivalWebhooks, diag.Info, subjectOf(pod), "",
				"webhook "+h.String()+" has conditions that are taken to hold here: "+strings.Join(h.foreign, ", "), ""))
		}
	}
	return out
}

func problemOf(code diag.Code, severity diag.Severity, object ref.Ref, field, detail, hint string) diag.Problem {
	return diag.Problem{Code: code, Severity: severity, Object: object, Field: field, Detail: detail, Hint: hint}
}
