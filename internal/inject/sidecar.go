package inject

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// proxyMounts are what the agent reads and writes, and where.
var proxyMounts = []corev1.VolumeMount{
	{Name: "workload-socket", MountPath: "/var/run/secrets/workload-spiffe-uds"}, // SDS, for Envoy
	{Name: "istiod-ca-cert", MountPath: "/var/run/secrets/istio"},                // root-cert.pem of the mesh
	{Name: "istio-envoy", MountPath: "/etc/istio/proxy"},                         // bootstrap and the socket to the agent
	{Name: "istio-token", MountPath: "/var/run/secrets/tokens"},
	{Name: "istio-podinfo", MountPath: "/etc/istio/pod"},
}

// proxyVolumes are the volumes of proxyMounts. The pod's fsGroup is left alone: without one, the kubelet writes a projected
// token with the volume's default mode 0644 unless all containers run as the same user, which istio-init (user 0) and
// istio-proxy (1337) never do; with a user's fsGroup it writes 0640 for that group, which it also gives to every container.
// Setting fsGroup, as Istio once did, would change the owner of the application's own volumes.
func proxyVolumes() []corev1.Volume {
	seconds := int64(43200)
	item := func(path, of string) corev1.DownwardAPIVolumeFile {
		return corev1.DownwardAPIVolumeFile{Path: path, FieldRef: &corev1.ObjectFieldSelector{FieldPath: of}}
	}
	return []corev1.Volume{
		{Name: "workload-socket", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "istio-envoy", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "istio-podinfo", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{item("labels", "metadata.labels"), item("annotations", "metadata.annotations")},
		}}},
		{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: "istio-ca", ExpirationSeconds: &seconds, Path: "istio-token",
			}}},
		}}},
		{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "istio-ca-root-cert"},
		}}},
	}
}

// proxyContainer is the sidecar; native says that it is an init container that keeps running.
func (c *Config) proxyContainer(s *podSettings, env []corev1.EnvVar, native bool) corev1.Container {
	out := corev1.Container{
		Name:            ProxyContainer,
		Image:           s.image,
		ImagePullPolicy: c.podPolicy,
		Args:            proxyArgs(s),
		Ports:           []corev1.ContainerPort{{Name: "http-envoy-prom", ContainerPort: envoyPromPort, Protocol: corev1.ProtocolTCP}},
		Env:             env,
		Resources:       s.resources,
		VolumeMounts:    append(proxyMounts[:len(proxyMounts):len(proxyMounts)], s.userMounts...),
		SecurityContext: c.proxySecurity(s),
	}
	if native {
		always := corev1.ContainerRestartPolicyAlways
		out.RestartPolicy = &always
		// The kubelet calls this when the pod's end begins, while the application still runs: callers are asked to leave then, and
		// the sidecar need not wait for them again when its own turn comes, after the application's.
		out.Lifecycle = &corev1.Lifecycle{PreStop: s.drainHook()}
	} else if s.hold {
		// The kubelet starts containers in order and waits for a postStart hook, which is what holds the application.
		out.Lifecycle = &corev1.Lifecycle{PostStart: waitHook}
	}
	if !s.readiness.off {
		c.addReadiness(&out, s)
	}
	return out
}

// proxysUser is the proxy's user with what PodSecurity `restricted` wants.
func (c *Config) proxysUser(s *podSettings) *corev1.SecurityContext {
	uid, gid, yes := s.uid, s.gid, true
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: &c.privileged,
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		Privileged:               &c.privileged,
		ReadOnlyRootFilesystem:   &yes,
		RunAsGroup:               &gid,
		RunAsNonRoot:             &yes,
		RunAsUser:                &uid,
		SeccompProfile:           c.seccomp,
	}
}

// proxySecurity is the proxy's user, but with TPROXY: then Envoy binds other hosts' addresses, which takes NET_ADMIN. An ordinary user
// would not keep it, so it is root, and the interception knows it by its group.
func (c *Config) proxySecurity(s *podSettings) *corev1.SecurityContext {
	out := c.proxysUser(s)
	if s.mode == meshv1alpha1.ProxyConfig_TPROXY {
		root, no := int64(0), false
		out.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
		out.RunAsUser, out.RunAsNonRoot = &root, &no
	}
	return out
}

// The hooks of the sidecar itself, shared by all pods.
var usualDrainHook, waitHook = agentHook("drain"), agentHook("wait")

// agentHook calls a command of the agent inside the sidecar's container.
func agentHook(command ...string) *corev1.LifecycleHandler {
	return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: append([]string{"/usr/local/bin/selvage-agent"}, command...)}}
}

func (s *podSettings) drainHook() *corev1.LifecycleHandler {
	if s.agentPort == agentPort {
		return usualDrainHook
	}
	return agentHook("drain", "--agent-port="+strconv.Itoa(int(s.agentPort)))
}

func proxyArgs(s *podSettings) []string {
	args := []string{"proxy", "sidecar"}
	if s.proxyLogLevel != "" {
		args = append(args, "--proxyLogLevel="+s.proxyLogLevel)
	}
	if s.componentLevels != "" {
		args = append(args, "--proxyComponentLogLevel="+s.componentLevels)
	}
	if s.agentLogLevel != "" {
		args = append(args, "--log_output_level="+s.agentLogLevel)
	}
	if s.agentPort != agentPort {
		args = append(args, "--agent-port="+strconv.Itoa(int(s.agentPort)))
	}
	if port := s.answersAlso(); port != 0 {
		args = append(args, "--status-port="+strconv.Itoa(int(port)))
	}
	return args
}

// addReadiness adds the probes. The startup probe asks every second: as a native sidecar it is what the application waits for,
// and in any case the pod is ready that much sooner than by a readiness probe of 15 s.
func (c *Config) addReadiness(to *corev1.Container, s *podSettings) {
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(readinessPort)}}
	to.ReadinessProbe = &corev1.Probe{
		ProbeHandler:        ready,
		InitialDelaySeconds: s.readiness.initialDelay,
		PeriodSeconds:       s.readiness.period,
		TimeoutSeconds:      3,
		FailureThreshold:    s.readiness.failureThreshold,
	}
	if startup := c.settings.Values.Global.Proxy.StartupProbe; startup.Enabled {
		to.StartupProbe = &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: startup.FailureThreshold}
	}
}

// env is what the agent reads. Nothing is here that it does not.
func (c *Config) env(pod *corev1.Pod, s *podSettings, w workload, ports, probers string) []corev1.EnvVar {
	env := append(make([]corev1.EnvVar, 0, 24), // with what a pod may add, without growing
		ofPod...)
	env = append(env, []corev1.EnvVar{
		{Name: "PROXY_CONFIG", Value: literal(s.proxyEnv)},
		{Name: "CA_ADDR", Value: first(c.settings.Values.Global.CAAddress, s.proxy.GetDiscoveryAddress())},
		{Name: "TRUST_DOMAIN", Value: c.TrustDomain()},
		{Name: "ISTIO_META_CLUSTER_ID", Value: c.clusterID},
		nodeName,
		{Name: "ISTIO_META_WORKLOAD_NAME", Value: w.name},
		{Name: "ISTIO_META_OWNER", Value: w.uri(pod.Namespace)},
		{Name: "ISTIO_META_MESH_ID", Value: literal(first(s.proxy.GetMeshId(), c.settings.Values.Global.MeshID, c.TrustDomain()))},
		{Name: "ISTIO_META_INTERCEPTION_MODE", Value: s.mode.String()},
		{Name: "ISTIO_META_APP_CONTAINERS", Value: containerNames(pod.Spec.Containers)},
		{Name: "ISTIO_META_POD_PORTS", Value: ports},
	}...)
	for _, limit := range []struct {
		resource corev1.ResourceName
		variable string
		source   *corev1.EnvVarSource
	}{{corev1.ResourceCPU, "ISTIO_CPU_LIMIT", cpuLimit}, {corev1.ResourceMemory, "GOMEMLIMIT", memoryLimit}} {
		if _, limited := s.resources.Limits[limit.resource]; limited { // without one the kubelet would give the node's
			env = append(env, corev1.EnvVar{Name: limit.variable, ValueFrom: limit.source})
		}
	}
	if network := first(pod.Labels[label.TopologyNetwork.Name], c.network); network != "" {
		env = append(env, corev1.EnvVar{Name: "ISTIO_META_NETWORK", Value: network})
	}
	if s.bootstrap != "" {
		env = append(env, corev1.EnvVar{Name: "ISTIO_BOOTSTRAP_OVERRIDE", Value: bootstrapFolder + "/" + bootstrapKey})
	}
	if probers != "" {
		env = append(env, corev1.EnvVar{Name: probersEnv, Value: literal(probers)})
	}
	if app := s.scrape.told(); app != "" {
		env = append(env, corev1.EnvVar{Name: scrapeEnv, Value: literal(app)})
	}
	for _, user := range s.metadata { // proxyMetadata: the user's win
		if i := slices.IndexFunc(env, func(e corev1.EnvVar) bool { return e.Name == user.Name }); i >= 0 {
			env[i] = user
		} else {
			env = append(env, user)
		}
	}
	return env
}

// The limits of the sidecar's own container, by which Envoy gets its threads and the agent keeps its memory.
var (
	cpuLimit    = &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu", Divisor: resource.MustParse("1")}}
	memoryLimit = &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1")}}
)

// ofPod are the variables that the kubelet fills in. They are shared by all pods, as nobody changes them.
var (
	ofPod = []corev1.EnvVar{
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		field("INSTANCE_IP", "status.podIP"),
		field("HOST_IP", "status.hostIP"),
		field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
	}
	nodeName = field("ISTIO_META_NODE_NAME", "spec.nodeName")
)

func field(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

// literal keeps the kubelet from expanding $(NAME) in what a user wrote: in the value of a variable, $$ stands for $.
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// fromLiteral is the inverse of literal.
func fromLiteral(s string) string { return strings.ReplaceAll(s, "$$", "$") }

func containerNames(list []corev1.Container) string {
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return strings.Join(names, ",")
}

// podPorts is the JSON array of the application's declared ports.
func podPorts(list []corev1.Container) string {
	ports := []corev1.ContainerPort{}
	for i := range list {
		ports = append(ports, list[i].Ports...)
	}
	data, err := json.Marshal(ports)
	if err != nil {
		panic("encode ports: " + err.Error()) // strings and numbers only
	}
	return string(data)
}

// addedAnnotations are those that injection sets. A user's default container stays.
func (c *Config) addedAnnotations(pod *corev1.Pod, s *podSettings) map[string]string {
	add := map[string]string{annotation.IoIstioRev.Name: c.Revision()}
	for name, value := range c.settings.Injector.InjectedAnnotations {
		if _, has := pod.Annotations[name]; !has {
			add[name] = value
		}
	}
	// kubectl logs and exec go to the application, wherever the sidecar stands.
	for _, name := range []string{"kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"} {
		if pod.Annotations[name] == "" && len(pod.Spec.Containers) > 0 {
			add[name] = pod.Spec.Containers[0].Name
		}
	}
	c.pluginAnnotations(pod, s, add)
	return add
}
