package policy

const securityGroup = "security.istio.io"

var peerAuthentications = configured{
	group: securityGroup, resource: "peerauthentications",
	variables: []string{"ports", field("variables.spec", "portLevelMtls", "{}")},
	checks: []configCheck{
		{"spec.portLevelMtls", shown("size(variables.ports) > 0 && size(variables.spec.?selector.?matchLabels.orValue({})) == 0", "'no selector'"),
			"modes of single ports need a selector with labels; without one the policy is for all workloads, whose ports differ"},
	},
}

// Lists of strings of a rule's source and operation.
var (
	blockLists  = []string{"ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"}
	sourceLists = append([]string{"principals", "notPrincipals", "requestPrincipals", "notRequestPrincipals", "namespaces", "notNamespaces",
		"serviceAccounts", "notServiceAccounts", "trustDomains", "notTrustDomains"}, blockLists...)
	operationLists = []string{"hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"}
)

// inRules shows what a condition flags in a list of the rules; each item is x.
func inRules(list, condition, show string) string {
	return nested("variables.rules", "r", items("r", list), "x", condition, show)
}

// hasEmpty is whether one of the lists of an object has an empty text, or none of them anything.
func hasEmpty(x string, lists []string) string {
	said, empty := "", ""
	for i, l := range lists {
		if i > 0 {
			said, empty = said+" + ", empty+" || "
		}
		said += "size(" + x + ".?" + l + ".orValue([]))"
		empty += "'' in " + x + ".?" + l + ".orValue([])"
	}
	return "(" + said + " == 0 || " + empty + ")"
}

// all is one list of several.
func all(x string, lists []string) string {
	out := ""
	for i, l := range lists {
		if i > 0 {
			out += " + "
		}
		out += x + ".?" + l + ".orValue([])"
	}
	return "(" + out + ")"
}

var authorizationPolicies = configured{
	group: securityGroup, resource: "authorizationpolicies",
	variables: []string{
		"rules", items("variables.spec", "rules"),
		"custom", field("variables.spec", "action", "'ALLOW'") + " == 'CUSTOM'",
	},
	checks: []configCheck{
		{"spec.provider", shown("variables.custom && variables.spec.?provider.?name.orValue('') == ''", "'none'"), "action CUSTOM asks a provider"},
		{"spec.provider", shown("!variables.custom && has(variables.spec.provider)", "variables.spec.?action.orValue('ALLOW')"), "only action CUSTOM has a provider"},
		{"spec.rules", shown("variables.custom && size(variables.rules) == 0", "'none'"), "action CUSTOM needs at least one"},
		{"spec.rules[].from[].source", inRules("from", hasEmpty("x.?source", sourceLists), "'empty'"), "a source names at least one field, and nothing empty"},
		{"spec.rules[].from[].source", inRules("from", all("x.?source", blockLists)+".exists(b, b != '' && "+badAddress("b")+")", all("x.?source", blockLists)+".join(', ')"), "one is neither an IP address nor a CIDR block"},
		{"spec.rules[].to[].operation", inRules("to", hasEmpty("x.?operation", operationLists), "'empty'"), "an operation names at least one field, and nothing empty"},
		{"spec.rules[].to[].operation.ports", inRules("to", all("x.?operation", []string{"ports", "notPorts"})+".exists(p, p != '' && (!p.matches('^0*[0-9]{1,5}$') || int(p) > 65535))",
			all("x.?operation", []string{"ports", "notPorts"})+".join(', ')"), "one is no port, which is a number up to 65535"},
		{"spec.rules[].when[]", inRules("when", "x.?key.orValue('') == ''", "'no key'"), "a condition needs a key"},
		{"spec.rules[].when[]", inRules("when", "size("+items("x", "values")+") + size("+items("x", "notValues")+") == 0", "x.?key.orValue('')"), "a condition needs values or notValues"},
	},
}
