package inject

import (
	"cmp"
	"fmt"
	"maps"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
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
		out, late := c.lateProbes(pod, &settings, subject)
		return out, late, nil
	}
	written := pod
	pod, changes := takeOverrides(written, settings.overrides, InitContainer, ProxyContainer)
	warnings = append(warnings, changes.strangers(subject, InitContainer, ProxyContainer)...)
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
	probers := map[string]*corev1.Probe{}
	if settings.rewriteProbes && !settings.readiness.off {
		var left []diag.Problem
		out.Spec.InitContainers = rewriteProbes(pod.Spec.InitContainers, native, probers, &left, subject)
		out.Spec.Containers = rewriteProbes(pod.Spec.Containers, native || settings.hold, probers, &left, subject)
		warnings = append(warnings, left...)
	}
	name := first(pod.Labels[label.ServiceWorkloadName.Name], w.name)
	ports := podPorts(written.Spec.Containers) // also those that the user's part of the sidecar declares
	proxy := c.proxyContainer(&settings, c.env(pod, &settings, workload{w.apiVersion, w.kind, w.name}.named(name), ports, probersJSON(probers)), native)
	status := statusJSON{Revision: c.Revision()}
	c.place(&out, &status, changes.apply(c.initContainer(&settings)), changes.apply(proxy), settings.hold)
	c.addVolumes(&out, &status, settings.userVolumes, func(name string) {
		warnings = append(warnings, diag.Problem{Code: diag.InvalidField, Severity: diag.Warning, Object: subject, Field: "spec.volumes[" + name + "]",
			Detail: "the sidecar mounts the pod's own volume of this name instead of its own", Hint: "rename the pod's volume"})
	})
	c.addSecrets(&out, &status)
	out.Annotations = with(pod.Annotations, c.addedAnnotations(pod, &settings))
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

// place puts the two containers where they belong. A native sidecar starts before the user's init containers, which then have
// the mesh; a classic one starts after them, so the interception must be set up last, or they would have no network at all.
func (c *Config) place(out *corev1.Pod, status *statusJSON, initial, proxy corev1.Container, hold bool) {
	inits, apps := out.Spec.InitContainers, out.Spec.Containers
	if proxy.RestartPolicy != nil {
		out.Spec.InitContainers = append([]corev1.Container{initial, proxy}, inits...)
		status.InitContainers = []string{InitContainer, ProxyContainer}
		return
	}
	out.Spec.InitContainers = append(inits[:len(inits):len(inits)], initial)
	if hold {
		out.Spec.Containers = append([]corev1.Container{proxy}, apps...)
	} else {
		out.Spec.Containers = append(apps[:len(apps):len(apps)], proxy)
	}
	status.InitContainers, status.Containers = []string{InitContainer}, []string{ProxyContainer}
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
			switch port.ContainerPort {
			case outboundPort, inboundPort, agentPort, readinessPort, envoyPromPort, 15000, 15053:
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
