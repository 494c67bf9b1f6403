package policy

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"istio.io/api/annotation"
	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// Names of what injects without a webhook; those of a revision have -REV.
const (
	injectionName = "selvage-injection"
	trialName     = "selvage-injection-trial"

	// TrialLabel is on the pods by which a template is tried before it comes into force.
	TrialLabel = "selvage/injection-trial"
)

// InjectionName is the name of a revision's policy that injects sidecars, of its binding and of its parameter.
func InjectionName(rev string) string { return inject.ObjectName(injectionName, rev) }

// TrialName is the name of the binding and the parameter by which the same policy is tried, with pods of the probe's namespace that exist
// only as dry runs.
func TrialName(rev string) string { return inject.ObjectName(trialName, rev) }

// TrialValue is the value of istio.io/rev of such pods: no webhook answers it.
func TrialValue(rev string) string {
	if rev == "" {
		rev = inject.DefaultRevision
	}
	return "trial." + rev
}

// Injection gives the parameters, the policy and the bindings by which the API server itself injects the sidecars of a revision; own is
// the mesh's namespace. The policy decides as the webhook does. Everything that it does not know how to inject it leaves as it is, for
// the webhook, which sees the pod afterwards and is called only where there is no sidecar yet (inject.Registration.AfterPolicy): so no pod
// is injected twice, and none is left out because the policy, its parameter or its binding is missing, behind or wrong.
//
// It fails open therefore: the webhook fails closed.
func Injection(rev, own string) []runtime.Object {
	if rev == "" {
		rev = inject.DefaultRevision
	}
	meta, trial := revisionMeta(injectionName, rev), revisionMeta(trialName, rev)
	return []runtime.Object{
		parameter(meta), parameter(trial),
		&admissionv1.MutatingAdmissionPolicy{TypeMeta: typeMeta(Mutating), ObjectMeta: meta, Spec: injectionSpec(own)},
		injectionBinding(meta, meta.Name, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpDoesNotExist),
		injectionBinding(trial, meta.Name, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpExists),
		&admissionv1.ValidatingAdmissionPolicy{TypeMeta: typeMeta(Validating), ObjectMeta: meta, Spec: templateWrites(rev, own)},
		&admissionv1.ValidatingAdmissionPolicyBinding{TypeMeta: typeMeta(ValidatingBinding), ObjectMeta: meta, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: meta.Name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}}},
	}
}

// templateWrites keeps rights that were given to somebody for all custom resources from being rights over every meshed pod: who may write
// the parameters is the control plane, and whoever may change the policy itself.
func templateWrites(rev, own string) admissionv1.ValidatingAdmissionPolicySpec {
	fail, equivalent, cluster := admissionv1.Fail, admissionv1.Equivalent, admissionv1.ClusterScope
	writes := rule(ParameterKind.Group, []admissionv1.OperationType{admissionv1.Create, admissionv1.Update}, ParameterResource.Resource)
	writes.ResourceNames, writes.Scope = []string{InjectionName(rev), TrialName(rev)}, &cluster
	return admissionv1.ValidatingAdmissionPolicySpec{
		FailurePolicy:    &fail,
		MatchConstraints: &admissionv1.MatchResources{MatchPolicy: &equivalent, ResourceRules: []admissionv1.NamedRuleWithOperations{writes}},
		Validations: []admissionv1.Validation{{
			Expression: fmt.Sprintf("request.userInfo.username == 'system:serviceaccount:%s:%s' || authorizer.group('%s').resource('mutatingadmissionpolicies').check('update').allowed()",
				own, inject.ObjectName("istiod", rev), admissionv1.GroupName),
			Message: "this AdmissionParameter decides the image of every pod of revision " + rev + ": its control plane writes it, and who may update MutatingAdmissionPolicies",
		}},
	}
}

// injectionBinding binds the policy to its parameter in the probe's namespace alone, or everywhere else.
func injectionBinding(meta metav1.ObjectMeta, policyName string, in, trial metav1.LabelSelectorOperator) runtime.Object {
	return &admissionv1.MutatingAdmissionPolicyBinding{TypeMeta: typeMeta(MutatingBinding), ObjectMeta: meta,
		Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: policyName, ParamRef: byName(meta.Name),
			MatchResources: &admissionv1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: corev1.LabelMetadataName, Operator: in, Values: []string{verdict.Namespace}}}},
				ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: TrialLabel, Operator: trial}}},
			}},
	}
}

func injectionSpec(own string) admissionv1.MutatingAdmissionPolicySpec {
	ignore, equivalent, scope := admissionv1.Ignore, admissionv1.Equivalent, admissionv1.NamespacedScope
	pods := rule("", []admissionv1.OperationType{admissionv1.Create}, "pods")
	pods.APIVersions, pods.Scope = []string{"v1"}, &scope
	return admissionv1.MutatingAdmissionPolicySpec{
		FailurePolicy:      &ignore,
		ReinvocationPolicy: admissionv1.IfNeededReinvocationPolicy, // for the probes of containers that come later
		ParamKind:          paramKind(),
		MatchConstraints: &admissionv1.MatchResources{MatchPolicy: &equivalent,
			NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn, Values: inject.SystemNamespaces}}},
			ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: label.SidecarInject.Name, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"false"}}}},
			ResourceRules: []admissionv1.NamedRuleWithOperations{pods}},
		MatchConditions: append(neverInjected(), admissionv1.MatchCondition{Name: "known",
			Expression: fmt.Sprintf("has(params.spec) && has(params.spec.names) && has(params.spec.injection) && has(params.spec.injection.form) && params.spec.injection.form == %d", templateForm)}),
		Variables: variables(injectionVariables(own)...),
		Mutations: []admissionv1.Mutation{{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: injectionPatch()}}},
	}
}

// ann is the CEL of an annotation, with a default.
func ann(name, otherwise string) string {
	return "('" + name + "' in variables.annotations ? string(variables.annotations['" + name + "']) : " + otherwise + ")"
}

// firstLabel is the CEL of the first of some labels that is not empty, or of another expression.
func firstLabel(otherwise string, names ...string) string {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "variables.labels[?'%s'].orValue('') != '' ? string(variables.labels['%s']) : ", name, name)
	}
	return b.String() + otherwise
}

const (
	isTrue   = " in ['1', 't', 'T', 'TRUE', 'true', 'True']"
	template = "params.spec.injection"
)

// injectionVariables are pairs of a name and an expression. What a pod says reaches them only where accepted has let it through.
func injectionVariables(own string) []string {
	out := append(decision(own),
		"status", "string(variables.annotations[?'"+annotation.SidecarStatus.Name+"'].orValue(''))",
		"inits", "has(object.spec.initContainers) ? object.spec.initContainers : []",
		"injected", fmt.Sprintf("variables.status != '' && (object.spec.containers.exists(c, c.name == '%[1]s') || variables.inits.exists(c, c.name == '%[1]s'))", inject.ProxyContainer),
		"accepted", annotationsCEL(),
		"rewrite", ann(annotation.SidecarRewriteAppHTTPProbers.Name, "string("+template+".rewrite)")+isTrue,
	)
	out = append(out, probeVariables()...)
	out = append(out, workloadVariables()...)
	out = append(out, settingVariables()...)
	return append(out,
		"free", fmt.Sprintf("!object.spec.containers.exists(c, c.name in %[1]s) && !variables.inits.exists(c, c.name in %[1]s) && "+
			"!(has(object.spec.volumes) && object.spec.volumes.exists(v, %[2]s.volumes.exists(o, o.name == v.name))) && "+
			"object.spec.containers.all(c, !has(c.ports) || c.ports.all(p, !(int(p.containerPort) in %[2]s.busy)))", quoted(ourContainers...), template),
		"users", "has(object.spec.securityContext) && has(object.spec.securityContext.runAsUser) ? [int(object.spec.securityContext.runAsUser)] : []",
		"groups", "has(object.spec.securityContext) && has(object.spec.securityContext.runAsGroup) ? [int(object.spec.securityContext.runAsGroup)] : []",
		"strangers", "object.spec.containers.all(c, !((has(c.securityContext) && has(c.securityContext.runAsUser) ? [int(c.securityContext.runAsUser)] : variables.users).exists(u, u == "+template+".user) || "+
			"(has(c.securityContext) && has(c.securityContext.runAsGroup) ? [int(c.securityContext.runAsGroup)] : variables.groups).exists(g, g == "+template+".group)))",
		"ours", "variables.wanted && !variables.injected && variables.accepted && variables.free && variables.strangers && variables.plain && variables.scrapable && variables.within",
	)
}

// ourContainers are the names that injection gives.
var ourContainers = []string{inject.ProxyContainer, inject.InitContainer, "istio-validation"}

// workloadVariables find the workload as inject does, from the names that controllers give.
func workloadVariables() []string {
	const owner = "variables.owner[0]"
	hash := func(name string) string {
		return fmt.Sprintf("variables.labels[?'%[1]s'].orValue('') != '' && %[2]s.name.endsWith('-' + variables.labels['%[1]s'])", name, owner)
	}
	cut := func(name string) string {
		return fmt.Sprintf("%[2]s.name.substring(0, size(%[2]s.name) - size(variables.labels['%[1]s']) - 1)", name, owner)
	}
	deployment, rollout := hash("pod-template-hash"), hash("rollouts-pod-template-hash")
	config := "variables.labels[?'deploymentconfig'].orValue('') != '' && " + owner + ".name.startsWith(variables.labels['deploymentconfig'] + '-')"
	cron := owner + ".name.matches('^.+-[0-9]{8,10}$')"
	return []string{
		"owner", "has(object.metadata.ownerReferences) ? object.metadata.ownerReferences.filter(o, has(o.controller) && o.controller) : []",
		// Which object it is, and its name: [apiVersion, kind, name].
		"workload", "size(variables.owner) == 0 ? ['v1', 'pod', object.metadata.?name.orValue('') != '' ? string(object.metadata.name) : " +
			"string(object.metadata.?generateName.orValue('')).find('^.*[^-.]')] : " +
			owner + ".kind == 'ReplicaSet' && " + deployment + " ? ['apps/v1', 'deployment', string(" + cut("pod-template-hash") + ")] : " +
			owner + ".kind == 'ReplicaSet' && " + rollout + " ? ['argoproj.io/v1alpha1', 'rollout', string(" + cut("rollouts-pod-template-hash") + ")] : " +
			owner + ".kind == 'ReplicationController' && " + config + " ? ['apps.openshift.io/v1', 'deploymentconfig', string(variables.labels['deploymentconfig'])] : " +
			owner + ".kind == 'Job' && " + cron + " ? [string(" + owner + ".apiVersion), 'cronjob', string(" + owner + ".name.substring(0, " + owner + ".name.lastIndexOf('-')))] : " +
			"[string(" + owner + ".apiVersion), string(" + owner + ".kind).lowerAscii(), string(" + owner + ".name)]",
		"workloadName", firstLabel("variables.workload[2]", label.ServiceWorkloadName.Name),
		"canonical", labelValue(firstLabel("variables.workload[2]", label.ServiceCanonicalName.Name, "app.kubernetes.io/name", "app")),
		"canonicalRevision", labelValue(firstLabel("'latest'", label.ServiceCanonicalRevision.Name, "app.kubernetes.io/version", "version")),
	}
}

// labelValue cuts a name to what a label can hold.
func labelValue(expression string) string {
	return "[" + expression + "].map(n, size(n) > 63 ? n.substring(0, 63) : n)[0].find('^.*[^-._]')"
}

// listed is an annotation's list without the spaces that people put behind commas, or the template's.
func listed(name, otherwise string) string {
	return ann(name, "string("+template+"."+otherwise+")") + ".replace(' ', '')"
}

// settingVariables are what annotations set.
func settingVariables() []string {
	cpu, memory, cpuLimit, memoryLimit := resourceAnnotations[0], resourceAnnotations[1], resourceAnnotations[2], resourceAnnotations[3]
	within := func(request, limit string) string {
		return fmt.Sprintf("('%[1]s' in variables.annotations && '%[2]s' in variables.annotations && isQuantity(variables.annotations['%[1]s']) && isQuantity(variables.annotations['%[2]s']) ? "+
			"quantity(variables.annotations['%[1]s']).compareTo(quantity(variables.annotations['%[2]s'])) <= 0 : true)", request, limit)
	}
	limited := func(name, resource string) string {
		return fmt.Sprintf("variables.resourced ? '%s' in variables.annotations : %s.proxy.?resources.?limits[?'%s'].hasValue()", name, template, resource)
	}
	value := func(name string) string {
		return fmt.Sprintf("'%[1]s' in variables.annotations ? optional.of(string(variables.annotations['%[1]s'])) : optional.none()", name)
	}
	t := template
	return []string{
		"resourced", quoted(resourceAnnotations...) + ".exists(k, k in variables.annotations)",
		"within", within(cpu, cpuLimit) + " && " + within(memory, memoryLimit),
		"resources", "{?'requests': '" + cpu + "' in variables.annotations || '" + memory + "' in variables.annotations ? optional.of({?'cpu': " + value(cpu) + ", ?'memory': " + value(memory) + "}) : optional.none(), " +
			"?'limits': '" + cpuLimit + "' in variables.annotations || '" + memoryLimit + "' in variables.annotations ? optional.of({?'cpu': " + value(cpuLimit) + ", ?'memory': " + value(memoryLimit) + "}) : optional.none()}",
		"cpuLimited", limited(cpuLimit, "cpu"),
		"memoryLimited", limited(memoryLimit, "memory"),
		"network", firstLabel("string("+t+".network)", label.TopologyNetwork.Name),
		"merge", ann(annotation.PrometheusMergeMetrics.Name, "string("+t+".merge)") + isTrue + " && !(" + ann(prometheusScrape, "''") + " in ['0', 'f', 'F', 'FALSE', 'false', 'False']) && " +
			ann(prometheusPort, "''") + " != string(" + t + ".agentPort)",
		"scrapable", "!variables.merge || !(" + ann(prometheusPort, "''") + " in " + t + ".unscrapable)",
		"scrape", "variables.merge && " + quoted(prometheusScrape, prometheusPath, prometheusPort) + ".exists(k, k in variables.annotations) ? " +
			inJSON("'{\"scrape\":\"' + "+ann(prometheusScrape, "''")+" + '\",\"path\":\"' + "+ann(prometheusPath, "''")+" + '\",\"port\":\"' + "+ann(prometheusPort, "''")+" + '\"}'") + ".replace('$', '$$') : ''",
		"containerNames", "object.spec.containers.map(c, string(c.name)).join(',')",
		"ports", "'[' + object.spec.containers.filter(c, has(c.ports)).map(c, c.ports.map(p, '{' + (has(p.name) && p.name != '' ? '\"name\":\"' + string(p.name) + '\",' : '') + " +
			"(has(p.hostPort) && p.hostPort != 0 ? '\"hostPort\":' + string(int(p.hostPort)) + ',' : '') + '\"containerPort\":' + string(int(p.containerPort)) + " +
			"(has(p.protocol) && p.protocol != '' ? ',\"protocol\":\"' + string(p.protocol) + '\"' : '') + (has(p.hostIP) && p.hostIP != '' ? ',\"hostIP\":\"' + string(p.hostIP) + '\"' : '') + '}').join(',')).join(',') + ']'",
		"levels", "['proxy', 'sidecar'] + [['--proxyLogLevel=', " + ann(annotation.SidecarLogLevel.Name, "string("+t+".levels.proxy)") + "], " +
			"['--proxyComponentLogLevel=', " + listed(annotation.SidecarComponentLogLevel.Name, "levels.components") + "], " +
			"['--log_output_level=', " + listed(annotation.SidecarAgentLogLevel.Name, "levels.agent") + "]].filter(a, a[1] != '').map(a, a[0] + a[1]) + " + t + ".levels.rest.map(a, string(a))",
		"excluded", "[" + listed(annotation.SidecarTrafficExcludeInboundPorts.Name, "capture.excludeInbound") + "].map(p, string(" + t + ".capture.excludeBase) + (p == '' ? '' : ',' + p))[0]",
		"reroute", "[" + ann(annotation.IoIstioRerouteVirtualInterfaces.Name, "''") + ".replace(' ', ''), " + ann(annotation.SidecarTrafficKubevirtInterfaces.Name, "''") + ".replace(' ', '')].filter(v, v != '')",
		"capture", t + ".capture.head.map(a, string(a)) + ['--inbound-ports', " + listed(annotation.SidecarTrafficIncludeInboundPorts.Name, "capture.inboundPorts") +
			", '--exclude-inbound-ports', variables.excluded, '--outbound-ranges', " + listed(annotation.SidecarTrafficIncludeOutboundIPRanges.Name, "capture.outboundRanges") +
			", '--exclude-outbound-ranges', " + listed(annotation.SidecarTrafficExcludeOutboundIPRanges.Name, "capture.excludeRanges") +
			", '--exclude-outbound-ports', " + listed(annotation.SidecarTrafficExcludeOutboundPorts.Name, "capture.excludeOutboundPorts") + "] + " +
			"[['--include-outbound-ports', " + listed(annotation.SidecarTrafficIncludeOutboundPorts.Name, "capture.includeOutboundPorts") + "], " +
			"['--exclude-interfaces', " + ann(annotation.SidecarTrafficExcludeInterfaces.Name, "''") + ".replace(' ', '')], " +
			"['--reroute-interfaces', size(variables.reroute) > 0 ? variables.reroute[0] : '']].filter(a, a[1] != '').flatten() + " + t + ".capture.tail.map(a, string(a))",
		"secrets", "[" + t + ".secrets].map(all, has(object.spec.imagePullSecrets) ? all.filter(s, !object.spec.imagePullSecrets.exists(o, has(o.name) && o.name == s)) : all)[0].map(s, string(s))",
	}
}
