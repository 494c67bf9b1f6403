package policy

import (
	"fmt"
	"strings"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// What the kubelet asks of the application goes to the agent (see package inject). The policy does it with the sidecar's own patch, and
// again when it is called for a pod that has its sidecar: another webhook may have brought a container since.

// handlers are the kinds of what the kubelet asks: the field, under which name the agent knows it, and whether it is a hook.
var handlers = []struct {
	field, path string
	hook        bool
}{
	{"readinessProbe", "readyz", false}, {"livenessProbe", "livez", false}, {"startupProbe", "startupz", false},
	{"lifecycle.postStart", "poststartz", true}, {"lifecycle.preStop", "prestopz", true},
}

// inJSON escapes what encoding/json escapes in the plain characters that are let through (plainPattern).
func inJSON(expression string) string {
	return "(" + expression + `).replace('&', '\\u0026').replace('<', '\\u003c').replace('>', '\\u003e')`
}

// probeVariables find the handlers (asks), the port of each, whether all of them can be said in JSON without escaping (plain), and the
// JSON that the agent is given (probers), in the order of its keys.
func probeVariables() []string {
	var lists []string
	for _, at := range []struct{ list, path string }{{"object.spec.containers", "/spec/containers/"}, {"variables.inits", "/spec/initContainers/"}} {
		for _, h := range handlers {
			field, prefix, has := "c."+h.field, "/app-health/", "has(c."+h.field+")"
			some := fmt.Sprintf("(has(%[1]s.httpGet) || has(%[1]s.tcpSocket) || has(%[1]s.grpc))", field)
			wait := fmt.Sprintf("dyn(has(%[1]s.timeoutSeconds) ? int(%[1]s.timeoutSeconds) : 0)", field)
			if h.hook {
				prefix, has, wait = "/app-lifecycle/", "has(c.lifecycle) && has("+field+")", "dyn(0)"
				some = fmt.Sprintf("(has(%[1]s.httpGet) || has(%[1]s.tcpSocket))", field)
			}
			lists = append(lists, fmt.Sprintf("%s.transformList(i, c, !(c.name in %s) && %s && %s, {'at': dyn('%s' + string(i) + '/%s'), 'key': dyn('%s' + c.name + '/%s'), "+
				"'h': dyn(%s), 'ports': dyn(has(c.ports) ? c.ports : []), 'wait': %s})",
				at.list, quoted(ourContainers...), has, some, at.path, strings.ReplaceAll(h.field, ".", "/"), prefix, h.path, field, wait))
		}
	}
	const host = "(has(a.h.httpGet) ? (has(a.h.httpGet.host) ? string(a.h.httpGet.host) : '') : has(a.h.tcpSocket) && has(a.h.tcpSocket.host) ? string(a.h.tcpSocket.host) : '')"
	const port = "(has(a.h.httpGet) ? a.h.httpGet.port : has(a.h.tcpSocket) ? a.h.tcpSocket.port : a.h.grpc.port)"
	return []string{
		"handlers", "!variables.rewrite ? [] : " + strings.Join(lists, " + "),
		"hosts", "variables.handlers.map(a, " + host + ")",
		// Another host's health is the kubelet's own affair.
		"asks", "variables.handlers.transformList(i, a, (variables.hosts[i] == '' || variables.hosts[i].lowerAscii() == 'localhost' || variables.hosts[i] in ['127.0.0.1', '::1']) && " +
			"!(has(a.h.httpGet) && has(a.h.httpGet.path) && a.h.httpGet.path == a.key), a)",
		"numbers", "variables.asks.map(a, type(" + port + ") == string ? (a.ports.filter(p, has(p.name) && p.name == " + port + ").map(p, int(p.containerPort)) + " +
			"(" + port + ".matches(r'^" + portPattern + "$') ? [int(" + port + ")] : []) + [0])[0] : int(" + port + "))",
		"plain", "variables.numbers.all(n, n > 0 && n < 65536) && variables.hosts.all(h, h.matches(r'" + plainPattern + "') && !(h.matches('^127[.]|:') && !(h in ['127.0.0.1', '::1']))) && " +
			"variables.asks.all(a, a.key.matches(r'" + plainPattern + "') && " +
			"(!has(a.h.httpGet) || (!has(a.h.httpGet.path) || a.h.httpGet.path.matches(r'" + plainPattern + "')) && (!has(a.h.httpGet.scheme) || a.h.httpGet.scheme.matches(r'" + plainPattern + "')) && " +
			"(!has(a.h.httpGet.httpHeaders) || a.h.httpGet.httpHeaders.all(h, h.name.matches(r'" + plainPattern + "') && (!has(h.value) || h.value.matches(r'" + plainPattern + "'))))) && " +
			"(!has(a.h.grpc) || !has(a.h.grpc.service) || a.h.grpc.service.matches(r'" + plainPattern + "'))) && " +
			"object.spec.containers.all(c, c.name.matches(r'" + plainPattern + "') && (!has(c.ports) || c.ports.all(p, (!has(p.name) || p.name.matches(r'" + plainPattern + "')) && " +
			"(!has(p.hostIP) || p.hostIP.matches(r'" + plainPattern + "')))))",
		"probers", inJSON("variables.asks.transformList(i, a, '\"' + a.key + '\":{' + (has(a.h.httpGet) ? '\"httpGet\":{' + (has(a.h.httpGet.path) && a.h.httpGet.path != '' ? '\"path\":\"' + a.h.httpGet.path + '\",' : '') + "+
			"'\"port\":' + string(variables.numbers[i]) + (has(a.h.httpGet.host) && a.h.httpGet.host != '' ? ',\"host\":\"' + a.h.httpGet.host + '\"' : '') + "+
			"(has(a.h.httpGet.scheme) && a.h.httpGet.scheme != '' ? ',\"scheme\":\"' + a.h.httpGet.scheme + '\"' : '') + "+
			"(has(a.h.httpGet.httpHeaders) && size(a.h.httpGet.httpHeaders) > 0 ? ',\"httpHeaders\":[' + a.h.httpGet.httpHeaders.map(h, '{\"name\":\"' + h.name + '\",\"value\":\"' + (has(h.value) ? h.value : '') + '\"}').join(',') + ']' : '') + '}' : "+
			"has(a.h.tcpSocket) ? '\"tcpSocket\":{\"port\":' + string(variables.numbers[i]) + (has(a.h.tcpSocket.host) && a.h.tcpSocket.host != '' ? ',\"host\":\"' + a.h.tcpSocket.host + '\"' : '') + '}' : "+
			"'\"grpc\":{\"port\":' + string(variables.numbers[i]) + ',\"service\":' + (has(a.h.grpc.service) ? '\"' + a.h.grpc.service + '\"' : 'null') + '}') + "+
			"(a.wait != 0 ? ',\"timeoutSeconds\":' + string(a.wait) : '') + '}').sort().join(',')") + ".replace('$', '$$')",
		// A pod that has its sidecar: where that is, and where what the agent asks stands in it.
		"proxyAt", fmt.Sprintf("variables.inits.transformList(i, c, c.name == '%s', i)", inject.ProxyContainer),
		"probersAt", fmt.Sprintf("size(variables.proxyAt) == 0 || !has(variables.inits[variables.proxyAt[0]].env) ? [] : "+
			"variables.inits[variables.proxyAt[0]].env.transformList(i, e, e.name == '%s' && has(e.value) && e.value.matches('^[{].+[}]$'), i)", probersEnv),
		"late", "variables.wanted && variables.injected && variables.accepted && variables.plain && size(variables.proxyAt) == 1 && size(variables.asks) > 0",
	}
}

// probesPatch sends the kubelet to the agent. It comes before all that moves containers.
func probesPatch() string {
	return "variables.asks.map(a, (has(a.h.tcpSocket) ? [JSONPatch{op: 'remove', path: string(a.at) + '/tcpSocket'}] : []) + (has(a.h.grpc) ? [JSONPatch{op: 'remove', path: string(a.at) + '/grpc'}] : []) + " +
		"[JSONPatch{op: 'add', path: string(a.at) + '/httpGet', value: {'path': dyn(string(a.key)), 'port': dyn(int(" + template + ".agentPort)), 'scheme': dyn('HTTP')}}]).flatten()"
}

// latePatch adds what the agent is asked for containers that came later.
func latePatch() string {
	env := "'/spec/initContainers/' + string(variables.proxyAt[0]) + '/env'"
	old := "string(variables.inits[variables.proxyAt[0]].env[variables.probersAt[0]].value)"
	return probesPatch() + " + (size(variables.probersAt) > 0 ? " +
		"[JSONPatch{op: 'replace', path: " + env + " + '/' + string(variables.probersAt[0]) + '/value', value: " + old + ".substring(0, size(" + old + ") - 1) + ',' + variables.probers + '}'}] : " +
		"[JSONPatch{op: 'add', path: " + env + " + '/-', value: {'name': '" + probersEnv + "', 'value': '{' + variables.probers + '}'}}])"
}
