package policy

// destinations shows what is wrong with the destinations of the routes in a variable.
func destinations(routes, condition, show string) string {
	return nested("variables."+routes, "r", items("r", "route"), "d", condition, show)
}

const (
	destinationHost   = "d.?destination.?host.orValue('')"
	destinationSubset = "d.?destination.?subset.orValue('')"
)

// toDestinations are the checks that every kind of route has.
func toDestinations(routes string) []configCheck {
	at := "spec." + routes + "[]."
	return []configCheck{
		{at + "route[].destination.host", destinations(routes, destinationHost+" == '*' || "+badHost(destinationHost), inQuotes(destinationHost)), hostSay + ", or is * alone"},
		{at + "route[].destination.subset", destinations(routes, destinationSubset+" != '' && "+badSubset(destinationSubset), inQuotes(destinationSubset)), "it is no name of a subset"},
		{at + "route[].destination.port", destinations(routes, "has(d.destination) && has(d.destination.port) && "+badPort("d.destination.port.?number.orValue(0)"), "d.destination.port.?number.orValue(0)"), portSay},
		{at + "route[].weight", filtered("variables."+routes, "r", badWeights(items("r", "route")), routeName), "a weight may not be negative, nor all of them 0"},
	}
}

// layer4 are the checks of what a layer 4 route matches by.
func layer4(routes string) []configCheck {
	at, all := "spec."+routes+"[].match[].", "variables."+routes
	return []configCheck{
		{at + "port", nested(all, "r", items("r", "match"), "m", "int(m.?port.orValue(0)) > 65535", "m.port"), portSay},
		{at + "destinationSubnets", nested(all, "r", items("r", "match"), "m", items("m", "destinationSubnets")+".exists(a, "+badAddress("a")+")",
			items("m", "destinationSubnets")+".join(', ')"), "one is neither an IP address nor a CIDR block"},
		{"spec." + routes + "[].route", filtered(all, "r", "size("+items("r", "route")+") == 0", "'none'"), "there is nowhere to send connections to"},
	}
}

const (
	routeName = "r.?name.orValue('a route without a name')"
	// actions are how many things a route does.
	actions = "(size(r.?route.orValue([])) > 0 ? 1 : 0) + (has(r.redirect) ? 1 : 0) + (has(r.directResponse) ? 1 : 0) + (has(r.delegate) ? 1 : 0)"
)

// inHTTP shows the HTTP routes that a condition flags.
func inHTTP(condition string) string { return filtered("variables.http", "r", condition, routeName) }

var virtualServices = configured{
	group: networkingGroup, resource: "virtualservices",
	variables: []string{
		"hosts", items("variables.spec", "hosts"),
		"gateways", items("variables.spec", "gateways"),
		"http", items("variables.spec", "http"),
		"tls", items("variables.spec", "tls"),
		"tcp", items("variables.spec", "tcp"),
	},
	checks: joined([]configCheck{
		{"spec.hosts", shown("size(variables.hosts) == 0 && size(variables.gateways) + size(variables.tls) + size(variables.tcp) > 0", "'none'"),
			"without hosts this is a delegate, which has only http routes and no gateways"},
		{"spec", shown("size(variables.http) + size(variables.tls) + size(variables.tcp) == 0", "'no route'"), "it routes nothing; http, tls or tcp is needed"},
		{"spec.hosts", filtered("variables.hosts", "h", badHost("h"), inQuotes("h")), hostSay},
		{"spec.hosts", filtered("variables.hosts", "h", "h == '*' && (size(variables.gateways) == 0 || 'mesh' in variables.gateways)", inQuotes("h")),
			"it is for gateways alone; for the sidecars of the mesh it would take every service over"},
		{"spec.http[]", inHTTP(actions + " != 1"), "a route does one thing: route, redirect, directResponse or delegate"},
		{"spec.http[].redirect.redirectCode", inHTTP("int(r.?redirect.?redirectCode.orValue(0)) != 0 && " +
			"(int(r.redirect.redirectCode) < 300 || int(r.redirect.redirectCode) > 399)"), "the code of a redirect is between 300 and 399"},
		{"spec.http[].directResponse.status", inHTTP("has(r.directResponse) && (int(r.directResponse.?status.orValue(0)) < 200 || int(r.directResponse.?status.orValue(0)) > 600)"), "a status that ends a request is between 200 and 599"},
		{"spec.http[].mirror.host", filtered("variables.http.filter(r, has(r.mirror))", "r", "r.mirror.?host.orValue('') == '*' || "+badHost("r.mirror.?host.orValue('')"), inQuotes("r.mirror.?host.orValue('')")), hostSay + ", or is * alone"},
		{"spec.http[].mirrors[].destination.host", nested("variables.http", "r", items("r", "mirrors"), "d", destinationHost+" == '*' || "+badHost(destinationHost), inQuotes(destinationHost)), hostSay + ", or is * alone"},
		{"spec.http[].mirrorPercentage", inHTTP(badPercent("r", "mirrorPercentage") + " || " + items("r", "mirrors") + ".exists(m, " + badPercent("m", "percentage") + ")"), "a percentage is between 0 and 100"},
		{"spec.http[].retries.attempts", inHTTP("int(r.?retries.?attempts.orValue(0)) < 0"), "it may not be negative"},
		{"spec.http[].fault", inHTTP("has(r.fault) && (" + badPercent("r.fault.?delay", "percentage") + " || " + badPercent("r.fault.?abort", "percentage") + ")"), "a percentage is between 0 and 100"},
		{"spec.http[].fault.abort.httpStatus", inHTTP("has(r.fault) && has(r.fault.abort) && has(r.fault.abort.httpStatus) && (int(r.fault.abort.httpStatus) < 200 || int(r.fault.abort.httpStatus) > 600)"),
			"a status that ends a request is between 200 and 600"},
		{"spec.http[].match[].port", nested("variables.http", "r", items("r", "match"), "m", "int(m.?port.orValue(0)) > 65535", "m.port"), portSay},
		{"spec.http[].match[].sourceLabels", "variables.http.map(r, r.?match.orValue([]).map(m, (" + badLabels("m", "sourceLabels") + ").join(', ')).filter(t, t != '').join(', ')).filter(t, t != '')", labelsSay},
		{"spec.tls[].match", filtered("variables.tls", "r", "size("+items("r", "match")+") == 0 || r.match.exists(m, size("+items("m", "sniHosts")+") == 0)", "'none'"), "a tls route is chosen by sniHosts"},
		{"spec.tls[].match[].sniHosts", nested("variables.tls", "r", items("r", "match"), "m", items("m", "sniHosts")+".exists(h, "+badHost("h")+")", items("m", "sniHosts")+".join(', ')"), hostSay},
	}, toDestinations("http"), toDestinations("tls"), toDestinations("tcp"), layer4("tls"), layer4("tcp")),
}

func joined(lists ...[]configCheck) (all []configCheck) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}
