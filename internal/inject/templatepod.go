package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"istio.io/api/annotation"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// validationContainer is Istio's init container that checks the interception which a CNI plugin has set up.
const validationContainer = "istio-validation"

// coreDumpContainer is an init container of older templates.
const coreDumpContainer = "enable-core-dump"

// byTemplates is the general path: the templates are executed for the pod and merged into it, then comes what no template can do.
// It does what Istio does, in its order. The error is a *RefusedError.
func (c *Config) byTemplates(pod *corev1.Pod, list []*podTemplate, w workload, subject ref.Ref) (*corev1.Pod, []diag.Problem, error) {
	t := templating{config: c, pod: pod, templates: list, subject: subject}
	var err error
	t.settings, t.warnings, err = c.settingsOf(pod, subject)
	if !t.forAgent() {
		t.warnings, err = nil, c.checkAnnotations(pod, subject) // the others are about our agent
	}
	if err != nil {
		return nil, t.warnings, err
	}
	if err := t.merge(w); err != nil {
		return nil, t.warnings, err
	}
	if t.before != nil && t.sameStatus() || injected(pod) && (t.before == nil || t.forAgent() && t.staysAsItIs()) {
		if sidecarOf(pod) == nil {
			return pod, t.warnings, nil
		}
		settings := t.settings
		if !t.forAgent() { // its port is where that agent's mesh has it
			settings.agentPort, settings.ownStatusPort = int32(c.probePort(pod)), false
		}
		out, late := c.lateProbes(pod, &settings, subject)
		return out, append(t.warnings, late...), nil
	}
	if err := t.finish(); err != nil {
		return nil, t.warnings, err
	}
	return t.out, t.warnings, nil
}

// templating is the injection of one pod by templates.
type templating struct {
	config    *Config
	pod       *corev1.Pod // as it came
	templates []*podTemplate
	subject   ref.Ref
	settings  podSettings
	warnings  []diag.Problem

	before  *statusJSON // of an earlier injection
	changes *overrides  // what the user wants otherwise in the templates' containers
	written bool        // some of that as containers of the pod
	status  statusJSON
	out     *corev1.Pod
}

// forAgent reports whether the containers are for our agent: then its rules for annotations hold.
func (t *templating) forAgent() bool {
	return slices.ContainsFunc(t.templates, func(p *podTemplate) bool { return p.agent })
}

// refused is the error for a template that does not work for this pod.
func (t *templating) refused(p *podTemplate, err error) error {
	return &RefusedError{Problems: []diag.Problem{{Code: diag.InvalidInjectConfig, Severity: diag.Error, Object: t.subject,
		Detail: fmt.Sprintf("template %q: %v", p.name, err),
		Hint:   "mend config.templates." + p.name + " in " + configMapRef(InjectorConfigMap, t.config.settings.Values).String()}}}
}

// merge executes the templates and merges them and the user's changes into the pod.
func (t *templating) merge(w workload) error {
	c, pod := t.config, t.pod
	t.before = statusOf(pod)
	var annotated *overrides
	if value, has := pod.Annotations[annotation.ProxyOverrides.Name]; has {
		var err error
		if annotated, err = parseOverrides(value); err != nil {
			return &RefusedError{Problems: []diag.Problem{invalidAnnotation(t.subject, annotation.ProxyOverrides.Name, value, err)}}
		}
	}
	pc, err := c.proxyConfigOf(pod, t.subject)
	if err != nil {
		return err
	}
	data := c.templateDataOf(t.visible(annotated), w, pc)
	if t.forAgent() {
		if data.Sidecar, err = c.sidecarDataOf(pod, &t.settings, w, t.subject); err != nil {
			return err
		}
		t.warnings = append(t.warnings, conflicts(pod, &t.settings, t.subject)...)
	}
	parts := make([]*output, len(t.templates))
	for i, p := range t.templates {
		if parts[i], err = p.execute(c, data); err != nil {
			return t.refused(p, err)
		}
	}
	last := t.templates[len(t.templates)-1]
	if err := t.count(parts); err != nil {
		return t.refused(last, err)
	}
	t.out = t.takeChanges(annotated)
	for i, gave := range parts {
		if t.out, err = mergedPod(t.out, gave); err != nil {
			return t.refused(t.templates[i], err)
		}
	}
	t.own()
	t.applyChanges(pc)
	return nil
}

// own makes what comes next free to change the result: it must not change the pod as it came.
func (t *templating) own() {
	meta, spec := &t.out.ObjectMeta, &t.out.Spec
	meta.Labels, meta.Annotations = with(meta.Labels, nil), with(meta.Annotations, nil)
	spec.Volumes, spec.ImagePullSecrets = slices.Clone(spec.Volumes), slices.Clone(spec.ImagePullSecrets)
	for _, list := range []*[]corev1.Container{&spec.Containers, &spec.InitContainers} {
		*list = slices.Clone(*list)
		for i := range *list {
			switch c := &(*list)[i]; c.Name {
			case ProxyContainer, InitContainer, validationContainer:
				*c = *c.DeepCopy()
			}
		}
	}
}

// visible is the pod as templates see it. A wish for a native sidecar that the cluster cannot fulfil is not shown.
func (t *templating) visible(annotated *overrides) *corev1.Pod {
	pod := strippedPod(t.pod, t.before, annotated)
	if t.config.nativeMissing && t.settings.native != nil && *t.settings.native {
		copied := *pod
		copied.Annotations = with(pod.Annotations, map[string]string{annotation.SidecarNativeSidecar.Name: "false"})
		pod = &copied
		t.warnings = append(t.warnings, diag.Problem{Code: diag.UnsupportedField, Severity: diag.Warning, Object: t.subject,
			Detail: "native sidecars need Kubernetes 1.29: the sidecar is an ordinary container"})
	}
	return pod
}

// count notes what the templates add. Volumes that the pod has count too, as in Istio.
func (t *templating) count(parts []*output) (err error) {
	t.status.Revision = t.config.Revision()
	for _, list := range []struct {
		name string
		into *[]string
	}{{"initContainers", &t.status.InitContainers}, {"containers", &t.status.Containers}, {"volumes", &t.status.Volumes}, {"imagePullSecrets", &t.status.ImagePullSecrets}} {
		if *list.into, err = namesOf(parts, list.name); err != nil {
			return err
		}
	}
	return nil
}

// statusOf reads the status that an earlier injection left; nil when there is none, or when nothing of what it lists is in the pod:
// the annotation comes along where a manifest is copied from a running pod and the containers are cut out.
func statusOf(pod *corev1.Pod) *statusJSON {
	value := pod.Annotations[annotation.SidecarStatus.Name]
	s := &statusJSON{}
	if value == "" || json.Unmarshal([]byte(value), s) != nil {
		return nil
	}
	there := func(list []corev1.Container, names []string) bool {
		return slices.ContainsFunc(list, func(c corev1.Container) bool { return slices.Contains(names, c.Name) })
	}
	if !there(pod.Spec.Containers, s.Containers) && !there(pod.Spec.InitContainers, s.InitContainers) {
		return nil
	}
	return s
}

// sameStatus reports whether an earlier injection added just what this one would: then the pod stays as it is.
func (t *templating) sameStatus() bool {
	b := t.before
	return t.sameContainers() &&
		slices.Equal(b.Volumes, t.status.Volumes) && slices.Equal(b.ImagePullSecrets, t.status.ImagePullSecrets) && b.Revision == t.status.Revision
}

// staysAsItIs is for a template of our agent: what outdated is on the typed path, the other way round.
func (t *templating) staysAsItIs() bool {
	return t.before.Revision != t.config.Revision() || t.sameContainers()
}

// sameContainers reports whether the containers are those of an earlier injection, and there.
func (t *templating) sameContainers() bool {
	b := t.before
	for _, name := range b.Containers {
		if containerIn(t.pod.Spec.Containers, name) == nil {
			return false
		}
	}
	for _, name := range b.InitContainers {
		if containerIn(t.pod.Spec.InitContainers, name) == nil {
			return false
		}
	}
	return slices.Equal(b.InitContainers, t.status.InitContainers) && slices.Equal(b.Containers, t.status.Containers)
}

// takeChanges takes out of the pod the containers that a template adds too: they are what the user wants otherwise. One that an
// earlier injection put into the same list stays: the template is merged over it.
func (t *templating) takeChanges(annotated *overrides) (rest *corev1.Pod) {
	var earlier statusJSON
	if t.before != nil {
		earlier = *t.before
	}
	changes := &overrides{}
	if annotated != nil {
		*changes = *annotated
	}
	take := func(list []corev1.Container, added, before []string, into *[]corev1.Container) (left []corev1.Container) {
		for i := range list {
			name := list[i].Name
			ours := slices.Contains(t.status.Containers, name) || slices.Contains(t.status.InitContainers, name)
			if !ours || slices.Contains(added, name) && slices.Contains(before, name) {
				left = append(left, list[i])
				continue
			}
			t.written = true
			if changes.of(name) == nil {
				*into = append((*into)[:len(*into):len(*into)], list[i])
			}
		}
		return left
	}
	copied := *t.pod
	copied.Spec.Containers = take(t.pod.Spec.Containers, t.status.Containers, earlier.Containers, &changes.Containers)
	copied.Spec.InitContainers = take(t.pod.Spec.InitContainers, t.status.InitContainers, earlier.InitContainers, &changes.InitContainers)
	if len(changes.Containers)+len(changes.InitContainers) > 0 {
		t.changes = changes
	}
	return &copied
}

// applyChanges lays what the user wrote over the templates' containers, and restores the order of the user's own.
func (t *templating) applyChanges(pc *meshv1alpha1.ProxyConfig) {
	for _, list := range []struct {
		now   *[]corev1.Container
		was   []corev1.Container
		added []string
	}{{&t.out.Spec.Containers, t.pod.Spec.Containers, t.status.Containers}, {&t.out.Spec.InitContainers, t.pod.Spec.InitContainers, t.status.InitContainers}} {
		for i := range *list.now {
			if slices.Contains(list.added, (*list.now)[i].Name) {
				(*list.now)[i] = t.changes.apply((*list.now)[i])
			}
			if t.forAgent() && (*list.now)[i].Name == ProxyContainer {
				(*list.now)[i] = t.settings.keepRoot((*list.now)[i])
			}
		}
		*list.now = inOrderOf(*list.now, list.was, func(c corev1.Container) string { return c.Name })
	}
	spec, was := &t.out.Spec, &t.pod.Spec
	spec.Volumes = inOrderOf(spec.Volumes, was.Volumes, func(v corev1.Volume) string { return v.Name })
	spec.ImagePullSecrets = inOrderOf(spec.ImagePullSecrets, was.ImagePullSecrets, func(r corev1.LocalObjectReference) string { return r.Name })
	if t.changes == nil {
		return
	}
	if t.before == nil && t.written {
		t.annotate(annotation.ProxyOverrides.Name, t.changes.annotationValue(t.status.InitContainers...))
	}
	t.useUser(pc)
}

// inOrderOf puts the entries first that was has, in its order: the strategic merge puts a template's first.
func inOrderOf[T any](list, was []T, name func(T) string) []T {
	place := make(map[string]int, len(was))
	for i := range was {
		place[name(was[i])] = i - len(was)
	}
	slices.SortStableFunc(list, func(a, b T) int { return place[name(a)] - place[name(b)] })
	return list
}

// useUser makes the interception leave the user alone that the pod's own istio-proxy runs as. With TPROXY it must be root.
func (t *templating) useUser(pc *meshv1alpha1.ProxyConfig) {
	users := t.changes.of(ProxyContainer)
	if users == nil || users.SecurityContext == nil || t.forAgent() {
		return
	}
	mode := first(t.out.Annotations[annotation.SidecarInterceptionMode.Name], pc.GetInterceptionMode().String())
	user, group := users.SecurityContext.RunAsUser, users.SecurityContext.RunAsGroup
	if mode == meshv1alpha1.ProxyConfig_TPROXY.String() && user != nil {
		if proxy := sidecarOf(t.out); proxy != nil && proxy.SecurityContext != nil {
			root := int64(0)
			proxy.SecurityContext = proxy.SecurityContext.DeepCopy() // it may be the user's own
			proxy.SecurityContext.RunAsUser = &root
		}
	}
	initial := containerIn(t.out.Spec.InitContainers, InitContainer)
	if initial == nil {
		if initial = containerIn(t.out.Spec.InitContainers, validationContainer); initial == nil {
			return
		}
		if mode != meshv1alpha1.ProxyConfig_TPROXY.String() {
			if initial.SecurityContext = initial.SecurityContext.DeepCopy(); initial.SecurityContext == nil {
				initial.SecurityContext = &corev1.SecurityContext{}
			}
			if user != nil {
				initial.SecurityContext.RunAsUser = user
			}
			if group != nil {
				initial.SecurityContext.RunAsGroup = group
			}
		}
	}
	if at := slices.Index(initial.Args, "-u"); user != nil && *user != 0 && at >= 0 && at+1 < len(initial.Args) {
		initial.Args = slices.Clone(initial.Args)
		initial.Args[at+1] = strconv.FormatInt(*user, 10)
	}
}

// sidecarOf is the container istio-proxy, nil when a template adds none.
func sidecarOf(pod *corev1.Pod) *corev1.Container {
	if proxy := containerIn(pod.Spec.Containers, ProxyContainer); proxy != nil {
		return proxy
	}
	return containerIn(pod.Spec.InitContainers, ProxyContainer)
}
