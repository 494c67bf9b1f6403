package policy

const (
	networkingGroup = "networking.istio.io"
	hostSay         = "it is no host name, or has a wildcard that is not its beginning, or a port"
	portSay         = "a port is between 1 and 65535"
	labelsSay       = "no pod can have such a label"
	unnamed         = "'unnamed'"
)

var gateways = configured{
	group: networkingGroup, resource: "gateways",
	variables: []string{
		"servers", items("variables.spec", "servers"),
		// Servers whose protocol ends TLS here.
		"ending", "variables.servers.filter(s, s.?port.?protocol.orValue('').upperAscii() in ['HTTPS', 'TLS'])",
		"terminated", "variables.ending.filter(s, s.?tls.?mode.orValue('PASSTHROUGH') in ['SIMPLE', 'MUTUAL', 'OPTIONAL_MUTUAL'] && s.tls.?credentialName.orValue('') == '' && " +
			"size(s.tls.?credentialNames.orValue([])) == 0 && size(s.tls.?tlsCertificates.orValue([])) == 0)",
	},
	checks: []configCheck{
		{"spec.servers", shown("size(variables.servers) == 0", "'none'"), "a gateway needs at least one server"},
		{"spec.servers[].port.number", filtered("variables.servers", "s", "!s.?bind.orValue('').startsWith('unix://') && "+badPort("s.?port.?number.orValue(0)"), "s.?port.?number.orValue(0)"), portSay},
		{"spec.servers[].port.protocol", filtered("variables.servers", "s", "!(s.?port.?protocol.orValue('').upperAscii() in "+protocols+")", inQuotes("s.?port.?protocol.orValue('')")), protocolSay},
		{"spec.servers[].port.name", filtered("variables.servers", "s", "s.?port.?name.orValue('') == ''", unnamed), "a port needs a name"},
		{"spec.servers[].port.name", twice("variables.servers", "i.?port.?name.orValue('')"), "another server has a port of this name too"},
		{"spec.servers[].hosts", filtered("variables.servers", "s", "size("+items("s", "hosts")+") == 0", "s.?port.?name.orValue('')"), "a server needs at least one host"},
		{"spec.servers[].hosts", nested("variables.servers", "s", items("s", "hosts"), "h", badNamespaced("h"), inQuotes("h")), hostSay},
		{"spec.servers[].tls", filtered("variables.ending", "s", "!has(s.tls)", "s.?port.?name.orValue('')"), "a server of protocol HTTPS or TLS needs TLS settings"},
		{"spec.servers[].tls", filtered("variables.terminated", "s", "s.tls.?serverCertificate.orValue('') == '' || s.tls.?privateKey.orValue('') == ''", "s.?port.?name.orValue('')"),
			"its mode needs credentialName, or serverCertificate and privateKey"},
		{"spec.servers[].tls.caCertificates", filtered("variables.terminated", "s", "s.tls.mode != 'SIMPLE' && s.tls.?caCertificates.orValue('') == '' && s.tls.?caCertCredentialName.orValue('') == ''",
			"s.?port.?name.orValue('')"), "its mode checks the certificates of clients, by these"},
	},
}

var serviceEntries = configured{
	group: networkingGroup, resource: "serviceentries",
	variables: []string{
		"hosts", items("variables.spec", "hosts"),
		"ports", items("variables.spec", "ports"),
		"endpoints", items("variables.spec", "endpoints"),
		"resolution", field("variables.spec", "resolution", "'NONE'"),
	},
	checks: []configCheck{
		{"spec.hosts", shown("size(variables.hosts) == 0", "'none'"), "a service entry needs at least one host"},
		{"spec.hosts", filtered("variables.hosts", "h", "h == '*' || "+badHost("h"), inQuotes("h")), hostSay + ", or is * alone"},
		{"spec.addresses", filtered(items("variables.spec", "addresses"), "a", badAddress("a"), inQuotes("a")), "it is neither an IP address nor a CIDR block"},
		{"spec.ports[].number", filtered("variables.ports", "p", badPort("p.?number.orValue(0)"), "p.?number.orValue(0)"), portSay},
		{"spec.ports[].name", filtered("variables.ports", "p", "p.?name.orValue('') == ''", unnamed), "a port needs a name"},
		{"spec.ports[].protocol", filtered("variables.ports", "p", "!(p.?protocol.orValue('').upperAscii() in ([''] + "+protocols+"))", inQuotes("p.protocol")), protocolSay},
		{"spec.ports[].targetPort", filtered("variables.ports", "p", "int(p.?targetPort.orValue(0)) > 65535", "p.targetPort"), portSay},
		{"spec.endpoints[].address", filtered("variables.endpoints", "e", "variables.resolution == 'STATIC' && e.?address.orValue('') != '' && !e.address.startsWith('unix://') && !e.address.contains(':') && "+
			"!isIP(e.address.replace('[', '').replace(']', ''))", inQuotes("e.address")), "it is no IP address, and resolution STATIC asks no DNS"},
		{"spec.hosts", filtered("variables.hosts", "h", "variables.resolution in ['DNS', 'DNS_ROUND_ROBIN'] && size(variables.endpoints) == 0 && h.startsWith('*')", inQuotes("h")),
			"DNS cannot resolve a wildcard; name endpoints or another resolution"},
	},
}

var sidecars = configured{
	group: networkingGroup, resource: "sidecars",
	variables: []string{"ingress", items("variables.spec", "ingress"), "egress", items("variables.spec", "egress")},
	checks: []configCheck{
		{"spec.ingress[].port", filtered("variables.ingress", "i", badPort("i.?port.?number.orValue(0)"), "i.?port.?number.orValue(0)"), portSay},
		{"spec.ingress[].defaultEndpoint", filtered("variables.ingress", "i", "!"+field("i", "defaultEndpoint", "''")+
			".matches('^(|unix://.*|(127\\\\.[0-9.]+|0\\\\.0\\\\.0\\\\.0|\\\\[[0-9a-fA-F:.%]+\\\\]):[0-9]+)$')", inQuotes("i.defaultEndpoint")),
			"it is none of 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT and unix://PATH"},
		{"spec.egress[].hosts", filtered("variables.egress", "e", "size("+items("e", "hosts")+") == 0", "'none'"), "an egress listener needs at least one host, such as ./* for the own namespace"},
		{"spec.egress[].hosts", nested("variables.egress", "e", items("e", "hosts"), "h", "!h.contains('/') || "+badNamespaced("h"), inQuotes("h")), "it is not of the form NAMESPACE/HOST"},
		{"spec.inboundConnectionPool", shown(badPool("variables.spec.?inboundConnectionPool"), "'negative'"), "a limit may not be negative"},
	},
}

// badPool is that of a connection pool; x is an optional one.
func badPool(x string) string {
	expression := "int(" + x + ".?tcp.?maxConnections.orValue(0)) < 0"
	for _, f := range []string{"http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries", "maxConcurrentStreams"} {
		expression += " || int(" + x + ".?http.?" + f + ".orValue(0)) < 0"
	}
	return "(" + expression + ")"
}

// badOutlier is that of an outlier detection.
func badOutlier(x string) string {
	return "([int(" + x + ".?outlierDetection.?maxEjectionPercent.orValue(0)), int(" + x + ".?outlierDetection.?minHealthPercent.orValue(0))].exists(n, n < 0 || n > 100))"
}

// badClient is that of TLS towards a server.
func badClient(x string) string {
	return "(" + x + ".?tls.?mode.orValue('') == 'MUTUAL' && " + x + ".?tls.?credentialName.orValue('') == '' && (" +
		x + ".?tls.?clientCertificate.orValue('') == '' || " + x + ".?tls.?privateKey.orValue('') == ''))"
}

// inPolicies shows the subsets whose traffic policy, or one of its ports, a check flags; "spec" for the rule's own.
func inPolicies(bad func(x string) string) string {
	return "variables.policies.filter(t, " + bad("t.policy") + " || t.policy.?portLevelSettings.orValue([]).exists(p, " + bad("p") + ")).map(t, string(t.of))"
}

var destinationRules = configured{
	group: networkingGroup, resource: "destinationrules",
	variables: []string{
		"host", field("variables.spec", "host", "''"),
		"subsets", items("variables.spec", "subsets"),
		"policies", "(has(variables.spec.trafficPolicy) ? [{'of': dyn('spec'), 'policy': dyn(variables.spec.trafficPolicy)}] : []) + " +
			"variables.subsets.filter(s, has(s.trafficPolicy)).map(s, {'of': dyn(s.?name.orValue('')), 'policy': dyn(s.trafficPolicy)})",
	},
	checks: []configCheck{
		{"spec.host", shown(badHost("variables.host"), inQuotes("variables.host")), hostSay},
		{"spec.subsets[].name", filtered("variables.subsets", "s", badSubset("s.?name.orValue('')"), inQuotes("s.?name.orValue('')")), "it is no name of a subset: letters, digits and dashes"},
		{"spec.subsets[].name", twice("variables.subsets", "i.?name.orValue('')"), "another subset has this name too"},
		{"spec.subsets[].labels", "variables.subsets.map(s, (" + badLabels("s", "labels") + ").join(', ')).filter(t, t != '')", labelsSay},
		{"trafficPolicy.portLevelSettings[].port", "variables.policies.filter(t, t.policy.?portLevelSettings.orValue([]).exists(p, " + badPort("p.?port.?number.orValue(0)") + ")).map(t, string(t.of))", portSay},
		{"trafficPolicy.connectionPool", inPolicies(func(x string) string { return badPool(x + ".?connectionPool") }), "a limit may not be negative"},
		{"trafficPolicy.outlierDetection", inPolicies(badOutlier), "a percentage is between 0 and 100"},
		{"trafficPolicy.tls", inPolicies(badClient), "mode MUTUAL needs clientCertificate and privateKey, or credentialName"},
	},
}

var envoyFilters = configured{
	group: networkingGroup, resource: "envoyfilters",
	variables: []string{"patches", items("variables.spec", "configPatches")},
	checks: []configCheck{
		{"spec.configPatches[].applyTo", filtered("variables.patches", "p", "p.?applyTo.orValue('INVALID') == 'INVALID'", "'none'"), "it is missing"},
		{"spec.configPatches[].patch.operation", filtered("variables.patches", "p", "p.?patch.?operation.orValue('INVALID') == 'INVALID'", "p.?applyTo.orValue('')"), "it is missing"},
		{"spec.configPatches[].patch.value", filtered("variables.patches", "p", "!(p.?patch.?operation.orValue('REMOVE') in ['REMOVE', 'INVALID']) && !has(p.patch.value)", "p.patch.operation"),
			"it is missing, and its operation needs one"},
		{"spec.configPatches[].match", filtered("variables.patches", "p", "has(p.match) && (p.?applyTo.orValue('') in ['LISTENER', 'FILTER_CHAIN', 'LISTENER_FILTER'] ? has(p.match.routeConfiguration) || has(p.match.cluster) : "+
			"p.?applyTo.orValue('') == 'CLUSTER' ? has(p.match.listener) || has(p.match.routeConfiguration) : "+
			"p.?applyTo.orValue('') in ['ROUTE_CONFIGURATION', 'VIRTUAL_HOST'] && (has(p.match.listener) || has(p.match.cluster)))", "p.applyTo"),
			"a patch matches by objects of the class that it is applied to"},
	},
}
