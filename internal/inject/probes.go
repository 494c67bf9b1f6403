package inject

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// The kubelet has no certificate of the mesh: with STRICT mTLS its probes would fail, and a TCP probe of a captured port always
// succeeds, because Envoy answers. So probes go to the agent, which asks the application in the kubelet's place.

// probersEnv tells the agent what to ask: a JSON object of path → the original probe, port names resolved.
const probersEnv = "ISTIO_KUBE_APP_PROBERS"

// appHealth and appLifecycle begin the paths that the agent answers on its port: /app-health/CONTAINER/{readyz,livez,startupz} and
// /app-lifecycle/CONTAINER/{poststartz,prestopz}.
const (
	appHealth    = "/app-health/"
	appLifecycle = "/app-lifecycle/"
)

// probeRewrite sends the probes of containers to the agent.
type probeRewrite struct {
	port    int32                    // of the agent
	probers map[string]*corev1.Probe // what the agent is to ask, by its path: containers adds to it
	subject ref.Ref
	left    []diag.Problem // a warning for each probe that could not be rewritten
}

// containers returns the containers with their probes sent to the agent. Containers and probes that stay are shared with the input.
// first says that the sidecar runs before the containers of the list do.
func (r *probeRewrite) containers(list []corev1.Container, first bool) []corev1.Container {
	var out []corev1.Container
	warn := func(c *corev1.Container, field, detail, hint string) {
		r.left = append(r.left, diag.Problem{Code: diag.InvalidField, Severity: diag.Warning, Object: r.subject,
			Field: fmt.Sprintf("spec.containers[%s].%s", c.Name, field), Detail: detail, Hint: hint})
	}
	changed := func(i int) *corev1.Container {
		if out == nil {
			out = append([]corev1.Container(nil), list...)
		}
		return &out[i]
	}
	for i := range list {
		original := &list[i]
		if isOurs(original.Name) {
			continue
		}
		for _, kind := range probeKinds {
			probe, path := *kind.of(original), appHealth+original.Name+"/"+kind.path
			if probe == nil || rewritten(probe, path) {
				continue
			}
			agents, asked, err := r.toAgent(probe, path, original.Ports)
			if err != nil {
				warn(original, kind.field, fmt.Sprintf("the probe stays as it is and may fail in the mesh: %v", err), "")
				continue
			}
			if agents == nil {
				continue
			}
			*kind.of(changed(i)) = agents
			r.probers[path] = asked
		}
		if original.Lifecycle == nil {
			continue
		}
		hooks := *original.Lifecycle
		for _, kind := range hookKinds {
			agents, asked, err := r.hookToAgent(*kind.of(&hooks), appLifecycle+original.Name+"/"+kind.path, original.Ports)
			switch {
			case err != nil:
				warn(original, kind.field, fmt.Sprintf("the hook stays as it is and may fail in the mesh: %v", err), "")
			case asked == nil:
			case kind.early && !first:
				warn(original, kind.field, "the hook is called before the sidecar runs: it fails, and with it the container", "use a native sidecar, or set holdApplicationUntilProxyStarts")
			default:
				*kind.of(&hooks) = agents
				copied := hooks
				changed(i).Lifecycle = &copied
				r.probers[agents.HTTPGet.Path] = asked
			}
		}
	}
	if out == nil {
		return list
	}
	return out
}

var probeKinds = []struct {
	path, field string
	of          func(*corev1.Container) **corev1.Probe
}{
	{"readyz", "readinessProbe", func(c *corev1.Container) **corev1.Probe { return &c.ReadinessProbe }},
	{"livez", "livenessProbe", func(c *corev1.Container) **corev1.Probe { return &c.LivenessProbe }},
	{"startupz", "startupProbe", func(c *corev1.Container) **corev1.Probe { return &c.StartupProbe }},
}

var hookKinds = []struct {
	path, field string
	early       bool // called right after the container's start
	of          func(*corev1.Lifecycle) **corev1.LifecycleHandler
}{
	{"poststartz", "lifecycle.postStart", true, func(l *corev1.Lifecycle) **corev1.LifecycleHandler { return &l.PostStart }},
	{"prestopz", "lifecycle.preStop", false, func(l *corev1.Lifecycle) **corev1.LifecycleHandler { return &l.PreStop }},
}

// hookToAgent is toAgent for a hook. A hook by tcpSocket fails by itself (the kubelet does not carry it out); through the agent it works.
func (r *probeRewrite) hookToAgent(h *corev1.LifecycleHandler, path string, ports []corev1.ContainerPort) (agents *corev1.LifecycleHandler, asked *corev1.Probe, err error) {
	if h == nil || h.HTTPGet == nil && h.TCPSocket == nil {
		return nil, nil, nil
	}
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: h.HTTPGet, TCPSocket: h.TCPSocket}}
	if rewritten(probe, path) {
		return nil, nil, nil
	}
	agent, asked, err := r.toAgent(probe, path, ports)
	if agent == nil {
		return nil, nil, err
	}
	return &corev1.LifecycleHandler{HTTPGet: agent.HTTPGet}, asked, nil
}

// rewritten reports whether the probe goes to the agent already: by its path, for an agent of a template may have another port.
func rewritten(p *corev1.Probe, path string) bool { return p.HTTPGet != nil && p.HTTPGet.Path == path }

// toAgent gives the probe that the kubelet shall run and the one that the agent shall. Both are nil for a probe that needs no
// rewriting: a command, or a request to another host.
func (r *probeRewrite) toAgent(p *corev1.Probe, path string, ports []corev1.ContainerPort) (agents, asked *corev1.Probe, err error) {
	asked = &corev1.Probe{TimeoutSeconds: p.TimeoutSeconds}
	scheme := corev1.URIScheme("")
	switch {
	case p.HTTPGet != nil:
		if !local(p.HTTPGet.Host) {
			return nil, nil, nil
		}
		get := *p.HTTPGet
		if get.Port, err = numbered(get.Port, ports); err != nil {
			return nil, nil, err
		}
		if get.Scheme != "" {
			scheme = corev1.URISchemeHTTP // between kubelet and agent
		}
		asked.HTTPGet = &get
	case p.TCPSocket != nil:
		if !local(p.TCPSocket.Host) {
			return nil, nil, nil
		}
		socket := *p.TCPSocket
		if socket.Port, err = numbered(socket.Port, ports); err != nil {
			return nil, nil, err
		}
		asked.TCPSocket = &socket
	case p.GRPC != nil:
		if _, err = numbered(intstr.FromInt32(p.GRPC.Port), nil); err != nil {
			return nil, nil, err
		}
		asked.GRPC = p.GRPC
	default:
		return nil, nil, nil
	}
	probe := *p
	probe.ProbeHandler = corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(r.port), Scheme: scheme}}
	return &probe, asked, nil
}

// local reports whether a probe's host is the pod: none, or a name for itself.
func local(host string) bool {
	if host == "" || strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// numbered resolves the name of a container's port. A number that is no port is an error: the API server refuses such a probe, and would
// not see it once the agent is to ask.
func numbered(port intstr.IntOrString, ports []corev1.ContainerPort) (intstr.IntOrString, error) {
	n := int(port.IntVal)
	if port.Type == intstr.String {
		for _, p := range ports {
			if p.Name == port.StrVal {
				return intstr.FromInt32(p.ContainerPort), nil
			}
		}
		var err error
		if n, err = strconv.Atoi(port.StrVal); err != nil { // a number in quotes, which the kubelet takes too
			return port, fmt.Errorf("the container has no port named %q: use the port's number", port.StrVal)
		}
	}
	if n < 1 || n > math.MaxUint16 {
		return port, fmt.Errorf("%s is no port from 1 to 65535", port.String())
	}
	return intstr.FromInt32(int32(n)), nil
}

// probersJSON is the value of probersEnv, "" for none. Paths are sorted.
func probersJSON(probers map[string]*corev1.Probe) string {
	if len(probers) == 0 {
		return ""
	}
	data, err := json.Marshal(probers)
	if err != nil {
		panic("encode probes: " + err.Error()) // strings and numbers only
	}
	return string(data)
}

// lateProbes rewrites the probes of containers that came into the pod after its sidecar, by another webhook. The pod itself is
// returned when there are none.
func (c *Config) lateProbes(pod *corev1.Pod, s *podSettings, subject ref.Ref) (*corev1.Pod, []diag.Problem) {
	if !s.rewriteProbes || s.readiness.off {
		return pod, nil
	}
	probers := map[string]*corev1.Probe{}
	r := probeRewrite{port: s.probePort(), probers: probers, subject: subject}
	native := proxyIn(pod.Spec.InitContainers) >= 0
	inits := r.containers(pod.Spec.InitContainers, native)
	apps := r.containers(pod.Spec.Containers, native || proxyIn(pod.Spec.Containers) == 0)
	left := r.left
	if len(probers) == 0 {
		return pod, left
	}
	out := *pod
	out.Spec.InitContainers = append([]corev1.Container(nil), inits...)
	out.Spec.Containers = append([]corev1.Container(nil), apps...)
	proxy := proxyIn(out.Spec.InitContainers)
	list := out.Spec.InitContainers
	if proxy < 0 {
		proxy, list = proxyIn(out.Spec.Containers), out.Spec.Containers
	}
	env := append([]corev1.EnvVar(nil), list[proxy].Env...)
	for i := range env {
		if env[i].Name == probersEnv {
			var known map[string]*corev1.Probe
			if err := json.Unmarshal([]byte(fromLiteral(env[i].Value)), &known); err != nil {
				return pod, left // not ours: leave it
			}
			for path, probe := range known {
				probers[path] = probe
			}
			env[i].Value = literal(probersJSON(probers))
			list[proxy].Env = env
			return &out, left
		}
	}
	list[proxy].Env = append(env, corev1.EnvVar{Name: probersEnv, Value: literal(probersJSON(probers))})
	return &out, left
}
