package install

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Names of the Service's ports; an EndpointSlice refers to them.
const (
	xdsPortName     = "tcp-xds-tls"
	webhookPortName = "https-webhook"
	HTTPPortName    = "http-monitoring" // metrics, health and the debug pages
)

// proxyUser is the user that everything of Selvage but its init container runs as.
const proxyUser = 1337

// service is what proxies (15012) and the API server (443) call. Without a Deployment it has no selector, and endpoints
// alone say where it leads.
func (o Options) service() *corev1.Service {
	port := func(name string, port, target int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: port, TargetPort: intstr.FromInt32(target), Protocol: corev1.ProtocolTCP}
	}
	s := &corev1.Service{TypeMeta: typeMeta("v1", "Service"), ObjectMeta: o.meta(o.Name(appName)), Spec: corev1.ServiceSpec{
		Ports: []corev1.ServicePort{
			port(xdsPortName, XDSPort, XDSPort), port(webhookPortName, 443, WebhookPort), port(HTTPPortName, HTTPPort, HTTPPort),
		},
	}}
	if o.inCluster() {
		s.Spec.Selector = o.selector()
	}
	if o.StatusAddress != "" {
		s.Annotations = map[string]string{StatusAddressAnnotation: o.StatusAddress}
	}
	return s
}

// endpoints leads the Service out of the cluster.
func (o Options) endpoints() *discoveryv1.EndpointSlice {
	port := func(name string, port int32) discoveryv1.EndpointPort {
		protocol := corev1.ProtocolTCP
		return discoveryv1.EndpointPort{Name: &name, Port: &port, Protocol: &protocol}
	}
	family, ready := discoveryv1.AddressTypeIPv4, true
	if o.Endpoint.Address.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	meta := o.meta(o.Name(appName) + "-external")
	meta.Labels[discoveryv1.LabelServiceName] = o.Name(appName)
	meta.Labels[discoveryv1.LabelManagedBy] = Owner
	return &discoveryv1.EndpointSlice{
		TypeMeta: typeMeta(discoveryv1.SchemeGroupVersion.String(), "EndpointSlice"), ObjectMeta: meta, AddressType: family,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{o.Endpoint.Address.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}},
		Ports: []discoveryv1.EndpointPort{
			port(xdsPortName, o.Endpoint.XDS), port(webhookPortName, o.Endpoint.Webhook), port(HTTPPortName, o.Endpoint.HTTP),
		},
	}
}

// disruptionBudget lets a drain take one replica at a time; with a single replica it lets that one go rather than block a node.
func (o Options) disruptionBudget() *policyv1.PodDisruptionBudget {
	one := intstr.FromInt32(1)
	return &policyv1.PodDisruptionBudget{
		TypeMeta: typeMeta(policyv1.SchemeGroupVersion.String(), "PodDisruptionBudget"), ObjectMeta: o.meta(o.Name(appName)),
		Spec: policyv1.PodDisruptionBudgetSpec{MaxUnavailable: &one, Selector: &metav1.LabelSelector{MatchLabels: o.selector()}},
	}
}

// deployment runs selvaged.
func (o Options) deployment() *appsv1.Deployment {
	zero, one := intstr.FromInt32(0), intstr.FromInt32(1)
	return &appsv1.Deployment{
		TypeMeta: typeMeta(appsv1.SchemeGroupVersion.String(), "Deployment"), ObjectMeta: o.meta(o.Name(appName)),
		Spec: appsv1.DeploymentSpec{
			Replicas: &o.Replicas,
			Selector: &metav1.LabelSelector{MatchLabels: o.selector()},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &zero, MaxSurge: &one},
			},
			Template: o.podTemplate(),
		},
	}
}

func (o Options) podTemplate() corev1.PodTemplateSpec {
	labels := o.labels()
	labels[injectLabel] = "false" // whatever selects its namespace, the control plane never waits for itself
	nonRoot, user := true, int64(proxyUser)
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{
			"prometheus.io/scrape": "true", "prometheus.io/port": strconv.Itoa(HTTPPort), "prometheus.io/path": "/metrics",
		}},
		Spec: corev1.PodSpec{
			ServiceAccountName: o.Name(appName),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &nonRoot, RunAsUser: &user, RunAsGroup: &user,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Affinity:   o.affinity(),
			Containers: []corev1.Container{o.container()},
		},
	}
}

// affinity prefers another node, and then another zone, for each replica.
func (o Options) affinity() *corev1.Affinity {
	apart := func(weight int32, topology string) corev1.WeightedPodAffinityTerm {
		return corev1.WeightedPodAffinityTerm{Weight: weight, PodAffinityTerm: corev1.PodAffinityTerm{
			TopologyKey: topology, LabelSelector: &metav1.LabelSelector{MatchLabels: o.selector()},
		}}
	}
	return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
			apart(100, corev1.LabelHostname), apart(50, corev1.LabelTopologyZone),
		},
	}}
}

func (o Options) container() corev1.Container {
	no, yes := false, true
	return corev1.Container{
		Name: "discovery", Image: o.Image, ImagePullPolicy: corev1.PullPolicy(o.PullPolicy), Args: o.arguments(),
		Ports: []corev1.ContainerPort{
			{Name: "xds", ContainerPort: XDSPort, Protocol: corev1.ProtocolTCP},
			{Name: "webhook", ContainerPort: WebhookPort, Protocol: corev1.ProtocolTCP},
			{Name: "monitoring", ContainerPort: HTTPPort, Protocol: corev1.ProtocolTCP},
		},
		Resources:      o.resources(),
		ReadinessProbe: httpProbe("/ready", 2, 3),
		LivenessProbe:  httpProbe("/healthz", 10, 6),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, Privileged: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
}

// resources are those of a replica. Memory follows the mesh: a limit would kill it as it grows, so there is none unless it is asked for.
func (o Options) resources() corev1.ResourceRequirements {
	if len(o.Resources.Requests) > 0 || len(o.Resources.Limits) > 0 {
		return o.Resources
	}
	return corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
	}}
}

// arguments are selvaged's flags.
func (o Options) arguments() []string {
	args := []string{"--namespace=" + Namespace, "--revision=" + o.revision(),
		"--cluster-id=" + o.ClusterID, "--trust-domain=" + o.TrustDomain}
	args = append(args, o.Authority.arguments()...)
	if o.LogLevel != "" {
		args = append(args, "--log-level="+o.LogLevel)
	}
	return args
}

// httpProbe asks the health port every period seconds; so many failures in a row count.
func httpProbe(path string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: path, Port: intstr.FromInt32(HTTPPort), Scheme: corev1.URISchemeHTTP,
		}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 2,
	}
}
