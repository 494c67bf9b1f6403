package acceptance

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// sameForUsers compares what a user relies on: the containers, init containers and volumes there are; the application's containers,
// wholly; labels and annotations; the sidecar's probes, ports, resources and security context; what the interception captures. Images,
// the agent's own arguments, its variables and volumes are each mesh's own.
func sameForUsers(want, got *corev1.Pod) string {
	return strings.Join(differences("", generic(relied(want)), generic(relied(got))), "\n")
}

type reliedOn struct {
	Labels, Annotations map[string]string
	Inits, Containers   []string
	Apps                []any
	Volumes             []string
	Secrets             []corev1.LocalObjectReference
	PodSecurity         *corev1.PodSecurityContext
	Sidecar             *reliedSidecar
	Capture             map[string]string
}

type reliedSidecar struct {
	Ports              []corev1.ContainerPort
	Resources          corev1.ResourceRequirements
	Readiness, Startup *corev1.Probe
	Security           *corev1.SecurityContext
	Native             bool
	UserMounts         []string
}

// meshVolumes are volumes that a mesh adds for itself.
var meshVolumes = []string{"workload-socket", "credential-socket", "workload-certs", "istio-envoy", "istio-data", "istio-podinfo", "istio-token",
	"istiod-ca-cert", "istio-ca-crl", "istio-xds"}

func relied(pod *corev1.Pod) reliedOn {
	out := reliedOn{Labels: pod.Labels, Annotations: map[string]string{}, Secrets: pod.Spec.ImagePullSecrets, PodSecurity: pod.Spec.SecurityContext}
	for name, value := range pod.Annotations {
		if name != "sidecar.istio.io/status" {
			out.Annotations[name] = normalJSON(value)
		}
	}
	for _, v := range pod.Spec.Volumes {
		if !slices.Contains(meshVolumes, v.Name) {
			out.Volumes = append(out.Volumes, v.Name)
		}
	}
	normal(pod)
	for _, list := range []struct {
		names      *[]string
		containers []corev1.Container
	}{{&out.Inits, pod.Spec.InitContainers}, {&out.Containers, pod.Spec.Containers}} {
		for i := range list.containers {
			c := &list.containers[i]
			*list.names = append(*list.names, c.Name)
			switch c.Name {
			case "istio-proxy":
				out.Sidecar = sidecar(c)
			case "istio-init", "istio-validation":
				out.Capture = capture(c.Args)
			default:
				out.Apps = append(out.Apps, *c)
			}
		}
	}
	return out
}

func sidecar(c *corev1.Container) *reliedSidecar {
	s := &reliedSidecar{Ports: c.Ports, Resources: c.Resources, Readiness: c.ReadinessProbe, Startup: c.StartupProbe, Security: c.SecurityContext, Native: c.RestartPolicy != nil}
	if s.Security != nil {
		s.Security.SeccompProfile = nil // ours is set by default, as PodSecurity `restricted` wants it
	}
	for _, m := range c.VolumeMounts {
		if !slices.Contains(meshVolumes, m.Name) {
			s.UserMounts = append(s.UserMounts, m.Name+" "+m.MountPath)
		}
	}
	return s
}

// capture reads the arguments of the interception, in either mesh's words.
func capture(args []string) map[string]string {
	names := map[string]string{
		"-p": "outbound port", "--proxy-port": "outbound port", "-z": "inbound port", "--inbound-port": "inbound port",
		"-u": "user", "--proxy-uid": "user", "-b": "inbound ports", "--inbound-ports": "inbound ports",
		"-d": "excluded inbound ports", "--exclude-inbound-ports": "excluded inbound ports",
		"-i": "outbound ranges", "--outbound-ranges": "outbound ranges", "-x": "excluded outbound ranges", "--exclude-outbound-ranges": "excluded outbound ranges",
		"-o": "excluded outbound ports", "--exclude-outbound-ports": "excluded outbound ports", "-q": "outbound ports", "--include-outbound-ports": "outbound ports",
		"-k": "virtual interfaces", "--reroute-interfaces": "virtual interfaces", "-c": "excluded interfaces", "--exclude-interfaces": "excluded interfaces",
		"-m": "mode", "--interception-mode": "mode",
	}
	out := map[string]string{"mode": "REDIRECT"}
	for i := 0; i+1 < len(args); i++ {
		name := names[args[i]]
		if name == "" {
			continue
		}
		list := strings.Split(args[i+1], ",")
		slices.Sort(list)
		if value := strings.Join(slices.Compact(list), ","); value != "" {
			out[name] = value
		}
	}
	if len(out) == 1 {
		return map[string]string{"arguments": fmt.Sprint(args)}
	}
	return out
}
