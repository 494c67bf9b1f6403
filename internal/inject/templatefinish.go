package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

func (t *templating) annotate(name, value string) {
	if t.out.Annotations == nil {
		t.out.Annotations = map[string]string{}
	}
	t.out.Annotations[name] = value
}

// finish does what no template can: it sees the pod as the templates have made it, whose annotations they may have changed.
func (t *templating) finish() error {
	c := t.config
	if t.out.Labels == nil {
		t.out.Labels = map[string]string{}
	}
	after, _, _ := c.settingsOf(t.out, t.subject) // what cannot be used was refused before, or does not concern this agent
	proxy := sidecarOf(t.out)
	if proxy != nil && !t.forAgent() { // .Sidecar.Proxy.Env has ours
		t.cluster(proxy)
	}
	if err := t.metrics(&after); err != nil {
		return notScrapable(t.subject, err)
	}
	t.probes(proxy, &after)
	if network := c.networkOf(t.pod); network != "" {
		t.out.Labels[label.TopologyNetwork.Name] = network
	}
	key, value := t.status.annotation()
	t.annotate(key, value)
	for name, value := range c.settings.Injector.InjectedAnnotations {
		if _, has := t.pod.Annotations[name]; !has {
			t.annotate(name, value)
		}
	}
	t.order(after.hold)
	return nil
}

// cluster sets the cluster and the network that the webhook's path names, where the template has another or none.
func (t *templating) cluster(proxy *corev1.Container) {
	set := func(name, value string) {
		if value == "" {
			return
		}
		for i := range proxy.Env {
			if proxy.Env[i].Name == name {
				proxy.Env[i].Value, proxy.Env[i].ValueFrom = value, nil
				return
			}
		}
		proxy.Env = append(proxy.Env, corev1.EnvVar{Name: name, Value: value})
	}
	set("ISTIO_META_CLUSTER_ID", t.config.clusterID)
	set("ISTIO_META_NETWORK", t.config.networkOf(t.pod))
}

// probes sends the kubelet's probes to the agent, by the port of the pod's annotation if there is one.
func (t *templating) probes(proxy *corev1.Container, s *podSettings) {
	port := t.config.probePort(t.out)
	if t.forAgent() {
		port = int(s.probePort())
	}
	if proxy == nil || !s.rewriteProbes || s.readiness.off || port == 0 {
		return
	}
	probers := map[string]*corev1.Probe{}
	r := probeRewrite{port: int32(port), probers: probers, subject: t.subject}
	native := containerIn(t.out.Spec.InitContainers, ProxyContainer) != nil
	t.out.Spec.InitContainers = r.containers(t.out.Spec.InitContainers, native)
	t.out.Spec.Containers = r.containers(t.out.Spec.Containers, native || s.hold)
	t.warnings = append(t.warnings, r.left...)
	if earlier := sidecarOf(t.pod); t.before != nil && earlier != nil {
		addKnown(probers, earlier.Env) // also where that container is not taken over
	}
	if len(probers) == 0 {
		return
	}
	if port != agentPort {
		t.askAt(port)
	}
	proxy = sidecarOf(t.out)
	at := slices.IndexFunc(proxy.Env, func(e corev1.EnvVar) bool { return e.Name == probersEnv })
	if at < 0 {
		proxy.Env = append(proxy.Env, corev1.EnvVar{Name: probersEnv, Value: literal(probersJSON(probers))})
		return
	}
	addKnown(probers, proxy.Env)
	proxy.Env[at].Value = literal(probersJSON(probers))
}

// addKnown adds what a sidecar has been told to ask.
func addKnown(probers map[string]*corev1.Probe, env []corev1.EnvVar) {
	for i := range env {
		var known map[string]*corev1.Probe
		if env[i].Name == probersEnv && json.Unmarshal([]byte(fromLiteral(env[i].Value)), &known) == nil {
			maps.Copy(probers, known)
		}
	}
}

// askAt changes the port of the probes and hooks that go to the agent.
func (t *templating) askAt(port int) {
	at := func(get *corev1.HTTPGetAction, path string) *corev1.HTTPGetAction { // nil for one that stays
		if get == nil || get.Path != path || get.Port.IntValue() == port {
			return nil
		}
		changed := *get
		changed.Port = intstr.FromInt32(int32(port))
		return &changed
	}
	for _, list := range []*[]corev1.Container{&t.out.Spec.InitContainers, &t.out.Spec.Containers} {
		*list = slices.Clone(*list)
		for i := range *list {
			c := &(*list)[i]
			for _, kind := range probeKinds {
				if probe := *kind.of(c); probe != nil {
					if get := at(probe.HTTPGet, appHealth+c.Name+"/"+kind.path); get != nil {
						changed := *probe
						changed.HTTPGet = get
						*kind.of(c) = &changed
					}
				}
			}
			for _, kind := range hookKinds {
				if c.Lifecycle == nil {
					break
				}
				if hook := *kind.of(c.Lifecycle); hook != nil {
					if get := at(hook.HTTPGet, appLifecycle+c.Name+"/"+kind.path); get != nil {
						changed := *c.Lifecycle
						*kind.of(&changed) = &corev1.LifecycleHandler{HTTPGet: get}
						c.Lifecycle = &changed
					}
				}
			}
		}
	}
}

// order puts the mesh's containers where they belong: see place.
func (t *templating) order(hold bool) {
	spec := &t.out.Spec
	move := func(name string, begin bool) {
		if !t.forAgent() || slices.Contains(t.status.InitContainers, name) { // ours adds one or the other: what else has such a name is a user's
			spec.InitContainers = moved(spec.InitContainers, name, begin)
		}
	}
	firstOf := func(name string) { move(name, true) }
	lastOf := func(name string) { move(name, false) }
	spec.Containers = moved(spec.Containers, ProxyContainer, hold)
	if containerIn(spec.InitContainers, ProxyContainer) != nil {
		for _, name := range []string{coreDumpContainer, ProxyContainer, validationContainer, InitContainer} {
			firstOf(name)
		}
		return
	}
	firstOf(validationContainer)
	lastOf(InitContainer)
	lastOf(coreDumpContainer)
}

// moved puts a container at the beginning of a list or at its end.
func moved(list []corev1.Container, name string, begin bool) []corev1.Container {
	at := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name })
	if at < 0 {
		return list
	}
	one := list[at]
	rest := slices.Delete(slices.Clone(list), at, at+1)
	if begin {
		return append([]corev1.Container{one}, rest...)
	}
	return append(rest, one)
}

// proxyConfigOf is the ProxyConfig of a pod: its annotation over the objects that concern it, those over the mesh's.
func (c *Config) proxyConfigOf(pod *corev1.Pod, subject ref.Ref) (*meshv1alpha1.ProxyConfig, error) {
	value, has := pod.Annotations[annotation.ProxyConfig.Name]
	base := c.overlaid(c.settings.Mesh.GetDefaultConfig(), pod)
	if !has {
		return base, nil
	}
	merged, unknown, err := parseProxyConfig(base, []byte(value))
	if err == nil && unknown != nil {
		err = fmt.Errorf("ProxyConfig has no field %s", strings.Join(unknown, ", "))
	}
	if err != nil {
		return nil, &RefusedError{Problems: []diag.Problem{invalidAnnotation(subject, annotation.ProxyConfig.Name, value, err)}}
	}
	return merged, nil
}
