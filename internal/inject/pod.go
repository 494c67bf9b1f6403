package inject

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// Pod is the pod with its sidecar. It does not decide whether there should be one: that is Decide's. A pod that has its sidecar
// comes back as it is, except that probes of containers that another webhook added since are rewritten too. Warnings are for
// the person who applies the pod. The error is a *RefusedError: the pod cannot have a sidecar as it is written.
//
// The input is not changed; the output shares what did not change with it, so neither may be changed afterwards.
func Pod(pod *corev1.Pod, cfg *Config) (out *corev1.Pod, warnings []diag.Problem, err error) {
	return cfg.inject(pod, workloadOf(pod), subjectOf(pod))
}

// subjectOf is the pod as messages name it: a pod of a controller has only the beginning of its name yet.
func subjectOf(pod *corev1.Pod) ref.Ref {
	name := pod.Name
	if name == "" {
		name = pod.GenerateName + "*"
	}
	return ref.Ref{Kind: "Pod", Namespace: pod.Namespace, Name: name}
}

// inject is Pod for a pod whose workload is known: offline, the object that has the template.
func (c *Config) inject(pod *corev1.Pod, w workload, subject ref.Ref) (*corev1.Pod, []diag.Problem, error) {
	list, err := c.selectTemplates(pod, subject)
	if err != nil {
		_, warnings, more := c.settingsOf(pod, subject) // told together, so that all can be mended at once
		return nil, warnings, alsoRefused(err, more)
	}
	if list != nil {
		return c.byTemplates(pod, list, w, subject)
	}
	settings, warnings, err := c.settingsOf(pod, subject)
	if err != nil {
		return nil, warnings, err
	}
	if injected(pod) {
		if c.outdated(pod, &settings) {
			return c.byTemplates(pod, []*podTemplate{shipped()[sidecarTemplate]}, w, subject)
		}
		out, late := c.lateProbes(pod, &settings, subject)
		return out, late, nil
	}
	written, added := pod, c.added(&settings)
	pod, changes := takeOverrides(written, settings.overrides, added...)
	warnings = append(warnings, changes.strangers(subject, added...)...)
	if err := settings.useIDs(changes, subject); err != nil {
		return nil, warnings, err
	}
	native, note := c.useNative(&settings, pod)
	if note != "" {
		warnings = append(warnings, diag.Problem{Code: diag.UnsupportedField, Severity: diag.Warning, Object: subject, Detail: note})
	}
	if !native && (w.kind == "Job" || w.kind == "CronJob") {
		warnings = append(warnings, diag.Problem{Code: diag.InvalidField, Severity: diag.Warning, Object: subject,
			Detail: "the sidecar is an ordinary container and keeps running when the job's own container has ended, so the job does not complete by itself",
			Hint:   "use a native sidecar, or let the job end with a POST to http://localhost:15020/quitquitquit"})
	}
	warnings = append(warnings, conflicts(pod, &settings, subject)...)

	out := *pod
	probes := probeRewrite{port: settings.probePort(), probers: map[string]*corev1.Probe{}, subject: subject}
	if settings.rewriteProbes && !settings.readiness.off {
		out.Spec.InitContainers = probes.containers(pod.Spec.InitContainers, native)
		out.Spec.Containers = probes.containers(pod.Spec.Containers, native || settings.hold)
		warnings = append(warnings, probes.left...)
	}
	name := first(pod.Labels[label.ServiceWorkloadName.Name], w.name)
	ports := podPorts(written.Spec.Containers) // also those that the user's part of the sidecar declares
	proxy := c.proxyContainer(&settings, c.env(pod, &settings, workload{w.apiVersion, w.kind, w.name}.named(name), ports, probersJSON(probes.probers)), native)
	status := statusJSON{Revision: c.Revision()}
	place := placing{first: c.cni.enabled, hold: settings.hold}
	if c.initName(&settings) != "" {
		initial := changes.apply(c.initContainer(&settings))
		place.initial = &initial
	}
	place.put(&out, &status, settings.keepRoot(changes.apply(proxy)))
	c.addVolumes(&out, &status, settings.userVolumes, func(name string) {
		warnings = append(warnings, diag.Problem{Code: diag.InvalidField, Severity: diag.Warning, Object: subject, Field: "spec.volumes[" + name + "]",
			Detail: "the sidecar mounts the pod's own volume of this name instead of its own", Hint: "rename the pod's volume"})
	})
	c.addSecrets(&out, &status)
	out.Annotations = with(pod.Annotations, nil)
	settings.scrape.annotate(out.Annotations)
	maps.Copy(out.Annotations, c.addedAnnotations(pod, &settings))
	key, value := status.annotation()
	out.Annotations[key] = value
	if pod != written {
		out.Annotations[annotation.ProxyOverrides.Name] = changes.annotationValue(status.InitContainers...)
	}
	out.Labels = with(pod.Labels, c.addedLabels(pod, w))
	return &out, warnings, nil
}

// useNative decides between a native sidecar and a container beside the application's.
func (c *Config) useNative(s *podSettings, pod *corev1.Pod) (native bool, note string) {
	if len(pod.Spec.Containers) == 0 {
		return false, "" // a pod must have a container: the user's istio-proxy is the only one
	}
	want := c.native != nativeOff
	if s.native != nil {
		want = *s.native
	}
	if want && c.nativeMissing && (s.native != nil || c.native == nativeOn) {
		note = "native sidecars need Kubernetes 1.29: the sidecar is an ordinary container"
	}
	return want && !c.nativeMissing, note
}

// added are the containers that injection adds to a pod.
func (c *Config) added(s *podSettings) []string {
	if name := c.initName(s); name != "" {
		return []string{name, ProxyContainer}
	}
	return []string{ProxyContainer}
}

// outdated reports whether an earlier injection of this revision added other containers to a pod than this one would: the mesh has
// changed its way of interception since, or the sidecar's kind. Such a pod is injected anew; what the user wants changed in the sidecar
// stays. Another revision's pods are not touched: its control plane may be about to see the pod again.
func (c *Config) outdated(pod *corev1.Pod, s *podSettings) bool {
	before := statusOf(pod)
	if before == nil || before.Revision != c.Revision() {
		return false
	}
	now, apps, rest := c.added(s), 0, *pod
	rest.Spec.Containers = without(pod.Spec.Containers, []string{ProxyContainer})
	if native, _ := c.useNative(s, &rest); !native {
		now, apps = now[:len(now)-1], 1
	}
	return !slices.Equal(before.InitContainers, now) || len(before.Containers) != apps || apps == 1 && before.Containers[0] != ProxyContainer
}

// keepRoot keeps the sidecar root where it must be, whatever the user wrote.
func (s *podSettings) keepRoot(proxy corev1.Container) corev1.Container {
	if s.mode != meshv1alpha1.ProxyConfig_TPROXY {
		return proxy
	}
	root, no, copied := int64(0), false, *proxy.SecurityContext
	copied.RunAsUser, copied.RunAsNonRoot = &root, &no
	proxy.SecurityContext = &copied
	return proxy
}

// placing is where the containers belong. A native sidecar starts before the user's init containers, which then have the mesh; a
// classic one starts after them, so the interception must be set up last, or they would have no network at all. What a plugin has set
// up is there before all of them, and checked first.
type placing struct {
	initial *corev1.Container // nil for none
	first   bool
	hold    bool
}

func (p placing) put(out *corev1.Pod, status *statusJSON, proxy corev1.Container) {
	inits, apps := out.Spec.InitContainers, out.Spec.Containers
	var ours []corev1.Container
	if p.initial != nil {
		ours = append(ours, *p.initial)
		status.InitContainers = append(status.InitContainers, p.initial.Name)
	}
	native := proxy.RestartPolicy != nil
	if native {
		ours = append(ours, proxy)
		status.InitContainers = append(status.InitContainers, ProxyContainer)
	} else {
		status.Containers = []string{ProxyContainer}
	}
	switch {
	case len(ours) == 0:
	case native || p.first:
		out.Spec.InitContainers = append(ours, inits...)
	default:
		out.Spec.InitContainers = append(inits[:len(inits):len(inits)], ours...)
	}
	switch {
	case native:
	case p.hold:
		out.Spec.Containers = append([]corev1.Container{proxy}, apps...)
	default:
		out.Spec.Containers = append(apps[:len(apps):len(apps)], proxy)
	}
}

// addVolumes adds the sidecar's volumes. One of the pod's own of the same name is kept, and said.
func (c *Config) addVolumes(out *corev1.Pod, status *statusJSON, user []corev1.Volume, kept func(string)) {
	have := make(map[string]bool, len(out.Spec.Volumes))
	for i := range out.Spec.Volumes {
		have[out.Spec.Volumes[i].Name] = true
	}
	own := out.Spec.Volumes
	out.Spec.Volumes = make([]corev1.Volume, len(own), len(own)+len(c.volumes)+len(user))
	copy(out.Spec.Volumes, own)
	for _, list := range [][]corev1.Volume{c.volumes, user} {
		for i := range list {
			if have[list[i].Name] {
				kept(list[i].Name)
				continue
			}
			have[list[i].Name] = true
			out.Spec.Volumes = append(out.Spec.Volumes, list[i])
			status.Volumes = append(status.Volumes, list[i].Name)
		}
	}
}

func (c *Config) addSecrets(out *corev1.Pod, status *statusJSON) {
	own := out.Spec.ImagePullSecrets
	out.Spec.ImagePullSecrets = own[:len(own):len(own)]
next:
	for _, s := range c.secrets {
		for _, has := range out.Spec.ImagePullSecrets {
			if has == s {
				continue next
			}
		}
		out.Spec.ImagePullSecrets = append(out.Spec.ImagePullSecrets, s)
		status.ImagePullSecrets = append(status.ImagePullSecrets, s.Name)
	}
}

// addedLabels are those that injection sets. A user's own value stays, also tlsMode: "disabled".
func (c *Config) addedLabels(pod *corev1.Pod, w workload) map[string]string {
	name, revision := canonical(pod.Labels, w)
	add := map[string]string{}
	for key, value := range map[string]string{
		label.SecurityTlsMode.Name:          "istio",
		label.ServiceCanonicalName.Name:     name,
		label.ServiceCanonicalRevision.Name: revision,
		label.TopologyNetwork.Name:          c.network,
	} {
		if pod.Labels[key] == "" && value != "" {
			add[key] = value
		}
	}
	return add
}

// with is a copy of m with more in it.
func with(m, more map[string]string) map[string]string {
	out := make(map[string]string, len(m)+len(more)+1)
	maps.Copy(out, m)
	maps.Copy(out, more)
	return out
}

// conflicts are what keeps a sidecar from working and injection cannot change.
func conflicts(pod *corev1.Pod, s *podSettings, subject ref.Ref) (out []diag.Problem) {
	warn := func(app *corev1.Container, field, detail, hint string) {
		out = append(out, diag.Problem{Code: diag.InvalidField, Severity: diag.Warning, Object: subject,
			Field: "spec.containers[" + app.Name + "]." + field, Detail: detail, Hint: hint})
	}
	var podUser, podGroup *int64
	if sc := pod.Spec.SecurityContext; sc != nil {
		podUser, podGroup = sc.RunAsUser, sc.RunAsGroup
	}
	for i := range pod.Spec.Containers {
		app := &pod.Spec.Containers[i]
		user, group := podUser, podGroup
		if sc := app.SecurityContext; sc != nil {
			user, group = cmp.Or(sc.RunAsUser, user), cmp.Or(sc.RunAsGroup, group)
		}
		switch {
		case user != nil && *user == s.uid:
			warn(app, "securityContext.runAsUser", fmt.Sprintf("%d is the sidecar's user: what this container sends bypasses the mesh", s.uid), "run it as another user")
		case group != nil && *group == s.gid:
			warn(app, "securityContext.runAsGroup", fmt.Sprintf("%d is the sidecar's group: what this container sends bypasses the mesh", s.gid), "run it as another group")
		}
		for _, port := range app.Ports {
			if p := port.ContainerPort; isMeshPort(p) || p == s.agentPort || p == s.statusPort && p != 0 {
				warn(app, "ports", fmt.Sprintf("port %d is the sidecar's: one of the two cannot listen", port.ContainerPort), "let the container listen on another port")
			}
		}
	}
	if scc := pod.Annotations[openshiftSCC]; strings.HasPrefix(scc, "restricted") || strings.HasPrefix(scc, "nonroot") {
		out = append(out, diag.Problem{Code: diag.InvalidField, Severity: diag.Warning, Object: subject, Field: "metadata.annotations[" + openshiftSCC + "]",
			Detail: fmt.Sprintf("OpenShift's security context constraint %s does not allow the sidecar's user %d and istio-init's capability NET_ADMIN: the pod may be refused", scc, s.uid),
			Hint:   "give the pod's service account a constraint that allows both, such as privileged"})
	}
	return out
}

// openshiftSCC is where OpenShift writes which constraint admitted the pod.
const openshiftSCC = "openshift.io/scc"
