package policy

import (
	"fmt"

	"istio.io/api/annotation"
	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// patches joins lists of JSON patch operations.
func patches(lists ...string) (out string) {
	for i, list := range lists {
		if i > 0 {
			out += " +\n"
		}
		out += "(" + list + ")"
	}
	return out
}

// op is one operation; path and value are CEL.
func op(kind, path, value string) string {
	return fmt.Sprintf("JSONPatch{op: '%s', path: %s, value: %s}", kind, path, value)
}

// when is a list of one operation, or of none.
func when(condition, operation string) string { return condition + " ? [" + operation + "] : []" }

// injectionPatch is the one mutation. The sidecar is put in and changed while it is the first init container; then istio-init goes before it.
func injectionPatch() string {
	const first = "/spec/initContainers/0"
	t := template
	environment := func(place, value string) string {
		return op("replace", "'"+first+"/env/' + string(int("+t+".env."+place+")) + '/value'", value)
	}
	more := func(condition, value string) string {
		return when(condition, op("add", "'"+first+"/env/' + string(int("+t+".env.more))", value))
	}
	named := func(name, value string) string { return "{'name': '" + name + "', 'value': " + value + "}" }
	has := func(names ...string) string { return quoted(names...) + ".exists(k, k in variables.annotations)" }
	seconds := func(name, field string) string {
		return when("'"+name+"' in variables.annotations", op("add", "'"+first+"/readinessProbe/"+field+"'", "int(variables.annotations['"+name+"'])"))
	}
	injected := patches(
		probesPatch(),
		when("!has(object.spec.initContainers)", op("add", "'/spec/initContainers'", "[]")),
		"["+op("add", "'"+first+"'", t+".proxy")+", "+
			environment("workload", "variables.workloadName")+", "+
			environment("owner", "'kubernetes://apis/' + variables.workload[0] + '/namespaces/' + request.namespace + '/' + variables.workload[1] + 's/' + variables.workloadName")+", "+
			environment("containers", "variables.containerNames")+", "+environment("ports", "variables.ports")+"]",
		more("variables.scrape != ''", named(scrapeEnv, "variables.scrape")),
		more("size(variables.asks) > 0", named(probersEnv, "'{' + variables.probers + '}'")),
		more("variables.network != ''", named(networkEnv, "variables.network")),
		more("variables.memoryLimited", t+".memoryLimit"),
		more("variables.cpuLimited", t+".cpuLimit"),
		when("'"+annotation.SidecarProxyImage.Name+"' in variables.annotations", op("replace", "'"+first+"/image'", "string(variables.annotations['"+annotation.SidecarProxyImage.Name+"'])")),
		when("variables.resourced", op("add", "'"+first+"/resources'", "variables.resources")),
		when(has(annotation.SidecarLogLevel.Name, annotation.SidecarComponentLogLevel.Name, annotation.SidecarAgentLogLevel.Name), op("replace", "'"+first+"/args'", "variables.levels")),
		seconds(annotation.SidecarStatusReadinessInitialDelaySeconds.Name, "initialDelaySeconds"),
		seconds(annotation.SidecarStatusReadinessPeriodSeconds.Name, "periodSeconds"),
		seconds(annotation.SidecarStatusReadinessFailureThreshold.Name, "failureThreshold"),
		"["+op("add", "'"+first+"'", t+".init")+"]",
		when("'"+annotation.SidecarProxyImage.Name+"' in variables.annotations && "+t+".initFollows", op("replace", "'"+first+"/image'", "string(variables.annotations['"+annotation.SidecarProxyImage.Name+"'])")),
		when("variables.resourced", op("add", "'"+first+"/resources'", "variables.resources")),
		when("variables.annotations.exists(k, k.startsWith('traffic.sidecar.istio.io/') || k == '"+annotation.IoIstioRerouteVirtualInterfaces.Name+"')", op("replace", "'"+first+"/args'", "variables.capture")),
		when("!has(object.spec.volumes)", op("add", "'/spec/volumes'", "[]")),
		t+".volumes.map(v, "+op("add", "'/spec/volumes/-'", "v")+")",
		when("size(variables.secrets) > 0 && !has(object.spec.imagePullSecrets)", op("add", "'/spec/imagePullSecrets'", "[]")),
		"variables.secrets.map(s, "+op("add", "'/spec/imagePullSecrets/-'", "{'name': s}")+")",
		labelsPatch(), annotationsPatch(),
	)
	return "variables.late ? " + latePatch() + " :\n!variables.ours ? [] :\n" + injected
}

// labelsPatch sets what a pod does not say itself.
func labelsPatch() string {
	return patches(
		when("!has(object.metadata.labels)", op("add", "'/metadata/labels'", "{}")),
		fmt.Sprintf("{'%s': 'istio', '%s': variables.canonical, '%s': variables.canonicalRevision, '%s': string(%s.network)}.transformList(k, v, v != '' && variables.labels[?k].orValue('') == '', %s)",
			label.SecurityTlsMode.Name, label.ServiceCanonicalName.Name, label.ServiceCanonicalRevision.Name, label.TopologyNetwork.Name, template,
			op("add", "'/metadata/labels/' + jsonpatch.escapeKey(k)", "v")),
	)
}

// annotationsPatch says what was done, sends Prometheus to the agent, and people's kubectl logs to the application.
func annotationsPatch() string {
	const path = "'/metadata/annotations/' + jsonpatch.escapeKey(k)"
	status := fmt.Sprintf(`'{"initContainers":["%s","%s"],"containers":null,"volumes":[' + %s.volumes.map(v, '"' + string(v.name) + '"').join(',') + `+
		`'],"imagePullSecrets":' + (size(variables.secrets) == 0 ? 'null' : '["' + variables.secrets.join('","') + '"]') + ',"revision":"' + string(%s.revision) + '"}'`,
		inject.InitContainer, inject.ProxyContainer, template, template)
	return patches(
		when("!has(object.metadata.annotations)", op("add", "'/metadata/annotations'", "{}")),
		fmt.Sprintf("variables.merge ? {'%s': 'true', '%s': string(%s.agentPort), '%s': '/stats/prometheus'}.transformList(k, v, %s) : []",
			prometheusScrape, prometheusPort, template, prometheusPath, op("add", path, "v")),
		template+".annotations.transformList(k, v, !(k in variables.annotations), "+op("add", path, "string(v)")+")",
		fmt.Sprintf("['kubectl.kubernetes.io/default-container', 'kubectl.kubernetes.io/default-logs-container'].filter(k, variables.annotations[?k].orValue('') == '').map(k, %s)",
			op("add", path, "string(object.spec.containers[0].name)")),
		fmt.Sprintf("{'%s': string(%s.revision), '%s': %s}.transformList(k, v, %s)", annotation.IoIstioRev.Name, template, annotation.SidecarStatus.Name, status, op("add", path, "v")),
	)
}
