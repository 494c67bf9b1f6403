package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"istio.io/api/annotation"
)

var plain = regexp.MustCompile(plainPattern)

// Left says what of a pod the policy leaves to the webhook, as a phrase that names the field; "" when the policy injects it. It decides as
// the policy does, which a test at a real API server holds it to, about a pod that is to have a sidecar and has none.
func (t *Template) Left(pod *corev1.Pod) string {
	names := make([]string, 0, len(pod.Annotations))
	for name := range pod.Annotations {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if why := leftAnnotation(name, pod.Annotations[name]); why != "" {
			return why
		}
	}
	for _, check := range []func(*corev1.Pod) string{t.leftNames, t.leftUsers, leftResources, t.leftMetrics, t.leftProbes} {
		if why := check(pod); why != "" {
			return why
		}
	}
	return ""
}

// leftNames are containers, volumes and ports that are the sidecar's.
func (t *Template) leftNames(pod *corev1.Pod) string {
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if slices.Contains(ourContainers, c.Name) {
			return "the pod changes the sidecar by a container " + c.Name + " of its own"
		}
	}
	for _, v := range pod.Spec.Volumes {
		if slices.ContainsFunc(t.Volumes, func(own corev1.Volume) bool { return own.Name == v.Name }) {
			return "volume " + v.Name + " has the name of one of the sidecar's"
		}
	}
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if slices.Contains(t.Busy, p.ContainerPort) {
				return fmt.Sprintf("container %s has port %d, which is the sidecar's", c.Name, p.ContainerPort)
			}
		}
	}
	return ""
}

// leftUsers are those of the sidecar, whose traffic is not captured.
func (t *Template) leftUsers(pod *corev1.Pod) string {
	var user, group *int64
	if sc := pod.Spec.SecurityContext; sc != nil {
		user, group = sc.RunAsUser, sc.RunAsGroup
	}
	for _, c := range pod.Spec.Containers {
		u, g := user, group
		if sc := c.SecurityContext; sc != nil {
			if sc.RunAsUser != nil {
				u = sc.RunAsUser
			}
			if sc.RunAsGroup != nil {
				g = sc.RunAsGroup
			}
		}
		if u != nil && *u == t.User || g != nil && *g == t.Group {
			return fmt.Sprintf("container %s runs as the sidecar's user %d or group %d", c.Name, t.User, t.Group)
		}
	}
	return ""
}

func leftResources(pod *corev1.Pod) string {
	for i := range 2 {
		request, limit := resourceAnnotations[i], resourceAnnotations[i+2]
		r, asked := pod.Annotations[request]
		l, limited := pod.Annotations[limit]
		if !asked || !limited {
			continue
		}
		asks, err1 := resource.ParseQuantity(r)
		most, err2 := resource.ParseQuantity(l)
		if err1 == nil && err2 == nil && asks.Cmp(most) > 0 {
			return "annotation " + request + " is above " + limit
		}
	}
	return ""
}

// leftMetrics is a port that is no application's.
func (t *Template) leftMetrics(pod *corev1.Pod) string {
	merge := t.Merge
	if value, has := pod.Annotations[annotation.PrometheusMergeMetrics.Name]; has {
		merge, _ = strconv.ParseBool(value)
	}
	if scrape, err := strconv.ParseBool(pod.Annotations[prometheusScrape]); err == nil && !scrape {
		merge = false
	}
	port := pod.Annotations[prometheusPort]
	if merge && port != strconv.Itoa(int(t.AgentPort)) && slices.Contains(t.Unscrapable, port) {
		return "annotation " + prometheusPort + "=" + strconv.Quote(port) + " is a port of the mesh's own"
	}
	return ""
}

// leftProbes are names, paths, hosts and ports that cannot be given to the agent as they are.
func (t *Template) leftProbes(pod *corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		texts := []string{c.Name}
		for _, p := range c.Ports {
			texts = append(texts, p.Name, p.HostIP)
		}
		if i := slices.IndexFunc(texts, func(s string) bool { return !plain.MatchString(s) }); i >= 0 {
			return fmt.Sprintf("container %s has a name or address with characters that the policy does not take: %q", c.Name, texts[i])
		}
	}
	if !t.rewrites(pod) {
		return ""
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if slices.Contains(ourContainers, c.Name) {
			continue
		}
		for _, h := range handlersOf(&c) {
			if why := leftHandler(&c, h); why != "" {
				return fmt.Sprintf("%s of container %s %s", h.field, c.Name, why)
			}
		}
	}
	return ""
}

func (t *Template) rewrites(pod *corev1.Pod) bool {
	if value, has := pod.Annotations[annotation.SidecarRewriteAppHTTPProbers.Name]; has {
		rewrite, _ := strconv.ParseBool(value)
		return rewrite
	}
	return t.Rewrite
}

// asked is a probe or a hook as the policy looks at it.
type asked struct {
	field, key string
	http       *corev1.HTTPGetAction
	tcp        *corev1.TCPSocketAction
	grpc       *corev1.GRPCAction
}

func handlersOf(c *corev1.Container) (out []asked) {
	probes := []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe}
	for i, p := range probes {
		if p != nil {
			out = append(out, asked{handlers[i].field, "/app-health/" + c.Name + "/" + handlers[i].path, p.HTTPGet, p.TCPSocket, p.GRPC})
		}
	}
	if c.Lifecycle == nil {
		return out
	}
	for i, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if h != nil {
			out = append(out, asked{handlers[3+i].field, "/app-lifecycle/" + c.Name + "/" + handlers[3+i].path, h.HTTPGet, h.TCPSocket, nil})
		}
	}
	return out
}

// strangeHost is an address that may be the pod's and may be another's.
var strangeHost = regexp.MustCompile("^127[.]|:")

func leftHandler(c *corev1.Container, h asked) string {
	var host string
	var port intstr.IntOrString
	texts := []string{h.key}
	switch {
	case h.http != nil:
		host, port = h.http.Host, h.http.Port
		texts = append(texts, h.http.Path, string(h.http.Scheme))
		for _, header := range h.http.HTTPHeaders {
			texts = append(texts, header.Name, header.Value)
		}
	case h.tcp != nil:
		host, port = h.tcp.Host, h.tcp.Port
	case h.grpc != nil:
		port = intstr.FromInt32(h.grpc.Port)
		if h.grpc.Service != nil {
			texts = append(texts, *h.grpc.Service)
		}
	default:
		return ""
	}
	loopback := slices.Contains([]string{"127.0.0.1", "::1"}, host)
	if !plain.MatchString(host) || strangeHost.MatchString(host) && !loopback {
		return "asks a host that the policy does not take: " + strconv.Quote(host)
	}
	if staysAsItIs(h) != "" {
		return ""
	}
	if i := slices.IndexFunc(texts, func(s string) bool { return !plain.MatchString(s) }); i >= 0 {
		return "has characters that the policy does not take: " + strconv.Quote(texts[i])
	}
	if n := portOf(c, port); n < 1 || n > 65535 {
		return "asks port " + port.String() + ", which is none and no name of one of the container's"
	}
	return ""
}

// staysAsItIs says why the kubelet asks itself, "" when the agent does it for it.
func staysAsItIs(h asked) string {
	host := ""
	switch {
	case h.http != nil:
		host = h.http.Host
	case h.tcp != nil:
		host = h.tcp.Host
	}
	switch {
	case h.http != nil && h.http.Path == h.key:
		return "it goes to the agent already"
	case host != "" && !strings.EqualFold(host, "localhost") && host != "127.0.0.1" && host != "::1":
		return "it asks another host"
	}
	return ""
}

func portOf(c *corev1.Container, port intstr.IntOrString) int {
	if port.Type == intstr.Int {
		return port.IntValue()
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return int(p.ContainerPort)
		}
	}
	if regexp.MustCompile("^" + portPattern + "$").MatchString(port.StrVal) {
		return port.IntValue()
	}
	return 0
}

// Effects say what of a pod's own the policy carries out, a phrase each: which annotation, which probe.
func (t *Template) Effects(pod *corev1.Pod) (out []string) {
	names := make([]string, 0, len(pod.Annotations))
	for name := range pod.Annotations {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		said := slices.ContainsFunc(acceptedAnnotations(), func(a accepted) bool { return a.pattern != "" && slices.Contains(a.names, name) })
		if said || slices.Contains([]string{prometheusScrape, prometheusPath, prometheusPort}, name) {
			out = append(out, fmt.Sprintf("annotation %s=%q is carried out", name, pod.Annotations[name]))
		}
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		for _, h := range handlersOf(&c) {
			if t.rewrites(pod) && (h.http != nil || h.tcp != nil || h.grpc != nil) && !slices.Contains(ourContainers, c.Name) && staysAsItIs(h) == "" {
				out = append(out, fmt.Sprintf("%s of container %s goes to the agent, port %d", h.field, c.Name, t.AgentPort))
			}
		}
	}
	return out
}
